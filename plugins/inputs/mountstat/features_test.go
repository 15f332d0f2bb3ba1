package mountstat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/autofs"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// only selects mount points.
func only(paths ...string) func(*Mountstat) {
	return func(m *Mountstat) { m.MountPoints, m.IgnoreFS = paths, nil }
}

// tmpfs mounts one on a new directory below dir.
func tmpfs(t testing.TB, dir, options string) string {
	t.Helper()
	path, err := os.MkdirTemp(dir, "tmpfs")
	require.NoError(t, err)
	require.NoError(t, unix.Mount("tmpfs", path, "tmpfs", 0, options))
	t.Cleanup(func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	})
	return path
}

func TestChecks_EachOfAHealthyFileSystem(t *testing.T) {
	faultfs.Require(t)
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, log := newInput(t, func(m *Mountstat) {
		only(fs.Dir)(m)
		m.Checks = []string{"write", "read", "readdir", "stat", "statfs"}
	})
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "ok", text(metric, "result"))
	assert.Equal(t, "read was left out: there is no canary .mountstat", text(metric, "reason"))
	assert.False(t, metric.HasField("read_seconds"))
	for _, c := range []string{"statfs", "stat", "readdir", "write"} {
		assert.Positive(t, field(t, metric, c+"_seconds"), c)
	}

	canary := filepath.Join(fs.Dir, ".mountstat")
	require.NoError(t, os.WriteFile(canary, nil, 0o644))
	metric = at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "read was left out: the canary .mountstat is empty", text(metric, "reason"))
	require.NoError(t, os.WriteFile(canary, []byte("content"), 0o644))
	metric = at(collect.Gather(t, m), fs.Dir)
	assert.Empty(t, text(metric, "reason"))
	assert.Positive(t, field(t, metric, "read_seconds"))

	left, err := os.ReadDir(fs.Dir)
	require.NoError(t, err)
	assert.Len(t, left, 2, "the write check leaves nothing: lost+found and the canary")
	assert.Len(t, log.about("hangs"), 0)
}

// What is no file is neither read nor opened, and no fault.
func TestChecks_ACanaryThatIsNoFile(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	canary := filepath.Join(dir, ".mountstat")
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Checks = []string{"read", "write"}
	})
	for what, put := range map[string]func() error{
		"a link":           func() error { return os.Symlink("/etc/hostname", canary) },
		"a FIFO":           func() error { return unix.Mkfifo(canary, 0o644) },
		"a device":         func() error { return unix.Mknod(canary, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 7))) },
		"a missing device": func() error { return unix.Mknod(canary, unix.S_IFCHR|0o644, int(unix.Mkdev(511, 7))) },
		"a directory":      func() error { return os.Mkdir(canary, 0o755) },
	} {
		require.NoError(t, os.WriteFile(canary, []byte("content"), 0o644)) // what the look finds leaves no traces
		require.Empty(t, text(at(collect.Gather(t, m), dir), "reason"))
		require.NoError(t, os.Remove(canary))
		require.NoError(t, put(), what)
		watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		require.NoError(t, err)
		_, err = unix.InotifyAddWatch(watch, canary, unix.IN_OPEN|unix.IN_DONT_FOLLOW)
		require.NoError(t, err)
		metric := at(collect.Gather(t, m), dir)
		assert.Equal(t, "ok", text(metric, "result"), what)
		assert.Equal(t, "read was left out: the canary .mountstat is no file", text(metric, "reason"), what)
		assert.False(t, metric.HasField("read_seconds"), what)
		assert.Positive(t, field(t, metric, "write_seconds"), "what comes after is done")
		_, err = unix.Read(watch, make([]byte, 4096))
		assert.Equal(t, unix.EAGAIN, err, "%s was opened", what)
		require.NoError(t, unix.Close(watch))
		require.NoError(t, os.Remove(canary))
	}
}

