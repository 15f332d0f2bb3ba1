package e2e

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// A way is how vfsprobe comes to run: every promise is tested in both, but for what oneWay
// lists.
type way string

const (
	direct  way = "direct"  // Telegraf runs vfsprobe
	service way = "service" // vfsprobe runs by itself, and Telegraf runs "vfsprobe connect"
)

var ways = []way{direct, service}

// oneWay lists the tests that do not run in both ways, and why.
var oneWay = map[string]string{
	"TestCheck_DoesNotLookLikeAFaultWhenMisused":       "no vfsprobe runs beside: flags of check",
	"TestCheck_ANodeCondition":                         "no vfsprobe runs beside: the output of check",
	"TestCheck_EndsThoughNobodyReads":                  "no vfsprobe runs beside: the output of check",
	"TestDoctor_DoesNotHang":                           "no vfsprobe runs beside: files that the doctor reads",
	"TestDoctor_Flags":                                 "no vfsprobe runs beside: flags of doctor",
	"TestManual_HasAllFlags":                           "no vfsprobe runs beside: the manual",
	"TestDentries_Prints":                              "no vfsprobe runs beside: the output of dentries",
	"TestVfsprobe_TestPrintsOneGather":                 "-test serves nobody",
	"TestVfsprobe_WorksPositionIndependent":            "-test serves nobody; the program is the same in both ways",
	"TestVfsprobe_EndsAtABadConfiguration":             "it starts vfsprobe in both ways itself",
	"TestVfsprobe_AConfigurationThatIsNotRead":         "it starts vfsprobe in both ways itself, at one time",
	"TestWays_EveryTestRunsInBoth":                     "it reads the tests",
	"TestVfsprobe_AsksNothingTwiceInARound":            "what is asked in a round; the program is the same in both ways",
	"TestVfsprobe_VariablesAreTelegrafs":               "no vfsprobe runs: Telegraf's configuration",
	"TestVfsprobe_IntervalNeedsNoTrigger":              "a service gathers for those who ask: -interval is not for it",
	"TestTelegraf_IsStoppedForAWhile":                  "a service gathers for those who ask: a Telegraf that is stopped does not. TestServer_AClientThatStallsCostsOnlyItself has one that asks and does not read",
	"TestVfsprobe_SignalsTriggerAndStop":               "SIGHUP, SIGUSR1 and SIGUSR2 are execd's signals; TestService_KnowsAHangOverRestarts has the service's",
	"TestVfsprobe_SaysThatStdoutIsClosed":              "a service has no stdout; TestClient_EndsWithStdout has that of connect",
	"TestTelegraf_TwoOverOneHungMount":                 "there each has a plugin; TestService_ServesTwoTelegrafs has the service's",
	"TestPrivileges":                                   "the rights of a Telegraf's child; those of the service's unit are tested with systemd, in internal/testing/systemd",
	"TestContainer_TheDaemonSetsPrivileges":            "in its container Telegraf runs vfsprobe",
	"TestContainer_SeesTheHost":                        "in its container Telegraf runs vfsprobe",
	"TestContainer_WithAPIDNamespaceOfItsOwn":          "in its container Telegraf runs vfsprobe",
	"TestService_KnowsAHangOverRestarts":               "it restarts Telegraf and the service in turn",
	"TestService_KnowsADangerousDirectoryOverRestarts": "the state that survives is the service's",
	"TestService_ServesTwoTelegrafs":                   "only a service is shared",
}

// wayVariable names the way of a process that runs one test in it.
const wayVariable = "VFSPROBE_TEST_WAY"

// inBothWays runs a test in both ways side by side: each in a process with a mount namespace
// of its own, so that neither sees what the other breaks, and with a PID namespace of its
// own, so that neither takes the other's helpers for those of an earlier run.
func inBothWays(t *testing.T, test func(t *testing.T, w way)) { t.Helper(); runWays(t, true, test) }

// inTurn is inBothWays for tests that would disturb each other nevertheless.
func inTurn(t *testing.T, test func(t *testing.T, w way)) { t.Helper(); runWays(t, false, test) }

