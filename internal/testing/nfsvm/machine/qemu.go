package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// qemu boots Debian's kernel, which is taken from its package without being
// installed.
func qemu(accel string) Kind {
	needs := append(qemuNeeds("amd64", accel), [][2]string{{"apt-get", "apt"}, {"dpkg-deb", "dpkg"}, {"/usr/sbin/depmod", "kmod"}}...)
	return Kind{
		Name:  accel,
		Needs: needs,
		Modules: func() (string, error) {
			tree, err := debianKernel()
			if err != nil {
				return "", err
			}
			return newest(filepath.Join(tree, "lib/modules/*"))
		},
		command: func(ctx context.Context, dir, initrd string) (*exec.Cmd, error) {
			tree, err := debianKernel()
			if err != nil {
				return nil, err
			}
			kernel, err := newest(filepath.Join(tree, "boot/vmlinuz-*"))
			if err != nil {
				return nil, err
			}
			return qemuCommand(ctx, "amd64", accel, kernel, "nfsvm.line=/dev/ttyS1", dir, initrd)
		},
	}
}

// QEMU boots the given kernel of an architecture, amd64 or arm64, with parameters
// added to its command line, and more options of QEMU. Only amd64 has a second
// serial line.
func QEMU(arch, accel, kernel, parameters string, options ...string) Kind {
	return Kind{
		Name:  accel,
		Needs: qemuNeeds(arch, accel),
		command: func(ctx context.Context, dir, initrd string) (*exec.Cmd, error) {
			command, err := qemuCommand(ctx, arch, accel, kernel, parameters, dir, initrd)
			if err != nil {
				return nil, err
			}
			command.Args = append(command.Args, options...)
			return command, nil
		},
	}
}

func qemuNeeds(arch, accel string) [][2]string {
	needs := [][2]string{{"qemu-system-x86_64", "qemu-system-x86"}}
	if arch == "arm64" {
		needs = [][2]string{{"qemu-system-aarch64", "qemu-system-arm"}}
	}
	if accel == "kvm" {
		needs = append(needs, [2]string{"/dev/kvm", "(none: the hardware or the hypervisor must offer it)"})
	}
	return needs
}

func qemuCommand(ctx context.Context, arch, accel, kernel, parameters, dir, initrd string) (*exec.Cmd, error) {
	command, console := "qemu-system-x86_64", "ttyS0"
	arguments := []string{"-accel", accel, "-m", "1536", "-nodefaults", "-no-reboot",
		"-display", "none", "-kernel", kernel, "-initrd", initrd,
		"-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console"}
	switch arch {
	case "arm64":
		command, console = "qemu-system-aarch64", "ttyAMA0"
		// The architecture's own algorithm of pointer authentication is slow to emulate.
		arguments = append(arguments, "-machine", "virt", "-cpu", "max,pauth-impdef=on")
	default:
		// What its pipe device opens: the descriptors it inherits.
		line := filepath.Join(dir, "line")
		if err := errors.Join(os.Symlink("/proc/self/fd/3", line+".in"), os.Symlink("/proc/self/fd/4", line+".out")); err != nil {
			return nil, err
		}
		arguments = append(arguments, "-cpu", "max", "-chardev", "pipe,id=line,path="+line, "-serial", "chardev:line")
	}
	arguments = append(arguments, "-append", "console="+console+" quiet rootfstype=tmpfs panic=-1 "+parameters)
	return exec.CommandContext(ctx, command, arguments...), nil
}

// debianKernel unpacks the package of the kernel that linux-image-amd64 stands
// for into the user's cache.
func debianKernel() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "vfsprobe", "nfsvm")
	depends, err := exec.Command("apt-cache", "depends", "linux-image-amd64").Output()
	name := regexp.MustCompile(`linux-image-[0-9][^\s>]*`).Find(depends)
	if err != nil || name == nil {
		return "", errors.New("apt knows no linux-image-amd64: apt-get update, with Debian's sources")
	}
	tree := filepath.Join(cache, string(name))
	if _, err := os.Stat(tree); err == nil {
		return tree, nil
	}
	work, err := os.MkdirTemp(cache, "kernel-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	for _, step := range [][]string{
		{"sh", "-c", "apt-get download -qq -o APT::Sandbox::User=root " + string(name)},
		{"sh", "-c", "dpkg-deb -x *.deb tree"},
		{"sh", "-c", "/usr/sbin/depmod -b tree $(ls tree/lib/modules)"},
	} {
		c := exec.Command(step[0], step[1:]...)
		c.Dir = work
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("getting %s: %w\n%s", name, err, out)
		}
	}
	return tree, os.Rename(filepath.Join(work, "tree"), tree)
}
