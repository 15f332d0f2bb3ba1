package mountstat

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	m, _ = newPretendedNFS(t)
	nfsMount(t, fs, rpchost.Serve(t, "127.0.0.1:0", rpchost.AnswerNull), ",sec=krb5p")(m)
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "unchecked", text(metric, "result"))
	assert.Contains(t, text(metric, "reason"), "no Kerberos ticket")
	fs.Heal()
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Fail(unix.EACCES, faultfs.Statfs)
	metric = at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "denied login_refused", text(metric, "result")+" "+text(metric, "cause"), "it has expired")
	assert.Empty(t, text(metric, "reason"))
	fs.Heal()
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Fail(unix.EACCES, faultfs.Opendir)
	assert.Equal(t, "permission", text(at(collect.Gather(t, m), fs.Dir), "cause"), "statfs was answered")
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
			}, 30*time.Second, 20*time.Millisecond)
		}
	}
}

// A virus scanner that does not answer looks like a disk that does not.
func TestMountstat_TellsASilentListenerFromADeadDisk(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, _ := newInput(t, only(disk.Dir), within(slow))
	gatherUntil(t, m, disk.Dir, "ok")
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		t.Skipf("fanotify_init: %v", err)
	}
	silent := os.NewFile(uintptr(fd), "fanotify")
	defer silent.Close()
	require.NoError(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN_PERM|unix.FAN_ONDIR, unix.AT_FDCWD, disk.Dir))
	metric := at(gatherUntil(t, m, disk.Dir, "timeout fanotify_silent"), disk.Dir)
	assert.Contains(t, text(metric, "reason"), fmt.Sprintf("(process %d)", os.Getpid()))
	require.NoError(t, silent.Close()) // which permits all that wait
	gatherUntil(t, m, disk.Dir, "ok")
}

// Links may stand anywhere in a path.
func TestMountstat_FollowsLinksInTheMiddleOfAPath(t *testing.T) {
	faultfs.Require(t)
	root := t.TempDir()
	real := filepath.Join(root, "srv/data")
	require.NoError(t, os.MkdirAll(filepath.Join(real, "there"), 0o755))
	require.NoError(t, os.Symlink("srv/data", filepath.Join(root, "data")))
	faultfs.NewAt(t, filepath.Join(real, "there"), "there")
	hung := faultfs.New(t)
	require.NoError(t, os.Symlink(filepath.Join(hung.Dir, "way"), filepath.Join(root, "hung")))
	hung.Silence(faultfs.Lookup)
	fstab := filepath.Join(t.TempDir(), "fstab")
	data := filepath.Join(root, "data")
	require.NoError(t, os.WriteFile(fstab, []byte("there "+data+"/there fuse.faultfs rw\nnas:/gone "+data+"/gone nfs rw\nnas:/x "+root+"/hung/x nfs rw\n"), 0o644))
	there := filepath.Join(real, "there")
	m, _ := newInput(t, within(timeout), within(unhurried, there), func(m *Mountstat) {
		m.MountPoints = []string{root + "*"}
		m.Fstab = fstab
	})
	g := gatherAllUntil(t, m, map[string]string{
		there:                         "ok",
		filepath.Join(real, "gone"):   "missing", // by the name that the table would have
		filepath.Join(root, "hung/x"): "missing", // the link's file system does not answer
	})
	assert.Nil(t, at(g, data+"/there"))
	assert.Zero(t, m.host.Prober.Stats().Stuck)
}

