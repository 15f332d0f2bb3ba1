package mountstat

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sysfs"
)

// All that is asked for is in caches: a file system that the kernel has shut down looked
// well for ever.
func TestMountstat_SeesAFileSystemThatWasShutDown(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, log := newInput(t, only(disk.Dir))
	for range 2 {
		assert.Equal(t, "ok", text(at(collect.Gather(t, m), disk.Dir), "result"))
	}
	shutFileSystemDown(t, disk.Dir)
	for range 2 {
		metric := at(collect.Gather(t, m), disk.Dir)
		assert.Equal(t, "error EIO fs_shutdown", text(metric, "result")+" "+text(metric, "errno")+" "+text(metric, "cause"))
	}
	assert.Len(t, log.about("fs_shutdown"), 1)
}

func shutFileSystemDown(t *testing.T, path string) {
	t.Helper()
	dir, err := os.Open(path)
	require.NoError(t, err)
	defer dir.Close()
	const shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h
	require.NoError(t, unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, 2 /* without flushing */))
}

// A device that was used is read past the page cache: what is in that says nothing of it.
func TestMountstat_ReadsFromDevicesInUse(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	m, _ := newInput(t, only(disk.Dir))
	gather := func() telegraf.Metric { return at(collect.Gather(t, m), disk.Dir) }
	use := func() {
		file := filepath.Join(disk.Dir, "file")
		require.NoError(t, os.WriteFile(file, []byte("x"), 0o644))
		f, err := os.Open(file)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	assert.False(t, gather().HasField("device_seconds"), "nothing is known of its use")
	use()
	for range 3 {
		metric := gather()
		assert.Equal(t, "ok", text(metric, "result"))
		assert.True(t, metric.HasField("device_seconds"))
	}
	require.NotZero(t, m.targets[0].disk.used)
	require.Eventually(t, func() bool { // ext4 may still have been at work
		used := m.targets[0].disk.used
		gather()
		return m.targets[0].disk.used == used
	}, 30*time.Second, time.Millisecond, "our own reads are no use of it")
}

// What sysfs says of a device is true while a file system on it answers from caches.
func TestMountstat_BelievesSysfsOfDevices(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(disk.Dir, &st))
	number := mountNumber(t, st.Dev)
	fake := sysfs.New(t)
	dir := fake.Disk(number, "pci0000:00/host0/session7/target0:0:0/0:0:0:0/block/sda")
	fake.Set(dir+"/size", "8192")
	session := "devices/pci0000:00/host0/session7/"
	fake.Set(session+"iscsi_session/session7/state", "LOGGED_IN")
	fake.Set(session+"iscsi_session/session7/targetname", "iqn.2026-11.org.example:disk")
	fake.Set(session+"connection7:0/iscsi_connection/connection7:0/persistent_address", "192.0.2.7")
	fake.Set(dir+"/device/state", "running")
	m, log := newInput(t, func(m *Mountstat) {
		only(disk.Dir)(m)
		m.Checks = []string{"statfs", "readdir"} // there is no such node in /dev
		m.host.Sys = fake.Dir
	})
	verdict := func() string {
		metric := at(collect.Gather(t, m), disk.Dir)
		if text(metric, "result") == "ok" {
			return "ok"
		}
		assert.Empty(t, text(metric, "errno"))
		assert.True(t, metric.HasField("statfs_seconds"), "it still answers")
		return text(metric, "result") + " " + text(metric, "cause") + " " + text(metric, "reason")
	}
	assert.Equal(t, "ok", verdict())
	fake.Set(session+"iscsi_session/session7/state", "FAILED")
	assert.Equal(t, "ok", verdict(), "for a moment")
	const target = " (iSCSI target iqn.2026-11.org.example:disk at 192.0.2.7)"
	assert.Equal(t, "error device_hangs sda: iscsi_session session7 is FAILED"+target, verdict())
	fake.Set(dir+"/device/state", "transport-offline")
	assert.Equal(t, "error device_errors sda: device/state is transport-offline"+target, verdict())
	fake.Set(session+"iscsi_session/session7/state", "LOGGED_IN")
	fake.Set(dir+"/device/state", "running")
	assert.Equal(t, "ok", verdict())
	assert.Len(t, log.about("device_hangs"), 1)
	assert.Len(t, log.about("device_errors"), 1)

	fake.Stat(dir, 100, 3)
	assert.Equal(t, "ok", verdict())
	m.targets[0].disk.moved = time.Now().Add(-7 * time.Second)
	assert.Equal(t, "ok", verdict(), "seen once")
	assert.Equal(t, "error device_hangs sda: 3 requests are in flight, and none was completed for 7s", verdict())
	fake.Stat(dir, 101, 3)
	assert.Equal(t, "ok", verdict())

	fake.Disk("8:200", "virtual/block/other")
	fake.Remove("dev/block/" + number)
	assert.Equal(t, "error device_gone "+number+" is not in /sys/dev/block", verdict())
}

