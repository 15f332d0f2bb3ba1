package setpriv

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracingCalls are the system calls by which CAP_SYS_PTRACE reaches into other processes. What
// vfsprobe reads below /proc/PID takes none of them.
func tracingCalls() []uint32 {
	return []uint32{unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD}
}

// refuseTracing has the kernel answer EPERM to tracingCalls of this thread, and of what it
// executes. So are all calls of the processor's other modes, which have other numbers. It takes
// no_new_privs. On processors that are not known here it does nothing.
func refuseTracing() error {
	architectures := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
	architecture, known := architectures[runtime.GOARCH]
	if !known {
		return nil
	}
	const (
		load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jumpFrom  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		end       = unix.BPF_RET | unix.BPF_K
		// struct seccomp_data, linux/seccomp.h.
		numberOffset       = 0
		architectureOffset = 4
		// x32 has the numbers of amd64 with this bit (arch/x86/include/uapi/asm/unistd.h).
		x32       = 0x40000000
		permitted = unix.SECCOMP_RET_ALLOW
		refused   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	calls := tracingCalls()
	toEnd := uint8(len(calls) + 1)
	program := []unix.SockFilter{
		{Code: load, K: architectureOffset},
		{Code: jumpEqual, K: architecture, Jf: toEnd + 2},
		{Code: load, K: numberOffset},
		{Code: jumpFrom, K: x32, Jt: toEnd},
	}
	for i, call := range calls {
		program = append(program, unix.SockFilter{Code: jumpEqual, K: call, Jt: uint8(len(calls) - i)})
	}
	program = append(program, unix.SockFilter{Code: end, K: permitted}, unix.SockFilter{Code: end, K: refused})
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
