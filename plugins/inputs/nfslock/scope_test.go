package nfslock

import (
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func FuzzScope(f *testing.F) {
	f.Add("nfs4", "server:/srv", "rw,vers=4.2,local_lock=posix")
	f.Add("nfs", "[2001:db8::10]:/srv", "rw,vers=3,nolock,local_lock=all")
	f.Add("nfs", "192.0.2.1:/", "rw,vers=3,local_lock=flock")
	f.Add("cifs", "//server/share", "rw,nobrl")
	f.Add("lustre", "10.0.0.1@tcp:/scratch", "rw,localflock")
	f.Fuzz(func(t *testing.T, fsType, source, options string) {
		m := &mounts.Mount{Info: &mountinfo.Info{FSType: fsType, Source: source, VFSOptions: options}}
		require.NotContains(t, nameOf(m), ":/")
		s := scopeOf(m)
		require.True(t, m.NFS() || s == scopeUnknown || s == scopeLocal)
		require.True(t, !m.NFS() || s != scopeUnknown)
		require.True(t, fsType != "nfs4" || s == scopeServer, "its locks are always remote")
		require.True(t, !locksByNLM(m) || s != scopeLocal)
		m.VFSOptions = "nolock," + options
		require.True(t, !locksByNLM(m))
	})
}
