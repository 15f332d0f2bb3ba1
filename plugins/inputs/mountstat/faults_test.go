package mountstat

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
)

// faultCase is one that is made for real, and healed.
type faultCase struct {
	name   string
	checks string // that are made; the default ones if empty
	// rig makes a healthy mount and says how to break and to heal it.
	rig    func(t *testing.T) (path string, inflict, heal func())
	result string
	errno  string
	check  string // that failed or hangs
	cause  cause
	// logged says that the kernel's log is the evidence, whose rate the kernel limits.
	logged bool
	reason string // a regular expression
}

// isExplained reports whether a metric has more than is said where the evidence has not come in time,
// as on a busy machine.
func (f *faultCase) isExplained(metric telegraf.Metric) bool {
	said := cause(text(metric, "cause"))
	if said != f.cause {
		return said != unknown && (said != ioError || !f.logged) && (said != fuseDaemonSilent || f.reason == "")
	}
	matches, err := regexp.MatchString(f.reason, text(metric, "reason"))
	return matches && err == nil
}

// fuse is a fault of a FUSE daemon's.
func fuse(inflict func(fs *faultfs.FS)) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		fs := faultfs.New(t)
		return fs.Dir, func() { inflict(fs) }, fs.Heal
	}
}

func fails(errno unix.Errno, ops ...faultfs.Op) func(*testing.T) (string, func(), func()) {
	return fuse(func(fs *faultfs.FS) { fs.Fail(errno, ops...) })
}

func silent(ops ...faultfs.Op) func(*testing.T) (string, func(), func()) {
	return fuse(func(fs *faultfs.FS) { fs.Silence(ops...) })
}

func daemonDies(t *testing.T) (string, func(), func()) {
	fs := faultfs.New(t)
	return fs.Dir, fs.Abort, func() {
		fs.Close()
		faultfs.NewAt(t, fs.Dir, "faultfs")
	}
}

func frozenFS(fstype string, size int64) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		fs := loopfs.New(t, fstype, size, "")
		return fs.Dir, fs.Freeze, fs.Thaw
	}
}

func fullFS(t *testing.T) (string, func(), func()) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	file := filepath.Join(fs.Dir, "ballast")
	return fs.Dir, func() {
		fill, err := os.Create(file)
		require.NoError(t, err)
		defer fill.Close()
		for block := make([]byte, 1024); len(block) > 0; block = block[:len(block)/2] {
			for err = nil; err == nil; {
				_, err = fill.Write(block)
			}
			require.ErrorIs(t, err, unix.ENOSPC)
			require.NoError(t, fill.Sync())
		}
	}, func() { require.NoError(t, os.Remove(file)) }
}

// onFaultyDevice is an ext4 whose device is a file of a FUSE daemon's.
func onFaultyDevice(inflict, heal func(*faultfs.FS)) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		daemon := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Size: loopfs.DefaultSize})
		t.Cleanup(daemon.Heal) // before the device is closed, which waits for it
		fs := loopfs.On(t, filepath.Join(daemon.Dir, faultfs.FileName), "ext4", "")
		t.Cleanup(daemon.Heal)
		require.NoError(t, os.WriteFile(filepath.Join(fs.Dir, ".mountstat"), []byte("canary"), 0o644))
		unix.Sync()
		return fs.Dir, func() { inflict(daemon) }, func() { heal(daemon) }
	}
}

// inUse has a device break while others use it, and all that is asked for is in memory.
func inUse(inflict func(*faultfs.FS)) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		path, inflict, heal := onFaultyDevice(inflict, (*faultfs.FS).Heal)(t)
		return path, func() {
			use(path)
			inflict()
		}, heal
	}
}

func shutDown(t *testing.T) (string, func(), func()) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	return fs.Dir, func() { shutFileSystemDown(t, fs.Dir) }, func() {
		require.NoError(t, unix.Unmount(fs.Dir, 0))
		require.NoError(t, unix.Mount(fs.Device, fs.Dir, "ext4", 0, ""))
	}
}

func turnsReadOnly(t *testing.T) (string, func(), func()) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "errors=remount-ro")
	return fs.Dir, func() {
			trigger := filepath.Join("/sys/fs/ext4", filepath.Base(fs.Device), "trigger_fs_error")
			require.NoError(t, os.WriteFile(trigger, []byte("made by a test"), 0))
		}, func() {
			require.NoError(t, unix.Unmount(fs.Dir, 0))
			require.NoError(t, unix.Mount(fs.Device, fs.Dir, "ext4", 0, ""))
		}
}

