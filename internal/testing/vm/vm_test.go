package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

// commandTimeout is for a command under emulation.
const commandTimeout = 5 * time.Minute

// forEachEmulator runs a test under User Mode Linux, and under those that
// VFSPROBE_TEST_EMULATORS names, separated by commas: kvm and tcg.
func forEachEmulator(t *testing.T, test func(t *testing.T, emulator Emulator)) {
	names := []string{"uml"}
	if more := os.Getenv("VFSPROBE_TEST_EMULATORS"); more != "" {
		names = append(names, strings.Split(more, ",")...)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			emulator, err := EmulatorByName(name, KernelSuite)
			require.NoError(t, err)
			test(t, emulator)
		})
	}
}

// shell returns what a script prints, which must succeed.
func shell(t *testing.T, m *Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	result, err := m.Shell(ctx, script)
	require.NoError(t, err)
	require.NoError(t, result.Err(), script)
	return strings.TrimSpace(result.Output)
}

func TestSystemd_RunsUnits(t *testing.T) {
	forEachEmulator(t, func(t *testing.T, emulator Emulator) {
		outside := t.TempDir()
		m := Start(t, Config{Emulator: emulator, Base: SystemdBase(), Init: Systemd(), Shares: []Share{{Dir: outside, Name: "/mnt/outside"}}})

		assert.Equal(t, "systemd", shell(t, m, "cat /proc/1/comm"))
		state := shell(t, m, "systemctl is-system-running --wait || true")
		assert.Equal(t, "running", state, "failed units:\n%s", shell(t, m, "systemctl --failed --no-legend --plain"))

		assert.Contains(t, shell(t, m, "systemd-run --wait --pipe --unit=hello echo hello"), "hello")
		journal := shell(t, m, "journalctl --sync; systemd-run --wait --unit=loud echo from the unit; journalctl --sync; journalctl --no-pager -o cat -u loud")
		assert.Contains(t, journal, "from the unit")
		// A unit with mount namespaces of its own.
		shell(t, m, "systemd-run --wait -p PrivateTmp=yes -p ProtectSystem=strict -p PrivateDevices=yes sh -c '! touch /usr/file'")
		// Stopping one ends its processes.
		shell(t, m, "systemd-run --unit=long sleep 1000; systemctl stop long; ! pidof sleep")

		shell(t, m, "uname -r >/mnt/outside/version")
		version, err := os.ReadFile(filepath.Join(outside, "version"))
		require.NoError(t, err)
		assert.NotEmpty(t, version)
		require.NoError(t, m.PowerOff(t.Context()))
	})
}

func TestAgent_RunsCommands(t *testing.T) {
	forEachEmulator(t, func(t *testing.T, emulator Emulator) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, []byte("in the machine"), 0o644))
		m := Start(t, Config{Emulator: emulator, Base: SystemdBase(), Files: []File{{From: file, Name: "srv/file"}}})

		for _, test := range []struct {
			command agent.Command
			want    agent.Result
		}{
			{agent.Command{Args: []string{"cat", "/srv/file"}}, agent.Result{Output: "in the machine"}},
			{agent.Command{Args: []string{"sh", "-c", "cat; pwd; echo $A >&2; exit 3"}, Env: []string{"A=b"}, Dir: "/srv", Input: "x "}, agent.Result{Output: "x /srv\nb\n", Code: 3}},
			{agent.Command{Args: []string{"sh", "-c", "kill -9 $$"}}, agent.Result{Code: 137}},
			{agent.Command{Args: []string{"sh", "-c", "sleep 1000 & echo left"}}, agent.Result{Output: "left\n"}},
			{agent.Command{Args: []string{"/nowhere"}}, agent.Result{Failed: "fork/exec /nowhere: no such file or directory"}},
		} {
			result, err := m.Run(t.Context(), test.command)
			require.NoError(t, err)
			assert.Equal(t, test.want, result, test.command)
		}
		long := strings.Repeat("# a line, \"quoted\", with < and ü\n", 1000)
		assert.Equal(t, "34000", shell(t, m, "wc -c <<'END'\n"+long+"END"), "more than fits the line's buffer")
		assert.Equal(t, "it listens still", shell(t, m, "echo it listens still"))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.Shell(ctx, "sleep 1000")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		pid := m.command.Process.Pid
		require.NoError(t, m.Close())
		assert.NoDirExists(t, m.dir)
		assert.Eventually(t, func() bool { return len(groupOf(t, pid)) == 0 }, 30*time.Second, 50*time.Millisecond, "left of the machine: %v", groupOf(t, pid))
	})
}

// TestWatchdog_CleansUp has the watchdog take it that its parent is dead.
func TestWatchdog_CleansUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	require.NoError(t, os.Mkdir(dir, 0o755))
	command := exec.Command("sleep", "1000")
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, command.Start())
	w, err := watch(command.Process.Pid, dir)
	require.NoError(t, err)
	require.NoError(t, w.stdin.Close())
	require.EqualError(t, command.Wait(), "signal: killed")
	require.NoError(t, w.command.Wait())
	assert.NoDirExists(t, dir)
}

func TestNeed_NamesPackages(t *testing.T) {
	require.NoError(t, Need("sh"))
	err := Need("sh", "no-such-command", "package:other-command")
	require.ErrorAs(t, err, new(Unavailable))
	assert.EqualError(t, err, "missing: no-such-command, other-command; get it, as root, with: apt-get install no-such-command package")
}

// groupOf returns the processes of a group.
func groupOf(t *testing.T, group int) []string {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var found []string
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		_, after, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(after); len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" {
			found = append(found, string(text))
		}
	}
	return found
}
