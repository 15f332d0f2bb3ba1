package forkserver

import (
	"syscall"
	"unsafe"
)

const archGetFS = 0x1003 // asm/prctl.h

// threadArea is where the calling thread keeps its own data. In a cgo build
// glibc has registered its restartable sequence there (rseq(2)), which the
// kernel writes to after a fork, too.
func threadArea() uintptr {
	var base uintptr
	_, _, errno := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, archGetFS, uintptr(unsafe.Pointer(&base)), 0)
	if errno != 0 {
		return 0
	}
	return base
}
