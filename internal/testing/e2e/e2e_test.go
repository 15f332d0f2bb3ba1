// Package e2e runs the real binary, most of the time under a real Telegraf, on
// a host with real hung mounts.
package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// patience is for what happens soon, on a machine that may be busy.
const patience = 3 * time.Minute

// execdGrace is how long Telegraf's execd leaves a plugin whose stdin it has closed, before it sends
// a signal: who ends sooner was not waiting for what hangs, which would take for ever.
const execdGrace = 5 * time.Second

// noTime is what vfsprobe says where a busy machine takes longer for the mount table than a gather waits
// for it, or has no time for a mount.
var noTime = regexp.MustCompile(`mount table|\d+ mounts are not checked; the field reason says why`)

// requireNoErrors fails if a log of Telegraf's has one.
func requireNoErrors(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		require.False(t, strings.Contains(line, " E! ") && !noTime.MatchString(line), line)
	}
}

// Where the tests run without the repository, in a virtual machine, these name the
// directory with its testdata, and the binary under test.
const (
	repositoryVariable = "VFSPROBE_TEST_REPOSITORY"
	binaryVariable     = "VFSPROBE_TEST_BINARY"
	telegrafVariable   = "VFSPROBE_TEST_TELEGRAF"
)

func repository() string {
	if dir := os.Getenv(repositoryVariable); dir != "" {
		return dir
	}
	return programs.Repository()
}

var (
	vfsprobe = sync.OnceValues(func() (string, error) { return built(binaryVariable, programs.Vfsprobe) })
	racing   = sync.OnceValues(programs.RacingVfsprobe)
	telegraf = sync.OnceValues(func() (string, error) { return built(telegrafVariable, programs.Telegraf) })
)

// built returns the program that a variable names, or builds it.
func built(variable string, build func() (string, error)) (string, error) {
	if program := os.Getenv(variable); program != "" {
		return program, nil
	}
	return build()
}

func binary(t testing.TB, of func() (string, error)) string {
	t.Helper()
	path, err := of()
	require.NoError(t, err)
	return path
}

// process is a program under test.
type process struct {
	*exec.Cmd
	t      testing.TB
	stdin  io.WriteCloser
	stderr *buffer
	lines  chan string // of stdout; closed at its end
	exited chan struct{}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// stderrShown is how many lines of a program's stderr a failure shows, but for -v.
const stderrShown = 8

// start starts the program. It is killed at the end of the test, if need be.
func start(t testing.TB, name string, arguments ...string) *process {
	t.Helper()
	return startCommand(t, exec.Command(name, arguments...))
}

func startCommand(t testing.TB, command *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: command, t: t, stderr: &buffer{}, lines: make(chan string, 10000), exited: make(chan struct{})}
	if p.Stderr == nil {
		p.Stderr = p.stderr
	}
	p.WaitDelay = time.Second
	var err error
	p.stdin, err = p.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	go func() {
		scanner := bufio.NewScanner(stdout)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			p.lines <- scanner.Text()
		}
		close(p.lines)
		_ = p.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = stdout.Close() // which what it has started may hold: what strace traces, for one
		<-p.exited
		if t.Failed() {
			t.Logf("the end of stderr of %s:\n%s", filepath.Base(p.Path), lastLines(p.stderr.String(), stderrShown))
		}
	})
	return p
}

// lastLines leaves room for what has failed, in a log of which the end is kept.
func lastLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	if testing.Verbose() {
		return text
	}
	return strings.Join(lines[max(0, len(lines)-n-1):], "")
}

func (p *process) trigger() {
	_, err := io.WriteString(p.stdin, "\n")
	require.NoError(p.t, err)
}

// before reads lines of stdout up to one that matches all patterns. It reports false if none has come
// by the end.
func (p *process) before(end <-chan time.Time, patterns ...string) (line string, found bool) {
	p.t.Helper()
	for {
		select {
		case line, ok := <-p.lines:
			require.True(p.t, ok, "stdout ended before a line with %q", patterns)
			if matches(line, patterns...) {
				return line, true
			}
		case <-end:
			return "", false
		}
	}
}

