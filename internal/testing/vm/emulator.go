package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// An Emulator is what runs machines: User Mode Linux or QEMU, with a kernel of Debian's.
type Emulator struct {
	Name         string // uml, kvm or tcg
	arch         string // as Debian calls it
	needs        []string
	shareModules []string
	wake         syscall.Signal // wakes a machine that is suspended; 0: its own clock does
	kernel       func(context.Context) (kernel, error)
	command      func(context.Context, launch) (*exec.Cmd, error) // the context is for preparing it
	mount        func(tag int, s Share) []string                  // the command that mounts a share, inside
}

// A launch is what a machine is started with. Its console is the standard output, and its
// line to the agent descriptors 3 and 4.
type launch struct {
	dir        string // for the emulator's own files
	kernel     string
	initrd     string
	parameters []string
	shares     []Share
	memoryMiB  int
}

// A Share is a directory of this machine that is mounted in the virtual one. It is the
// quick way in for what is large, and the way out for files.
type Share struct {
	Dir, Name string // outside and inside
	ReadOnly  bool
}

// KernelSuite is the Debian suite whose kernel machines have, where a test needs no other: 6.12.
// As User Mode Linux it takes less than half the time that bookworm's takes.
const KernelSuite = "trixie"

// EmulatorByName returns the emulator that is called so, of amd64 machines, with the kernel
// of a Debian suite.
func EmulatorByName(name, suite string) (Emulator, error) {
	switch name {
	case "uml":
		return UMLOf(suite), nil
	case "kvm", "tcg":
		return QEMU("amd64", name, suite), nil
	}
	return Emulator{}, fmt.Errorf("unknown emulator %q: there are uml, kvm and tcg", name)
}

// Available returns an Unavailable error if the emulator is missing.
func (e Emulator) Available() error {
	if e.Name == "kvm" && !exists("/dev/kvm") {
		return unavailable("/dev/kvm is missing: the hardware or the hypervisor must offer it")
	}
	return Need(e.needs...)
}

// defaultMemoryMiB is what a machine has whose Config does not say.
const defaultMemoryMiB = 1536

// QEMU returns QEMU with a processor of an architecture, amd64 or arm64, which it
// emulates (tcg) or runs as it is (kvm). It boots the kernel of a Debian suite. Options are
// further ones of QEMU's.
func QEMU(arch, accel, suite string, options ...string) Emulator {
	needs := "qemu-system-x86:qemu-system-x86_64"
	if arch == "arm64" {
		needs = "qemu-system-arm:qemu-system-aarch64"
	}
	return Emulator{
		Name:         accel,
		arch:         arch,
		needs:        []string{needs},
		shareModules: []string{"virtio_pci", "9p", "9pnet_virtio"},
		kernel:       func(ctx context.Context) (kernel, error) { return debianKernel(ctx, suite, arch) },
		command: func(_ context.Context, l launch) (*exec.Cmd, error) {
			c, err := qemuCommand(arch, accel, l)
			if err == nil {
				c.Args = append(c.Args, options...)
			}
			return c, err
		},
		mount: func(tag int, s Share) []string {
			return []string{"sh", "-c", fmt.Sprintf("modprobe -a virtio_pci 9pnet_virtio && mount -t 9p -o %s share%d %s",
				s.options("trans=virtio,version=9p2000.L,msize=262144"), tag, s.Name)}
		},
	}
}

func qemuCommand(arch, accel string, l launch) (*exec.Cmd, error) {
	// What its pipe device opens: the descriptors it inherits.
	line := filepath.Join(l.dir, "line")
	if err := errors.Join(os.Symlink("/proc/self/fd/3", line+".in"), os.Symlink("/proc/self/fd/4", line+".out")); err != nil {
		return nil, err
	}
	command, console, device := "qemu-system-x86_64", "ttyS0", "/dev/ttyS1"
	arguments := []string{"-accel", accel, "-m", strconv.Itoa(l.memoryMiB), "-nodefaults", "-no-reboot",
		"-display", "none", "-kernel", l.kernel, "-initrd", l.initrd,
		"-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console", "-chardev", "pipe,id=line,path=" + line}
	if arch == "arm64" {
		command, console, device = "qemu-system-aarch64", "ttyAMA0", "/dev/ttyS0"
		// The architecture's own algorithm of pointer authentication is slow to emulate.
		arguments = append(arguments, "-machine", "virt", "-cpu", "max,pauth-impdef=on", "-device", "pci-serial,chardev=line")
	} else {
		arguments = append(arguments, "-cpu", "max", "-serial", "chardev:line")
	}
	for i, s := range l.shares {
		arguments = append(arguments, "-virtfs", fmt.Sprintf("local,path=%s,mount_tag=share%d,security_model=none,readonly=%s", s.Dir, i, onOff(s.ReadOnly)))
	}
	parameters := append([]string{"console=" + console, "vm.line=" + device}, l.parameters...)
	return exec.Command(command, append(arguments, "-append", strings.Join(parameters, " "))...), nil
}

// options returns the options of mount(8).
func (s Share) options(more string) string {
	if s.ReadOnly {
		return "ro," + more
	}
	return "rw," + more
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
