package main

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	checks      = 20000
	fewChecks   = 200 // of what costs ten times as much
	concurrency = 16  // the prober's default
	checkedPath = "/"
	// nobody is the user, and the group, that helpers become.
	nobody = 65534
	// proberTarget is the target of the prober's time to the limit's.
	proberTarget = "1.25"
)

// The calls of a check: statfs(2) alone, or open(2), getdents64(2) and close(2) of the
// directory besides.
const (
	callStatfs  = "statfs"
	callReaddir = "readdir"
)

//go:embed floor/floor.c floor/statfs.c floor/limit.c
var baselineSource embed.FS

// baselines are the programs in C that checks are compared with: the floor, what it
// executes, and the limit.
type baselines struct{ floor, statfs, limit string }

// A contender is one way to make system calls in a process of its own.
type contender struct {
	name string
	// measure returns the µs of CPU and of wall time per check.
	measure func() (cpu, wall float64, err error)
	// toFloor and toLimit are targets of its CPU time, as ratios.
	toFloor, toLimit string
	cpu, wall        series
}

// measureCPU compares the CPU time of checks. Each contender is a child of
// this process, and what wait4 tells of a child covers those of its descendants
// that were waited for: all of them, the fork server and its helpers included.
// So are the starts and ends of all these processes.
func measureCPU(dir string) error {
	c, err := buildBaselines(dir)
	if err != nil {
		return err
	}
	helper, err := build(dir, "helper")
	if err != nil {
		return err
	}
	apart, forked := "apart", "forked"
	if !prober.CanBecome() {
		apart, forked = "shared", "large"
	}
	checkedBy := func(memory, sharing string) func() (cpu, wall float64, err error) {
		return byCommand(checks, func() *exec.Cmd {
			return self("prober", strconv.Itoa(checks), memory, sharing, callStatfs, checkedPath)
		})
	}
	return onAllAndOneCPU(func(where string) error {
		fmt.Printf("CPU time per check, user and system, of all processes, %s:\n"+
			"statfs(%q), %d at once, %d checks a round (%d of the last two)\n\n", where, checkedPath, concurrency, checks, fewChecks)
		contenders := []*contender{
			c.measuredFloor(),
			c.measuredLimit(checks, callStatfs, checkedPath),
			c.measuredLimitAsked(checks, callStatfs, checkedPath),
			{name: "prober", toFloor: "1", toLimit: proberTarget, measure: checkedBy("trimmed", "shared")},
			{name: "prober, apart", toFloor: "1", toLimit: "2.5", measure: checkedBy("trimmed", apart)},
			{name: "prober, apart, forked", measure: checkedBy("trimmed", forked)},
			{name: "prober, apart, forked, untrimmed", toFloor: "3", measure: checkedBy("untrimmed", forked)},
			{name: "exec of a minimal Go program", measure: byCommand(fewChecks, func() *exec.Cmd {
				return self("exec", strconv.Itoa(fewChecks), helper, checkedPath)
			})},
			{name: "timeout -s9 5 stat -f /", measure: byCommand(fewChecks, func() *exec.Cmd {
				return self("exec", strconv.Itoa(fewChecks), "timeout", "-s9", "5", "stat", "-f", checkedPath)
			})},
		}
		if prober.CanBecome() {
			contenders = slices.Insert(contenders, 3, c.measuredLimitApart())
		}
		return compare(contenders)
	})
}

