// Package sandbox has the kernel refuse system calls, as containers and systemd units do.
package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Actions are what a sandbox does about a system call that it does not know, seccomp(2).
func Actions() map[string]uint32 {
	return map[string]uint32{
		"ENOSYS": unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), "EPERM": unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), "kill": unix.SECCOMP_RET_KILL_PROCESS,
	}
}

// Enter puts this process, all threads of it and all that it executes, into a sandbox which
// answers some system calls by an action. There is no way out.
func Enter(action uint32, calls ...uint32) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number
	for _, call := range calls {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