func unmounted(t *testing.T) (string, func(), func()) {
	fs := faultfs.New(t)
	return fs.Dir, fs.Close, func() { faultfs.NewAt(t, fs.Dir, "faultfs") }
}

// bySSH is a fault of a directory that sshfs has mounted.
func bySSH(inflict, heal func(*testing.T, *sshhost.Host, *sshhost.FS), options ...string) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		host := sshhost.New(t)
		fs := host.Mount(t, options...)
		return fs.Dir, func() { inflict(t, host, fs) }, func() { heal(t, host, fs) }
	}
}

func hostPauses(_ *testing.T, host *sshhost.Host, _ *sshhost.FS)    { host.Pause() }
func hostResumes(_ *testing.T, host *sshhost.Host, _ *sshhost.FS)   { host.Resume() }
func hostEnds(_ *testing.T, host *sshhost.Host, _ *sshhost.FS)      { host.Kill() }
func hostStarts(t *testing.T, host *sshhost.Host, _ *sshhost.FS)    { host.Start(t) }
func sessionPauses(_ *testing.T, host *sshhost.Host, _ *sshhost.FS) { host.PauseSessions() }
func networkAndMountAnew(t *testing.T, host *sshhost.Host, fs *sshhost.FS) {
	networkHeals(t, host, fs)
	fs.Mount(t)
}
func networkBreaks(t *testing.T, _ *sshhost.Host, _ *sshhost.FS) { rpchost.CutNetwork(t) }
func networkHeals(t *testing.T, _ *sshhost.Host, _ *sshhost.FS)  { rpchost.MendNetwork(t) }
func daemonEnds(_ *testing.T, _ *sshhost.Host, fs *sshhost.FS)   { fs.Kill() }
func mountedAnew(t *testing.T, _ *sshhost.Host, fs *sshhost.FS)  { fs.Mount(t) }
func hostAndMountAnew(t *testing.T, host *sshhost.Host, fs *sshhost.FS) {
	host.Start(t)
	fs.Mount(t)
}

func pauseDaemon(t *testing.T, _ *sshhost.Host, fs *sshhost.FS) { fs.Pause(t) }

func resumeDaemon(_ *testing.T, _ *sshhost.Host, fs *sshhost.FS) { fs.Resume() }

// onTop has a program show at the path what a directory has that sshfs has mounted. The
// directory is the path with ".below".
func onTop(program string, arguments ...string) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s here", program)
		}
		host := sshhost.New(t)
		dir := filepath.Join(t.TempDir(), "top")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.Mkdir(dir+below, 0o755))
		fs := host.MountAt(t, dir+below)
		daemon := exec.Command(program, append(arguments, fs.Dir, dir)...)
		daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(t, daemon.Start())
		t.Cleanup(func() {
			host.Resume()
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			_ = daemon.Process.Kill()
			_ = daemon.Wait()
		})
		sshhost.AwaitMount(t, dir)
		return dir, host.Pause, host.Resume
	}
}

const below = ".below"

// lies is a fault of a file system that is on a directory which sshfs has mounted, and asks for
// each look-up and read.
func lies(mount func(t *testing.T, dir string) (path string)) func(*testing.T) (string, func(), func()) {
	return func(t *testing.T) (string, func(), func()) {
		host := sshhost.New(t)
		fs := host.Mount(t, "entry_timeout=0", "attr_timeout=0", "dir_cache=no", "direct_io")
		path := mount(t, fs.Dir)
		t.Cleanup(host.Resume) // before it is unmounted
		return path, func() {
			use(path)
			host.Pause()
		}, host.Resume
	}
}

func overlayOf(t *testing.T, dir string) string {
	merged := t.TempDir()
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s:%s", dir, t.TempDir())))
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	return merged
}

func imageOn(t *testing.T, dir string) string {
	image := filepath.Join(dir, "image")
	require.NoError(t, os.WriteFile(image, make([]byte, loopfs.DefaultSize), 0o600))
	fs := loopfs.On(t, image, "ext4", "")
	return fs.Dir
}

// use has the device of a file system used, if it has one.
func use(path string) {
	if file, err := os.Create(filepath.Join(path, "use")); err == nil {
		_, _ = file.WriteString("x")
		_ = file.Close()
		unix.Sync()
	}
}

