package prober

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// planCalls are the system calls that plans may make. Those that reach beyond file systems
// are not among them: no execution, no tracing, no mounting. The only sockets are those of
// the host itself: through them this process is told what a helper has open.
func planCalls() []uintptr {
	return []uintptr{
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_CLOSE, unix.SYS_DUP3, unix.SYS_SOCKET, unix.SYS_CONNECT, unix.SYS_STATX, unix.SYS_NEWFSTATAT, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_NAME_TO_HANDLE_AT,
		unix.SYS_GETDENTS64, unix.SYS_FGETXATTR, unix.SYS_READLINKAT, unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_READAHEAD,
		unix.SYS_FADVISE64, unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT,
		unix.SYS_FCHMOD, unix.SYS_FCNTL, unix.SYS_FLOCK, unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH,
		unix.SYS_SETNS, unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID, unix.SYS_CAPSET,
		unix.SYS_GETPID, unix.SYS_GETUID, unix.SYS_GETGID, // for tests
	}
}

// compoundCalls are those which compound steps make, beside some of planCalls.
func compoundCalls() []uintptr {
	return []uintptr{unix.SYS_LISTMOUNT, unix.SYS_STATMOUNT}
}

// serverCalls are those of the fork server and of helpers around their plans.
func serverCalls() []uintptr {
	return []uintptr{
		unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_PPOLL, unix.SYS_READ, unix.SYS_CLONE, unix.SYS_KILL, unix.SYS_WAIT4,
		unix.SYS_WAITID, unix.SYS_PRCTL, unix.SYS_GETPPID, unix.SYS_CAPSET, unix.SYS_CLOCK_GETTIME,
		unix.SYS_EXIT_GROUP, unix.SYS_MADVISE, unix.SYS_RESTART_SYSCALL, // when a stopped one is continued
	}
}

// filter is the seccomp(2) filter of fork servers, which helpers inherit: whoever
// makes another call is killed by SIGSYS. It is empty on processors that are not
// known here.
func filter() forkserver.Filter {
	architectures := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}
	architecture, known := architectures[runtime.GOARCH]
	if !known {
		return forkserver.Filter{}
	}
	calls := slices.Concat(serverCalls(), planCalls(), compoundCalls())
	slices.Sort(calls)
	calls = slices.Compact(calls)
	calls = slices.DeleteFunc(calls, func(call uintptr) bool { return call == unix.SYS_SOCKET }) // its argument counts

	const (
		load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		end       = unix.BPF_RET | unix.BPF_K
		// struct seccomp_data, linux/seccomp.h.
		numberOffset       = 0
		architectureOffset = 4
		argumentOffset     = 16 // the lower half of the first, on these processors
	)
	program := []forkserver.Instruction{
		{Code: load, K: architectureOffset},
		{Code: jumpEqual, K: architecture, True: 1},
		{Code: end, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: numberOffset},
	}
	for i, call := range calls {
		program = append(program, forkserver.Instruction{Code: jumpEqual, K: uint32(call), True: uint8(len(calls)-i) + 3})
	}
	program = append(program,
		forkserver.Instruction{Code: jumpEqual, K: unix.SYS_SOCKET, False: 2},
		forkserver.Instruction{Code: load, K: argumentOffset},
		forkserver.Instruction{Code: jumpEqual, K: unix.AF_UNIX, True: 1},
		forkserver.Instruction{Code: end, K: unix.SECCOMP_RET_KILL_PROCESS},
		forkserver.Instruction{Code: end, K: unix.SECCOMP_RET_ALLOW})
	return forkserver.Filter{Call: unix.SYS_SECCOMP, Program: program}
}

// refuse names the first step that the filter would not let through, or whose answers
// could not be told from forged ones.
func refuse(steps []Step) error {
	calls := planCalls()
	for i := range steps {
		switch step := &steps[i]; {
		case step.compound():
			if step.limit <= 0 || step.isSilent() {
				return fmt.Errorf("step %s: a compound step takes a limit, and is neither silent nor merged", step.Name)
			}
		case !slices.Contains(calls, step.number):
			return fmt.Errorf("step %s: system call %d is not among those that helpers may make", step.Name, step.number)
		}
	}
	return nil
}
