package blockdev_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/testing/sysfs"
)

const disk = "pci0000:00/host0/target0:0:0/0:0:0:0/block/sda"

func names(d *blockdev.Device) string {
	var all []string
	for below := range d.All() {
		all = append(all, below.Name)
	}
	return strings.Join(all, " ")
}

func TestTree_Find(t *testing.T) {
	fake := sysfs.New(t)
	fake.Disk("8:0", disk)
	fake.Set(fake.Disk("8:1", disk+"/sda1")+"/partition", "1")
	fake.Disk("8:16", strings.ReplaceAll(disk, "sda", "sdb"))
	md := fake.Disk("9:0", "virtual/block/md0")
	fake.Link(md+"/slaves/sda1", "devices/"+disk+"/sda1")
	fake.Link(md+"/slaves/sdb", "devices/"+strings.ReplaceAll(disk, "sda", "sdb"))
	dm := fake.Disk("252:3", "virtual/block/dm-3")
	fake.Set(dm+"/dm/name", "vg-data")
	fake.Link(dm+"/slaves/md0", md)
	fake.Disk("104:0", "pci0000:00/block/cciss!c0d0")
	ring := fake.Disk("252:4", "virtual/block/dm-4")
	fake.Link(ring+"/slaves/dm-4", ring)

	tree := blockdev.Tree(fake.Dir)
	assert.Equal(t, "sda1 sda", names(tree.ByNumber(8, 1)))
	assert.Equal(t, "dm-3 md0 sda1 sda sdb", names(tree.ByNumber(252, 3)))
	assert.Equal(t, "sdb", names(tree.BySource("/dev/sdb")))
	assert.Equal(t, "dm-3 md0 sda1 sda sdb", names(tree.BySource("/dev/mapper/vg-data")))
	assert.Equal(t, "sdb", names(tree.BySource("/dev/sdb:/dev/sda1")), "bcachefs on two")
	assert.Equal(t, "cciss!c0d0", names(tree.BySource("/dev/cciss/c0d0")))
	assert.Contains(t, names(tree.ByNumber(252, 4)), "dm-4", "a tree that lies ends")
	assert.Equal(t, "dm-3", tree.NameByNumber(252, 3))
	assert.Empty(t, tree.NameByNumber(8, 2))
	assert.Nil(t, tree.ByNumber(8, 2))
	for _, source := range []string{"/dev/sdc", "/dev/mapper/other", "sda", "/dev/", ""} {
		assert.Nil(t, tree.BySource(source), source)
	}
	seen := 0
	for range tree.ByNumber(252, 3).All() {
		if seen++; seen == 2 {
			break
		}
	}
	assert.Equal(t, 2, seen)
}

func TestDevice_Suspended(t *testing.T) {
	fake := sysfs.New(t)
	dir := fake.Disk("8:0", disk)
	fake.Set(fake.Disk("8:1", disk+"/sda1")+"/partition", "1")
	tree := blockdev.Tree(fake.Dir)
	assert.False(t, tree.ByNumber(8, 1).Suspended(), "a kernel that does not say")
	for status, want := range map[string]bool{"unsupported": false, "active": false, "suspending": false, "suspended": true} {
		fake.Set(dir+"/device/power/runtime_status", status)
		assert.Equal(t, want, tree.ByNumber(8, 1).Suspended(), status)
	}
}

