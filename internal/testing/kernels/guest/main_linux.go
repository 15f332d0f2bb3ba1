// Command guest is the first process of a virtual machine in which tests run. It
// makes an ext4 its root, mounts what they need, runs them, and switches the machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

func main() {
	os.Setenv("PATH", agent.Path)
	if err := run(); err != nil {
		fmt.Println(err)
	}
	agent.PowerOff()
}

// What the machine was given, in its first root.
const (
	ext4     = "/ext4.img"
	own      = "/opt"      // tests, vfsprobe
	programs = "/programs" // Debian's
)

func run() error {
	if err := agent.MountSystem("/"); err != nil {
		return err
	}
	line, err := agent.Open()
	if err != nil {
		return err
	}
	err = enter("/root")
	if err := errors.Join(err, line.Ready(err)); err != nil {
		return err
	}
	return agent.Serve(line)
}

// enter mounts the ext4 on a directory, and what a machine has in it, and makes it
// the root.
func enter(root string) error {
	if err := loadModules("loop", "ext4", "fuse"); err != nil {
		return err
	}
	if err := mountImage(ext4, root); err != nil {
		return err
	}
	if err := agent.MountSystem(root); err != nil {
		return err
	}
	mounts := []agent.Mountpoint{{Source: "debug", Target: root + "/sys/kernel/debug", Type: "debugfs"},
		{Source: "cgroup", Target: root + "/sys/fs/cgroup", Type: "cgroup2"}, {Source: own, Target: root + own}}
	trees, err := filepath.Glob(programs + "/*")
	if err != nil {
		return err
	}
	for _, tree := range trees {
		mounts = append(mounts, agent.Mountpoint{Source: tree, Target: root + strings.TrimPrefix(tree, programs)})
	}
	if err := agent.Mount(mounts...); err != nil {
		return err
	}
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/etc/shadow", []byte("root:*:::::::\n"), 0o600); err != nil { // that users can't read
		return err
	}
	return agent.MoveRoot(root)
}

// loadModules loads modules, with the program where it is at first.
func loadModules(names ...string) error {
	command := exec.Command("/sbin/modprobe", append([]string{"-a"}, names...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: programs}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("loading modules: %w\n%s", err, out)
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