// A helper that was killed in the middle leaves its file, which the next check
// takes over.
func TestChecks_TheWriteCheckTakesOverItsFile(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Checks = []string{"write"}
	})
	collect.Gather(t, m)
	name := m.writtenFile(m.targets[0])
	assert.Regexp(t, `^\.mountstat\..+\.[0-9a-f]{8}$`, name)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("left behind"), 0o600))
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), dir), "result"))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// Somebody may run vfsprobe by hand beside the one that watches: both make a file of the same name,
// and remove each other's.
func TestChecks_TwoWriteChecksOfOneHostAreNoFault(t *testing.T) {
	dir := loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir
	var both sync.WaitGroup
	var ok atomic.Int64
	for range 2 {
		m, _ := newInput(t, func(m *Mountstat) {
			only(dir)(m)
			m.Checks = []string{"write"}
		})
		both.Go(func() {
			for range 300 {
				metric := at(collect.Gather(t, m), dir)
				if !assert.Equal(t, "ok", text(metric, "result"), "%v", metric) {
					return
				}
				if metric.HasField("write_seconds") {
					ok.Add(1)
				}
			}
		})
	}
	both.Wait()
	assert.Positive(t, ok.Load())
	left, err := filepath.Glob(filepath.Join(dir, ".mountstat*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// What NFS says of a file that another host has removed is not said of the mount, unless no file can
// be made there.
func TestSettings_AWrittenFileThatAnotherHostHasRemoved(t *testing.T) {
	steps := []step{{checkStatfs, "fstatfs"}, {checkWrite, stepLeftBehind}, makeFile, {checkWrite, "pwrite64"}, {checkWrite, "fsync"}, {checkWrite, "close"}, removeFile}
	for what, c := range map[string]struct {
		errnos [7]syscall.Errno
		want   string
	}{
		"nothing":                        {[7]syscall.Errno{1: unix.ENOENT}, "ok"},
		"its removal":                    {[7]syscall.Errno{1: unix.ENOENT, 6: unix.ENOENT}, "ok"},
		"its writing":                    {[7]syscall.Errno{1: unix.ENOENT, 4: unix.ESTALE, 5: unix.ESTALE, 6: unix.ENOENT}, "ok write was left out"},
		"its making":                     {[7]syscall.Errno{2: unix.EEXIST}, "ok write was left out"},
		"its making, by what stays":      {[7]syscall.Errno{1: unix.EISDIR, 2: unix.EEXIST}, "error"},
		"the directory":                  {[7]syscall.Errno{1: unix.ESTALE, 2: unix.ESTALE}, "stale"},
		"the file system's other checks": {[7]syscall.Errno{0: unix.ESTALE, 4: unix.ESTALE}, "stale"},
		"a device":                       {[7]syscall.Errno{1: unix.ENOENT, 4: unix.EIO}, "error"},
	} {
		of := &target{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: "nfs4"}}},
			policy: policy{checks: []check{checkStatfs, checkWrite}}, reportOf: &plan{steps: steps}, report: new(prober.Report)}
		for i, errno := range c.errnos {
			of.report.Steps = append(of.report.Steps, prober.StepResult{Index: i, Errno: errno})
		}
		var f finding
		attributes := of.measure(&f)
		new(settings).judgeSteps(of, &f, attributes)
		got, _, _ := strings.Cut(f.code.String()+" "+f.reason, ":")
		assert.Equal(t, c.want, strings.TrimSpace(got), what)
	}
}

// In a directory that all may write, anyone can put a link under the name of the
// file that the check will make, which root would follow.
func TestChecks_TheWriteCheckWritesToNobodysFile(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "mode=1777")
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Checks = []string{"write"}
	})
	collect.Gather(t, m)
	name := filepath.Join(dir, m.writtenFile(m.targets[0]))
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	for what, put := range map[string]func() error{
		"a hard link":     func() error { return os.Link(victim, name) },
		"a symbolic link": func() error { return os.Symlink(victim, name) },
		"a FIFO":          func() error { return unix.Mkfifo(name, 0o666) },
		"a directory":     func() error { return os.Mkdir(name, 0o777) },
	} {
		require.NoError(t, put(), what)
		metric := at(collect.Gather(t, m), dir)
		if what == "a directory" {
			assert.Equal(t, "EEXIST", text(metric, "errno"), what)
			require.NoError(t, os.Remove(name))
		} else {
			assert.Equal(t, "ok", text(metric, "result"), what)
		}
		content, err := os.ReadFile(victim)
		require.NoError(t, err)
		assert.Equal(t, "precious", string(content), what)
	}
}

