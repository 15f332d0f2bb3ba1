package mountstat

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func TestPolicy_HoldsBackWhatMakesHungTasks(t *testing.T) {
	for fstype, want := range map[string]struct{ made, heldBack []check }{
		"ext4":       {[]check{checkStatfs, checkStat}, []check{checkReaddir, checkDevice, checkRead, checkWrite}},
		"nfs4":       {[]check{checkStatfs, checkStat, checkReaddir, checkDevice, checkRead}, []check{checkWrite}},
		"fuse.sshfs": {allChecks(), nil},
		"fuseblk":    {allChecks(), nil},
	} {
		mount := mounts.Named("/srv")
		mount.FSType, mount.Source = fstype, "/dev/sda1"
		if fstype == "nfs4" {
			mount.Source = "nas:/export"
		}
		p := policy{checks: allChecks()}
		p.holdBack(func(c check) bool { return makesHungTasks(c, &mount) }, "why")
		assert.Equal(t, want.made, p.checks, fstype)
		if want.heldBack == nil {
			assert.Empty(t, p.heldBack, fstype)
		} else {
			assert.Equal(t, []heldBack{{want.heldBack, "why"}}, p.heldBack, fstype)
		}
	}
}

// On a host whose kernel panics over hung tasks, no helper waits for a disk.
func TestMountstat_DoesNotReadFromDisksWhereThatCouldPanic(t *testing.T) {
	disk, fs := loopfs.New(t, "ext4", loopfs.DefaultSize, ""), faultfs.New(t)
	proc := t.TempDir()
	write := func(name, content string) {
		file := filepath.Join(proc, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	write("1/mountinfo", string(table))
	write("sys/kernel/hung_task_panic", "1\n")
	write("sys/kernel/hung_task_timeout_secs", "120\n")
	m, _ := newInput(t, func(m *Mountstat) {
		m.MountPoints = []string{disk.Dir, fs.Dir}
		roots := m.host.Roots
		roots.Proc, roots.PID = proc, "1"
		m.UseHost(host.New(host.Options{Roots: roots, Prober: m.host.Prober, Log: m.Log, MountsPatience: collect.MountsPatience}))
	})
	g := collect.Gather(t, m)
	held := at(g, disk.Dir)
	assert.Equal(t, "ok", field(t, held, "result"))
	assert.Contains(t, field(t, held, "reason"), "readdir was left out: kernel.hung_task_panic is set")
	assert.True(t, held.HasField("statfs_seconds"))
	assert.False(t, held.HasField("readdir_seconds"))
	assert.True(t, at(g, fs.Dir).HasField("readdir_seconds"), "who waits for a FUSE daemon sleeps")

	write("sys/kernel/hung_task_panic", "0\n")
	g = collect.Gather(t, m)
	assert.True(t, at(g, disk.Dir).HasField("readdir_seconds"))
	assert.False(t, at(g, disk.Dir).HasField("reason"))
}
