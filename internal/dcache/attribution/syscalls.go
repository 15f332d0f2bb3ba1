package attribution

import "golang.org/x/sys/unix"

// How a system call takes its path: see the C source.
const (
	byPath              = 1 // the first argument
	byDescriptorAndPath = 2 // the second one, as seen from the first
	removes             = 4 // what is there; beside one of the first two
	makes               = 8 // a name; likewise
	syscallTableSize    = 512
)

// pathSyscalls is the table for the program sys_exit, by number. Calls with two
// paths count by the first.
func pathSyscalls() (table [syscallTableSize]uint8) {
	for _, number := range oldPathSyscalls {
		table[number] = byPath
	}
	for _, number := range []int{
		unix.SYS_CHDIR, unix.SYS_CHROOT, unix.SYS_EXECVE, unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_LISTXATTR,
		unix.SYS_LLISTXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_LSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_SETXATTR,
		unix.SYS_STATFS, unix.SYS_SWAPON, unix.SYS_TRUNCATE,
	} {
		table[number] = byPath
	}
	for _, number := range []int{
		unix.SYS_EXECVEAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT,
		unix.SYS_LINKAT, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPENAT,
		unix.SYS_OPENAT2, unix.SYS_OPEN_TREE, fstatat, unix.SYS_READLINKAT, unix.SYS_RENAMEAT2,
		unix.SYS_STATX, unix.SYS_UNLINKAT, unix.SYS_UTIMENSAT, unix.SYS_RENAMEAT,
	} {
		table[number] = byDescriptorAndPath
	}
	for _, number := range append(oldRemovals, unix.SYS_UNLINKAT) {
		table[number] |= removes
	}
	for _, number := range append(oldCreations, unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
		unix.SYS_LINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2) {
		table[number] |= makes
	}
	return table
}
