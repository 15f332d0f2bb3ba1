package mounts_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

const smallTable = `20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:30 / /srv rw - nfs4 nas:/srv rw,addr=192.0.2.1
22 20 0:31 / /mnt/b rw - btrfs /dev/sdb1 rw
`

// fixtureProc is a procfs of ordinary files, with the mount table of process 1.
func fixtureProc(t testing.TB, table string) (proc, file string) {
	t.Helper()
	proc = t.TempDir()
	file = filepath.Join(proc, "1", "mountinfo")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(table), 0o600))
	return proc, file
}

const patience = 200 * time.Millisecond

// busy is how much longer something may take on a busy machine. The reader that hangs has less.
const busy = 4 * time.Second

// hangable is a watcher of a table on a FUSE file system, whose reader can hang.
func hangable(t *testing.T) (*mounts.Watcher, *prober.Prober, *faultfs.FS) {
	t.Helper()
	faultfs.Require(t)
	proc := t.TempDir()
	dir := filepath.Join(proc, "1")
	require.NoError(t, os.Mkdir(dir, 0o755))
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	fs := faultfs.NewWith(t, dir, faultfs.Options{Name: "mountinfo", Size: len(smallTable)})
	// Not os.OpenFile: Go's poller would ask the daemon, which waits for the poller.
	fd, err := unix.Open(filepath.Join(dir, "mountinfo"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	_, err = unix.Write(fd, []byte(smallTable))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	w := mounts.NewWatcher(mounts.WatcherOptions{Prober: p, Proc: proc, PID: "1", Patience: patience})
	t.Cleanup(func() { _ = w.Close() }) // which a dead daemon makes fail
	require.Len(t, recovers(t, w).Mounts, 3)
	return w, p, fs
}

// helperIn is the helper process that a hindrance names.
func helperIn(t *testing.T, hindrance error) int {
	t.Helper()
	match := regexp.MustCompile(`helper process ([0-9]+)`).FindStringSubmatch(fmt.Sprint(hindrance))
	require.NotNil(t, match, "%v", hindrance)
	pid, err := strconv.Atoi(match[1])
	require.NoError(t, err)
	return pid
}

// view is that of a round of its own.
func view(w *mounts.Watcher) mounts.View { return w.View(lastRound.Add(1)) }

// recovers waits for the table of now.
func recovers(t *testing.T, w *mounts.Watcher) *mounts.Snapshot {
	t.Helper()
	var last mounts.View
	require.Eventually(t, func() bool {
		last = view(w)
		return last.Hindrance == nil
	}, 20*time.Second, 10*time.Millisecond, "%v", last.Hindrance)
	assert.Zero(t, last.Age)
	return last.Snapshot
}

func TestWatcher_AReaderThatHangs(t *testing.T) {
	w, p, fs := hangable(t)
	before := recovers(t, w)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	forked := p.Stats().Forked

	began := time.Now()
	first := view(w)
	took := time.Since(began)
	assert.GreaterOrEqual(t, took, patience)
	assert.Less(t, took, patience+busy)
	require.Error(t, first.Hindrance)
	assert.Same(t, before, first.Snapshot, "it goes on with what it knew")
	assert.Positive(t, first.Age)
	helper := helperIn(t, first.Hindrance)
	assert.DirExists(t, filepath.Join("/proc", strconv.Itoa(helper)))
	assert.ErrorContains(t, first.Hindrance, "/mnt/b (btrfs on /dev/sdb1) does not answer")

	age, shortest := first.Age, took
	for range 5 {
		began = time.Now()
		later := view(w)
		shortest = min(shortest, time.Since(began))
		assert.Equal(t, helper, helperIn(t, later.Hindrance))
		assert.Same(t, before, later.Snapshot)
		assert.Greater(t, later.Age, age)
		age = later.Age
	}
	assert.Less(t, shortest, patience, "it is not waited for again")
	assert.Equal(t, forked+1, p.Stats().Forked, "one helper")

	fs.Heal()
	assert.Same(t, before, recovers(t, w), "it is as it was")
	assert.Equal(t, forked+1, p.Stats().Forked, "the reader that hung has brought it")
}

// The Go runtime interrupts threads by signals.
func TestWatcher_ASignalIsNoChange(t *testing.T) {
	proc, _ := fixtureProc(t, smallTable)
	w, p := newWatcherOf(t, proc, "1")
	recovers(t, w)
	forked := p.Stats().Forked

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, ended := unix.Gettid(), make(chan struct{})
	var looked atomic.Bool
	go func() {
		defer close(ended)
		for !looked.Load() {
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
		}
	}()
	for range 20_000 {
		view(w)
	}
	looked.Store(true)
	<-ended
	assert.Equal(t, forked, p.Stats().Forked)
}

// Who gathers once has the table though it comes late, as on a busy host.
func TestWatcher_AwaitsATableThatComesLate(t *testing.T) {
	w, _, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	answers := time.AfterFunc(3*patience, fs.Heal)
	defer answers.Stop()
	began := time.Now()
	w.Await(time.Minute)
	assert.GreaterOrEqual(t, time.Since(began), 2*patience)
	assert.NoError(t, view(w).Hindrance)
}

func TestWatcher_InvalidateWhileAReaderHangs(t *testing.T) {
	w, p, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	require.Error(t, view(w).Hindrance)
	w.Invalidate()
	forked := p.Stats().Forked
	fs.Heal()
	recovers(t, w)
	assert.Equal(t, forked+1, p.Stats().Forked, "what the reader has brought may be older")
}

// After its timeout the reader is left where it is.
func TestWatcher_AReaderThatIsStuck(t *testing.T) {
	w, p, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	helper := helperIn(t, view(w).Hindrance)
	require.Eventually(t, func() bool { return view(w).Age > 4*time.Second && p.Stats().Asleep > 0 }, 30*time.Second, 50*time.Millisecond)
	forked := p.Stats().Forked
	shortest := busy
	for range 5 {
		began := time.Now()
		v := view(w)
		shortest = min(shortest, time.Since(began))
		assert.Equal(t, helper, helperIn(t, v.Hindrance))
		assert.Greater(t, v.Age, 4*time.Second)
		assert.NotNil(t, v.Snapshot)
	}
	assert.Less(t, shortest, patience)
	_, err := w.ReadNFSStats()
	require.Error(t, err)
	_, err = w.ReadOther("self")
	require.Error(t, err)
	assert.Equal(t, forked, p.Stats().Forked, "nobody else holds the kernel's lock meanwhile")

	fs.Heal()
	recovers(t, w)
	require.Eventually(t, func() bool { return p.Stats().Asleep == 0 }, 20*time.Second, 10*time.Millisecond)
}

func TestWatcher_ADaemonThatDies(t *testing.T) {
	w, _, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	require.Error(t, view(w).Hindrance)
	fs.Abort()
	require.Eventually(t, func() bool { return strings.Contains(fmt.Sprint(view(w).Hindrance), "not connected") },
		20*time.Second, 10*time.Millisecond)
	v := view(w)
	assert.Len(t, v.Mounts, 3)
	assert.Positive(t, v.Age)
}

func TestWatcher_AReaderThatIsKilled(t *testing.T) {
	w, _, fs := hangable(t)
	fs.Delay(time.Minute, faultfs.Read) // SIGKILL ends it
	for range 3 {
		w.Invalidate()
		helper := helperIn(t, view(w).Hindrance)
		require.NoError(t, unix.Kill(helper, unix.SIGKILL))
		var v mounts.View
		require.Eventually(t, func() bool { v = view(w); return strings.Contains(fmt.Sprint(v.Hindrance), "died") },
			20*time.Second, time.Millisecond, "%v", v.Hindrance)
		assert.Len(t, v.Mounts, 3)
		assert.Positive(t, v.Age)
	}
	fs.Heal()
	recovers(t, w)
}

func TestWatcher_AReaderThatIsStopped(t *testing.T) {
	w, p, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	forked := p.Stats().Forked
	helper := helperIn(t, view(w).Hindrance)
	require.NoError(t, unix.Kill(helper, unix.SIGSTOP))
	fs.Heal()
	for range 10 {
		assert.Equal(t, helper, helperIn(t, view(w).Hindrance))
	}
	require.NoError(t, unix.Kill(helper, unix.SIGCONT))
	recovers(t, w)
	assert.Equal(t, forked+1, p.Stats().Forked)
}

func TestWatcher_OneViewPerRound(t *testing.T) {
	w, p := newWatcherOf(t, "/proc", "self")
	for round := range uint64(3) {
		w.Invalidate()
		before := p.Stats().Forked
		views := make([]mounts.View, 30)
		var all sync.WaitGroup
		for i := range views {
			all.Go(func() { views[i] = w.View(1000 + round) })
		}
		all.Wait()
		for _, v := range views {
			assert.Equal(t, views[0], v)
			assert.Same(t, views[0].Snapshot, v.Snapshot)
		}
		assert.Equal(t, before+1, p.Stats().Forked)
	}
}

// Whoever asks in a round whose view is under way waits for it, and not longer than it.
func TestWatcher_OneViewPerRoundWhileAReaderHangs(t *testing.T) {
	w, p, fs := hangable(t)
	fs.Silence(faultfs.Read)
	w.Invalidate()
	forked := p.Stats().Forked
	round := lastRound.Add(1)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			began := time.Now()
			assert.Error(t, w.View(round).Hindrance)
			assert.Less(t, time.Since(began), patience+busy)
		})
	}
	all.Wait()
	assert.Equal(t, forked+1, p.Stats().Forked)
}

