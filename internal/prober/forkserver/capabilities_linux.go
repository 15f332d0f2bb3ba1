package forkserver

import (
	"syscall"
	"unsafe"
)

// Capabilities that helpers may need, as masks; linux/capability.h.
const (
	// Search reaches file systems below directories that are not for everybody,
	// and opens what its owner has closed to others.
	Search uint64 = 1<<1 | 1<<2 // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
	// ChangeUser is for setresuid(2), setresgid(2) and setgroups(2).
	ChangeUser uint64 = 1<<6 | 1<<7 // CAP_SETGID, CAP_SETUID
	// EnterNamespace is for setns(2) with a mount namespace.
	EnterNamespace uint64 = 1<<18 | 1<<21 // CAP_SYS_CHROOT, CAP_SYS_ADMIN
	// KernelStacks is for /proc/PID/stack.
	KernelStacks uint64 = 1 << 21 // CAP_SYS_ADMIN
	// OtherProcesses is for links in /proc that lead into another process.
	OtherProcesses uint64 = 1 << 19 // CAP_SYS_PTRACE

	killOthers uint64 = 1 << 5 // CAP_KILL, to kill helpers of other users
	// Needed is all that a server stays permitted.
	Needed = Search | ChangeUser | EnterNamespace | KernelStacks | OtherProcesses | killOthers

	// Mark is in the inheritable set of the server and all helpers, whoever they
	// have become, if the prober has it. It permits nothing without an execve(2)
	// of a file that asks for it, which no_new_privs rules out, and nobody can put
	// it into a set of their own without having it: it tells helpers of another
	// user from processes which that user has only named so.
	Mark = killOthers
)

const capabilityVersion = 0x20080522 // _LINUX_CAPABILITY_VERSION_3

// capabilitySets are two words of 32 bits each, as capget(2) has them.
type capabilitySets [2]struct{ effective, permitted, inheritable uint32 }

// ownCapabilities are those the calling thread has in effect.
func ownCapabilities() uint64 {
	header := [2]uint32{capabilityVersion, 0}
	var sets capabilitySets
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0); errno != 0 {
		return 0
	}
	return uint64(sets[0].effective&sets[0].permitted) | uint64(sets[1].effective&sets[1].permitted)<<32
}

// restrictServer has the server permitted what it needs, and in effect what helpers of
// most plans have, which make no call for it then; and CAP_KILL while there are helpers that
// may be other users, to kill them, or to have the kernel do so at its own end
// (PR_SET_PDEATHSIG: it asks whether the one that ends might).
//
//go:nosplit
//go:norace
func restrictServer() {
	effective := memory.slot.capabilities & Search
	if memory.others > 0 {
		effective |= memory.slot.capabilities & killOthers
	}
	if effective != memory.slot.effective {
		memory.slot.effective = effective
		setCapabilities(&memory.slot, effective, memory.slot.capabilities)
	}
}

// keepCapabilities has those of the mask in effect. A helper that shares the server's
// memory stays permitted what the server is: by that the kernel judges who may trace it
// (ptrace(2)), and who could otherwise get at the server, which may do more.
//
//go:nosplit
//go:norace
func keepCapabilities(s *Slot, header *RequestHeader) {
	left := s.capabilities & header.Capabilities
	switch {
	case s == &memory.slot:
		setCapabilities(s, left, left)
	case left != s.effective:
		setCapabilities(s, left, s.capabilities)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func setCapabilities(s *Slot, effective, permitted uint64) {
	s.capabilityHeader[0], s.capabilityHeader[1] = capabilityVersion, 0
	sets := &s.capabilitySets
	sets[0].effective, sets[1].effective = uint32(effective), uint32(effective>>32)
	sets[0].permitted, sets[1].permitted = uint32(permitted), uint32(permitted>>32)
	sets[0].inheritable, sets[1].inheritable = uint32(s.mark), 0
	syscall.RawSyscall6(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&s.capabilityHeader)), uintptr(unsafe.Pointer(sets)), 0, 0, 0, 0)
}
