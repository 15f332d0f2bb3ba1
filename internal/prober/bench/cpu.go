package main

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	checks      = 2000
	fewChecks   = 200 // of what costs ten times as much
	concurrency = 8
	checkedPath = "/"
)

//go:embed floor/floor.c floor/statfs.c
var floorSource embed.FS

// A contender is one way to make a system call in a process of its own.
type contender struct {
	name      string
	checks    int
	command   func() *exec.Cmd
	target    string
	cpu, wall series // µs per check
}

// measureCPU compares the CPU time of checks. Each contender is a child of
// this process, and what wait4 tells of a child covers those of its descendants
// that were waited for: all of them, the fork server and its helpers included.
// So are the starts and ends of all these processes.
func measureCPU(dir string) error {
	floor, statfs, err := buildFloor(dir)
	if err != nil {
		return err
	}
	helper, err := build(dir, "internal/prober/bench/helper")
	if err != nil {
		return err
	}
	contenders := []*contender{
		{name: "floor: C, vfork and exec, static ELF", checks: checks, target: "1", command: func() *exec.Cmd {
			return exec.Command(floor, strconv.Itoa(checks), strconv.Itoa(concurrency), statfs, checkedPath)
		}},
		{name: "prober", checks: checks, target: "1", command: func() *exec.Cmd {
			return self("prober", strconv.Itoa(checks), "trimmed", "shared")
		}},
		{name: "prober, apart", checks: checks, target: "1.5", command: func() *exec.Cmd {
			return self("prober", strconv.Itoa(checks), "trimmed", "apart")
		}},
		{name: "prober, apart, untrimmed", checks: checks, target: "3", command: func() *exec.Cmd {
			return self("prober", strconv.Itoa(checks), "untrimmed", "apart")
		}},
		{name: "exec of a minimal Go program", checks: fewChecks, command: func() *exec.Cmd {
			return self("exec", strconv.Itoa(fewChecks), helper, checkedPath)
		}},
		{name: "timeout -s9 5 stat -f /", checks: fewChecks, command: func() *exec.Cmd {
			return self("exec", strconv.Itoa(fewChecks), "timeout", "-s9", "5", "stat", "-f", checkedPath)
		}},
	}
	// What a helper costs depends on whether there is an idle CPU to wake.
	// Children inherit the CPUs of the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var every unix.CPUSet
	if err := unix.SchedGetaffinity(0, &every); err != nil {
		return fmt.Errorf("listing the CPUs: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &every) }()
	if err := compare(fmt.Sprintf("on %d CPUs", every.Count()), contenders); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, firstOf(&every)); err != nil {
		return fmt.Errorf("choosing one CPU: %w", err)
	}
	return compare("on 1 CPU", contenders)
}

func firstOf(every *unix.CPUSet) *unix.CPUSet {
	var first unix.CPUSet
	for cpu := 0; first.Count() == 0; cpu++ {
		if every.IsSet(cpu) {
			first.Set(cpu)
		}
	}
	return &first
}

// compare measures the contenders in turn and prints the table.
func compare(where string, contenders []*contender) error {
	for _, c := range contenders {
		c.cpu, c.wall = nil, nil
	}
	for range rounds {
		for _, c := range contenders {
			if err := c.measure(); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	fmt.Printf("CPU time per check, user and system, of all processes, %s:\n"+
		"statfs(%q), %d at once, %d checks a round (%d of the last two)\n\n", where, checkedPath, concurrency, checks, fewChecks)
	printRow("", "  µs per check, by round", "ratio to the floor", "target")
	for _, c := range contenders {
		printRow(c.name, c.cpu.raw(), c.cpu.over(contenders[0].cpu).String(), c.target)
	}
	printRow("Wall time, same runs", "", "", "")
	for _, c := range contenders {
		printRow(c.name, c.wall.raw(), c.wall.over(contenders[0].wall).String(), "")
	}
	fmt.Println()
	return nil
}

// buildFloor compiles the floor, and what it executes: a program as small as
// can be, of one page and without libraries.
func buildFloor(dir string) (floor, statfs string, err error) {
	if dir, err = os.MkdirTemp(dir, "floor-"); err == nil {
		err = os.CopyFS(dir, floorSource)
	}
	if err != nil {
		return "", "", fmt.Errorf("writing the floor's sources: %w", err)
	}
	floor, statfs = filepath.Join(dir, "floor", "floor"), filepath.Join(dir, "floor", "statfs")
	if err := run(exec.Command("gcc", "-O2", "-static", "-o", floor, floor+".c")); err != nil {
		return "", "", err
	}
	err = run(exec.Command("gcc", "-O2", "-nostdlib", "-static", "-s", "-fno-stack-protector",
		"-fno-asynchronous-unwind-tables", "-fcf-protection=none",
		"-Wl,--build-id=none,-z,noseparate-code", "-o", statfs, statfs+".c"))
	return floor, statfs, err
}

func (c *contender) measure() error {
	command := c.command()
	command.Stderr = os.Stderr
	began := time.Now()
	if err := command.Run(); err != nil {
		return err
	}
	perCheck := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(c.checks) }
	c.wall = append(c.wall, perCheck(time.Since(began)))
	c.cpu = append(c.cpu, perCheck(command.ProcessState.UserTime()+command.ProcessState.SystemTime()))
	return nil
}

// runProber is the role in which the prober makes the checks.
func runProber(arguments []string) error {
	n, err := strconv.Atoi(arguments[0])
	if err != nil {
		return fmt.Errorf("number of checks: %w", err)
	}
	p := prober.New(prober.Options{
		Concurrency: concurrency,
		Untrimmed:   arguments[1] == "untrimmed",
		Warnf:       warn,
	})
	var failed atomic.Pointer[prober.Report]
	sideBySide(n, func(i int) {
		// A group shares its places, so each check has one of its own.
		name := strconv.Itoa(i)
		plan := statfsPlan(checkedPath, 5*time.Second)
		if arguments[2] == "apart" {
			// More memory than can be shared, of which nothing is touched.
			null := plan.Add(prober.Open(prober.CWD(), os.DevNull, unix.O_RDONLY, 0).Silent())
			plan.Add(prober.Read(prober.ResultOf(null), 32<<10).WithoutOutput().Silent())
		}
		r := p.Run(prober.Check{Key: name, Group: name, Plan: plan})
		if r.Outcome != prober.Done || r.Failed() != nil {
			failed.Store(&r)
		}
	})
	if r := failed.Load(); r != nil {
		return fmt.Errorf("a check failed: %v", r)
	}
	p.Close()
	// Only when the prober has waited for it is the server's time accounted for.
	for !errors.Is(unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil), unix.ECHILD) {
		time.Sleep(time.Millisecond)
	}
	return nil
}

func statfsPlan(path string, timeout time.Duration) *prober.Plan {
	return &prober.Plan{Steps: []prober.Step{prober.Statfs(path)}, Timeout: timeout}
}

func warn(format string, arguments ...any) { fmt.Fprintf(os.Stderr, format+"\n", arguments...) }

// runCommands is the role in which a program is executed for each check.
func runCommands(arguments []string) error {
	n, err := strconv.Atoi(arguments[0])
	if err != nil {
		return fmt.Errorf("number of checks: %w", err)
	}
	var failed atomic.Pointer[error]
	sideBySide(n, func(int) {
		if _, err := exec.Command(arguments[1], arguments[2:]...).Output(); err != nil {
			failed.Store(&err)
		}
	})
	if err := failed.Load(); err != nil {
		return fmt.Errorf("running %s: %w", arguments[1], *err)
	}
	return nil
}

// sideBySide calls f n times, always several at once.
func sideBySide(n int, f func(i int)) {
	var all sync.WaitGroup
	var started atomic.Int64
	for range concurrency {
		all.Go(func() {
			for i := int(started.Add(1)); i <= n; i = int(started.Add(1)) {
				f(i)
			}
		})
	}
	all.Wait()
}
