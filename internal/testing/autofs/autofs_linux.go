// Package autofs mounts automounts whose daemon never mounts anything.
package autofs

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Mount mounts an indirect autofs on a directory for the time of the test, as automount(8)
// does: its daemon is this process group, which may make directories in it. What was idle for
// so many seconds is to be unmounted; 0: never. The error says that there is no autofs here.
func Mount(t testing.TB, dir string, idle uint64) error {
	t.Helper()
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]) })
	if unix.Getpgrp() == 0 { // it is of another PID namespace, where the kernel would not find it
		require.NoError(t, unix.Setpgid(0, 0))
	}
	options := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,indirect", pipe[1], unix.Getpgrp())
	if err := unix.Mount("auto.home", dir, "autofs", 0, options); err != nil {
		return fmt.Errorf("mounting autofs on %s: %w", dir, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	root, err := os.Open(dir)
	require.NoError(t, err)
	defer root.Close()
	const setTimeout = 0xc0089364 // AUTOFS_IOC_SETTIMEOUT, linux/auto_fs.h
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), setTimeout, uintptr(unsafe.Pointer(&idle)))
	require.Zero(t, errno)
	return nil
}
