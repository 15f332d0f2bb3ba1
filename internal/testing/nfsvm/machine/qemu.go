package machine

import (
	"context"
	"os/exec"
)

// qemu boots Debian's kernel.
func qemu(accel string) Kind {
	const kernel = "/boot/vmlinuz-*-amd64"
	needs := [][2]string{{"qemu-system-x86_64", "qemu-system-x86"}, {kernel, "linux-image-amd64"}}
	if accel == "kvm" {
		needs = append(needs, [2]string{"/dev/kvm", "(none: the hardware or hypervisor must offer it)"})
	}
	return Kind{
		Name:    accel,
		Needs:   needs,
		Modules: func() (string, error) { return newest("/lib/modules/*-amd64") },
		command: func(ctx context.Context, _, initrd string) (*exec.Cmd, error) {
			image, err := newest(kernel)
			if err != nil {
				return nil, err
			}
			return exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", accel, "-cpu", "max", "-m", "1536", "-nodefaults", "-no-reboot",
				"-display", "none", "-kernel", image, "-initrd", initrd,
				"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
				"-add-fd", "fd=3,set=1", "-add-fd", "fd=4,set=2",
				"-chardev", "file,id=line,path=/dev/fdset/2,input-path=/dev/fdset/1", "-serial", "chardev:line",
				"-append", "console=ttyS0 quiet rootfstype=tmpfs panic=-1 nfsvm.line=/dev/ttyS1"), nil
		},
	}
}
