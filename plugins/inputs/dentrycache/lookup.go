package dentrycache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// The steps of the plan that looks at a directory.
const (
	stepOpen    = "open"
	stepExamine = "statx"
	stepMissing = "lookup missing"
	stepCached  = "lookup cached"
	stepList    = "getdents"
	stepWatch   = "inotify_add_watch"
)

// missingName is looked up in each directory. It is always the same, so that it
// makes no more than one negative dentry.
const missingName = ".vfsprobe-missing-name"

// maxEntries is the size in bytes of what is read of a directory to find a name
// that is there.
const maxEntries = 4096

// look is the plan that finds out what a directory is, and times look-ups in it.
func (d *Dentrycache) look(dir *directory) *prober.Plan {
	p := &prober.Plan{Timeout: max(time.Until(dir.deadline), d.timeout/20)}
	p.Below(d.prefix)
	open := func(name string, at prober.Argument, path string, flags int, optional bool) int {
		return p.Add(prober.Step{Name: name, Number: unix.SYS_OPENAT, Optional: optional, Quiet: optional, Arguments: []prober.Argument{
			at, prober.Path(path), prober.Value(flags | unix.O_CLOEXEC), prober.Value(0)}})
	}
	root := open(stepOpen, prober.Value(unix.AT_FDCWD), d.prefix+dir.path, unix.O_PATH, false)
	statx := func(step prober.Step, name string, flags int, mask uint32, result prober.Argument) {
		step.Number = unix.SYS_STATX
		step.Arguments = []prober.Argument{prober.ResultOf(root), prober.Path(name),
			prober.Value(flags | unix.AT_STATX_DONT_SYNC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT), prober.Value(mask), result}
		p.Add(step)
	}
	size := unsafe.Sizeof(unix.Statx_t{})
	scratch := prober.Scratch(int(size))
	statx(prober.Step{Name: stepExamine}, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID, prober.Output(size))
	if d.LookupProbe && !dir.automount {
		statx(prober.Step{Name: stepMissing, Optional: true}, missingName, 0, unix.STATX_TYPE, scratch)
		if dir.cachedName == "" {
			listed := open("open to list", prober.ResultOf(root), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, true)
			p.Add(prober.Step{Name: stepList, Number: unix.SYS_GETDENTS64, Optional: true, Arguments: []prober.Argument{
				prober.ResultOf(listed), prober.Output(maxEntries), prober.Value(maxEntries)}})
		} else {
			// The first one brings it into the cache.
			statx(prober.Step{Name: "lookup", Optional: true, Quiet: true}, dir.cachedName, 0, unix.STATX_TYPE, scratch)
			statx(prober.Step{Name: stepCached, Optional: true}, dir.cachedName, 0, unix.STATX_TYPE, scratch)
		}
	}
	if d.InotifyProbe {
		instance := p.Add(prober.Step{Name: "inotify_init1", Number: unix.SYS_INOTIFY_INIT1, Arguments: []prober.Argument{prober.Value(unix.IN_CLOEXEC)}})
		// For events of the children: others, such as IN_CREATE, don't stall.
		p.Add(prober.Step{Name: stepWatch, Number: unix.SYS_INOTIFY_ADD_WATCH, Optional: true, Arguments: []prober.Argument{
			prober.ResultOf(instance), prober.Path(d.prefix + dir.path), prober.Value(unix.IN_ATTRIB | unix.IN_ONLYDIR)}})
	}
	return p
}

// examine takes what a helper has found.
func (dir *directory) examine(r *prober.Report, all []mounts.Mount) {
	dir.lookups = make(map[string]float64)
	for i := range r.Steps {
		step := &r.Steps[i]
		switch step.Name {
		case stepExamine:
			if step.Errno == 0 {
				dir.identify((*unix.Statx_t)(unsafe.Pointer(unsafe.SliceData(step.Output))), all)
			}
		case stepMissing:
			if step.Errno == unix.ENOENT {
				dir.lookups["lookup_missing_seconds"] = step.Elapsed.Seconds()
			}
		case stepCached:
			if step.Errno != 0 {
				dir.cachedName = "" // it was removed
				continue
			}
			dir.lookups["lookup_cached_seconds"] = step.Elapsed.Seconds()
		case stepList:
			if step.Errno == 0 {
				dir.cachedName = chooseName(step.Output, func(name string) bool {
					return mountedAt(all, path.Join(dir.path, name))
				})
			}
		case stepWatch:
			if step.Errno == 0 {
				dir.lookups["inotify_add_watch_seconds"] = step.Elapsed.Seconds()
			}
		}
	}
}

// identify finds out the file system. The mount's number tells it also where
// st_dev is another one than the superblock's, as on btrfs; kernels before 5.8
// have only the path.
func (dir *directory) identify(st *unix.Statx_t, all []mounts.Mount) {
	dir.inode, dir.mode = st.Ino, st.Mode
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return
	}
	for i := range all {
		if uint64(all[i].ID) == st.Mnt_id {
			dir.mount = &all[i]
			return
		}
	}
}

// mountOf is the mount that a path leads to, by the path alone.
func mountOf(all []mounts.Mount, name string) *mounts.Mount {
	var best *mounts.Mount
	for i := range all {
		m := &all[i]
		if !m.Hidden && below(name, m.Mountpoint) && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	return best
}

// below reports whether the path is the directory or in it.
func below(name, dir string) bool {
	return dir == "/" || name == dir || strings.HasPrefix(name, dir) && name[len(dir)] == '/'
}

func mountedAt(all []mounts.Mount, name string) bool {
	for i := range all {
		if all[i].Mountpoint == name {
			return true
		}
	}
	return false
}

// chooseName picks a name whose look-up touches no other file system out of what
// getdents64(2) has returned: that of a file, if there is one. It is empty if
// there is none.
func chooseName(entries []byte, mountPoint func(string) bool) string {
	chosen, best := "", 0
	for {
		name, kind, rest, ok := nextEntry(entries)
		if !ok {
			return chosen
		}
		entries = rest
		rank := 0
		switch {
		case name == "." || name == ".." || name == missingName || mountPoint(name):
		case kind == unix.DT_REG:
			return name
		case kind == unix.DT_LNK:
			rank = 2
		case kind == unix.DT_DIR:
			rank = 1
		}
		if rank > best {
			chosen, best = name, rank
		}
	}
}

// nextEntry reads a struct linux_dirent64: inode, offset, length, type, name.
func nextEntry(entries []byte) (name string, kind byte, rest []byte, ok bool) {
	const lengthOffset, kindOffset, nameOffset = 16, 18, 19
	if len(entries) <= nameOffset {
		return "", 0, nil, false
	}
	length := int(binary.NativeEndian.Uint16(entries[lengthOffset:]))
	if length <= nameOffset || length > len(entries) {
		return "", 0, nil, false
	}
	raw, _, terminated := bytes.Cut(entries[nameOffset:length], []byte{0})
	if !terminated || len(raw) == 0 || bytes.IndexByte(raw, '/') >= 0 {
		return "", 0, nil, false
	}
	return string(raw), entries[kindOffset], entries[length:], true
}

// typeName names what is no directory.
func typeName(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return fmt.Sprintf("of type %#o", mode&unix.S_IFMT)
}
