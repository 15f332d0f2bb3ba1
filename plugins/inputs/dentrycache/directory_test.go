package dentrycache

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func at(m *collect.Metrics, path string) telegraf.Metric {
	return m.Tagged("dentrycache_dir", "directory", path)
}

func text(t testing.TB, m telegraf.Metric, name string) string {
	t.Helper()
	require.NotNil(t, m)
	value, _ := m.GetField(name)
	s, _ := value.(string)
	return s
}

// walking counts children, too.
func walking(paths ...string) func(*DentryCache) {
	return func(d *DentryCache) {
		on(paths...)(d)
		d.CountChildren = true
	}
}

// needWalker skips the test where there is no BPF.
func needWalker(t testing.TB, d *DentryCache) {
	t.Helper()
	if d.walker == nil {
		t.Skipf("children can't be counted here: %s", d.walkerErr)
	}
}

// Nobody waits for the BPF programs but who looks once: the first gather has all else.
func TestDentryCache_TheFirstGatherIsNotHeldUp(t *testing.T) {
	d, _ := newInput(t, func(d *DentryCache) {
		walking("/")(d)
		d.Attribution = "auto"
	})
	d.host.Servers.AtOnce = false
	began := time.Now()
	acc := collect.Gather(t, d)
	if text(t, acc.Named("dentrycache_status")[0], "mode") != "starting" {
		assert.Greater(t, time.Since(began), d.startDelay(), "nothing but a busy machine may hold it up")
	}
	assert.Equal(t, "ok", text(t, at(acc, "/"), "result"))
	require.Eventually(t, func() bool {
		acc = collect.Gather(t, d)
		return text(t, acc.Named("dentrycache_status")[0], "mode") != "starting" && (d.walker == nil || at(acc, "/").HasField("children"))
	}, time.Minute, 100*time.Millisecond)
	needWalker(t, d)
}

