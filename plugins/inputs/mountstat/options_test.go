package mountstat

import (
	"fmt"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

func FuzzFUSEUser(f *testing.F) {
	f.Add("fuse.sshfs", "rw,user_id=1000,group_id=1001")
	f.Add("fuse", "rw,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072")
	f.Add("fuseblk", "user_id=4294967296,group_id=-1")
	f.Add("fuse.x", "user_id=5,user_id=6,group_id=")
	f.Add("nfs4", "user_id=1,group_id=1")
	f.Fuzz(func(t *testing.T, fsType, options string) {
		m := &mounts.Mount{Info: &mountinfo.Info{FSType: fsType, VFSOptions: options}}
		uid, gid, found := fuseUser(m)
		privateUID, privateGID, private := privateFUSE(m)
		if private {
			require.True(t, found && m.FUSE())
			require.Equal(t, []uint32{uid, gid}, []uint32{privateUID, privateGID})
		}
		if !found {
			require.Zero(t, uid)
			require.Zero(t, gid)
			return
		}
		m.FSType, m.VFSOptions = "fuse", fmt.Sprintf("rw,user_id=%d,group_id=%d", uid, gid)
		againUID, againGID, private := privateFUSE(m)
		require.True(t, private)
		require.Equal(t, []uint32{uid, gid}, []uint32{againUID, againGID})
		m.VFSOptions += ",allow_other," + options
		_, _, private = privateFUSE(m)
		require.False(t, private)
	})
}
