package blocked_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// fakeTask is a task of a procfs made of ordinary files.
type fakeTask struct {
	pid, tid         int
	comm             string // as in comm
	statComm         string // as in stat, if it differs
	state            byte
	threads          int
	start            int
	wchan            string
	switches, forced int
	flags            int
	session          int
}

func (f fakeTask) write(t testing.TB, proc string) {
	t.Helper()
	if f.statComm == "" {
		f.statComm = f.comm
	}
	stat := fmt.Sprintf("%d (%s) %c 1 1 %d 0 -1 %d 0 0 0 0 5 6 0 0 20 0 %d 0 %d 4096 1 18446744073709551615 0 0\n",
		f.tid, f.statComm, f.state, f.session, f.flags, f.threads, f.start)
	process := filepath.Join(proc, strconv.Itoa(f.pid))
	task := filepath.Join(process, "task", strconv.Itoa(f.tid))
	require.NoError(t, os.MkdirAll(filepath.Join(task, "ns"), 0o755))
	put := func(dir, name, content string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	put(task, "stat", stat)
	put(task, "comm", f.comm+"\n")
	put(task, "wchan", f.wchan)
	put(task, "status", fmt.Sprintf("Name:\t%s\nvoluntary_ctxt_switches:\t%d\nnonvoluntary_ctxt_switches:\t%d\n", f.statComm, f.switches, f.forced))
	if f.pid == f.tid {
		put(process, "stat", stat)
	}
}

func newMonitor(t testing.TB, proc string) *blocked.Monitor {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	return blocked.NewMonitor(proc, &openfiles.Reader{Prober: p, Proc: proc})
}

func newScanner(t testing.TB, proc string, waits ...string) *blocked.Scanner {
	t.Helper()
	scanner, err := blocked.NewScanner(proc, waits...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, scanner.Close()) })
	return scanner
}

// at is a time in seconds.
func at(seconds int) time.Time { return time.Unix(int64(seconds), 0) }

// scan returns the waiting tasks by TID.
func scan(t testing.TB, scanner *blocked.Scanner, now time.Time) map[int]blocked.Task {
	t.Helper()
	tasks, err := scanner.Scan(now)
	require.NoError(t, err)
	byTID := make(map[int]blocked.Task)
	for _, task := range tasks {
		byTID[task.TID] = task
	}
	require.Len(t, byTID, len(tasks))
	return byTID
}

func TestScanner_ReadsOddNames(t *testing.T) {
	proc := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(proc, "self"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "12a"), nil, 0o600))
	names := []string{"plain", "two words", "(paren)", "a) D 1", "a) S 1 1 1", ")", ") ", "", "new\nline", `back\slash`, "\xff\xfe", "kworker/u8:2-events_unbound"}
	for i, name := range names {
		fakeTask{pid: 100 + i, tid: 100 + i, comm: name, state: 'D', threads: 1, start: i, wchan: "folio_wait_bit"}.write(t, proc)
		fakeTask{pid: 200 + i, tid: 200 + i, comm: name, state: 'S', threads: 1, start: i}.write(t, proc)
	}
	fakeTask{pid: 300, tid: 300, comm: "new\nline", statComm: `new\nline`, state: 'D', threads: 1, wchan: "0", flags: 0x200040}.write(t, proc)
	found := scan(t, newScanner(t, proc), at(1))
	require.Len(t, found, len(names)+1, "those in D")
	for i, name := range names {
		task := found[100+i]
		assert.Equal(t, name, task.Comm)
		assert.Equal(t, 100+i, task.PID)
		assert.Equal(t, byte('D'), task.State)
		assert.Equal(t, "folio_wait_bit", task.Wchan)
		assert.False(t, task.Kernel)
	}
	assert.Equal(t, "new\nline", found[300].Comm)
	assert.Empty(t, found[300].Wchan, "0 says nothing")
	assert.True(t, found[300].Kernel)
}