func TestWatcher_ATableThatMakesNoSense(t *testing.T) {
	proc, file := fixtureProc(t, "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\x00\xff nonsense\n21 20 0:5 / /x rw - tmpfs tmpfs rw\n")
	w, _ := newWatcherOf(t, proc, "1")
	v := view(w)
	require.NoError(t, v.Hindrance)
	require.Error(t, v.Err)
	assert.Equal(t, 1, v.Malformed)
	assert.Len(t, v.Mounts, 2, "the others")
	again := view(w)
	assert.Same(t, v.Snapshot, again.Snapshot)
	assert.Equal(t, v.Err, again.Err)

	for _, content := range []string{strings.Repeat("\x00", 100_000), "\n\n\n", strings.Repeat("x ", 50_000)} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		w.Invalidate()
		v = view(w)
		require.NoError(t, v.Hindrance)
		assert.Empty(t, v.Mounts)
		assert.Error(t, v.Err)
	}
	require.NoError(t, os.WriteFile(file, []byte(smallTable), 0o600))
	w.Invalidate()
	assert.Len(t, look(t, w).Mounts, 3)
}

func TestWatcher_ATableThatCannotBeOpened(t *testing.T) {
	proc := t.TempDir()
	w, _ := newWatcherOf(t, proc, "1")
	for range 2 {
		v := view(w)
		require.ErrorIs(t, v.Hindrance, os.ErrNotExist)
		require.ErrorContains(t, v.Hindrance, filepath.Join(proc, "1/mountinfo"))
		assert.Nil(t, v.Snapshot)
	}
	require.NoError(t, os.Mkdir(filepath.Join(proc, "1"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "1/mountinfo"), []byte(smallTable), 0o600))
	assert.Len(t, look(t, w).Mounts, 3)
}

