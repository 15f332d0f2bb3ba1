package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

const (
	// soak is how long faults come and go. VFSPROBE_SOAK sets another time.
	soak = time.Minute
	// soakTimeout is for checks: below the interval, and so long that what is healthy
	// answers within it also where other work keeps all CPUs busy.
	soakTimeout = 800 * time.Millisecond
	// maxStuck is the cap on stuck helpers, which is the default.
	maxStuck = 16
	// helperSize is what each of the helpers that are there at one time may cost the fork
	// server for good, in bytes.
	helperSize = 16 << 10
	// reaping may take this long on a busy machine.
	reaping = 5 * time.Second
)

// mountsSoaked is how many there are. The healthy ones never have a fault. With the race detector the
// plugin may take half of soakTimeout for two hundred.
var mountsSoaked, healthy = func() (all, healthy int) {
	if os.Getenv("VFSPROBE_RACE") != "" {
		return 80, 20
	}
	return 200, 50
}()

// Faults of the soak, one of which is drawn each time.
const (
	goesSilent = iota // its helper is left asleep
	pauses
	slowsDown
	fails
	dies
	isUnmounted
	isMountedAnew
	heals // and all above
	kinds = 12
)

// crowd is the file systems of a soak. The first ones never have a fault.
type crowd struct {
	t      *testing.T
	root   string
	all    []*faultfs.FS
	gone   map[int]bool // dead or unmounted
	counts [kinds]int
}

func (c *crowd) dir(i int) string { return filepath.Join(c.root, strconv.Itoa(i)) }

// mount mounts a file system with a daemon of its own.
func (c *crowd) mount(i int) *faultfs.FS {
	_ = os.Mkdir(c.dir(i), 0o755)
	fs, err := faultfs.Mount(c.dir(i), faultfs.Options{Source: fmt.Sprintf("daemon%d", i)})
	require.NoError(c.t, err)
	return fs
}

// heal undoes what a file system has.
func (c *crowd) heal(i int) {
	if c.gone[i] {
		c.all[i].Close()
		c.all[i] = c.mount(i)
	}
	c.all[i].Heal()
	delete(c.gone, i)
}

func (c *crowd) change(i, kind int) {
	c.heal(i)
	c.counts[min(kind, heals)]++
	fs := c.all[i]
	switch kind {
	case goesSilent:
		fs.Silence(faultfs.Statfs)
	case pauses:
		fs.Pause()
	case slowsDown:
		fs.Delay(100*time.Millisecond, faultfs.Statfs)
	case fails:
		fs.Fail(unix.EIO, faultfs.Statfs)
	case dies:
		fs.Abort()
		c.gone[i] = true // until it is mounted anew
	case isUnmounted:
		fs.Close()
		c.gone[i] = true
	case isMountedAnew:
		fs.Close()
		c.all[i] = c.mount(i)
	}
}

// killer kills the plugin and its fork server.
type killer struct {
	agent            *agent
	plugins, servers int // that were killed
	pause            time.Duration
	paused           int // gathers that can have begun when no server came in time
}

func (k *killer) killPlugin() {
	if len(k.agent.plugins()) == 0 {
		return // it is being restarted
	}
	k.agent.end(unix.SIGKILL)
	k.plugins++
	k.pause = 0
}

// killServer also notes how long there will be none: package prober starts another
// at once where the last one ran for ten seconds. Else it makes a pause, of nothing
// first, then of a tenth of a second, and then twice as long each time, up to ten
// seconds. A check waits for half its timeout.
func (k *killer) killServer(w *watch) {
	for _, plugin := range k.agent.plugins() {
		for _, pid := range childrenOf(plugin, "vfsprobe-server") {
			_ = unix.Kill(pid, unix.SIGKILL)
			k.servers++
			if pid == w.server && time.Since(w.serverSince) > 10*time.Second {
				k.pause = 0
				continue
			}
			if late := k.pause - soakTimeout/2; late > 0 {
				k.paused += int(late.Seconds()) + 1
			}
			k.pause = min(max(2*k.pause, 100*time.Millisecond), 10*time.Second)
		}
	}
}

