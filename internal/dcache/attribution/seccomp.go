package attribution

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// SeccompRefuses names the system calls of this package that a seccomp filter of this
// process's refuses, such as "bpf(2)": container runtimes install one. None of those that
// are tried does anything.
func SeccompRefuses() []string {
	status, _ := os.ReadFile("/proc/self/status")
	if !filtered(status) {
		return nil
	}
	var names []string
	// Behind a filter, the kernel finds fault with the arguments: there is no such command,
	// and no attributes are at address 0. Who has no CAP_BPF may be refused before that: then
	// the other call tells, which profiles refuse together with bpf(2).
	const none = ^uintptr(0) >> 33
	_, _, perf := unix.Syscall6(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0, 0)
	if _, _, errno := unix.Syscall(unix.SYS_BPF, none, 0, 0); refusal(errno) && (hasCapabilities(unix.CAP_BPF) || refusal(perf)) {
		names = append(names, "bpf(2)")
	}
	if refusal(perf) {
		names = append(names, "perf_event_open(2)")
	}
	return names
}

// filtered reports whether a /proc/PID/status is of a process under a filter, seccomp(2).
func filtered(status []byte) bool { return bytes.Contains(status, []byte("\nSeccomp:\t2\n")) }

// refusal reports whether a filter may have said so. What the kernel says to who lacks a
// capability is the same.
func refusal(errno unix.Errno) bool {
	return errors.Is(errno, unix.EPERM) || errors.Is(errno, unix.EACCES) || errors.Is(errno, unix.ENOSYS)
}
