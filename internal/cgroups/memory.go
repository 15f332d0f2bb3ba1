package cgroups

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Memory is what a memory cgroup holds of the kernel's memory, in bytes. Both
// versions count what its descendants hold, too.
type Memory struct {
	// Path is that of the cgroup, as in /proc/PID/cgroup, seen from the root of
	// the hierarchy that is mounted.
	Path  string
	Bytes int64
	// Own is Bytes without those of the descendants. What a removed cgroup has
	// left becomes its parent's.
	Own int64
}

// Hierarchies are the cgroup hierarchies of a host.
type Hierarchies struct {
	// Unified is where version 2 is mounted; empty if it is not.
	Unified string
	// Memory is where the memory controller is: Unified, or a hierarchy of
	// version 1; empty if there is none.
	Memory string
}

// V1 reports whether the memory controller is that of version 1. Its memory.stat
// knows no slabs: all of the kernel's memory is counted instead.
func (h *Hierarchies) V1() bool { return h.Memory != "" && h.Memory != h.Unified }

// FindHierarchies looks below the directory where sysfs is mounted, at the places
// where systemd and the container runtimes mount them.
func FindHierarchies(sys string) Hierarchies {
	var h Hierarchies
	root := filepath.Join(sys, "fs/cgroup")
	for _, dir := range []string{root, filepath.Join(root, "unified")} {
		content, err := procfs.Read(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			continue
		}
		h.Unified = dir
		if listsMemory(content) {
			h.Memory = dir
		}
		break
	}
	if v1 := filepath.Join(root, "memory"); h.Memory == "" {
		if _, err := procfs.Read(filepath.Join(v1, "memory.kmem.usage_in_bytes")); err == nil {
			h.Memory = v1
		}
	}
	return h
}

// listsMemory reads a cgroup.controllers.
func listsMemory(content []byte) bool {
	return slices.Contains(strings.Fields(string(content)), "memory")
}

// ReadMemory returns what each cgroup holds of the reclaimable slabs (version 2),
// or of all kernel memory (version 1), in no particular order. It costs some
// 10 µs per cgroup, and never waits. Cgroups that vanish meanwhile are left out;
// the error is about those that could not be read, and the others hold.
func (h *Hierarchies) ReadMemory() (all []Memory, err error) {
	if h.Memory == "" {
		return nil, nil
	}
	file, parse := "memory.stat", parseSlab
	if h.V1() {
		file, parse = "memory.kmem.usage_in_bytes", parseBytes
	}
	var unread error
	var content []byte
	err = walk(h.Memory, -1, func(c cgroup, parent int) int { // the index of the nearest ancestor that has a figure
		var bytes int64
		var err error
		content, err = procfs.AppendAt(content[:0], c.dir, c.name+"/"+file)
		if err == nil {
			bytes, err = parse(content)
		}
		if err != nil {
			if unread == nil && !gone(err) {
				unread = fmt.Errorf("%s: %w", filepath.Join(h.Memory, c.path, file), err)
			}
			return parent
		}
		all = append(all, Memory{Path: c.path, Bytes: bytes, Own: bytes})
		if parent >= 0 {
			all[parent].Own -= bytes
		}
		return len(all) - 1
	})
	for i := range all {
		all[i].Own = max(all[i].Own, 0) // they were not read at one time
	}
	return all, cmp.Or(unread, err)
}

// parseSlab finds slab_reclaimable in a memory.stat of version 2.
func parseSlab(content []byte) (int64, error) {
	for line := range bytes.Lines(content) {
		if value, found := bytes.CutPrefix(line, []byte("slab_reclaimable ")); found {
			return parseBytes(value)
		}
	}
	return 0, fmt.Errorf("no slab_reclaimable in it: %w", fs.ErrNotExist)
}

