package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	backlog = 100 // ends of gathers that nobody waits for
	// patience is for a start or a whole gather, of 5,000 programs one by one.
	patience = 2 * time.Minute
	// goodbye is how long a program may take to stop, goodbyeKilled how long after
	// SIGKILL.
	goodbye, goodbyeKilled = 4 * time.Second, time.Second
)

// An agent is a program at work that tells how full file systems are.
type agent struct {
	seen *sightings
	// gather makes it gather, and does not wait: the end of each gather is sent to
	// ended, or the zero time if it failed. An agent that gathers at an interval of its
	// own has none: seen says how long its gathers took.
	gather func() error
	ended  chan time.Time
	// asked and answered are when gathers began and ended, of those that were asked for
	// by ask.
	asked, answered []time.Time
	cgroup          *cgroup // of all its processes
	// helpers is how many helpers vfsprobe has forked.
	helpers func() int
	// quit asks it to stop, and returns its processes.
	quit func() []*process

	mu       sync.Mutex
	sessions map[int]bool
}

// A process is a program in a session of its own.
type process struct {
	*exec.Cmd
	log    *os.File
	exited chan struct{}
}

func newAgent(cgroup *cgroup, seen *sightings) *agent {
	return &agent{cgroup: cgroup, seen: seen, ended: make(chan time.Time, backlog), sessions: make(map[int]bool)}
}

// start starts a program whose lines are read by take.
func (a *agent) start(dir string, command *exec.Cmd, take func(line string)) (*process, error) {
	log, err := os.CreateTemp(dir, "log")
	if err != nil {
		return nil, err
	}
	// A pipe and a file of ours: Wait must not wait for what hangs with them open.
	lines, out, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", command.Path, err)
	}
	defer out.Close()
	command.Stdout, command.Stderr = out, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	a.cgroup.start(command.SysProcAttr)
	if err := command.Start(); err != nil {
		lines.Close()
		return nil, fmt.Errorf("starting %s: %w", command.Path, err)
	}
	a.mu.Lock()
	a.sessions[command.Process.Pid] = true
	a.mu.Unlock()
	p := &process{Cmd: command, log: log, exited: make(chan struct{})}
	go func() {
		defer lines.Close()
		for scanner := bufio.NewScanner(lines); scanner.Scan(); {
			take(scanner.Text())
		}
	}()
	go func() {
		_ = command.Wait()
		close(p.exited)
	}()
	return p, nil
}

// census counts its processes.
func (a *agent) census() (census, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return count(a.sessions)
}

// stop stops it, and tells how that went.
func (a *agent) stop() string {
	began := time.Now()
	processes := a.quit()
	gone := func(within time.Duration) bool {
		for deadline := time.After(within); len(processes) > 0; processes = processes[1:] {
			select {
			case <-processes[0].exited:
			case <-deadline:
				return false
			}
		}
		return true
	}
	if gone(goodbye) {
		return fmt.Sprintf("in %.2f s", time.Since(began).Seconds())
	}
	for _, p := range processes {
		_ = p.Process.Kill()
	}
	if gone(goodbyeKilled) {
		return "by SIGKILL"
	}
	return "no: survives SIGKILL"
}

