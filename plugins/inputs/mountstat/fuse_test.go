package mountstat

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
)

func TestPathsIn(t *testing.T) {
	assert.Equal(t, []string{"/mnt/a", "/mnt/b", "/c", "/srv/x y"},
		pathsIn([]string{"mergerfs", "-o", "ro,lowerdir=/mnt/a/:/mnt/b", "user@host:/c", "relative/path", "", "/srv/x y"}))
}

func FuzzPathsIn(f *testing.F) {
	f.Add("lowerdir=/a:/b,/c")
	f.Fuzz(func(t *testing.T, argument string) {
		for _, path := range pathsIn([]string{argument}) {
			if !filepath.IsAbs(path) {
				t.Errorf("%q", path)
			}
		}
	})
}

func TestFUSEKind(t *testing.T) {
	for fstype, want := range map[string]string{"fuse.sshfs": "sshfs", "fuse": "", "fuseblk": ""} {
		assert.Equal(t, want, fuseKind(&mounts.Mount{Info: &mountinfo.Info{FSType: fstype}}), fstype)
	}
}

// Of a healthy host no process is looked at.
func TestMountstat_LooksForNoDaemonOfAHealthyMount(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir))
	for range 3 {
		require.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	}
	assert.Nil(t, m.daemons.found)
	fs.Fail(unix.ENOSPC, faultfs.Statfs)
	require.Equal(t, "no_space", text(at(collect.Gather(t, m), fs.Dir), "cause"))
	assert.Nil(t, m.daemons.found, "the errno says it all")
}

// A mount that fails at once does not use up the time for those that hang.
func TestMountstat_HasTimeForEachDaemon(t *testing.T) {
	host, dead := sshhost.New(t), faultfs.New(t)
	fs := host.Mount(t)
	m, _ := newInput(t, only(fs.Dir, dead.Dir), within(daemonsTimeout+time.Second))
	gatherUntil(t, m, fs.Dir, "ok")
	dead.Abort()
	host.Pause()
	gatherAllUntil(t, m, map[string]string{dead.Dir: "error fuse_daemon_dead", fs.Dir: "stuck fuse_server_silent"})
	host.Resume()
	noneLeft(t, m)
}

// The cause follows the evidence while the fault lasts.
func TestMountstat_FollowsTheEvidenceOfAServer(t *testing.T) {
	host := sshhost.New(t)
	fs := host.Mount(t)
	m, log := newInput(t, only(fs.Dir), within(2*slow))
	var kept recorder
	m.host.Recorder = &kept
	g := gatherUntil(t, m, fs.Dir, "ok")
	assert.Empty(t, serverRows(t, g))
	assert.Empty(t, kept)
	host.Pause()
	g = collect.Gather(t, m)
	metric := at(g, fs.Dir)
	require.Len(t, kept, 1)
	for _, name := range []string{"result", "cause", "reason", "hangs_in", "fuse_daemon_pid", "fuse_connection", "stuck_pid"} {
		assert.Equal(t, field(t, metric, name), kept[0].Fields[name], "the report is made from what the metric is")
	}
	assert.Equal(t, []int{fs.Daemon.Pid}, kept[0].Processes)
	assert.EqualValues(t, field(t, metric, "stuck_pid"), kept[0].Helper)
	assert.NotEmpty(t, kept[0].Servers)
	assert.Len(t, log.about("; what is known of it is kept in /kept/1"), 1)
	assert.Equal(t, "stuck fuse_server_silent", text(metric, "result")+" "+text(metric, "cause"))
	assert.Equal(t, int64(fs.Daemon.Pid), field(t, metric, "fuse_daemon_pid"))
	assert.Equal(t, []string{"127.0.0.1 " + host.Port + " sshfs 1"}, serverRows(t, g), "its server is a row")
	stop(t, fs.Daemon)
	metric = at(gatherUntil(t, m, fs.Dir, "stuck fuse_daemon_silent"), fs.Dir)
	assert.Contains(t, text(metric, "reason"), "is stopped: kill -CONT")
	assert.Len(t, log.about("hangs"), 1, "it is said once")
	assert.Len(t, kept, 1, "and kept once")
	fs.Resume()
	host.Resume()
	noneLeft(t, m)
	g = gatherUntil(t, m, fs.Dir, "ok")
	assert.Equal(t, []string{"127.0.0.1 " + host.Port + " sshfs 0"}, serverRows(t, g), "and stays one")
}