func TestDevice_Requests(t *testing.T) {
	fake := sysfs.New(t)
	dir := fake.Disk("8:0", disk)
	for content, want := range map[string]blockdev.Requests{
		"1 2 3 4 50 6 7 8 9 10 11":                            {51, 9}, // Linux 3.10
		"1 2 3 4 50 6 7 8 9 10 11 700 13 14 15":               {751, 9},
		"1 2 3 4 50 6 7 8 9 10 11 700 13 14 15 16000 17":      {751 + 16000, 9},
		"    1    2    3    4   50    6    7    8    0 10 11": {51, 0},
		"": {},
	} {
		fake.Set(dir+"/stat", content)
		got, err := blockdev.Tree(fake.Dir).ByNumber(8, 0).Requests()
		require.NoError(t, err)
		assert.Equal(t, want, got, content)
	}
	fake.Set(dir+"/stat", "1 2 3 4 many")
	_, err := blockdev.Tree(fake.Dir).ByNumber(8, 0).Requests()
	assert.Error(t, err)
	fake.Remove(dir + "/stat")
	_, err = blockdev.Tree(fake.Dir).ByNumber(8, 0).Requests()
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// Each device of this machine is found, by its number and by its name.
func TestTree_OfThisMachine(t *testing.T) {
	all, err := filepath.Glob("/sys/class/block/*")
	require.NoError(t, err)
	for _, link := range all {
		content, err := os.ReadFile(filepath.Join(link, "dev"))
		require.NoError(t, err)
		var major, minor int
		_, err = fmt.Sscanf(string(content), "%d:%d", &major, &minor)
		require.NoError(t, err)
		name := filepath.Base(link)
		d := blockdev.Tree("/sys").ByNumber(major, minor)
		require.NotNil(t, d, name)
		assert.Equal(t, name, d.Name)
		assert.Equal(t, name, blockdev.Tree("/sys").NameByNumber(major, minor))
		assert.Equal(t, names(d), names(blockdev.Tree("/sys").BySource("/dev/"+strings.ReplaceAll(name, "!", "/"))))
		_, err = d.Requests()
		assert.NoError(t, err)
		d.Suspended()
	}
}

// A stack is found anew when a part of it has changed, and not before.
func TestDevice_Unchanged(t *testing.T) {
	fake := sysfs.New(t)
	fake.Disk("8:0", disk)
	fake.Set(fake.Disk("8:1", disk+"/sda1")+"/partition", "1")
	sdb := strings.ReplaceAll(disk, "sda", "sdb")
	fake.Disk("8:16", sdb)
	dm := fake.Disk("252:3", "virtual/block/dm-3")
	fake.Link(dm+"/slaves/sda1", "devices/"+disk+"/sda1")
	tree := blockdev.Tree(fake.Dir)
	partition, lvm := tree.ByNumber(8, 1), tree.ByNumber(252, 3)
	assert.True(t, partition.Unchanged() && lvm.Unchanged() && tree.BySource("/dev/sdb").Unchanged())

	fake.Link(dm+"/slaves/sdb", "devices/"+sdb)
	assert.False(t, lvm.Unchanged(), "another disk was added")
	lvm = tree.ByNumber(252, 3)
	assert.True(t, lvm.Unchanged())
	fake.Remove(dm + "/slaves/sda1")
	assert.False(t, lvm.Unchanged(), "one was removed")
	lvm = tree.ByNumber(252, 3)
	fake.Remove(dm + "/slaves/sdb")
	fake.Link(dm+"/slaves/sdb", "devices/"+strings.ReplaceAll(sdb, "host0", "host1"))
	assert.False(t, lvm.Unchanged(), "it came back at another place")

	assert.True(t, partition.Unchanged())
	fake.Remove("dev/block/8:1")
	assert.False(t, partition.Unchanged(), "it is gone")
}

// BenchmarkDevice is what a gather costs for each block device of this machine, and for one on
// the device mapper, as LVM makes them.
func BenchmarkDevice(b *testing.B) {
	trees := map[string]func() *blockdev.Device{}
	all, _ := filepath.Glob("/sys/class/block/*")
	for _, link := range all {
		name := filepath.Base(link)
		trees[name] = func() *blockdev.Device { return blockdev.Tree("/sys").BySource("/dev/" + name) }
	}
	fake := sysfs.New(b)
	fake.Disk("8:0", disk)
	fake.Set(fake.Disk("8:1", disk+"/sda1")+"/partition", "1")
	dm := fake.Disk("252:3", "virtual/block/dm-3")
	fake.Link(dm+"/slaves/sda1", "devices/"+disk+"/sda1")
	trees["lvm"] = func() *blockdev.Device { return blockdev.Tree(fake.Dir).ByNumber(252, 3) }
	for name, find := range trees {
		b.Run(name+"/find", func(b *testing.B) {
			for b.Loop() {
				find()
			}
		})
		found := find()
		b.Run(name+"/unchanged", func(b *testing.B) {
			for b.Loop() {
				found.Unchanged()
			}
		})
		b.Run(name+"/state", func(b *testing.B) {
			for b.Loop() {
				_, _ = found.Requests()
				found.Suspended()
				found.State()
			}
		})
	}
}

func TestTree_BtrfsErrors(t *testing.T) {
	fake := sysfs.New(t)
	tree := blockdev.Tree(fake.Dir)
	errors := func() (int64, bool) { return blockdev.BtrfsErrors(tree.Btrfs("sda")) }
	_, found := errors()
	assert.False(t, found)
	fake.Disk("8:0", disk)
	fake.Link("fs/btrfs/0815/devices/sda", "devices/"+disk)
	_, found = errors()
	assert.False(t, found, "a kernel that does not say")
	fake.Set("fs/btrfs/0815/devinfo/1/error_stats", "write_errs 1\nread_errs 2\nflush_errs 0\ncorruption_errs 30\ngeneration_errs 0")
	fake.Set("fs/btrfs/0815/devinfo/2/error_stats", "write_errs 400\nnonsense\nmore x\n")
	fake.Set("fs/btrfs/4711/devinfo/1/error_stats", "write_errs 5000")
	sum, found := errors()
	assert.True(t, found)
	assert.EqualValues(t, 433, sum)
}

func TestDevice_NamesInLog(t *testing.T) {
	fake := sysfs.New(t)
	fake.Disk("8:0", disk)
	fake.Set(fake.Disk("8:1", disk+"/sda1")+"/partition", "1")
	fake.Link(fake.Disk("252:3", "virtual/block/dm-3")+"/slaves/sda1", "devices/"+disk+"/sda1")
	fake.Disk("259:0", "pci0000:00/0000:00:03.0/nvme/nvme0/nvme0n1")
	fake.Set(fake.Disk("259:1", "pci0000:00/0000:00:03.0/nvme/nvme0/nvme0n1/nvme0n1p1")+"/partition", "1")
	tree := blockdev.Tree(fake.Dir)
	assert.Equal(t, []string{"0:0:0:0", "dm-3", "sda", "sda1", "virtual"}, tree.ByNumber(252, 3).NamesInLog(), "each once")
	assert.Subset(t, tree.ByNumber(259, 1).NamesInLog(), []string{"nvme0n1p1", "nvme0n1", "nvme0"})
	assert.NotContains(t, tree.ByNumber(8, 0).NamesInLog(), "sda1", "a disk does not lie on its partitions")
}

// By the kernel's documentation: no kernel here has f2fs.
func TestTree_F2FSStopped(t *testing.T) {
	fake := sysfs.New(t)
	tree := blockdev.Tree(fake.Dir)
	assert.Empty(t, tree.F2FSStopped("sdb1"), "a kernel that does not say")
	for _, c := range []struct{ checkpoint, superblock, want string }{
		{"1", "1", ""},
		{"c5", "b7", ""},
		{"4d", "1", "sdb1: stat/cp_status is 0x4d"},
		{"45", "41", "sdb1: stat/sb_status is 0x41"},
		{"nonsense", "", ""},
	} {
		fake.Set("fs/f2fs/sdb1/stat/cp_status", c.checkpoint)
		fake.Set("fs/f2fs/sdb1/stat/sb_status", c.superblock)
		assert.Equal(t, c.want, tree.F2FSStopped("sdb1"), "%v", c)
		assert.Empty(t, tree.F2FSStopped("sdb2"))
	}
}

// By the kernel's source: no kernel here has bcachefs.
func TestTree_Bcachefs(t *testing.T) {
	const uuid = "83a2ee35-2dcd-4a36-9ffc-e1a7b6a5f0a5"
	fake := sysfs.New(t)
	tree := blockdev.Tree(fake.Dir)
	assert.Empty(t, tree.Bcachefs("sda"))
	fake.Link("fs/bcachefs/"+uuid+"/dev-0/block", fake.Disk("8:0", disk))
	fake.Link("fs/bcachefs/"+uuid+"/dev-1/block", fake.Disk("8:16", strings.ReplaceAll(disk, "sda", "sdb")))
	directory := filepath.Join(fake.Dir, "fs/bcachefs", uuid)
	assert.Equal(t, directory, tree.Bcachefs("sda"))
	assert.Equal(t, directory, tree.Bcachefs("sdb"))
	assert.Empty(t, tree.Bcachefs("sdc"))
	assert.Empty(t, blockdev.BcachefsErrorFiles(directory))
	fake.Set("fs/bcachefs/"+uuid+"/dev-1/io_errors", "0")
	assert.Equal(t, []string{directory + "/dev-1/io_errors"}, blockdev.BcachefsErrorFiles(directory))
}

// By bch2_dev_io_errors_to_text: no kernel here has bcachefs.
func TestTree_BcachefsErrors(t *testing.T) {
	for content, want := range map[string]int64{
		"IO errors since filesystem creation\n  read:    1\n  write:   20\n  checksum:300\nIO errors since 8 y ago\n  read:    1\n  write:   20\n  checksum:300\n": 321,
		"IO errors since filesystem creation\n  read:\t0\n  write:\t0\n  checksum:\t0\nIO errors since 2 d ago\n  read:\t0\n":                                      0,
	} {
		sum, found := blockdev.BcachefsErrors([]byte(content))
		assert.True(t, found)
		assert.Equal(t, want, sum, content)
	}
	for _, content := range []string{"", "nonsense\n", "a: b\n"} {
		_, found := blockdev.BcachefsErrors([]byte(content))
		assert.False(t, found, content)
	}
}

func FuzzBcachefsErrors(f *testing.F) {
	f.Add([]byte("IO errors since filesystem creation\n  read:    1\nIO errors since 8 y ago\n  read: 1\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if sum, found := blockdev.BcachefsErrors(content); !found && sum != 0 {
			t.Error(sum)
		}
	})
}
