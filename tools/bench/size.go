package main

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	linked        = "cmd/vfsprobe"
	listedModules = 12
	functionTable = ".gopclntab" // what the runtime knows of each function
)

// buys is what each module is there for.
var buys = map[string]string{
	standardLibrary:                   "net: servers, the service's socket; json: state, reports; debug/elf, compress: BPF; regexp: doctor",
	goRuntime:                         "",
	module:                            "the inputs, and the commands check, who, dentries, drill, doctor",
	"github.com/cilium/ebpf":          "loads BPF: who makes negative dentries, children of directories",
	"github.com/pelletier/go-toml/v2": "vfsprobe.toml, with the line and the key of an error",
	"github.com/gobwas/glob":          "patterns of mounts, as Telegraf's inputs have them",
	"github.com/influxdata/toml":      "doctor: Telegraf's configuration, as Telegraf parses it",
	"github.com/naoina/go-stringutil": "that parser needs it",
	"github.com/influxdata/telegraf":  "metrics and line protocol",
	"golang.org/x/sys":                "system calls",
	"github.com/moby/sys/user":        "passwd(5) and group(5)",
	"github.com/moby/sys/mountinfo":   "the mount table as text",
}

const (
	standardLibrary = "Go's standard library"
	goRuntime       = "Go's runtime"
)

// A part of the binary, in bytes.
type part struct {
	name               string
	code, data, tables float64
	packages           int
}

func (p *part) sum() float64 { return p.code + p.data + p.tables }

// measureSize tells which modules make up the binary, by the symbols of one that
// is not stripped. Function tables have no symbols: each module is given a part of
// them that is in proportion to its code.
func measureSize(dir string) error {
	stripped, err := programs.Vfsprobe()
	if err != nil {
		return err
	}
	binary, err := os.Stat(stripped)
	if err != nil {
		return err
	}
	whole := filepath.Join(dir, "unstripped")
	c := exec.Command("go", "build", "-trimpath", "-o", whole, module+"/"+linked)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := run(c); err != nil {
		return err
	}
	modules, err := modulesOf(module + "/" + linked)
	if err != nil {
		return err
	}
	sections, err := sectionsOf(whole)
	if err != nil {
		return err
	}
	byModule, byPackage, err := symbolsOf(whole, modules, sections)
	if err != nil {
		return err
	}
	printSize(float64(binary.Size()), byModule, byPackage, sections)
	return nil
}

// modulesOf maps the packages that a program is linked from to their modules.
func modulesOf(program string) (map[string]string, error) {
	c := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{with .Module}}{{.Path}}{{end}}", program)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", c, err)
	}
	modules := make(map[string]string)
	for line := range strings.Lines(string(output)) {
		name, of, _ := strings.Cut(strings.TrimSpace(line), " ")
		if of == "" {
			of = standardLibrary
			if name == "runtime" || strings.HasPrefix(name, "runtime/") || strings.HasPrefix(name, "internal/runtime/") {
				of = goRuntime
			}
		}
		modules[name] = of
	}
	return modules, nil
}

// sectionsOf lists the sections that a binary has when it is stripped.
func sectionsOf(file string) ([]*elf.Section, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	defer f.Close()
	return slices.DeleteFunc(f.Sections, func(s *elf.Section) bool {
		return s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS
	}), nil
}