// size is what a process has.
type size struct{ resident, fds, threads int } // bytes

func sizeOf(pid int) (size, bool) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	tasks, err2 := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	statm, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(statm))
	if err != nil || err2 != nil || err3 != nil || len(fields) < 2 {
		return size{}, false
	}
	pages, err := strconv.Atoi(fields[1])
	return size{pages * os.Getpagesize(), len(fds), len(tasks)}, err == nil
}

func (s size) String() string {
	return fmt.Sprintf("%d kB resident, %d descriptors, %d threads", s.resident>>10, s.fds, s.threads)
}

func (s size) less(other size) size {
	return size{s.resident - other.resident, s.fds - other.fds, s.threads - other.threads}
}

// sizes is a process's over time.
type sizes []size

func (s sizes) by(of func(size) int, pick func([]int) int) int {
	var values []int
	for _, one := range s {
		values = append(values, of(one))
	}
	slices.Sort(values)
	return pick(values)
}

func (s sizes) each(pick func([]int) int) size {
	return size{
		s.by(func(one size) int { return one.resident }, pick),
		s.by(func(one size) int { return one.fds }, pick),
		s.by(func(one size) int { return one.threads }, pick),
	}
}

func (s sizes) most() size   { return s.each(func(sorted []int) int { return sorted[len(sorted)-1] }) }
func (s sizes) median() size { return s.each(func(sorted []int) int { return sorted[len(sorted)/2] }) }

// ends are the medians of the first fifth and of the last. One look could be at a
// moment when /proc is read, or just before memory is given back.
func (s sizes) ends() (first, last size) {
	return s[:len(s)/5].median(), s[len(s)-len(s)/5:].median()
}

// watch looks at a plugin and its server while the soak goes on.
type watch struct {
	agent          *agent
	plugin, server int // as last seen; 0 while there is none
	serverSince    time.Time
	plugins        sizes // all of them, and
	servers        sizes
	helpers        int // at one time, the most
	zombies        int
	ended          map[int]time.Time // when processes were first seen to be zombies
}

func (w *watch) look() {
	plugins := w.agent.plugins()
	if len(plugins) != 1 {
		w.plugin, w.server = 0, 0
		return // it is being restarted
	}
	w.plugin = plugins[0]
	if s, ok := sizeOf(w.plugin); ok {
		w.plugins = append(w.plugins, s)
	}
	ended := make(map[int]time.Time)
	servers := childrenOf(w.plugin, "vfsprobe-server")
	if len(servers) == 0 {
		w.server = 0
	}
	for _, server := range servers {
		if server != w.server {
			w.server, w.serverSince = server, time.Now()
		} else if s, ok := sizeOf(server); ok { // at first it has what it was forked with
			w.servers = append(w.servers, s)
		}
		helpers := helpersOf(server)
		w.helpers = max(w.helpers, len(helpers))
		w.zombies += w.unreaped(helpers, ended)
	}
	w.zombies += w.unreaped(helpersOf(w.plugin), ended)
	w.ended = ended
}

// unreaped counts processes that ended long ago and were not reaped.
func (w *watch) unreaped(pids []int, ended map[int]time.Time) (n int) {
	for _, pid := range pids {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, rest, found := strings.Cut(string(stat), ") "); !found || rest[0] != 'Z' {
			continue
		}
		since, known := w.ended[pid]
		if !known {
			since = time.Now()
		}
		if ended[pid] = since; time.Since(since) > reaping {
			n++
		}
	}
	return n
}

