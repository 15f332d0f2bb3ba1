package mounts_test

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func TestParseProgram(t *testing.T) {
	for _, c := range []struct {
		arguments, fstype, source, path, server string // server is empty: it can't be told
	}{
		{"/sbin/mount.nfs nas:/home /auto/home/ -s -o rw", "nfs", "nas:/home", "/auto/home", ""},
		{"/sbin/mount.nfs 10.0.0.1:/home /auto/home -o rw,nfsvers=3,port=3049", "nfs", "10.0.0.1:/home", "/auto/home", "nfs 10.0.0.1:3049"},
		{"mount.nfs4 [2001:db8::1]:/home /x", "nfs4", "[2001:db8::1]:/home", "/x", "nfs [2001:db8::1]:2049"},
		{"mount.cifs //nas/data /auto/x -o user=u,pass=secret", "cifs", "//nas/data", "/auto/x", ""},
		{"mount.cifs //nas/data /auto/x -o pass=secret,ip=10.0.0.2,port=4450", "cifs", "//nas/data", "/auto/x", "smb 10.0.0.2:4450"},
		{"mount.cifs //10.0.0.2/data/a /auto/x -o soft", "cifs", "//10.0.0.2/data/a", "/auto/x", "smb 10.0.0.2:445"},
		{"mount.smb3 //fe80::1%2/data /auto/x", "smb3", "//fe80::1%2/data", "/auto/x", "smb [fe80::1%2]:445"},
		{"/bin/mount -n -t 9p -s -o trans=tcp,port=5640 10.0.0.3 /auto/nine", "9p", "10.0.0.3", "/auto/nine", "9p 10.0.0.3:5640"},
		{"mount.ceph 10.0.0.4:6789:/ /auto/ceph -o name=admin,secret=secret", "ceph", "10.0.0.4:6789:/", "/auto/ceph", "ceph 10.0.0.4:6789"},
		{"mount -t fuse -o rw,secret sshfs#nas:/home /auto/ssh", "fuse.sshfs", "nas:/home", "/auto/ssh", ""},
		{"mount -o pass=secret /dev/sdb1 /x", "mount", "/dev/sdb1", "/x", ""},
	} {
		m := mounts.ParseProgram(strings.Fields(c.arguments))
		require.NotNil(t, m, c.arguments)
		assert.Equal(t, []string{c.fstype, c.source, c.path}, []string{m.FSType, m.Source, m.Mountpoint}, c.arguments)
		assert.NotContains(t, m.VFSOptions, "secret")
		server := ""
		if all := m.Servers(); len(all) > 0 {
			server = string(all[0].Service) + " " + all[0].Address.String()
		}
		assert.Equal(t, c.server, server, c.arguments)
	}
	for _, other := range []string{"", "mount.nfs nas:/home", "mount -a", "mount nas:/x y", "cat a /b", "mount -t"} {
		assert.Nil(t, mounts.ParseProgram(strings.Fields(other)), other)
	}
}

func TestMount_ServersAt(t *testing.T) {
	m := mounts.ParseProgram([]string{"mount.nfs", "nas:/home", "/x", "-o", "nfsvers=3"})
	require.Empty(t, m.Servers())
	all := m.ServersAt(netip.MustParseAddr("10.0.0.1"))
	require.Len(t, all, 1)
	assert.Equal(t, "10.0.0.1:2049", all[0].Address.String())
	assert.Equal(t, uint32(3), all[0].Version)
	assert.Empty(t, m.Servers(), "it is as it was")
}

func TestMount_PortsAskedFirst(t *testing.T) {
	for arguments, want := range map[string][]uint16{
		"mount.cifs //nas/data /x":                  {445, 139},
		"mount.cifs //nas/data /x -o port=4450":     {4450},
		"mount.nfs nas:/home /x":                    {2049, 111},
		"mount.nfs nas:/home /x -o port=20490":      {20490, 111},
		"mount -t fuse sshfs#nas:/home /x -o port=": nil,
	} {
		assert.Equal(t, want, mounts.ParseProgram(strings.Fields(arguments)).PortsAskedFirst(), arguments)
	}
}

func FuzzParseProgram(f *testing.F) {
	f.Add("mount.nfs nas:/home /auto/home -o rw,addr=1.2.3.4")
	f.Add("mount -t cifs //[::1]/x /y -o ip=::1%2")
	f.Fuzz(func(t *testing.T, arguments string) {
		m := mounts.ParseProgram(strings.Split(arguments, " "))
		if m == nil {
			return
		}
		require.True(t, filepath.IsAbs(m.Mountpoint))
		for _, s := range m.Servers() {
			require.True(t, s.Address.Addr().IsValid())
		}
	})
}