// end ends whatever is left of it, which must not hang any more.
func (a *agent) end() error {
	if a.quit == nil { // it was not started
		return a.cgroup.remove()
	}
	for _, p := range a.quit() {
		_ = p.Process.Kill()
		select {
		case <-p.exited:
			p.log.Close()
		case <-time.After(patience):
			return fmt.Errorf("%s does not end", p.Path)
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left, err := a.census()
		if err != nil {
			return err
		}
		if left.processes == 0 {
			return a.cgroup.remove()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes are left", left.processes)
		}
		a.mu.Lock()
		for session := range a.sessions {
			_ = unix.Kill(-session, unix.SIGKILL)
		}
		a.mu.Unlock()
	}
}

// ask makes it gather, for took.
func (a *agent) ask() error {
	a.asked = append(a.asked, time.Now())
	if err := a.gather(); err != nil {
		return fmt.Errorf("asking for a gather: %w", err)
	}
	return nil
}

// idle reports whether all gathers have ended.
func (a *agent) idle() bool {
	for {
		select {
		case ended := <-a.ended:
			a.answered = append(a.answered, ended)
		default:
			return len(a.answered) == len(a.asked)
		}
	}
}

// took is how long the gather took that began in the hungInterval which began then: 0
// if there was none, or it has not ended, or failed.
func (a *agent) took(began time.Time) time.Duration {
	if a.gather == nil {
		return a.seen.tookDuring(began)
	}
	a.idle()
	for i, ended := range a.answered {
		if a.asked[i].Truncate(hungInterval).Equal(began) && !ended.IsZero() {
			return ended.Sub(a.asked[i])
		}
	}
	return 0
}

// await waits until something is so.
func await(what string, so func() bool) error {
	for deadline := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for %s: %v were not enough", what, patience)
		}
	}
	return nil
}

// sightings are the mounts whose sizes an agent has told.
type sightings struct {
	mu     sync.Mutex
	wanted map[string]bool
	seen   map[string]bool
	total  int // each counted as often as it was seen
	// intervals has what was seen in each hungInterval, by when that began, and took how
	// long the gather in it took.
	intervals map[int64]map[string]bool
	took      map[int64]time.Duration
	last      time.Duration // of the last gather
}

func newSightings(wanted map[string]bool) *sightings {
	s := new(sightings)
	s.want(wanted)
	return s
}

// add adds a point of a mount, which was made at a time.
func (s *sightings) add(path string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.wanted[path] {
		return
	}
	s.seen[path] = true
	s.total++
	began := at.Truncate(hungInterval).UnixNano()
	if s.intervals[began] == nil {
		s.intervals[began] = make(map[string]bool)
	}
	s.intervals[began][path] = true
}

// gathered notes how long a gather took whose points were made at a time.
func (s *sightings) gathered(at time.Time, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took[at.Truncate(hungInterval).UnixNano()] = took
	s.last = took
}

// lasted is what was noted of the last gather.
func (s *sightings) lasted() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// tookDuring is what was noted of the interval that began then.
func (s *sightings) tookDuring(began time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.took[began.UnixNano()]
}

// during is how many of the wanted ones were seen in the interval that began then.
func (s *sightings) during(began time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.intervals[began.UnixNano()])
}

// all reports whether each wanted one was seen since the last take.
func (s *sightings) all() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen) == len(s.wanted)
}

// again forgets what was seen.
func (s *sightings) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.seen)
}

// times returns how often all have been seen since it was last called, on average.
func (s *sightings) times() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.total
	s.total = 0
	return float64(n) / float64(len(s.wanted))
}

// want changes what is wanted, and forgets what was seen.
func (s *sightings) want(paths map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted, s.total = paths, 0
	s.seen, s.intervals, s.took = make(map[string]bool), make(map[int64]map[string]bool), make(map[int64]time.Duration)
}

// vfsprobeLines reads vfsprobe's metrics, whoever passes them on.
type vfsprobeLines struct {
	seen   *sightings
	ended  chan time.Time // if it is to be told
	mu     sync.Mutex
	health int // how many lines
	sums   int
	forked int // as last told
}

// timestamp is that of a line of line protocol.
func timestamp(line string) (time.Time, error) {
	at, err := strconv.ParseInt(line[strings.LastIndexByte(line, ' ')+1:], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time stamp of %q: %w", line, err)
	}
	return time.Unix(0, at), nil
}

var pathTag = regexp.MustCompile(`[ ,]path=((?:[^ ,=\\]|\\.)+)`)

