package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	stuckHelpers = 100
	stuckTimeout = time.Second
	memoryTarget = "70"
	// kernelStack is what a thread has on x86-64 and arm64, in kB.
	kernelStack = 16
	// settleTime lets the kernel free what ended processes have left.
	settleTime = 2 * time.Second
	// ownThreads is how many threads this process and the daemon may start in
	// a round; what else is started is not theirs.
	ownThreads = 4
)

// planOf makes the plan of a check.
type planOf func(path string, timeout time.Duration) *prober.Plan

// hostFields are the lines of /proc/meminfo that processes add to.
var hostFields = []string{"AnonPages", "Shmem", "KernelStack", "PageTables", "SUnreclaim"}

// measureMemory lets helpers hang in silent FUSE mounts, and compares the
// host's memory with that before. All else has happened before: the mounts, a
// check of each, and as many helpers at once as are going to hang.
func measureMemory(dir string) error {
	// A huge page in the heap of this process or of the daemon, which inherits
	// this, would count for 2 MB.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("disabling transparent huge pages: %w", err)
	}
	d, err := startDaemon(dir, stuckHelpers)
	if err != nil {
		return err
	}
	defer d.stop()
	p := prober.New(prober.Options{Concurrency: stuckHelpers, MaxStuck: 3 * stuckHelpers, Warnf: warn})
	defer p.Close()
	debug.SetGCPercent(-1) // at given times only

	if err := measureStuckRounds(p, d, "", statfsPlan); err != nil || !prober.CanBecome() {
		return err
	}
	return measureStuckRounds(p, d, ", as another user", statfsPlanAsNobody)
}

// measureStuckRounds prints what helpers take that hang in the plan.
func measureStuckRounds(p *prober.Prober, d *daemon, who string, plan planOf) error {
	rows, disturbed := new(memoryRows), 0
	for range rounds {
		if err := heal(p, d, plan); err != nil {
			return err
		}
		alone, err := measureStuck(p, d, plan, rows)
		if err != nil {
			return err
		}
		if !alone {
			disturbed++
		}
	}
	rows.print(who)
	if disturbed > 0 {
		fmt.Printf("The host's memory is left out of %d rounds: other processes were started meanwhile\n\n", disturbed)
	}
	return nil
}

// statfsPlanAsNobody asks as another user, who need not be able to search the directories above.
func statfsPlanAsNobody(path string, timeout time.Duration) *prober.Plan {
	plan := &prober.Plan{Timeout: timeout}
	root := plan.Add(prober.OpenPath(prober.CWD(), path, 0))
	plan.Become(nobody, nobody)
	plan.Add(prober.Fstatfs(prober.ResultOf(root)))
	return plan
}

