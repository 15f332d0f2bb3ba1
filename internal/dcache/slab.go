package dcache

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Slab is what the slab allocator holds for dentries.
type Slab struct {
	Bytes      int64 // of all slabs, whether their objects are in use or not
	SlabSize   int64 // bytes of one
	Objects    int64 // that fit the slabs
	ObjectSize int64 // bytes that one dentry takes; names of 40 bytes and more are beside it
}

// ReadSlab reads /sys/kernel/slab/dentry below the directory where sysfs is
// mounted. It takes root, and a kernel with the SLUB allocator. Its files objects
// and objects_partial are left alone: to read them the kernel walks the list of
// partial slabs under a lock (show_slab_objects, mm/slub.c). Before 5.9 the
// slabs of memory cgroups are not in it; see [Version.SlabsByCgroup].
func ReadSlab(sys string, pageSize int64) (Slab, error) {
	dir := filepath.Join(sys, "kernel/slab/dentry")
	var slabs, objects, size, order int64
	for _, file := range []struct {
		name  string
		value *int64
	}{{"slabs", &slabs}, {"total_objects", &objects}, {"slab_size", &size}, {"order", &order}} {
		n, err := procfs.ReadNumber(filepath.Join(dir, file.name))
		if err != nil {
			return Slab{}, err
		}
		*file.value = n
	}
	s, err := newSlab(slabs, objects, size, pageSize<<min(max(order, 0), maxOrder))
	if err != nil {
		return Slab{}, fmt.Errorf("%s: %w", dir, err)
	}
	return s, nil
}

// ReadSlabs reads the number of slabs alone, which is all that changes of
// [Slab.Bytes].
func ReadSlabs(sys string) (int64, error) {
	return procfs.ReadNumber(filepath.Join(sys, "kernel/slab/dentry/slabs"))
}

// maxOrder is the largest allocation of pages that makes sense: 2^10 of them.
const maxOrder = 10

func newSlab(slabs, objects, objectSize, slabSize int64) (Slab, error) {
	const most = 1 << 40
	for _, n := range []int64{slabs, objects, objectSize} {
		if n < 0 || n > most {
			return Slab{}, fmt.Errorf("%d slabs of %d objects of %d bytes make no sense", slabs, objects, objectSize)
		}
	}
	if slabSize < 1 || slabs > (1<<62)/slabSize {
		return Slab{}, fmt.Errorf("%d slabs of %d bytes make no sense", slabs, slabSize)
	}
	return Slab{Bytes: slabs * slabSize, SlabSize: slabSize, Objects: objects, ObjectSize: objectSize}, nil
}

// ReadSlabinfo reads the same from /proc/slabinfo, slabinfo(5). It takes root,
// 1 ms, and on older kernels much more: they walk all lists.
func ReadSlabinfo(proc string, pageSize int64) (Slab, error) {
	name := filepath.Join(proc, "slabinfo")
	content, err := procfs.Read(name)
	if err != nil {
		return Slab{}, err
	}
	s, err := parseSlabinfo(content, pageSize)
	if err != nil {
		return Slab{}, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func parseSlabinfo(content []byte, pageSize int64) (Slab, error) {
	for line := range bytes.Lines(content) {
		if !bytes.HasPrefix(line, []byte("dentry ")) {
			continue
		}
		// dentry active num size perslab pages : tunables a b c : slabdata active num shared
		fields := bytes.Fields(line)
		const objects, size, pages, slabs, count = 2, 3, 5, 14, 16
		if len(fields) < count {
			return Slab{}, fmt.Errorf("%d words in %q, expected %d", len(fields), line, count)
		}
		var n [count]int64
		for _, i := range []int{objects, size, pages, slabs} {
			var err error
			if n[i], err = strconv.ParseInt(string(fields[i]), 10, 64); err != nil {
				return Slab{}, err
			}
		}
		return newSlab(n[slabs], n[objects], n[size], pageSize*min(max(n[pages], 0), 1<<maxOrder))
	}
	return Slab{}, fmt.Errorf("no line of the dentry cache: %w", fs.ErrNotExist)
}

// SlabsByCgroup reports whether each memory cgroup has slabs of its own, which
// ended with 5.9.
func (v Version) SlabsByCgroup() bool { return !v.AtLeast(5, 9) }
