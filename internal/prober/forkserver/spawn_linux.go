//go:build !amd64 && !arm64

package forkserver

import "syscall"

// Sharing says whether helpers can share the server's memory: not without assembly.
const Sharing = false

func (s *slot) handOver() (stack uintptr) { return 0 }

func spawn(flags, stack uintptr) (pid, errno uintptr) { return 0, uintptr(syscall.ENOSYS) }