func TestChecks_NobodyWritesToAReadOnlyMount(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "ro")
	for _, checks := range [][]string{{"statfs", "write"}, {"write"}} {
		m, _ := newInput(t, func(m *Mountstat) {
			only(dir)(m)
			m.Checks = checks
		})
		metric := at(collect.Gather(t, m), dir)
		assert.Equal(t, "ok", text(metric, "result"))
		assert.True(t, metric.HasField("statfs_seconds"))
		assert.False(t, metric.HasField("write_seconds"))
	}
}

func TestChecks_TheOwnerMayLookWhereOthersMayNot(t *testing.T) {
	faultfs.Require(t)
	// A private directory below one that its owner may not search.
	parent := t.TempDir()
	require.NoError(t, os.Chmod(parent, 0o700))
	dir := tmpfs(t, parent, "mode=0700,uid=4711,gid=4712")
	result := func(as, confined string) (string, string) {
		m, _ := newInput(t, func(m *Mountstat) {
			only(dir)(m)
			m.RunAs = as
			m.Checks = []string{"statfs", "stat", "readdir", "write"}
		})
		m.confined = confined
		metric := at(collect.Gather(t, m), dir)
		return text(metric, "result"), text(metric, "reason")
	}
	got, _ := result("owner", "")
	assert.Equal(t, "ok", got)
	got, _ = result("self", "confined")
	assert.Equal(t, "ok", got, "root may")
	got, why := result("nobody", "")
	assert.Equal(t, "denied", got)
	assert.Equal(t, "its root has mode 0700, uid 4711, gid 4712", why)
	_, why = result("nobody", "SELinux confines vfsprobe: container_t")
	assert.Equal(t, "its root has mode 0700, uid 4711, gid 4712; SELinux confines vfsprobe: container_t", why)
}

func TestChecks_APrivateFUSEMountIsCheckedAsItsUser(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.NewWith(t, t.TempDir(), faultfs.Options{UID: 4711, GID: 4712, Private: true})
	m, _ := newInput(t, only(fs.Dir))
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	m, _ = newInput(t, func(m *Mountstat) {
		only(fs.Dir)(m)
		m.RunAs = "self"
	})
	assert.Equal(t, "denied", text(at(collect.Gather(t, m), fs.Dir), "result"), "not even root may")

	m, _ = newInput(t, only(fs.Dir))
	m.becomes = false // as without capabilities
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "unchecked", text(metric, "result"), "that is no fault")
	assert.Contains(t, text(metric, "reason"), "4711")
}

