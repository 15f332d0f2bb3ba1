// Command bench measures what the prober costs: CPU time per check, memory per
// stuck helper, the time from the start of vfsprobe to its first metric, whole
// gathers, of other programs, too, what there is between gathers, and what the
// binary is made of.
// Times depend on the machine, so each is given as a ratio to a floor, which is
// measured in the same run and interleaved with it; those of checks also to the limit
// of what shares memory.
//
// Usage: bench [-raw FILE] [-before VFSPROBE] [cpu] [start] [memory] [gather] [size] [idle] [compare]
//
// Without arguments it measures all but idle and compare, which take five and ten
// minutes. compare writes its raw values to FILE, and has an earlier version of vfsprobe
// gather beside this one. GATHERS in the environment says how many gathers idle makes. It needs gcc, the go command and the repository as
// the current directory; all but cpu and size mount file systems, in a mount
// namespace of their own, which takes root and /dev/fuse. Memory is that of the
// whole host: nothing else should run.
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

	"golang.org/x/sys/unix"
)

const (
	// module is the path of what is measured.
	module = "github.com/vfsprobe/vfsprobe"
	// rounds is how often everything is measured.
	rounds = 5
)

// measurements is what the command can be asked for, in order.
var measurements = []measurement{
	{name: "cpu", run: func(dir string, _ options) error { return measureCPU(dir) }},
	{name: "start", run: func(dir string, _ options) error { return inNamespace("start", dir) }},
	{name: "memory", run: func(dir string, _ options) error { return inNamespace("memory", dir) }},
	{name: "gather", run: func(dir string, _ options) error { return inNamespace("gather", dir) }},
	{name: "size", run: func(dir string, _ options) error { return measureSize(dir) }},
	{name: "idle", long: true, run: func(dir string, _ options) error { return inNamespace("idle", dir) }},
	{name: "compare", long: true, run: func(dir string, o options) error { return inNamespace("compare", dir, o.raw, o.before) }},
}

type measurement struct {
	name string
	long bool                              // only on request
	run  func(dir string, o options) error // dir is for temporary files
}

// options are for compare; each may be empty.
type options struct{ raw, before string }

// roles are what copies of this program do for it.
var roles = map[string]func(arguments []string) error{
	"prober":  runProber,
	"exec":    runCommands,
	"daemon":  runDaemon,
	"memory":  func(arguments []string) error { return measureMemory(arguments[0]) },
	"start":   func(arguments []string) error { return measureStart(arguments[0]) },
	"idle":    func(arguments []string) error { return measureIdle(arguments[0]) },
	"gather":  withOwnProc(func(arguments []string) error { return measureGather(arguments[0]) }),
	"compare": withOwnProc(measureCompare),
}

func main() {
	role := flag.String("role", "", "what a copy of this program does for it; not for users")
	var o options
	flag.StringVar(&o.raw, "raw", "", "write the raw values of compare to this `file`, as CSV")
	flag.StringVar(&o.before, "before", "", "compare with this earlier `vfsprobe`, too")
	flag.Parse()
	run := func(wanted []string) error { return measure(wanted, o) }
	if *role != "" {
		run = roles[*role]
	}
	if err := run(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func measure(wanted []string, o options) error {
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
		if len(wanted) > 0 && !slices.Contains(wanted, m.name) || len(wanted) == 0 && m.long {
			continue
		}
		if err := m.run(dir, o); err != nil {
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
// process. gather and compare are also process 1 of a PID namespace, all of which
// ends with it.
func inNamespace(role string, arguments ...string) error {
	if os.Geteuid() != 0 {
		fmt.Printf("%s: not measured, since mounting takes root\n\n", role)
		return nil
	}
	c := self(role, arguments...)
	c.Stdout = os.Stdout
	c.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	if role == "gather" || role == "compare" {
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	return c.Run()
}

// withOwnProc makes a role see the processes of its PID namespace only: vfsprobe
// would look for blocked tasks of the whole host, and Telegraf and node_exporter read
// the mount table of process 1.
func withOwnProc(role func(arguments []string) error) func(arguments []string) error {
	return func(arguments []string) error {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mounting /proc: %w", err)
		}
		return role(arguments)
	}
}

// build builds a small program below this one that vfsprobe is compared with, and returns
// its path.
func build(dir, name string) (string, error) {
	output := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-C", "tools/bench", "-trimpath", "-ldflags", "-s -w", "-o", output, "./"+name)
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
