package nfslock

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func TestProbe_AHealthyFileSystem(t *testing.T) {
	for _, fstype := range []string{"tmpfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) {
			var dir string
			if fstype == "tmpfs" {
				dir = tmpfs(t, "")
			} else {
				dir = loopfs.New(t, fstype, loopfs.DefaultSize, "").Dir
				putCanary(t, dir)
			}
			n, log := newInput(t, on(dir))
			for well, began := 0, time.Now(); well < 2; { // a busy host may be late at first, and then look for why
				require.Less(t, time.Since(began), 30*time.Second)
				if verdict(t, gather(t, n, dir)) == "ok ok" {
					well++
				} else {
					well = 0
				}
			}
			least := int64(math.MaxInt64) // helpers of a gather: now and then another one reads the table
			for range 3 {
				forked := n.host.Prober.Stats().Forked
				m := gather(t, n, dir)
				least = min(least, n.host.Prober.Stats().Forked-forked)
				assert.Equal(t, "ok ok", verdict(t, m))
				for _, name := range []string{"fstatfs_seconds", "open_seconds", "getlk_seconds", "setlk_seconds", "unlock_seconds", "close_seconds"} {
					assert.Positive(t, field(t, m, name), name)
				}
				assert.Equal(t, false, field(t, m, "flock"), "there is no file of this host's own")
				assert.Equal(t, false, field(t, m, "read_lock"))
				assert.Equal(t, 0.0, field(t, m, "fault_seconds"))
			}
			assert.EqualValues(t, 1, least, "one helper per gather")
			assert.Empty(t, log.About("W!"))

			// With a file of its own, flock is tried as well.
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".nfslock-probe."+n.hostname), nil, 0o600))
			m := gather(t, n, dir)
			assert.Equal(t, "ok ok", verdict(t, m))
			assert.Equal(t, true, field(t, m, "flock"))
			assert.Positive(t, field(t, m, "flock_ex_seconds"))
			assert.Positive(t, field(t, m, "flock_sh_seconds"))
		})
	}
}

// hold takes a lock of the range, as another process.
func hold(t testing.TB, file string, kind int16, start, length int64) (release func()) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	require.NoError(t, err)
	lock := unix.Flock_t{Type: kind, Start: start, Len: length}
	require.NoError(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
	release = func() { f.Close() }
	t.Cleanup(release)
	return release
}

func TestProbe_ALockThatIsHeldElsewhere(t *testing.T) {
	dir := tmpfs(t, "")
	canary := filepath.Join(dir, ".nfslock-probe")
	n, log := newInput(t, on(dir))
	assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))
	for _, kind := range []int16{unix.F_WRLCK, unix.F_RDLCK} {
		release := hold(t, canary, kind, 0, 0)
		m := at(collect.Gather(t, n), dir)
		assert.Equal(t, "error held_elsewhere", verdict(t, m))
		assert.Equal(t, "EAGAIN", text(t, m, "errno"))
		assert.Equal(t, "setlk", text(t, m, "failed_call"))
		assert.EqualValues(t, os.Getpid(), field(t, m, "holder_pid"))
		assert.Equal(t, false, field(t, m, "holder_remote"))
		assert.Equal(t, map[int16]string{unix.F_WRLCK: "write", unix.F_RDLCK: "read"}[kind], text(t, m, "holder_lock"))
		release()
		m = gather(t, n, dir)
		assert.Equal(t, "ok ok", verdict(t, m))
		assert.False(t, m.HasField("holder_pid"))
	}
	assert.Len(t, log.About("somebody else holds"), 2)
	assert.Len(t, log.About("locks work again"), 2)

	// Another host's range is not in the way.
	hold(t, canary, unix.F_WRLCK, n.rangeOf(n.targets[0])+1, 1<<40)
	assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))
}

// Each of a fleet's hosts locks a byte of its own: they never meet.
func TestProbe_AFleetOnOneCanary(t *testing.T) {
	dir := tmpfs(t, "")
	const hosts, rounds = 24, 20
	verdicts := make(chan string, hosts*rounds)
	for host := range hosts {
		n, _ := newInput(t, on(dir))
		n.hostHash = uint64(host+1) * 0x9e3779b97f4a7c15
		require.Eventually(t, func() bool { return at(collect.Gather(t, n), dir) != nil }, 30*time.Second, time.Millisecond, "the mount table may be late at first")
		go func() {
			for range rounds {
				m := &collect.Metrics{}
				if err := n.Gather(m); err != nil {
					verdicts <- err.Error()
					continue
				}
				if m := at(m, dir); m == nil {
					verdicts <- "no metric"
				} else {
					value, _ := m.GetField("diagnosis")
					verdicts <- fmt.Sprint(value)
				}
			}
		}()
	}
	for range hosts * rounds {
		assert.Equal(t, "ok", <-verdicts)
	}
}

