package mountstat

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// File systems say what they like.
func TestUsage_HasNoNonsense(t *testing.T) {
	const none = math.MaxUint64 // -1
	for what, c := range map[string]struct {
		st    unix.Statfs_t
		image bool
		want  map[string]any
	}{
		"s3fs": {st: unix.Statfs_t{Bsize: 16 << 20, Blocks: 1<<40 - 1, Bfree: 1<<40 - 1, Bavail: 1<<40 - 1, Files: 0}, want: map[string]any{}},
		"CephFS": {st: unix.Statfs_t{Bsize: 4 << 20, Blocks: 100, Bfree: 60, Bavail: 60, Files: 7, Ffree: none}, want: map[string]any{
			"total": int64(400 << 20), "free": int64(240 << 20), "used": int64(160 << 20), "used_percent": 40.0, "inodes_total": int64(7)}},
		"erofs": {st: unix.Statfs_t{Bsize: 4096, Blocks: 10, Files: none}, image: true, want: map[string]any{
			"total": int64(40960), "free": int64(0), "used": int64(40960)}},
		"less is left than is reserved": {st: unix.Statfs_t{Bsize: 1, Blocks: 100, Bfree: 2, Bavail: none - 2, Files: 10, Ffree: 0}, want: map[string]any{
			"total": int64(100), "free": int64(0), "used": int64(98), "used_percent": 100.0,
			"inodes_total": int64(10), "inodes_free": int64(0), "inodes_used": int64(10), "inodes_used_percent": 100.0}},
		"more is free than there is": {st: unix.Statfs_t{Bsize: 1, Blocks: 100, Bfree: 200, Bavail: 200, Files: 1, Ffree: 1}, want: map[string]any{
			"total": int64(100), "inodes_total": int64(1), "inodes_free": int64(1), "inodes_used": int64(0), "inodes_used_percent": 0.0}},
		"negative": {st: unix.Statfs_t{Bsize: 4096, Blocks: none, Bfree: none, Bavail: none}, want: map[string]any{}},
		"nothing":  {want: map[string]any{}},
	} {
		fields := make(map[string]any)
		usage(fields, &c.st, c.image)
		assert.Equal(t, c.want, fields, what)
	}
}

// Paths are written in many ways, and links lead to mount points.
func TestMountstat_KnowsAnExpectedMountByAnyName(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	above := t.TempDir()
	link, relative := filepath.Join(above, "link"), filepath.Join(above, "relative")
	require.NoError(t, os.Symlink(dir, link))
	target, err := filepath.Rel(above, dir)
	require.NoError(t, err)
	require.NoError(t, os.Symlink(target, relative))
	nowhere := filepath.Join(above, "nowhere")
	require.NoError(t, os.Symlink(above, nowhere))
	fstab := filepath.Join(above, "fstab")
	require.NoError(t, os.WriteFile(fstab, []byte("none "+link+" tmpfs defaults # comment\nnone "+nowhere+" tmpfs rw\n"), 0o644))
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.MountPoints = append(m.MountPoints, above+"*")
		m.Expected = []string{dir + "/", "/" + dir + "/.", relative}
		m.Fstab = fstab
		m.IgnoreFS = nil
	})
	collect.Gather(t, m)
	g := collect.Gather(t, m)
	assert.Equal(t, "ok", text(at(g, dir), "result"))
	for _, path := range []string{link, relative, dir + "/"} {
		assert.Nil(t, at(g, path), path)
	}
	assert.Equal(t, "missing", text(at(g, above), "result"), "the link leads to what is not mounted")
}

// The series that was ok is the one that turns missing.
func TestMountstat_MissesAMountUnderTheNameItHad(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	fstab := filepath.Join(t.TempDir(), "fstab")
	require.NoError(t, os.WriteFile(fstab, []byte("UUID=0815 "+dir+" auto defaults\n"), 0o644))
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Fstab = fstab
	})
	collect.Gather(t, m)
	before := at(collect.Gather(t, m), dir)
	require.Equal(t, "ok", text(before, "result"))
	require.NoError(t, unix.Unmount(dir, 0))
	after := at(collect.Gather(t, m), dir)
	assert.Equal(t, "missing", text(after, "result"))
	assert.Equal(t, before.Tags(), after.Tags())
}