// until reads lines of stdout up to one that matches all patterns.
func (p *process) until(patterns ...string) string {
	p.t.Helper()
	line, found := p.before(time.After(patience), patterns...)
	require.True(p.t, found, "no line with %q", patterns)
	return line
}

// reports triggers gathers until one has a mount as all patterns say: on a busy host a check can
// begin too late, and the mount table come late.
func (p *process) reports(mount string, patterns ...string) (line string) {
	p.t.Helper()
	is := append([]string{"^mountstat,"}, patterns...)
	require.Eventually(p.t, func() bool {
		asked := time.Now()
		p.trigger()
		for line = ""; when(p.t, line).Before(asked); { // those of earlier gathers may come yet
			line = p.until("^(mountstat,.*path=" + regexp.QuoteMeta(mount) + " |mountstat_summary )")
		}
		return matches(line, is...)
	}, patience, 50*time.Millisecond, "no line of %s with %q", mount, patterns)
	return line
}

// sums triggers gathers until the summary of one is as all patterns say.
func (p *process) sums(patterns ...string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		p.trigger()
		return matches(p.until("^mountstat_summary "), patterns...)
	}, patience, 50*time.Millisecond, "no summary with %q", patterns)
}

// says triggers gathers until a line matches all patterns: one that is not in each gather, or is another
// in the first ones after a change.
func (p *process) says(patterns ...string) string {
	p.t.Helper()
	for began := time.Now(); ; {
		p.trigger()
		if line, found := p.before(time.After(time.Second), patterns...); found {
			return line
		}
		require.Less(p.t, time.Since(began), patience, "no line with %q", patterns)
	}
}

// patient is a configuration of mountstat, and of other inputs, for who gathers once, or while helpers or
// their server are stopped: what answers has time for that, however busy the machine is.
func patient(t testing.TB, timeout time.Duration, others ...string) string {
	t.Helper()
	text := fmt.Sprintf("[[inputs.mountstat]]\n  timeout = %q\n", timeout)
	for _, name := range others {
		text += "[[inputs." + name + "]]\n"
	}
	config := filepath.Join(t.TempDir(), "vfsprobe.toml")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	return config
}

func matches(line string, patterns ...string) bool {
	for _, pattern := range patterns {
		if !regexp.MustCompile(pattern).MatchString(line) {
			return false
		}
	}
	return true
}

// exit waits for the program's end.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		require.Fail(p.t, "the program does not end")
		return 0
	}
}

func field(t testing.TB, line, name string) float64 {
	t.Helper()
	found := regexp.MustCompile(`[ ,]` + name + `=([0-9.e+-]+)`).FindStringSubmatch(line)
	require.NotNil(t, found, "no field %s in %s", name, line)
	value, err := strconv.ParseFloat(found[1], 64)
	require.NoError(t, err)
	return value
}

// inputs is the configuration that vfsprobe has in most tests.
func inputs(t testing.TB) string { return filepath.Join(repository(), "testdata/vfsprobe.toml") }

// configure writes a Telegraf's configuration: of what it runs, and more.
func configure(t testing.TB, command []string, more string) (config, metrics string) {
	dir := t.TempDir()
	metrics = filepath.Join(dir, "metrics")
	template, err := os.ReadFile(filepath.Join(repository(), "testdata/telegraf.conf"))
	require.NoError(t, err)
	text := strings.NewReplacer("COMMAND", fmt.Sprintf(`"%s"`, strings.Join(command, `", "`)), "METRICS", metrics).Replace(string(template)) + more
	config = filepath.Join(dir, "telegraf.conf")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	return config, metrics
}

