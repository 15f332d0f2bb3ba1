// Package mounts knows what is mounted, and what should be. It makes no call on a
// mounted file system. A helper process reads tables for which the kernel asks file
// systems.
package mounts

import (
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// Mount is one line of the mount table, proc_pid_mountinfo(5). Paths and
// sources are raw bytes; see Printable.
type Mount struct {
	*mountinfo.Info
	// Hidden means that the mount point's path leads to another mount, which
	// lies on top of this one or of a directory above it.
	Hidden bool
	// OnDemand means that the mount is unmounted after it was idle, and that whoever walks there
	// restarts its idle time. It is so if the way to the mount leads through an autofs that
	// does this, or if the mount is a Submount.
	OnDemand bool
	// Submount means that the kernel seems to have made the mount by itself, below another one
	// of the file system's type, when somebody walked there.
	Submount bool
	// Device is the tag of that name, see [Devices].
	Device string
}

// Line describes the whole mount in one line, for a report.
func (m *Mount) Line() string {
	return m.Source + " on " + m.Mountpoint + " (" + m.Root + "), " + m.FSType + ", " + m.Superblock() + ": " + m.Options + "; " + m.VFSOptions
}

// Superblock is the device number, as major:minor, that all mounts of one
// file system instance share.
func (m *Mount) Superblock() string { return strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor) }

// HasOption reports whether the mount or its superblock has the option, which
// is a word ("ro") or a word and a value ("vers=3").
func (m *Mount) HasOption(option string) bool {
	return hasWord(m.Options, option) || hasWord(m.VFSOptions, option)
}

// Option returns the value of an option of the superblock, such as addr.
func (m *Mount) Option(name string) (string, bool) {
	for word := range strings.SplitSeq(m.VFSOptions, ",") {
		if key, value, found := strings.Cut(word, "="); found && key == name {
			return value, true
		}
	}
	return "", false
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// ReadOnly reports whether writing is refused, by the mount or by the
// superblock.
func (m *Mount) ReadOnly() bool { return m.HasOption("ro") }

// Bind reports whether the mount shows only a part of its file system, as a
// bind mount of a directory does.
func (m *Mount) Bind() bool { return m.Root != "/" }

// expires reports whether it is a mount of autofs that unmounts what was idle for some time.
// Those of systemd do not, unless TimeoutIdleSec= says so (autofs_show_options,
// fs/autofs/inode.c).
func (m *Mount) expires() bool {
	timeout, found := m.Option("timeout")
	return m.FSType == "autofs" && (!found || timeout != "0")
}

// SourceDeleted reports whether the directory or file that a bind mount shows was deleted
// (show_mountinfo, fs/proc_namespace.c; d_path, fs/d_path.c): nothing can be made in it.
func (m *Mount) SourceDeleted() bool { return strings.HasSuffix(m.Root, "//deleted") }

// Shows reports whether a file with these attributes, which were asked for with STATX_MNT_ID,
// lies on the mount. It may not: the mount may have gone, or the path means another file
// system here, in a container for example. Of a mount that was never in the
// table, whose ID is 0, nothing is known.
func (m *Mount) Shows(st *unix.Statx_t) bool {
	switch {
	case m.ID == 0:
		return true
	case st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id == uint64(m.ID): // since Linux 5.8
		return true
	case m.FSType == "btrfs", m.FSType == "bcachefs": // their subvolumes have device numbers of their own
		return true
	}
	return int(st.Dev_major) == m.Major && int(st.Dev_minor) == m.Minor
}

// ShowsType is Shows by statfs(2), for the types whose device numbers tell nothing.
func (m *Mount) ShowsType(st *unix.Statfs_t) bool {
	switch m.FSType {
	case "btrfs":
		return uint64(st.Type) == magicBtrfs
	case "bcachefs":
		return uint64(st.Type) == magicBcachefs
	}
	return true
}

// Named is a mount point that is not in any table that was read: only its path
// is known.
func Named(path string) Mount {
	return Mount{Info: &mountinfo.Info{Mountpoint: path, Root: "/"}}
}

// Printable is [printable.Name] of a path or a source.
func Printable(name string) string { return printable.Name(name) }