// A host may have mounted an export twice, and lock its file through both.
func TestProbe_TheFileOfThisHostIsNoFaultWhenInUse(t *testing.T) {
	dir := tmpfs(t, "")
	own := filepath.Join(dir, ".nfslock-probe.")
	n, _ := newInput(t, on(dir))
	f, err := os.Create(own + n.hostname)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	m := gather(t, n, dir)
	assert.Equal(t, "ok ok", verdict(t, m))
	assert.Equal(t, false, field(t, m, "flock"))
	assert.Contains(t, text(t, m, "reason"), "in use")
	other := *n.targets[0]
	other.Unit = &mounts.Unit{ID: "0:9999"}
	other.Probed = n.targets[0].Probed
	assert.NotEqual(t, n.rangeOf(&other), n.rangeOf(n.targets[0]))
}

func TestRange_IsThisHostsOwn(t *testing.T) {
	dir := tmpfs(t, "")
	seen := make(map[int64]string)
	for _, id := range []string{"", "one\n", "two\n"} {
		n, _ := newInput(t, on(dir))
		withRoots(n, func(r *host.Roots) { r.Etc = t.TempDir() })
		if id != "" {
			require.NoError(t, os.WriteFile(filepath.Join(n.host.Etc, "machine-id"), []byte(id), 0o600))
		}
		collect.Gather(t, n)
		start := n.rangeOf(n.targets[0])
		assert.NotContains(t, seen, start)
		assert.Positive(t, start)
		assert.Positive(t, start+1)
		seen[start] = id
		n.findHost()
		assert.Equal(t, start, n.rangeOf(n.targets[0]), "it stays the same")
	}
}

// What is no file is recognized before anything is opened or locked: also what was
// put in the place of a canary that was good, or of the file for flock.
func TestCanary_ThatIsNone(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(path string) error
		reason string
	}{
		{"missing", func(string) error { return nil }, "there is no .nfslock-probe"},
		{"directory", func(p string) error { return os.Mkdir(p, 0o777) }, "is a directory"},
		{"FIFO", func(p string) error { return unix.Mkfifo(p, 0o666) }, "is a FIFO"},
		{"device", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, 1<<8|3) }, "is a device"},
		{"link", func(p string) error { return os.Symlink("/etc/hostname", p) }, "is a symbolic link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tmpfs(t, "")
			path := filepath.Join(dir, ".nfslock-probe")
			n, log := newInput(t, on(dir))
			assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))
			require.NoError(t, os.Remove(path))
			require.NoError(t, c.make(path))
			for range 2 { // replaced while it was trusted, and when looked at
				m := at(collect.Gather(t, n), dir)
				assert.Equal(t, "unchecked no_canary", verdict(t, m))
				assert.False(t, m.HasField("setlk_seconds"))
				assert.False(t, m.HasField("getlk_seconds"), "it was asked for locks")
			}
			assert.Contains(t, text(t, at(collect.Gather(t, n), dir), "reason"), c.reason)
			assert.Len(t, log.About("no lock is tried"), 1)
			require.NoError(t, os.RemoveAll(path))
			putCanary(t, dir)
			assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))

			require.NoError(t, c.make(path+"."+n.hostname))
			m := gather(t, n, dir)
			assert.Equal(t, "ok ok", verdict(t, m))
			assert.Equal(t, false, field(t, m, "flock"))
		})
	}
}

