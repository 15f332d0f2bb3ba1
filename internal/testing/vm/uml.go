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
	"strings"
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
	umlProgram = "usr/bin/linux.uml"
	// umlLibraries leads to the C library, and umlLoader is its loader. A longer path has no room in
	// the program.
	umlLibraries = "libc"
	umlLoader    = umlLibraries + "/ld-linux-x86-64.so.2"
)

// umlKernel fetches User Mode Linux of a suite, and the C library that it was built for, which
// this machine may be too old for. It stays in the cache until that is removed.
func umlKernel(ctx context.Context, suite string) (kernel, error) {
	tree, err := fetched(ctx, "user-mode-linux-"+suite, func(tree string) error { return fetchUML(ctx, suite, tree) })
	if err != nil {
		return kernel{}, err
	}
	modules, err := firstMatch(tree, "usr/lib/uml/modules/*")
	return kernel{Image: filepath.Join(tree, umlProgram), Modules: modules}, err
}

// fetchUML has the kernel executed with the C library beside it. To execute the loader instead
// would not do: the memory of the machine begins where the program's own ends (linux_main,
// arch/um/kernel/um_arch.c).
func fetchUML(ctx context.Context, suite, tree string) error {
	if err := unpackPackages(ctx, suite, "amd64", tree, func(*aptSource) ([]string, error) {
		return []string{"user-mode-linux", "libc6"}, nil
	}); err != nil {
		return err
	}
	const loader = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
	found, err := firstMatch(tree, "usr/"+loader, loader)
	if err != nil {
		return err
	}
	libraries, err := filepath.Rel(tree, filepath.Dir(found))
	if err != nil {
		return err
	}
	if err := os.Symlink(libraries, filepath.Join(tree, umlLibraries)); err != nil {
		return err
	}
	return setInterpreter(filepath.Join(tree, umlProgram), umlLoader)
}

// setInterpreter writes the loader's path over the one that a program names. A relative path is
// one from the working directory.
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
	segment := interpreter(parsed)
	if segment == nil {
		return fmt.Errorf("setting the interpreter of %s: it has none", program)
	}
	path := make([]byte, segment.Filesz)
	if copy(path, loader) == len(path) {
		return fmt.Errorf("setting the interpreter of %s: %s is too long", program, loader)
	}
	_, err = file.WriteAt(path, int64(segment.Off))
	return errors.Join(err, file.Close())
}

func umlCommand(ctx context.Context, l launch) (*exec.Cmd, error) {
	shim, err := buildShim(ctx)
	if err != nil {
		return nil, err
	}
	c := exec.Command(l.kernel, append([]string{"mem=" + strconv.Itoa(l.memoryMiB) + "M", "initrd=" + l.initrd, "uml_dir=" + l.dir + "/", "umid=vm",
		"con=null", "con0=null,fd:1", "ssl=null", "ssl1=fd:3,fd:4", "console=tty0", "vm.line=/dev/ttyS1"}, l.parameters...)...)
	c.Dir = strings.TrimSuffix(l.kernel, umlProgram) // of the loader's path
	c.Env = append(os.Environ(), "LD_PRELOAD="+shim, "LD_LIBRARY_PATH="+filepath.Join(c.Dir, umlLibraries))
	return c, nil
}
