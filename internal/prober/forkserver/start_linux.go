package forkserver

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

const (
	madvDontFork = 10
	madvDoFork   = 11
	sigSetMask   = 2
)

// starting guards memory, which the next child inherits.
var starting sync.Mutex

// Start forks a fork server which listens on the socket, one end of a
// SOCK_SEQPACKET socketpair(2). Its first message is a Ready. The server is a
// child of the calling process, which has to wait for its end.
//
// With trim, the server and its helpers inherit only the memory they need. A
// test helper is forked first; where it does not work, trimmed is false and all
// memory is inherited.
func Start(socket int, trim bool) (pid int, trimmed bool, err error) {
	starting.Lock()
	defer starting.Unlock()
	// The signal mask and PR_SET_PDEATHSIG belong to threads. This one does not
	// end: the Go runtime uses it on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	copy(memory.name[:], "vfsprobe-server")
	copy(memory.null[:], os.DevNull)
	copy(memory.root[:], "/")
	memory.prober = uintptr(os.Getpid())
	memory.pageSize = uintptr(os.Getpagesize())
	memory.threadArea = threadArea()
	rest := unneeded()
	if trim {
		advise(rest, madvDontFork)
		trimmed = helperWorks()
	}
	if !trimmed {
		advise(rest, madvDoFork) // an earlier start may have left its marks, too
	}
	memory.socket = uintptr(socket)
	pid, errno := fork(serverRole, trimmed)
	if errno != 0 {
		return 0, false, fmt.Errorf("fork: %w", errno)
	}
	return pid, trimmed, nil
}

type role uint8

const (
	serverRole role = iota
	testHelperRole
)

// fork forks this process with all signals blocked. A trimmed child gets two
// pages of the thread's own data, and the pages of the stack it stands on, which
// can't move: nosplit functions don't grow it. What they call needs less than a
// page, which the linker checks.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fork(child role, trimmed bool) (int, syscall.Errno) {
	all, before := ^uint64(0), uint64(0)
	if trimmed {
		page := uintptr(unsafe.Pointer(&all)) &^ (memory.pageSize - 1)
		syscall.RawSyscall6(syscall.SYS_MADVISE, page-memory.pageSize, 3*memory.pageSize, madvDoFork, 0, 0, 0)
		page = memory.threadArea &^ (memory.pageSize - 1)
		syscall.RawSyscall6(syscall.SYS_MADVISE, page, 2*memory.pageSize, madvDoFork, 0, 0, 0)
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&all)),
		uintptr(unsafe.Pointer(&before)), signalSetSize, 0, 0)
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		if child == serverRole {
			serve()
		}
		runSteps()
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(&before)), 0, signalSetSize, 0, 0)
	return int(pid), errno
}

// helperWorks forks a helper as the server would, and sees it run a plan.
func helperWorks() bool {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])

	header := (*RequestHeader)(unsafe.Pointer(&memory.request))
	*header = RequestHeader{Kind: Fork, Steps: 1}
	step := (*Step)(unsafe.Add(unsafe.Pointer(header), unsafe.Sizeof(*header)))
	*step = Step{Number: syscall.SYS_GETPPID}
	memory.server = memory.prober // the test helper's parent
	memory.socket = uintptr(pair[1])
	memory.childSignals = ^uintptr(0) // none to close

	pid, errno := fork(testHelperRole, true)
	if errno != 0 {
		return false
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		return false
	}
	message := make([]byte, unsafe.Sizeof(Answer{})+1)
	n, _, err := syscall.Recvfrom(pair[0], message, syscall.MSG_DONTWAIT)
	if err != nil {
		return false
	}
	got, _, ok := ParseAnswer(message[:n])
	return ok && got.Kind == StepDone && got.Errno == 0 && got.Result == int64(memory.prober)
}

type memoryRange struct{ start, end uintptr }

func advise(ranges []memoryRange, advice uintptr) {
	for _, r := range ranges {
		// Special mappings refuse. They cost a fork next to nothing.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, r.start, r.end-r.start, advice)
	}
}

// unneeded lists what server and helpers can do without: all memory but code,
// constants, and the pages that memory is on.
func unneeded() []memoryRange {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	start := uintptr(unsafe.Pointer(&memory))
	keep := memoryRange{
		start &^ (memory.pageSize - 1),
		(start + unsafe.Sizeof(memory) + memory.pageSize - 1) &^ (memory.pageSize - 1),
	}
	var rest []memoryRange
	for _, m := range variables(maps) {
		if m.end <= keep.start || m.start >= keep.end {
			rest = append(rest, m)
			continue
		}
		if m.start < keep.start {
			rest = append(rest, memoryRange{m.start, keep.start})
		}
		if m.end > keep.end {
			rest = append(rest, memoryRange{keep.end, m.end})
		}
	}
	return rest
}

// variables reads the ranges of proc_pid_maps(5) that hold neither code nor
// constants. Memory that is only reserved is among them.
//
//	00400000-00452000 rw-p 00000000 08:02 173521 /usr/bin/dbus-daemon
func variables(maps []byte) []memoryRange {
	var ranges []memoryRange
	for line := range bytes.Lines(maps) {
		addresses, rest, _ := bytes.Cut(line, []byte(" "))
		first, last, _ := bytes.Cut(addresses, []byte("-"))
		start, err := strconv.ParseUint(string(first), 16, 64)
		end, err2 := strconv.ParseUint(string(last), 16, 64)
		if err == nil && err2 == nil && start < end && !bytes.HasPrefix(rest, []byte("r-")) {
			ranges = append(ranges, memoryRange{uintptr(start), uintptr(end)})
		}
	}
	return ranges
}
