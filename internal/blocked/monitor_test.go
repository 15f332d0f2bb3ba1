package blocked_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// To be seen in D twice is no proof: a busy task is, by chance.
func TestScanner_BlockedMeansBlocked(t *testing.T) {
	for _, c := range []struct {
		name, wchan string
		switches    int // between two looks, 10 s apart
		waited      bool
	}{
		{"asleep", "folio_wait_bit", 0, true},
		{"ran once", "folio_wait_bit", 1, false},
		{"busy", "io_schedule", 5000, false},
		{"sends its call again", "rpc_wait_bit_killable", 4, true},
		{"sends it ten times a second", "rpc_wait_bit_killable", 200, true},
		{"has its calls answered", "rpc_wait_bit_killable", 5000, false},
		{"waits for the grace period", "nlm_wait_on_grace", 8, true},
		{"waits for a lock", "nfs4_retry_setlk", 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			task := fakeTask{pid: 7, tid: 7, comm: "x", state: 'D', threads: 1, start: 5, wchan: c.wchan, switches: 100}
			task.write(t, proc)
			scanner := newScanner(t, proc)
			assert.Equal(t, at(1), scan(t, scanner, at(1))[7].Since)
			task.switches += c.switches
			task.write(t, proc)
			since := at(11)
			if c.waited {
				since = at(1)
			}
			assert.Equal(t, since, scan(t, scanner, at(11))[7].Since)
		})
	}
}

// A program that connects to a server sleeps as others do.
func TestMonitor_NotesWhatMounts(t *testing.T) {
	m, proc := fixtureMonitor(t, "0.00")
	for pid, comm := range map[int]string{7: "mount.nfs", 8: "mount", 9: "mountpoint", 10: "x(mount.nfs", 11: "umount.nfs"} {
		task := fakeTask{pid: pid, tid: pid, comm: comm, state: 'S', threads: 1, start: 5, wchan: "wait_woken", switches: pid}
		task.write(t, proc)
	}
	// A FUSE daemon that keeps the name of the program which mounted; systemd has mount(8) lead a session.
	for pid, comm := range map[int]string{12: "mount.fuse.sshf", 13: "mount"} {
		fakeTask{pid: pid, tid: pid, comm: comm, state: 'S', threads: 1, start: 5, session: pid}.write(t, proc)
	}
	var names []string
	for round := uint64(1); round <= 3; round++ {
		found, err := m.Scan(blocked.Request{Round: round, Asker: t, Urgent: true, Programs: round > 1})
		require.NoError(t, err)
		assert.Empty(t, found.Tasks)
		names = nil
		for _, task := range found.Mounting {
			names = append(names, task.Comm)
		}
		if round < 3 {
			assert.Empty(t, names, "they may have begun just now")
		}
	}
	assert.ElementsMatch(t, []string{"mount.nfs", "mount", "mount"}, names)
	found, err := m.Scan(blocked.Request{Round: 4, Asker: t, Urgent: true})
	require.NoError(t, err)
	assert.Empty(t, found.Mounting, "nobody asks for them")
	for uptime, want := range map[string]int{"": 0, "1.04 1.00\n": 0, "1.20 1.00\n": 3, "nonsense": 0} {
		require.NoError(t, os.WriteFile(filepath.Join(proc, "uptime"), []byte(uptime), 0o600))
		found, err := newMonitor(t, proc).Scan(blocked.Request{Round: 1, Asker: t, Programs: true}) // also if nothing is urgent
		require.NoError(t, err)
		assert.Len(t, found.Mounting, want, "%q: a program that has lived for a second waits", uptime)
	}
}

