package mounts_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func ExampleParse() {
	table := mounts.Parse([]byte(`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:45 / /home rw,relatime shared:2 - nfs4 nas:/home rw,vers=4.2,proto=tcp,addr=192.0.2.7
41 22 0:45 /ann /srv/ann ro,relatime shared:3 - nfs4 nas:/home rw,vers=4.2,proto=tcp,addr=192.0.2.7
`))
	for i := range table.Mounts {
		m := &table.Mounts[i]
		fmt.Println(m.Mountpoint, m.Superblock(), m.Network(), m.ReadOnly(), m.Bind())
	}
	fmt.Println(table.Mounts[1].NFSServer().Address)
	// Output:
	// / 8:1 false false false
	// /home 0:45 true false false
	// /srv/ann 0:45 true true true
	// 192.0.2.7:2049
}

func ExampleParseFstab() {
	entries, err := mounts.ParseFstab([]byte(`UUID=1234-ABCD /boot vfat ro
nas:/home /home nfs noauto,x-systemd.automount,nofail
//nas/my\040data /srv/data cifs guest
`))
	for _, e := range entries {
		fmt.Println(e.Line, e.Mountpoint, e.MountedType(), e.Automount())
	}
	fmt.Println(entries[0].Device(), err)
	// Output:
	// 1 /boot vfat false
	// 2 /home nfs4 true
	// 3 /srv/data cifs false
	// /dev/disk/by-uuid/1234-ABCD <nil>
}