// symbolsOf adds up symbols by module and by package, and takes their sizes off
// those of the sections, whose FileSize is what has no symbol then.
func symbolsOf(file string, modules map[string]string, sections []*elf.Section) (byModule, byPackage map[string]*part, err error) {
	c := exec.Command("go", "tool", "nm", "-size", file)
	output, err := c.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("%v: %w", c, err)
	}
	byModule, byPackage = make(map[string]*part), make(map[string]*part)
	for lines := bufio.NewScanner(bytes.NewReader(output)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 {
			continue // undefined
		}
		address, err1 := strconv.ParseUint(fields[0], 16, 64)
		size, err2 := strconv.ParseUint(fields[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, fmt.Errorf("reading %q of %v: %w", lines.Text(), c, err)
		}
		i := slices.IndexFunc(sections, func(s *elf.Section) bool { return s.Addr <= address && address < s.Addr+s.Size })
		if i < 0 || sections[i].Name == functionTable {
			continue // in memory only
		}
		name := packageOf(fields[3], modules)
		if name == "" {
			continue
		}
		sections[i].FileSize -= size
		for _, p := range []*part{entry(byModule, modules[name]), entry(byPackage, name)} {
			if sections[i].Name == ".text" {
				p.code += float64(size)
			} else {
				p.data += float64(size)
			}
		}
	}
	var code float64
	for _, p := range byModule {
		code += p.code
	}
	for _, s := range sections {
		if s.Name != functionTable {
			continue
		}
		for _, p := range byModule {
			p.tables = float64(s.FileSize) * p.code / code
		}
		for _, p := range byPackage {
			p.tables = float64(s.FileSize) * p.code / code
		}
		s.FileSize = 0
	}
	for name := range byPackage {
		byModule[modules[name]].packages++
	}
	return byModule, byPackage, nil
}

func entry(parts map[string]*part, name string) *part {
	if parts[name] == nil {
		parts[name] = &part{name: name}
	}
	return parts[name]
}

// packageOf returns the package that a symbol is of, or nothing.
func packageOf(symbol string, modules map[string]string) string {
	for _, prefix := range []string{"type:", ".eq.", ".hash.", "go:itab.", "*"} {
		symbol = strings.TrimPrefix(symbol, prefix)
	}
	symbol, _, _ = strings.Cut(symbol, "[") // of an instance, the arguments
	slash := strings.LastIndexByte(symbol, '/') + 1
	// The first dot ends the package, but for dots of its name, which are escaped in
	// symbols.
	name, _, found := strings.Cut(symbol[slash:], ".")
	name = symbol[:slash] + strings.ReplaceAll(name, "%2e", ".")
	if name == "main" {
		name = module + "/" + linked
	}
	if _, known := modules[name]; !found || !known {
		return ""
	}
	return name
}

func printSize(total float64, byModule, byPackage map[string]*part, sections []*elf.Section) {
	const kB = 1000.0
	bySize := func(a, b *part) int { return cmp.Or(cmp.Compare(b.sum(), a.sum()), cmp.Compare(a.name, b.name)) }
	row := func(name, packages string, code, data, tables, sum float64) {
		line := fmt.Sprintf("%-38s %8s %6.0f %6.0f %6.0f %6.0f %6.1f  %s", name, packages, code/kB, data/kB, tables/kB, sum/kB, 100*sum/total, buys[name])
		fmt.Println(strings.TrimRight(line, " "))
	}
	fmt.Printf("Size of the binary, by module: %.2f MB, target %s; kB\n\n", total/1e6, sizeTarget)
	head := func(what, packages string) {
		fmt.Printf("%-38s %8s %6s %6s %6s %6s %6s\n", what, packages, "code", "data", "tables", "sum", "%")
	}
	head("", "packages")
	rest := total
	var others part
	for i, p := range slices.SortedFunc(maps.Values(byModule), bySize) {
		rest -= p.sum()
		if i < listedModules {
			row(p.name, strconv.Itoa(p.packages), p.code, p.data, p.tables, p.sum())
			continue
		}
		others.code, others.data, others.tables, others.packages = others.code+p.code, others.data+p.data, others.tables+p.tables, others.packages+p.packages
	}
	if others.packages > 0 {
		row(fmt.Sprintf("%d other modules", len(byModule)-listedModules), strconv.Itoa(others.packages), others.code, others.data, others.tables, others.sum())
	}
	for _, s := range sections {
		if size := float64(s.FileSize); size > total/500 {
			what := s.Name + ", without symbols"
			if s.Name == ".rodata" {
				what = "types, strings, constants (.rodata)"
			}
			row(what, "", 0, size, 0, size)
			rest -= size
		}
	}
	row("headers, padding, small sections", "", 0, rest, 0, rest)
	fmt.Println()
	head("The largest packages", "")
	for i, p := range slices.SortedFunc(maps.Values(byPackage), bySize) {
		if i < listedModules {
			row(strings.TrimPrefix(p.name, module+"/"), "", p.code, p.data, p.tables, p.sum())
		}
	}
	fmt.Println()
}
