package mountstat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/kernellog"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// needLog skips the test where the kernel's log can't be read.
func needLog(t *testing.T) {
	t.Helper()
	log, err := kmsg.Open(kmsg.Device)
	if err != nil {
		t.Skip(err)
	}
	log.Close()
}

// deviceOf is the kernel's name of the device that is mounted on a path.
func deviceOf(t *testing.T, m *Mountstat, path string) string {
	t.Helper()
	for _, target := range m.targets {
		if target.Probed.Mountpoint == path {
			return target.Probed.Device
		}
	}
	require.Fail(t, "not a target", path)
	return ""
}

// The kernel of this machine logs the errors of a real device.
func TestMountstat_QuotesTheKernelAboutADeviceThatFails(t *testing.T) {
	faultfs.Require(t)
	needLog(t)
	dir, inflict, heal := onFaultyDevice(func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Read) }, (*faultfs.FS).Heal)(t)
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Checks = []string{"statfs", "read"}
	})
	metric := at(collect.Gather(t, m), dir)
	require.Equal(t, "ok", text(metric, "result"))
	before, device := field(t, metric, "kernel_errors").(int64), deviceOf(t, m, dir)
	inflict()
	require.Eventually(t, func() bool { // the kernel limits the rate of its messages
		metric = at(collect.Gather(t, m), dir)
		assert.Equal(t, "error EIO read", text(metric, "result")+" "+text(metric, "errno")+" "+text(metric, "failed_check"))
		return text(metric, "cause") == "device_errors"
	}, 30*time.Second, 100*time.Millisecond)
	assert.Regexp(t, "^the kernel: .*I/O error.* dev "+device+",", text(metric, "reason"))
	assert.Equal(t, "device_errors", text(at(collect.Gather(t, m), dir), "cause"))
	assert.Greater(t, field(t, at(collect.Gather(t, m), dir), "kernel_errors"), before)
	heal()
	require.Eventually(t, func() bool {
		metric = at(collect.Gather(t, m), dir)
		return text(metric, "result") == "ok"
	}, 30*time.Second, 50*time.Millisecond)
	assert.False(t, metric.HasField("reason"), "messages alone are no fault")
	assert.Greater(t, field(t, metric, "kernel_errors"), before)

	m, _ = newInput(t, only(dir)) // after a restart
	metric = at(collect.Gather(t, m), dir)
	assert.Equal(t, "ok", text(metric, "result"))
	assert.Positive(t, field(t, metric, "kernel_errors"), "as far back as the log goes")
}

// A journal that can't be written turns ext4 read-only.
func TestMountstat_QuotesWhyAFileSystemTurnedReadOnly(t *testing.T) {
	faultfs.Require(t)
	needLog(t)
	dir, inflict, _ := onFaultyDevice(func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Write) }, (*faultfs.FS).Heal)(t)
	m, log := newInput(t, only(dir))
	require.Equal(t, "ok", text(at(collect.Gather(t, m), dir), "result"))
	device := deviceOf(t, m, dir)
	inflict()
	var reason string
	require.Eventually(t, func() bool { // who finds the journal aborted turns it read-only
		if file, err := os.Create(filepath.Join(dir, "file")); err == nil {
			_, _ = file.WriteString("x")
			_ = file.Sync()
			file.Close()
			return false
		}
		metric := at(collect.Gather(t, m), dir)
		reason = text(metric, "reason")
		return text(metric, "cause") == "read_only"
	}, 30*time.Second, 100*time.Millisecond)
	assert.Regexp(t, "the kernel: .*"+device, reason)
	assert.Equal(t, 1, strings.Count(reason, "the kernel: "))
	assert.NotEmpty(t, log.about("read_only; the kernel: "), "by the kernel's log, or by the mount table: whichever comes first")
}

// XFS says nothing but EIO, as any failing file system does.
func TestMountstat_KnowsByTheKernelsLogThatAFileSystemWasShutDown(t *testing.T) {
	needLog(t)
	for fstype, size := range map[string]int64{"xfs": 320 << 20, "ext4": loopfs.DefaultSize} {
		t.Run(fstype, func(t *testing.T) {
			fs := loopfs.New(t, fstype, size, "")
			m, _ := newInput(t, only(fs.Dir))
			verdict := func() string {
				metric := at(collect.Gather(t, m), fs.Dir)
				return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", text(metric, "result"), text(metric, "errno"), text(metric, "cause"), text(metric, "reason")))
			}
			require.Equal(t, "ok", verdict())
			shutFileSystemDown(t, fs.Dir)
			assert.Regexp(t, "^error EIO fs_shutdown the kernel: .*"+deviceOf(t, m, fs.Dir)+".*(?i:shut)", verdict())
			require.NoError(t, unix.Unmount(fs.Dir, 0))
			collect.Gather(t, m) // the kernel does not log each of many mounts
			require.NoError(t, unix.Mount(fs.Device, fs.Dir, fstype, 0, ""))
			assert.Equal(t, "ok", verdict())
		})
	}
}