func mountedBelow(t *testing.T, dir string) string {
	path := filepath.Join(dir, "sub")
	require.NoError(t, os.Mkdir(path, 0o755))
	require.NoError(t, unix.Mount("tmpfs", path, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func faults() []faultCase {
	return []faultCase{
		{name: "FUSE: statfs is never answered", rig: silent(faultfs.Statfs), result: "stuck", check: "statfs", cause: fuseDaemonSilent},
		{name: "FUSE: getattr is never answered", checks: "stat", rig: silent(faultfs.Getattr), result: "stuck", check: "stat", cause: fuseDaemonSilent},
		{name: "FUSE: opendir is never answered", rig: silent(faultfs.Opendir), result: "stuck", check: "readdir", cause: fuseDaemonSilent},
		{name: "FUSE: readdir is never answered", rig: silent(faultfs.Readdir), result: "stuck", check: "readdir", cause: fuseDaemonSilent},
		{name: "FUSE: read is never answered", checks: "statfs read", rig: silent(faultfs.Read), result: "stuck", check: "read", cause: fuseDaemonSilent},
		{name: "FUSE: lookup is never answered", checks: "statfs read", rig: silent(faultfs.Lookup), result: "stuck", check: "read", cause: fuseDaemonSilent},
		{name: "FUSE: nothing is answered", rig: silent(), result: "stuck", check: "statfs", cause: fuseDaemonSilent},
		{name: "FUSE: daemon stopped before it read the request", rig: fuse((*faultfs.FS).Pause), result: "stuck", check: "statfs", cause: fuseDaemonSilent},
		{name: "FUSE: daemon slow", rig: fuse(func(fs *faultfs.FS) { fs.Delay(300*time.Millisecond, faultfs.Statfs) }), result: "slow", check: "statfs"},
		{name: "FUSE: daemon died", rig: daemonDies, result: "error", errno: "ENOTCONN", check: "statfs", cause: fuseDaemonDead},
		{name: "FUSE: EIO", rig: fails(unix.EIO, faultfs.Statfs), result: "error", errno: "EIO", check: "statfs", cause: ioError},
		{name: "FUSE: EIO in readdir alone", rig: fails(unix.EIO, faultfs.Readdir), result: "error", errno: "EIO", check: "readdir", cause: ioError},
		{name: "FUSE: ESTALE", rig: fails(unix.ESTALE, faultfs.Statfs), result: "stale", errno: "ESTALE", check: "statfs", cause: ioError},
		{name: "FUSE: EACCES", rig: fails(unix.EACCES, faultfs.Statfs), result: "denied", errno: "EACCES", check: "statfs", cause: permission},
		{name: "FUSE: EPERM", rig: fails(unix.EPERM, faultfs.Opendir), result: "denied", errno: "EPERM", check: "readdir", cause: permission},
		{name: "FUSE: ETIMEDOUT", rig: fails(unix.ETIMEDOUT, faultfs.Statfs), result: "error", errno: "ETIMEDOUT", check: "statfs", cause: ioError},
		{name: "FUSE: ENOTCONN from a daemon that lives", rig: fails(unix.ENOTCONN, faultfs.Statfs), result: "error", errno: "ENOTCONN", check: "statfs", cause: result.FUSEServerUnreachable},
		{name: "FUSE: ENOSPC", rig: fails(unix.ENOSPC, faultfs.Opendir), result: "error", errno: "ENOSPC", check: "readdir", cause: noSpace},
		{name: "FUSE: EROFS", rig: fails(unix.EROFS, faultfs.Opendir), result: "error", errno: "EROFS", check: "readdir", cause: readOnly},
		{name: "sshfs: stopped", rig: bySSH(pauseDaemon, resumeDaemon), result: "stuck", check: "statfs", cause: fuseDaemonSilent, reason: "its daemon sshfs .* is stopped: kill -CONT"},
		{name: "sshfs: killed", rig: bySSH(daemonEnds, mountedAnew), result: "error", errno: "ENOTCONN", check: "statfs", cause: fuseDaemonDead},
		{name: "sshfs: sshd and the session stopped", rig: bySSH(hostPauses, hostResumes), result: "stuck", check: "statfs", cause: result.FUSEServerSilent, reason: `its daemon sshfs .* waits for its server 127\.0\.0\.1:\d+ of root@127\.0\.0\.1:/.*, by ssh \(process \d+\): it (has sent nothing for|is connected, and has sent something)`},
		{name: "sshfs: packets get lost", rig: bySSH(networkBreaks, networkHeals), result: "stuck", check: "statfs", cause: result.FUSEServerUnreachable, reason: `its server 127\.0\.0\.1:\d+ of root@.*: nothing comes back`},
		{name: "sshfs with reconnect: sshd killed: its port refuses", rig: bySSH(hostEnds, hostStarts, "reconnect"), result: "error", errno: "EIO", check: "statfs", cause: result.FUSEServerUnreachable, reason: `its daemon sshfs .* of root@.*: there is no connection`},
		{name: "sshfs without reconnect: sshd killed: it unmounts", rig: bySSH(hostEnds, hostAndMountAnew), result: "missing", cause: notMounted},
		{name: "sshfs: the session alone stopped", rig: bySSH(sessionPauses, hostResumes), result: "stuck", check: "statfs", cause: result.FUSEServerSilent, reason: `by ssh \(process \d+\): it (has sent nothing for|is connected, and has sent something)`},
		{name: "sshfs with ServerAliveInterval: packets get lost until it gives up: it unmounts", rig: bySSH(networkBreaks, networkAndMountAnew, "ServerAliveInterval=1", "ServerAliveCountMax=2"), result: "missing", cause: notMounted},
		{name: "overlay over sshfs: sshd and the session stopped", rig: lies(overlayOf), result: "stuck", check: "statfs", cause: result.FUSEServerSilent, reason: "the directory it lies on, .*, is on "},
		{name: "ext4 on a loop device whose image is on sshfs: sshd and the session stopped", checks: "statfs readdir device", rig: lies(imageOn), result: "timeout", check: "device", cause: result.FUSEServerSilent, reason: "the image it lies on, .*, is on "},
		{name: "mounted below sshfs: sshd and the session stopped", rig: lies(mountedBelow), result: "stuck", check: "statfs", cause: result.FUSEServerSilent},
		{name: "bindfs over sshfs: sshd and the session stopped", rig: onTop("bindfs", "-f"), result: "stuck", check: "statfs", cause: result.FUSEServerSilent, reason: `its daemon bindfs .* uses .*\.below, which hangs`},
		{name: "mergerfs over sshfs: sshd and the session stopped", rig: onTop("mergerfs", "-f"), result: "stuck", check: "statfs", cause: result.FUSEServerSilent, reason: `its daemon mergerfs .* uses .*\.below, which hangs`},
		{name: "ext4: frozen", checks: "statfs readdir write", rig: frozenFS("ext4", loopfs.DefaultSize), result: "stuck", check: "write", cause: frozen},
		{name: "xfs: frozen", checks: "statfs readdir write", rig: frozenFS("xfs", 320<<20), result: "stuck", check: "write", cause: frozen},
		{name: "ext4: full", checks: "statfs write", rig: fullFS, result: "error", errno: "ENOSPC", check: "write", cause: noSpace},
		{name: "ext4: turned read-only after an error", rig: turnsReadOnly, result: "error", errno: "EROFS", cause: readOnly},
		{name: "ext4: its device never answers", checks: "statfs read", rig: onFaultyDevice(func(d *faultfs.FS) { d.Silence(faultfs.Read) }, (*faultfs.FS).Heal), result: "timeout", check: "read", cause: deviceHangs},
		{name: "ext4: its device never answers a write", checks: "statfs write", rig: onFaultyDevice(func(d *faultfs.FS) { d.Silence(faultfs.Write) }, (*faultfs.FS).Heal), result: "stuck", check: "write", cause: deviceHangs},
		{name: "ext4: its device fails", checks: "statfs read", rig: onFaultyDevice(func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Read) }, (*faultfs.FS).Heal), result: "error", errno: "EIO", check: "read", cause: result.DeviceErrors, logged: true},
		{name: "ext4: its device fails, all that is asked for is in memory", checks: "statfs readdir device", rig: inUse(func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Read) }), result: "error", errno: "EIO", check: "device", cause: result.DeviceErrors},
		{name: "ext4: its device never answers, all that is asked for is in memory", checks: "statfs readdir device", rig: inUse(func(d *faultfs.FS) { d.Silence(faultfs.Read) }), result: "timeout", check: "device", cause: deviceHangs},
		{name: "ext4: the kernel has shut it down", checks: "statfs readdir device", rig: shutDown, result: "error", errno: "EIO", check: "readdir", cause: result.FSShutdown},
		{name: "expected, and not mounted", rig: unmounted, result: "missing", cause: notMounted},
	}
}

