package mounts_test

import (
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func TestMount_Servers(t *testing.T) {
	for _, c := range []struct {
		fstype, source, options string
		servers                 []string
		tags                    map[string]string
	}{
		{"nfs4", "nas:/data", "rw,vers=4.2,proto=tcp,addr=10.0.0.1", []string{"nfs 10.0.0.1:2049"}, map[string]string{"server": "10.0.0.1"}},
		{"nfs", "nas:/data", "rw,vers=3,proto=udp,port=3049,addr=10.0.0.1", []string{"nfs 10.0.0.1:3049"},
			map[string]string{"server": "10.0.0.1", "port": "3049", "proto": "udp"}},
		{"nfs4", "127.0.0.1:/", "rw,vers=4.1,proto=tcp,port=20449,addr=127.0.0.1", []string{"nfs 127.0.0.1:20449"}, map[string]string{"server": "127.0.0.1", "port": "20449"}},
		{"nfs4", "127.0.0.1:/", "rw,vers=4.1,proto=tcp,port=20450,addr=127.0.0.1", []string{"nfs 127.0.0.1:20450"}, map[string]string{"server": "127.0.0.1", "port": "20450"}},
		{"cifs", "//nas/data", "rw,vers=3.1.1,soft,addr=10.0.0.2", []string{"smb 10.0.0.2:445"}, map[string]string{"server": "10.0.0.2", "service": "smb"}},
		{"smb3", "//nas/data", "rw,addr=fe80::1%2", []string{"smb [fe80::1%2]:445"}, map[string]string{"server": "fe80::1%2", "service": "smb"}},
		{"cifs", "//nas/data", "rw,rdma,addr=10.0.0.2", nil, nil},
		{"cifs", "//nas/data", "rw,addr=nas", nil, nil},
		{"9p", "10.0.0.3", "rw,trans=tcp,access=user", []string{"9p 10.0.0.3:564"}, map[string]string{"server": "10.0.0.3", "service": "9p"}},
		{"9p", "10.0.0.3", "rw,trans=tcp,port=5640", []string{"9p 10.0.0.3:5640"}, map[string]string{"server": "10.0.0.3", "port": "5640", "service": "9p"}},
		{"9p", "10.0.0.3", "rw,trans=tcp,port=0", []string{"9p 10.0.0.3:564"}, nil},
		{"9p", "10.0.0.3", "rw,trans=virtio", nil, nil},
		{"9p", "hostshare", "rw,trans=tcp", nil, nil},
		{"ceph", "10.0.0.4:6789,10.0.0.5:6789:/path", "rw,name=admin", []string{"ceph 10.0.0.4:6789", "ceph 10.0.0.5:6789"},
			map[string]string{"server": "10.0.0.4", "service": "ceph"}},
		{"ceph", "[2001:db8::1]:3300:/", "rw", []string{"ceph [2001:db8::1]:3300"}, map[string]string{"server": "2001:db8::1", "port": "3300", "service": "ceph"}},
		{"ceph", "10.0.0.4,[2001:db8::1]:/", "rw,ms_mode=crc", []string{"ceph 10.0.0.4:3300", "ceph [2001:db8::1]:3300"}, nil},
		{"ceph", "admin@a7f64266-0894-4f1e-a635-d0aeaca0e993.fs=/a", "rw,mon_addr=10.0.0.4:3300/10.0.0.5:3300", []string{"ceph 10.0.0.4:3300", "ceph 10.0.0.5:3300"}, nil},
		{"ceph", "mon.example.com:/", "rw", nil, nil},
		{"ceph", "admin@a7f64266.fs=/", "rw", nil, nil},
		{"fuse.sshfs", "u@10.0.0.6:/", "rw,addr=10.0.0.6", nil, nil},
		{"ext4", "/dev/sda1", "rw", nil, nil},
	} {
		m := &mounts.Mount{Info: &mountinfo.Info{FSType: c.fstype, Source: c.source, VFSOptions: c.options}}
		var got []string
		all := m.Servers()
		for i := range all {
			got = append(got, string(all[i].Service)+" "+all[i].Address.String())
		}
		assert.Equal(t, c.servers, got, "%s %s %s", c.fstype, c.source, c.options)
		if c.tags != nil {
			require.NotEmpty(t, all)
			assert.Equal(t, c.tags, all[0].Tags())
		}
	}
}

func FuzzMount_Servers(f *testing.F) {
	f.Add("cifs", "//nas/x", "addr=fe80::1%eth0,port=1")
	f.Add("9p", "::1", "trans=tcp,port=564")
	f.Add("ceph", "[::1]:6789,1.2.3.4:/", "ms_mode=crc")
	f.Add("ceph", "a@b.c=/", "mon_addr=1.2.3.4:3300/[::1]:1")
	f.Fuzz(func(t *testing.T, fstype, source, options string) {
		m := &mounts.Mount{Info: &mountinfo.Info{FSType: fstype, Source: source, VFSOptions: options}}
		for _, s := range m.Servers() {
			require.True(t, s.Address.Addr().IsValid())
			require.NotEmpty(t, s.Service)
			require.NotEmpty(t, s.Tags()["server"])
		}
	})
}