func TestWatcher_ATableThatCannotBeRead(t *testing.T) {
	proc := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(proc, "1/mountinfo"), 0o755))
	w, _ := newWatcherOf(t, proc, "1")
	for range 2 {
		v := view(w)
		require.ErrorIs(t, v.Hindrance, unix.EISDIR)
		assert.Nil(t, v.Snapshot)
	}
}

func TestWatcher_ATableThatVanishes(t *testing.T) {
	proc, file := fixtureProc(t, smallTable)
	w, _ := newWatcherOf(t, proc, "1")
	before := look(t, w)
	require.NoError(t, os.Remove(file))
	assert.Same(t, before, look(t, w), "nobody has said that it changed")
	w.Invalidate()
	var age time.Duration
	for range 2 {
		v := view(w)
		require.ErrorIs(t, v.Hindrance, os.ErrNotExist)
		assert.Same(t, before, v.Snapshot)
		assert.Greater(t, v.Age, age)
		age = v.Age
	}
	require.NoError(t, os.WriteFile(file, []byte(smallTable), 0o600))
	assert.Same(t, before, recovers(t, w))
}

func TestWatcher_WithoutHelpers(t *testing.T) {
	w, p := newWatcherOf(t, "/proc", "self")
	before := look(t, w)
	p.Close()
	w.Invalidate()
	v := w.View(lastRound.Add(1))
	assert.Error(t, v.Hindrance)
	assert.Same(t, before, v.Snapshot)
}

