package service

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups are the supplementary groups of who has connected (SO_PEERGROUPS, Linux 4.13);
// none where the kernel does not tell.
func peerGroups(fd int) []uint32 {
	const most = 1024
	groups := make([]uint32, most)
	size := uint32(most * unsafe.Sizeof(groups[0]))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil
	}
	return groups[:size/uint32(unsafe.Sizeof(groups[0]))]
}
