package result

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrnoName is the field errno: the name in errno(3), or "errno N" for one that
// has none.
func ErrnoName(errno syscall.Errno) string {
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return "errno " + strconv.Itoa(int(errno))
}
