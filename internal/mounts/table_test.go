package mounts_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
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

func TestMain(m *testing.M) { faultfs.Main(m) }

// newWatcher makes a watcher of this process's table, with a prober of its own.
func newWatcher(t testing.TB) *mounts.Watcher {
	t.Helper()
	w, _ := newWatcherOf(t, "/proc", "self")
	return w
}

func newWatcherOf(t testing.TB, proc, process string) (*mounts.Watcher, *prober.Prober) {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	w := mounts.NewWatcher(mounts.WatcherOptions{Prober: p, Proc: proc, PID: process, Patience: 10 * time.Second})
	t.Cleanup(func() { assert.NoError(t, w.Close()) })
	return w, p
}

var lastRound atomic.Uint64

// look is the watcher's view in a round of its own, which must be the kernel's.
func look(t testing.TB, w *mounts.Watcher) *mounts.Snapshot {
	t.Helper()
	view := w.View(lastRound.Add(1))
	require.NoError(t, view.Hindrance)
	require.NotNil(t, view.Snapshot)
	require.NoError(t, view.Err)
	return view.Snapshot
}

// mount mounts for the time of the test, and makes the directory.
func mount(t *testing.T, source, dir, fsType string, flags uintptr) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount(source, dir, fsType, flags, ""), "mounting %s on %s", fsType, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func find(all []mounts.Mount, point string) *mounts.Mount {
	for i := range all {
		if all[i].Mountpoint == point && !all[i].Hidden {
			return &all[i]
		}
	}
	return nil
}

func TestWatcher_TheKernelsTable(t *testing.T) {
	all := look(t, newWatcher(t)).Mounts
	require.NotNil(t, find(all, "/"))
	require.NotNil(t, find(all, "/proc"))
	assert.Equal(t, "proc", find(all, "/proc").FSType)

	var st unix.Stat_t
	require.NoError(t, unix.Stat("/", &st))
	assert.Equal(t, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), find(all, "/").Superblock())
}

func TestWatcher_ReadsOnlyAfterAChange(t *testing.T) {
	faultfs.Require(t)
	dir := filepath.Join(t.TempDir(), "a b")
	w, p := newWatcherOf(t, "/proc", "self")
	before := look(t, w)
	reads := p.Stats().Forked

	same := func(want *mounts.Snapshot) {
		t.Helper()
		for range 3 {
			assert.Same(t, want, look(t, w), "nothing happened")
		}
		assert.Equal(t, reads, p.Stats().Forked, "and nothing is read")
	}
	next := func() *mounts.Snapshot {
		t.Helper()
		s := look(t, w)
		reads++
		assert.Equal(t, reads, p.Stats().Forked, "one reading after each change")
		return s
	}
	same(before)

	mount(t, "probe", dir, "tmpfs", unix.MS_NOSUID)
	s := next()
	assert.Len(t, s.Mounts, len(before.Mounts)+1)
	m := find(s.Mounts, dir)
	require.NotNil(t, m)
	assert.Equal(t, "probe", m.Source)
	assert.True(t, m.HasOption("nosuid"))
	assert.False(t, m.ReadOnly())
	assert.Same(t, m, s.At(dir))
	assert.Same(t, m, s.ByID(m.ID))
	assert.Equal(t, []*mounts.Mount{m}, s.ByDevice(m.Major, m.Minor))
	assert.Same(t, m, s.Holding(dir+"/x/y"))
	assert.Equal(t, s.Holding(filepath.Dir(dir)), s.Above(m))
	same(s)

	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	s = next()
	assert.True(t, find(s.Mounts, dir).ReadOnly(), "a remount counts")
	same(s)

	other := t.TempDir()
	mount(t, "came and went", other, "tmpfs", 0)
	require.NoError(t, unix.Unmount(other, 0))
	assert.Same(t, s, next(), "it is as it was")
	same(s)

	require.NoError(t, unix.Unmount(dir, 0))
	s = next()
	assert.Nil(t, find(s.Mounts, dir))
	assert.Len(t, s.Mounts, len(before.Mounts))
	same(s)
}

