package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	idleMounts  = 100
	idleTarget  = 12 << 10 // kB, resident
	idleTime    = 30 * time.Second
	idleGathers = 10000
	// settled is how long after a gather a process is at rest.
	settled = time.Second
	// started is how long after the start all that is loaded then has been, and the Go runtime
	// has given back the memory that it took.
	started = 15 * time.Second
	// profiledFunctions is how many functions that allocate are listed.
	profiledFunctions = 15
)

// measureIdle tells what vfsprobe takes between gathers: wake-ups, and memory at
// rest, with hung mounts, and after many gathers, of which GATHERS says how many.
func measureIdle(dir string) error {
	gathers := idleGathers
	if text := os.Getenv("GATHERS"); text != "" {
		var err error
		if gathers, err = strconv.Atoi(text); err != nil || gathers < 4 {
			return fmt.Errorf("GATHERS=%s is no number of gathers", text)
		}
	}
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return err
	}
	d, err := startDaemon(dir, idleMounts)
	if err != nil {
		return err
	}
	defer d.stop()
	const mountstat = "[[inputs.mountstat]]\nfs = [\"fuse.*\"]\nfstab = \"\"\n"
	fmt.Printf("Between gathers: %v without a trigger, %d FUSE mounts\n\n", idleTime, idleMounts)
	fmt.Printf("%-38s %22s %22s %10s\n", "", "plugin: switches, own", "server: switches, own", "CPU, ms")
	if err := wakeUps(vfsprobe, dir, "mountstat, healthy", mountstat, nil); err != nil {
		return err
	}
	if err := wakeUps(vfsprobe, dir, "all inputs, healthy", mountstat+"[[inputs.nfslock]]\n[[inputs.dentrycache]]\n", nil); err != nil {
		return err
	}
	err = wakeUps(vfsprobe, dir, fmt.Sprintf("mountstat, %d hang", idleMounts), mountstat, func() error { return d.order("silence") })
	if err != nil {
		return err
	}
	fmt.Println()
	if err := d.order("heal"); err != nil {
		return err
	}
	if err := memoryAtRest(vfsprobe, dir, mountstat, d, gathers); err != nil {
		return err
	}
	return allocations(dir)
}

// pids are the plugin and its fork server.
func (s *session) pids() (plugin, server string, err error) {
	plugin = strconv.Itoa(s.command.Process.Pid)
	all, err := children(plugin)
	if err != nil {
		return "", "", err
	}
	if len(all) != 1 {
		return "", "", fmt.Errorf("looking for the fork server: vfsprobe has %d children", len(all))
	}
	return plugin, all[0], nil
}

// wakeUps counts what wakes vfsprobe without a trigger. change, if not nil, comes
// after the first gather.
func wakeUps(vfsprobe, dir, name, config string, change func() error) error {
	s, err := startSession(vfsprobe, dir, config, "-max-stuck", strconv.Itoa(4*idleMounts)) // of which one server gets a third
	if err != nil {
		return err
	}
	defer s.stop()
	for range 3 {
		if _, _, err := s.gather(); err != nil {
			return err
		}
		if change != nil {
			if err := change(); err != nil {
				return err
			}
			change = nil
		}
	}
	plugin, server, err := s.pids()
	if err != nil {
		return err
	}
	time.Sleep(started)
	if _, _, err := s.gather(); err != nil {
		return err
	}
	time.Sleep(settled)
	var all [2][2]switches // by process, before and after
	var spent [2]time.Duration
	for i := range 2 {
		if i == 1 {
			time.Sleep(idleTime)
		}
		for j, pid := range []string{plugin, server} {
			if all[j][i], err = switchesOf(pid); err != nil {
				return err
			}
			n, err := strconv.Atoi(pid)
			if err != nil {
				return err
			}
			cpu, err := cpuOf(n)
			if err != nil {
				return err
			}
			spent[i] += cpu
		}
	}
	fmt.Printf("%-38s", name)
	for _, of := range all {
		fmt.Printf(" %22s", fmt.Sprintf("%d, %d", of[1].all-of[0].all, of[1].voluntary-of[0].voluntary))
	}
	fmt.Printf(" %10.2f\n", milliseconds(spent[1]-spent[0]))
	return nil
}

// switches are the context switches of all threads of a process: each wake-up ends
// with one, a voluntary one unless another task was preferred.
type switches struct{ all, voluntary int }

func switchesOf(pid string) (sum switches, err error) {
	tasks, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return sum, fmt.Errorf("counting switches: %w", err)
	}
	for _, task := range tasks {
		fields, err := readFields(pid + "/task/" + task.Name() + "/status")
		if err != nil {
			return sum, err
		}
		sum.voluntary += fields["voluntary_ctxt_switches"]
		sum.all += fields["voluntary_ctxt_switches"] + fields["nonvoluntary_ctxt_switches"]
	}
	return sum, nil
}

