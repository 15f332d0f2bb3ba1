package setpriv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is a write to a file, and to a directory, for Landlock.
const (
	fileWrites      = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	directoryWrites = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
)

var errUnprotected = errors.New("there is no Landlock")

// protect has the kernel refuse this thread, and what it executes, to write below a directory.
// Landlock has lists of what is allowed, so that is all else: what lies in the root directory,
// but for where the directory is. What is mounted there later is refused, too, since the kernel
// looks at what is above a file. Nothing is looked up for that, so that it waits for no file system.
//
// It also refuses to look at processes outside as ptrace(2) does, whatever the capabilities,
// and to mount; modes, owners and times are not covered, nor truncate(2) before Linux 6.2. A kernel before 5.13, one without Landlock, and a seccomp profile that does not
// know it are errUnprotected.
func protect(dir string) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return fmt.Errorf("%w: landlock_create_ruleset: %w", errUnprotected, errno)
	}
	writes := uint64(fileWrites | directoryWrites)
	if abi < 3 {
		writes &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi < 2 {
		writes &^= unix.LANDLOCK_ACCESS_FS_REFER
	}
	// A kernel that is older takes a shorter structure.
	attributes := unix.LandlockRulesetAttr{Handled_access_fs: writes}
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attributes)), unsafe.Sizeof(attributes.Handled_access_fs), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(ruleset))
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	top, _, _ := strings.Cut(strings.TrimPrefix(filepath.Clean(dir), "/"), "/")
	for _, entry := range entries {
		allowed := writes
		if entry.Name() == top || entry.Type()&os.ModeSymlink != 0 {
			continue
		}
		if !entry.IsDir() {
			allowed &= fileWrites
		}
		if err := allow(int(ruleset), "/"+entry.Name(), allowed); err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// allow adds a rule to a ruleset.
func allow(ruleset int, path string, allowed uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: allowed, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return &os.PathError{Op: "landlock_add_rule", Path: path, Err: errno}
	}
	return nil
}
