package vm

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// compose writes an initial RAM disk: the base, which may be "", modules of a kernel into
// a directory of the machine, and files.
func compose(initrd, base, modulesDir, modules string, names []string, files []File) error {
	needed, err := moduleFiles(modules, names)
	if err != nil {
		return err
	}
	for _, name := range needed {
		files = append(files, File{filepath.Join(modules, name), filepath.Join(modulesDir, filepath.Base(modules), name)})
	}
	return writeArchive(initrd, func(a *archive) error {
		if base != "" {
			if err := copyFile(a.w, base); err != nil {
				return err
			}
		}
		for _, f := range files {
			if err := a.add(f); err != nil {
				return fmt.Errorf("adding %s: %w", f.Name, err)
			}
		}
		return nil
	})
}

func copyFile(w io.Writer, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

// moduleFiles lists the files of modules and of all they depend on, with the indices that
// modprobe reads, relative to the directory. Parts that are built into the kernel have
// none.
func moduleFiles(dir string, modules []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's modules: %w", err)
	}
	depends := make(map[string][]string) // by name: the module's own file first
	for line := range strings.Lines(string(text)) {
		file, others, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		depends[moduleName(name)] = append([]string{file}, strings.Fields(others)...)
	}
	var files []string
	seen := make(map[string]bool)
	for _, module := range modules {
		for _, file := range depends[moduleName(module)] {
			if !seen[file] {
				seen[file] = true
				files = append(files, file)
			}
		}
	}
	indices, err := filepath.Glob(filepath.Join(dir, "modules.*"))
	for _, index := range indices {
		files = append(files, filepath.Base(index))
	}
	return files, err
}

// moduleName is what the kernel calls a module, whose file may have dashes (modprobe(8)).
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// checkStatic fails for a program that needs a loader: the machine may have none.
func checkStatic(program string) error {
	file, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("reading the init %s: %w", program, err)
	}
	defer file.Close()
	if interpreter(file) != nil {
		return fmt.Errorf("the init %s is not static: build it with CGO_ENABLED=0", program)
	}
	return nil
}

// interpreter is where a program names its loader (PT_INTERP, elf(5)), or nil.
func interpreter(file *elf.File) *elf.Prog {
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return segment
		}
	}
	return nil
}