// heal lets the file systems answer, and waits until each has answered a check.
func heal(p *prober.Prober, d *daemon, plan planOf) error {
	if err := d.order("heal"); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := checkAll(p, d.mounts, plan, prober.Done); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// checkAll checks all mounts side by side.
func checkAll(p *prober.Prober, mounts []string, plan planOf, want prober.Outcome) error {
	reports := make([]prober.Report, len(mounts))
	var all sync.WaitGroup
	for i, mount := range mounts {
		all.Add(1)
		p.Submit(prober.Check{Key: mount, Group: mount, Plan: plan(mount, stuckTimeout)}, func(r prober.Report) {
			reports[i] = r
			all.Done()
		})
	}
	all.Wait()
	for i := range reports {
		if r := &reports[i]; r.Outcome != want {
			return fmt.Errorf("checking a mount: %v, expected: %v", r, want)
		}
	}
	return nil
}

// measureStuck makes the helpers hang, and adds what that takes to rows; of the host, if it was
// alone with them.
func measureStuck(p *prober.Prober, d *daemon, plan planOf, rows *memoryRows) (alone bool, err error) {
	server, err := forkServer()
	if err != nil {
		return false, err
	}
	before, err := read(server)
	if err != nil {
		return false, err
	}
	if err := d.order("silence"); err != nil {
		return false, err
	}
	if err := checkAll(p, d.mounts, plan, prober.Stuck); err != nil {
		return false, err
	}
	after, err := read(server)
	if err != nil {
		return false, err
	}
	helpers, err := children(server)
	if err != nil {
		return false, err
	}

	if alone = after.forks-before.forks <= stuckHelpers+ownThreads; alone {
		sum := 0.0
		for _, field := range hostFields {
			each := float64(after.host[field]-before.host[field]) / stuckHelpers
			rows.add("host: "+field, "", each)
			sum += each
		}
		rows.add("host: sum", memoryTarget, sum)
	}

	// The helpers share the server's memory, and its own is counted with theirs.
	rollup, err := readFields(server + "/smaps_rollup")
	if err != nil {
		return false, err
	}
	private := float64(rollup["Private_Clean"]+rollup["Private_Dirty"]) / stuckHelpers
	slots := float64(after.server["RssShmem"]) / stuckHelpers // which the prober has, too
	tables := float64(after.server["VmPTE"]) / stuckHelpers
	rows.add("server and helpers: private pages", "", private)
	rows.add("server and helpers: slots", "", slots)
	rows.add("server and helpers: page tables", "", tables)
	rows.add("helper: kernel stack", "", kernelStack)
	rows.add("server and helpers: sum", memoryTarget, private+slots+tables+kernelStack)

	rows.add("processes per stuck check", "1", float64(len(helpers))/stuckHelpers)
	rows.add("threads of the prober's process: before", "", float64(before.own["Threads"]))
	rows.add("  and with the helpers stuck", "same", float64(after.own["Threads"]))
	rows.add("threads of the fork server: before", "", float64(before.server["Threads"]))
	rows.add("  and with them stuck", "same", float64(after.server["Threads"]))
	return alone, nil
}

// memoryRows collects the rounds' values by row.
type memoryRows []memoryRow

type memoryRow struct {
	name, target string
	values       series
}

func (rows *memoryRows) add(name, target string, value float64) {
	for i := range *rows {
		if row := &(*rows)[i]; row.name == name {
			row.values = append(row.values, value)
			return
		}
	}
	*rows = append(*rows, memoryRow{name, target, series{value}})
}

func (rows *memoryRows) print(who string) {
	fmt.Printf("Memory of a stuck helper: %d of them, in statfs on FUSE mounts%s\n\n", stuckHelpers, who)
	printRow("", "  kB per helper, by round", "median (min..max)", "target")
	for _, row := range *rows {
		printRow(row.name, row.values.raw(), row.values.String(), row.target)
	}
	fmt.Println()
}

// A reading is the state of the host, of this process and of the fork server.
type reading struct {
	host, own, server map[string]int
	forks             int // since the host was started
}

// read waits until nothing moves any more.
func read(server string) (r reading, err error) {
	debug.FreeOSMemory()
	time.Sleep(settleTime)
	// The kernel counts per CPU; reading this file makes it add up.
	if _, err := os.ReadFile("/proc/sys/vm/stat_refresh"); err != nil {
		return r, fmt.Errorf("refreshing the memory counters: %w", err)
	}
	var errs [4]error
	r.host, errs[0] = readFields("meminfo")
	r.own, errs[1] = readFields("self/status")
	r.server, errs[2] = readFields(server + "/status")
	r.forks, errs[3] = forks()
	return r, errors.Join(errs[:]...)
}

// forks returns how many processes and threads the host has started.
func forks() (n int, err error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("counting the forks: %w", err)
	}
	_, rest, _ := strings.Cut(string(content), "\nprocesses ")
	number, _, _ := strings.Cut(rest, "\n")
	if n, err = strconv.Atoi(number); err != nil {
		return 0, fmt.Errorf("counting the forks: /proc/stat: %w", err)
	}
	return n, nil
}

// readFields reads those lines of a file in /proc that are a name and a number.
func readFields(name string) (map[string]int, error) {
	content, err := os.ReadFile("/proc/" + name)
	if err != nil {
		return nil, fmt.Errorf("reading fields: %w", err)
	}
	fields := make(map[string]int)
	for lines := bufio.NewScanner(bytes.NewReader(content)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		if n, err := strconv.Atoi(number); err == nil {
			fields[name] = n
		}
	}
	return fields, nil
}

// forkServer finds this process's fork server.
func forkServer() (pid string, err error) {
	own, err := children("self")
	if err != nil {
		return "", err
	}
	for _, pid := range own {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "vfsprobe-server\n" {
			return pid, nil
		}
	}
	return "", errors.New("looking for the fork server: not among the children of this process")
}

// children lists the children of all threads of a process.
func children(pid string) ([]string, error) {
	tasks, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return nil, fmt.Errorf("listing children: %w", err)
	}
	var found []string
	for _, task := range tasks {
		pids, err := os.ReadFile("/proc/" + pid + "/task/" + task.Name() + "/children")
		if err != nil {
			return nil, fmt.Errorf("listing children: %w", err)
		}
		found = append(found, strings.Fields(string(pids))...)
	}
	return found, nil
}
