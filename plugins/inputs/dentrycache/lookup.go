package dentrycache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// lookSteps are the steps of the plan that looks at a directory, by index; -1: it has
// no such step.
type lookSteps struct{ examine, missing, list, cached, watch int }

// missingName is looked up in each directory. It is always the same name, so that it
// makes no more than one negative dentry.
const missingName = ".vfsprobe-missing-name"

// maxEntries is how many bytes of a directory are read to find an existing name.
const maxEntries = 4096

// newPlan is the plan that finds out what a directory is, and times look-ups in it.
func (d *DentryCache) newPlan(dir *directory) (*prober.Plan, lookSteps) {
	p := &prober.Plan{Timeout: max(time.Until(dir.deadline), d.timeout/20), OutlivesServer: d.mounts.NeedsFUSE(dir.mount)}
	p.SearchBelow(d.host.MountPrefix)
	steps := lookSteps{-1, -1, -1, -1, -1}
	const flags = unix.AT_STATX_DONT_SYNC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	name := d.host.MountPrefix + dir.path
	root := prober.ResultOf(p.Add(prober.OpenPath(prober.CWD(), name, 0).Named("open")))
	steps.examine = p.Add(prober.Statx(root, "", flags, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_MNT_ID))
	if d.LookupProbe && !dir.automount {
		lookUp := func(name string) prober.Step {
			return prober.Statx(root, name, flags, unix.STATX_TYPE).WithoutOutput().Optional()
		}
		steps.missing = p.Add(lookUp(missingName).Named("lookup missing"))
		if dir.cachedName == "" {
			listed := p.Add(prober.Open(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0).Optional().MergeWithNext())
			steps.list = p.Add(prober.Getdents(prober.ResultOf(listed), maxEntries).Named("getdents").Optional())
		} else {
			p.Add(lookUp(dir.cachedName).Silent()) // brings it into the cache
			steps.cached = p.Add(lookUp(dir.cachedName).Named("lookup cached"))
		}
	}
	if d.InotifyProbe {
		instance := p.Add(prober.InotifyInit())
		// Watch for events that concern the children: others, such as IN_CREATE, don't stall.
		steps.watch = p.Add(prober.InotifyAddWatch(prober.ResultOf(instance), name, unix.IN_ATTRIB|unix.IN_ONLYDIR).Optional())
	}
	return p, steps
}

// examine evaluates what a helper has found.
func (dir *directory) examine(r *prober.Report, steps *lookSteps, table *mounts.Snapshot) {
	dir.lookups = make(map[string]float64)
	note := func(field string, step *prober.StepResult, expected syscall.Errno) {
		if step != nil && step.Errno == expected {
			dir.lookups[field] = step.Elapsed.Seconds()
		}
	}
	if st := r.Step(steps.examine).Statx(); st != nil {
		dir.identify(st, table)
	}
	note("lookup_missing_seconds", r.Step(steps.missing), unix.ENOENT)
	note("lookup_cached_seconds", r.Step(steps.cached), 0)
	note("inotify_add_watch_seconds", r.Step(steps.watch), 0)
	if cached := r.Step(steps.cached); cached != nil && cached.Errno != 0 {
		dir.cachedName = "" // it was removed
	}
	if list := r.Step(steps.list); list != nil && list.Errno == 0 {
		dir.cachedName = chooseName(list.Output, func(name string) bool {
			return table.At(path.Join(dir.path, name)) != nil
		})
	}
}

// identify finds out the file system. The mount's number tells it even where
// st_dev differs from the superblock's number, as on btrfs. Kernels before 5.8
// have only the path.
func (dir *directory) identify(st *unix.Statx_t, table *mounts.Snapshot) {
	dir.inode, dir.mode = st.Ino, st.Mode
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return
	}
	if m := table.ByID(int(st.Mnt_id)); m != nil {
		dir.mount = m
	}
}

// chooseName picks, from what getdents64(2) has returned, a name whose look-up touches no
// other file system: the name of a file, if there is one. It is empty if
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

// typeName names the type of a file that is no directory.
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