func TestMountstat_OneHelperForFiveHundredBindMounts(t *testing.T) {
	faultfs.Require(t)
	fs, root := faultfs.New(t), t.TempDir()
	for i := range 500 {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, unix.Mount(fs.Dir, dir, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	m, log := newInput(t, within(timeout), func(m *Mountstat) { m.FS = []string{"fuse.faultfs"} })
	gatherUntil(t, m, fs.Dir, "ok") // reads the table
	fs.Silence()
	g := gatherUntil(t, m, fs.Dir, "stuck")
	assert.EqualValues(t, 1, m.host.Prober.Stats().Asleep)
	assert.EqualValues(t, 501, summary(t, g, "stuck"))
	assert.Equal(t, fs.Dir, text(at(g, filepath.Join(root, "17")), "shared_with"))
	assert.Len(t, log.about("and 500 more mounts of it hangs: helper process"), 1)
	fs.Heal()
	noneLeft(t, m)

	m, _ = newInput(t, func(m *Mountstat) {
		m.FS, m.PerMount = []string{"fuse.faultfs"}, true
	})
	g = collect.Gather(t, m)
	assert.EqualValues(t, 501+1, m.host.Prober.Stats().Forked, "one reads the table")
	assert.EqualValues(t, 501, summary(t, g, "ok"))
	assert.False(t, at(g, filepath.Join(root, "17")).HasField("shared_with"))
}

func TestMountstat_ABindMountOfAFile(t *testing.T) {
	faultfs.Require(t)
	file, source := filepath.Join(t.TempDir(), "file"), tmpfs(t, "", "")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(source, "resolv.conf"), nil, 0o644))
	require.NoError(t, unix.Mount(filepath.Join(source, "resolv.conf"), file, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	m, _ := newInput(t, only(file))
	metric := at(collect.Gather(t, m), file)
	assert.Equal(t, "ok", text(metric, "result"))
	assert.Equal(t, "readdir was left out: the mount is of a file", text(metric, "reason"))
}

func TestTarget_RecoveriesAndTheTimesOfAFault(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newInput(t, only(fs.Dir))
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, int64(0), field(t, metric, "recoveries"))
	assert.Equal(t, 0.0, field(t, metric, "fault_seconds"))
	for range 2 {
		fs.Fail(unix.EIO, faultfs.Opendir)
		collect.Gather(t, m)
		time.Sleep(20 * time.Millisecond)
		metric = at(collect.Gather(t, m), fs.Dir)
		assert.GreaterOrEqual(t, field(t, metric, "fault_seconds"), 0.02)
		assert.GreaterOrEqual(t, field(t, metric, "last_ok_seconds_ago"), 0.02)
		assert.Equal(t, 0.0, field(t, metric, "hung_seconds"), "an error is an answer")
		fs.Heal()
		metric = at(collect.Gather(t, m), fs.Dir)
	}
	assert.Equal(t, int64(2), field(t, metric, "recoveries"))
	assert.Equal(t, 0.0, field(t, metric, "fault_seconds"))
	assert.Len(t, log.lines, 4, "a line per change")
}

func TestSettings_Overrides(t *testing.T) {
	faultfs.Require(t)
	archive, quick := faultfs.NewAt(t, t.TempDir(), "archive:/slow"), faultfs.New(t)
	long, short := config.Duration(unhurried), config.Duration(timeout)
	m, _ := newInput(t, within(timeout), func(m *Mountstat) {
		m.FS = []string{"fuse.faultfs"}
		m.Override = []Override{
			{Devices: []string{"archive:*"}, Timeout: &long, SlowThreshold: &long, Checks: []string{"statfs"}},
			{FS: []string{"fuse.*"}, SlowThreshold: &short},
		}
	})
	archive.Delay(2*timeout, faultfs.Statfs)
	archive.Silence(faultfs.Opendir)
	// The slow one is well in the longer time, without readdir.
	g := gatherAllUntil(t, m, map[string]string{archive.Dir: "ok", quick.Dir: "ok"})
	assert.False(t, at(g, archive.Dir).HasField("readdir_seconds"))
	assert.True(t, at(g, quick.Dir).HasField("readdir_seconds"))
}

func TestExpected_Mounts(t *testing.T) {
	faultfs.Require(t)
	dir := t.TempDir()
	path := func(name string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(p, 0o755))
		return p
	}
	faultfs.NewAt(t, path("there"), "there")
	readOnly := tmpfs(t, dir, "ro")
	alsoReadOnly := tmpfs(t, dir, "ro")
	fstab := filepath.Join(dir, "fstab")
	require.NoError(t, os.WriteFile(fstab, fmt.Appendf(nil, `# comment
there          %[1]s/there     fuse.faultfs defaults 0 0
UUID=1234-5678 %[1]s/gone      ext4 defaults 0 2
LABEL=backup   %[1]s/unplugged ext4 nofail 0 2
nas:/home      %[1]s/nofail    nfs  nofail,_netdev 0 0
nas:/archive   %[1]s/noauto    nfs  noauto 0 0
nas:/auto      %[1]s/auto      nfs  noauto,x-systemd.automount 0 0
tmpfs          %[2]s           tmpfs rw 0 0
tmpfs          %[3]s           tmpfs ro 0 0
/dev/sdz9      none            swap sw 0 0
nonsense
`, dir, readOnly, alsoReadOnly), 0o644))
	m, log := newInput(t, func(m *Mountstat) {
		m.Fstab, m.Expected = fstab, []string{path("wanted")}
		m.IgnoreFS = nil
	})
	g := collect.Gather(t, m)
	for name, want := range map[string]string{
		"there": "ok", "gone": "missing", "unplugged": "", "nofail": "missing", "noauto": "", "auto": "missing", "wanted": "missing",
	} {
		metric := at(g, filepath.Join(dir, name))
		assert.Equal(t, want, text(metric, "result"), name)
		if want == "missing" {
			assert.Equal(t, "not_mounted", text(metric, "cause"))
		}
	}
	assert.Equal(t, map[string]string{"path": filepath.Join(dir, "gone"), "device": "UUID=1234-5678", "fstype": "ext4", "mode": "rw"},
		at(g, filepath.Join(dir, "gone")).Tags())
	assert.EqualValues(t, 4, summary(t, g, "missing"))

	metric := at(collect.Gather(t, m), readOnly) // it may have answered before fstab was read
	assert.Equal(t, "error EROFS read_only", text(metric, "result")+" "+text(metric, "errno")+" "+text(metric, "cause"))
	assert.Equal(t, true, field(t, metric, "unexpected_ro"))
	assert.Equal(t, "ok", text(at(g, alsoReadOnly), "result"), "as fstab wants it")

	collect.Gather(t, m)
	assert.Len(t, log.about("is not mounted"), 4, "said once")
	assert.Len(t, log.about("line 11"), 1, "the malformed line is named, once: %q", log.lines)

	faultfs.NewAt(t, path("gone"), "there now")
	g = collect.Gather(t, m)
	assert.Equal(t, "ok", text(at(g, filepath.Join(dir, "gone")), "result"))
	assert.Len(t, log.about("is mounted; it was missing for"), 1)
}