func mountNumber(t *testing.T, device uint64) string {
	t.Helper()
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}

// Who has met an error has used the device, also where it counts no requests that fail.
func TestDisk_CountErrors(t *testing.T) {
	fake := sysfs.New(t)
	fake.Disk("252:0", "virtual/block/dm-0")
	device, now := blockdev.Tree(fake.Dir).ByNumber(252, 0), time.Now()
	var d disk
	look := func(errors int64) bool {
		d.countErrors(errors, now)
		d.inspect(device, false, false, now)
		return d.inUse
	}
	assert.False(t, look(3), "those of another boot")
	assert.False(t, look(3))
	assert.True(t, look(4))
	now = now.Add(useInterval)
	assert.False(t, look(4))
}

// What the kernel's log says of a device is looked into by one read, also if nobody uses it.
func TestDisk_Suspected(t *testing.T) {
	fake := sysfs.New(t)
	fake.Disk("43:0", "virtual/block/nbd0")
	device, now := blockdev.Tree(fake.Dir).ByNumber(43, 0), time.Now()
	var d disk
	read := func() bool {
		d.inspect(device, false, false, now)
		return d.inUse
	}
	assert.False(t, read(), "nobody uses it")
	d.blamed = now
	assert.True(t, read())
	d.answered = now.Add(time.Second)
	assert.False(t, read(), "it is well")
	d.blamed = now.Add(2 * time.Second)
	assert.True(t, read(), "there was another message")
	now = now.Add(maxEvidenceAge + time.Minute)
	assert.False(t, read(), "of long ago")
}

// The field of mountstat and the tag of the disk input's metric are the same name.
func TestMountstat_LabelOf(t *testing.T) {
	fake := sysfs.New(t)
	fake.Set(fake.Disk("253:3", "virtual/block/dm-3")+"/dm/name", "vg-home")
	for source, want := range map[string]string{
		"/dev/mapper/vg-home": "vg-home", "/dev/dm-3": "vg-home",
		"/dev/mapper/other": "other", "/dev/sda1": "", "/dev/vg/home": "", "nas:/dev/mapper/x": "",
	} {
		dir := tmpfs(t, "", "")
		m, _ := newInput(t, func(m *Mountstat) {
			m.MountPoints, m.DiskMetrics, m.Checks, m.host.Sys = []string{dir}, true, []string{"statfs"}, fake.Dir
		})
		withTable(m, tableOf(t, dir, "/", "rw", "ext4", source, "rw"))
		g := collect.Gather(t, m)
		metric := at(g, dir)
		require.NotNil(t, metric, source)
		assert.Equal(t, want, text(metric, "device_label"), source)
		require.Len(t, g.Named("disk"), 1)
		label, _ := g.Named("disk")[0].GetTag("label")
		assert.Equal(t, want, label, source)
	}
}