func parseBytes(content []byte) (int64, error) {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(content)), 10, 64)
	if err == nil && n < 0 {
		err = fmt.Errorf("%d bytes make no sense", n)
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Names returns the paths of the cgroups by their ids: the inode numbers of their
// directories. They are those of the memory controller if that is of version 1, and otherwise
// of version 2, as bpf_get_current_cgroup_id() has them.
func (h *Hierarchies) Names() (map[uint64]string, error) {
	names := make(map[uint64]string)
	root := h.Unified
	if h.V1() {
		root = h.Memory
	}
	if root == "" {
		return names, nil
	}
	err := walk(root, struct{}{}, func(c cgroup, above struct{}) struct{} {
		names[c.inode] = c.path
		return above
	})
	return names, err
}

// Usage is what a cgroup uses of its memory limit, in bytes. What is unknown is 0.
type Usage struct {
	Kernel     int64 // all of the kernel's memory: version 1, or Linux 5.18
	WorkingSet int64 // all memory but inactive pages of files, as the kubelet has it
	// Limit is the lowest level's of the cgroup and those above it that has one, and Used what
	// is used of it there.
	Limit, Used int64
}

// noLimit is the least number of bytes that means none. Version 1 has no word for it, but a
// number of pages near 2^63 (PAGE_COUNTER_MAX).
const noLimit = 1 << 60

// A UsageReader reads how the memory of cgroups is used, at one time: what it has read of a cgroup
// holds for those below it.
type UsageReader struct {
	hierarchies                    *Hierarchies
	usage, limit, inactive, kernel string // the files, and lines of memory.stat
	limits                         map[string]limit
}

// NewUsageReader returns a UsageReader of the memory controller's hierarchy.
func (h *Hierarchies) NewUsageReader() *UsageReader {
	r := &UsageReader{hierarchies: h, usage: "memory.current", limit: "memory.max", inactive: "inactive_file", kernel: "kernel",
		limits: make(map[string]limit)}
	if h.V1() {
		r.usage, r.limit, r.inactive, r.kernel = "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file", ""
	}
	return r
}

// Read tells how a cgroup's memory is used. It costs some 30 µs and never waits. A cgroup that has
// gone uses nothing.
func (r *UsageReader) Read(path string) Usage {
	var u Usage
	if used := r.bytesIn(path, r.usage); used > 0 {
		stat, _ := procfs.Read(filepath.Join(r.hierarchies.Memory, path, "memory.stat"))
		u.WorkingSet = max(used-keyedBytes(stat, r.inactive), 0)
		u.Kernel = keyedBytes(stat, r.kernel)
	}
	if r.hierarchies.V1() {
		u.Kernel = r.bytesIn(path, "memory.kmem.usage_in_bytes")
	}
	l := r.limitOf(path)
	u.Limit, u.Used = l.bytes, l.used
	return u
}

// limit is a level's, and what is used of it there.
type limit struct{ bytes, used int64 }

// limitOf returns the limit of a cgroup: of the lowest level that has one.
func (r *UsageReader) limitOf(path string) limit {
	l, known := r.limits[path]
	if known {
		return l
	}
	if most := r.bytesIn(path, r.limit); most > 0 && most < noLimit {
		l = limit{most, r.bytesIn(path, r.usage)}
	} else if path != "/" {
		l = r.limitOf(filepath.Dir(path))
	}
	r.limits[path] = l
	return l
}

// bytesIn reads a file of a cgroup that holds a number. It is 0 where there is none, such as "max".
func (r *UsageReader) bytesIn(path, file string) int64 {
	content, err := procfs.Read(filepath.Join(r.hierarchies.Memory, path, file))
	if err != nil {
		return 0
	}
	n, _ := parseBytes(content)
	return n
}

// keyedBytes finds a number of a memory.stat; 0 if it is not there.
func keyedBytes(content []byte, key string) int64 {
	for line := range bytes.Lines(content) {
		if name, value, found := bytes.Cut(line, []byte(" ")); found && key != "" && string(name) == key {
			n, _ := parseBytes(value)
			return n
		}
	}
	return 0
}