// What the kernel's log says is no evidence if it is of another time or another device; and
// without it, all is as it was.
func TestMountstat_ChoosesItsEvidence(t *testing.T) {
	faultfs.Require(t)
	dir, inflict, _ := onFaultyDevice(func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Read) }, (*faultfs.FS).Heal)(t)
	name, write := kernellog.New(t)
	sequence := 0
	say := func(format string, a ...any) {
		sequence++
		write(fmt.Sprintf("3,%d,1,-;"+format+"\n", append([]any{sequence}, a...)...))
	}
	m, _ := newInput(t, func(m *Mountstat) {
		only(dir)(m)
		m.Checks = []string{"statfs", "read"}
		m.kernelLog.name = ""
	})
	require.False(t, at(collect.Gather(t, m), dir).HasField("kernel_errors"))
	device := deviceOf(t, m, dir)
	inflict()
	expect := func(errors any, cause, reason string) {
		t.Helper()
		metric := at(collect.Gather(t, m), dir)
		got, _ := metric.GetField("kernel_errors")
		assert.Equal(t, errors, got)
		assert.Equal(t, "error EIO", text(metric, "result")+" "+text(metric, "errno"))
		assert.Equal(t, cause, text(metric, "cause"))
		assert.Equal(t, reason, text(metric, "reason"))
	}
	expect(nil, "io_error", "")
	m.kernelLog.name = name
	say("I/O error, dev %s, sector 1", device) // soon after the boot
	expect(int64(1), "io_error", "")
	say("I/O error, dev %s1, sector 2", device)
	expect(int64(1), "io_error", "")
	say("operation not supported error, dev %s, sector 2", device)
	expect(int64(1), "io_error", "")
	say("EXT4-fs error (device %s): \\x1b[2Jan error", device)
	expect(int64(2), "io_error", `the kernel: EXT4-fs error (device `+device+`): \033[2Jan error`)
	say("I/O error, dev %s, sector %s", device, strings.Repeat("3", 1000))
	quoted := "the kernel: I/O error, dev " + device + ", sector 3"
	expect(int64(3), "device_errors", quoted+strings.Repeat("3", maxQuote+len("the kernel: ")-len(quoted)))
	say("EXT4-fs (%s): shut down requested (1)", device)
	expect(int64(4), "fs_shutdown", "the kernel: EXT4-fs ("+device+"): shut down requested (1)")
	say("EXT4-fs (%s): mounted filesystem", device)
	expect(int64(4), "io_error", "")
	say("I/O error, dev %s, sector 4", device)
	expect(int64(5), "device_errors", "the kernel: I/O error, dev "+device+", sector 4")
}

// An ext4 whose journal was given up refuses every write, though its device may be well again
// and the mount table says nothing. It is one until it is mounted anew.
func TestMountstat_SeesAnAbortedJournal(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	name, write := kernellog.New(t)
	say := func(sequence int, says string) { write(fmt.Sprintf("3,%d,1,-;%s\n", sequence, says)) }
	m, _ := newInput(t, func(m *Mountstat) {
		only(fs.Dir)(m)
		m.kernelLog.name = name
	})
	verdict := func() string {
		metric := at(collect.Gather(t, m), fs.Dir)
		return strings.TrimSpace(strings.Join([]string{text(metric, "result"), text(metric, "errno"), text(metric, "cause"), text(metric, "reason")}, " "))
	}
	require.Equal(t, "ok", verdict())
	device := deviceOf(t, m, fs.Dir)
	for sequence, step := range []struct{ says, want string }{
		{"Aborting journal on device sdx-8.", "ok"},
		{"EXT4-fs error (device " + device + "): an error", "ok"},
		{"Aborting journal on device " + device + "-8.", "error EROFS read_only the kernel: Aborting journal on device " + device + "-8."},
		{"EXT4-fs (" + device + "): re-mounted. Opts: noatime", "error EROFS read_only the kernel: Aborting journal on device " + device + "-8."},
		{"EXT4-fs (" + device + "): mounted filesystem", "ok"},
		{"Aborting journal on device " + device + "-8.", "error EROFS read_only the kernel: Aborting journal on device " + device + "-8."},
		{"EXT4-fs (" + device + "): recovery complete", "ok"}, // and too many mounts for the message above
		{"Aborting journal on device " + device + ".", "error EROFS read_only the kernel: Aborting journal on device " + device + "."},
	} {
		say(sequence+1, step.says)
		assert.Equal(t, step.want, verdict(), step.says)
	}
	// Records that were lost may have told of a mount; after that, what comes counts again.
	say(100, "usb 1-1: another device")
	assert.Equal(t, "ok", verdict())
	say(101, "Aborting journal on device "+device+"-8.")
	for range 2 {
		assert.Equal(t, "error EROFS read_only the kernel: Aborting journal on device "+device+"-8.", verdict())
	}
	// The kernel does not log each of many mounts.
	require.NoError(t, unix.Unmount(fs.Dir, 0))
	collect.Gather(t, m)
	require.NoError(t, unix.Mount(fs.Device, fs.Dir, "ext4", unix.MS_NOATIME, ""))
	assert.Equal(t, "ok", verdict())
}