func TestMount_OfAReadOnlySuperblock(t *testing.T) {
	faultfs.Require(t)
	dir := t.TempDir()
	mount(t, "tmpfs", filepath.Join(dir, "a"), "tmpfs", 0)
	mount(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"), "", unix.MS_BIND)
	// The mount is read-only, then the superblock below both.
	require.NoError(t, unix.Mount("", filepath.Join(dir, "b"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	w := newWatcher(t)
	all := look(t, w).Mounts
	a, b := find(all, filepath.Join(dir, "a")), find(all, filepath.Join(dir, "b"))
	assert.Equal(t, a.Superblock(), b.Superblock())
	assert.False(t, a.ReadOnly())
	assert.True(t, b.ReadOnly())

	var attr unix.Statfs_t
	require.NoError(t, unix.Mount("", filepath.Join(dir, "a"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	require.NoError(t, unix.Statfs(filepath.Join(dir, "a"), &attr))
	all = look(t, w).Mounts
	assert.Equal(t, attr.Flags&unix.ST_RDONLY != 0, find(all, filepath.Join(dir, "a")).ReadOnly())
}

// sameAsTheKernel compares Hidden with what a look-up of each path below dir
// finds, and returns how many are hidden.
func sameAsTheKernel(t *testing.T, table []mounts.Mount, dir string) (hidden int) {
	t.Helper()
	for i := range table {
		m := &table[i]
		if dir != "/" && m.Mountpoint != dir && !strings.HasPrefix(m.Mountpoint, dir+"/") {
			continue
		}
		var stx unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, m.Mountpoint, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &stx)
		if err == nil && stx.Mask&unix.STATX_MNT_ID == 0 {
			t.Skip("a kernel before 5.8 does not tell which mount a path leads to")
		}
		if m.Hidden {
			hidden++
		}
		if visible := err == nil && int(stx.Mnt_id) == m.ID; m.Hidden == visible {
			var listing strings.Builder
			for _, m := range table {
				fmt.Fprintf(&listing, "%d %d %s hidden=%t\n", m.ID, m.Parent, m.Mountpoint, m.Hidden)
			}
			t.Errorf("mount %d at %s: hidden is %t, but the path leads to mount %d; the table is\n%s", m.ID, m.Mountpoint, m.Hidden, stx.Mnt_id, &listing)
			return hidden
		}
	}
	return hidden
}

func TestSnapshot_HiddenAsTheKernelSees(t *testing.T) {
	faultfs.Require(t)
	random := rand.New(rand.NewPCG(3, 4))
	paths := []string{"a", "a/b", "a/b/c", "a/d", "e", "e/f", "."}
	hidden := 0
	for range 30 {
		base := t.TempDir()
		mount(t, "base", base, "tmpfs", 0)
		dir := filepath.Join(base, "dir")
		var handles []int // directories as they were found earlier, maybe covered now
		w := newWatcher(t)
		for range 12 {
			target := filepath.Join(dir, paths[random.IntN(len(paths))])
			if len(handles) > 0 && random.IntN(3) == 0 {
				target = fmt.Sprintf("/proc/self/fd/%d", handles[random.IntN(len(handles))])
			} else {
				require.NoError(t, os.MkdirAll(target, 0o755))
				fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
				require.NoError(t, err)
				handles = append(handles, fd)
			}
			switch random.IntN(6) {
			case 0:
				// A child that is busy, or no mount: both are fine.
				_ = unix.Unmount(target, 0)
			case 1:
				require.NoError(t, unix.Mount(filepath.Dir(dir), target, "", unix.MS_BIND|unix.MS_REC, ""))
			default:
				require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, ""))
			}
			all := look(t, w).Mounts
			hidden += sameAsTheKernel(t, all, dir)
		}
		for _, fd := range handles {
			require.NoError(t, unix.Close(fd))
		}
	}
	assert.Greater(t, hidden, 100, "the random mounts hide one another")
}

// onItsOwn runs f on a thread that has a root directory of its own. Nothing else runs on the
// thread afterward. It does not end, since a fork server that it has started would end with it.
func onItsOwn(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// This one is what /proc/self shows.
			defer close(done)
			defer runtime.UnlockOSThread()
			onItsOwn(t, f)
			return
		}
		func() {
			defer close(done)
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				t.Errorf("unshare: %v", err)
				return
			}
			f()
		}()
		select {}
	}()
	<-done
}

// readOwnTable reads the calling thread's table, whose root directory counts at
// the time of opening. proc is a descriptor of the directory.
func readOwnTable(t *testing.T, proc int) []mounts.Mount {
	t.Helper()
	fd, err := unix.Openat(proc, "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if !assert.NoError(t, err) {
		return nil
	}
	file := os.NewFile(uintptr(fd), "mountinfo")
	defer file.Close()
	content, err := io.ReadAll(file)
	assert.NoError(t, err)
	table := mounts.Parse(content)
	assert.NoError(t, table.Err)
	return table.Mounts
}

func TestSnapshot_AMountOnTheRootDirectoryIsHidden(t *testing.T) {
	faultfs.Require(t)
	onItsOwn(t, func() {
		proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
		if !assert.NoError(t, err) {
			return
		}
		defer unix.Close(proc)
		assert.NoError(t, unix.Mount("over", "/", "tmpfs", 0, ""))
		all := readOwnTable(t, proc)
		sameAsTheKernel(t, all, "/")
		if assert.NotNil(t, find(all, "/")) {
			assert.NotEqual(t, "over", find(all, "/").Source)
		}
	})
}

func TestSnapshot_MountsInAChroot(t *testing.T) {
	faultfs.Require(t)
	base := t.TempDir()
	onItsOwn(t, func() {
		proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
		if !assert.NoError(t, err) {
			return
		}
		defer unix.Close(proc)
		jail := filepath.Join(base, "jail")
		for _, dir := range []string{"a/b", "a/b", "c", "a", "a/b", "c/d"} {
			assert.NoError(t, os.MkdirAll(filepath.Join(jail, dir), 0o755))
			assert.NoError(t, unix.Mount("jailed", filepath.Join(jail, dir), "tmpfs", 0, ""))
		}
		assert.NoError(t, unix.Chroot(jail))
		all := readOwnTable(t, proc)
		assert.Len(t, all, 6, "the jail itself is no mount")
		sameAsTheKernel(t, all, "/")
	})
}

func TestSnapshot_WhatAutofsHasMountedIsOnDemand(t *testing.T) {
	all := parse(t, `20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:40 / /home rw - autofs auto.home rw
31 30 0:41 / /home/ann rw - nfs4 nas:/ann rw
32 31 0:42 / /home/ann/scratch rw - tmpfs tmpfs rw
33 20 0:43 / /srv rw - nfs4 nas:/srv rw
34 20 0:40 / /lazy rw - autofs systemd-1 rw,fd=58,timeout=0,direct
35 34 0:46 / /lazy rw - nfs4 nas:/lazy rw
36 20 0:40 / /idle rw - autofs systemd-1 rw,fd=58,timeout=600,direct
37 36 0:47 / /idle rw - nfs4 nas:/idle rw
40 41 0:44 / /ring/a rw - tmpfs tmpfs rw
41 40 0:45 / /ring/b rw - tmpfs tmpfs rw
`)
	for _, m := range all {
		assert.Equal(t, m.ID == 31 || m.ID == 32 || m.ID == 37, m.OnDemand, m.Mountpoint)
	}
}

func TestMount_WhatItShows(t *testing.T) {
	all := parse(t, "31 20 0:41 / /a rw - ext4 /dev/sda1 rw\n32 20 0:42 /sub /b rw - btrfs /dev/sdb1 rw\n")
	ext4, btrfs := &all[0], &all[1]
	for want, st := range map[bool][]unix.Statx_t{
		true:  {{Dev_minor: 41}, {Mask: unix.STATX_MNT_ID, Mnt_id: 31, Dev_minor: 99}, {Mask: unix.STATX_MNT_ID, Mnt_id: 77, Dev_minor: 41}},
		false: {{Dev_minor: 42}, {Dev_major: 1, Dev_minor: 41}, {Mask: unix.STATX_MNT_ID, Mnt_id: 77, Dev_minor: 99}},
	} {
		for _, s := range st {
			assert.Equal(t, want, ext4.Shows(&s), "%+v", s)
		}
	}
	assert.True(t, btrfs.Shows(&unix.Statx_t{Dev_minor: 99}), "a subvolume")
	const ofBtrfs, ofExt4, ofBcachefs = 0x9123683e, 0xef53, 0xca451a4e // statfs(2)
	assert.True(t, btrfs.ShowsType(&unix.Statfs_t{Type: ofBtrfs}))
	assert.False(t, btrfs.ShowsType(&unix.Statfs_t{Type: ofExt4}), "another file system at the path")
	bcachefs := &parse(t, "33 20 0:43 / /c rw - bcachefs /dev/sdc1:/dev/sdd1 rw\n")[0]
	assert.True(t, bcachefs.ShowsType(&unix.Statfs_t{Type: ofBcachefs}))
	assert.False(t, bcachefs.ShowsType(&unix.Statfs_t{Type: ofBtrfs}))
}
