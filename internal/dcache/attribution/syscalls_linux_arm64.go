package attribution

import "golang.org/x/sys/unix"

const fstatat = unix.SYS_FSTATAT

// oldPathSyscalls are those which this architecture does not have.
var oldPathSyscalls []int

// oldRemovals are those of oldPathSyscalls which remove what the path names.
var oldRemovals []int

// oldCreations are those which make a name.
var oldCreations []int