func TestScanner_TellsHowLongATaskWaits(t *testing.T) {
	proc := t.TempDir()
	scanner := newScanner(t, proc)
	base := fakeTask{pid: 7, tid: 7, comm: "x", state: 'D', threads: 1, start: 5, wchan: "a", switches: 10, forced: 3}
	step := func(second int, f fakeTask, since int, why string) {
		t.Helper()
		f.write(t, proc)
		assert.Equal(t, at(since), scan(t, scanner, at(second))[7].Since, why)
	}
	step(1, base, 1, "the first time")
	step(2, base, 1, "the same sleep")
	again := base
	again.switches++
	step(3, again, 3, "it ran, and waits there again")
	step(4, again, 3, "")
	again.forced++
	step(5, again, 5, "it was preempted")
	elsewhere := again
	elsewhere.wchan = "b"
	elsewhere.switches++
	step(6, elsewhere, 6, "it waits for something else")
	other := elsewhere
	other.start = 99
	step(7, other, 7, "another process with the same ID")
	running := other
	running.state = 'R'
	running.write(t, proc)
	assert.Empty(t, scan(t, scanner, at(8)))
	step(9, other, 9, "it ran in between, though nothing counted it")
	require.NoError(t, os.RemoveAll(filepath.Join(proc, "7")))
	assert.Empty(t, scan(t, scanner, at(10)))
}

func TestScanner_LooksAtThreads(t *testing.T) {
	proc := t.TempDir()
	// A leader that has ended, as that of a killed helper, and a thread which
	// hangs.
	fakeTask{pid: 7, tid: 7, comm: "leader", state: 'Z', threads: 3, start: 1}.write(t, proc)
	fakeTask{pid: 7, tid: 8, comm: "hangs", state: 'D', threads: 3, start: 2, wchan: "f"}.write(t, proc)
	fakeTask{pid: 7, tid: 9, comm: "sleeps", state: 'S', threads: 3, start: 3, wchan: "g"}.write(t, proc)
	// The number of threads is believed.
	fakeTask{pid: 20, tid: 20, comm: "single", state: 'S', threads: 1, start: 1}.write(t, proc)
	fakeTask{pid: 20, tid: 21, comm: "not looked at", state: 'D', threads: 1, start: 1}.write(t, proc)
	found := scan(t, newScanner(t, proc), at(1))
	require.Len(t, found, 1)
	assert.Equal(t, "hangs", found[8].Comm)
	assert.Equal(t, 7, found[8].PID)

	found = scan(t, newScanner(t, proc, "g"), at(1))
	require.Len(t, found, 2)
	assert.Equal(t, byte('S'), found[9].State)
	assert.Equal(t, "g", found[9].Wchan)
}

func TestScanner_SkipsBrokenFiles(t *testing.T) {
	proc := t.TempDir()
	fakeTask{pid: 1, tid: 1, comm: "x", state: 'D', threads: 1}.write(t, proc)
	fakeTask{pid: 2, tid: 2, comm: "x", state: 'D', threads: 1}.write(t, proc)
	fakeTask{pid: 3, tid: 3, comm: "x", state: 'D', threads: 1}.write(t, proc)
	require.NoError(t, os.WriteFile(filepath.Join(proc, "1/stat"), []byte("1 (x"), 0o600))
	require.NoError(t, os.Remove(filepath.Join(proc, "2/stat")), "it has just ended")
	require.NoError(t, os.Mkdir(filepath.Join(proc, "4"), 0o755))
	tasks, err := newScanner(t, proc).Scan(at(1))
	require.ErrorContains(t, err, `"1 (x"`)
	require.Len(t, tasks, 1)
	assert.Equal(t, 3, tasks[0].PID)
}