func (l *vfsprobeLines) take(line string) {
	switch {
	case strings.HasPrefix(line, "mountstat,"):
		// Whose size is told: that of a mount that fails or hangs is not.
		if found := pathTag.FindStringSubmatch(line); found != nil && strings.Contains(line, "total=") {
			at, err := timestamp(line)
			l.seen.add(found[1], at)
			l.complain(err)
		}
	case strings.HasPrefix(line, "mountstat_summary"):
		seconds, err := number(line, "gather_seconds")
		l.complain(err)
		at, err := timestamp(line)
		l.complain(err)
		l.seen.gathered(at, time.Duration(seconds*float64(time.Second)))
		l.mu.Lock()
		l.sums++
		l.end()
		l.mu.Unlock()
	case strings.HasPrefix(line, "vfsprobe "), strings.HasPrefix(line, "vfsprobe,"):
		forked, err := number(line, "helpers_forked")
		l.mu.Lock()
		l.health++
		l.forked = int(forked)
		l.end()
		l.mu.Unlock()
		l.complain(err)
	}
}

// complain tells of a line that makes no sense: a figure is wrong then.
func (*vfsprobeLines) complain(err error) {
	if err != nil {
		warn("reading vfsprobe's metrics: %v", err)
	}
}

// end tells of the end of a gather. Of a long one the health comes first.
func (l *vfsprobeLines) end() {
	if l.ended != nil && l.sums == l.health {
		l.ended <- time.Now()
	}
}

func (l *vfsprobeLines) helpers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.forked
}

func mountstatConfig(set string) string {
	return fmt.Sprintf("[[inputs.mountstat]]\nmount_points = [%q]\nignore_fs = []\nfstab = \"\"\ntimeout = %q\n", set, hungTimeout)
}

// startVfsprobe starts vfsprobe alone, triggered as Telegraf does it.
func startVfsprobe(a *agent, dir, vfsprobe, mounts string) error {
	config := filepath.Join(dir, "mountstat.toml")
	if err := os.WriteFile(config, []byte(mountstatConfig(mounts)), 0o600); err != nil {
		return err
	}
	lines := &vfsprobeLines{seen: a.seen, ended: a.ended}
	a.helpers = lines.helpers
	command := exec.Command(vfsprobe, "-config", config)
	trigger, err := command.StdinPipe()
	if err != nil {
		return err
	}
	p, err := a.start(dir, command, lines.take)
	if err != nil {
		return err
	}
	a.gather = func() error {
		_, err := io.WriteString(trigger, "\n")
		return err
	}
	a.quit = func() []*process {
		trigger.Close()
		return []*process{p}
	}
	return nil
}

// startTelegraf starts Telegraf with an input, which gathers at the interval.
// take is given its output.
func startTelegraf(a *agent, dir, telegraf, input string, interval time.Duration, take func(string)) error {
	config, err := os.CreateTemp(dir, "telegraf")
	if err != nil {
		return err
	}
	defer config.Close()
	fmt.Fprintf(config, "[agent]\ninterval = %q\nflush_interval = %q\nprecision = \"1us\"\nomit_hostname = true\nquiet = true\n"+
		"[[outputs.file]]\nfiles = [\"stdout\"]\ndata_format = \"influx\"\n%s", interval, telegrafWrites, input)
	p, err := a.start(dir, exec.Command(telegraf, "--config", config.Name()), take)
	if err != nil {
		return err
	}
	a.quit = func() []*process {
		_ = p.Process.Signal(unix.SIGTERM)
		return []*process{p}
	}
	return nil
}

func startTelegrafWithVfsprobe(a *agent, dir, telegraf, vfsprobe, mounts string, interval time.Duration) error {
	config := filepath.Join(dir, "mountstat.toml")
	if err := os.WriteFile(config, []byte(mountstatConfig(mounts)), 0o600); err != nil {
		return err
	}
	lines := &vfsprobeLines{seen: a.seen}
	input := fmt.Sprintf("[[inputs.execd]]\ncommand = [%q, \"-config\", %q]\nsignal = \"STDIN\"\ndata_format = \"influx\"\n", vfsprobe, config)
	return startTelegraf(a, dir, telegraf, input, interval, lines.take)
}