// What the log says of an earlier mount is past, also where the kernel has suppressed the message of
// the present one, and vfsprobe was not there to see it.
func TestMountstat_AnAbortedJournalOfAnEarlierMount(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	// The journal's thread does not show in the PID namespace of these tests.
	thread := exec.Command("sh", "-c", "printf jbd2/fake-8 >/proc/self/comm; read -r end")
	stdin, err := thread.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, thread.Start())
	t.Cleanup(func() { _ = stdin.Close(); _ = thread.Wait() })
	comm := fmt.Sprintf("/proc/%d/comm", thread.Process.Pid)
	require.Eventually(t, func() bool { content, _ := os.ReadFile(comm); return string(content) == "jbd2/fake-8\n" }, 10*time.Second, time.Millisecond)
	sysfs := func(thread int) string {
		sys := t.TempDir()
		for _, name := range []string{"block", "dev"} {
			require.NoError(t, os.Symlink(filepath.Join("/sys", name), filepath.Join(sys, name)))
		}
		dir := filepath.Join(sys, "fs/ext4", filepath.Base(fs.Device))
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "journal_task"), fmt.Appendln(nil, thread), 0o600))
		return sys
	}
	var now unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	mounted := time.Duration(now.Nano())
	device := filepath.Base(fs.Device)
	restarted := func(sys string, log ...string) string {
		t.Helper()
		name, write := kernellog.New(t)
		for i, says := range log {
			write(fmt.Sprintf("3,%d,%s\n", i+1, says))
		}
		m, _ := newInput(t, func(m *Mountstat) {
			only(fs.Dir)(m)
			m.kernelLog.name = name
			m.host.Sys = sys
		})
		metric := at(collect.Gather(t, m), fs.Dir)
		return strings.TrimSpace(text(metric, "result") + " " + text(metric, "cause"))
	}
	aborted := func(at time.Duration) string {
		return fmt.Sprintf("%d,-;Aborting journal on device %s-8.", at.Microseconds(), device)
	}
	suppressed := fmt.Sprintf("%d,-;EXT4-fs mount: 12 callbacks suppressed", (mounted + 3*time.Minute).Microseconds())
	long := 2*time.Minute + mounted/5_000
	require.Greater(t, mounted, long+time.Second, "the machine was booted just now")
	told, untold := sysfs(thread.Process.Pid), sysfs(0)
	for what, c := range map[string]struct {
		log  []string
		want string
	}{
		"long before the mount":                 {[]string{aborted(mounted - long)}, "ok"},
		"before it, but hardly":                 {[]string{aborted(mounted - time.Second/2)}, "error read_only"},
		"before it, and a message is missing":   {[]string{aborted(mounted - time.Second/2), suppressed}, "ok"},
		"since":                                 {[]string{aborted(mounted + time.Minute)}, "error read_only"},
		"since, and a message is missing":       {[]string{aborted(mounted + time.Minute), suppressed}, "error read_only"},
		"the kernel has logged the mount later": {[]string{aborted(mounted + time.Minute), fmt.Sprintf("%d,-;EXT4-fs (%s): mounted filesystem", (mounted + 2*time.Minute).Microseconds(), device)}, "ok"},
	} {
		assert.Equal(t, c.want, restarted(told, c.log...), what)
	}
	// Where the kernel does not tell when its file system was mounted, its log alone counts.
	assert.Equal(t, "error read_only", restarted(untold, aborted(mounted-long)))
	assert.Equal(t, "ok", restarted(untold, aborted(mounted-long), suppressed))
	assert.Equal(t, "error read_only", restarted(untold, suppressed, aborted(mounted-long)), "it was suppressed before")
}

