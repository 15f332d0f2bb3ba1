package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
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
	soak = 5 * time.Minute
	// soakTimeout is for checks: below the interval, and so long that what is healthy
	// answers within it also where other work keeps all CPUs busy. What hangs holds a
	// place under the cap as long, and there are two more such mounts each second.
	soakTimeout = 800 * time.Millisecond
	// warmUp is until a plugin has the memory that it needs.
	warmUp = 10 * time.Second
	// reaping may take this long on a busy machine.
	reaping = 5 * time.Second
)

// Faults of the soak, one of which is drawn each time.
const (
	goesSilent = iota // its helper can't be killed
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
	silent map[int]bool
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
	delete(c.silent, i)
	delete(c.gone, i)
}

func (c *crowd) change(i, kind int) {
	// The cap leaves room for those who answer while it is not used up: with the
	// whole of it stuck nothing is checked any more, and that is promised.
	const most = 8
	if kind == goesSilent && len(c.silent) >= most {
		kind = heals
	}
	c.heal(i)
	c.counts[min(kind, heals)]++
	fs := c.all[i]
	switch kind {
	case goesSilent:
		c.silent[i] = true
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

// watch looks at a process while the soak goes on.
type watch struct {
	pid                       int
	first                     int // resident bytes when it had run for a while
	since                     time.Time
	fds, threads, resident    int // the most
	helpers, growth, restarts int
	ended                     map[int]time.Time // when processes were first seen to be zombies
}

// look returns how many zombies there are of the plugin's or its server's.
func (w *watch) look(telegraf int) (zombies int) {
	plugins := childrenOf(telegraf, "vfsprobe")
	if len(plugins) != 1 {
		return 0 // it is being restarted
	}
	pid := plugins[0]
	if pid != w.pid {
		*w = watch{pid: pid, since: time.Now(), fds: w.fds, threads: w.threads, resident: w.resident, helpers: w.helpers, growth: w.growth, restarts: w.restarts + 1}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	tasks, err2 := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	statm, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if fields := strings.Fields(string(statm)); err == nil && err2 == nil && err3 == nil && len(fields) > 1 {
		pages, _ := strconv.Atoi(fields[1])
		resident := pages * os.Getpagesize()
		w.fds, w.threads, w.resident = max(w.fds, len(fds)), max(w.threads, len(tasks)), max(w.resident, resident)
		switch {
		case w.first > 0:
			w.growth = max(w.growth, resident-w.first)
		case time.Since(w.since) > warmUp:
			w.first = resident
		}
	}
	ended := make(map[int]time.Time)
	for _, server := range childrenOf(pid, "vfsprobe-server") {
		helpers := helpersOf(server)
		w.helpers = max(w.helpers, len(helpers))
		zombies += w.zombies(helpers, ended)
	}
	zombies += w.zombies(helpersOf(pid), ended)
	w.ended = ended
	return zombies
}

// zombies counts processes that ended long ago and were not reaped.
func (w *watch) zombies(pids []int, ended map[int]time.Time) (n int) {
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

// With VFSPROBE_RACE=1 the plugin looks for data races meanwhile.
//
// A real Telegraf gathers every second. Of 200 mounts, 150 hang, fail, slow down,
// die, recover, are unmounted and mounted anew at random, and the plugin and its
// fork server are killed at random. What is healthy has a point in each interval,
// and never a fault; in the end all is as in the beginning.
func TestSoak(t *testing.T) {
	faultfs.Require(t)
	length := soak
	if text := os.Getenv("VFSPROBE_SOAK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	const n, healthy = 200, 50
	c := &crowd{t: t, root: t.TempDir(), silent: map[int]bool{}, gone: map[int]bool{}}
	t.Cleanup(func() {
		for _, fs := range c.all {
			fs.Close()
		}
	})
	for i := range n {
		c.all = append(c.all, c.mount(i))
	}
	config, metrics := configure(t)
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	inputs := filepath.Join(t.TempDir(), "vfsprobe.toml")
	require.NoError(t, os.WriteFile(inputs, fmt.Appendf(nil, "[[inputs.mountstat]]\n  timeout = %q\n[[inputs.dentrycache]]\n[[inputs.nfslock]]\n", soakTimeout), 0o600))
	text = bytes.Replace(text, []byte(filepath.Join(repository(t), "testdata/vfsprobe.toml")), []byte(inputs), 1)
	require.Contains(t, string(text), inputs)
	// Not the file in the cache, which another build may replace meanwhile.
	plugin, mostGrowth, mostThreads := vfsprobe, 16<<20, 20+runtime.NumCPU()
	if os.Getenv("VFSPROBE_RACE") != "" {
		plugin, mostGrowth, mostThreads = racing, 256<<20, 40+runtime.NumCPU()
	}
	text = bytes.Replace(text, []byte(binary(t, vfsprobe)), []byte(publicCopy(t, binary(t, plugin))), 1)
	text = bytes.Replace(text, []byte(`signal = "STDIN"`), []byte("signal = \"STDIN\"\n  restart_delay = \"100ms\""), 1)
	require.NoError(t, os.WriteFile(config, text, 0o600))
	agent := start(t, binary(t, telegraf), "--config", config)
	tail(t, metrics, "^mountstat_summary ", fmt.Sprintf("ok=%di", n+1))
	tail(t, metrics, "^vfsprobe ", "helpers_stuck=0i")
	clear(t, metrics)

	random := rand.New(rand.NewPCG(1, 2))
	w := &watch{}
	zombies, plugins, servers := 0, 0, 0
	began := time.Now()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for time.Since(began) < length {
		<-tick.C
		for range 3 {
			c.change(healthy+random.IntN(n-healthy), random.IntN(kinds))
		}
		switch random.IntN(60) {
		case 0:
			for _, pid := range childrenOf(agent.Process.Pid, "vfsprobe") {
				_ = unix.Kill(pid, unix.SIGKILL)
				plugins++
			}
		case 1, 2:
			for _, pid := range childrenOf(agent.Process.Pid, "vfsprobe") {
				for _, server := range childrenOf(pid, "vfsprobe-server") {
					_ = unix.Kill(server, unix.SIGKILL)
					servers++
				}
			}
		}
		zombies += w.look(agent.Process.Pid)
	}
	lasted := time.Since(began)
	for i := healthy; i < n; i++ {
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
				well = strings.Contains(line, "faults=0i") && strings.Contains(line, fmt.Sprintf("ok=%di", n+1))
			case strings.HasPrefix(line, "vfsprobe "):
				stuck = !strings.Contains(line, "helpers_stuck=0i")
			}
		}
		return well && !stuck
	}, patience, 100*time.Millisecond, "all answer, and no helper is stuck any more")
	began = time.Now()
	require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
	agent.exit()
	assert.Less(t, time.Since(began), 5*time.Second, "the plugin ends with its stdin: execd sends no signal before that")

	for _, trouble := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		assert.NotContains(t, agent.stderr.String(), trouble)
	}

	// What the metrics say of those that were healthy all the time.
	file, err := os.Open(metrics)
	require.NoError(t, err)
	defer file.Close()
	ends := make(map[string]bool)   // of rounds, by timestamp
	points := make(map[string]int)  // of the healthy, by timestamp
	results := make(map[string]int) // of the healthy
	reasons := make(map[string]int)
	reason, digits := regexp.MustCompile(`reason="([^"]*)"`), regexp.MustCompile(`[0-9]+`)
	mostStuck := 0.0
	path := regexp.MustCompile("^mountstat,.*path=" + regexp.QuoteMeta(c.root) + `/(\d+) .*result="([a-z]+)"`)
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case strings.HasPrefix(line, "mountstat_summary "):
			ends[timestamp(line)] = true
		case strings.HasPrefix(line, "vfsprobe "):
			mostStuck = max(mostStuck, field(t, line, "helpers_stuck"))
		default:
			found := path.FindStringSubmatch(line)
			if found == nil {
				continue
			}
			if i, _ := strconv.Atoi(found[1]); i < healthy {
				points[timestamp(line)]++
				results[found[2]]++
				if why := reason.FindStringSubmatch(line); why != nil {
					reasons[digits.ReplaceAllString(why[1], "N")]++
				}
			}
		}
	}
	require.NoError(t, scanner.Err())
	missing := 0
	for at := range ends {
		missing += healthy - points[at]
	}
	t.Logf("%v: %d changes (silent, paused, slow, failing, dead, unmounted, mounted anew, healed: %v); the plugin was killed %d times, the fork server %d times",
		lasted.Round(time.Second), sum(c.counts[:]), c.counts[:heals+1], plugins, servers)
	t.Logf("%d whole intervals; %d healthy mounts: %v (%v), %d points missing", len(ends), healthy, results, reasons, missing)
	t.Logf("at most: %.0f helpers stuck, %d at a time, %d descriptors, %d threads, %d kB resident, grown by %d kB; %d zombies",
		mostStuck, w.helpers, w.fds, w.threads, w.resident>>10, w.growth>>10, zombies)
	assert.Zero(t, missing)
	assert.GreaterOrEqual(t, len(ends), int(lasted.Seconds())-3*plugins-2, "each kill of the plugin costs the intervals until it is started again")
	for result, count := range results {
		switch result {
		case "ok", "slow":
		case "unchecked":
			// Its check was under way when the fork server was killed, or that was
			// being started; or the machine was busy for longer than an interval.
			assert.LessOrEqual(t, count, (servers+plugins)*healthy+len(ends)*healthy/50)
		default:
			assert.Fail(t, "a false fault", "%d times %s", count, result)
		}
	}
	assert.LessOrEqual(t, mostStuck, 16.0)
	assert.LessOrEqual(t, w.helpers, 16+16, "stuck ones, and those at work")
	assert.LessOrEqual(t, w.fds, 64, "half of them are BPF's")
	assert.LessOrEqual(t, w.threads, mostThreads)
	assert.Less(t, w.growth, mostGrowth)
	assert.Zero(t, zombies)
}

func sum(numbers []int) (total int) {
	for _, n := range numbers {
		total += n
	}
	return total
}
