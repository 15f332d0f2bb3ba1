// Package vm makes virtual machines for tests, and runs commands in them. A machine is
// an [Image], built from a [Config]: an initial RAM disk of a pruned Debian, modules of
// the kernel, and files. It runs under User Mode Linux or QEMU (see [Emulator]), with a
// program, this package's agent or systemd as process 1 (see [Init]).
//
//	machine := vm.Start(t, vm.Config{Emulator: vm.UML(), Base: vm.SystemdBase(), Init: vm.Systemd()})
//	result, err := machine.Shell(ctx, "systemctl is-system-running --wait")
//
// What takes long to make (root file systems, kernels, a shim for User Mode Linux) is
// kept in the user's cache, in vfsprobe/vm, by what it is made from. What this machine
// lacks for it is an [Unavailable] error: tests are skipped then. Machines end with
// [Machine.Close], with their parent, and leave nothing behind.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

// A Config says what a machine is made of.
type Config struct {
	Emulator   Emulator
	Base       Debian
	Modules    []string // of the kernel, those they need are added; one that is built in is no error
	Files      []File
	Init       Init
	Shares     []Share // not for an Init that is a program which doesn't call agent.Serve
	MemoryMiB  int     // 0: 1536. The root file system may fill half of it
	Parameters []string
	Console    io.Writer                        // also gets what the console prints; may be nil
	Logf       func(format string, args ...any) // is told what takes long; may be nil
}

// A File is a file or a directory with all that is in it, From outside. Name is its path
// in the machine. It must not lead through symbolic links of the base: usr/bin, not bin.
type File struct{ From, Name string }

// An Init is what runs as process 1. The zero value is this package's agent.
type Init struct {
	program string
	systemd bool
}

// Program is an init that is a static executable of this machine. It talks to the
// machine outside through agent.Open.
func Program(file string) Init { return Init{program: file} }

// Systemd is an init that is systemd, with the agent as a service of it. The base must
// have systemd: see [SystemdBase].
func Systemd() Init { return Init{systemd: true} }

// An Image is what machines of a Config are booted from.
type Image struct {
	config Config
	kernel kernel
	initrd string
}

func (c Config) logf(format string, a ...any) {
	if c.Logf != nil {
		c.Logf(format, a...)
	}
}

// Fetch has the cache hold what an image is made of: Build needs no network then.
func Fetch(c Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	_, _, err := c.fetch(ctx)
	return err
}

// fetch returns the kernel and the archive of the base, which take minutes if the cache has not got them.
func (c Config) fetch(ctx context.Context) (k kernel, base string, err error) {
	if err := c.Emulator.Available(); err != nil {
		return kernel{}, "", err
	}
	if k, err = c.Emulator.kernel(ctx); err != nil {
		return kernel{}, "", err
	}
	base, err = c.Base.archive(ctx, c.Emulator.arch, c.logf)
	return k, base, err
}

// Build makes an image, which takes minutes for a base that is not in the cache.
func Build(ctx context.Context, c Config) (*Image, error) {
	kernel, base, err := c.fetch(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return nil, fmt.Errorf("building an image: %w", err)
	}
	image := &Image{config: c, kernel: kernel, initrd: filepath.Join(dir, "initrd")}
	if err := image.compose(ctx, base); err != nil {
		return nil, errors.Join(err, image.Remove())
	}
	return image, nil
}

func (i *Image) compose(ctx context.Context, base string) error {
	program := i.config.Init.program
	if program == "" {
		program = filepath.Join(filepath.Dir(i.initrd), "agent")
		if err := buildAgent(ctx, i.config.Emulator.arch, program); err != nil {
			return err
		}
	}
	if err := checkStatic(program); err != nil {
		return err
	}
	files := append([]File{{From: program, Name: "init"}}, i.config.Files...)
	return compose(i.initrd, base, i.config.Base.modulesDir(), i.kernel.Modules, i.config.modules(), files)
}

// modules returns the names of all the modules that the machine needs.
func (c Config) modules() []string {
	all := slices.Clone(c.Modules)
	if c.Init.systemd {
		all = append(all, "autofs4", "unix")
	}
	if len(c.Shares) > 0 {
		all = append(all, c.Emulator.shareModules...)
	}
	return all
}

// KernelVersion returns the version of the kernel, as uname -r prints it.
func (i *Image) KernelVersion() string { return filepath.Base(i.kernel.Modules) }

// Remove deletes the image. The cache keeps its parts.
func (i *Image) Remove() error { return os.RemoveAll(filepath.Dir(i.initrd)) }

// buildTimeout is for a test whose base or kernel is not in the cache.
const buildTimeout = 20 * time.Minute

// Start builds an image and boots a machine, which ends with the test. It skips the test
// where no machine can be had.
func Start(t testing.TB, c Config) *Machine {
	t.Helper()
	c.Logf = t.Logf
	ctx, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	image, err := Build(ctx, c)
	skipOrFail(t, err)
	t.Cleanup(func() { _ = image.Remove() })
	machine, err := image.Boot(t.Context())
	skipOrFail(t, err)
	t.Cleanup(func() {
		if err := machine.Close(); err != nil {
			t.Errorf("closing the machine: %v", err)
		}
	})
	return machine
}

// Output returns what a script prints, without white space at its ends. shell runs it, as
// [Machine.Shell] does; the script must succeed within the timeout.
func Output(t testing.TB, shell func(context.Context, string) (agent.Result, error), timeout time.Duration, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	result, err := shell(ctx, script)
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, script)
	}
	return strings.TrimSpace(result.Output)
}

func skipOrFail(t testing.TB, err error) {
	t.Helper()
	switch {
	case errors.As(err, new(Unavailable)):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
}