// Without a lease a server's refusal says nothing of the modes of files: the kernel names why.
func TestMountstat_NamesWhyAnNFS4MountHasNoLease(t *testing.T) {
	faultfs.Require(t)
	name, write := kernellog.New(t)
	sequence := 0
	say := func(text string) {
		sequence++
		var now unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
		write(fmt.Sprintf("4,%d,%d,-;%s\n", sequence, now.Nano()/1000, text))
	}
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, func(m *Mountstat) {
		withTable(m, tableOf(t, fs.Dir, "/", "rw", "nfs4", "nas:/data", "rw,vers=4.2,addr=127.0.0.1"))
		m.kernelLog.name = name
	})
	verdict := func(errno unix.Errno) string {
		t.Helper()
		fs.Fail(errno, faultfs.Statfs)
		metric := at(collect.Gather(t, m), fs.Dir)
		fs.Heal()
		return strings.Join([]string{text(metric, "result"), text(metric, "cause"), text(metric, "reason")}, " ")
	}
	const inUse, refused = "NFS: Server nas reports our clientid is in use", "NFS: state manager: check lease failed on NFSv4 server nas with error 13"
	well := func() {
		t.Helper()
		require.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	}
	well()
	say("NFS: Server other reports our clientid is in use")
	assert.Regexp(t, "^denied permission ", verdict(unix.EPERM), "another server's")
	well()
	say(inUse)
	assert.Equal(t, "denied client_id_in_use the kernel: "+inUse, verdict(unix.EPERM))
	assert.Regexp(t, "^denied permission ", verdict(unix.EACCES), "the state manager's error is another")
	well()
	assert.Regexp(t, "^denied permission ", verdict(unix.EPERM), "it was well since")
	say(refused)
	assert.Equal(t, "denied lease_refused the kernel: "+refused, verdict(unix.EACCES))
	say("NFS: state manager failed on NFSv4 server nas with error 5")
	assert.Equal(t, "denied lease_refused the kernel: "+refused, verdict(unix.EACCES), "what was said before")
}

// What the kernel's client says of the server is quoted while it is news.
func TestMountstat_QuotesTheKernelAboutAServer(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, within(slow))
	networkMount(t, fs, "cifs", rpchost.Serve(t, "127.0.0.1:0", silence))(m)
	m.kernelLog.name = filepath.Join(t.TempDir(), "none")
	require.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	const says = `CIFS: VFS: \\nas has not responded in 180 seconds. Reconnecting...`
	about := kmsg.ServerMessage{Server: `\\nas`}
	reason := func() string { return text(at(collect.Gather(t, m), fs.Dir), "reason") }
	fs.Pause()
	assert.NotContains(t, text(at(gatherUntil(t, m, fs.Dir, "timeout"), fs.Dir), "reason"), "the kernel")
	m.kernelLog.noteServer(about, message{text: says, at: time.Now()})
	assert.Contains(t, reason(), "the kernel: "+says)
	m.kernelLog.noteServer(about, message{text: says, at: time.Now().Add(-time.Hour)})
	assert.NotContains(t, reason(), "the kernel", "it is of an earlier fault")
	m.kernelLog.noteServer(kmsg.ServerMessage{Server: `\\other`}, message{text: says, at: time.Now()})
	assert.NotContains(t, reason(), "the kernel", "it is of another server")
	about.Well = true
	m.kernelLog.noteServer(about, message{text: says, at: time.Now()})
	assert.Len(t, m.kernelLog.servers, 1)
}

// Messages about Ceph's daemons do not say which cluster they are of.
func TestMountstat_TheKernelsMessagesAboutCeph(t *testing.T) {
	m, _ := newPretendedNFS(t)
	m.servers.byQuestion = make(map[serverpool.Question]*server)
	of := func(source string) *target {
		t := &target{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: "ceph", Source: source}}}, policy: m.policy}
		m.servers.link(t, nil)
		return t
	}
	one, same, other := of("10.0.0.1:6789:/"), of("10.0.0.1:6789:/data"), of("10.0.0.2:6789:/")
	now := time.Now()
	m.kernelLog.noteServer(kmsg.ServerMessage{Server: "mds"}, message{text: "ceph: mds0 hung", at: now.Add(-time.Second)})
	m.kernelLog.noteServer(kmsg.ServerMessage{Server: "osd"}, message{text: "libceph: osd0 down", at: now})
	m.targets = []*target{one, same}
	assert.Equal(t, "the kernel: libceph: osd0 down", m.kernelLog.clientSays(one, result.CephMDSDead, m.targets))
	assert.Equal(t, "the kernel: ceph: mds0 hung", m.kernelLog.clientSays(one, result.ClientEvicted, m.targets))
	assert.Empty(t, m.kernelLog.clientSays(one, result.CephMonitorsDead, m.targets), "it is of other daemons")
	m.targets = []*target{one, same, other}
	assert.Empty(t, m.kernelLog.clientSays(one, result.CephMDSDead, m.targets))
}