// tail waits for a line of a growing file which matches all patterns.
func tail(t testing.TB, file string, patterns ...string) string {
	t.Helper()
	var line string
	require.Eventually(t, func() bool {
		content, _ := os.ReadFile(file)
		for l := range strings.Lines(string(content)) {
			if matches(l, patterns...) {
				line = strings.TrimSpace(l)
				return true
			}
		}
		return false
	}, patience, 50*time.Millisecond, "no line with %q", patterns)
	return line
}

func clear(t testing.TB, file string) {
	require.NoError(t, os.Truncate(file, 0))
}

func TestTelegraf_OnAHostWithAHungMount(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		hung, healthy := faultfs.New(t), faultfs.New(t)
		hung.Silence()
		agent := w.telegraf(t, nil)
		metrics := agent.metrics

		for _, path := range []string{"/", healthy.Dir} {
			line := tail(t, metrics, "^mountstat,", "path="+path+" ", `result="ok"`)
			assert.Contains(t, line, "result_code=0i")
		}
		line := tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		assert.GreaterOrEqual(t, field(t, line, "hung_seconds"), 0.25, "half of the timeout, since a check begins with its turn")
		tail(t, metrics, "^mountstat_summary ", "stuck=1i", "faults=1i")
		tail(t, metrics, "^dentrycache ", "negative=")
		tail(t, metrics, "^nfslock_host,rack=none ", "mounts=0i")
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=1i", "fork_server_restarts=0i")

		hung.Abort()
		clear(t, metrics)
		tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `errno="ENOTCONN"`)
		hung.Close()
		again := faultfs.NewAt(t, hung.Dir, "faultfs")
		clear(t, metrics)
		tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="ok"`)

		again.Silence()
		clear(t, metrics)
		tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		began := time.Now()
		require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
		agent.exit()
		assert.Less(t, time.Since(began), execdGrace, "Telegraf stops although mounts hang")

		log := agent.log()
		assert.Regexp(t, `W! \[inputs\.execd\] \[inputs\.mountstat\] `+again.Dir+` \(fuse\.faultfs on faultfs\) hangs`, log)
		requireNoErrors(t, log)
	})
}

// The README's stanza, pasted as it stands, or that of the packages, with the plugin's
// defaults.
func TestTelegraf_TakesTheReadmesStanza(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		readme, err := os.ReadFile(filepath.Join(repository(), "README.md"))
		require.NoError(t, err)
		found := regexp.MustCompile("(?s)```toml\n(\\[\\[inputs\\.execd]].*?)```").FindSubmatch(readme)
		require.NotNil(t, found)
		stanza, program := string(found[1]), "/usr/local/bin/vfsprobe"
		socket := newSocket(t)
		if w == service {
			packaged, err := os.ReadFile(filepath.Join(repository(), "packaging/telegraf.d/vfsprobe.conf"))
			require.NoError(t, err)
			stanza, program = strings.Replace(string(packaged), `"connect"`, `"connect", "-socket", "`+socket+`"`, 1), "/usr/bin/vfsprobe"
			start(t, binary(t, vfsprobe), "-listen", socket)
			awaitSocket(t, socket)
		}
		require.Contains(t, stanza, program)
		config, metrics := configure(t, nil, "")
		text := "[agent]\n  interval = \"10s\"\n  flush_interval = \"1s\"\n[[outputs.file]]\n  files = [\"" + metrics + "\"]\n" +
			strings.ReplaceAll(stanza, program, binary(t, vfsprobe))
		require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
		hung := faultfs.New(t)
		hung.Silence()
		start(t, binary(t, telegraf), "--config", config)
		line := tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		tail(t, metrics, "^mountstat,", "path=/ ", `result="ok"`, timestamp(line)) // of the same interval
		assert.GreaterOrEqual(t, field(t, line, "hung_seconds"), 2.5)
	})
}

// Names that break line protocol, logs or terminals pass through Telegraf's
// parser and back.
func TestTelegraf_GetsMountPointsOfEveryName(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		root := t.TempDir()
		names := map[string]string{
			"a b": `a\ b`, "tab\t": `tab\011`, "new\nline": `new\012line`, `back\slash\`: `back\134slash\134`, "#": "#",
			`quo"te`: `quo"te`, "a,b=c": `a\,b\=c`, "\xff\xfe": `\377\376`, "ünï": "ünï", strings.Repeat("x", 255): strings.Repeat("x", 255),
		}
		for name := range names {
			dir := filepath.Join(root, name)
			require.NoError(t, os.Mkdir(dir, 0o755))
			faultfs.NewAt(t, dir, "faultfs")
		}
		agent := w.telegraf(t, nil)
		for _, written := range names {
			tail(t, agent.metrics, "^mountstat,", regexp.QuoteMeta("path="+root+"/"+written)+" ", `result="ok"`)
		}
		requireNoErrors(t, agent.log())
	})
}

// The plugin is killed while five mounts hang: Telegraf, or systemd, starts another, which
// knows them.
func TestTelegraf_RestartsAKilledPlugin(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		var hung []*faultfs.FS
		for range 5 {
			fs := faultfs.New(t)
			fs.Silence()
			hung = append(hung, fs)
		}
		agent := w.telegraf(t, nil)
		metrics := agent.metrics
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=5i")

		agent.end(syscall.SIGKILL)
		if w == direct {
			require.Eventually(t, func() bool { return strings.Contains(agent.stderr.String(), "exited: signal: killed") }, patience, 10*time.Millisecond,
				"its stdout is closed although helpers are stuck, so Telegraf notices")
		}
		clear(t, metrics)
		// Telegraf may still hold a line of the one that was killed.
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=5i", "helpers_killed=0i")
		for _, fs := range hung {
			tail(t, metrics, "^mountstat,", "path="+fs.Dir+" ", `result="stuck"`)
		}
		for _, fs := range hung {
			fs.Heal()
		}
		clear(t, metrics)
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=0i")
		clear(t, metrics)
		tail(t, metrics, "^mountstat_summary ", "stuck=0i", "faults=0i")
	})
}

func child(t testing.TB, parent int, comm string) int {
	t.Helper()
	var found int
	require.Eventually(t, func() bool {
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
			var pid, ppid int
			name, rest, ok := strings.Cut(string(stat), ") ")
			if !ok {
				continue
			}
			_, _ = fmt.Sscan(name, &pid)
			_, _ = fmt.Sscanf(rest[2:], "%d", &ppid)
			if ppid == parent && rest[0] != 'Z' && strings.HasSuffix(name, "("+comm) {
				found = pid
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "no child %s of %d", comm, parent)
	return found
}

func TestVfsprobe_TheFirstGatherHasEverythingHungMountOrNot(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		hung := faultfs.New(t)
		hung.Silence()
		p := w.start(t, "-config", inputs(t))
		began := time.Now()
		p.trigger()
		line := p.until("^mountstat,", "path=/ ", `result="ok"`)
		undelayed := time.Since(began)
		stuck := p.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		assert.Less(t, undelayed, time.Since(began), "the healthy mount did not wait for the hung one")
		assert.Equal(t, timestamp(line), timestamp(stuck), "one timestamp per gather")

		assert.Less(t, p.stop(), execdGrace, "it waits for nothing that hangs")
	})
}

func timestamp(line string) string { return line[strings.LastIndexByte(line, ' ')+1:] }

func TestVfsprobe_ItsForkServerIsKilledInMidGather(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		hung := faultfs.New(t)
		p := w.start(t, "-config", patient(t, 20*time.Second))
		p.reports(hung.Dir, `result="ok"`)
		p.until("^mountstat_summary ")
		hung.Silence()
		p.trigger()
		require.Eventually(t, func() bool { return hung.Unanswered() > 0 }, patience, time.Millisecond)
		require.NoError(t, unix.Kill(child(t, p.plugin.Process.Pid, "vfsprobe-server"), unix.SIGKILL))
		p.until("^mountstat,", "path="+hung.Dir+" ", `result="unchecked"`, "reason=")
		p.reports("/", `result="ok"`)
		p.says("^vfsprobe ", "fork_server_restarts=1i", "helpers_asleep=1i")
		assert.Regexp(t, `(?m)^W! \[vfsprobe\] the fork server .* ended`, p.stderr.String())
	})
}

// A distribution may build position independent executables.
func TestVfsprobe_WorksPositionIndependent(t *testing.T) {
	p := start(t, binary(t, programs.PositionIndependentVfsprobe), "-test")
	p.until("^mountstat,", "path=/ ", `result="ok"`)
	assert.Zero(t, p.exit())
	assert.NotContains(t, p.stderr.String(), "helpers need all of the plugin's memory")
}

func TestVfsprobe_TestPrintsOneGather(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	hung := faultfs.New(t)
	hung.Silence()
	p := start(t, binary(t, vfsprobe), "-test", "-config", patient(t, 5*time.Second, "dentrycache", "nfslock"))
	var got []string
	for line := range p.lines {
		got = append(got, line)
	}
	assert.Zero(t, p.exit())
	all := strings.Join(got, "\n")
	for _, want := range []string{`(?m)^mountstat,.*path=` + hung.Dir + ` .*result="stuck"`, `(?m)^mountstat,.*path=/ .*result="ok"`,
		"(?m)^dentrycache ", "(?m)^nfslock_host ", "(?m)^vfsprobe "} {
		assert.Regexp(t, want, all)
	}
}

func TestVfsprobe_EndsAtABadConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.toml")
	require.NoError(t, os.WriteFile(file, []byte("[[inputs.mountstat]]\n  timeout = \"5s\"\n  tiemout = \"5s\"\n"), 0o600))
	for _, mode := range []string{"-test", "--test", "-interval=1s", "-listen=" + newSocket(t)} {
		p := start(t, binary(t, vfsprobe), mode, "-config", file)
		assert.Equal(t, 1, p.exit())
		assert.Regexp(t, `^E! \[vfsprobe\] .*bad\.toml:3: .*tiemout`, p.stderr.String())
	}
	p := start(t, binary(t, vfsprobe), "-config", file+".missing")
	assert.Equal(t, 1, p.exit())
	assert.Contains(t, p.stderr.String(), file+".missing")
}

func TestVfsprobe_IntervalNeedsNoTrigger(t *testing.T) {
	p := start(t, binary(t, vfsprobe), "-interval", "100ms")
	first := timestamp(p.until("^dentrycache "))
	assert.NotEqual(t, first, timestamp(p.until("^dentrycache ")))
	require.NoError(t, p.stdin.Close())
	assert.Zero(t, p.exit())
}

func TestVfsprobe_SignalsTriggerAndStop(t *testing.T) {
	p := start(t, binary(t, vfsprobe))
	p.trigger()
	p.until("^vfsprobe ")
	require.NoError(t, p.Process.Signal(syscall.SIGUSR1))
	p.until("^vfsprobe ")
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	assert.Zero(t, p.exit())
}

func TestVfsprobe_SaysThatStdoutIsClosed(t *testing.T) {
	p := exec.Command(binary(t, vfsprobe), "-interval", "50ms")
	stdin, err := p.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	var stderr bytes.Buffer
	p.Stderr = &stderr
	require.NoError(t, p.Start())
	require.NoError(t, stdout.Close())
	err = p.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Regexp(t, `(?m)^E! \[vfsprobe\] writing metrics to stdout: .*broken pipe$`, stderr.String())
}

// No process can be forked: the limit of the fork server alone is lowered. It
// binds no root process, so the plugin runs as another user.
func TestVfsprobe_SaysOnceThatTheProcessTableIsFull(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		command := exec.Command(publicCopy(t, binary(t, vfsprobe)), "-config", publicCopy(t, inputs(t)))
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		p := w.startCommand(t, command)
		p.reports("/", `result="ok"`)
		server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
		limit := func(soft string) {
			prlimit := exec.Command("prlimit", "--pid", strconv.Itoa(server), "--nproc="+soft+":")
			prlimit.SysProcAttr = command.SysProcAttr
			out, err := prlimit.CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		before := len(p.plugin.stderr.String()) // it may have had no time for all at first
		limit("0")
		for range 3 {
			line := p.says("^mountstat,", "path=/ ", `result="unchecked"`)
			assert.Contains(t, line, "forking a helper: resource temporarily unavailable")
			p.until("^vfsprobe ")
		}
		p.saysOnce(before, "are not checked")
		limit("1000")
		p.reports("/", `result="ok"`)
	})
}

// No file descriptor is left in the plugin, and its fork server is gone.
func TestVfsprobe_SaysOnceThatThereAreNoFileDescriptors(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		p := w.start(t, "-config", inputs(t))
		p.trigger()
		p.until("^vfsprobe ")
		var before unix.Rlimit
		require.NoError(t, unix.Prlimit(p.plugin.Process.Pid, unix.RLIMIT_NOFILE, nil, &before))
		require.NoError(t, unix.Prlimit(p.plugin.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}, nil))
		require.NoError(t, unix.Kill(child(t, p.plugin.Process.Pid, "vfsprobe-server"), unix.SIGKILL))
		require.Eventually(t, func() bool { return strings.Contains(p.plugin.stderr.String(), "no file system can be checked") }, patience, 10*time.Millisecond)
		for range 3 {
			p.says("^mountstat,", "path=/ ", `result="unchecked"`, "too many open files")
			p.until("^vfsprobe ")
		}
		p.saysOnce(0, "no file system can be checked")
		p.saysOnce(0, "reading the dentry cache's state")
		require.NoError(t, unix.Prlimit(p.plugin.Process.Pid, unix.RLIMIT_NOFILE, &before, nil))
		p.reports("/", `result="ok"`)
	})
}

// What the plugin itself may open once it runs, by a path or from an open directory.
// What is below /proc/PID takes no lock that a stuck process holds, and asks no file
// system; of its own descriptors it knows that they are BPF's. The mount table is
// opened to be polled.
var mayOpen = regexp.MustCompile(`^(/proc|/proc/(self/)?(filesystems|loadavg|uptime|locks|meminfo|vmstat|slabinfo|cmdline|kallsyms)|/proc/sys/.*` +
	`|/proc/self/(attr/current|cgroup|maps|mountinfo|statm|status|uid_map|fdinfo/\d+)` +
	`|/proc/\d+(/task/\d+)?/(stat|comm|status|wchan|cgroup|uid_map|task)` +
	`|/sys/fs/cgroup(/.*)?|/sys/fs/fuse/connections/\d+/waiting|/sys/fs/ext4/[^/]+/errors_count|/sys/fs/btrfs(/.*)?|/sys/dev/block/\d+:\d+|/sys/block|/sys/block/dm-\d+/dm/name` +
	`|/sys/devices/.*/block/[^/]+(/[^/]+)?/(partition|slaves|loop/backing_file|stat|size|pid|(dm|md)/[a-z_]+|device/state|device/power/runtime_status)` +
	`|/sys/kernel/(slab/dentry/.*|btf(/[^/]*)?|mm/transparent_hugepage/hpage_pmd_size|tracing(/.*)?|debug/tracing(/.*)?|security/lockdown)` +
	`|/sys/bus/event_source/devices/.*|/sys/devices/system/cpu/.*|/dev/null|/dev/kmsg)$`)

// What it may look up by its name alone: the namespaces of processes, and what this
// kernel has.
var mayLookUp = regexp.MustCompile(`^(/proc/(self|\d+)(/task/\d+)?/ns/(mnt|net)|/proc/self/ns/(pid|cgroup)|/proc/self|/proc/\d+|/sys/.*|/proc/sys/.*)$`)

// The one rule: with mounts that hang, the plugin itself opens and looks at nothing but
// what asks no file system, and reads no table for which the kernel asks one. Nor do its
// threads.
func TestVfsprobe_TouchesNoMonitoredMount(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		strace, err := exec.LookPath("strace")
		require.NoError(t, err, "strace is needed")
		root := t.TempDir()
		var all []*faultfs.FS
		for i := range 6 {
			dir := filepath.Join(root, strconv.Itoa(i))
			require.NoError(t, os.Mkdir(dir, 0o755))
			fs := faultfs.NewAt(t, dir, "faultfs")
			if i%2 == 0 {
				fs.Silence()
			}
			all = append(all, fs)
		}
		victim := exec.Command("ls", all[0].Dir) // somebody waits, whose files and stack are looked at
		require.NoError(t, victim.Start())
		abort := func() {
			for _, fs := range all {
				fs.Abort() // strace can't leave a tracee that is stuck
			}
		}
		t.Cleanup(func() {
			abort()
			_ = victim.Wait()
		})
		trace := filepath.Join(t.TempDir(), "trace")
		p := w.startCommand(t, exec.Command(strace, "-f", "-qq", "-y", "-o", trace, "-e", "trace=%file,%stat,%statfs,chdir,fchdir,read,pread64,getdents64",
			binary(t, vfsprobe), "-config", inputs(t)))
		plugin := child(t, p.plugin.Process.Pid, "vfsprobe")
		for range 3 {
			p.sums("stuck=3i")
		}
		p.says("^mountstat_blocked,", "comm=ls")
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", plugin))
		require.NoError(t, err)
		ours := make(map[string]bool)
		for _, task := range tasks {
			ours[task.Name()] = true
		}
		abort()
		require.NoError(t, p.stdin.Close())
		p.exit()
		if w == service {
			require.NoError(t, unix.Kill(plugin, unix.SIGTERM))
			p.plugin.exit()
		}

		content, err := os.ReadFile(trace)
		require.NoError(t, err)
		var byHelpers, byPlugin int
		named := regexp.MustCompile(`^\w+\((?:AT_FDCWD(?:<[^>]*>)?, |\d+<([^>]*)>, )?"([^"]*)"`)
		reading := regexp.MustCompile(`^(?:read|pread64|getdents64)\(\d+</proc/(\d+/(.*/)?(mountinfo|mountstats|mounts|stack|fd|cmdline|environ)|mounts)>`)
		for line := range strings.Lines(string(content)) {
			pid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
			call = strings.TrimSpace(call)
			if !ours[pid] {
				if strings.Contains(call, root) {
					byHelpers++
				}
				continue
			}
			byPlugin++
			assert.NotContains(t, call, root)
			assert.NotRegexp(t, reading, call)
			names, path := named.FindStringSubmatch(call), ""
			if names != nil {
				path = names[2]
				if !filepath.IsAbs(path) {
					path = filepath.Join(names[1], path)
				}
			}
			if w == service && filepath.Base(path) == "socket" {
				continue // its own, in /run, which is a tmpfs
			}
			switch {
			case strings.Contains(call, "EMFILE"): // before main it can open nothing
			case names == nil || strings.HasPrefix(call, "exec") || strings.HasPrefix(call, "read(") || strings.HasPrefix(call, "pread64("):
			case strings.HasPrefix(call, "open"):
				assert.Regexp(t, mayOpen, path, call)
			default:
				assert.True(t, mayOpen.MatchString(path) || mayLookUp.MatchString(path), call)
			}
		}
		assert.GreaterOrEqual(t, byHelpers, 6, "the helpers were traced, and checked all mounts")
		assert.NotZero(t, byPlugin, "the plugin was traced")
	})
}

