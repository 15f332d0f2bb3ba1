package mounts_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// pointers are the mounts of a table.
func pointers(t *testing.T, table string) (all []*mounts.Mount) {
	t.Helper()
	parsed := parse(t, table)
	for i := range parsed {
		all = append(all, &parsed[i])
	}
	return all
}

// drawn is what units are: the mount that is checked, and then all others.
func drawn(units []*mounts.Unit) (all [][]string) {
	for _, u := range units {
		one := []string{u.Probed.Mountpoint}
		for _, m := range u.Mounts {
			if m != u.Probed {
				one = append(one, m.Mountpoint)
			}
		}
		all = append(all, one)
	}
	return all
}

func TestSnapshot_Units(t *testing.T) {
	for _, c := range []struct {
		name, table string
		want        [][]string
	}{
		{"two directories of an export are two, in either order", `31 20 0:40 / /home rw - nfs4 nas:/export/home rw,addr=192.0.2.1
32 20 0:40 / /data rw - nfs4 nas:/export/data rw,addr=192.0.2.1
33 20 0:40 / /home2 rw - nfs4 nas:/export/home rw,addr=192.0.2.1
`, [][]string{{"/home", "/home2"}, {"/data"}}},
		{"and the other order", `33 20 0:40 / /home2 rw - nfs4 nas:/export/home rw,addr=192.0.2.1
32 20 0:40 / /data rw - nfs4 nas:/export/data rw,addr=192.0.2.1
31 20 0:40 / /home rw - nfs4 nas:/export/home rw,addr=192.0.2.1
`, [][]string{{"/home2", "/home"}, {"/data"}}},
		{"so is a bind of a part of one", `31 20 0:40 / /home rw - nfs4 nas:/export rw,addr=192.0.2.1
32 20 0:40 /ann /srv/ann rw - nfs4 nas:/export rw,addr=192.0.2.1
33 20 0:40 /ann /srv/again ro - nfs4 nas:/export rw,addr=192.0.2.1
`, [][]string{{"/home"}, {"/srv/ann", "/srv/again"}}},
		{"a daemon's likewise", `31 20 0:40 / /a rw - fuse.sshfs host: rw
32 20 0:40 /sub /b rw - fuse.sshfs host: rw
`, [][]string{{"/a"}, {"/b"}}},
		{"a local file system is one, checked as a whole", `31 20 8:1 /sub /bind rw - ext4 /dev/sda1 rw
32 20 8:1 /gone//deleted /deleted rw - ext4 /dev/sda1 rw
33 20 8:1 / /whole rw - ext4 /dev/sda1 rw
34 20 8:1 / /again rw - ext4 /dev/sda1 rw
`, [][]string{{"/whole", "/bind", "/deleted", "/again"}}},
		{"subvolumes of one", `31 20 0:50 /@home /home rw - btrfs /dev/sdb rw
32 20 0:50 /@ /root rw - btrfs /dev/sdb rw
`, [][]string{{"/home", "/root"}}},
		{"what is on demand comes last, be it whole", `30 20 0:99 / /auto rw - autofs auto rw
31 30 8:1 / /auto/key rw - ext4 /dev/sda1 rw
32 20 8:1 /sub /bind rw - ext4 /dev/sda1 rw
`, [][]string{{"/auto"}, {"/bind", "/auto/key"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			units := mounts.Units(pointers(t, c.table), false)
			assert.Equal(t, c.want, drawn(units))
			again := mounts.Units(pointers(t, c.table), false)
			seen := make(map[string]bool)
			for i, u := range units {
				assert.Equal(t, u.ID, again[i].ID, "the same at the next reading")
				assert.True(t, again[i].Same(u.Probed))
				assert.False(t, seen[u.ID])
				seen[u.ID] = true
				for _, m := range u.Mounts {
					assert.Equal(t, u.ID, mounts.UnitID(m))
				}
			}
			assert.Len(t, mounts.Units(pointers(t, c.table), true), len(pointers(t, c.table)), "each by itself")
		})
	}
}

func TestUnit_NumbersAreGivenAgain(t *testing.T) {
	before := mounts.Units(pointers(t, "31 20 0:40 / /a rw - tmpfs one rw\n"), false)[0]
	after := mounts.Units(pointers(t, "77 20 0:40 / /a rw - tmpfs two rw\n"), false)[0]
	assert.Equal(t, before.ID, after.ID)
	assert.False(t, after.Same(before.Probed))
}

func TestSnapshot_UnitsOfMountPointsInNoTable(t *testing.T) {
	a, b := mounts.Named("/a"), mounts.Named("/b")
	assert.Equal(t, [][]string{{"/a"}, {"/b"}}, drawn(mounts.Units([]*mounts.Mount{&a, &b}, false)))
	s := mounts.NewSnapshot([]mounts.Mount{a, b})
	assert.NotNil(t, s.At("/b"))
	assert.Nil(t, s.ByID(0))
}

func TestMount_FateGroup(t *testing.T) {
	at := func(line string) string { return pointers(t, "31 20 0:40 / /a rw - "+line+"\n")[0].FateGroup() }
	one := at("nfs nas:/x rw,vers=3,addr=192.0.2.1")
	assert.Equal(t, one, at("nfs4 nas:/y rw,vers=4.2,addr=192.0.2.1"))
	assert.Equal(t, one, at("nfs4 other-name:/y rw,vers=4.2,port=2049,addr=192.0.2.1"))
	assert.NotEqual(t, one, at("nfs4 nas:/x rw,port=2050,addr=192.0.2.1"), "another port is another server")
	assert.NotEqual(t, one, at("nfs4 nas:/x rw,addr=192.0.2.2"))
	assert.NotEqual(t, one, at("cifs //nas/x rw,addr=192.0.2.1"))
	assert.Equal(t, at("cifs //nas/x rw,addr=192.0.2.1"), at("cifs //nas/y rw,addr=192.0.2.1"))
	assert.NotEqual(t, at("fuse.sshfs a: rw"), at("fuse.sshfs b: rw"))
	assert.Equal(t, at("ext4 /dev/sda1 rw"), at("ext4 /dev/sda1 ro"))
	two := pointers(t, "31 20 0:40 / /a rw - tmpfs tmpfs rw\n32 20 0:41 / /b rw - tmpfs tmpfs rw\n")
	assert.NotEqual(t, two[0].FateGroup(), two[1].FateGroup(), "each is in memory by itself, whatever it is called")
	assert.Equal(t, two[0].FateGroup(), at("tmpfs other rw"), "one superblock, mounted twice")
}

func TestMount_Kinds(t *testing.T) {
	for _, c := range []struct {
		line                         string
		network, fuse, block, memory bool
	}{
		{"nfs4 nas:/x", true, false, false, false},
		{"fuse.sshfs nas:", true, true, false, false},
		{"fuse.rclone r:", false, true, false, false},
		{"fuseblk /dev/sdb1", false, true, false, false},
		{"fuse daemon", false, true, false, false},
		{"virtiofs tag", true, false, false, false},
		{"ext4 /dev/sda1", false, false, true, false},
		{"tmpfs tmpfs", false, false, false, true},
		{"overlay overlay", false, false, false, false},
	} {
		m := pointers(t, "31 20 0:40 / /a rw - "+c.line+" rw\n")[0]
		assert.Equal(t, c.network, m.Network(), c.line)
		assert.Equal(t, c.fuse, m.FUSE(), c.line)
		assert.Equal(t, c.block, m.BlockDevice(), c.line)
		assert.Equal(t, c.memory, m.Independent(), c.line)
	}
	assert.True(t, pointers(t, "31 20 8:1 / / rw - ext4 /dev/sda1 rw\n")[0].Independent(), "all depends on it")
	assert.True(t, mounts.AlwaysReadOnly("squashfs"))
	assert.False(t, mounts.AlwaysReadOnly("ext4"))
}

func TestSnapshot_Paths(t *testing.T) {
	s := mounts.Parse([]byte(`20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:30 / /srv rw - tmpfs covered rw
22 21 0:31 / /srv rw - tmpfs top rw
23 22 0:32 / /srv/a rw - tmpfs a rw
`))
	require.NoError(t, s.Err)
	for path, want := range map[string]int{"/": 20, "/home/x": 20, "/srv": 22, "/srvx": 20, "/srv/a": 23, "/srv/a/b/c": 23, "/srv/ab": 22} {
		require.NotNil(t, s.Holding(path), path)
		assert.Equal(t, want, s.Holding(path).ID, path)
	}
	assert.Nil(t, s.Holding("relative"))
	assert.Nil(t, mounts.Parse(nil).Holding("/srv"))
	assert.False(t, s.AskForOptions())
	assert.True(t, mounts.Parse([]byte("20 1 0:30 / / rw - btrfs /dev/sda1 rw\n")).AskForOptions())
	assert.Equal(t, 21, s.Above(s.ByID(22)).ID)
	assert.Nil(t, s.Above(s.ByID(20)))
	assert.Equal(t, "top", s.At("/srv").Source)
	assert.Len(t, s.Visible(func(*mounts.Mount) bool { return true }), 3)
	assert.True(t, mounts.Below("/a", "/a"))
	assert.True(t, mounts.Below("/a/b", "/a"))
	assert.True(t, mounts.Below("/a", "/"))
	assert.False(t, mounts.Below("/ab", "/a"))
	assert.False(t, mounts.Below("/", "/a"))
}

func TestDevices_Tag(t *testing.T) {
	sys := t.TempDir()
	link := func(numbers, device string) {
		require.NoError(t, os.MkdirAll(filepath.Join(sys, "dev/block"), 0o755))
		require.NoError(t, os.Symlink("../../devices/virtual/block/"+device, filepath.Join(sys, "dev/block", numbers)))
	}
	link("259:2", "nvme0n1p2")
	link("253:0", "dm-0")
	for device, name := range map[string]string{"dm-0": "vg-root", "dm-3": "vg-data"} {
		require.NoError(t, os.MkdirAll(filepath.Join(sys, "block", device, "dm"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(sys, "block", device, "dm/name"), []byte(name+"\n"), 0o600))
	}
	for line, want := range map[string]string{
		"259:2 / / rw - ext4 /dev/root":                 "nvme0n1p2",
		"9:9 / / rw - ext4 /dev/root":                   "root",
		"253:0 / / rw - ext4 /dev/mapper/vg-root":       "dm-0",
		"0:40 / / rw - btrfs /dev/mapper/vg-data":       "dm-3",
		"0:40 / / rw - btrfs /dev/mapper/missing":       "mapper/missing",
		"8:1 / / rw - ext4 /dev/sda1":                   "sda1",
		"0:40 / / rw - nfs4 nas:/dev/data":              "nas:data",
		"0:40 / / rw - nfs4 nas:/export":                "nas:/export",
		`0:40 / / rw - tmpfs odd\012name`:               `odd\012name`,
		"0:40 / / rw - zfs tank/data":                   "tank/data",
		"253:0 / / rw - ext4 /dev/disk/by-label/mapper": "disk/by-label/mapper",
	} {
		m := pointers(t, "31 20 "+line+" rw\n")[0]
		assert.Equal(t, want, mounts.Devices{Sys: sys}.Tag(m), line)
	}
	assert.Equal(t, "nas:data", mounts.SourceTag("nas:/dev/data"))

	// Without sysfs nothing is looked for, least of all below the working directory.
	t.Chdir(sys)
	m := pointers(t, "31 20 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n")[0]
	assert.Equal(t, "mapper/vg-root", m.Device)
}
