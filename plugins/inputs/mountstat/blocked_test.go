package mountstat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// victim runs a shell's command in the directory, once released.
func victim(t *testing.T, dir, command string) (release func()) {
	shell := exec.Command("sh", "-c", "cd '"+dir+"' && echo ready && read -r line && "+command)
	shell.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := shell.StdinPipe()
	require.NoError(t, err)
	stdout, err := shell.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, shell.Start())
	t.Cleanup(func() {
		_ = shell.Process.Kill()
		go func() { _ = shell.Wait() }() // the mount heals later
	})
	_, err = stdout.Read(make([]byte, 6))
	require.NoError(t, err)
	return func() { stdin.Write([]byte("go\n")) }
}

// awaitBlocked gathers until a task of that name is reported.
func awaitBlocked(t *testing.T, m *Mountstat, comm string) (telegraf.Metric, *collect.Metrics) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		g := collect.Gather(t, m)
		if metric := g.Tagged("mountstat_blocked", "comm", comm); metric != nil {
			return metric, g
		}
		require.Less(t, time.Since(began), 30*time.Second, "%v", g.Named("mountstat_blocked"))
	}
}

func TestBlocked_WhoWaitsForAFUSEDaemon(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir, "/"), within(timeout, fs.Dir))
	release := victim(t, fs.Dir, "exec cat "+faultfs.FileName)
	fs.Silence()
	release()
	gatherUntil(t, m, fs.Dir, "stuck")
	metric, g := awaitBlocked(t, m, "cat")
	path, _ := metric.GetTag("path")
	assert.Equal(t, fs.Dir, path)
	wchan, _ := metric.GetTag("wchan")
	assert.Contains(t, wchan, "request_wait_answer")
	assert.Equal(t, int64(1), field(t, metric, "count"))
	assert.Positive(t, field(t, metric, "longest_seconds"))
	assert.Positive(t, field(t, metric, "pid"))
	assert.Positive(t, summary(t, g, "blocked_helpers"), "ours is counted apart")
	for _, other := range g.Named("mountstat_blocked") {
		comm, _ := other.GetTag("comm")
		assert.NotContains(t, comm, "vfsp")
	}
	fs.Heal()
	require.Eventually(t, func() bool {
		return collect.Gather(t, m).Tagged("mountstat_blocked", "comm", "cat") == nil
	}, 30*time.Second, 50*time.Millisecond)
}

// What an automounter calls waits for a server, so that nothing is mounted.
func TestBlocked_WhatAMountProgramWaitsFor(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir), within(timeout))
	cat, err := os.ReadFile("/bin/cat")
	require.NoError(t, err)
	name := filepath.Join(t.TempDir(), "mount.nfs")
	require.NoError(t, os.WriteFile(name, cat, 0o755))
	release := victim(t, t.TempDir(), "exec "+name+" /dev/null "+filepath.Join(fs.Dir, faultfs.FileName)+" password=secret")
	fs.Silence()
	release()
	metric, g := awaitBlocked(t, m, "mount.nfs")
	path, _ := metric.GetTag("path")
	assert.Equal(t, filepath.Join(fs.Dir, faultfs.FileName), path)
	assert.Equal(t, "/dev/null", text(metric, "source"))
	for _, other := range g.Named("mountstat_blocked") {
		assert.NotContains(t, fmt.Sprint(other.Tags(), other.Fields()), "secret")
	}
	fs.Heal()
}

// The arguments of a program are read once: here there is nobody to read them.
func TestMountstat_KnowsMountPrograms(t *testing.T) {
	home := mounts.ParseProgram([]string{"mount.nfs", "nas:/home", "/auto/home"})
	m := &blockedTasks{programs: map[programID]mountProgram{{7, 100}: {mount: home}, {8, 100}: {mount: home}}}
	tasks := []blocked.Task{{PID: 7, Start: 100, Comm: "mount.nfs"}, {PID: 9, Start: 100, Comm: "cat"}}
	for range 2 {
		assert.Equal(t, map[int]*mounts.Mount{7: home}, m.mountPrograms(tasks))
	}
	assert.Len(t, m.programs, 1, "what has ended is forgotten")
}

// The arguments of a program are read again if they could not be, but not for ever.
func TestMountstat_ReadsTheArgumentsOfAMountProgramAgain(t *testing.T) {
	input, log := newInput(t)
	m := input.blocked
	good := m.host.Files.Prober
	closed := prober.New(prober.Options{})
	closed.Close()
	proc := t.TempDir()
	m.host.Files = &openfiles.Reader{Prober: good, Proc: proc}
	tasks := []blocked.Task{{PID: 7, Start: 100, Comm: "mount.nfs"}}
	busy := func() {
		m.host.Files.Prober = closed
		assert.Nil(t, m.mountPrograms(tasks)[7])
		m.host.Files.Prober = good
	}
	busy()
	assert.Len(t, log.about("command lines: the prober is closed"), 1)
	assert.Nil(t, m.mountPrograms(tasks)[7], "it is being started")
	require.NoError(t, os.Mkdir(filepath.Join(proc, "7"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "7", "cmdline"), []byte("mount.nfs\x00nas:/home\x00/auto/home\x00"), 0o600))
	for range 2 {
		require.NotNil(t, m.mountPrograms(tasks)[7])
		assert.Equal(t, "/auto/home", m.mountPrograms(tasks)[7].Mountpoint)
	}
	tasks[0].Start = 200
	for range maxArgumentReads {
		busy()
	}
	assert.Nil(t, m.mountPrograms(tasks)[7], "it has been tried often enough")
}

func TestBlocked_WhoWaitsForAFrozenFileSystem(t *testing.T) {
	faultfs.Require(t)
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, _ := newInput(t, within(timeout), func(m *Mountstat) {
		only(fs.Dir)(m)
		m.Checks = []string{"statfs", "write"}
	})
	release := victim(t, fs.Dir, "exec touch made-by-a-victim")
	fs.Freeze()
	release()
	metric, _ := awaitBlocked(t, m, "touch")
	path, _ := metric.GetTag("path")
	assert.Equal(t, fs.Dir, path)
	wchan, _ := metric.GetTag("wchan")
	assert.Contains(t, wchan, "percpu_rwsem_wait")
	fs.Thaw()
	require.Eventually(t, func() bool {
		g := collect.Gather(t, m)
		return g.Tagged("mountstat_blocked", "comm", "touch") == nil && text(at(g, fs.Dir), "result") == "ok"
	}, 30*time.Second, 50*time.Millisecond)
	assert.FileExists(t, filepath.Join(fs.Dir, "made-by-a-victim"))
}

func TestBlocked_TheRestIsSummedUp(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, within(timeout), func(m *Mountstat) {
		only(fs.Dir)(m)
		m.BlockedTop = 1
	})
	fs.Silence()
	for _, command := range []string{"cat", "cat", "wc", "md5sum"} {
		victim(t, "/", "exec "+command+" "+filepath.Join(fs.Dir, faultfs.FileName))()
	}
	// They wait in different places: one in the look-up, others for it. The host
	// may have more such tasks.
	require.Eventually(t, func() bool {
		g := collect.Gather(t, m)
		var sum int64
		for _, metric := range g.Named("mountstat_blocked") {
			sum += field(t, metric, "count").(int64)
		}
		return len(g.Named("mountstat_blocked")) == 2 && g.Tagged("mountstat_blocked", "comm", "other") != nil &&
			sum >= 4 && sum == summary(t, g, "blocked")
	}, 30*time.Second, 50*time.Millisecond)
	fs.Heal()
}
