// Command guest is the first process of a virtual machine in which tests run. It
// mounts what they need, runs them, says how they ended, and switches the
// machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	err := run()
	if err != nil {
		fmt.Printf("guest: %v\n", err)
	} else {
		fmt.Println("guest: passed")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"}, {"tmp", "/tmp", "tmpfs"},
		{"cgroup", "/sys/fs/cgroup", "cgroup2"},
	} {
		_ = os.MkdirAll(m.target, 0o777)
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Chmod("/tmp", 0o777); err != nil {
		return err
	}
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	os.Stdout.Write(version)
	modules, _ := filepath.Glob("/modules/*.ko")
	for _, name := range modules {
		if err := load(name); err != nil {
			return err
		}
	}
	if err := mountImage("/ext4.img", "/ext4"); err != nil {
		return err
	}
	command := exec.Command("/test")
	// The environment holds what the kernel's command line has of the form
	// name=value.
	command.Env = append(os.Environ(), "PATH=/", "VFSPROBE_TEST_EXT4=/ext4")
	arguments := strings.Split(os.Getenv("TEST_ARGUMENTS"), ",")
	command.Args = append([]string{"/test"}, arguments...)
	command.Stdout, command.Stderr = os.Stdout, os.Stdout
	return command.Run()
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}

// mountImage mounts the file system in a file.
func mountImage(image, dir string) error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
	}
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.LOOP_CONFIGURE, uintptr(unsafe.Pointer(&config))); errno != 0 {
		return fmt.Errorf("LOOP_CONFIGURE: %w", errno)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount(device.Name(), dir, "ext4", unix.MS_NOATIME, "")
}