func TestWatcher_ReadOther(t *testing.T) {
	w := newWatcher(t)
	own := look(t, w)
	other, err := w.ReadOther(strconv.Itoa(os.Getpid()))
	require.NoError(t, err)
	require.NoError(t, other.Err)
	assert.Len(t, other.Mounts, len(own.Mounts))
	_, err = w.ReadOther("4194304")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestWatcher_ALargeTable(t *testing.T) {
	var table strings.Builder
	table.WriteString("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	for i := range 4999 {
		fmt.Fprintf(&table, "%d 20 0:%d / /srv/%s/%d rw,nosuid,nodev,relatime shared:%d - nfs4 nas.example.net:/export/%d rw,vers=4.2,addr=192.0.2.1\n",
			100+i, 100+i, strings.Repeat("d", 100), i, i, i)
	}
	require.Greater(t, table.Len(), 1_100_000)
	proc, _ := fixtureProc(t, table.String())
	w, _ := newWatcherOf(t, proc, "1")
	s := look(t, w)
	assert.Len(t, s.Mounts, 5000)
	last := &s.Mounts[4999]
	assert.Same(t, last, s.ByID(100+4998))
	assert.Same(t, last, s.At(last.Mountpoint))
}

// Libmount notes a mount after it was made: the table is there before.
func TestWatcher_TellsWhatLibmountNotesLater(t *testing.T) {
	const table = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n" +
		"30 20 0:40 / /nas rw - nfs4 nas:/ rw,addr=192.0.2.1\n31 30 0:41 / /nas/home rw - nfs4 nas:/home rw,addr=192.0.2.1\n"
	proc, file := fixtureProc(t, table)
	utab := filepath.Join(proc, "utab")
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	w := mounts.NewWatcher(mounts.WatcherOptions{Prober: p, Proc: proc, PID: "1", Utab: utab, Patience: 10 * time.Second})
	t.Cleanup(func() { _ = w.Close() })
	first := look(t, w)
	assert.True(t, first.At("/nas/home").Submount)
	require.NoError(t, os.WriteFile(utab, []byte("SRC=nas:/home TARGET=/nas/home ROOT=/ ATTRS=addr=192.0.2.1\n"), 0o600))
	second := look(t, w)
	assert.False(t, second.At("/nas/home").Submount || second.At("/nas/home").OnDemand)
	forked := p.Stats().Forked
	assert.Same(t, second, look(t, w))
	assert.Equal(t, forked, p.Stats().Forked, "nothing is read that has not changed")
	require.NoError(t, os.WriteFile(file, []byte(smallTable), 0o600))
	w.Invalidate()
	look(t, w)
	look(t, w)
	assert.Equal(t, forked+1, p.Stats().Forked, "nothing is read that says nothing")
}
