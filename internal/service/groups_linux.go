package service

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getsockoptGroups is getsockopt(2) of SO_PEERGROUPS: it returns how many there are.
func getsockoptGroups(fd int, groups []uint32) (int, error) {
	size := uint32(len(groups)) * uint32(unsafe.Sizeof(groups[0]))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(size / uint32(unsafe.Sizeof(groups[0]))), nil
}
