// Package pages keeps the program's own pages in memory: else the kernel may drop them when
// memory is short, and has to read them from the root file system again, whose device may
// hang by then.
package pages

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// LockProgram keeps each page of the program's file that is in memory, or will be, there
// (mlock2(2) with MLOCK_ONFAULT, Linux 4.4). proc is where procfs is mounted. The error says
// what RLIMIT_MEMLOCK would have to be, without CAP_IPC_LOCK.
func LockProgram(proc string) error {
	maps, err := os.ReadFile(filepath.Join(proc, "self/maps"))
	if err != nil {
		return fmt.Errorf("locking the program's pages: %w", err)
	}
	program := slices.DeleteFunc(ParseMaps(maps), func(m Mapping) bool { return !m.Constant })
	var size uintptr
	for _, m := range program {
		size += m.End - m.Start
	}
	const onFault = 1 // MLOCK_ONFAULT, asm-generic/mman-common.h
	for _, m := range program {
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, m.Start, m.End-m.Start, onFault); errno != 0 {
			return fmt.Errorf("locking the program's pages: mlock2: %w (RLIMIT_MEMLOCK must be %d kB)", errno, (size+1023)>>10)
		}
	}
	return nil
}

// Mapping is a range of a process's addresses.
type Mapping struct {
	Start, End uintptr
	// Constant says that it is of a file and nobody writes to it: code, or constants.
	Constant bool
	// Shared says that what is written to it others can see, MAP_SHARED in mmap(2).
	Shared bool
	// Name is the file's, or says in brackets what else it is. It ends at the first space.
	Name string
}

// ParseMaps reads a proc_pid_maps(5). Memory that is only reserved is among the mappings, and
// so are the kernel's vdso and vvar. Lines that make no sense are left out.
//
//	00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon
//	7ffc1c5f2000-7ffc1c5f6000 r--p 00000000 00:00 0 [vvar]
func ParseMaps(maps []byte) []Mapping {
	var all []Mapping
	for line := range bytes.Lines(maps) {
		fields := bytes.Fields(line)
		if len(fields) < 5 {
			continue
		}
		first, last, _ := bytes.Cut(fields[0], []byte("-"))
		start, err := strconv.ParseUint(string(first), 16, 64)
		end, err2 := strconv.ParseUint(string(last), 16, 64)
		if err == nil && err2 == nil && start < end {
			constant := bytes.HasPrefix(fields[1], []byte("r-")) && string(fields[4]) != "0" // an inode
			shared := bytes.HasSuffix(fields[1], []byte("s"))
			m := Mapping{Start: uintptr(start), End: uintptr(end), Constant: constant, Shared: shared}
			if len(fields) > 5 {
				m.Name = string(fields[5])
			}
			all = append(all, m)
		}
	}
	return all
}