// unitName is the name of a mount unit.
func unitName(t *testing.T, point string) string {
	t.Helper()
	out, err := exec.Command("systemd-escape", "--path", "--suffix=mount", point).Output()
	if err != nil {
		t.Skipf("systemd-escape: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// enable writes units below a root directory, which a target wants.
func enable(t *testing.T, root, name, content string) {
	t.Helper()
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	require.NoError(t, os.MkdirAll(wants, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/systemd/system", name), []byte(content), 0o644))
	require.NoError(t, os.Symlink("../"+name, filepath.Join(wants, name)))
}

// What systemd is told by units of its own is expected as what fstab says, and a unit stands
// before the line of fstab.
func TestMountstat_ExpectsWhatUnitsMount(t *testing.T) {
	faultfs.Require(t)
	root, dir := t.TempDir(), t.TempDir()
	path := func(name string) string {
		point := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(point, 0o755))
		return point
	}
	unit := func(name, more string) string {
		point := path(name)
		unit := unitName(t, point)
		enable(t, root, unit, "[Mount]\nWhat=nas:/"+name+"\nWhere="+point+"\nType=nfs\n"+more)
		return "/etc/systemd/system/" + unit
	}
	require.NoError(t, os.MkdirAll(filepath.Join(root, "dev"), 0o755))
	require.NoError(t, os.Symlink("../sdz1", filepath.Join(root, "dev/label")))
	faultfs.NewAt(t, path("there"), "there")
	unit("there", "")
	gone := unit("gone", "Options=ro\n")
	unit("unplugged", "What=/dev/sdz9\nOptions=nofail\n")
	unit("plugged", "What=/dev/label\nOptions=nofail\n")
	unit("conditional", "[Unit]\nConditionHost=nowhere\n")
	unit("pseudo", "Type=tracefs\n")
	both := unit("both", "")
	masked := filepath.Join(root, "etc/systemd/system", unitName(t, path("masked")))
	require.NoError(t, os.Symlink("/dev/null", masked))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/fstab"), []byte("nas:/1 "+path("both")+" nfs4\nnas:/2 "+path("masked")+" nfs4\nnas:/3 "+path("line")+" nfs4\n"), 0o644))
	t.Setenv("HOST_MOUNT_PREFIX", root)
	m, log := newInput(t, func(m *Mountstat) {
		m.MountPoints = []string{dir + "*"}
		m.Fstab, m.Units = defaultFstab, true
	})
	collect.Gather(t, m)
	g := collect.Gather(t, m)
	for name, want := range map[string]string{
		"gone": gone + " wants it", "both": both + " wants it", "line": root + "/etc/fstab, line 3, wants it",
		"unplugged": "", "conditional": "", "pseudo": "", "masked": "",
	} {
		metric := at(g, path(name))
		if want == "" {
			assert.Nil(t, metric, name)
			continue
		}
		require.NotNil(t, metric, name)
		assert.Equal(t, "missing", text(metric, "result"), name)
		assert.Equal(t, want, text(metric, "reason"))
	}
	assert.Equal(t, map[string]string{"path": path("gone"), "device": "nas:/gone", "fstype": "nfs4", "mode": "ro"}, at(g, path("gone")).Tags())
	assert.Equal(t, "sdz1", at(g, path("plugged")).Tags()["device"], "its device is there, below the prefix")
	assert.NotEqual(t, "missing", text(at(g, path("there")), "result"))
	assert.EqualValues(t, 4, summary(t, g, "missing"))

	require.NoError(t, os.Remove(filepath.Join(root, "etc/systemd/system/multi-user.target.wants", filepath.Base(gone))))
	m.expectations.due = time.Time{}
	collect.Gather(t, m)
	assert.Nil(t, at(collect.Gather(t, m), path("gone")), "it was disabled")
	assert.Empty(t, log.about("systemd's mount units"))

	m, _ = newInput(t, func(m *Mountstat) { m.MountPoints = []string{dir + "*"} })
	assert.Zero(t, summary(t, collect.Gather(t, m), "missing"), "units = false")
}

// The fstab of a container's image is not the host's, and nobody has mounted what it says.
func TestMountstat_ExpectsNothingOfAnImagesFstab(t *testing.T) {
	faultfs.Require(t)
	gone := filepath.Join(t.TempDir(), "gone")
	fstab := filepath.Join(t.TempDir(), "fstab")
	require.NoError(t, os.WriteFile(fstab, []byte("nas:/gone "+gone+" nfs rw\n"), 0o644))
	require.NoError(t, unix.Mount(fstab, defaultFstab, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(defaultFstab, unix.MNT_DETACH)) })
	missing := func(fstab string, change func(*settings)) bool {
		m, _ := newInput(t, func(m *Mountstat) {
			m.MountPoints = []string{gone}
			m.Fstab, m.Units = fstab, true
		})
		change(&m.settings)
		collect.Gather(t, m)
		return text(at(collect.Gather(t, m), gone), "result") == "missing"
	}
	asIs := func(*settings) {}
	assert.True(t, missing(fstab, asIs), "a file that somebody has named")
	assert.True(t, missing(defaultFstab, func(s *settings) { s.ofImage = false }), "the host's")
	// A mark of Podman's.
	if _, err := os.Stat("/run/.containerenv"); err != nil {
		require.NoError(t, unix.Mount("", "/run", "tmpfs", 0, ""))
		t.Cleanup(func() { assert.NoError(t, unix.Unmount("/run", unix.MNT_DETACH)) })
		require.NoError(t, os.WriteFile("/run/.containerenv", nil, 0o644))
	}
	assert.False(t, missing(defaultFstab, asIs), "the image's")
}

// In a container that shows the host's processes, and not its files, fstab is nobody's.
func TestMountstat_WhereTheHostsFstabIs(t *testing.T) {
	for environment, want := range map[[4]string]settings{ // HOST_PROC, HOST_ETC, HOST_MOUNT_PREFIX, enter_host_namespace
		{"", "", "", ""}:                        {fstab: "/etc/fstab", units: true, ofImage: true},
		{"/host/proc", "", "", ""}:              {ofImage: true},
		{"/host/proc", "", "/host", ""}:         {fstab: "/host/etc/fstab", units: true},
		{"/host/proc", "/etc1", "/host", ""}:    {fstab: "/etc1/fstab", units: true},
		{"/host/proc", "/etc1", "", ""}:         {fstab: "/etc1/fstab"},
		{"/host/proc", "/etc1", "/host", "yes"}: {fstab: "/etc/fstab", units: true},
		{"/host/proc", "", "", "yes"}:           {fstab: "/etc/fstab", units: true},
	} {
		for i, name := range []string{"HOST_PROC", "HOST_ETC", "HOST_MOUNT_PREFIX"} {
			t.Setenv(name, environment[i])
		}
		m, _ := newInput(t, func(m *Mountstat) {
			m.Fstab, m.Units, m.EnterHostNamespace = defaultFstab, true, environment[3] != ""
		})
		got := settings{fstab: m.fstab, units: m.settings.units, ofImage: m.ofImage}
		assert.Equal(t, want, got, "%q", environment)
	}
}
