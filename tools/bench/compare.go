package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	compareRounds  = 3
	compareGathers = 5 // of a round, after two more
	// compareIntervals is how many gathers there are of what gathers at an interval.
	compareIntervals = 3
	// hungInterval is the interval while mounts hang; gathers are made hungIntervals
	// times.
	hungInterval  = 3 * time.Second
	hungIntervals = 4
	// telegrafWrites is how often Telegraf is made to write what it has.
	telegrafWrites = time.Second
	// manyMounts is from where on the shell's loop is measured once.
	manyMounts = 1000
)

var compareSizes = []int{20, 200, 1000, 5000}

// A program is one that tells how full file systems are.
type program struct {
	name string
	// start starts it to watch the mounts. One that gathers at an interval of its
	// own does so at the given one; one that is asked is given up after it.
	start    func(a *agent, dir string, set *mountSet, interval time.Duration) error
	paced    bool // it has an interval of its own
	oneByOne bool // it starts a program for each mount, one after the other
}

type comparison struct {
	dir       string
	raw       *csv.Writer
	baselines *baselines
	programs  []program
}

// measureCompare compares whole gathers of vfsprobe with those of other programs
// which tell how full file systems are, and with the limit of their checks. The
// arguments are a directory for temporary files, the file to write all values to,
// and an earlier vfsprobe; the last two may be empty.
func measureCompare(arguments []string) error {
	dir, file, before := arguments[0], arguments[1], arguments[2]
	baselines, err := buildBaselines(dir)
	if err != nil {
		return err
	}
	c := &comparison{dir: dir, baselines: baselines}
	if file != "" {
		out, err := os.Create(file)
		if err != nil {
			return err
		}
		defer out.Close()
		c.raw = csv.NewWriter(out)
		_ = c.raw.Write([]string{"mounts", "hanging", "program", "round", "cpu_ms", "wall_ms", "points", "healthy"})
		defer func() {
			c.raw.Flush()
			if err := c.raw.Error(); err != nil {
				warn("writing %s: %v", file, err)
			}
		}()
	}
	if err := c.findPrograms(before); err != nil {
		return err
	}
	for _, n := range compareSizes {
		if err := c.compare(n); err != nil {
			return fmt.Errorf("%d mounts: %w", n, err)
		}
	}
	return c.compareSuperblocks()
}

func (c *comparison) findPrograms(before string) error {
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return err
	}
	telegraf, err := programs.Telegraf()
	if err != nil {
		return err
	}
	ours := func(name, executable string) program {
		return program{name: name, start: func(a *agent, dir string, set *mountSet, _ time.Duration) error {
			return startVfsprobe(a, dir, executable, set.glob())
		}}
	}
	c.programs = []program{
		ours("vfsprobe, mountstat", vfsprobe),
		{paced: true, name: "Telegraf with vfsprobe", start: func(a *agent, dir string, set *mountSet, interval time.Duration) error {
			return startTelegrafWithVfsprobe(a, dir, telegraf, vfsprobe, set.glob(), interval)
		}},
		{paced: true, name: "Telegraf, inputs.disk", start: func(a *agent, dir string, set *mountSet, interval time.Duration) error {
			return startTelegrafWithDisk(a, dir, telegraf, set.paths, interval)
		}},
	}
	if exporter, err := programs.Packaged("prometheus-node-exporter"); err != nil {
		fmt.Printf("node_exporter is not compared: %v\n\n", err)
	} else {
		c.programs = append(c.programs, program{name: "node_exporter, filesystem", start: func(a *agent, dir string, set *mountSet, interval time.Duration) error {
			return startNodeExporter(a, dir, exporter, slices.Clone(set.others), interval)
		}})
	}
	if before != "" {
		c.programs = append(c.programs, ours("vfsprobe, before", before))
	}
	c.programs = append(c.programs, program{name: "sh: timeout -s9 5 stat -f, each", oneByOne: true, start: func(a *agent, dir string, set *mountSet, _ time.Duration) error {
		return startShell(a, dir, set.paths)
	}})
	return nil
}

// begin starts a program, in a directory and a cgroup of its own.
func (c *comparison) begin(p *program, set *mountSet, interval time.Duration) (*agent, error) {
	dir, err := os.MkdirTemp(c.dir, "program")
	if err != nil {
		return nil, err
	}
	group, err := newCgroup(c.dir)
	if err != nil {
		return nil, err
	}
	a := newAgent(group, newSightings(set.healthy(0)))
	if err := p.start(a, dir, set, interval); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", p.name, err), a.end())
	}
	return a, nil
}