// TestFaults makes each fault of a local file system for real, and holds what
// mountstat says of it against what it should. Where FAULTS names a file, it
// writes its table there: "make faults" does so.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	faultfs.Require(t)
	table := document.Table{Header: []string{"fault", "checks", "result", "errno", "failed_check", "cause", "reported after", "recovered after"}}
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			path, inflict, heal := f.rig(t)
			m, _ := newInput(t, within(timeout), func(m *Mountstat) {
				m.MountPoints = []string{path, path + below, filepath.Join(os.TempDir(), "TestFaults*", "*")}
				m.Expected = []string{path}
				m.SlowThreshold = config.Duration(200 * time.Millisecond)
				m.Canary = faultfs.FileName
				if strings.HasPrefix(f.name, "ext4") {
					m.Canary = ".mountstat"
				}
				m.IgnoreFS = nil
				if f.checks != "" {
					m.Checks = strings.Fields(f.checks)
				}
			})
			await := func(result string, isThere func(telegraf.Metric) bool) (telegraf.Metric, time.Duration) {
				t.Helper()
				for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
					metric := at(collect.Gather(t, m), path)
					if text(metric, "result") == result && isThere(metric) {
						return metric, time.Since(began)
					}
					require.Less(t, time.Since(began), 30*time.Second, "%s does not come, but %v", result, metric)
				}
			}
			always := func(telegraf.Metric) bool { return true }
			await("ok", always)
			inflict()
			metric, reported := await(f.result, f.isExplained)
			require.Equal(t, f.errno, text(metric, "errno"), "%v", metric)
			require.Equal(t, f.check, text(metric, "failed_check"), "%v", metric)
			require.Equal(t, string(f.cause), text(metric, "cause"), "%v", metric)
			require.Regexp(t, f.reason, text(metric, "reason"), "%v", metric)
			heal()
			metric, recovered := await("ok", always)
			for _, name := range []string{"errno", "cause", "failed_check", "stuck_pid"} {
				require.False(t, metric.HasField(name), "%v", metric)
			}
			noneLeft(t, m)
			checks := f.checks
			if checks == "" {
				checks = "statfs readdir"
			}
			table.Add(f.name, checks, f.result, f.errno, f.check, string(f.cause), seconds(reported), seconds(recovered))
		})
	}
	if name := os.Getenv("FAULTS"); name != "" && !t.Failed() {
		require.NoError(t, table.Write(name, "local"))
	}
}

