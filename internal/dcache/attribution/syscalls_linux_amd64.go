package attribution

import "golang.org/x/sys/unix"

const fstatat = unix.SYS_NEWFSTATAT

// oldPathSyscalls are those which newer architectures don't have.
var oldPathSyscalls = []int{
	unix.SYS_ACCESS, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_CREAT, unix.SYS_LCHOWN, unix.SYS_LINK, unix.SYS_LSTAT,
	unix.SYS_MKDIR, unix.SYS_MKNOD, unix.SYS_OPEN, unix.SYS_READLINK, unix.SYS_RENAME, unix.SYS_RMDIR,
	unix.SYS_STAT, unix.SYS_UNLINK, unix.SYS_UTIME, unix.SYS_UTIMES,
}

// oldRemovals are those of oldPathSyscalls which remove what the path names.
var oldRemovals = []int{unix.SYS_RMDIR, unix.SYS_UNLINK}

// oldCreations are those which make a name.
var oldCreations = []int{unix.SYS_CREAT, unix.SYS_LINK, unix.SYS_MKDIR, unix.SYS_MKNOD, unix.SYS_OPEN, unix.SYS_RENAME}
