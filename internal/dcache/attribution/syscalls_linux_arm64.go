package attribution

import "golang.org/x/sys/unix"

const fstatat = unix.SYS_FSTATAT

// oldPathSyscalls are those which this architecture does not have.
var oldPathSyscalls []int