// tmpfs mounts one.
func tmpfs(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// rescan lets the next Gather look for watches, once a search under way has ended:
// Gather waits for the first one only.
func (d *DentryCache) rescan() {
	d.await(func() bool { return !d.scanning })
	d.scanDue, d.watches = time.Time{}, nil
}

// history is what is reported of the past: whether it hangs and is at fault, and how
// many faults have ended.
func history(t testing.TB, m telegraf.Metric) (hangs, faulty bool, recoveries int64) {
	t.Helper()
	require.NotNil(t, m)
	hung, isThere := mustFloat(m, "hung_seconds")
	assert.True(t, isThere)
	fault, isThere := mustFloat(m, "fault_seconds")
	assert.True(t, isThere)
	assert.GreaterOrEqual(t, fault, hung)
	return hung > 0, fault > 0, number(m, "recoveries")
}

func misses(t testing.TB, dir string, count int) {
	t.Helper()
	for i := range count {
		_, err := os.Lstat(filepath.Join(dir, "missing"+strconv.Itoa(i)))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestDirectory_Ordinary(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	require.NoError(t, os.WriteFile(filepath.Join(fs.Dir, "file"), nil, 0o600))
	misses(t, fs.Dir, 1000)
	d, log := newInput(t, walking(fs.Dir))
	for range 2 {
		d.rescan()
		m := at(collect.Gather(t, d), fs.Dir)
		needWalker(t, d)
		assert.Equal(t, "ok", text(t, m, "result"))
		assert.Equal(t, map[string]string{"directory": fs.Dir, "device": filepath.Base(fs.Device), "fstype": "ext4"}, m.Tags())
		assert.EqualValues(t, 1000+1, number(m, "negative_children"), "and the one of the look-up probe")
		assert.GreaterOrEqual(t, number(m, "children"), int64(1002))
		for _, name := range []string{"lookup_missing_seconds", "lookup_cached_seconds", "walk_seconds"} {
			seconds, _ := mustFloat(m, name)
			assert.Positive(t, seconds, name)
		}
		stall, _ := mustFloat(m, "predicted_stall_seconds")
		assert.InDelta(t, float64(number(m, "children"))*90e-9, stall, 1e-9)
		assert.False(t, m.HasField("newest_names"))
		assert.False(t, m.HasField("inotify_add_watch_seconds"))
		assert.Equal(t, "file", d.directories[0].cachedName)
		if m.HasField("watched") {
			watched, _ := m.GetField("watched")
			assert.Equal(t, false, watched)
		}
	}
	assert.Empty(t, log.About("W!"))

	watchFD, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(watchFD)
	_, err = unix.InotifyAddWatch(watchFD, fs.Dir, unix.IN_MODIFY)
	require.NoError(t, err)
	// The name that was cached is removed, and another one found.
	require.NoError(t, os.Remove(filepath.Join(fs.Dir, "file")))
	d.rescan()
	m := at(collect.Gather(t, d), fs.Dir)
	assert.EqualValues(t, 1, number(m, "watches"))
	watched, _ := m.GetField("watched")
	assert.Equal(t, true, watched)
	assert.True(t, m.HasField("lookup_missing_seconds"))
	assert.True(t, at(collect.Gather(t, d), fs.Dir).HasField("lookup_cached_seconds"))
	assert.Equal(t, "lost+found", d.directories[0].cachedName)
}

func TestDirectory_SampleNames(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	_, err := os.Lstat(filepath.Join(fs.Dir, "secret\n\xff"))
	require.ErrorIs(t, err, os.ErrNotExist)
	d, _ := newInput(t, func(d *DentryCache) {
		walking(fs.Dir)(d)
		d.SampleNames, d.LookupProbe = true, false
	})
	m := at(collect.Gather(t, d), fs.Dir)
	needWalker(t, d)
	assert.Contains(t, text(t, m, "newest_names"), `secret\012\377`)
	assert.False(t, m.HasField("lookup_missing_seconds"))
}

func TestDirectory_TheCountIsCapped(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	misses(t, fs.Dir, 20_000)
	d, _ := newInput(t, func(d *DentryCache) {
		walking(fs.Dir)(d)
		d.MaxChildren = 8000
	})
	m := at(collect.Gather(t, d), fs.Dir)
	needWalker(t, d)
	assert.Equal(t, "max_children", text(t, m, "incomplete_reason"))
	complete, _ := m.GetField("complete")
	capped, _ := m.GetField("capped")
	assert.Equal(t, []any{false, true}, []any{complete, capped})
	assert.InDelta(t, 8000, number(m, "children"), 4096)
}

// The call that stalls is made only if it is asked for.
func TestDirectory_TheInotifyProbe(t *testing.T) {
	dir := t.TempDir()
	d, _ := newInput(t, func(d *DentryCache) {
		on(dir)(d)
		d.InotifyProbe = true
	})
	for range 2 {
		seconds, ok := mustFloat(at(collect.Gather(t, d), dir), "inotify_add_watch_seconds")
		assert.True(t, ok)
		assert.Positive(t, seconds)
	}
}

func TestDirectory_ThatCantBeLookedAt(t *testing.T) {
	root := t.TempDir()
	file, loop, missing, socket := filepath.Join(root, "file"), filepath.Join(root, "loop"), filepath.Join(root, "missing"), filepath.Join(root, "fifo")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink("loop", loop))
	require.NoError(t, unix.Mkfifo(socket, 0o600))
	link := filepath.Join(root, "link")
	require.NoError(t, os.Symlink(root, link))
	odd := filepath.Join(root, "odd\nname\xff")
	require.NoError(t, os.Mkdir(odd, 0o755))
	d, log := newInput(t, walking(file, loop, missing, socket, link, odd, filepath.Join(file, "below")))
	for range 3 {
		acc := collect.Gather(t, d)
		require.Empty(t, acc.Errors())
		for path, want := range map[string][]string{
			file: {"error", "ENOTDIR", "it is a file"}, loop: {"error", "ELOOP", ""}, missing: {"missing", "ENOENT", ""},
			socket: {"error", "ENOTDIR", "it is a FIFO"}, filepath.Join(file, "below"): {"error", "ENOTDIR", ""},
			link: {"ok", "", ""}, filepath.Join(root, `odd\012name\377`): {"ok", "", ""},
		} {
			m := at(acc, path)
			assert.Equal(t, want, []string{text(t, m, "result"), text(t, m, "errno"), text(t, m, "reason")}, path)
			assert.Equal(t, want[0] == "ok", m.HasField("lookup_missing_seconds"), path)
			assert.Equal(t, want[0] == "ok", m.HasField("last_ok_seconds_ago"), path)
			hangs, faulty, recoveries := history(t, m)
			assert.Equal(t, []any{false, want[0] != "ok", int64(0)}, []any{hangs, faulty, recoveries}, path)
		}
	}
	assert.Len(t, log.About("can't be looked at"), 5, "once each")
	require.NoError(t, os.Mkdir(missing, 0o755))
	for range 2 {
		m := at(collect.Gather(t, d), missing)
		assert.Equal(t, "ok", text(t, m, "result"))
		assert.True(t, m.HasField("last_ok_seconds_ago"))
		hangs, faulty, recoveries := history(t, m)
		assert.Equal(t, []any{false, false, int64(1)}, []any{hangs, faulty, recoveries})
	}
	assert.Len(t, log.About("can be looked at again"), 1)
}

// What fails in the directory is reported, by its name.
func TestDirectory_LookupsThatFail(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	d, log := newInput(t, on(fs.Dir))
	for errno, want := range map[unix.Errno][]string{
		unix.EIO:    {"error", "EIO", ""},
		unix.ESTALE: {"stale", "ESTALE", ""},
		unix.EACCES: {"ok", "", "this user may not look names up in it"},
	} {
		fs.Fail(errno, faultfs.Lookup)
		m := at(collect.Gather(t, d), fs.Dir)
		assert.Equal(t, want, []string{text(t, m, "result"), text(t, m, "errno"), text(t, m, "reason")})
		assert.False(t, m.HasField("lookup_missing_seconds"))
		fs.Heal()
		assert.Equal(t, "ok", text(t, at(collect.Gather(t, d), fs.Dir), "result"))
	}
	assert.Len(t, log.About("can't be looked at"), 2)
}

func TestDirectory_TmpfsIsSaidOnce(t *testing.T) {
	dir := tmpfs(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	misses(t, dir, 100)
	d, log := newInput(t, walking(dir))
	for range 3 {
		d.directoryAt(dir).walkDue = time.Time{}
		m := at(collect.Gather(t, d), dir)
		needWalker(t, d)
		assert.Equal(t, "ok", text(t, m, "result"))
		assert.EqualValues(t, 0, number(m, "negative_children"))
		assert.EqualValues(t, 1, number(m, "children"), "of files there are dentries, and a stall")
		assert.Equal(t, "tmpfs", m.Tags()["fstype"])
	}
	assert.Len(t, log.About("keeps no negative dentries"), 1)
}

func TestDirectory_Btrfs(t *testing.T) {
	fs := loopfs.New(t, "btrfs", 128<<20, "")
	dir := filepath.Join(fs.Dir, "dir")
	require.NoError(t, os.Mkdir(dir, 0o755))
	misses(t, dir, 100)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY)
	require.NoError(t, err)
	empty := filepath.Join(fs.Dir, "empty")
	require.NoError(t, os.Mkdir(empty, 0o755))
	d, log := newInput(t, walking(dir, empty))
	m := at(collect.Gather(t, d), dir)
	assert.Empty(t, log.About("keeps no negative dentries"))
	assert.Equal(t, map[string]string{"directory": dir, "device": filepath.Base(fs.Device), "fstype": "btrfs"}, m.Tags())
	assert.EqualValues(t, 1, number(m, "watches"), "the device is the superblock's, not that of stat")
	needWalker(t, d)
	assert.EqualValues(t, 101, number(m, "negative_children"))
}

// On btrfs stat has another device number than the superblock: what tells the mount is
// its own number, where the kernel has it.
func TestDirectory_TheMountIsFoundByItsNumber(t *testing.T) {
	all := mountTable(t)
	dir := &directory{path: "/srv/link", mount: all.Holding("/srv/link")}
	require.Equal(t, "/srv", dir.mount.Mountpoint)
	st := &unix.Statx_t{Dev_major: 0, Dev_minor: 99, Ino: 256, Mode: unix.S_IFDIR, Mnt_id: 24}
	dir.identify(st, all)
	assert.Equal(t, "/srv", dir.mount.Mountpoint, "before Linux 5.8")
	st.Mask = unix.STATX_MNT_ID
	dir.identify(st, all)
	assert.Equal(t, "/home", dir.mount.Mountpoint)
	assert.EqualValues(t, 256, dir.inode)
	st.Mnt_id = 9999
	dir.identify(st, all)
	assert.Equal(t, "/home", dir.mount.Mountpoint, "mounted since")
	assert.Equal(t, prober.Check{Key: "dentrycache /srv/link", Group: "btrfs /dev/vdb"}, dir.check())
}

// The tag device is the kernel's name, as in Telegraf's disk input.
func TestDirectory_TheDeviceOfALogicalVolume(t *testing.T) {
	dir, proc := t.TempDir(), t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	write(t, proc, "sys/fs/inode-nr", "1 1\n")
	write(t, proc, "1/mountinfo", "2000000001 1 254:1 / / rw - ext4 /dev/vda1 rw\n"+
		"2000000002 2000000001 253:3 / "+dir+" rw - xfs /dev/mapper/vg-data rw\n")
	sys := filepath.Join(proc, "none")
	require.NoError(t, os.MkdirAll(filepath.Join(sys, "dev/block"), 0o755))
	require.NoError(t, os.Symlink("../../devices/virtual/block/dm-3", filepath.Join(sys, "dev/block/253:3")))
	d, log := newInput(t, func(d *DentryCache) {
		files(proc)(d)
		on(dir, "/")(d)
	})
	acc := collect.Gather(t, d)
	assert.Equal(t, map[string]string{"directory": dir, "device": "dm-3", "fstype": "xfs"}, at(acc, dir).Tags())
	assert.Equal(t, map[string]string{"directory": "/", "device": "vda1", "fstype": "ext4"}, at(acc, "/").Tags())
	assert.Equal(t, location{dir + "/x", true, "dm-3", "xfs"},
		locate(d.mounts, &attribution.Place{Device: attribution.Device{Major: 253, Minor: 3}, Path: []string{"x"}}))
	assert.Empty(t, log.About("mount table"))
}

func TestDirectory_IsLookedAtWithoutAMountTable(t *testing.T) {
	dir, proc := t.TempDir(), t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	d, log := newInput(t, func(d *DentryCache) {
		files(proc)(d)
		on(dir)(d)
	})
	for range 2 {
		m := at(collect.Gather(t, d), dir)
		assert.Equal(t, "ok", text(t, m, "result"))
		assert.Equal(t, map[string]string{"directory": dir}, m.Tags())
	}
	assert.Len(t, log.About("there is no mount table"), 1)
}

func TestDirectory_Overlayfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	lower := loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir
	upper := loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir
	for _, name := range []string{"upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(upper, name), 0o755))
	}
	merged := t.TempDir()
	options := "lowerdir=" + lower + ",upperdir=" + upper + "/upper,workdir=" + upper + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Skipf("mounting an overlay: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	misses(t, merged, 100)
	d, _ := newInput(t, walking(merged, upper+"/upper", lower))
	acc := collect.Gather(t, d)
	m := at(acc, merged)
	assert.Equal(t, "ok", text(t, m, "result"))
	assert.Equal(t, "overlay", m.Tags()["fstype"])
	needWalker(t, d)
	assert.EqualValues(t, 101, number(m, "negative_children"))
	assert.GreaterOrEqual(t, number(at(acc, lower), "negative_children"), int64(100), "one more each in the layer below")
}

// One Gather never takes longer than the timeout and a margin, whatever hangs;
// the others don't wait; and it is said once.
func TestDirectory_ThatHangs(t *testing.T) {
	for name, silence := range map[string]func(*faultfs.FS){
		"all":     func(fs *faultfs.FS) { fs.Silence() },
		"lookup":  func(fs *faultfs.FS) { fs.Silence(faultfs.Lookup) },
		"getattr": func(fs *faultfs.FS) { fs.Silence(faultfs.Getattr) },
		"opendir": func(fs *faultfs.FS) { fs.Silence(faultfs.Opendir) },
		"readdir": func(fs *faultfs.FS) { fs.Silence(faultfs.Readdir) },
		"paused":  (*faultfs.FS).Pause,
	} {
		t.Run(name, func(t *testing.T) {
			faultfs.Require(t)
			fs := faultfs.New(t)
			healthy := t.TempDir()
			d, log := newInput(t, func(d *DentryCache) {
				on(fs.Dir, healthy)(d)
				d.CountChildren = true
				d.Timeout = config.Duration(timeout)
			})
			silence(fs)
			hung := false
			helpers := make(map[int64]bool)
			for range 4 {
				began := time.Now()
				acc := collect.Gather(t, d)
				assert.Less(t, time.Since(began), 5*timeout)
				assert.Equal(t, "ok", text(t, at(acc, healthy), "result"))
				if m := at(acc, fs.Dir); m != nil {
					hung = hung || text(t, m, "result") == "stuck" || text(t, m, "result") == "timeout"
					if hung {
						hangs, faulty, recoveries := history(t, m)
						assert.Equal(t, []any{true, true, int64(0)}, []any{hangs, faulty, recoveries})
						assert.False(t, m.HasField("children"))
						if text(t, m, "result") == "stuck" {
							helpers[number(m, "stuck_pid")] = true
						}
					}
				}
			}
			assert.Equal(t, name != "getattr", hung, "no getattr is needed")
			if hung {
				assert.LessOrEqual(t, len(log.About("can't be looked at")), 2, "timeout, and then stuck")
			}
			assert.LessOrEqual(t, len(helpers), 1, "one helper")
			fs.Heal()
			var healed telegraf.Metric
			require.Eventually(t, func() bool {
				healed = at(collect.Gather(t, d), fs.Dir)
				return text(t, healed, "result") == "ok"
			}, 30*time.Second, 50*time.Millisecond)
			hangs, faulty, recoveries := history(t, healed)
			assert.Equal(t, []any{false, false}, []any{hangs, faulty})
			assert.Equal(t, hung, recoveries == 1)
			if hung {
				assert.Len(t, log.About("can be looked at again"), 1)
			}
		})
	}
}

func TestDentryCache_Interrupt(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	d, _ := newInput(t, on(fs.Dir))
	collect.Gather(t, d)
	fs.Silence()
	acc, done := &collect.Metrics{}, make(chan error)
	began := time.Now()
	go func() { done <- d.Gather(acc) }()
	require.Eventually(t, func() bool { return fs.Unanswered() > 0 }, unhurried, 10*time.Millisecond)
	d.Interrupt()
	require.NoError(t, <-done)
	assert.Less(t, time.Since(began), unhurried)
	assert.Nil(t, at(acc, fs.Dir), "nothing is known yet")
	fs.Heal()
	require.Eventually(t, func() bool { return text(t, at(collect.Gather(t, d), fs.Dir), "result") == "ok" }, 30*time.Second, 50*time.Millisecond)
}

func TestChooseName_IsTheSameAlways(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	d, _ := newInput(t, walking(fs.Dir))
	var first int64
	for i := range 5 {
		d.directories[0].walkDue = time.Time{}
		m := at(collect.Gather(t, d), fs.Dir)
		needWalker(t, d)
		if i == 0 {
			first = number(m, "negative_children")
		}
		assert.Equal(t, first, number(m, "negative_children"))
	}
}

// entry is a struct linux_dirent64.
func entry(name string, kind byte) []byte {
	length := (19 + len(name) + 1 + 7) &^ 7
	e := make([]byte, length)
	e[16], e[17], e[18] = byte(length), byte(length>>8), kind
	copy(e[19:], name)
	return e
}

func join(entries ...[]byte) (all []byte) {
	for _, e := range entries {
		all = append(all, e...)
	}
	return all
}

func TestChooseName(t *testing.T) {
	none := func(string) bool { return false }
	dot, up := entry(".", unix.DT_DIR), entry("..", unix.DT_DIR)
	assert.Empty(t, chooseName(nil, none))
	assert.Empty(t, chooseName(join(dot, up), none))
	assert.Equal(t, "a", chooseName(join(dot, entry("a", unix.DT_DIR), up), none))
	assert.Equal(t, "l", chooseName(join(entry("a", unix.DT_DIR), entry("l", unix.DT_LNK), entry("m", unix.DT_LNK)), none))
	assert.Equal(t, "f", chooseName(join(entry("l", unix.DT_LNK), entry("f", unix.DT_REG)), none))
	assert.Empty(t, chooseName(entry("mnt", unix.DT_DIR), func(name string) bool { return name == "mnt" }))
	assert.Empty(t, chooseName(join(entry("fifo", unix.DT_FIFO), entry(missingName, unix.DT_REG)), none))
}

func FuzzChooseName(f *testing.F) {
	f.Add(join(entry(".", unix.DT_DIR), entry("name", unix.DT_REG)))
	f.Add(entry("a/b", unix.DT_REG))
	f.Add([]byte{16: 255, 17: 255, 20: 0})
	f.Fuzz(func(t *testing.T, entries []byte) {
		name := chooseName(entries, func(string) bool { return false })
		require.NotContains(t, name, "/")
		require.NotContains(t, name, "\x00")
		require.NotContains(t, []string{".", "..", missingName}, name)
	})
}

func number(m telegraf.Metric, name string) int64 {
	v, _ := m.GetField(name)
	n, _ := v.(int64)
	return n
}
