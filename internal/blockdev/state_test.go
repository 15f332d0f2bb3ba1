package blockdev_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/testing/sysfs"
)

func TestDevice_State(t *testing.T) {
	fake := sysfs.New(t)
	sda, sdb := fake.Disk("8:0", disk), fake.Disk("8:16", strings.ReplaceAll(disk, "sda", "sdb"))
	sdb = strings.ReplaceAll(sdb, "0:0:0:0", "0:0:0:1") // a host's second disk
	fake.Remove("dev/block/8:16")
	fake.Remove("class/block/sdb")
	fake.Remove("block/sdb")
	require.Equal(t, sdb, fake.Disk("8:16", strings.TrimPrefix(sdb, "devices/")))
	lvm := fake.Disk("252:0", "virtual/block/dm-0")
	fake.Link(lvm+"/slaves/sda", sda)
	multipath := fake.Disk("252:1", "virtual/block/dm-1")
	fake.Set(multipath+"/dm/uuid", "mpath-3600")
	fake.Link(multipath+"/slaves/sda", sda)
	fake.Link(multipath+"/slaves/sdb", sdb)
	md := fake.Disk("9:0", "virtual/block/md0")
	fake.Link(md+"/slaves/sda", sda)
	fake.Link(md+"/slaves/sdb", sdb)
	nbd := fake.Disk("43:0", "virtual/block/nbd0")
	nvme := fake.Disk("259:0", "pci0000:00/0000:00:03.0/nvme/nvme0/nvme0n1")
	fake.Link("block/nvme0n1", nvme)
	fake.Link(nvme+"/device", "devices/pci0000:00/0000:00:03.0/nvme/nvme0")

	tree := blockdev.Tree(fake.Dir)
	state := func(major, minor int) blockdev.State {
		d := tree.ByNumber(major, minor)
		require.NotNil(t, d, "%d:%d", major, minor)
		return d.State()
	}
	well := blockdev.State{}
	for _, minor := range []int{0, 1} {
		assert.Equal(t, well, state(252, minor))
	}
	fake.Set(nbd+"/pid", "4711")
	assert.Equal(t, well, state(43, 0))
	fake.Remove(nbd + "/pid")
	assert.Equal(t, blockdev.State{Trouble: blockdev.Fails, Says: "nbd0: nothing serves it"}, state(43, 0))

	for content, want := range map[string]blockdev.Trouble{"live": blockdev.None, "connecting": blockdev.Hangs, "dead": blockdev.Fails, "deleting": blockdev.Gone} {
		fake.Set(nvme+"/device/state", content)
		assert.Equal(t, want, state(259, 0).Trouble, content)
	}

	// One path is lost, and then the other.
	blocked := blockdev.State{Trouble: blockdev.Hangs, Says: "sda: device/state is blocked"}
	fake.Set(sda+"/device/state", "blocked")
	fake.Set(sdb+"/device/state", "running")
	assert.Equal(t, blocked, state(8, 0))
	assert.Equal(t, blocked, state(252, 0))
	assert.Equal(t, well, state(252, 1), "multipath has another one")
	assert.Equal(t, well, state(9, 0), "a mirror has another one")
	fake.Set(sdb+"/device/state", "offline")
	assert.Equal(t, blocked, state(252, 1))
	fake.Set(md+"/md/array_state", "broken")
	assert.Equal(t, blockdev.State{Trouble: blockdev.Fails, Says: "md0: md/array_state is broken"}, state(9, 0))
	for content, want := range map[string]blockdev.Trouble{"running": blockdev.None, "transport-offline": blockdev.Fails, "deleted": blockdev.Gone, "": blockdev.None, "new": blockdev.None} {
		fake.Set(sda+"/device/state", content)
		assert.Equal(t, want, state(8, 0).Trouble, content)
	}

	fake.Set(sda+"/device/state", "running")
	fake.Set(lvm+"/dm/suspended", "1")
	assert.Equal(t, blockdev.State{Trouble: blockdev.Hangs, Says: "dm-0: dm/suspended is 1"}, state(252, 0))
	fake.Set(lvm+"/dm/suspended", "0")
	assert.Equal(t, well, state(252, 0))
	fake.Remove(lvm + "/slaves/sda")
	assert.Equal(t, blockdev.State{Trouble: blockdev.Fails, Says: "dm-0: slaves is empty: its table has no device"}, state(252, 0))
	sparse := fake.Disk("252:2", "virtual/block/dm-2")
	fake.Link(sparse+"/slaves/dm-0", lvm)
	assert.Equal(t, well, state(252, 2), "LVM has sparse volumes on such a one")
	fake.Remove(lvm + "/slaves")
	assert.Equal(t, well, state(252, 0), "a kernel that does not say")
}
