//go:build !amd64 && !arm64

package forkserver

import "syscall"

// Without assembly all helpers get memory of their own.
const sharing = false

func (s *slot) handOver() (stack uintptr) { return 0 }

func spawn(flags, stack uintptr) (pid, errno uintptr) { return 0, uintptr(syscall.ENOSYS) }
