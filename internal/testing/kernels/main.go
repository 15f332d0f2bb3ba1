// Command kernels runs the tests of packages that need the kernel's help, such as
// BPF, on Debian's kernels: each is booted under QEMU with an ext4 as its root, and
// nothing in it but the test programs, vfsprobe, and Debian's packages that are
// asked for.
//
// It exits with 0 if all passed, 1 if one failed, and 77 if none could be tried.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

// expectations is what has to work on the kernel of a suite.
func expectations(suite, arch string) []string {
	modes, walk := "fentry,kprobe,enoent", "yes"
	if suite == "bullseye" { // 5.10
		walk = "no"
	}
	if arch == "arm64" && (suite == "bullseye" || suite == "bookworm") {
		modes = "kprobe,enoent" // it has trampolines to functions since 6.4
	}
	return []string{"VFSPROBE_TEST_MODES=" + modes, "VFSPROBE_TEST_WALK=" + walk, "VFSPROBE_TEST_TIMEOUT=4s"}
}

type options struct {
	suites     []string
	arch       string
	tests      []test
	packages   []string // of Debian
	arguments  []string // of the test programs
	parameters []string // of the kernel
	icount     bool
	accel      string
	timeout    time.Duration
	verbose    bool
}

// A test program is that of a package.
type test struct{ name, target, pattern string }

func parse() options {
	var o options
	suites := flag.String("suites", "bullseye,bookworm,trixie,sid", "Debian suites whose kernels are tried")
	flag.StringVar(&o.arch, "arch", "amd64", "of the machines: amd64 or arm64")
	targets := flag.String("package", "./internal/dcache/attribution", "whose tests are run, or those that a pattern matches: PACKAGE=PATTERN; several are separated by commas")
	install := flag.String("install", "coreutils,util-linux", "Debian packages that the tests need, separated by commas")
	arguments := flag.String("arguments", "-test.v", "of the test program, separated by commas")
	parameters := flag.String("parameters", "", "more of them for the kernel, as preempt=full")
	flag.BoolVar(&o.icount, "icount", false, "let a nanosecond be an instruction, so that benchmarks count these")
	flag.StringVar(&o.accel, "accel", "tcg", "of QEMU: tcg or kvm")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "for each kernel")
	flag.BoolVar(&o.verbose, "v", false, "print all that the machines print")
	flag.Parse()

	o.suites, o.packages, o.arguments, o.parameters = split(*suites), split(*install), split(*arguments), strings.Fields(*parameters)
	for i, target := range split(*targets) {
		one := test{name: fmt.Sprintf("%02d", i)}
		one.target, one.pattern, _ = strings.Cut(target, "=")
		o.tests = append(o.tests, one)
	}
	return o
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func main() { os.Exit(run(parse())) }

func run(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := vm.Need("e2fsprogs:mkfs.ext4", "golang-go:go"); err != nil {
		fmt.Printf("kernels: %v\n", err)
		return vm.ExitSkipped
	}
	work, err := os.MkdirTemp("", "kernels-")
	if err != nil {
		fmt.Printf("kernels: %v\n", err)
		return 1
	}
	defer os.RemoveAll(work)
	if err := prepare(ctx, work, o); err != nil {
		fmt.Printf("kernels: %v\n", err)
		return 1
	}
	failed, passed := 0, 0
	for _, suite := range o.suites {
		start := time.Now()
		version, err := testKernel(ctx, o, work, suite)
		switch {
		case errors.As(err, new(skip)):
			fmt.Printf("SKIP %s: %v\n", suite, err)
		case err != nil:
			failed++
			fmt.Printf("FAIL %s %s after %.0f s: %v\n", suite, version, time.Since(start).Seconds(), err)
		default:
			passed++
			fmt.Printf("PASS %s %s in %.0f s\n", suite, version, time.Since(start).Seconds())
		}
	}
	switch {
	case failed > 0:
		return 1
	case passed == 0:
		return vm.ExitSkipped
	}
	return 0
}

// Where the machines have what prepare makes, as the guest knows.
const (
	testsDir = "opt/tests"
	binary   = "opt/vfsprobe"
)

// prepare makes what all machines are given.
func prepare(ctx context.Context, work string, o options) error {
	steps := [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", work + "/init", "./internal/testing/kernels/guest"},
		{"go", "build", "-trimpath", "-buildmode=exe", "-ldflags=-s -w", "-o", filepath.Join(work, binary), "./cmd/vfsprobe"},
		{"truncate", "-s", "64M", work + "/ext4.img"},
		{"/sbin/mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", work + "/ext4.img"},
	}
	for _, one := range o.tests {
		steps = append(steps, []string{"go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(work, testsDir, one.name), one.target})
	}
	for _, step := range steps {
		c := exec.CommandContext(ctx, step[0], step[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+o.arch)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(step, " "), err, out)
		}
	}
	return nil
}

// config is the machine of a suite's kernel. Its programs are of a suite whose programs
// run on all kernels, and which needs no links into usr.
func (o options) config(work, suite string) vm.Config {
	var qemuOptions []string
	if o.icount {
		qemuOptions = []string{"-icount", "shift=0"}
	}
	c := vm.Config{
		Emulator: vm.QEMU(o.arch, o.accel, suite, qemuOptions...),
		Base: vm.Debian{Suite: "bookworm", Packages: append([]string{"kmod"}, o.packages...), Extract: true, Under: "programs",
			Omit: []string{"etc", "run", "tmp", "usr/share", "var"}},
		Modules:    []string{"crc32c_generic", "loop", "ext4", "fuse"},
		Init:       vm.Program(work + "/init"),
		Files:      []vm.File{{From: work + "/ext4.img", Name: "ext4.img"}, {From: work + "/opt", Name: "opt"}},
		Parameters: o.parameters,
	}
	if o.verbose {
		c.Console = os.Stdout
	}
	return c
}

// A skip is why a kernel was not tried. One that does not boot has failed.
type skip struct{ error }

// testKernel boots the kernel of a suite and runs the tests there.
func testKernel(ctx context.Context, o options, work, suite string) (version string, err error) {
	image, err := vm.Build(ctx, o.config(work, suite))
	if errors.As(err, new(vm.Unavailable)) {
		return "", skip{err}
	}
	if err != nil {
		return "", err
	}
	defer image.Remove()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	m, err := image.Boot(ctx)
	if err != nil {
		return image.KernelVersion(), err
	}
	for _, one := range o.tests {
		if err = o.runTest(ctx, m, one, suite); err != nil {
			break
		}
	}
	return image.KernelVersion(), errors.Join(err, m.Close())
}

func (o options) runTest(ctx context.Context, m *vm.Machine, one test, suite string) error {
	command := agent.Command{Args: append([]string{"/" + filepath.Join(testsDir, one.name)}, o.arguments...),
		Env: append(expectations(suite, o.arch), "VFSPROBE_TEST_EXT4=/", "VFSPROBE_TEST_BINARY=/"+binary)}
	if one.pattern != "" {
		command.Args = append(command.Args, "-test.run="+one.pattern)
	}
	if o.icount {
		command.Env = append(command.Env, "VFSPROBE_TEST_ROUNDS=3") // they hardly differ
	}
	result, err := m.Run(ctx, command)
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		return fmt.Errorf("the tests of %s: %w", one.target, err)
	}
	return nil
}