// With the default checks, and nothing that anybody has made for them.
func TestMountstat_SeesADeviceThatFailsOrHangs(t *testing.T) {
	for _, c := range []struct {
		name    string
		inflict func(*faultfs.FS)
		want    string
	}{
		{"it fails", func(d *faultfs.FS) { d.Fail(unix.EIO, faultfs.Read) }, "error EIO device device_errors"},
		{"it hangs", func(d *faultfs.FS) { d.Silence(faultfs.Read) }, "timeout  device device_hangs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, inflict, heal := onFaultyDevice(c.inflict, (*faultfs.FS).Heal)(t)
			m, log := newInput(t, only(dir))
			if strings.HasPrefix(c.want, "timeout") {
				m, log = newInput(t, only(dir), within(slow))
			}
			verdict := func() string {
				metric := at(collect.Gather(t, m), dir)
				if hangs(metric) {
					return "timeout " + text(metric, "errno") + " " + text(metric, "failed_check") + " " + text(metric, "cause")
				}
				return text(metric, "result") + " " + text(metric, "errno") + " " + text(metric, "failed_check") + " " + text(metric, "cause")
			}
			until := func(want string) { // a busy machine may not come to a check in time
				t.Helper()
				require.Eventually(t, func() bool { return verdict() == want }, 30*time.Second, 50*time.Millisecond)
			}
			until("ok   ")
			require.NoError(t, os.WriteFile(filepath.Join(dir, "use"), []byte("x"), 0o644))
			unix.Sync()
			until("ok   ") // now it is in use
			inflict()
			until(c.want)
			m.targets[0].disk.used = time.Now().Add(-2 * useInterval)
			for range 2 {
				metric := at(collect.Gather(t, m), dir)
				assert.NotEqual(t, "ok", text(metric, "result"), "nobody uses it any more, and it is as dead as before")
				assert.Contains(t, text(metric, "reason"), m.targets[0].disk.device.Name)
			}
			if strings.HasPrefix(c.want, "error") { // for hours: it is not opened by each gather
				target := m.targets[0]
				target.FaultSince, target.disk.readDue = time.Now().Add(-time.Hour), time.Time{} // it is read once more
				require.Equal(t, c.want, verdict())
				for range 3 {
					metric := at(collect.Gather(t, m), dir)
					assert.Equal(t, c.want, strings.Join([]string{text(metric, "result"), text(metric, "errno"), text(metric, "failed_check"), text(metric, "cause")}, " "))
					assert.NotContains(t, text(metric, "reason"), "; ", "it is said once")
					assert.False(t, target.makes(checkDevice))
				}
				assert.WithinDuration(t, time.Now().Add(maxRestTime), target.disk.readDue, maxRestTime/2)
				target.disk.readDue = time.Now()
			}
			heal()
			until("ok   ")
			assert.Len(t, log.about("answers again"), 1)
		})
	}
}

// What bcachefs has counted is read by helpers. No kernel here has bcachefs: the table and
// sysfs are made up.
func TestMountstat_TellsWhatBcachefsHasCounted(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	fake := sysfs.New(t)
	disk := fake.Disk("8:0", "pci0000:00/host0/target0:0:0/0:0:0:0/block/sda")
	m, _ := newInput(t, func(m *Mountstat) { m.MountPoints, m.host.Sys = []string{dir}, fake.Dir })
	withTable(m, tableOf(t, dir, "/", "rw", "bcachefs", "/dev/sda", "rw"))
	gather := func() telegraf.Metric {
		m.disks.bcachefs.due = time.Time{}
		collect.Gather(t, m)
		require.Eventually(t, func() bool { m.mail.Drain(); return !m.disks.bcachefs.reading }, 30*time.Second, time.Millisecond)
		return at(collect.Gather(t, m), dir)
	}
	assert.False(t, gather().HasField("fs_errors"), "sysfs does not say")
	const fs = "fs/bcachefs/83a2ee35-2dcd-4a36-9ffc-e1a7b6a5f0a5/dev-0"
	fake.Link(fs+"/block", disk)
	fake.Set(fs+"/io_errors", "IO errors since filesystem creation\n  read:    2\n  write:   0\n  checksum:1\nIO errors since 3 d ago\n  read:    2\n")
	require.Eventually(t, func() bool { // a busy host may not read it in time
		errors, _ := gather().GetField("fs_errors")
		return errors == int64(3)
	}, 30*time.Second, time.Millisecond)
}
