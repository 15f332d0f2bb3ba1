// Command bench measures what the prober costs: CPU time per check, memory per
// stuck helper, the time from the start of vfsprobe to its first metric, and
// whole gathers.
// Times depend on the machine, so each is given as a ratio to a floor, which is
// measured in the same run and interleaved with it.
//
// Usage: bench [cpu] [start] [memory] [gather]
//
// Without arguments it measures all of them. It needs gcc, the go command and
// this module as the current directory's; all but cpu mount file systems,
// in a mount namespace of their own, which takes root and /dev/fuse. Memory is
// that of the whole host: nothing else should run.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

const (
	// module is the path of the programs to be built and measured.
	module = "github.com/vfsprobe/vfsprobe"
	// rounds is how often everything is measured.
	rounds = 5
)

// measurements is what the command can be asked for, in order. Each is given a
// directory for temporary files.
var measurements = []measurement{
	{"cpu", measureCPU},
	{"start", func(dir string) error { return inNamespace("start", dir) }},
	{"memory", func(dir string) error { return inNamespace("memory", dir) }},
	{"gather", func(dir string) error { return inNamespace("gather", dir) }},
}

type measurement struct {
	name string
	run  func(dir string) error
}

// roles are what copies of this program do for it.
var roles = map[string]func(arguments []string) error{
	"prober": runProber,
	"exec":   runCommands,
	"daemon": runDaemon,
	"memory": func(arguments []string) error { return measureMemory(arguments[0]) },
	"gather": func(arguments []string) error { return measureGather(arguments[0]) },
	"start":  func(arguments []string) error { return measureStart(arguments[0]) },
}

func main() {
	role := flag.String("role", "", "what a copy of this program does for it; not for users")
	flag.Parse()
	run := measure
	if *role != "" {
		run = roles[*role]
	}
	if err := run(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func measure(wanted []string) error {
	for _, name := range wanted {
		if !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == name }) {
			return fmt.Errorf("unknown measurement %q", name)
		}
	}
	dir, err := os.MkdirTemp("", "vfsprobe-bench-")
	if err != nil {
		return fmt.Errorf("making a temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		os.RemoveAll(dir)
		os.Exit(1)
	}()

	var failed []error
	for _, m := range measurements {
		if len(wanted) > 0 && !slices.Contains(wanted, m.name) {
			continue
		}
		if err := m.run(dir); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return errors.Join(failed...)
}

// self is a copy of this program in a role. It does not outlive this one.
func self(role string, arguments ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", append([]string{"-role", role}, arguments...)...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// inNamespace runs a role in a mount namespace that disappears with its last
// process.
func inNamespace(role, dir string) error {
	if os.Geteuid() != 0 {
		fmt.Printf("%s: not measured, since mounting takes root\n\n", role)
		return nil
	}
	c := self(role, dir)
	c.Stdout = os.Stdout
	c.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	return c.Run()
}

// build builds a program of this module as a release is built, and returns its
// path.
func build(dir, name string) (string, error) {
	output := filepath.Join(dir, filepath.Base(name))
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", output, module+"/"+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	return output, run(c)
}

// run runs a command, and makes its output part of the error if it fails.
func run(c *exec.Cmd) error {
	if output, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", c, err, output)
	}
	return nil
}