// childrenOf are those with the name that run.
func childrenOf(parent int, comm string) (pids []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", parent))
	for _, task := range tasks {
		content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", parent, task.Name()))
		for _, word := range strings.Fields(string(content)) {
			pid, _ := strconv.Atoi(word)
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if strings.TrimSpace(string(name)) == comm && running(pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// witness asks the healthy mounts as well, and remembers which of them let it wait: to
// say that one did not answer is no false report then.
type witness struct {
	stop    chan struct{}
	threads sync.WaitGroup
	mu      sync.Mutex
	waited  map[int][]span
}

type span struct{ from, to time.Time }

// witnessPause is between two questions to a mount, and witnessPatience how long an
// answer may take. A check waits for half of its timeout at least, so that of what
// fails one a question meets more than a quarter.
const witnessPause, witnessPatience = soakTimeout / 4, soakTimeout / 4

func startWitness(c *crowd) *witness {
	w := &witness{stop: make(chan struct{}), waited: make(map[int][]span)}
	for i := range healthy {
		w.threads.Go(func() {
			pause := time.NewTicker(witnessPause)
			defer pause.Stop()
			for {
				asked := span{from: time.Now()}
				_ = unix.Statfs(c.dir(i), new(unix.Statfs_t))
				if asked.to = time.Now(); asked.to.Sub(asked.from) > witnessPatience {
					w.mu.Lock()
					w.waited[i] = append(w.waited[i], asked)
					w.mu.Unlock()
				}
				select {
				case <-pause.C:
				case <-w.stop:
					return
				}
			}
		})
	}
	return w
}

func (w *witness) end() {
	close(w.stop)
	w.threads.Wait()
}

// count is how often it had to wait.
func (w *witness) count() (n int) {
	for _, spans := range w.waited {
		n += len(spans)
	}
	return n
}

// confirms reports whether the mount of a report let the witness wait in its interval.
func (w *witness) confirms(f fault) bool {
	return slices.ContainsFunc(w.waited[f.mount], func(s span) bool {
		return s.from.Before(f.at.Add(time.Second)) && s.to.After(f.at)
	})
}

// stalls are the times in which this test stood still, though it had something to do four times a
// second: nor could vfsprobe or Telegraf go on.
type stalls struct {
	last time.Time
	all  []span
}

func (s *stalls) look() {
	now := time.Now()
	if !s.last.IsZero() && now.Sub(s.last) > time.Second {
		s.all = append(s.all, span{s.last, now})
	}
	s.last = now
}

// between is how many intervals began meanwhile.
func (s *stalls) between(from, to time.Time) (seconds int) {
	for _, one := range s.all {
		if one.from.Before(to) && one.to.After(from) {
			seconds += int(one.to.Sub(one.from).Seconds()) + 1
		}
	}
	return seconds
}

// fault is a report that a healthy mount does not answer.
type fault struct {
	mount int
	at    time.Time
	line  string
}

// interval is what the metrics say of one.
type interval struct {
	whole   bool           // its last line is there
	results map[int]string // of the healthy mounts
}

// history is the intervals, by timestamp.
type history struct {
	intervals  map[int64]*interval
	twice      int // points of the same mount and interval
	faults     []fault
	reasons    map[string]int
	mostStuck  float64
	mostAsleep float64
}

func read(t *testing.T, metrics, root string) *history {
	file, err := os.Open(metrics)
	require.NoError(t, err)
	defer file.Close()
	h := &history{intervals: make(map[int64]*interval), reasons: make(map[string]int)}
	path := regexp.MustCompile("^mountstat,.*path=" + regexp.QuoteMeta(root) + `/(\d+) .*result="([a-z]+)"`)
	reason, digits := regexp.MustCompile(`reason="([^"]*)"`), regexp.MustCompile(`[0-9]+`)
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		at, err := strconv.ParseInt(timestamp(line), 10, 64)
		require.NoError(t, err, line)
		in := h.intervals[at]
		if in == nil {
			in = &interval{results: make(map[int]string)}
			h.intervals[at] = in
		}
		switch {
		case strings.HasPrefix(line, "mountstat_summary "):
			in.whole = true
		case strings.HasPrefix(line, "vfsprobe "):
			h.mostStuck = max(h.mostStuck, field(t, line, "helpers_stuck"))
			h.mostAsleep = max(h.mostAsleep, field(t, line, "helpers_asleep"))
		default:
			found := path.FindStringSubmatch(line)
			if found == nil {
				continue
			}
			i, _ := strconv.Atoi(found[1])
			if i >= healthy {
				continue
			}
			if _, known := in.results[i]; known {
				h.twice++
			}
			in.results[i] = found[2]
			if !slices.Contains([]string{"ok", "slow", "unchecked"}, found[2]) {
				h.faults = append(h.faults, fault{i, time.Unix(0, at), line})
			}
			if why := reason.FindStringSubmatch(line); why != nil {
				h.reasons[digits.ReplaceAllString(why[1], "N")]++
			}
		}
	}
	require.NoError(t, scanner.Err())
	return h
}

// tally is what came of the intervals of a part of the soak.
type tally struct {
	whole, lost int            // intervals
	missing     int            // points of healthy mounts in whole intervals
	results     map[string]int // of healthy mounts
}

func (h *history) between(from, to time.Time) tally {
	t := tally{results: make(map[string]int)}
	for at, in := range h.intervals {
		if at < from.UnixNano() || at >= to.UnixNano() {
			continue
		}
		if in.whole {
			t.whole++
			t.missing += healthy - len(in.results)
		}
		for _, result := range in.results {
			t.results[result]++
		}
	}
	t.lost = int(to.Sub(from).Seconds()) - t.whole
	return t
}

// noise is how many intervals a machine with other work may lose: one at the ends of
// the part, and a hundredth.
func (t tally) noise() int { return 1 + (t.whole+t.lost)/100 }

// late is how many checks of healthy mounts a machine with other work may not come
// to within half their timeout: those of one gather, or else a two-hundredth.
func (t tally) late() int { return max(healthy, t.whole*healthy/200) }

func (t tally) String() string {
	return fmt.Sprintf("%d whole intervals, %d lost; points of %d healthy mounts: %v, %d missing", t.whole, t.lost, healthy, t.results, t.missing)
}

// fromEnvironment reads a variable, if it is set.
func fromEnvironment[T any](t *testing.T, name string, otherwise T, parse func(string) (T, error)) T {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	value, err := parse(text)
	require.NoError(t, err, name)
	return value
}

// A real Telegraf gathers every second. Of 200 mounts, 150 hang, fail, slow down,
// die, recover, are unmounted and mounted anew at random. For two thirds of the
// time the plugin and its fork server are killed at random, too. Each way has half of it. In the last third
// they are not, and must not grow. What is healthy has a point in each interval, and
// never a fault; in the end all is as in the beginning.
//
// VFSPROBE_SOAK_SEED repeats what was drawn in another run, not its timing. With
// VFSPROBE_RACE=1 the plugin looks for data races meanwhile.
func TestSoak(t *testing.T) {
	inTurn(t, func(t *testing.T, in way) {
		faultfs.Require(t)
		length := fromEnvironment(t, "VFSPROBE_SOAK", soak, time.ParseDuration)
		length = max(length/2, 20*time.Second) // in either way; to have a beginning and an end that can be compared
		seed := fromEnvironment(t, "VFSPROBE_SOAK_SEED", rand.Uint64(), func(text string) (uint64, error) { return strconv.ParseUint(text, 10, 64) })
		t.Logf("VFSPROBE_SOAK=%v VFSPROBE_SOAK_SEED=%d", length, seed)
		c := &crowd{t: t, root: t.TempDir(), gone: map[int]bool{}}
		t.Cleanup(func() {
			for _, fs := range c.all {
				fs.Close()
			}
		})
		for i := range mountsSoaked {
			c.all = append(c.all, c.mount(i))
		}
		inputs := filepath.Join(t.TempDir(), "vfsprobe.toml")
		require.NoError(t, os.WriteFile(inputs, fmt.Appendf(nil, "[[inputs.mountstat]]\n  timeout = %q\n[[inputs.dentrycache]]\n[[inputs.nfslock]]\n", soakTimeout), 0o600))
		// Half of the plugin's descriptors are BPF's. The server has all that it needs from
		// its beginning; of its memory the helpers use what an earlier one has used.
		plugin, most, grown := vfsprobe, size{80 << 20, 64, 20 + runtime.NumCPU()}, size{4 << 20, 4, 2}
		mostOfServer, serverGrown := size{4 << 20, 8, 1}, size{256 << 10, 0, 0}
		if os.Getenv("VFSPROBE_RACE") != "" {
			plugin, most, grown = racing, size{256 << 20, 64, 40 + runtime.NumCPU()}, size{32 << 20, 4, 2}
			mostOfServer.resident *= 2
		}
		// Not the file in the cache, which another build may replace meanwhile.
		agent := in.telegraf(t, func(s *setup) { s.vfsprobe, s.inputs = publicCopy(t, binary(t, plugin)), inputs })
		metrics := agent.metrics
		tail(t, metrics, "^mountstat_summary ", fmt.Sprintf("ok=%di", mountsSoaked+1))
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=0i")
		clear(t, metrics)
		beside := startWitness(c)
		endWitness := sync.OnceFunc(beside.end)
		t.Cleanup(endWitness)

		random := rand.New(rand.NewPCG(seed, 0))
		w, k := &watch{agent: agent}, &killer{agent: agent}
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		var pauses stalls
		next := func() {
			<-tick.C
			pauses.look()
			for range 3 {
				c.change(healthy+random.IntN(mountsSoaked-healthy), random.IntN(kinds))
			}
		}
		began := time.Now()
		for time.Since(began) < length*2/3 {
			next()
			switch random.IntN(60) {
			case 0:
				k.killPlugin()
			case 1, 2:
				k.killServer(w)
			}
			w.look()
		}
		killed := time.Now()
		// What was killed last comes back, perhaps after a pause, and has its first gathers:
		// in those a plugin comes to need the memory that it keeps. A server that was killed
		// a moment ago may still be there.
		for warmUp := max(2*time.Second, length/30); w.server == 0 || time.Since(w.serverSince) < warmUp || time.Since(killed) < warmUp; {
			require.Less(t, time.Since(killed), patience+warmUp, "there is no fork server any more")
			next()
			w.look()
		}
		steady := &watch{agent: agent, plugin: w.plugin, server: w.server}
		settled := time.Now()
		for time.Since(settled) < length/3 {
			next()
			steady.look()
			require.Equal(t, []int{w.plugin, w.server}, []int{steady.plugin, steady.server}, "nobody kills the plugin or its fork server any more")
		}
		over := time.Now()
		for i := healthy; i < mountsSoaked; i++ {
			c.heal(i)
		}
		faulty, err := os.Stat(metrics)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			file, err := os.Open(metrics)
			require.NoError(t, err)
			defer file.Close()
			_, err = file.Seek(faulty.Size(), io.SeekStart)
			require.NoError(t, err)
			well, stuck := false, true
			for scanner := bufio.NewScanner(file); scanner.Scan(); {
				switch line := scanner.Text(); {
				case strings.HasPrefix(line, "mountstat_summary "):
					well = strings.Contains(line, "faults=0i") && strings.Contains(line, fmt.Sprintf("ok=%di", mountsSoaked+1))
				case strings.HasPrefix(line, "vfsprobe "):
					stuck = !strings.Contains(line, "helpers_asleep=0i") || !strings.Contains(line, "helpers_stuck=0i")
				}
			}
			return well && !stuck
		}, patience, 100*time.Millisecond, "all answer, and no helper is stuck any more")
		stopped := time.Now()
		require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
		agent.exit()
		assert.Less(t, time.Since(stopped), execdGrace, "the plugin ends with its stdin")

		for _, trouble := range []string{"DATA RACE", "panic: ", "fatal error: "} {
			assert.NotContains(t, agent.stderr.String()+agent.said(), trouble)
		}

		endWitness()
		h := read(t, metrics, c.root)
		rough, quiet := h.between(began, killed), h.between(settled, over)
		t.Logf("%v: %d changes (silent, paused, slow, failing, dead, unmounted, mounted anew, healed: %v)",
			over.Sub(began).Round(time.Second), sum(c.counts[:]), c.counts[:heals+1])
		t.Logf("%v with kills, the plugin's %d times, the fork server's %d times, with pauses in which %d gathers can have begun: %v",
			killed.Sub(began).Round(time.Second), k.plugins, k.servers, k.paused, rough)
		t.Logf("%v without: %v", over.Sub(settled).Round(time.Second), quiet)
		plugins, servers := append(w.plugins, steady.plugins...).most(), append(w.servers, steady.servers...).most()
		helpers, zombies := max(w.helpers, steady.helpers), w.zombies+steady.zombies
		serverGrown.resident += helpers * helperSize
		t.Logf("unchecked: %v; at most %.0f helpers stuck and %.0f asleep, %d at a time; %d zombies", h.reasons, h.mostStuck, h.mostAsleep, helpers, zombies)
		t.Logf("this test stood still for %d s of the first part, and %d s of the last", pauses.between(began, killed), pauses.between(settled, over))
		t.Logf("beside vfsprobe, answers of healthy mounts came later than after %v: %d times", witnessPatience, beside.count())
		first, last := steady.plugins.ends()
		t.Logf("plugin: at most %v; without kills at first %v, at last %v", plugins, first, last)
		firstOfServer, lastOfServer := steady.servers.ends()
		t.Logf("fork server: at most %v; without kills at first %v, at last %v", servers, firstOfServer, lastOfServer)

		assert.Zero(t, h.twice, "points of the same mount and interval")
		for _, part := range []tally{rough, quiet} {
			assert.Zero(t, part.missing)
		}
		for _, f := range h.faults {
			if beside.confirms(f) {
				t.Logf("a fault that was seen beside vfsprobe, too: %s", f.line)
				continue
			}
			assert.Fail(t, "a false fault", f.line)
		}
		// A kill of the plugin ends the gather under way, and there is one for some 0.9 s
		// of each second: the timeout of what hangs, and what its helper has to end. If
		// the next second begins before Telegraf has started the plugin again, that is
		// lost as well. So much for one interval each; and half as much for bad luck.
		assert.LessOrEqual(t, rough.lost, k.plugins*3/2+rough.noise()+pauses.between(began, killed))
		assert.LessOrEqual(t, quiet.lost, quiet.noise()+pauses.between(settled, over))
		// A kill of either takes the checks at work: if it comes while the healthy ones
		// are checked, for a twentieth of each second, as many as the cap. That is one
		// each; and as much for bad luck.
		assert.LessOrEqual(t, rough.results["unchecked"], k.paused*healthy+2*(k.plugins+k.servers)+rough.late())
		assert.LessOrEqual(t, quiet.results["unchecked"], quiet.late())
		assert.LessOrEqual(t, h.mostStuck, float64(maxStuck))
		assert.LessOrEqual(t, helpers, maxStuck+mountsSoaked-healthy+2, "the kernel lists children one after the other, while they come and go")
		assert.Zero(t, zombies)
		assertWithin(t, "the plugin has", plugins, most)
		assertWithin(t, "the fork server has", servers, mostOfServer)
		assertWithin(t, "the plugin has grown by", last.less(first), grown)
		assertWithin(t, "the fork server has grown by", lastOfServer.less(firstOfServer), serverGrown)
	})
}

func assertWithin(t *testing.T, what string, have, most size) {
	t.Helper()
	assert.LessOrEqual(t, have.resident, most.resident, "%s resident bytes", what)
	assert.LessOrEqual(t, have.fds, most.fds, "%s descriptors", what)
	assert.LessOrEqual(t, have.threads, most.threads, "%s threads", what)
}

func sum(numbers []int) (total int) {
	for _, n := range numbers {
		total += n
	}
	return total
}