// TestFaults_NoneOfAHealthyHost gathers under load: both CPUs busy, and two file
// systems written to. It does so 1000 times for "make faults", 20 times
// otherwise.
func TestFaults_NoneOfAHealthyHost(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	faultfs.Require(t)
	gathers := 20
	if os.Getenv("FAULTS") != "" {
		gathers = 1000
	}
	var paths []string
	ext4 := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	paths = append(paths, ext4.Dir, tmpfs(t, "", "size=32m"), "/")
	for range 20 {
		paths = append(paths, faultfs.New(t).Dir)
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			file := filepath.Join(paths[i%2], "load"+strconv.Itoa(i))
			for block := make([]byte, 1<<20); ; {
				select {
				case <-stop:
					return
				default:
				}
				_ = os.WriteFile(file, block, 0o600)
				for range 20 {
					_ = sha256.Sum256(block)
				}
			}
		})
	}
	m, log := newInput(t, func(m *Mountstat) {
		only(paths...)(m)
		m.Checks = []string{"statfs", "stat", "readdir", "device", "write"}
		m.Timeout = config.Duration(5 * time.Second)
		m.SlowThreshold = config.Duration(time.Second)
		m.Override = []Override{{FS: []string{"fuse.*"}, Checks: []string{"statfs", "stat", "readdir"}}} // it makes no files
	})
	faults, slow := 0, 0
	var longest time.Duration
	for range gathers {
		began := time.Now()
		g := collect.Gather(t, m)
		longest = max(longest, time.Since(began))
		require.Len(t, g.Named("mountstat"), len(paths))
		faults += int(summary(t, g, "faults"))
		slow += int(summary(t, g, "slow"))
	}
	close(stop)
	load.Wait()
	require.Zero(t, faults, "%q", log.lines)
	t.Logf("%d gathers of %d mounts: no fault, %d slow, the longest took %v", gathers, len(paths), slow, longest)
	if name := os.Getenv("FAULTS"); name != "" {
		table := document.Table{Header: []string{"gathers under load", "mounts", "faults reported", "slow", "longest gather"}}
		table.Add(strconv.Itoa(gathers), strconv.Itoa(len(paths)), strconv.Itoa(faults), strconv.Itoa(slow), longest.Round(time.Millisecond).String())
		require.NoError(t, table.Write(name, "healthy"))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// text returns a field, or "".
func text(metric telegraf.Metric, name string) string {
	if metric == nil {
		return ""
	}
	value, _ := metric.GetField(name)
	s, _ := value.(string)
	return s
}