func TestScanner_WithoutProcfs(t *testing.T) {
	_, err := blocked.NewScanner(filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestScanner_ReadsAFixture(t *testing.T) {
	proc := t.TempDir()
	fakeTask{pid: 7, tid: 7, comm: "x", state: 'D', threads: 1}.write(t, proc)
	dir := filepath.Join(proc, "7/task/7")
	require.NoError(t, os.Symlink("/mnt/nas (deleted)", filepath.Join(dir, "cwd")))
	require.NoError(t, os.Symlink("mnt:[4026531841]", filepath.Join(dir, "ns/mnt")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "fd"), 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "fdinfo"), 0o755))
	put := func(fd int, target string, mountID int) {
		name := strconv.Itoa(fd)
		require.NoError(t, os.Symlink(target, filepath.Join(dir, "fd", name)))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "fdinfo", name), fmt.Appendf(nil, "pos:\t0\nflags:\t02\nmnt_id:\t%d\nino:\t3\n", mountID), 0o600))
	}
	for fd := range 30 {
		put(fd, "/srv/file", 10+fd%3)
	}
	put(30, "/srv/removed (deleted)", 20)
	put(31, "socket:[123]", 90)
	put(32, "anon_inode:[eventpoll]", 91)
	put(33, "/dev/net/tun", 92)
	put(34, "/srv/no ID", 93)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "fdinfo/34"), []byte("pos:\t0\n"), 0o600))
	task := scan(t, newScanner(t, proc), at(1))[7]
	monitor := newMonitor(t, proc)
	assert.Equal(t, blocked.Files{MountIDs: []int{10, 11, 12, 20}, Cwd: "/mnt/nas (deleted)", MountNS: "mnt:[4026531841]"}, monitor.Files(task))
	assert.Equal(t, blocked.Files{}, monitor.Files(blocked.Task{PID: 8, TID: 8}), "it is gone")

	require.NoError(t, os.RemoveAll(filepath.Join(dir, "fd")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "fd"), 0o755))
	for fd := 100; fd < 600; fd++ {
		put(fd, "/srv/file", fd)
	}
	assert.Len(t, newMonitor(t, proc).Files(task).MountIDs, 256, "there is a bound")
}

// The kernel's arithmetic (calc_load, kernel/sched/loadavg.c), for one task in D
// on a host where nothing else runs.
func TestLoadExcludes_NeverATaskInD(t *testing.T) {
	proc := t.TempDir()
	const fixed1, exp1, period = 2048, 1884, 5.004
	load := 0
	for sample := range 200 {
		// The sample may be about to be taken again, and have come a period late.
		waited := time.Duration(float64(sample+2) * period * float64(time.Second))
		shown := load + fixed1/200
		content := fmt.Sprintf("%d.%02d 0.00 0.00 1/110 5\n", shown/fixed1, (shown%fixed1)*100/fixed1)
		require.NoError(t, os.WriteFile(filepath.Join(proc, "loadavg"), []byte(content), 0o600))
		excluded, err := blocked.LoadExcludes(proc, waited)
		require.NoError(t, err)
		require.False(t, excluded, "%s after %v", content, waited)
		next := load*exp1 + fixed1*(fixed1-exp1)
		if fixed1 >= load {
			next += fixed1 - 1
		}
		load = next / fixed1
	}
}

func TestLoadExcludes(t *testing.T) {
	proc := t.TempDir()
	for _, c := range []struct {
		load    string
		seconds int
		want    bool
	}{
		{"0.00 1.00 1.00 1/110 5", 5, false},
		{"0.00 0.00 0.00 1/110 5", 15, true},
		{"0.06 0.00 0.00 1/110 5", 15, true},
		{"0.08 0.00 0.00 1/110 5", 15, false},
		{"0.20 0.00 0.00 1/110 5", 30, true},
		{"0.28 0.00 0.00 1/110 5", 30, false},
		{"0.55 0.00 0.00 1/110 5", 60, true},
		{"0.57 0.00 0.00 1/110 5", 60, false},
		{"0.98 0.00 0.00 1/110 5", 3600, true},
		{"1.00 0.00 0.00 1/110 5", 3600, false},
		{"12.5 0.00 0.00 1/110 5", 60, false},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(proc, "loadavg"), []byte(c.load), 0o600))
		got, err := blocked.LoadExcludes(proc, time.Duration(c.seconds)*time.Second)
		require.NoError(t, err)
		assert.Equal(t, c.want, got, "%s after %d s", c.load, c.seconds)
	}
	for _, content := range []string{"", "low", "nan 0.00 0.00 1/110 5", "-0.50 0.00 0.00 1/110 5"} {
		require.NoError(t, os.WriteFile(filepath.Join(proc, "loadavg"), []byte(content), 0o600))
		_, err := blocked.LoadExcludes(proc, time.Minute)
		require.ErrorContains(t, err, strconv.Quote(content))
	}
	_, err := blocked.LoadExcludes(t.TempDir(), time.Minute)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = blocked.LoadExcludes("/proc", time.Minute)
	require.NoError(t, err)
}
