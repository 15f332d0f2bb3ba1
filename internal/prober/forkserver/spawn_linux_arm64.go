package forkserver

import (
	"unsafe"

	"github.com/vfsprobe/vfsprobe/internal/race"
)

// Sharing says whether helpers can have slots in this build. What the compiler puts between
// assembly and Go calls the race detector, as sync/atomic does, which takes a Go runtime.
const Sharing = !race.Enabled

// spawn is clone(2) for a helper that works in a slot. It runs [runSteps] on the given
// stack, where that finds its argument.
func spawn(flags, stack uintptr) (pid, errno uintptr)

// handOver makes runSteps find the slot on the slot's own stack, which spawn is to
// use from where this returns: in Go's ABI0 arguments are above a word for the
// return address.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (s *Slot) handOver() (stack uintptr) {
	top := &s.stack[len(s.stack)-2]
	s.stack[len(s.stack)-1] = uintptr(unsafe.Pointer(s))
	return uintptr(unsafe.Pointer(top))
}

// vdsoClock is the name of clock_gettime(2) in the vDSO; vdso(7).
const vdsoClock = "__kernel_clock_gettime"
