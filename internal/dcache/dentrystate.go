// Package dcache reads what the kernel tells about its dentry and inode caches.
package dcache

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// DentryState is /proc/sys/fs/dentry-state, for the whole host. See
// Documentation/admin-guide/sysctl/fs.rst and fs/dcache.c.
type DentryState struct {
	Dentries int64 // allocated
	Unused   int64 // not in use, kept for the next look-up
	// Negative counts the unused dentries of names that do not exist. Kernels
	// before 5.0 have no such count: HasNegative is false.
	Negative    int64
	HasNegative bool
}

// ReadDentryState reads the state below the directory where procfs is mounted.
// It costs some 8 µs: the counts are summed over all CPUs.
func ReadDentryState(proc string, kernel Version) (DentryState, error) {
	name := filepath.Join(proc, "sys/fs/dentry-state")
	content, err := procfs.Read(name)
	if err != nil {
		return DentryState{}, err
	}
	s, err := parseDentryState(content, kernel)
	if err != nil {
		return DentryState{}, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func parseDentryState(content []byte, kernel Version) (DentryState, error) {
	n, err := numbers(content, 5)
	if err != nil {
		return DentryState{}, err
	}
	s := DentryState{Dentries: n[0], Unused: n[1]}
	// A distribution may have brought the count to an older kernel; a zero
	// there tells nothing.
	if s.HasNegative = kernel.AtLeast(5, 0) || n[4] != 0; s.HasNegative {
		s.Negative = n[4]
	}
	return s, nil
}

// InodeState is /proc/sys/fs/inode-nr, for the whole host.
type InodeState struct {
	Inodes int64 // allocated
	Unused int64 // free ones in the cache
}

// ReadInodeState reads the state below the directory where procfs is mounted.
func ReadInodeState(proc string) (InodeState, error) {
	name := filepath.Join(proc, "sys/fs/inode-nr")
	content, err := procfs.Read(name)
	if err != nil {
		return InodeState{}, err
	}
	n, err := numbers(content, 2)
	if err != nil {
		return InodeState{}, fmt.Errorf("%s: %w", name, err)
	}
	return InodeState{Inodes: n[0], Unused: n[1]}, nil
}

// numbers reads at least count integers.
func numbers(content []byte, count int) ([]int64, error) {
	fields := bytes.Fields(content)
	if len(fields) < count {
		return nil, fmt.Errorf("%d numbers, expected %d", len(fields), count)
	}
	values := make([]int64, len(fields))
	for i, field := range fields {
		value, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return nil, err
		}
		values[i] = value
	}
	return values, nil
}

// Version is a kernel's release.
type Version struct{ Major, Minor int }

// ReadVersion reads /proc/sys/kernel/osrelease, such as 4.18.0-553.el8.x86_64.
func ReadVersion(proc string) (Version, error) {
	name := filepath.Join(proc, "sys/kernel/osrelease")
	content, err := procfs.Read(name)
	if err != nil {
		return Version{}, err
	}
	v, err := parseVersion(content)
	if err != nil {
		return Version{}, fmt.Errorf("%s: release %q: %w", name, content, err)
	}
	return v, nil
}

func parseVersion(release []byte) (Version, error) {
	var v Version
	if _, err := fmt.Sscanf(string(release), "%d.%d", &v.Major, &v.Minor); err != nil {
		return Version{}, err
	}
	if v.Major < 0 || v.Minor < 0 {
		return Version{}, fmt.Errorf("%d.%d makes no sense", v.Major, v.Minor)
	}
	return v, nil
}

// AtLeast reports whether the kernel is of that version or a later one.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}
