// Package machine boots Linux from an initial RAM disk, as a program (User Mode
// Linux) or under QEMU.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// A Kind of machine: how it is booted, and what that needs.
type Kind struct {
	Name string
	// Needs are commands or files, and the Debian package of each.
	Needs [][2]string
	// Modules is the directory of the kernel's modules.
	Modules func() (string, error)
	wake    syscall.Signal // wakes it when it is suspended; 0: its own clock does
	command func(ctx context.Context, dir, initrd string) (*exec.Cmd, error)
}

// Kinds are all of them, the default first.
func Kinds() []Kind { return []Kind{uml(), qemu("kvm"), qemu("tcg")} }

// Missing lists what a kind needs and is not there.
func (k Kind) Missing() (missing, packages []string) {
	for _, need := range append(k.Needs, [2]string{"mmdebstrap", "mmdebstrap"}) {
		_, err := exec.LookPath(need[0])
		if filepath.IsAbs(need[0]) {
			found, _ := filepath.Glob(need[0])
			err = nil
			if len(found) == 0 {
				err = os.ErrNotExist
			}
		}
		if err != nil {
			missing, packages = append(missing, need[0]), append(packages, need[1])
		}
	}
	return missing, slices.Compact(packages)
}

// A Machine runs.
type Machine struct {
	Line   io.ReadWriteCloser // its second serial line
	Exited <-chan struct{}

	command *exec.Cmd
	dir     string
	wake    syscall.Signal
}

// Wake wakes a machine that is suspended, if it has no clock of its own for that.
// One that is awake does not mind.
func (m *Machine) Wake() {
	if m.wake != 0 {
		_ = m.command.Process.Signal(m.wake) // it may have ended, which shows elsewhere
	}
}

type line struct {
	io.Reader
	io.WriteCloser
}

// Boot starts a machine. Its console goes to the writer.
func (k Kind) Boot(initrd string, console io.Writer) (*Machine, error) {
	dir, err := os.MkdirTemp("", "nfsvm-")
	if err != nil {
		return nil, err
	}
	command, err := k.command(context.Background(), dir, initrd)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	command.Stdout, command.Stderr = console, console
	// A group of its own: User Mode Linux is a process per process inside.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	command.WaitDelay = time.Second
	fromGuest, guestOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	guestIn, toGuest, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	command.ExtraFiles = []*os.File{guestIn, guestOut} // descriptors 3 and 4
	err = command.Start()
	guestIn.Close()
	guestOut.Close()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", command.Path, errors.Join(err, os.RemoveAll(dir)))
	}
	exited := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(exited)
	}()
	return &Machine{Line: line{fromGuest, toGuest}, Exited: exited, command: command, dir: dir, wake: k.wake}, nil
}

// Close switches the machine off and leaves nothing behind.
func (m *Machine) Close() error {
	select {
	case <-m.Exited:
	default:
		_ = syscall.Kill(-m.command.Process.Pid, syscall.SIGKILL)
		<-m.Exited
	}
	_ = syscall.Kill(-m.command.Process.Pid, syscall.SIGKILL) // what is left of the group
	return errors.Join(m.Line.Close(), os.RemoveAll(m.dir))
}
