package forkserver

import (
	"bytes"
	"debug/elf"
	"strings"
	"syscall"
	"unsafe"

	"github.com/vfsprobe/vfsprobe/internal/pages"
)

const clockMonotonic = 1

// isOfVDSO reports whether a mapping is the kernel's code for programs, or its data; vdso(7).
func isOfVDSO(m *pages.Mapping) bool {
	return m.Name == "[vdso]" || strings.HasPrefix(m.Name, "[vvar")
}

// clockFunction is where the vDSO has clock_gettime(2), or 0. A helper reads the clock after each
// step; a system call costs a microsecond on some virtual machines.
func clockFunction(all []pages.Mapping) uintptr {
	for _, m := range all {
		if m.Name != "[vdso]" {
			continue
		}
		image := unsafe.Slice(*(**byte)(unsafe.Pointer(&m.Start)), m.End-m.Start)
		file, err := elf.NewFile(bytes.NewReader(image))
		if err != nil {
			return 0
		}
		symbols, _ := file.DynamicSymbols()
		for _, s := range symbols {
			if s.Name == vdsoClock && uintptr(s.Value) < m.End-m.Start {
				return m.Start + uintptr(s.Value)
			}
		}
	}
	return 0
}

// callClock calls a function of C with the arguments of clock_gettime(2).
//
//go:noescape
func callClock(function, clock uintptr, now *syscall.Timespec) (errno int32)

// readClock reads CLOCK_MONOTONIC.
//
//go:nosplit
//go:norace
//go:nocheckptr
func readClock(now *syscall.Timespec) {
	if memory.clock == 0 || callClock(memory.clock, clockMonotonic, now) != 0 {
		syscall.RawSyscall6(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(now)), 0, 0, 0, 0)
	}
}