// serverRows are the rows of servers: address, port, service and faults.
func serverRows(t *testing.T, g *collect.Metrics) (rows []string) {
	for _, metric := range g.Named("mountstat_server") {
		tag := func(name string) string { value, _ := metric.GetTag(name); return value }
		rows = append(rows, fmt.Sprint(tag("server"), " ", tag("port"), " ", tag("service"), " ", field(t, metric, "faults")))
	}
	return rows
}

// What is to be aborted or restarted is what does not answer, and not who waits for it.
func TestMountstat_NamesTheConnectionOfTheCulprit(t *testing.T) {
	path, inflict, heal := onTop("bindfs", "-f")(t)
	m, log := newInput(t, only(path, path+below), within(timeout))
	gatherUntil(t, m, path, "ok")
	inflict()
	g := gatherAllUntil(t, m, map[string]string{path: "stuck fuse_server_silent", path + below: "stuck fuse_server_silent"})
	above, culprit := at(g, path), at(g, path+below)
	for _, name := range []string{"fuse_connection", "fuse_daemon_pid"} {
		assert.Equal(t, field(t, culprit, name), field(t, above, name), name)
	}
	command := fmt.Sprintf("echo 1 >/sys/fs/fuse/connections/%d/abort", field(t, culprit, "fuse_connection"))
	assert.Len(t, log.about(command), 2)
	heal()
	noneLeft(t, m)
}

// recorder is a fault.Recorder.
type recorder []*fault.Report

func (r *recorder) Began(f *fault.Report) string {
	*r = append(*r, f)
	return fmt.Sprint("/kept/", len(*r))
}

// stop stops a process, and waits until all of its threads are.
func stop(t *testing.T, process *os.Process) {
	t.Helper()
	require.NoError(t, process.Signal(unix.SIGSTOP))
	require.Eventually(t, func() bool {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", process.Pid))
		return len(all) > 0 && !slices.ContainsFunc(all, func(file string) bool {
			content, err := os.ReadFile(file)
			return err == nil && !strings.Contains(string(content), "\nState:\tT")
		})
	}, 30*time.Second, time.Millisecond)
}

// daemonUsing is a FUSE file system whose daemon, of that process, uses others.
func daemonUsing(m *causes, pid int, used ...*target) *target {
	t := &target{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: "fuse.mergerfs"}}}}
	t.daemon = &fusedaemon.Daemon{Process: fusedaemon.Process{PID: pid}}
	m.daemons.uses[t] = daemonUse{t.daemon, used}
	return t
}

// A daemon of several file systems has all their mount points among its arguments.
func TestMountstat_WhatADaemonServesItselfIsNotWhatItUses(t *testing.T) {
	m := &causes{daemons: &daemons{uses: make(map[*target]daemonUse)}}
	branch, same := daemonUsing(m, 2), daemonUsing(m, 1)
	assert.Equal(t, []*target{branch}, slices.Collect(m.daemons.usedBy(daemonUsing(m, 1, same, branch))))
}

// Of file systems upon file systems there are more ways down than a gather has time for.
func TestMountstat_LooksAtEachLayerOnce(t *testing.T) {
	m := &causes{inventory: &inventory{table: new(mounts.Snapshot)}, daemons: &daemons{uses: make(map[*target]daemonUse)}}
	lowest := daemonUsing(m, 1)
	left, right := daemonUsing(m, 2, lowest), daemonUsing(m, 3, lowest)
	for pid := 4; pid < 200; pid += 2 {
		left, right = daemonUsing(m, pid, left, right), daemonUsing(m, pid+1, left, right)
	}
	assert.True(t, m.dependsOn(left, lowest, make(map[*target]bool)))
	assert.False(t, m.dependsOn(left, daemonUsing(m, 200), make(map[*target]bool)))
}