// fixtureMonitor is one of a procfs made of ordinary files, on a host that is not idle.
func fixtureMonitor(t *testing.T, load string) (m *blocked.Monitor, proc string) {
	t.Helper()
	proc = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(proc, "self"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "self/status"), []byte("Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t1\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "loadavg"), []byte(load+" 0.00 0.00 1/110 5\n"), 0o600))
	return newMonitor(t, proc), proc
}

// urgent asks for tasks in a round, and returns their names by TID.
func urgent(t *testing.T, m *blocked.Monitor, round uint64, asker any, waits ...string) map[int]string {
	t.Helper()
	found, err := m.Scan(blocked.Request{Round: round, Asker: asker, Urgent: true, Waits: waits})
	require.NoError(t, err)
	names := make(map[int]string)
	for _, task := range found.Tasks {
		names[task.TID] = task.Comm
		assert.True(t, task.Since.Before(found.At))
	}
	return names
}

func TestMonitor_OneScanPerRound(t *testing.T) {
	m, proc := fixtureMonitor(t, "9.00")
	a, b := new(int), new(int)
	fakeTask{pid: 1, tid: 1, comm: "in D", state: 'D', threads: 1, wchan: "x"}.write(t, proc)
	fakeTask{pid: 2, tid: 2, comm: "waits for one", state: 'S', threads: 1, wchan: "one"}.write(t, proc)
	fakeTask{pid: 3, tid: 3, comm: "waits for two", state: 'S', threads: 1, wchan: "two"}.write(t, proc)
	fakeTask{pid: 4, tid: 4, comm: "vfsprobe-server", state: 'D', threads: 1, wchan: "x"}.write(t, proc)
	assert.Empty(t, urgent(t, m, 1, a, "one"), "nobody was seen to wait yet")
	urgent(t, m, 1, b, "two")
	all := map[int]string{1: "in D", 2: "waits for one", 3: "waits for two", 4: "vfsprobe-server"}
	assert.Equal(t, all, urgent(t, m, 2, a, "one"), "for both; what is only named like a fork server is none")

	require.NoError(t, os.RemoveAll(filepath.Join(proc, "1")))
	assert.Equal(t, all, urgent(t, m, 2, b, "two"), "the round has its scan")
	var many sync.WaitGroup
	times := make([]time.Time, 20)
	for i := range times {
		many.Go(func() {
			found, err := m.Scan(blocked.Request{Round: 3, Asker: []any{a, b}[i%2], Urgent: true, Waits: []string{[]string{"one", "two"}[i%2]}})
			assert.NoError(t, err)
			times[i] = found.At
		})
	}
	many.Wait()
	assert.Len(t, slices.Compact(times), 1)
	delete(all, 1)
	assert.Equal(t, all, urgent(t, m, 3, a, "one"))

	assert.Equal(t, map[int]string{3: "waits for two", 4: "vfsprobe-server"}, urgent(t, m, 4, a), "nobody asks for the other any more")
}

func TestMonitor_ForgetsWhatNobodyAsksFor(t *testing.T) {
	a, b := new(int), new(int)
	m, proc := fixtureMonitor(t, "9.00")
	fakeTask{pid: 1, tid: 1, comm: "waits", state: 'S', threads: 1, wchan: "one"}.write(t, proc)
	urgent(t, m, 1, a, "one")
	for round := uint64(2); round <= 4; round++ {
		assert.Equal(t, map[int]string{1: "waits"}, urgent(t, m, round, b), "the other may be late in round %d", round)
	}
	assert.Empty(t, urgent(t, m, 5, b))
	assert.Empty(t, urgent(t, m, 5, a, "one"), "it has not been looked for meanwhile")
	assert.Equal(t, map[int]string{1: "waits"}, urgent(t, m, 6, b))

	for what, forget := range map[string]blocked.Request{"asks no more": {Round: 5, Asker: b}, "asks for none": {Round: 2, Asker: a}} {
		m, _ := fixtureMonitor(t, "0.00")
		_, err := m.Scan(blocked.Request{Asker: a, Waits: []string{"one"}}) // in the first round nobody waits
		require.NoError(t, err)
		for _, r := range []blocked.Request{{Round: 1, Asker: a, Waits: []string{"one"}}, {Round: 1, Asker: b}} {
			found, err := m.Scan(r)
			require.NoError(t, err)
			assert.NotZero(t, found.At, "the load average does not show these")
		}
		require.Eventually(t, func() bool {
			found, err := m.Scan(forget)
			return err == nil && found.At.IsZero()
		}, 20*time.Second, 10*time.Millisecond, "%s: the load average rules it out again", what)
	}
}

func TestMonitor_TasksThatRunAreNotBlocked(t *testing.T) {
	m, proc := fixtureMonitor(t, "9.00")
	busy := fakeTask{pid: 1, tid: 1, comm: "busy", state: 'D', threads: 1, wchan: "x"}
	call := fakeTask{pid: 2, tid: 2, comm: "NFS", state: 'D', threads: 1, wchan: "rpc_wait_bit_killable"}
	for round := range uint64(4) {
		busy.switches += 10
		call.switches++
		busy.write(t, proc)
		call.write(t, proc)
		got := urgent(t, m, round+1, t)
		if round > 0 {
			assert.Equal(t, map[int]string{2: "NFS"}, got)
		}
	}
}

func TestMonitor_Budget(t *testing.T) {
	quiet, proc := fixtureMonitor(t, "0.00")
	fakeTask{pid: 1, tid: 1, comm: "in D", state: 'D', threads: 1, wchan: "x"}.write(t, proc)
	for round := range uint64(3) {
		found, err := quiet.Scan(blocked.Request{Round: round, Asker: t})
		require.NoError(t, err)
		assert.Zero(t, found, "the load average rules it out")
	}
	urgent(t, quiet, 5, t)
	assert.Equal(t, map[int]string{1: "in D"}, urgent(t, quiet, 6, t), "if something hangs, it is looked at all the same")

	loaded, _ := fixtureMonitor(t, "9.00")
	scans := make(map[time.Time]int)
	for round := range uint64(50) {
		found, err := loaded.Scan(blocked.Request{Round: round, Asker: t})
		require.NoError(t, err)
		require.Equal(t, round == 0, found.At.IsZero(), "nobody waits for the first")
		scans[found.At]++
	}
	assert.Less(t, len(scans), 25, "a hundredth of the time")

	broken, proc := fixtureMonitor(t, "low")
	require.NoError(t, os.RemoveAll(filepath.Join(proc, "self")))
	for round := range uint64(2) {
		_, err := broken.Scan(blocked.Request{Round: round, Asker: t, Urgent: true})
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestMonitor_NobodyWaitsForTheFirstScan(t *testing.T) {
	m, proc := fixtureMonitor(t, "9.00")
	fakeTask{pid: 1, tid: 1, comm: "in D", state: 'D', threads: 1, wchan: "x"}.write(t, proc)
	first := func(asker string) blocked.Scan {
		found, err := m.Scan(blocked.Request{Round: 1, Asker: asker})
		require.NoError(t, err)
		return found
	}
	assert.Zero(t, first("mountstat"))
	assert.Zero(t, first("nfslock"), "in the same round")
	require.Eventually(t, func() bool { return !first("mountstat").At.IsZero() }, 20*time.Second, 10*time.Millisecond, "it is made all the same")
	assert.Equal(t, map[int]string{1: "in D"}, urgent(t, m, 2, t), "it was seen before")
}

// The plugin's own tasks, fork server and helpers are no witnesses.
func TestMonitor_WitnessesAreOthers(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	m := blocked.NewMonitor("/proc", &openfiles.Reader{Prober: p, Proc: "/proc"})
	fs.Silence(faultfs.Read, faultfs.Statfs)
	witness := start(t, "sh", "-c", "cd /tmp; exec cat <\"$0\"", filepath.Join(fs.Dir, faultfs.FileName))
	own := make(chan error)
	go func() {
		var st unix.Statfs_t
		own <- unix.Statfs(fs.Dir, &st)
	}()
	t.Cleanup(func() { fs.Heal(); <-own })
	report := make(chan prober.Report, 1)
	p.Submit(prober.Check{Key: "k", Plan: &prober.Plan{Timeout: time.Minute, Steps: []prober.Step{prober.Statfs(fs.Dir)}}},
		func(r prober.Report) { report <- r })

	var found blocked.Scan // of the whole host, where other tests may have helpers, too
	round := uint64(0)
	require.Eventually(t, func() bool {
		round++
		var err error
		found, err = m.Scan(blocked.Request{Round: round, Asker: t, Urgent: true, Waits: blocked.FUSEWaits()})
		require.NoError(t, err)
		return found.Helpers > 0 && slices.ContainsFunc(found.Tasks, func(task blocked.Task) bool { return task.PID == witness.Process.Pid && task.Comm == "cat" })
	}, 20*time.Second, 20*time.Millisecond)
	for _, task := range found.Tasks {
		assert.NotEqual(t, os.Getpid(), task.PID)
		assert.False(t, strings.HasPrefix(task.Comm, "vfsp"), task.Comm)
		if task.PID != witness.Process.Pid {
			continue
		}
		files := m.Files(task)
		assert.Contains(t, files.MountIDs, mountIDOf(t, fs.Dir))
		assert.Equal(t, "/tmp", files.Cwd)
		assert.Equal(t, files, m.Files(task))
		if _, err := os.Stat("/proc/self/stack"); err == nil {
			assert.Contains(t, m.Stack(task), "fuse")
		}
	}
}

func TestMonitor_StackOfATaskInD(t *testing.T) {
	faultfs.Require(t)
	if _, err := os.Stat("/proc/self/stack"); err != nil {
		t.Skip("a kernel without stacks")
	}
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	fs.Freeze()
	writer := start(t, "touch", filepath.Join(fs.Dir, "file"))
	t.Cleanup(fs.Thaw)
	task := settled(t, newScanner(t, "/proc"), writer.Process.Pid)
	m := newMonitor(t, "/proc")
	stack := m.Stack(task)
	assert.Contains(t, stack, "+0x")
	assert.Equal(t, stack, m.Stack(task))
}

// Of a scan with thousands of tasks only some are asked for their files.
func TestMonitor_InspectsSomeOnly(t *testing.T) {
	m, proc := fixtureMonitor(t, "9.00")
	for pid := 100; pid < 310; pid++ {
		fakeTask{pid: pid, tid: pid, comm: "x", state: 'D', threads: 1, wchan: "w", start: pid}.write(t, proc)
		require.NoError(t, os.Symlink("/srv", filepath.Join(proc, strconv.Itoa(pid), "task", strconv.Itoa(pid), "cwd")))
	}
	urgent(t, m, 1, t)
	found, err := m.Scan(blocked.Request{Round: 2, Asker: t, Urgent: true})
	require.NoError(t, err)
	require.Len(t, found.Tasks, 210)
	seen := make(map[string]int)
	for _, task := range found.Tasks {
		seen[m.Files(task).Cwd]++
	}
	assert.Equal(t, map[string]int{"/srv": 200, "": 10}, seen)
}
