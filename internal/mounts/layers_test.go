package mounts

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
)

func TestMount_Layers(t *testing.T) {
	for _, c := range []struct {
		fstype, source, options string
		want                    []string
	}{
		{"overlay", "overlay", "rw,lowerdir=/a:/b/c,upperdir=/up,workdir=/work,redirect_dir=on", []string{"/a", "/b/c", "/up"}},
		{"overlay", "none", `ro,lowerdir=/with\134:colon:/with\040blank:relative::/data`, []string{"/with:colon", "/with blank", "/data"}},
		{"overlay", "none", "ro,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d", []string{"/a:b", "/c", "/d"}},
		{"overlay", "none", `ro,lowerdir=/ends\134`, []string{`/ends\`}},
		{"ecryptfs", "/mnt/hard/sub", "rw", []string{"/mnt/hard/sub"}},
		{"fuse.bindfs", "/mnt/nas", "rw,user_id=0", []string{"/mnt/nas"}},
		{"fuse.mergerfs", "a:b", "rw,user_id=0", nil},
		{"ext4", "/dev/loop0", "rw", nil},
		{"cifs", "//nas/data", "rw,addr=192.0.2.1", nil},
		{"nfs4", "nas:/export", "rw,addr=192.0.2.1", nil},
	} {
		m := Mount{Info: &mountinfo.Info{FSType: c.fstype, Source: c.source, VFSOptions: c.options}}
		assert.Equal(t, c.want, m.Layers(), c.options)
	}
}

func FuzzMount_Layers(f *testing.F) {
	f.Add(`ro,lowerdir=/with\134:colon:/with\040blank:relative::/data,lowerdir+=/c`)
	f.Fuzz(func(t *testing.T, options string) {
		m := Mount{Info: &mountinfo.Info{FSType: "overlay", VFSOptions: options}}
		for _, layer := range m.Layers() {
			assert.True(t, strings.HasPrefix(layer, "/"), layer)
		}
	})
}
