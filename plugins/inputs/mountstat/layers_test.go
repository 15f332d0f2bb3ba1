package mountstat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sysfs"
)

// What a file system is made of hangs, and is what is named.
func TestMountstat_NamesTheLayerThatHangs(t *testing.T) {
	faultfs.Require(t)
	layers := map[string]struct {
		on   func(t *testing.T, daemon *faultfs.FS) string
		says string
	}{
		"the image of a loop device": {func(t *testing.T, daemon *faultfs.FS) string {
			return loopfs.On(t, filepath.Join(daemon.Dir, faultfs.FileName), "ext4", "").Dir
		}, "the image it lies on, %s/" + faultfs.FileName + ", is on %[1]s "},
		"a directory of an overlay": {func(t *testing.T, daemon *faultfs.FS) string {
			dir := t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(dir, "lower"), 0o755))
			merged := t.TempDir()
			require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s/lower:%s", dir, daemon.Dir)))
			t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
			return merged
		}, "the directory it lies on, %[1]s, is on %[1]s "},
	}
	for name, c := range layers {
		t.Run(name, func(t *testing.T) {
			daemon := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Size: loopfs.DefaultSize})
			t.Cleanup(daemon.Heal) // before the device is closed, which waits for it
			path := c.on(t, daemon)
			t.Cleanup(daemon.Heal)
			m, log := newInput(t, within(timeout), func(m *Mountstat) {
				m.MountPoints = []string{path, daemon.Dir}
				m.IgnoreFS = nil
				m.Checks = []string{"statfs", "readdir", "device"}
			})
			gatherUntil(t, m, path, "ok")
			if name == "the image of a loop device" {
				require.NoError(t, os.WriteFile(filepath.Join(path, "use"), []byte("x"), 0o644))
				unix.Sync()
			}
			daemon.Silence()
			g := gatherUntil(t, m, path, "timeout "+string(fuseDaemonSilent))
			assert.Contains(t, text(at(g, path), "reason"), fmt.Sprintf(c.says, daemon.Dir))
			assert.NotEmpty(t, log.about("is on "+daemon.Dir))
			daemon.Heal()
			noneLeft(t, m)
		})
	}
}

// Where all that is asked for is in caches, sysfs tells that a loop device hangs: the layer below
// is named nevertheless.
func TestMountstat_NamesTheLayerBelowADeviceWhoseRequestsWait(t *testing.T) {
	daemon := faultfs.New(t)
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(disk.Dir, &st))
	fake := sysfs.New(t)
	loop := fake.Disk(mountNumber(t, st.Dev), "virtual/block/loop7")
	image := filepath.Join(daemon.Dir, faultfs.FileName)
	fake.Set(loop+"/loop/backing_file", image)
	m, _ := newInput(t, within(timeout, daemon.Dir), func(m *Mountstat) {
		m.MountPoints, m.Checks, m.host.Sys = []string{disk.Dir, daemon.Dir}, []string{"statfs", "readdir"}, fake.Dir
	})
	require.Equal(t, "ok", text(at(collect.Gather(t, m), disk.Dir), "result"))
	daemon.Silence()
	fake.Stat(loop, 100, 3)
	require.Equal(t, "ok", text(at(collect.Gather(t, m), disk.Dir), "result"), "for a moment")
	for _, target := range m.targets {
		target.disk.moved = time.Now().Add(-7 * time.Second)
	}
	metric := at(gatherUntil(t, m, disk.Dir, "error fuse_daemon_silent"), disk.Dir)
	assert.Contains(t, text(metric, "reason"), "3 requests are in flight")
	assert.Contains(t, text(metric, "reason"), fmt.Sprintf("the image it lies on, %s, is on %s ", image, daemon.Dir))
	daemon.Heal()
	noneLeft(t, m)
}

// What an overlay lies on may be in no table any more: then nothing tells whose fault it is, and
// nobody else is blamed.
func TestMountstat_BlamesNobodyForALayerThatIsInNoTable(t *testing.T) {
	faultfs.Require(t)
	daemon := faultfs.New(t)
	merged := t.TempDir()
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s:%s", t.TempDir(), daemon.Dir)))
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	t.Cleanup(daemon.Heal)
	require.NoError(t, unix.Unmount(daemon.Dir, unix.MNT_DETACH))
	m, _ := newInput(t, within(timeout, merged), func(m *Mountstat) {
		m.MountPoints = []string{merged, "/"}
		m.IgnoreFS = nil
	})
	gatherUntil(t, m, merged, "ok")
	daemon.Silence()
	g := gatherUntil(t, m, merged, "timeout")
	assert.Equal(t, "unknown", text(at(g, merged), "cause"))
	assert.Empty(t, text(at(g, merged), "reason"))
	daemon.Heal()
	gatherUntil(t, m, merged, "ok")
	noneLeft(t, m)
}

// A host where so much hangs that there is no place for a helper says of a mount what is known:
// the way to it leads through one that hangs still.
func TestMountstat_AMountBelowOneThatHangsNeedsNoPlaceToHang(t *testing.T) {
	parent := tmpfs(t, t.TempDir(), "")
	child := tmpfs(t, parent, "")
	m, _ := newInput(t, only(parent, child))
	require.Equal(t, "ok", text(at(collect.Gather(t, m), child), "result"))
	above, below := m.targets[0], m.targets[1]
	if above.Probed.Mountpoint == child {
		above, below = below, above
	}
	judge := func() string {
		below.report = &prober.Report{Outcome: prober.Capped, Err: errors.New("no place")}
		found := m.judge(below)
		return found.code.String() + " " + found.hangsIn()
	}
	hung := finding{code: result.Timeout, check: checkStatfs, call: stepOpen}
	above.found = hung
	assert.Equal(t, "unchecked ", judge(), "it never hung")
	m.settle(below, hung)
	m.settle(below, finding{code: result.Unchecked})
	assert.Equal(t, "timeout "+stepOpen, judge())
	above.found = finding{code: result.OK}
	assert.Equal(t, "unchecked ", judge())
}
