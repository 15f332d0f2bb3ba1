// Package pages keeps the program's own pages in memory: else the kernel may drop them when
// memory is short, and has to read them from the root file system again, whose device may
// hang by then.
package pages

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	ranges := fileRanges(maps)
	var size uintptr
	for _, r := range ranges {
		size += r.end - r.start
	}
	const onFault = 1 // MLOCK_ONFAULT, asm-generic/mman-common.h
	for _, r := range ranges {
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, r.start, r.end-r.start, onFault); errno != 0 {
			return fmt.Errorf("locking the program's pages: mlock2: %w (RLIMIT_MEMLOCK must be %d kB)", errno, (size+1023)>>10)
		}
	}
	return nil
}

type addresses struct{ start, end uintptr }

// fileRanges are the mappings of files that nobody writes to, in a proc_pid_maps(5).
func fileRanges(maps []byte) []addresses {
	var all []addresses
	for line := range bytes.Lines(maps) {
		fields := bytes.Fields(line)
		if len(fields) < 5 || len(fields[1]) < 2 || fields[1][0] != 'r' || fields[1][1] == 'w' || string(fields[4]) == "0" {
			continue
		}
		first, last, _ := bytes.Cut(fields[0], []byte("-"))
		start, err := strconv.ParseUint(string(first), 16, 64)
		end, err2 := strconv.ParseUint(string(last), 16, 64)
		if err == nil && err2 == nil && start < end {
			all = append(all, addresses{uintptr(start), uintptr(end)})
		}
	}
	return all
}
