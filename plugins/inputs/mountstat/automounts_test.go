package mountstat

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

func TestMountstat_AnAutomounterThatCanMountNothing(t *testing.T) {
	automounter := exec.Command("sleep", "1000")
	automounter.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	require.NoError(t, automounter.Start())
	t.Cleanup(func() {
		_ = automounter.Process.Kill()
		_ = automounter.Wait()
	})
	path := t.TempDir()
	dir := tableOf(t, path, "/", "rw", "autofs", "auto.home", fmt.Sprintf("rw,fd=6,pgrp=%d,timeout=300,minproto=5,maxproto=5,indirect", automounter.Process.Pid))
	m, log := newInput(t)
	withTable(m, dir)
	assert.Nil(t, at(collect.Gather(t, m), path), "it is no series while all is well")

	stop(t, automounter.Process)
	g := collect.Gather(t, m)
	metric := at(g, path)
	assert.Equal(t, "error automounter_stopped", text(metric, "result")+" "+text(metric, "cause"))
	assert.Equal(t, fmt.Sprintf("its automounter sleep (process %d) is stopped: kill -CONT %[1]d", automounter.Process.Pid), text(metric, "reason"))
	collect.Gather(t, m)
	assert.Len(t, log.about("automounter_stopped"), 1)

	require.NoError(t, automounter.Process.Signal(unix.SIGCONT))
	assert.Eventually(t, func() bool { return at(collect.Gather(t, m), path) == nil }, 30*time.Second, 20*time.Millisecond)
	require.NoError(t, automounter.Process.Kill())
	_ = automounter.Wait()
	assert.Contains(t, text(at(collect.Gather(t, m), path), "reason"), "has ended")
}

func TestProcessState(t *testing.T) {
	for stat, want := range map[string]string{
		"4711 (automount) T 1 4711": "automount T", "1 (a) b) c) S 0": "a) b) c S",
		"": " \x00", "1 (x": " \x00", "1 (x) ": " \x00", ") (": " \x00",
	} {
		comm, state := processState(stat)
		assert.Equal(t, want, comm+" "+string(state), "%q", stat)
	}
}

func FuzzProcessState(f *testing.F) {
	f.Add("4711 (automount) T 1 4711")
	f.Fuzz(func(_ *testing.T, stat string) { processState(stat) })
}
