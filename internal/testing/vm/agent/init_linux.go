package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Mountpoint is a file system to be mounted.
type Mountpoint struct{ Source, Target, Type string }

// Mount mounts file systems, and makes the directories for that. What has no type is
// bound.
func Mount(all ...Mountpoint) error {
	for _, m := range all {
		if err := os.MkdirAll(m.Target, 0o755); err != nil {
			return err
		}
		flags := uintptr(0)
		if m.Type == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m.Source, m.Target, m.Type, flags, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Target, err)
		}
	}
	return nil
}

// MountSystem mounts below a root what programs expect of every system.
func MountSystem(root string) error {
	return Mount(
		Mountpoint{"proc", filepath.Join(root, "proc"), "proc"},
		Mountpoint{"sysfs", filepath.Join(root, "sys"), "sysfs"},
		Mountpoint{"devtmpfs", filepath.Join(root, "dev"), "devtmpfs"},
		Mountpoint{"tmpfs", filepath.Join(root, "run"), "tmpfs"},
		Mountpoint{"tmpfs", filepath.Join(root, "tmp"), "tmpfs"},
	)
}

// MoveRoot makes the file system that is mounted on a directory the root, as
// switch_root(8) does: a chroot alone is none that a mount namespace begins in.
func MoveRoot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot to %s: %w", dir, err)
	}
	return os.Chdir("/")
}

// Path is the PATH of programs in a machine.
const Path = "/usr/sbin:/usr/bin:/sbin:/bin"

// Init is the work of process 1: it starts a program, reaps whoever loses its parent, and
// switches the machine off when the program is done.
func Init(program string, arguments ...string) {
	defer PowerOff()
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		fmt.Println(err)
		return
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == command.Process.Pid || err == unix.ECHILD {
			return
		}
	}
}

// PowerOff switches the machine off.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
