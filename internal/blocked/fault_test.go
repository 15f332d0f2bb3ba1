package blocked_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// start runs a command until the end of the test. What it hangs in must be
// healed by a cleanup that is registered later.
func start(t *testing.T, name string, arguments ...string) *exec.Cmd {
	t.Helper()
	command := exec.Command(name, arguments...)
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return command
}

// settled scans until a task of the process has been in one sleep for a while:
// it may wait for this and that on the way there.
func settled(t *testing.T, scanner *blocked.Scanner, pid int) (found blocked.Task) {
	t.Helper()
	require.Eventually(t, func() bool {
		tasks, err := scanner.Scan(time.Now())
		assert.NoError(t, err)
		for _, task := range tasks {
			if task.PID == pid && time.Since(task.Since) > 50*time.Millisecond {
				found = task
				return true
			}
		}
		return false
	}, 20*time.Second, 5*time.Millisecond)
	return found
}

func mountIDOf(t *testing.T, dir string) int {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); fields[4] == dir {
			id, err := strconv.Atoi(fields[0])
			require.NoError(t, err)
			return id
		}
	}
	t.Fatalf("%s is no mount", dir)
	return 0
}

// A process that waits for a silent FUSE server shows S, and D once it was
// killed.
func TestScanner_SeesAKilledProcessOnASilentFUSEServer(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	scanner, patient := newScanner(t, "/proc"), newScanner(t, "/proc", blocked.FUSEWaits()...)
	// It has a file open there, and its working directory elsewhere.
	fs.Silence(faultfs.Read)
	victim := start(t, "sh", "-c", "cd /tmp; exec cat <\"$0\"", filepath.Join(fs.Dir, faultfs.FileName))
	t.Cleanup(fs.Heal)
	pid := victim.Process.Pid

	task := settled(t, patient, pid)
	assert.Equal(t, byte('S'), task.State)
	assert.Contains(t, blocked.FUSEWaits(), task.Wchan)
	assert.Equal(t, "cat", task.Comm)
	since := task.Since
	assert.NotContains(t, scan(t, scanner, time.Now()), pid, "not in D yet")

	files := newMonitor(t, "/proc").Files(task)
	assert.Contains(t, files.MountIDs, mountIDOf(t, fs.Dir))
	assert.Equal(t, "/tmp", files.Cwd)
	own, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	assert.Equal(t, own, files.MountNS)
	assert.Equal(t, since, scan(t, patient, time.Now())[pid].Since, "the same sleep")

	require.NoError(t, victim.Process.Kill())
	task = settled(t, scanner, pid)
	assert.Equal(t, byte('D'), task.State)
	assert.Contains(t, blocked.FUSEWaits(), task.Wchan)
	time.Sleep(20 * time.Millisecond)
	later := scan(t, scanner, time.Now())[pid]
	assert.Equal(t, task.Since, later.Since)

	fs.Heal()
	_ = victim.Wait()
	assert.NotContains(t, scan(t, scanner, time.Now()), pid)
}

// This test program has many threads, of which one hangs.
func TestScanner_SeesAThreadThatHangs(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	scanner := newScanner(t, "/proc", blocked.FUSEWaits()...)
	fs.Silence(faultfs.Statfs)
	done := make(chan error)
	go func() {
		var st unix.Statfs_t
		done <- unix.Statfs(fs.Dir, &st)
	}()
	task := settled(t, scanner, os.Getpid())
	assert.Equal(t, byte('S'), task.State)
	fs.Heal()
	require.NoError(t, <-done)
	for _, other := range scan(t, scanner, time.Now()) {
		assert.NotEqual(t, task.TID, other.TID)
	}
}

func TestScanner_SeesAWriterOnAFrozenFileSystem(t *testing.T) {
	faultfs.Require(t)
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	fs.Freeze()
	scanner := newScanner(t, "/proc")
	writer := start(t, "touch", filepath.Join(fs.Dir, "file"))
	t.Cleanup(fs.Thaw)
	task := settled(t, scanner, writer.Process.Pid)
	assert.Equal(t, byte('D'), task.State)
	assert.Equal(t, "touch", task.Comm)
	assert.NotEmpty(t, task.Wchan)
	assert.False(t, task.Kernel)
	for range 3 {
		time.Sleep(10 * time.Millisecond)
		again := scan(t, scanner, time.Now())[writer.Process.Pid]
		assert.Equal(t, task.Since, again.Since)
	}
	fs.Thaw()
	require.NoError(t, writer.Wait())
	assert.NotContains(t, scan(t, scanner, time.Now()), writer.Process.Pid)
}

func TestScanner_ReadsAllTasksOfThisHost(t *testing.T) {
	scanner := newScanner(t, "/proc", "do_nanosleep", "hrtimer_nanosleep", "common_nsleep")
	sleeper := start(t, "sleep", "600")
	task := settled(t, scanner, sleeper.Process.Pid)
	assert.Equal(t, byte('S'), task.State)
	files := newMonitor(t, "/proc").Files(task)
	assert.Empty(t, files.MountIDs, "it has nothing open but /dev/null")
	cwd, err := os.Getwd()
	require.NoError(t, err)
	assert.Equal(t, cwd, files.Cwd)
}

func TestScanner_LeavesNothingOpen(t *testing.T) {
	scanner, monitor := newScanner(t, "/proc", "x"), newMonitor(t, "/proc")
	_, err := monitor.Scan(blocked.Request{Round: 100, Urgent: true}) // it has its directory open, and a fork server
	require.NoError(t, err)
	monitor.Files(blocked.Task{PID: os.Getpid(), TID: os.Getpid()})
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	before := count()
	for i := range 5 {
		scan(t, scanner, time.Now())
		_, err := monitor.Scan(blocked.Request{Round: uint64(i), Urgent: true})
		require.NoError(t, err)
		monitor.Files(blocked.Task{PID: os.Getpid(), TID: os.Getpid()})
		monitor.Stack(blocked.Task{PID: os.Getpid(), TID: os.Getpid()})
	}
	assert.Equal(t, before, count())
}

func TestScanner_ThreadsOfAProcess(t *testing.T) {
	faultfs.Require(t)
	sleeper := start(t, "sleep", "600")
	scanner := newScanner(t, "/proc")
	threads, err := scanner.Threads(sleeper.Process.Pid, 10)
	require.NoError(t, err)
	require.Len(t, threads, 1)
	assert.Equal(t, sleeper.Process.Pid, threads[0].TID)
	assert.NotZero(t, threads[0].Start)
	threads, err = scanner.Threads(os.Getpid(), 2)
	require.NoError(t, err)
	require.Len(t, threads, 2, "there is a bound")
	assert.Equal(t, os.Getpid(), threads[0].TID, "the first one comes first")
	_, err = scanner.Threads(4194304, 10)
	assert.Error(t, err)
}