// startTelegrafWithDisk starts Telegraf with its own input for file systems.
func startTelegrafWithDisk(a *agent, dir, telegraf string, mounts []string, interval time.Duration) error {
	quoted := make([]string, len(mounts))
	for i, mount := range mounts {
		quoted[i] = fmt.Sprintf("%q", mount)
	}
	input := fmt.Sprintf("[[inputs.disk]]\nmount_points = [%s]\n", strings.Join(quoted, ", "))
	// All points of a gather are made at its end; it begins when a multiple of the
	// interval has passed.
	return startTelegraf(a, dir, telegraf, input, interval, func(line string) {
		found := pathTag.FindStringSubmatch(line)
		if found == nil || !strings.HasPrefix(line, "disk,") {
			return
		}
		at, err := timestamp(line)
		if err != nil {
			return // a line that was cut off
		}
		a.seen.gathered(at, at.Sub(at.Truncate(interval)))
		a.seen.add(found[1], at)
	})
}

// startNodeExporter starts node_exporter, with one of its collectors. A gather is a
// scrape, which is given up after the timeout.
func startNodeExporter(a *agent, dir, program string, others []string, timeout time.Duration) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for i, point := range others {
		others[i] = regexp.QuoteMeta(point)
	}
	p, err := a.start(dir, exec.Command(program, "--collector.disable-defaults", "--collector.filesystem",
		"--collector.filesystem.mount-points-exclude=^("+strings.Join(others, "|")+")$",
		"--collector.filesystem.mount-timeout="+hungTimeout.String(),
		"--web.disable-exporter-metrics", "--web.listen-address="+address), func(string) {})
	if err != nil {
		return err
	}
	a.quit = func() []*process {
		_ = p.Process.Signal(unix.SIGTERM)
		return []*process{p}
	}
	size := regexp.MustCompile(`^node_filesystem_size_bytes\{.*mountpoint="([^"]*)"`)
	scrape := func() error {
		within, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		request, err := http.NewRequestWithContext(within, http.MethodGet, "http://"+address+"/metrics", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			if found := size.FindStringSubmatch(lines.Text()); found != nil {
				a.seen.add(found[1], time.Now())
			}
		}
		return lines.Err()
	}
	if err := await("node_exporter to listen", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}); err != nil {
		return errors.Join(err, a.end())
	}
	a.gather = func() error {
		go func() {
			var ended time.Time
			if scrape() == nil { // what it delivers is counted
				ended = time.Now()
			}
			a.ended <- ended
		}()
		return nil
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// shellLoop is what Checkmk's agent does for network file systems, with a program
// of its own in place of timeout.
const shellLoop = `while read -r mount; do timeout -s 9 5 stat -f -c '%n ok %b %f %a %s' "$mount" || echo "$mount hanging"; done <"$0"`

// startShell makes a shell script, started for each gather, ask for the mounts one
// by one.
func startShell(a *agent, dir string, mounts []string) error {
	list := filepath.Join(dir, "list")
	if err := os.WriteFile(list, []byte(strings.Join(mounts, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	var all []*process
	a.gather = func() error {
		p, err := a.start(dir, exec.Command("sh", "-c", shellLoop, list), func(line string) {
			if path, rest, _ := strings.Cut(line, " "); strings.HasPrefix(rest, "ok") {
				a.seen.add(path, time.Now())
			}
		})
		if err != nil {
			return err
		}
		all = append(all, p)
		go func() {
			<-p.exited
			a.ended <- time.Now()
		}()
		return nil
	}
	a.quit = func() []*process {
		for _, p := range all {
			_ = p.Process.Signal(unix.SIGTERM)
		}
		return all
	}
	return nil
}