// The opening of a FIFO wakes who waits for it at the other end, and that of a device
// is its driver's business: neither happens.
func TestCanary_WhatReplacedItIsNotOpened(t *testing.T) {
	for _, name := range []string{".nfslock-probe", "own"} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t, "")
			n, _ := newInput(t, on(dir))
			path := filepath.Join(dir, ".nfslock-probe")
			if name == "own" {
				path += "." + n.hostname
				require.NoError(t, os.WriteFile(path, nil, 0o666))
			}
			assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))
			require.NoError(t, os.Remove(path))
			require.NoError(t, unix.Mkfifo(path, 0o666))
			watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			require.NoError(t, err)
			defer unix.Close(watch)
			_, err = unix.InotifyAddWatch(watch, path, unix.IN_OPEN)
			require.NoError(t, err)
			for range 2 {
				collect.Gather(t, n)
			}
			_, err = unix.Read(watch, make([]byte, 4096))
			assert.Equal(t, unix.EAGAIN, err, "it was opened")
		})
	}
}

func TestCanary_IsMadeOnlyWhereAskedFor(t *testing.T) {
	dir := tmpfs(t, "mode=0755,uid=4711,gid=4712")
	path := filepath.Join(dir, ".nfslock-probe")
	require.NoError(t, os.Remove(path))
	n, _ := newInput(t, on(dir))
	assert.Equal(t, "unchecked no_canary", verdict(t, at(collect.Gather(t, n), dir)))
	assert.NoFileExists(t, path)

	n, _ = newInput(t, func(n *NFSLock) {
		on(dir)(n)
		n.CreateCanary = true
	})
	for range 2 {
		m := gather(t, n, dir)
		assert.Equal(t, "ok ok", verdict(t, m))
		assert.Equal(t, true, field(t, m, "flock"))
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o666), info.Mode())
	assert.Zero(t, info.Size())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	assert.EqualValues(t, 4711, st.Uid, "it is the mount's owner's")
}

// Between the look and the making of the canary somebody links a file there whose
// mode must not be changed to one that all may write.
func TestCanary_MakingItTakesNobodysFile(t *testing.T) {
	dir := tmpfs(t, "mode=1777")
	canary, victim := filepath.Join(dir, ".nfslock-probe"), filepath.Join(dir, "victim")
	n, _ := newInput(t, func(n *NFSLock) {
		on(dir)(n)
		n.CreateCanary = true
	})
	collect.Gather(t, n)
	require.NoError(t, os.Remove(canary))
	require.NoError(t, os.WriteFile(victim, nil, 0o600))
	require.NoError(t, os.Link(victim, canary))
	made := n.targets[0]
	made.deadline, made.canary.create = time.Now().Add(5*time.Second), true // as after a look that found nothing
	r := n.host.Prober.Run(prober.Check{Key: "race", Plan: &n.newLockPlan(made).Plan})
	require.NotNil(t, r.Failed(), "%v", &r)
	assert.Equal(t, unix.EEXIST, r.Failed().Errno)
	info, err := os.Stat(victim)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestCanary_ThatCannotBeMade(t *testing.T) {
	full := tmpfs(t, "nr_inodes=2")
	require.NoError(t, os.Remove(filepath.Join(full, ".nfslock-probe")))
	require.NoError(t, os.WriteFile(filepath.Join(full, "other"), nil, 0o600))
	readOnly := tmpfs(t, "")
	require.NoError(t, os.Remove(filepath.Join(readOnly, ".nfslock-probe")))
	require.NoError(t, unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	n, _ := newInput(t, func(n *NFSLock) {
		on(full, readOnly)(n)
		n.CreateCanary = true
	})
	g := collect.Gather(t, n)
	assert.Equal(t, "unchecked no_canary", verdict(t, at(g, full)))
	assert.Equal(t, "creating .nfslock-probe: no space left on device", text(t, at(g, full), "reason"))
	assert.Equal(t, "unchecked no_canary", verdict(t, at(g, readOnly)))
	assert.Equal(t, "creating .nfslock-probe: read-only file system", text(t, at(g, readOnly), "reason"))
}

// A read lock takes the same way to the server.
func TestProbe_WhoMayNotWriteTakesAReadLock(t *testing.T) {
	readOnly := tmpfs(t, "")
	require.NoError(t, unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	unwritable := tmpfs(t, "mode=0755,uid=4711,gid=4712") // its owner has no right on root's canary
	require.NoError(t, os.Chmod(filepath.Join(unwritable, ".nfslock-probe"), 0o644))
	unreadable := tmpfs(t, "mode=0755,uid=4711,gid=4712")
	require.NoError(t, os.Chmod(filepath.Join(unreadable, ".nfslock-probe"), 0o600))
	others := tmpfs(t, "mode=0755,uid=4711,gid=4712")
	require.NoError(t, os.Chmod(filepath.Join(others, ".nfslock-probe"), 0o600))
	require.NoError(t, os.Chown(filepath.Join(others, ".nfslock-probe"), 4713, 4713))
	private := tmpfs(t, "mode=0700,uid=4711,gid=4712")
	n, log := newInput(t, on(readOnly, unwritable, unreadable, others, private))
	for range 2 {
		g := collect.Gather(t, n)
		for path, want := range map[string]bool{readOnly: true, unwritable: true, others: false, private: false} {
			assert.Equal(t, "ok ok", verdict(t, at(g, path)), path)
			assert.Equal(t, want, field(t, at(g, path), "read_lock"), path)
		}
		assert.Equal(t, "denied denied", verdict(t, at(g, unreadable)))
		assert.Equal(t, "EACCES", text(t, at(g, unreadable), "errno"))
	}
	assert.Len(t, log.About("W!"), 1, "said once")
}

func TestProbe_APathForAMount(t *testing.T) {
	dir := tmpfs(t, "")
	require.NoError(t, os.Remove(filepath.Join(dir, ".nfslock-probe")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "locks"), 0o755))
	putCanary(t, filepath.Join(dir, "locks"))
	change := func(n *NFSLock) {
		on(dir)(n)
		n.Override = []Override{{MountPoints: []string{dir}, Canary: "locks/.nfslock-probe"}}
	}
	n, _ := newInput(t, change)
	assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))

	// A link on the way could lead out of the mount.
	elsewhere := t.TempDir()
	putCanary(t, elsewhere)
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "locks")))
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(dir, "locks")))
	for range 2 {
		m := at(collect.Gather(t, n), dir)
		assert.Equal(t, "unchecked no_canary", verdict(t, m))
		assert.Contains(t, text(t, m, "reason"), "too many levels of symbolic links")
	}
	n, _ = newInput(t, change)
	assert.Equal(t, "unchecked no_canary", verdict(t, at(collect.Gather(t, n), dir)))
}

