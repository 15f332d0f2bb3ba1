// Command guest is the first process of a virtual machine in which tests run. It
// makes an ext4 its root, mounts what they need, runs them, says how they ended, and
// switches the machine off.
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

// What the machine was given, in its first root.
const (
	ext4     = "/ext4.img"
	own      = "/opt"      // tests, vfsprobe
	programs = "/programs" // Debian's, if any
)

func run() error {
	if err := mount("", [3]string{"dev", "/dev", "devtmpfs"}); err != nil {
		return err
	}
	modules, _ := filepath.Glob("/modules/*.ko")
	for _, name := range modules {
		if err := load(name); err != nil {
			return err
		}
	}
	if err := enter("/root"); err != nil {
		return err
	}
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	os.Stdout.Write(version)
	tests, err := filepath.Glob(own + "/tests/*")
	if err != nil {
		return err
	}
	for _, test := range tests {
		command := exec.Command(test, strings.Split(os.Getenv("TEST_ARGUMENTS"), ",")...)
		if pattern := os.Getenv("TEST_RUN_" + filepath.Base(test)); pattern != "" {
			command.Args = append(command.Args, "-test.run="+pattern)
		}
		// The environment holds what the kernel's command line has of the form
		// name=value.
		command.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "VFSPROBE_TEST_EXT4=/", "VFSPROBE_TEST_BINARY="+own+"/vfsprobe")
		command.Stdout, command.Stderr = os.Stdout, os.Stdout
		if err := command.Run(); err != nil {
			return fmt.Errorf("%s: %w", test, err)
		}
	}
	return nil
}

// enter mounts the ext4 on a directory, and what a machine has in it, and makes it
// the root.
func enter(root string) error {
	if err := mountImage(ext4, root); err != nil {
		return err
	}
	mounts := [][3]string{{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"}, {"tmp", "/tmp", "tmpfs"},
		{"debug", "/sys/kernel/debug", "debugfs"},
		{"cgroup", "/sys/fs/cgroup", "cgroup2"}, {own, own, ""}}
	trees, err := filepath.Glob(programs + "/*")
	if err != nil {
		return err
	}
	for _, tree := range trees {
		mounts = append(mounts, [3]string{tree, strings.TrimPrefix(tree, programs), ""})
	}
	for _, m := range mounts {
		if err := mount(root, m); err != nil {
			return err
		}
	}
	if err := os.Chmod(root+"/tmp", 0o777); err != nil {
		return err
	}
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/etc/shadow", []byte("root:*:::::::\n"), 0o600); err != nil { // that users can't read
		return err
	}
	// As switch_root(8) does: a chroot alone is none that a mount namespace begins in.
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("mount --move %s /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot %s: %w", root, err)
	}
	return os.Chdir("/")
}

// mount mounts a source, a target below the root, and a type, or binds the source
// if there is no type.
func mount(root string, m [3]string) error {
	target := root + m[1]
	_ = os.MkdirAll(target, 0o755)
	flags := uintptr(0)
	if m[2] == "" {
		flags = unix.MS_BIND
	}
	if err := unix.Mount(m[0], target, m[2], flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
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