// memoryAtRest follows the memory of one vfsprobe through faults and many gathers.
func memoryAtRest(vfsprobe, dir, config string, d *daemon, gathers int) error {
	s, err := startSession(vfsprobe, dir, config+"timeout = \"2s\"\n", "-max-stuck", strconv.Itoa(4*idleMounts)) // of which one server gets a third
	if err != nil {
		return err
	}
	defer s.stop()
	var rows [14]struct {
		name   string
		values []int
	}
	var heads []string
	look := func(head string) error {
		time.Sleep(settled)
		heads = append(heads, head)
		plugin, server, err := s.pids()
		if err != nil {
			return err
		}
		stuck, err := children(server)
		if err != nil {
			return err
		}
		i, resident := 0, 0
		add := func(name string, value int) {
			rows[i].name, rows[i].values = name, append(rows[i].values, value)
			i++
		}
		for _, of := range []struct{ name, pid string }{{"plugin", plugin}, {"server", server}} {
			memory, err := readFields(of.pid + "/smaps_rollup")
			if err != nil {
				return err
			}
			status, err := readFields(of.pid + "/status")
			if err != nil {
				return err
			}
			add(of.name+": resident, kB", memory["Rss"])
			add("  its share, as pss", memory["Pss"])
			add("  of that private", memory["Private_Clean"]+memory["Private_Dirty"])
			add("  of that of no file", memory["Anonymous"])
			add("  threads", status["Threads"])
			open, err := os.ReadDir("/proc/" + of.pid + "/fd")
			if err != nil {
				return fmt.Errorf("counting descriptors: %w", err)
			}
			add("  descriptors", len(open))
			resident += memory["Rss"]
		}
		add(fmt.Sprintf("both; target %d", idleTarget), resident)
		add("helpers that hang", len(stuck))
		return nil
	}
	again := func(n int) error {
		for range n {
			if _, _, err := s.gather(); err != nil {
				return err
			}
		}
		return nil
	}
	for _, step := range []struct {
		head    string
		gathers int
		order   string
	}{
		{"first", 1, ""},
		{"hung", 3, "silence"},
		{"healed", 2, "heal"},
		{strconv.Itoa(gathers / 4), gathers / 4, ""},
		{strconv.Itoa(gathers / 2), gathers / 4, ""},
		{strconv.Itoa(gathers / 4 * 3), gathers / 4, ""},
		{strconv.Itoa(gathers), gathers / 4, ""},
	} {
		if step.order != "" {
			if err := d.order(step.order); err != nil {
				return err
			}
		}
		if err := again(step.gathers); err != nil {
			return err
		}
		if err := look(step.head); err != nil {
			return err
		}
	}
	fmt.Printf("Memory at rest, of one vfsprobe: %d FUSE mounts, after its first gather, with all hung,\nhealed, and after that many gathers\n\n", idleMounts)
	fmt.Printf("%-26s", "")
	for _, head := range heads {
		fmt.Printf("%9s", head)
	}
	fmt.Println()
	for _, row := range rows {
		fmt.Printf("%-26s", row.name)
		for _, value := range row.values {
			fmt.Printf("%9d", value)
		}
		fmt.Println()
	}
	fmt.Println()
	return nil
}

// allocations runs mountstat's benchmark of a gather, which counts what it
// allocates, and lists where.
func allocations(dir string) error {
	bench := func(arguments ...string) (string, error) {
		c := exec.Command("go", append([]string{"test", "-run", "^$", "-count", "1", "-benchmem"}, arguments...)...)
		output, err := c.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%v: %w\n%s", c, err, output)
		}
		return string(output), nil
	}
	const input = "./plugins/inputs/mountstat"
	output, err := bench("-bench", "^BenchmarkGather$", "-benchtime", "20x", input)
	if err != nil {
		return err
	}
	fmt.Printf("Allocations of a gather, all goroutines of the process\n\n%-12s %14s %14s %14s %14s\n", "mounts", "count", "kB", "per mount", "B per mount")
	results := regexp.MustCompile(`(?m)^BenchmarkGather/(\d+)\S*\s.*?(\d+) B/op\s+(\d+) allocs/op`).FindAllStringSubmatch(output, -1)
	if len(results) == 0 {
		return fmt.Errorf("reading the benchmark's results: none in %q", output)
	}
	for _, result := range results {
		var n [3]float64
		for i := range n {
			if n[i], err = strconv.ParseFloat(result[i+1], 64); err != nil {
				return fmt.Errorf("reading the benchmark's results: %w", err)
			}
		}
		fmt.Printf("%-12.0f %14.0f %14.1f %14.1f %14.0f\n", n[0], n[2], n[1]/1e3, n[2]/n[0], n[1]/n[0])
	}
	fmt.Println()
	// Every allocation is in the profile, those of the benchmark's start as well.
	profile, binary := filepath.Join(dir, "allocations"), filepath.Join(dir, "mountstat.test")
	if _, err := bench("-bench", "^BenchmarkGather$/^200$", "-benchtime", "500x", "-memprofile", profile, "-memprofilerate", "1", "-o", binary, input); err != nil {
		return err
	}
	top := exec.Command("go", "tool", "pprof", "-top", "-sample_index=alloc_space", "-nodecount", strconv.Itoa(profiledFunctions), binary, profile)
	listing, err := top.Output()
	if err != nil {
		return fmt.Errorf("%v: %w", top, err)
	}
	fmt.Printf("Where: bytes by function, 200 mounts, 500 gathers\n\n")
	for line := range strings.Lines(string(listing)) {
		if fields := strings.Fields(line); len(fields) >= 6 && strings.HasSuffix(fields[1], "%") {
			fmt.Printf("%7s %s\n", fields[1], strings.Join(fields[5:], " "))
		}
	}
	fmt.Println()
	return nil
}