// publicCopy puts a file where every user can read it.
func publicCopy(t testing.TB, file string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vfsprobe")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	public := filepath.Join(dir, filepath.Base(file))
	require.NoError(t, os.WriteFile(public, content, 0o755))
	return public
}

// Both inputs in one Telegraf: the disk input loses its metrics of all mounts,
// and Telegraf its ability to stop. The README quotes the figures.
func TestTelegraf_BesideTheDiskInput(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		const seconds = 4
		fs := faultfs.New(t)
		agent := w.telegraf(t, func(s *setup) { s.more = "\n[[inputs.disk]]\n  mount_points = [\"/\", \"" + fs.Dir + "\"]\n" })
		metrics := agent.metrics
		t.Cleanup(fs.Close) // before the agent is killed: it may be stuck in the mount

		rootPoints := func() (disk, mountstat int) {
			content, err := os.ReadFile(metrics)
			require.NoError(t, err)
			return len(regexp.MustCompile(`(?m)^disk,.*path=/[ ,]`).FindAll(content, -1)),
				len(regexp.MustCompile(`(?m)^mountstat,.*path=/ .*result="ok"`).FindAll(content, -1))
		}
		require.Eventually(t, func() bool {
			disk, mountstat := 0, 0
			if _, err := os.Stat(metrics); err == nil {
				disk, mountstat = rootPoints()
			}
			return disk > 0 && mountstat > 0
		}, patience, 50*time.Millisecond)

		fs.Silence()
		tail(t, metrics, "^mountstat,", "path="+fs.Dir+" ", `result="stuck"`)
		clear(t, metrics)
		began := time.Now()
		time.Sleep(seconds * time.Second)
		var disk, mountstat int
		require.Eventually(t, func() bool { disk, mountstat = rootPoints(); return mountstat >= seconds/2 }, patience, 50*time.Millisecond)
		t.Logf("points of / within %.1f s while another mount hangs: disk %d, mountstat %d", time.Since(began).Seconds(), disk, mountstat)
		assert.LessOrEqual(t, disk, 1, "one may have been under way")
		tail(t, metrics, "^mountstat,", "path="+fs.Dir+" ", `result="stuck"`)

		require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
		select {
		case <-agent.exited:
			t.Log("Telegraf stopped")
		case <-time.After(seconds * time.Second):
			t.Logf("Telegraf with the disk input has not stopped %d s after SIGTERM", seconds)
		}
	})
}

