// Package startup keeps the Go runtime from reading the mount table before main.
//
// Since Go 1.25 the runtime looks for its CPU cgroup at each start, in
// /proc/self/cgroup and then in /proc/self/mountinfo up to the cgroup's mount
// (internal/runtime/cgroup). The kernel asks file systems while it makes the lines, a
// page of them at a time: with a silent btrfs before that mount, or in its page, the
// program would hang before its first instruction, and nothing in it can be told not to
// look. So a program that is linked with -ldflags "-E vfsprobe_start" starts here: it may
// open no file until the runtime is ready, by RLIMIT_NOFILE, getrlimit(2). The runtime
// goes on without a cgroup then, as before Go 1.25. A program that is linked without the
// flag, or with cgo, starts as usual.
package startup

import "syscall"

// openFiles is the limit that the program was started with, where it starts here.
var openFiles syscall.Rlimit

func init() {
	if openFiles.Max == 0 {
		return
	}
	// What package os does at the start of every program; this way children don't get
	// the limit that was in force before.
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles.Max, Max: openFiles.Max})
}
