package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// server is vfsprobe as a service that is started and stopped at will.
type server struct {
	t                     *testing.T
	socket, state, config string
}

func newServer(t *testing.T) *server {
	dir := t.TempDir()
	s := &server{t: t, socket: filepath.Join(dir, "socket"), state: filepath.Join(dir, "state.json"), config: filepath.Join(dir, "vfsprobe.toml")}
	// A busy machine's pause must not be one more fault, which is counted over all restarts.
	content, err := os.ReadFile(patient(t, 2*time.Second, "dentrycache", "nfslock"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, content, 0o600))
	return s
}

func (s *server) start() *process {
	return start(s.t, binary(s.t, vfsprobe), "-listen", s.socket, "-state", s.state, "-config", s.config)
}

// configure writes a configuration for a Telegraf that connects to it.
func (s *server) configure() (config, metrics string) {
	return configure(s.t, []string{binary(s.t, vfsprobe), "connect", "-socket", s.socket}, "")
}

// What hangs outlives Telegraf, the service and its configuration: there is one helper for
// it, and what is known of it goes on.
func TestService_KnowsAHangOverRestarts(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	hung, healthy := faultfs.New(t), faultfs.New(t)
	s := newServer(t)
	config, metrics := s.configure()
	agent := start(t, binary(t, telegraf), "--config", config) // before the service
	service := s.start()
	tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
	hung.Silence()
	line := tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, `stuck_state="asleep"`)
	helper := field(t, line, "stuck_pid")
	tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, "fault_seconds=[1-9]")
	require.Eventually(t, func() bool {
		content, _ := os.ReadFile(s.state)
		return strings.Contains(string(content), "FaultSince")
	}, patience, 10*time.Millisecond)

	reports := func() []string {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(s.state), "fault-*.txt"))
		require.NoError(t, err)
		return files
	}
	require.Eventually(t, func() bool { return len(reports()) > 0 }, patience, 10*time.Millisecond)
	report, err := os.ReadFile(reports()[0])
	require.NoError(t, err)
	assert.Contains(t, string(report), "mountstat: "+hung.Dir+": stuck (fuse_daemon_silent), since ")
	assert.Contains(t, service.stderr.String(), "; what is known of it is kept in "+reports()[0]+"\n")

	check := func(what string) {
		t.Helper()
		clear(t, metrics)
		line := tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, "stuck_pid=")
		assert.Equal(t, helper, field(t, line, "stuck_pid"), what)
		assert.GreaterOrEqual(t, field(t, line, "fault_seconds"), 1.0, what)
		assert.GreaterOrEqual(t, field(t, line, "fault_seconds_total"), field(t, line, "fault_seconds"), what)
		tail(t, metrics, "^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=1i", "helpers_stuck=0i")
	}
	began := time.Now()
	require.NoError(t, agent.Process.Signal(syscall.SIGTERM))
	agent.exit()
	assert.Less(t, time.Since(began), execdGrace)
	agent = start(t, binary(t, telegraf), "--config", config)
	check("another Telegraf")

	require.NoError(t, service.Process.Signal(syscall.SIGTERM))
	service.exit()
	service = s.start()
	check("the service is restarted")
	require.NoError(t, service.Process.Signal(syscall.SIGKILL))
	service.exit()
	service = s.start()
	check("the service was killed")

	content, err := os.ReadFile(s.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, []byte("[[inputs.mountstat]]\ntiemout = 1\n"), 0o600))
	require.NoError(t, service.Process.Signal(syscall.SIGHUP))
	require.Eventually(t, func() bool { return strings.Contains(agent.stderr.String(), "the configuration stays as it was: ") }, patience, 10*time.Millisecond)
	check("a bad configuration")
	require.NoError(t, os.WriteFile(s.config, append(content, "\n# another\n"...), 0o600))
	require.NoError(t, service.Process.Signal(syscall.SIGHUP))
	require.Eventually(t, func() bool { return strings.Contains(service.stderr.String(), "starting again with the configuration") }, patience, 10*time.Millisecond)
	check("another configuration")
	assert.True(t, running(service.Process.Pid), "the same process")

	assert.Len(t, reports(), 1, "what was known of the fault is kept once, whatever is restarted")
	hung.Heal()
	clear(t, metrics)
	line = tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
	assert.Equal(t, 1.0, field(t, line, "recoveries"))
	assert.GreaterOrEqual(t, field(t, line, "fault_seconds_total"), 1.0)
	require.NoError(t, unix.Kill(service.Process.Pid, unix.SIGTERM))
	assert.Zero(t, service.exit())
	assert.NoFileExists(t, s.socket)
}

// Two Telegrafs share a service: each has its points, and each hung mount one helper.
func TestService_ServesTwoTelegrafs(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	hung := faultfs.New(t)
	hung.Silence()
	s := newServer(t)
	s.start()
	var all [2]string
	for i := range all {
		var config string
		config, all[i] = s.configure()
		start(t, binary(t, telegraf), "--config", config)
	}
	for _, metrics := range all {
		tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=1i", "helpers_stuck=0i")
	}
}

// A directory that has so many negative dentries that it would stall the host is reported after
// a restart, too, and though it grows no more, until they are gone.
func TestService_KnowsADangerousDirectoryOverRestarts(t *testing.T) {
	const dangerous, most = 560_000, 3_000_000 // children, of which the first take 50 ms
	dir := filepath.Join(loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, "srv")
	require.NoError(t, os.Mkdir(dir, 0o755))
	s := newServer(t)
	require.NoError(t, os.WriteFile(s.config, []byte("[[inputs.dentrycache]]\n  directories = []\n"), 0o600))
	config, metrics := s.configure()
	start(t, binary(t, telegraf), "--config", config)
	service := s.start()
	if status := tail(t, metrics, "^dentrycache_status[, ]", "walker=true|walker_reason="); !strings.Contains(status, "walker=true") {
		t.Skip(status)
	}
	reported := func() bool {
		content, _ := os.ReadFile(metrics)
		for line := range strings.Lines(string(content)) {
			if matches(line, "^dentrycache_dir,", "directory="+dir+"[, ]", "configured=false", "children=") && field(t, line, "children") >= dangerous {
				return true
			}
		}
		return false
	}
	names := 0
	require.Eventually(t, func() bool {
		for end := names + 50_000; names < end && names < most; names++ {
			require.Equal(t, unix.ENOENT, unix.Faccessat(unix.AT_FDCWD, dir+"/random-"+strconv.Itoa(names), 0, 0))
		}
		return reported()
	}, 2*patience, 100*time.Millisecond, "it is found")
	t.Logf("found after %d names", names)
	require.Eventually(t, func() bool {
		content, _ := os.ReadFile(s.state)
		return strings.Contains(string(content), dir)
	}, patience, 10*time.Millisecond)

	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		require.NoError(t, service.Process.Signal(signal))
		service.exit()
		clear(t, metrics)
		service = s.start()
		require.Eventually(t, reported, patience, 50*time.Millisecond, "after %v", signal)
		tail(t, metrics, "^dentrycache_dir,", "directory="+dir+"[, ]", `predicted_stall_seconds=0\.0[5-9]|predicted_stall_seconds=0\.[1-9]`)
	}
	require.NoError(t, os.Remove(dir)) // which frees them
	require.Eventually(t, func() bool {
		clear(t, metrics)
		tail(t, metrics, "^dentrycache ")
		time.Sleep(100 * time.Millisecond)
		return !reported()
	}, patience, time.Second, "it is gone")
}