func TestProbe_AnUnmountedFileSystem(t *testing.T) {
	dir := tmpfs(t, "")
	n, _ := newInput(t, on(dir))
	assert.Equal(t, "ok ok", verdict(t, gather(t, n, dir)))
	require.NoError(t, unix.Unmount(dir, 0))
	assert.Nil(t, at(collect.Gather(t, n), dir))
}

func TestWaiters_ALockOfTheHostIsReportedWithItsWaiter(t *testing.T) {
	dir := tmpfs(t, "")
	file := filepath.Join(dir, "a user's file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	first, err := os.Open(file)
	require.NoError(t, err)
	defer first.Close()
	require.NoError(t, unix.Flock(int(first.Fd()), unix.LOCK_EX))
	n, _ := newInput(t, on(dir))
	assert.EqualValues(t, 1, field(t, at(collect.Gather(t, n), dir), "locks_held"))
	second, err := os.Open(file)
	require.NoError(t, err)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		_ = unix.Flock(int(second.Fd()), unix.LOCK_EX)
		second.Close()
	}()
	require.Eventually(t, func() bool {
		m := at(collect.Gather(t, n), dir)
		return field(t, m, "locks_waiting").(int64) == 1 && field(t, m, "waiter_seconds").(float64) > 0.05
	}, 30*time.Second, 10*time.Millisecond)
	m := at(collect.Gather(t, n), dir)
	assert.EqualValues(t, os.Getpid(), field(t, m, "waiter_pid"))
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	assert.Equal(t, string(comm), text(t, m, "waiter_comm")+"\n")
	require.NoError(t, unix.Flock(int(first.Fd()), unix.LOCK_UN))
	<-waited
	assert.False(t, at(collect.Gather(t, n), dir).HasField("waiter_pid"))
}

// Machines that were cloned have one name and one machine-id, but each boot has an id of its own.
func TestRange_IsAnotherForACloneOfTheHost(t *testing.T) {
	seen := make(map[uint64]bool)
	for _, parts := range [][]string{
		{"id", "web", "boot 1", "net:[1]"}, {"id", "web", "boot 2", "net:[1]"}, {"id", "web", "boot 1", "net:[2]"}, {"idweb", "", "boot 1", "net:[1]"},
	} {
		hash := hashOf(parts...)
		assert.NotContains(t, seen, hash, parts)
		seen[hash] = true
	}
}