func TestExpected_AnFstabThatCanNotBeRead(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newInput(t, func(m *Mountstat) { m.Fstab = fs.Dir })
	for range 2 {
		assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"), "the rest works")
		m.expectations.due = time.Time{}
	}
	assert.Len(t, log.about("reading "+fs.Dir), 1, "said once: %q", log.lines)
}

// A FUSE file system that hangs holds fstab: not even that makes Gather wait
// longer than its timeout.
func TestExpected_AnFstabThatHangs(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newInput(t, within(timeout), within(unhurried, "/"), func(m *Mountstat) { m.Fstab = filepath.Join(fs.Dir, faultfs.FileName) })
	fs.Silence(faultfs.Lookup)
	require.Eventually(t, func() bool { // a busy machine may not come to it in time
		m.expectations.due = time.Time{}
		began := time.Now()
		g := collect.Gather(t, m)
		assert.Less(t, time.Since(began), 20*timeout)
		assert.Equal(t, "ok", text(at(g, "/"), "result"))
		return len(log.about("it was not answered")) == 1
	}, 30*time.Second, time.Millisecond)
}

// automount is an autofs that unmounts what was idle for so many seconds; 0: never.
func automount(t *testing.T, idle uint64) string {
	t.Helper()
	dir := t.TempDir()
	if err := autofs.Mount(t, dir, idle); err != nil {
		t.Skip(err)
	}
	return dir
}

// systemd's automounts have no end, but for TimeoutIdleSec=: nothing is kept that would go.
func TestMountstat_ChecksWhatAnAutomountKeeps(t *testing.T) {
	faultfs.Require(t)
	dir := automount(t, 0)
	child := filepath.Join(dir, "child")
	require.NoError(t, os.Mkdir(child, 0o755))
	faultfs.NewAt(t, child, "nas:/home")
	m, _ := newInput(t)
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), child), "result"))
}

func TestMountstat_LeavesAloneWhatAutofsMounted(t *testing.T) {
	faultfs.Require(t)
	dir := automount(t, 600)
	child := filepath.Join(dir, "child")
	require.NoError(t, os.Mkdir(child, 0o755)) // the daemon's process group may
	fs := faultfs.NewAt(t, child, "nas:/home")
	fs.Silence() // a check would hang
	m, _ := newInput(t, func(m *Mountstat) { m.Expected = []string{dir} })
	g := collect.Gather(t, m)
	assert.Equal(t, "unchecked", text(at(g, child), "result"))
	assert.Contains(t, text(at(g, child), "reason"), "on demand")
	assert.Equal(t, "unchecked", text(at(g, dir), "result"), "autofs waits for somebody to ask")
	assert.Zero(t, fs.Unanswered(), "it was not touched")
	assert.Zero(t, m.host.Prober.Stats().Stuck)

	// The same superblock elsewhere can be checked.
	fs.Heal()
	bind := t.TempDir()
	require.NoError(t, unix.Mount(child, bind, "", unix.MS_BIND, ""))
	g = collect.Gather(t, m)
	assert.Equal(t, "ok", text(at(g, child), "result"))
	assert.Equal(t, bind, text(at(g, child), "shared_with"))
	require.NoError(t, unix.Unmount(bind, 0))

	m, _ = newInput(t, func(m *Mountstat) { m.ProbeAutomounted = true })
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), child), "result"))
}