// The tables for a person come from the command line, with rates.
func TestDentries_Prints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vfsprobe.toml")
	require.NoError(t, os.WriteFile(file, []byte("[[inputs.mountstat]]\n[[inputs.dentrycache]]\n  directories = [\"/\", \"/nowhere\"]\n"), 0o600))
	run := func(arguments ...string) (string, *process) {
		p := start(t, binary(t, vfsprobe), append([]string{"dentries"}, arguments...)...)
		var all []string
		for line := range p.lines {
			all = append(all, line)
		}
		return strings.Join(all, "\n"), p
	}
	shown, p := run("-config", file, "-interval", "200ms")
	require.Zero(t, p.exit(), p.stderr.String())
	assert.Regexp(t, `(?m)^\d+ dentries.*/s\)`, shown)
	assert.Regexp(t, `(?m)^attribution: (fentry|kprobe|enoent|none)`, shown)
	assert.Regexp(t, `(?m)^/nowhere .*missing +ENOENT`, shown)
	assert.Equal(t, 1, strings.Count(p.stderr.String(), "/nowhere can't be looked at"), p.stderr.String())

	help, p := run("-help")
	assert.Zero(t, p.exit())
	assert.Contains(t, help, "-watch")
	for _, bad := range [][]string{{"-wach"}, {"now"}, {"-interval", "0s"}} {
		_, p = run(bad...)
		assert.Equal(t, 2, p.exit(), bad)
	}
	require.NoError(t, os.WriteFile(file, []byte("[[inputs.mountstat]]\n"), 0o600))
	_, p = run("-config", file)
	assert.Equal(t, 1, p.exit())
	assert.Contains(t, p.stderr.String(), "there is no [[inputs.dentrycache]]")

	p = start(t, binary(t, vfsprobe), "dentries", "-watch", "-interval", "100ms")
	for range 3 {
		p.until("^attribution: ")
	}
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	for range p.lines {
	}
	assert.Zero(t, p.exit())
}
