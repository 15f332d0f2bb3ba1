package mounts

import (
	"path"
	"strings"
)

// Pseudo reports whether file systems of the type hold no files of users and
// never wait for a device or a server. Checking them would tell nothing.
func Pseudo(fstype string) bool {
	switch fstype {
	case "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "cpuset", "debugfs", "devpts", "devtmpfs",
		"efivarfs", "fusectl", "fuse.gvfsd-fuse", "fuse.portal", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc", "pstore",
		"ramfs", "resctrl", "rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs":
		return true
	}
	return false
}

// Network reports whether a server stands behind the file system.
func (m *Mount) Network() bool {
	switch strings.TrimPrefix(m.FSType, "fuse.") {
	case "9p", "afs", "beegfs", "ceph", "cifs", "curlftpfs", "davfs", "davfs2", "gfs2", "glusterfs", "gpfs", "lustre",
		"ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "s3fs", "smb3", "smbfs", "sshfs", "virtiofs":
		return true
	}
	return false
}

// FUSE reports whether a daemon on this host serves the file system.
func (m *Mount) FUSE() bool {
	return m.FSType == "fuse" || m.FSType == "fuseblk" || strings.HasPrefix(m.FSType, "fuse.")
}

// AppImage reports whether the file system is that of an AppImage. It is there while its
// program runs, only for its user, and at another path each time: .mount_ and six random
// characters below $TMPDIR (type2-runtime, runtime.c).
func (m *Mount) AppImage() bool {
	return m.FUSE() && m.ReadOnly() && strings.HasPrefix(path.Base(m.Mountpoint), ".mount_")
}

// ListingCosts reports whether listing a directory of the file system makes a request for
// everything that is in a bucket. That can take minutes and is paid for. It is so for file
// systems on object stores.
func (m *Mount) ListingCosts() bool {
	kind, fuse := strings.CutPrefix(m.FSType, "fuse.")
	if !fuse && m.FSType == "fuse" {
		kind = m.Source // of those that name no type
	}
	switch kind {
	case "blobfuse", "blobfuse2", "cloudfuse", "cosfs", "gcsfuse", "geesefs", "goofys", "mountpoint-s3", "obsfs", "ossfs", "rclone", "s3fs":
		return true
	}
	return false
}

// BlockDevice reports whether the file system is a local block device's.
func (m *Mount) BlockDevice() bool { return strings.HasPrefix(m.Source, "/dev/") && !m.FUSE() }

// Independent reports whether the file system is the root, which everything else depends
// on, or one that is only in memory.
func (m *Mount) Independent() bool { return m.inMemory() || m.Mountpoint == "/" }

// inMemory reports whether the file system is in memory alone.
func (m *Mount) inMemory() bool {
	switch m.FSType {
	case "tmpfs", "ramfs", "devtmpfs":
		return true
	}
	return false
}

// FateGroup names what mounts share a fate with: their server, daemon or device. One in memory
// has its own, since its source is but a name.
func (m *Mount) FateGroup() string {
	if m.inMemory() {
		return m.FSType + " " + m.Superblock()
	}
	if server := m.NFSServer(); server != nil {
		return "nfs " + server.Address.String()
	}
	address, found := m.Option("addr")
	switch {
	case found && m.NFS():
		return "nfs " + address
	case found:
		return m.FSType + " " + address
	}
	return m.FSType + " " + m.Source
}

// AlwaysReadOnly reports whether file systems of the type can never be
// written to.
func AlwaysReadOnly(fstype string) bool {
	switch fstype {
	case "iso9660", "squashfs", "erofs", "cramfs", "romfs", "udf":
		return true
	}
	return false
}

// asksForOptions reports whether file systems of the type are asked for their options
// when somebody reads the mount table, and may then wait for a device. btrfs looks up the
// name of a subvolume (btrfs_show_options, fs/btrfs/super.c), bcachefs takes its
// state_lock, and ZFS its teardown lock.
func asksForOptions(fstype string) bool {
	switch fstype {
	case "btrfs", "bcachefs", "zfs":
		return true
	}
	return false
}

// magicsThatAskForOptions are their superblocks' magic numbers, statfs(2).
func magicsThatAskForOptions() []uint64 { return []uint64{magicBtrfs, magicBcachefs, magicZFS} }

const (
	magicBtrfs    = 0x9123683e
	magicBcachefs = 0xca451a4e
	magicZFS      = 0x2fc12fc1
)
