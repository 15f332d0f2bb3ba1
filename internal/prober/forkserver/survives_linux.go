package forkserver

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// Survives reports whether a process may make a system call, whatever comes of it, and is not
// killed for it by a sandbox (SECCOMP_RET_KILL_PROCESS, seccomp(2)). A child makes it, with
// arguments that are all ones: use it for calls that refuse these and wait for nothing.
func Survives(call uintptr) (bool, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	starting.Lock() // who starts a server marks memory that children do without
	defer starting.Unlock()
	memory.pageSize = uintptr(syscall.Getpagesize())
	memory.threadArea = threadArea()
	memory.kept = keptMemory{}
	pid, errno := forkToCall(call)
	if errno != 0 {
		return false, fmt.Errorf("fork: %w", errno)
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			return err == nil && status.Exited() && status.ExitStatus() == 0, err
		}
	}
}

// forkToCall forks a child that makes the call and ends.
//
//go:nosplit
//go:norace
//go:nocheckptr
func forkToCall(call uintptr) (int, syscall.Errno) {
	all, before := ^uint64(0), uint64(0)
	keepStack(uintptr(unsafe.Pointer(&all)))
	setSignalMask(&all, &before)
	pid, errno := cloneProcess()
	if errno == 0 && pid == 0 {
		const ones = ^uintptr(0)
		syscall.RawSyscall6(call, ones, ones, ones, ones, ones, ones)
		for {
			syscall.RawSyscall6(syscall.SYS_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
		}
	}
	setSignalMask(&before, nil)
	return pid, errno
}
