// Package mounts knows what is mounted, and what should be. It reads tables
// only, and makes no call on a mounted file system.
package mounts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"strings"
	"time"

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
	// OnDemand means that the way to the mount point leads through one of autofs:
	// whoever walks there starts its idle time anew.
	OnDemand bool
}

// Superblock is the device number, as major:minor, which all mounts of one
// file system instance share.
func (m *Mount) Superblock() string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

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

// Bind reports whether the mount shows a part of its file system only, as a
// bind mount of a directory does.
func (m *Mount) Bind() bool { return m.Root != "/" }

// Shows reports whether a file of these attributes, of which STATX_MNT_ID was asked
// for, lies on the mount. It may not: the mount is gone by now, or the path means
// another file system here, in a container say.
func (m *Mount) Shows(st *unix.Statx_t) bool {
	switch {
	case st.Mask&unix.STATX_MNT_ID != 0 && st.Mnt_id == uint64(m.ID): // since Linux 5.8
		return true
	case m.FSType == "btrfs", m.FSType == "bcachefs": // their subvolumes have device numbers of their own
		return true
	}
	return int(st.Dev_major) == m.Major && int(st.Dev_minor) == m.Minor
}

// recheck is how long a table is taken for unchanged because the kernel has not
// said otherwise: it does not say that it has made a file system read-only after an
// error. With 5,000 mounts reading takes 15 ms, and parsing as long again, which is
// left out if nothing has changed.
const recheck = 9 * time.Second // less than the usual interval of 10 s

// Table is the mount table of one mount namespace, read again only when the
// kernel says that it changed, and every nine seconds.
type Table struct {
	file   *os.File
	mounts []Mount
	err    error
	read   time.Time // zero: not yet
	seed   maphash.Seed
	sum    uint64 // of the content
}

// OpenTable opens the mount table of the given name: /proc/PID/mountinfo.
func OpenTable(name string) (*Table, error) {
	// Not os.Open: Go's poller would watch the file for us to no use.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return &Table{file: os.NewFile(uintptr(fd), name), seed: maphash.MakeSeed()}, nil
}

// Close closes the table's file.
func (t *Table) Close() error { return t.file.Close() }

// Mounts returns all mounts in the table's order, and whether they are others than
// the last time. The slice must not be changed. An error that comes with mounts is about
// lines which could not be understood.
func (t *Table) Mounts() (all []Mount, changed bool, err error) {
	if !t.read.IsZero() && !t.changed() && time.Since(t.read) < recheck {
		return t.mounts, false, t.err
	}
	began := time.Now()
	content, err := io.ReadAll(io.NewSectionReader(t.file, 0, 1<<40))
	if err != nil {
		t.read = time.Time{} // the kernel tells of a change only once
		return nil, false, fmt.Errorf("reading the mount table: %w", err)
	}
	known := !t.read.IsZero()
	t.read = began
	sum := maphash.Bytes(t.seed, content)
	if known && sum == t.sum {
		return t.mounts, false, t.err
	}
	t.sum = sum
	t.mounts, t.err = Parse(content)
	return t.mounts, true, t.err
}

// changed asks the kernel whether a mount was added, removed or remounted since
// the last question (mounts_poll, fs/proc_namespace.c).
func (t *Table) changed() bool {
	set := []unix.PollFd{{Fd: int32(t.file.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(set, 0)
	return err != nil || n > 0
}

// Parse reads the content of a mountinfo file. Lines that make no sense are
// left out, and named in the error.
func Parse(content []byte) ([]Mount, error) {
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(content), nil)
	if err != nil {
		infos, err = parseLines(content)
	}
	all := make([]Mount, len(infos))
	for i, info := range infos {
		all[i].Info = info
	}
	byID := make(map[int]*Mount, len(all))
	for i := range all {
		byID[all[i].ID] = &all[i]
	}
	hide(all, byID)
	for i := range all {
		all[i].OnDemand = onDemand(&all[i], byID)
	}
	return all, err
}

func onDemand(m *Mount, byID map[int]*Mount) bool {
	for range byID { // a table that lies may be a ring
		parent := byID[m.Parent]
		if parent == nil || parent == m {
			return false
		}
		if parent.FSType == "autofs" {
			return true
		}
		m = parent
	}
	return false
}

func parseLines(content []byte) (infos []*mountinfo.Info, err error) {
	var problems []error
	for line := range bytes.Lines(content) {
		// Only the superblock's options, which come last, can be this long: an
		// overlay's directories. The scanner of mountinfo takes no longer ones.
		line = line[:min(len(line), bufio.MaxScanTokenSize-1)]
		parsed, err := mountinfo.GetMountsFromReader(bytes.NewReader(line), nil)
		if err != nil {
			problems = append(problems, fmt.Errorf("a line of the mount table: %w", err))
		}
		infos = append(infos, parsed...)
	}
	return infos, errors.Join(problems...)
}

// hide marks the mounts which their mount point's path does not lead to. Path
// look-up goes from mount to mount; it misses a mount
//   - that has another one on its own root (which stands in its place),
//   - that lies below a directory on which another mount of the same parent
//     was put,
//   - whose parent is missed,
//   - that was put on the root directory itself: look-up starts below it.
func hide(all []Mount, byID map[int]*Mount) {
	type place struct {
		parent int
		path   string
	}
	at := make(map[place]int, len(all)) // the last mount there
	for i := range all {
		m := &all[i]
		if m.ID != m.Parent {
			at[place{m.Parent, m.Mountpoint}] = m.ID
		}
	}
	start := func(m *Mount) bool { return m.Mountpoint == "/" && byID[m.Parent] == nil }
	// covered asks about the way to m, or through it to a child.
	covered := func(m *Mount, child int) bool {
		if start(m) {
			return byID[child] != nil && byID[child].Mountpoint == "/"
		}
		if top, onTop := at[place{m.ID, m.Mountpoint}]; onTop && top != child {
			return true
		}
		if top, ok := at[place{m.Parent, m.Mountpoint}]; ok && top != m.ID && m.Parent != m.ID {
			return true
		}
		above := "/" // in a chroot the parent may be out of sight
		if parent := byID[m.Parent]; parent != nil {
			above = parent.Mountpoint
		}
		for dir := path.Dir(m.Mountpoint); len(dir) > max(len(above), len("/")); dir = path.Dir(dir) {
			if _, between := at[place{m.Parent, dir}]; between {
				return true
			}
		}
		return false
	}
	for i := range all {
		// Parents usually come first, but need not: follow the chain, which in
		// a table that lies may be a ring.
		m, child := &all[i], 0
		for depth := 0; m != nil && depth <= len(all); depth++ {
			if covered(m, child) {
				all[i].Hidden = true
				break
			}
			if m.Parent == m.ID {
				break
			}
			m, child = byID[m.Parent], m.ID
		}
	}
}

// Printable is [printable.Name] of a path or a source.
func Printable(name string) string { return printable.Name(name) }

// Pseudo reports whether file systems of the type hold no files of a user's and
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
