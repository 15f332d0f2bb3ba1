package dcache

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Sysctls are the settings that bear on the cache. What the kernel lacks is nil.
type Sysctls struct {
	CachePressure      *int64 // vm.vfs_cache_pressure
	CachePressureDenom *int64 // vm.vfs_cache_pressure_denom, since 6.16: what 100 % are
	DentryNegative     *int64 // fs.dentry-negative: drop the dentries of removed files at once
	// NegativeLimit is fs.negative-dentry-limit, of RHEL since 7.8: thousandths of the memory,
	// 0: none (access.redhat.com/solutions/5777081).
	NegativeLimit *int64
	// FSKLimit is fs.dentry-fs-klimit, of RHEL 8 since 4.18.0-553.62.1: thousands of unused
	// dentries of each file system, a soft limit by which negative ones are freed; 0: none
	// (dentry_fs_klimit_sysctl in fs/dcache.c of github.com/ctrliq/kernel-src-tree, commit
	// e252413ceae1).
	FSKLimit *int64
}

// ReadSysctls reads them below the directory where procfs is mounted. The error
// is about files that are there; the other values hold.
func ReadSysctls(proc string) (s Sysctls, err error) {
	for _, file := range []struct {
		name  string
		value **int64
	}{
		{"vm/vfs_cache_pressure", &s.CachePressure},
		{"vm/vfs_cache_pressure_denom", &s.CachePressureDenom},
		{"fs/dentry-negative", &s.DentryNegative},
		{"fs/negative-dentry-limit", &s.NegativeLimit},
		{"fs/dentry-fs-klimit", &s.FSKLimit},
	} {
		n, readErr := procfs.ReadNumber(filepath.Join(proc, "sys", file.name))
		switch {
		case readErr == nil:
			*file.value = &n
		case !errors.Is(readErr, fs.ErrNotExist):
			err = errors.Join(err, readErr)
		}
	}
	return s, err
}

// Memory is what /proc/meminfo tells, in bytes.
type Memory struct {
	Total           int64 // MemTotal
	SlabReclaimable int64 // SReclaimable: dentries, inodes and others
}

// ReadMemory reads meminfo below the directory where procfs is mounted.
func ReadMemory(proc string) (Memory, error) {
	name := filepath.Join(proc, "meminfo")
	content, err := procfs.Read(name)
	if err != nil {
		return Memory{}, err
	}
	m, err := parseMemory(content)
	if err != nil {
		return Memory{}, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func parseMemory(content []byte) (Memory, error) {
	var m Memory
	for _, line := range []struct {
		key   string
		bytes *int64
	}{{"MemTotal:", &m.Total}, {"SReclaimable:", &m.SlabReclaimable}} {
		n, err := keyed(content, line.key)
		if err != nil {
			return Memory{}, err
		}
		if n < 0 || n > 1<<53 { // kibibytes
			return Memory{}, fmt.Errorf("%s %d kB makes no sense", line.key, n)
		}
		*line.bytes = n << 10
	}
	return m, nil
}

// ReadSlabDrops reads drop_slab of /proc/vmstat: how often somebody made the
// kernel drop its dentries and inodes, by /proc/sys/vm/drop_caches.
func ReadSlabDrops(proc string) (int64, error) {
	name := filepath.Join(proc, "vmstat")
	content, err := procfs.Read(name)
	if err != nil {
		return 0, err
	}
	n, err := keyed(content, "drop_slab")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// keyed finds the number in the line that starts with the key and white space.
func keyed(content []byte, key string) (int64, error) {
	for line := range bytes.Lines(content) {
		rest, found := bytes.CutPrefix(line, []byte(key))
		if !found || len(rest) == 0 || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		n, err := procfs.ParseNumber(rest)
		if err != nil {
			return 0, fmt.Errorf("%s %w", key, err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("no %s in it: %w", key, fs.ErrNotExist)
}
