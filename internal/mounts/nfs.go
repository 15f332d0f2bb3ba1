package mounts

import "strings"

// NFS reports whether the mount is of an NFS server.
func (m *Mount) NFS() bool { return m.FSType == "nfs" || m.FSType == "nfs4" }

// RemoteLocking reports whether file locks on an NFS mount are taken on the
// server. With nolock or local_lock=all they never leave the client; with
// local_lock=flock or posix one kind of them does. See nfs(5). The kernel
// ignores these options on NFSv4, whose locks are always remote.
func (m *Mount) RemoteLocking() bool {
	version, _ := m.Option("vers")
	if m.FSType == "nfs4" || strings.HasPrefix(version, "4") {
		return true
	}
	local, _ := m.Option("local_lock")
	return !m.HasOption("nolock") && local != "all"
}