// A container: another mount namespace, with a network file system of its own.
func TestMountstat_NetworkFileSystemsOfContainers(t *testing.T) {
	faultfs.Require(t)
	dir := t.TempDir()
	// The container's process waits for its stdin to end.
	container := exec.Command("sh", "-c", `mount --make-rprivate / && echo ready && read -r line`)
	container.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	stdin, err := container.StdinPipe()
	require.NoError(t, err)
	stdout, err := container.StdoutPipe()
	require.NoError(t, err)
	// Mounted here first, and here alone unmounted again.
	fs := faultfs.NewWith(t, dir, faultfs.Options{Type: "fuse.sshfs", Source: "nas:/export"})
	require.NoError(t, container.Start())
	t.Cleanup(func() {
		fs.Abort()
		stdin.Close()
		_ = container.Wait()
	})
	_, err = stdout.Read(make([]byte, 6))
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))

	m, _ := newInput(t)
	assert.Nil(t, at(collect.Gather(t, m), dir), "it does not show here")
	m, log := newInput(t, within(timeout, dir), func(m *Mountstat) { m.MountNamespaces = "all" })
	gatherUntil(t, m, dir, "ok")
	fs.Silence()
	gatherUntil(t, m, dir, "stuck fuse_daemon_silent")
	assert.Len(t, log.about("hangs: helper process"), 1)
	fs.Heal()
	noneLeft(t, m)
	gatherUntil(t, m, dir, "ok")
}

// In a container of our own: the host's file systems show below a prefix.
func TestMountstat_TheHostBelowAPrefix(t *testing.T) {
	faultfs.Require(t)
	fs, host := faultfs.New(t), t.TempDir()
	require.NoError(t, unix.Mount("/", host, "", unix.MS_BIND|unix.MS_REC, ""))
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	t.Setenv("HOST_MOUNT_PREFIX", host)
	m, _ := newInput(t, only(fs.Dir, "/"))
	g := collect.Gather(t, m)
	assert.Equal(t, "ok", text(at(g, fs.Dir), "result"), "below the prefix, reported without it")
	assert.Equal(t, "ok", text(at(g, "/"), "result"))
	require.NoError(t, unix.Unmount(filepath.Join(host, fs.Dir), 0))
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "unchecked", text(metric, "result"), "what lies there instead is no answer")
	assert.Contains(t, text(metric, "reason"), "leads to another file system")
}

// systemd's PrivateMounts: a namespace that the host's mounts reach.
func TestMountstat_APrivateMountNamespace(t *testing.T) {
	faultfs.Require(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
	t.Cleanup(func() { _ = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") })
	service := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo ready; read -r line")
	service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := service.StdinPipe()
	require.NoError(t, err)
	stdout, err := service.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, service.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = service.Wait()
	})
	_, err = stdout.Read(make([]byte, 6))
	require.NoError(t, err)

	m, _ := newInput(t, only(dir))
	// As if this process were in the service's namespace.
	withTable(m, fmt.Sprintf("/proc/%d", service.Process.Pid))
	m.namespace = fmt.Sprintf("/proc/%d/ns/mnt", service.Process.Pid)
	assert.Nil(t, at(collect.Gather(t, m), dir))
	fs := faultfs.NewAt(t, dir, "mounted later")
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), dir), "result"), "it was propagated")
	require.NoError(t, unix.Unmount(fs.Dir, 0))
	assert.Nil(t, at(collect.Gather(t, m), dir), "so was its end")
}

func TestMountstat_EntersTheHostsNamespace(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir))
	m.namespace = fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid())
	m.prefix = ""
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "ok", text(metric, "result"))
	m.namespace = "/proc/1073741824/ns/mnt"
	metric = at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "unchecked", text(metric, "result"))
	assert.Contains(t, text(metric, "reason"), "preparing the helper: open /proc/1073741824/ns/mnt: no such file")
}

func TestMountstat_CountsTheRequestsThatAFUSEDaemonLeavesUnanswered(t *testing.T) {
	faultfs.Require(t)
	const connections = "/sys/fs/fuse/connections"
	if err := unix.Mount("fusectl", connections, "fusectl", 0, ""); err != nil && err != unix.EBUSY {
		t.Skipf("no fusectl here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(connections, unix.MNT_DETACH) })
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir), within(timeout))
	require.Eventually(t, func() bool { // the end of the last directory's reading may still wait
		return field(t, at(collect.Gather(t, m), fs.Dir), "fuse_waiting") == int64(0)
	}, 30*time.Second, 10*time.Millisecond)
	fs.Silence()
	assert.Equal(t, int64(1), field(t, at(gatherUntil(t, m, fs.Dir, "stuck"), fs.Dir), "fuse_waiting"), "our own")
	fs.Heal()
}