// onAllAndOneCPU calls measure with all CPUs, then with one: what a helper costs
// depends on whether there is an idle CPU to wake.
func onAllAndOneCPU(measure func(where string) error) error {
	// Children inherit the CPUs of the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var every unix.CPUSet
	if err := unix.SchedGetaffinity(0, &every); err != nil {
		return fmt.Errorf("listing the CPUs: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &every) }()
	if err := measure(fmt.Sprintf("on %d CPUs", every.Count())); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, firstOf(&every)); err != nil {
		return fmt.Errorf("choosing one CPU: %w", err)
	}
	return measure("on 1 CPU")
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

// compare measures the contenders in turn and prints the table. The first is the
// floor, the second the limit.
func compare(contenders []*contender) error {
	for range rounds {
		for _, c := range contenders {
			cpu, wall, err := c.measure()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.cpu, c.wall = append(c.cpu, cpu), append(c.wall, wall)
		}
	}
	floor, limit := contenders[0], contenders[1]
	printRow("", "  µs per check or mount, by round", "ratio to the floor", "target", "ratio to the limit", "target")
	for _, c := range contenders {
		printRow(c.name, c.cpu.raw(), c.cpu.over(floor.cpu).String(), c.toFloor, c.cpu.over(limit.cpu).String(), c.toLimit)
	}
	printRow("Wall time, same runs", "")
	for _, c := range contenders {
		printRow(c.name, c.wall.raw(), c.wall.over(floor.wall).String(), "", c.wall.over(limit.wall).String())
	}
	fmt.Println()
	return nil
}

// buildBaselines compiles the floor; what it executes, a program as small as can be,
// of one page and without libraries; and the limit.
func buildBaselines(dir string) (*baselines, error) {
	dir, err := os.MkdirTemp(dir, "baselines-")
	if err == nil {
		err = os.CopyFS(dir, baselineSource)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the sources of floor and limit: %w", err)
	}
	dir = filepath.Join(dir, "floor")
	b := &baselines{floor: filepath.Join(dir, "floor"), statfs: filepath.Join(dir, "statfs"), limit: filepath.Join(dir, "limit")}
	for _, program := range []string{b.floor, b.limit} {
		if err := run(exec.Command("gcc", "-O2", "-static", "-o", program, program+".c")); err != nil {
			return nil, err
		}
	}
	return b, run(exec.Command("gcc", "-O2", "-nostdlib", "-static", "-s", "-fno-stack-protector",
		"-fno-asynchronous-unwind-tables", "-fcf-protection=none",
		"-Wl,--build-id=none,-z,noseparate-code", "-o", b.statfs, b.statfs+".c"))
}

func (b *baselines) measuredFloor() *contender {
	return &contender{name: "floor: C, vfork and exec, static ELF", toFloor: "1", measure: byCommand(checks, func() *exec.Cmd {
		return exec.Command(b.floor, strconv.Itoa(checks), strconv.Itoa(concurrency), b.statfs, checkedPath)
	})}
}

// measuredLimit is the limit of n checks of the paths.
func (b *baselines) measuredLimit(n int, calls string, paths ...string) *contender {
	return &contender{name: "limit: C, clone, memory shared", toLimit: "1", measure: b.byLimit(n, "itself", calls, paths...)}
}

// measuredLimitAsked is the same in children of a process that another one asks for them, as a plugin
// which must not hang asks a fork server.
func (b *baselines) measuredLimitAsked(n int, calls string, paths ...string) *contender {
	return &contender{name: "limit asked: C, clone by a server", measure: b.byLimit(n, "asked", calls, paths...)}
}

// measuredLimitApart is the limit in processes that become another user.
func (b *baselines) measuredLimitApart() *contender {
	return &contender{name: "limit apart: C, clone, another user", measure: b.byLimit(checks, "apart", callStatfs, checkedPath)}
}

func (b *baselines) byLimit(n int, user, calls string, paths ...string) func() (cpu, wall float64, err error) {
	return byCommand(n, func() *exec.Cmd {
		return exec.Command(b.limit, append([]string{strconv.Itoa(n), strconv.Itoa(concurrency), user, calls}, paths...)...)
	})
}

// byCommand measures a command that makes n checks, from its start to its end.
func byCommand(n int, command func() *exec.Cmd) func() (cpu, wall float64, err error) {
	return func() (cpu, wall float64, err error) {
		c := command()
		c.Stderr = os.Stderr
		began := time.Now()
		if err := c.Run(); err != nil {
			return 0, 0, err
		}
		took := time.Since(began)
		perCheck := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(n) }
		return perCheck(c.ProcessState.UserTime() + c.ProcessState.SystemTime()), perCheck(took), nil
	}
}

// leastKeys is how many keys it takes at least that none is checked again while it still is.
const leastKeys = 4 * concurrency

// runProber is the role in which the prober makes the checks. The arguments are how
// many, "trimmed" or not, "shared", "apart", "forked" or "large", the calls, and the paths,
// which take turns.
func runProber(arguments []string) error {
	n, err := strconv.Atoi(arguments[0])
	if err != nil {
		return fmt.Errorf("number of checks: %w", err)
	}
	paths := arguments[4:]
	all := make([]prober.Check, max(len(paths), leastKeys))
	for i := range all { // as mountstat has them: a group shares its places
		name := strconv.Itoa(i)
		all[i] = prober.Check{Key: name, Group: name, Trusted: true, Independent: true, Plan: checkPlan(arguments[3], paths[i%len(paths)], arguments[2])}
	}
	if arguments[2] == "forked" {
		if err := giveUpTracing(); err != nil {
			return err
		}
	}
	runtime.GOMAXPROCS(1) // as in vfsprobe
	p := prober.New(prober.Options{
		Concurrency: concurrency,
		Untrimmed:   arguments[1] == "untrimmed",
		Warnf:       warn,
	})
	var failed atomic.Pointer[prober.Report]
	sideBySide(n, func(i int) {
		r := p.Run(all[i%len(all)])
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

// giveUpTracing takes CAP_SYS_PTRACE from this process, without which helpers of other users
// have memory of their own.
func giveUpTracing() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	sets[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0); errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// checkPlan makes the calls on the path, as another user ("apart", and "forked") or not, or
// in more memory than can be shared ("large"), of which nothing is touched.
func checkPlan(calls, path, memory string) *prober.Plan {
	plan := &prober.Plan{Timeout: 5 * time.Second}
	if memory == "apart" || memory == "forked" {
		plan.Become(nobody, nobody)
	}
	plan.Add(prober.Statfs(path))
	if calls == callReaddir { // as mountstat does it
		directory := prober.ResultOf(plan.Add(prober.Open(prober.CWD(), path, unix.O_RDONLY|unix.O_DIRECTORY, 0).MergeWithNext()))
		plan.Add(prober.Getdents(directory, 4096).WithoutOutput())
		plan.Add(prober.Close(directory).Silent())
	}
	if memory == "large" {
		null := plan.Add(prober.Open(prober.CWD(), os.DevNull, unix.O_RDONLY, 0).Silent())
		plan.Add(prober.Read(prober.ResultOf(null), 32<<10).WithoutOutput().Silent())
	}
	return plan
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