func TestMountstat_SeesThatABindMountsSourceWasDeleted(t *testing.T) {
	faultfs.Require(t)
	fs := tmpfs(t, "", "")
	source, dir := filepath.Join(fs, "source"), t.TempDir()
	require.NoError(t, os.Mkdir(source, 0o755))
	require.NoError(t, unix.Mount(source, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.MountPoints = append(m.MountPoints, fs)
	})
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), dir), "result"))
	require.NoError(t, os.Remove(source))
	m.reread = time.Now().Add(-time.Second)
	g := collect.Gather(t, m)
	assert.Equal(t, "stale source_deleted", text(at(g, dir), "result")+" "+text(at(g, dir), "cause"))
	assert.Equal(t, "ok", text(at(g, fs), "result"))
}

// What a file system does not have, or this host has no right to, is no fault, unless it
// worked once.
func TestMountstat_TellsRefusedFromBroken(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	fs.Fail(unix.ENOSYS, faultfs.Statfs)
	m, _ := newInput(t, only(fs.Dir))
	for range 2 {
		metric := at(collect.Gather(t, m), fs.Dir)
		assert.Equal(t, "ok", text(metric, "result"))
		assert.Contains(t, text(metric, "reason"), "statfs was left out: the file system does not have it")
	}
	fs.Heal()
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Fail(unix.ENOSYS, faultfs.Statfs)
	assert.Equal(t, "error", text(at(collect.Gather(t, m), fs.Dir), "result"))

	fs = faultfs.New(t)
	fs.Fail(unix.EACCES, faultfs.Statfs)
	m, _ = newPretendedNFS(t, nil)
	nfsMount(t, fs, rpchost.Serve(t, "127.0.0.1:0", rpchost.AnswerNull), ",sec=krb5p")(m)
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "unchecked", text(metric, "result"))
	assert.Contains(t, text(metric, "reason"), "no Kerberos ticket")
	fs.Heal()
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Fail(unix.EACCES, faultfs.Statfs)
	assert.Equal(t, "denied", text(at(collect.Gather(t, m), fs.Dir), "result"), "it has expired")
}

// A disk that has begun to die shows in counters first.
func TestMountstat_TellsWhatFileSystemsHaveCounted(t *testing.T) {
	for fstype, size := range map[string]int64{"ext4": loopfs.DefaultSize, "btrfs": 128 << 20} {
		disk := loopfs.New(t, fstype, size, "")
		m, _ := newInput(t, only(disk.Dir))
		var metric telegraf.Metric
		for range 2 { // ext4's are looked at before the mounts are known
			metric = at(collect.Gather(t, m), disk.Dir)
		}
		assert.Equal(t, int64(0), field(t, metric, "fs_errors"), fstype)
		if fstype == "ext4" {
			require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(disk.Device), "trigger_fs_error"), []byte("made by a test"), 0))
			require.Eventually(t, func() bool { // it is counted later
				return field(t, at(collect.Gather(t, m), disk.Dir), "fs_errors") == int64(1)
			}, 10*time.Second, 20*time.Millisecond)
		}
	}
}

// A virus scanner that does not answer looks like a disk that does not.
func TestMountstat_TellsASilentListenerFromADeadDisk(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, _ := newInput(t, only(disk.Dir))
	require.Equal(t, "ok", text(at(collect.Gather(t, m), disk.Dir), "result"))
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		t.Skipf("fanotify_init: %v", err)
	}
	silent := os.NewFile(uintptr(fd), "fanotify")
	defer silent.Close()
	require.NoError(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN_PERM|unix.FAN_ONDIR, unix.AT_FDCWD, disk.Dir))
	metric := at(collect.Gather(t, m), disk.Dir)
	assert.Contains(t, []string{"timeout", "stuck"}, text(metric, "result"))
	assert.Equal(t, "fanotify_silent", text(metric, "cause"))
	require.NoError(t, silent.Close()) // which permits all that wait
	require.Eventually(t, func() bool { return text(at(collect.Gather(t, m), disk.Dir), "result") == "ok" }, 10*time.Second, 50*time.Millisecond)
}