func TestMountstat_ALineOfTheTableThatMakesNoSense(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	own, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	m, log := newInput(t)
	dir := t.TempDir()
	withTable(m, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mountinfo"), append([]byte("nonsense\n33 28 8:5\n"), own...), 0o600))
	for range 2 {
		g := collect.Gather(t, m)
		assert.EqualValues(t, 2, summary(t, g, "malformed"), "they are counted")
		assert.Equal(t, "ok", text(at(g, fs.Dir), "result"), "and cost no other")
	}
	assert.Len(t, log.about("nonsense"), 1, "said once")
}

// The first start beside a file system that keeps whoever reads the table waiting.
func TestMountstat_WithoutATableTheRootAndWhatIsNamedIsChecked(t *testing.T) {
	faultfs.Require(t)
	named, other := faultfs.New(t), faultfs.New(t)
	fstab := filepath.Join(t.TempDir(), "fstab")
	require.NoError(t, os.WriteFile(fstab, []byte("/dev/sdz1 "+other.Dir+" ext4 defaults 0 2\n"), 0o600))
	dir := t.TempDir()
	m, log := newInput(t, func(m *Mountstat) {
		withTable(m, dir)
		m.Fstab, m.Expected = fstab, []string{named.Dir}
	})
	for range 2 {
		g := collect.Gather(t, m)
		assert.Len(t, g.Named("mountstat"), 2)
		assert.Equal(t, "ok", text(at(g, "/"), "result"))
		assert.Equal(t, "ok", text(at(g, named.Dir), "result"))
		all := g.Named("mountstat_summary")[0]
		assert.False(t, all.HasField("table_age_seconds"))
		assert.Contains(t, text(all, "table_reason"), "no such file or directory")
		assert.Zero(t, summary(t, g, "missing"), "nothing is known to be")
	}
	assert.Len(t, log.about("there is no mount table"), 1)

	own, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mountinfo"), own, 0o600))
	g := collect.Gather(t, m)
	assert.Equal(t, 0.0, field(t, g.Named("mountstat_summary")[0], "table_age_seconds"))
	assert.Equal(t, "fuse.faultfs", at(g, named.Dir).Tags()["fstype"])
	assert.Len(t, log.about("the mount table can be read again"), 1)
}

func TestSettings_GlobsSelect(t *testing.T) {
	faultfs.Require(t)
	root := t.TempDir()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, name), 0o755))
		faultfs.NewAt(t, filepath.Join(root, name), "source-"+name)
	}
	paths := func(change func(*Mountstat)) []string {
		m, _ := newInput(t, change)
		var found []string
		for _, metric := range collect.Gather(t, m).Named("mountstat") {
			path, _ := metric.GetTag("path")
			found = append(found, filepath.Base(path))
		}
		return found
	}
	assert.ElementsMatch(t, []string{"a", "b"}, paths(func(m *Mountstat) { m.MountPoints = []string{root + "/*"} }))
	assert.Equal(t, []string{"b"}, paths(func(m *Mountstat) {
		m.MountPoints, m.IgnoreMountPoints = []string{root + "/*"}, []string{"*/a"}
	}))
	assert.Equal(t, []string{"a"}, paths(func(m *Mountstat) { m.Devices = []string{"source-a"} }))
	assert.Equal(t, []string{"b"}, paths(func(m *Mountstat) { m.FS, m.IgnoreDevices = []string{"fuse.*"}, []string{"*-a"} }))
}

func TestMountstat_TheTimeoutBeyondTheIntervalIsSaidOnce(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newInput(t, only(fs.Dir), within(slow))
	fs.Pause()
	for range 3 {
		done := make(chan struct{})
		go func() {
			for { // until it was in the gather, and not before
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
					m.Interrupt()
				}
			}
		}()
		collect.Gather(t, m)
		close(done)
	}
	assert.Len(t, log.about("longer than the time between two gathers"), 1)
}