// compare measures n mounts.
func (c *comparison) compare(n int) (err error) {
	set, err := newMountSet(filepath.Join(c.dir, strconv.Itoa(n)), n)
	if err != nil {
		return err
	}
	defer set.close()
	if err := c.compareHealthy(set); err != nil {
		return err
	}
	for _, hanging := range []int{max(n/100, 1), n / 10} {
		if err := c.compareHung(set, hanging); err != nil {
			return fmt.Errorf("%d hang: %w", hanging, err)
		}
	}
	return nil
}

func (c *comparison) compareHealthy(set *mountSet) error {
	n := len(set.paths)
	limit := c.baselines.measuredLimit(mountChecks, callReaddir, set.paths...)
	cpu, wall := make([]series, len(c.programs)), make([]series, len(c.programs))
	for round := range compareRounds {
		spent, took, err := limit.measure()
		if err != nil {
			return fmt.Errorf("%s: %w", limit.name, err)
		}
		// Of a check of each mount.
		spent, took = spent*float64(n)/1000, took*float64(n)/1000
		limit.cpu, limit.wall = append(limit.cpu, spent), append(limit.wall, took)
		c.record(n, 0, limit.name, round, spent, took, n, n)
		for i, p := range c.programs {
			if p.oneByOne && n >= manyMounts && round > 0 {
				continue
			}
			spent, took, err := c.measure(&p, set)
			if err != nil {
				warn("%s: %v; once more", p.name, err)
				spent, took, err = c.measure(&p, set)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			cpu[i], wall[i] = append(cpu[i], spent), append(wall[i], took)
			c.record(n, 0, p.name, round, spent, took, n, n)
		}
	}
	fmt.Printf("A gather of %d mounts, all healthy: %d tmpfs, %d FUSE\n\n", n, n-len(set.fuse), len(set.fuse))
	print := func(title string, limits series, values []series) {
		printRow(title, "  ms per gather, by round", "ratio to vfsprobe", "", "ratio to the limit")
		row := func(name string, values, ours series) {
			printRow(name, values.raw(), values.over(ours).String(), "", values.over(limits).String())
		}
		row(limit.name, limits, values[0])
		for i, p := range c.programs {
			row(p.name, values[i], values[0])
		}
	}
	print("CPU, user and system, all processes", limit.cpu, cpu)
	print("Wall time, same gathers", limit.wall, wall)
	fmt.Println()
	return nil
}

// record writes a row of the raw values.
func (c *comparison) record(n, hanging int, name string, round int, cpu, wall float64, points, healthy int) {
	if c.raw == nil {
		return
	}
	took := ""
	if wall > 0 {
		took = fmt.Sprintf("%.3f", wall)
	}
	_ = c.raw.Write([]string{strconv.Itoa(n), strconv.Itoa(hanging), name, strconv.Itoa(round + 1),
		fmt.Sprintf("%.3f", cpu), took, strconv.Itoa(points), strconv.Itoa(healthy)})
}

// measure returns the milliseconds of CPU and of wall time that a gather takes.
func (c *comparison) measure(p *program, set *mountSet) (cpu, wall float64, err error) {
	interval := patience
	if p.paced {
		interval = time.Second
		if len(set.paths) > manyMounts {
			interval *= 2
		}
	}
	a, err := c.begin(p, set, interval)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	switch {
	case p.paced:
		return a.measureIntervals(interval)
	case p.oneByOne:
		return a.measureGathers(0, 1)
	}
	return a.measureGathers(2, compareGathers)
}

// measureGathers takes the means of n gathers, one after the other, after some
// which fill caches.
func (a *agent) measureGathers(warm, n int) (cpu, wall float64, err error) {
	var before time.Duration
	for i := range warm + n {
		if i == warm {
			if before, err = a.cgroup.cpu(); err != nil {
				return 0, 0, err
			}
		}
		took, err := a.gatherAll()
		if err != nil {
			return 0, 0, err
		}
		if i >= warm {
			wall += milliseconds(took)
		}
	}
	after, err := a.cgroup.cpu()
	return milliseconds(after-before) / float64(n), wall / float64(n), err
}

// gatherAll gathers once, and returns how long that took. Each mount must be seen.
func (a *agent) gatherAll() (time.Duration, error) {
	a.seen.again()
	began := time.Now()
	if err := a.gather(); err != nil {
		return 0, fmt.Errorf("asking for a gather: %w", err)
	}
	select {
	case ended := <-a.ended:
		if ended.IsZero() {
			return 0, errors.New("a gather failed")
		}
		// The last lines may not have been read yet.
		return ended.Sub(began), await("the points of all mounts", a.seen.all)
	case <-time.After(patience):
		return 0, fmt.Errorf("a gather has not ended within %v", patience)
	}
}

// measureIntervals takes the means of some intervals, with a gather in each.
func (a *agent) measureIntervals(interval time.Duration) (cpu, wall float64, err error) {
	if err := await("the points of all mounts", a.seen.all); err != nil {
		return 0, 0, err
	}
	var before time.Duration
	for i := range compareIntervals + 1 {
		// Shortly before the next gather, so that the last one has ended.
		next := time.Now().Add(interval / 10).Truncate(interval).Add(interval)
		time.Sleep(time.Until(next.Add(-interval / 10)))
		spent, err := a.cgroup.cpu()
		if err != nil {
			return 0, 0, err
		}
		if i == 0 {
			before = spent
			a.seen.times()
			continue
		}
		cpu, wall = milliseconds(spent-before), wall+milliseconds(a.seen.lasted())
	}
	// Telegraf writes once a second, so the last ones may not have come.
	if times := a.seen.times(); times < compareIntervals-1 {
		return 0, 0, fmt.Errorf("%.1f gathers in %d intervals of %v", times, compareIntervals, interval)
	}
	return cpu / compareIntervals, wall / compareIntervals, nil
}

// A standing is how a program got along while mounts hung.
type standing struct {
	points        []int     // of healthy mounts, by interval
	walls         []float64 // ms, of the gather that began in each interval; 0 where that is not known
	cpu           float64
	before, after census
	stopped       string
	left          census // processes, once it was to have stopped
	err           error
}

// compareHung makes some mounts hang: for vfsprobe alone and below Telegraf, then for
// the other programs, side by side.
func (c *comparison) compareHung(set *mountSet, hanging int) error {
	standings := make([]standing, len(c.programs))
	for _, some := range [][]int{{0, 1}, others(len(c.programs))} {
		if err := c.standBy(set, hanging, some, standings); err != nil {
			return err
		}
	}
	healthy := len(set.paths) - hanging
	fmt.Printf("%d mounts, of them hanging: %d; a gather every %v, timeout %v\n\n", len(set.paths), hanging, hungInterval, hungTimeout)
	row := func(name, points, cpu, threads, hang, stopped string) {
		fmt.Println(strings.TrimRight(fmt.Sprintf("%-32s %-*s %9s  %-12s %4s  %s", name, 7*hungIntervals, points, cpu, threads, hang, stopped), " "))
	}
	row("", fmt.Sprintf(" points of %d, by interval", healthy), "CPU, ms", "threads", "hang", "stopped")
	var walls strings.Builder
	for i, p := range c.programs {
		s := &standings[i]
		var points strings.Builder
		fmt.Fprintf(&walls, "%-32s ", p.name)
		for round, n := range s.points {
			fmt.Fprintf(&points, "%7d", n)
			wall := "-"
			if s.walls[round] > 0 {
				wall = fmt.Sprintf("%.2f", s.walls[round]/1000)
			}
			fmt.Fprintf(&walls, "%7s", wall)
			c.record(len(set.paths), hanging, p.name, round, s.cpu, s.walls[round], n, healthy)
		}
		walls.WriteByte('\n')
		stopped := s.stopped
		if s.left.processes > 0 {
			stopped += fmt.Sprintf("; left: %d", s.left.processes)
		}
		row(p.name, points.String(), fmt.Sprintf("%.2f", s.cpu), fmt.Sprintf("%d -> %d", s.before.threads, s.after.threads),
			strconv.Itoa(s.after.hanging), stopped)
	}
	fmt.Printf("Wall time, same gathers           s, by interval\n%s\n", walls.String())
	return nil
}

// others are the numbers from 2 to below n.
func others(n int) (all []int) {
	for i := 2; i < n; i++ {
		all = append(all, i)
	}
	return all
}

// standBy lets some of the programs gather while mounts hang.
func (c *comparison) standBy(set *mountSet, hanging int, some []int, standings []standing) (err error) {
	agents := make(map[int]*agent)
	defer func() {
		err = errors.Join(err, set.heal())
		for i, a := range agents {
			if endErr := a.end(); endErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", c.programs[i].name, endErr))
			}
		}
	}()
	for _, i := range some {
		a, err := c.begin(&c.programs[i], set, hungInterval)
		if err != nil {
			return err
		}
		agents[i] = a
		switch {
		case c.programs[i].oneByOne:
		case c.programs[i].paced:
			err = await("the points of all mounts", a.seen.all)
		default:
			_, err = a.gatherAll()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.programs[i].name, err)
		}
	}
	// Between two gathers of those that have an interval of their own.
	tick := time.Now().Add(hungInterval / 5).Truncate(hungInterval).Add(hungInterval)
	time.Sleep(time.Until(tick.Add(-hungInterval / 10)))
	before := make(map[int]time.Duration)
	for i, a := range agents {
		var err1, err2 error
		before[i], err1 = a.cgroup.cpu()
		standings[i].before, err2 = a.census()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
	}
	if err := set.hang(hanging); err != nil {
		return err
	}
	for _, a := range agents {
		a.seen.want(set.healthy(hanging))
	}
	var ticks []time.Time
	for range hungIntervals {
		time.Sleep(time.Until(tick))
		for i, a := range agents {
			if a.gather == nil || c.programs[i].oneByOne && !a.idle() {
				continue
			}
			if err := a.ask(); err != nil {
				return err
			}
		}
		ticks = append(ticks, tick)
		tick = tick.Add(hungInterval)
	}
	time.Sleep(time.Until(tick.Add(-hungInterval / 10)))
	spent := make(map[int]time.Duration)
	for i, a := range agents {
		var err1, err2 error
		spent[i], err1 = a.cgroup.cpu()
		standings[i].after, err2 = a.census()
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
	}
	time.Sleep(2 * telegrafWrites) // the last points
	var stops sync.WaitGroup
	for i, a := range agents {
		stops.Go(func() {
			s := &standings[i]
			for _, tick := range ticks {
				s.points = append(s.points, a.seen.during(tick))
				s.walls = append(s.walls, milliseconds(a.took(tick)))
			}
			s.cpu = milliseconds(spent[i]-before[i]) / hungIntervals
			s.stopped = a.stop()
			s.left, s.err = a.census()
		})
	}
	stops.Wait()
	for _, i := range some {
		if err := standings[i].err; err != nil {
			return fmt.Errorf("%s: %w", c.programs[i].name, err)
		}
	}
	return nil
}

