package mounts

import (
	"slices"
	"strings"
)

// likeness is how much a mount looks like one that the kernel itself has put on another one when
// somebody walked there, and that it unmounts after some time without use (d_automount of a file
// system, mnt_set_expiry in fs/namespace.c). No option says so: a mount by hand with the same
// options looks the same.
type likeness int

const (
	unlike   likeness = iota
	sameTree          // the same place in the tree of the same server
	referral          // to another server, as of NFSv4
)

// like compares the mount with the one that it was put on. The submounts of virtiofs don't
// expire (fuse_dentry_automount, fs/fuse/dir.c). Nor does tracefs below debugfs, where the types
// differ.
func (m *Mount) like(parent *Mount) likeness {
	below, found := strings.CutPrefix(m.Mountpoint, strings.TrimSuffix(parent.Mountpoint, "/"))
	if !found || !strings.HasPrefix(below, "/") || m.FSType != parent.FSType {
		return unlike
	}
	if m.FSType == "zfs" { // by a program, with options of its own
		return m.likeSnapshot(parent, below)
	}
	if m.Options != parent.Options { // those of the mount above, finish_automount, fs/namespace.c
		return unlike
	}
	inTree := m.Source == strings.TrimSuffix(parent.Source, "/")+below
	switch {
	case m.NFS():
		return m.likeNFS(parent, inTree)
	case m.SMB() && inTree: // a DFS link, since Linux 5.0: cifs_do_automount, fs/smb/client/namespace.c
		user, _ := m.Option("username")
		others, _ := parent.Option("username")
		if user == others {
			return sameTree
		}
	case m.FSType == "afs": // a volume, afs_d_automount, fs/afs/mntpt.c
		return sameTree
	}
	return unlike
}

// likeNFS is like for NFS.
func (m *Mount) likeNFS(parent *Mount, inTree bool) likeness {
	if inTree && m.inheritsFrom(parent) { // another file system of the server's, nfs_d_automount, fs/nfs/namespace.c
		return sameTree
	}
	// nfs_do_refmount, fs/nfs/nfs4namespace.c
	if m.FSType == "nfs4" && m.inheritsFrom(parent, "addr", "clientaddr", "port") && m.Host() != parent.Host() {
		return referral
	}
	return unlike
}

// likeSnapshot is like for ZFS. Whoever walks to such a place has the kernel mount the snapshot,
// even to mount something there. So nothing is mounted there by hand
// (zfsctl_snapshot_mount, module/os/linux/zfs/zfs_ctldir.c of OpenZFS).
func (m *Mount) likeSnapshot(parent *Mount, below string) likeness {
	if snapshot, found := strings.CutPrefix(below, "/.zfs/snapshot/"); found && m.Source == parent.Source+"@"+snapshot {
		return sameTree
	}
	return unlike
}

// inheritsFrom reports whether an NFS mount has what the kernel gives to mounts that it makes:
// the options of the mount above, with some exceptions (nfs_clone_server, fs/nfs/client.c), and
// none about mountd, which the kernel does not ask (nfs_show_mountd_options, fs/nfs/super.c).
func (m *Mount) inheritsFrom(parent *Mount, but ...string) bool {
	if _, asked := m.Option("mountaddr"); asked {
		return false
	}
	return inherited(m.VFSOptions, but) == inherited(parent.VFSOptions, but)
}

// inherited removes from an NFS mount's options those that each file system of a server can have
// of its own, and some more.
func inherited(options string, but []string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		name, _, _ := strings.Cut(option, "=")
		switch name {
		case "ro", "rw", "sync", "rsize", "wsize", "bsize", "namlen", "sec",
			"mountaddr", "mountvers", "mountport", "mountproto":
		default:
			if !slices.Contains(but, name) {
				kept = append(kept, option)
			}
		}
	}
	return strings.Join(kept, ",")
}
