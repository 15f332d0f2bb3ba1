package mountstat

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sysfs"
)

// A listing of a bucket takes minutes, and is paid for.
func TestMountstat_ListsNoBucket(t *testing.T) {
	faultfs.Require(t)
	for what, o := range map[string]faultfs.Options{
		"by type":   {Type: "fuse.rclone", Source: "remote:bucket"},
		"by source": {Type: "fuse", Source: "mountpoint-s3"},
	} {
		t.Run(what, func(t *testing.T) {
			fs := faultfs.NewWith(t, t.TempDir(), o)
			fs.Silence(faultfs.Opendir, faultfs.Readdir)
			m, _ := newInput(t, only(fs.Dir))
			bucket := at(collect.Gather(t, m), fs.Dir)
			assert.Equal(t, "ok", field(t, bucket, "result"))
			assert.True(t, bucket.HasField("statfs_seconds"))
			assert.False(t, bucket.HasField("readdir_seconds"))

			fs.Heal()
			m, _ = newInput(t, func(m *Mountstat) {
				m.MountPoints = []string{fs.Dir}
				m.Override = []Override{{MountPoints: []string{fs.Dir}, Checks: []string{"readdir"}}}
			})
			assert.True(t, at(collect.Gather(t, m), fs.Dir).HasField("readdir_seconds"), "if somebody wants it")
		})
	}
}

// A check writes nothing to a disk: not even that the root was read.
func TestMountstat_WritesNoAccessTime(t *testing.T) {
	for _, uid := range []int{0, 4711} {
		disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
		require.NoError(t, unix.Mount("", disk.Dir, "", unix.MS_REMOUNT|unix.MS_STRICTATIME, ""))
		require.NoError(t, unix.Chown(disk.Dir, uid, uid))
		accessed := func() unix.Timespec {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(disk.Dir, &st))
			return st.Atim
		}
		before := accessed()
		time.Sleep(20 * time.Millisecond) // more than the kernel's clock needs to move
		m, _ := newInput(t, only(disk.Dir))
		for range 3 {
			metric := at(collect.Gather(t, m), disk.Dir)
			assert.Equal(t, "ok", field(t, metric, "result"))
			assert.True(t, metric.HasField("readdir_seconds"))
		}
		assert.Equal(t, before, accessed(), "owner %d", uid)
		named := mounts.Named(disk.Dir)
		assert.True(t, m.leavesAtime(&target{Unit: &mounts.Unit{Probed: &named}, policy: m.policy}), "nor where there is no mount table")
	}
}

// What reads from a disk that sleeps wakes it.
func TestMountstat_LetsDisksSleep(t *testing.T) {
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(disk.Dir, &st))
	number := mountNumber(t, st.Dev)
	fake := sysfs.New(t)
	dir := fake.Disk(number, "pci0000:00/0:0:0:0/block/sda")
	for _, stopsByItself := range []bool{false, true} {
		m, _ := newInput(t, func(m *Mountstat) {
			m.MountPoints, m.LetDisksSleep = []string{disk.Dir}, stopsByItself
			m.host.Sys = fake.Dir
		})
		completed := 0
		listed := func() bool {
			metric := at(collect.Gather(t, m), disk.Dir)
			assert.Equal(t, "ok", field(t, metric, "result"))
			assert.True(t, metric.HasField("statfs_seconds"))
			reads := metric.HasField("readdir_seconds")
			if !reads {
				assert.Contains(t, field(t, metric, "reason"), "readdir was left out: its disk sleeps")
			}
			return reads
		}
		busy := func() {
			completed++
			fake.Stat(dir, completed, 0)
		}
		fake.Set(dir+"/device/power/runtime_status", "active")
		busy()
		assert.Equal(t, !stopsByItself, listed(), "nothing is known at first")
		assert.Equal(t, !stopsByItself, listed(), "no request since")
		busy()
		assert.True(t, listed())
		fake.Stat(dir, completed, 1)
		assert.True(t, listed(), "it does not answer, so it is asked")
		fake.Set(dir+"/device/power/runtime_status", "suspended")
		busy()
		assert.False(t, listed())
		fake.Set(dir+"/device/power/runtime_status", "active")
		busy()
		assert.True(t, listed())
	}
}
