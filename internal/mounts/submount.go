package mounts

import "strings"

// submountOf reports whether, by all that the table tells, the kernel itself put the mount
// on parent when somebody walked there, and unmounts it when it was not used for some time
// (d_automount of a file system, mnt_set_expiry in fs/namespace.c). No option says so; who
// mounts the same by hand, at the same path and with the same options, can't be told from
// it.
//
// A referral of NFSv4 to another server is not recognized: an administrator's mount of that
// server looks the same. Nor are the submounts of virtiofs, which don't expire.
func (m *Mount) submountOf(parent *Mount) bool {
	below, found := strings.CutPrefix(m.Mountpoint, strings.TrimSuffix(parent.Mountpoint, "/"))
	if !found || !strings.HasPrefix(below, "/") || m.FSType != parent.FSType {
		return false
	}
	inTree := m.Source == strings.TrimSuffix(parent.Source, "/")+below && m.Options == parent.Options
	switch m.FSType {
	case "nfs", "nfs4": // another file system of the server's, nfs_d_automount, fs/nfs/namespace.c
		return inTree && m.inheritsFrom(parent)
	case "cifs", "smb3": // a DFS link, cifs_d_automount, fs/smb/client/namespace.c
		user, _ := m.Option("username")
		others, _ := parent.Option("username")
		return inTree && user == others
	case "afs": // a volume, afs_d_automount, fs/afs/mntpt.c
		return true
	case "zfs": // a snapshot, zfsctl_snapshot_mount, module/os/linux/zfs/zfs_ctldir.c
		snapshot, found := strings.CutPrefix(below, "/.zfs/snapshot/")
		return found && m.Source == parent.Source+"@"+snapshot
	}
	return false
}

// inheritsFrom reports whether an NFS mount has what the kernel gives those that it makes:
// the options of the mount above (nfs_clone_server, fs/nfs/client.c), and none about mountd,
// which it does not ask (nfs_show_mountd_options, fs/nfs/super.c).
func (m *Mount) inheritsFrom(parent *Mount) bool {
	if _, asked := m.Option("mountaddr"); asked {
		return false
	}
	return inherited(m.VFSOptions) == inherited(parent.VFSOptions)
}

// inherited leaves out of an NFS mount's options what each file system of a server can have
// of its own.
func inherited(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		switch name, _, _ := strings.Cut(option, "="); name {
		case "ro", "rw", "sync", "rsize", "wsize", "bsize", "namlen", "sec",
			"mountaddr", "mountvers", "mountport", "mountproto":
		default:
			kept = append(kept, option)
		}
	}
	return strings.Join(kept, ",")
}
