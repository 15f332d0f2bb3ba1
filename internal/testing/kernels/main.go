// Command kernels runs the tests of packages that need the kernel's help, such as
// BPF, on Debian's kernels: each is booted under QEMU with an ext4 as its root, and
// nothing in it but the test programs, vfsprobe, and Debian's packages that are
// asked for.
//
// It exits with 0 if all passed, 1 if one failed, and 77 if none could be tried.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/image"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/machine"
)

// expectations is what has to work on the kernel of a suite.
func expectations(suite, arch string) string {
	modes, walk := "fentry,kprobe,enoent", "yes"
	if suite == "bullseye" { // 5.10
		walk = "no"
	}
	if arch == "arm64" && (suite == "bullseye" || suite == "bookworm") {
		modes = "kprobe,enoent" // it has trampolines to functions since 6.4
	}
	return "VFSPROBE_TEST_MODES=" + modes + " VFSPROBE_TEST_WALK=" + walk + " VFSPROBE_TEST_TIMEOUT=4s"
}

const skipped = 77

func main() {
	suites := flag.String("suites", "bullseye,bookworm,trixie,sid", "Debian suites whose kernels are tried")
	arch := flag.String("arch", "amd64", "of the machines: amd64 or arm64")
	targets := flag.String("package", "./internal/dcache/attribution", "whose tests are run, or those that a pattern matches: PACKAGE=PATTERN; several are separated by commas")
	install := flag.String("install", "coreutils,util-linux", "Debian packages that the tests need, separated by commas")
	arguments := flag.String("arguments", "-test.v", "of the test program, separated by commas")
	parameters := flag.String("parameters", "", "more of them for the kernel, as preempt=full")
	icount := flag.Bool("icount", false, "let a nanosecond be an instruction, so that benchmarks count these")
	accel := flag.String("accel", "tcg", "of QEMU: tcg or kvm")
	timeout := flag.Duration("timeout", 8*time.Minute, "for each kernel")
	verbose := flag.Bool("v", false, "print all that the machines print")
	flag.Parse()

	var options []string
	if *icount {
		options = []string{"-icount", "shift=0"}
		*parameters += " VFSPROBE_TEST_ROUNDS=3" // they hardly differ
	}
	missing := needs(*arch, *accel)
	if len(missing) > 0 {
		fmt.Printf("kernels: missing: %s\n", strings.Join(missing, " "))
		os.Exit(skipped)
	}
	var tests []test
	for target := range strings.SplitSeq(*targets, ",") {
		one := test{name: fmt.Sprintf("%02d", len(tests))}
		one.target, one.pattern, _ = strings.Cut(target, "=")
		tests = append(tests, one)
	}
	work, err := os.MkdirTemp("", "kernels-")
	if err == nil {
		err = prepare(work, *arch, tests)
	}
	if err != nil {
		fmt.Printf("kernels: %v\n", errors.Join(err, os.RemoveAll(work)))
		os.Exit(1)
	}
	tree := ""
	if *install != "" {
		if tree, err = programs(*arch, *install); err != nil {
			fmt.Printf("SKIP all: %v\n", errors.Join(err, os.RemoveAll(work)))
			os.Exit(skipped)
		}
	}
	failed, passed := 0, 0
	for suite := range strings.SplitSeq(*suites, ",") {
		k, err := debian(suite, *arch)
		if err != nil {
			fmt.Printf("SKIP %s: %v\n", suite, err)
			continue
		}
		line := expectations(suite, *arch) + " TEST_ARGUMENTS=" + *arguments
		for _, one := range tests {
			if one.pattern != "" {
				line += " TEST_RUN_" + one.name + "=" + one.pattern
			}
		}
		start := time.Now()
		version := filepath.Base(k.modules)
		out, err := boot(k, work, tree, *arch, *accel, line+" "+*parameters, options, *timeout, *verbose)
		if err != nil {
			failed++
			fmt.Printf("FAIL %s %s after %.0f s: %v\n%s", suite, version, time.Since(start).Seconds(), err, out)
			continue
		}
		passed++
		fmt.Printf("PASS %s %s in %.0f s\n", suite, version, time.Since(start).Seconds())
	}
	_ = os.RemoveAll(work)
	switch {
	case failed > 0:
		os.Exit(1)
	case passed == 0:
		os.Exit(skipped)
	}
}

func needs(arch, accel string) []string {
	missing, _ := machine.QEMU(arch, accel, "", "").Missing()
	for _, command := range []string{"apt-get", "dpkg-deb", "/usr/sbin/depmod", "mkfs.ext4", "xz", "go"} {
		if _, err := exec.LookPath(command); err != nil {
			missing = append(missing, command)
		}
	}
	return missing
}

// A test program is that of a package.
type test struct{ name, target, pattern string }

// prepare makes what all machines are given.
func prepare(work, arch string, tests []test) error {
	steps := [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", work + "/init", "./internal/testing/kernels/guest"},
		{"go", "build", "-trimpath", "-buildmode=exe", "-ldflags=-s -w", "-o", work + "/opt/vfsprobe", "./cmd/vfsprobe"},
		{"truncate", "-s", "64M", work + "/ext4.img"},
		{"mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", work + "/ext4.img"},
	}
	for _, one := range tests {
		steps = append(steps, []string{"go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", work + "/opt/tests/" + one.name, one.target})
	}
	for _, step := range steps {
		c := exec.Command(step[0], step[1:]...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(step, " "), err, out)
		}
	}
	return nil
}

// boot runs the tests in one machine and returns what they printed.
func boot(k *kernel, work, programs, arch, accel, parameters string, options []string, timeout time.Duration, verbose bool) (string, error) {
	initrd := filepath.Join(work, "initrd")
	trees := []image.Program{{From: work + "/opt", Name: "opt"}}
	if programs != "" {
		trees = append(trees, image.Program{From: programs, Name: "programs"})
	}
	err := image.Bare(initrd, k.modules, []string{"crc32c_generic", "loop", "ext4", "fuse"}, []image.Program{
		{From: work + "/init", Name: "init"}, {From: work + "/ext4.img", Name: "ext4.img"},
	}, trees)
	if err != nil {
		return "", err
	}
	reader, writer := io.Pipe()
	var output strings.Builder
	verdict := make(chan error, 1)
	go func() {
		err := errors.New("the machine ended without a verdict")
		scanner := bufio.NewScanner(reader)
		for scanner.Scan() {
			line := strings.TrimRight(scanner.Text(), "\r")
			if verbose {
				fmt.Println(line)
			}
			output.WriteString(line + "\n")
			if text, found := strings.CutPrefix(line, "guest: "); found {
				err = nil
				if text != "passed" {
					err = errors.New(text)
				}
			}
		}
		verdict <- err
	}()
	m, err := machine.QEMU(arch, accel, k.image, parameters, options...).Boot(initrd, writer)
	if err != nil {
		return "", err
	}
	select {
	case <-m.Exited:
	case <-time.After(timeout):
		err = fmt.Errorf("not ready after %v", timeout)
	}
	err = errors.Join(err, m.Close())
	writer.Close()
	return output.String(), errors.Join(err, <-verdict)
}