func runWays(t *testing.T, together bool, test func(t *testing.T, w way)) {
	t.Helper()
	if w := way(os.Getenv(wayVariable)); w != "" {
		test(t, w)
		return
	}
	if os.Geteuid() != 0 { // who can make no namespaces
		for _, w := range ways {
			t.Run(string(w), func(t *testing.T) { test(t, w) })
		}
		return
	}
	var all []*wayProcess
	if together {
		t.Parallel() // with others: what one breaks is its own
		for _, w := range ways {
			all = append(all, startWay(t, w))
		}
	}
	skipped := 0
	for i, w := range ways {
		t.Run(string(w), func(t *testing.T) {
			if !together {
				all = append(all, startWay(t, w))
			}
			defer func() {
				if t.Skipped() {
					skipped++
				}
			}()
			all[i].pass(t)
		})
	}
	if skipped == len(ways) {
		t.Skip("in both ways")
	}
}

// besideOthers has a test of oneWay run beside others, in a process like those of inBothWays. It
// reports whether it has: who called it is not that process then, and has nothing left to do.
func besideOthers(t *testing.T) bool {
	t.Helper()
	if os.Getenv(wayVariable) != "" || os.Geteuid() != 0 {
		return false
	}
	t.Parallel()
	startWay(t, "one way").pass(t)
	return true
}

// wayProcess runs a test in one way.
type wayProcess struct {
	test string
	out  bytes.Buffer
	wait func() string // for its output
}

func startWay(t *testing.T, w way) *wayProcess {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	p := &wayProcess{test: test}
	command := namespace.Again("-test.run=^"+test+"$", "-test.v", "-test.timeout=0")
	command.Env = append(command.Env, wayVariable+"="+string(w))
	for variable, program := range map[string]func() (string, error){binaryVariable: vfsprobe, telegrafVariable: telegraf} {
		if path, err := program(); err == nil { // else it says what fails
			command.Env = append(command.Env, variable+"="+path)
		}
	}
	command.Stdout, command.Stderr = &p.out, &p.out
	require.NoError(t, command.Start())
	p.wait = sync.OnceValue(func() string {
		if err := command.Wait(); err != nil {
			fmt.Fprintln(&p.out, err)
		}
		return p.out.String()
	})
	t.Cleanup(func() {
		_ = command.Process.Kill()
		p.wait()
	})
	return p
}

// pass waits for the test, which has to pass or is skipped.
func (p *wayProcess) pass(t *testing.T) {
	t.Helper()
	out := p.wait()
	if why, _, found := strings.Cut(out, "\n--- SKIP: "+p.test+" "); found {
		t.Skip(why)
	}
	t.Log(out)
	assert.True(t, strings.Contains(out, "\n--- PASS: "+p.test+" "), "it has not passed")
}

// atWork is vfsprobe at work in one of the ways.
type atWork struct {
	*process          // what Telegraf runs: newlines go to it, metrics and log lines come from it
	plugin   *process // makes the checks; the same one, or the service
}

// start starts vfsprobe with these arguments, as Telegraf and the service's unit do.
func (w way) start(t testing.TB, arguments ...string) *atWork {
	t.Helper()
	return w.startCommand(t, exec.Command(binary(t, vfsprobe), arguments...))
}

// startCommand is start for a command of which vfsprobe's arguments are the last.
func (w way) startCommand(t testing.TB, command *exec.Cmd) *atWork {
	t.Helper()
	if w == direct {
		p := startCommand(t, command)
		return &atWork{p, p}
	}
	socket := newSocket(t)
	command.Args = append(command.Args, "-listen", socket)
	plugin := startCommand(t, command)
	awaitSocket(t, socket)
	return &atWork{start(t, binary(t, vfsprobe), "connect", "-socket", socket), plugin}
}

// newSocket names a socket that any user can make.
func newSocket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "s")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o777))
	return filepath.Join(dir, "socket")
}

func awaitSocket(t testing.TB, socket string) {
	t.Helper()
	require.Eventually(t, func() bool { _, err := os.Lstat(socket); return err == nil }, patience, time.Millisecond, "nobody listens")
}

// saysOnce waits for a text in the log from a place on, which must be there once. Lines of the log come
// by another way than metrics, a moment later or earlier.
func (p *atWork) saysOnce(from int, text string) {
	p.t.Helper()
	said := func() string { return p.plugin.stderr.String()[from:] }
	require.Eventually(p.t, func() bool { return strings.Contains(said(), text) }, patience, 10*time.Millisecond, text)
	assert.Equal(p.t, 1, strings.Count(said(), text), said())
}

// stop ends it as Telegraf does, by the end of stdin, and the service as systemd does. It
// returns how long the slower of them took.
func (p *atWork) stop() (took time.Duration) {
	p.t.Helper()
	began := time.Now()
	require.NoError(p.t, p.stdin.Close())
	assert.Zero(p.t, p.exit())
	took = time.Since(began)
	if p.plugin == p.process {
		return took
	}
	assert.True(p.t, running(p.plugin.Process.Pid), "the service stays")
	return max(took, p.terminate())
}

