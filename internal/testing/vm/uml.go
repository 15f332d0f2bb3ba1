package vm

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// UML returns User Mode Linux with the kernel of [KernelSuite].
func UML() Emulator { return UMLOf(KernelSuite) }

// UMLOf returns User Mode Linux with the kernel of a suite. It runs as an ordinary program, needs
// nothing of the hardware, and has one processor.
func UMLOf(suite string) Emulator {
	return Emulator{
		Name:    "uml",
		arch:    "amd64",
		needs:   []string{"gcc"},
		wake:    syscall.SIGUSR1, // arch/um/os-Linux/signal.c
		kernel:  func(ctx context.Context) (kernel, error) { return umlKernel(ctx, suite) },
		command: umlCommand,
		mount: func(_ int, s Share) []string {
			return []string{"mount", "-t", "hostfs", "-o", s.options(s.Dir), "none", s.Name}
		},
	}
}

const (
	// umlLibraries is where packages for amd64 have the C library.
	umlLibraries = "usr/lib/x86_64-linux-gnu"
	// umlLoader leads to its loader. A longer name has no room in the program.
	umlLoader = "ld.so"
)

// umlKernel fetches User Mode Linux of a suite, and the C library that it was built for, which
// this machine may be too old for. It stays in the cache until that is removed.
func umlKernel(ctx context.Context, suite string) (kernel, error) {
	tree, err := cached(ctx, "uml-"+suite, func(tree string) error {
		err := unpackPackages(ctx, suite, "amd64", tree, func(*aptSource) ([]string, error) {
			return []string{"user-mode-linux", "libc6"}, nil
		})
		if err == nil {
			err = haveOwnLoader(tree)
		}
		if err != nil {
			return Unavailable{err}
		}
		return nil
	})
	if err != nil {
		return kernel{}, err
	}
	modules, err := firstMatch(tree, "usr/lib/uml/modules/*")
	return kernel{Image: filepath.Join(tree, "usr/bin/linux.uml"), Modules: modules}, err
}

// haveOwnLoader has the kernel executed with the C library beside it. To execute the loader
// instead would not do: the memory of the machine begins where the program's own ends
// (linux_main, arch/um/kernel/um_arch.c).
func haveOwnLoader(tree string) error {
	loader, err := firstMatch(tree, umlLibraries+"/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
	if err != nil {
		return err
	}
	relative, err := filepath.Rel(tree, loader)
	if err != nil {
		return err
	}
	if err := os.Symlink(relative, filepath.Join(tree, umlLoader)); err != nil {
		return err
	}
	return setInterpreter(filepath.Join(tree, "usr/bin/linux.uml"), umlLoader)
}

// setInterpreter writes the loader's path over the one that a program names (PT_INTERP, elf(5)). A
// relative path is one from the working directory.
func setInterpreter(program, loader string) error {
	file, err := os.OpenFile(program, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	parsed, err := elf.NewFile(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", program, err)
	}
	for _, segment := range parsed.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		path := make([]byte, segment.Filesz)
		if copy(path, loader) == len(path) {
			return fmt.Errorf("setting the interpreter of %s: %s is too long", program, loader)
		}
		_, err := file.WriteAt(path, int64(segment.Off))
		return errors.Join(err, file.Close())
	}
	return fmt.Errorf("setting the interpreter of %s: it has none", program)
}

func umlCommand(ctx context.Context, l launch) (*exec.Cmd, error) {
	shim, err := buildShim(ctx)
	if err != nil {
		return nil, err
	}
	c := exec.Command(l.kernel, append([]string{"mem=" + strconv.Itoa(l.memoryMiB) + "M", "initrd=" + l.initrd, "uml_dir=" + l.dir + "/", "umid=vm",
		"con=null", "con0=null,fd:1", "ssl=null", "ssl1=fd:3,fd:4", "console=tty0", "vm.line=/dev/ttyS1"}, l.parameters...)...)
	c.Dir = filepath.Join(filepath.Dir(l.kernel), "../..") // of the loader's path
	c.Env = append(os.Environ(), "LD_PRELOAD="+shim, fmt.Sprintf("LD_LIBRARY_PATH=%[1]s/%[2]s:%[1]s/lib/x86_64-linux-gnu", c.Dir, umlLibraries))
	return c, nil
}