// compareSuperblocks tells what vfsprobe's cost depends on: mounts of a superblock
// that is checked anyway cost a point each, and no helper.
func (c *comparison) compareSuperblocks() error {
	const superblocks, most = 20, 5000
	dir := filepath.Join(c.dir, "superblocks")
	set, err := newMountSet(dir, superblocks)
	if err != nil {
		return err
	}
	defer set.close()
	fmt.Printf("vfsprobe's gathers, by mounts and superblocks\n\n")
	printRow("", "  ms of CPU per gather, by round", "helpers per gather, about", "")
	row := func(set *mountSet, superblocks int) error {
		var cpu series
		var helpers float64
		for range compareRounds {
			spent, forked, err := c.measureHelpers(&c.programs[0], set)
			if err != nil {
				return err
			}
			cpu, helpers = append(cpu, spent), forked
		}
		name := fmt.Sprintf("%d mounts of %d superblocks", len(set.paths), superblocks)
		printRow(name, cpu.raw(), fmt.Sprintf("%.0f", helpers), "")
		return nil
	}
	if err := row(set, superblocks); err != nil {
		return err
	}
	for i := superblocks; i < most; i++ {
		path := filepath.Join(dir, "mounts", strconv.Itoa(i))
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(set.paths[i%superblocks], path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting on %s: %w", path, err)
		}
		set.paths = append(set.paths, path)
	}
	if err := row(set, superblocks); err != nil {
		return err
	}
	set.close()
	all, err := newMountSet(filepath.Join(c.dir, "all"), most)
	if err != nil {
		return err
	}
	defer all.close()
	if err := row(all, most); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

// measureHelpers returns the milliseconds of CPU, and the helpers, of a gather.
func (c *comparison) measureHelpers(p *program, set *mountSet) (cpu, helpers float64, err error) {
	a, err := c.begin(p, set, patience)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	// Of a long gather the number of helpers is told after 0.1 s, so it is compared
	// with that of a gather of the same length.
	if _, _, err := a.measureGathers(0, 3); err != nil {
		return 0, 0, err
	}
	before := a.helpers()
	cpu, _, err = a.measureGathers(0, compareGathers)
	return cpu, float64(a.helpers()-before) / compareGathers, err
}