// terminate ends vfsprobe by a signal, and returns how long that took.
func (p *atWork) terminate() time.Duration {
	p.t.Helper()
	began := time.Now()
	require.NoError(p.t, p.plugin.Process.Signal(syscall.SIGTERM))
	assert.Zero(p.t, p.plugin.exit())
	return time.Since(began)
}

// A setup is Telegraf's and vfsprobe's configuration.
type setup struct {
	vfsprobe string // the program
	inputs   string // its configuration
	more     string // what telegraf.conf has as well
}

// agent is a Telegraf that has metrics from vfsprobe.
type agent struct {
	*process
	way     way
	metrics string   // the file that it writes
	daemon  *process // vfsprobe where that is a service
	restart func() *process
}

// telegraf starts Telegraf and what it has metrics from. change may be nil.
func (w way) telegraf(t testing.TB, change func(*setup)) *agent {
	t.Helper()
	s := &setup{vfsprobe: binary(t, vfsprobe), inputs: inputs(t)}
	if change != nil {
		change(s)
	}
	a := &agent{way: w}
	arguments := []string{"-config", s.inputs}
	if w == service {
		socket := newSocket(t)
		served := append(arguments, "-listen", socket, "-state", filepath.Join(t.TempDir(), "state.json"))
		a.restart = func() *process {
			p := start(t, s.vfsprobe, served...)
			awaitSocket(t, socket)
			return p
		}
		a.daemon = a.restart()
		arguments = []string{"connect", "-socket", socket}
	}
	var config string
	config, a.metrics = configure(t, append([]string{s.vfsprobe}, arguments...), s.more)
	command := exec.Command(binary(t, telegraf), "--config", config)
	// The disk input prefers the mount table of process 1, which may be in another mount
	// namespace.
	command.Env = append(os.Environ(), "HOST_PROC_MOUNTINFO=/proc/self/mountinfo")
	a.process = startCommand(t, command)
	return a
}

// plugin is the process that makes the checks.
func (a *agent) plugin() int {
	if a.way == service {
		return a.daemon.Process.Pid
	}
	return child(a.t, a.Process.Pid, "vfsprobe")
}

// plugins are the processes that make checks now: none while one is being restarted.
func (a *agent) plugins() []int {
	if a.way == service {
		return []int{a.daemon.Process.Pid}
	}
	return childrenOf(a.Process.Pid, "vfsprobe")
}

// said is what a service has said to its own stderr.
func (a *agent) said() string {
	if a.way == service {
		return a.daemon.stderr.String()
	}
	return ""
}

// end ends vfsprobe by a signal. Whoever has started it starts another: Telegraf, or systemd.
func (a *agent) end(signal syscall.Signal) {
	pid := a.plugin()
	require.NoError(a.t, unix.Kill(pid, signal))
	if a.way == direct {
		require.Eventually(a.t, func() bool { return !running(pid) }, patience, time.Millisecond)
		return
	}
	a.daemon.exit()
	a.daemon = a.restart()
}

// log is what vfsprobe has said, and Telegraf.
func (a *agent) log() string {
	// Telegraf reads on for a moment from pipes it has closed to stop a plugin.
	var kept strings.Builder
	for line := range strings.Lines(a.stderr.String()) {
		if !strings.Contains(line, "E! [inputs.execd] Error in plugin: ") || !strings.HasSuffix(line, "file already closed\n") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// TestWays_EveryTestRunsInBoth holds all tests of the package to that.
func TestWays_EveryTestRunsInBoth(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repository(), "internal/testing/e2e/*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	there := make(map[string]bool)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		for _, declared := range parsed.Decls {
			function, ok := declared.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(function.Name.Name, "Test") || function.Name.Name == "TestMain" {
				continue
			}
			both := false
			ast.Inspect(function.Body, func(n ast.Node) bool {
				if called, ok := n.(*ast.Ident); ok {
					both = both || called.Name == "inBothWays" || called.Name == "inTurn"
				}
				return true
			})
			name := function.Name.Name
			there[name] = true
			_, listed := oneWay[name]
			assert.NotEqual(t, both, listed, "%s: in both ways or in oneWay", name)
		}
	}
	for name := range oneWay {
		assert.True(t, there[name], "%s is listed, and there is no such test", name)
	}
}
