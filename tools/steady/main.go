// Command steady runs each test that has a time in it alone, many times, beside a load
// of busy loops, and prints how often it passed: what fails there asserts more than a
// loaded machine keeps, or tells of a fault. After each package come its tests that were
// skipped, and why.
//
// Usage: steady [flags] [packages]
//
// A test has a time in it if its function, or a function, method, constant or variable
// of its package's test files or of internal/testing that it names, directly or not,
// waits, measures, or names a duration.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	var options options
	flag.BoolVar(&options.list, "list", false, "only list the tests")
	flag.StringVar(&options.run, "run", "", "only tests whose names this `expression` matches")
	flag.StringVar(&options.skip, "skip", "^$", "no tests whose names this `expression` matches")
	flag.IntVar(&options.times, "times", 20, "runs of each test")
	flag.DurationVar(&options.most, "most", time.Minute, "a test that takes longer with all its runs has fewer, but 3")
	flag.IntVar(&options.load, "load", 2, "busy loops beside it")
	flag.IntVar(&options.lanes, "lanes", 1, "tests at a time, each in a process of its own")
	flag.BoolVar(&options.race, "race", false, "with the race detector")
	busy := flag.Bool("busy", false, "be a busy loop")
	flag.Parse()
	if *busy {
		for spun := 0; ; spun++ {
		}
	}
	unsteady, err := options.steady(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "steady:", err)
		os.Exit(2)
	}
	if unsteady {
		os.Exit(1)
	}
}

type options struct {
	list      bool
	run, skip string
	times     int
	most      time.Duration
	load      int
	lanes     int
	race      bool
}

// steady runs the tests of the packages that go list's patterns name, and returns
// whether one failed.
func (o options) steady(patterns []string) (unsteady bool, err error) {
	run, err := regexp.Compile(o.run)
	if err != nil {
		return false, fmt.Errorf("-run: %w", err)
	}
	skip, err := regexp.Compile(o.skip)
	if err != nil {
		return false, fmt.Errorf("-skip: %w", err)
	}
	packages, err := listPackages(patterns)
	if err != nil {
		return false, err
	}
	binaries, err := os.MkdirTemp("", "steady")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(binaries)
	if !o.list {
		stop, err := startLoad(o.load)
		if err != nil {
			return false, err
		}
		defer stop()
		fmt.Println("passed  runs  skipped  shortest  longest  test (seconds)")
	}
	for i, tested := range packages {
		tests, err := timedTests(tested)
		if err != nil {
			return unsteady, err
		}
		tests = slices.DeleteFunc(tests, func(name string) bool { return !run.MatchString(name) || skip.MatchString(name) })
		if o.list {
			for _, name := range tests {
				fmt.Println(tested.ImportPath, name)
			}
			continue
		}
		if len(tests) == 0 {
			continue
		}
		binary := filepath.Join(binaries, strconv.Itoa(i))
		if err := o.compile(tested, binary); err != nil {
			return unsteady, err
		}
		unsteady = o.runAll(tested, binary, tests) || unsteady
		os.Remove(binary)
	}
	return unsteady, nil
}

// skips are the tests of a package, and parts of tests, that were skipped, by what they said.
type skips map[string][]string

func (s skips) print(path string) {
	for _, reason := range slices.Sorted(maps.Keys(s)) {
		names := s[reason]
		slices.Sort(names)
		fmt.Printf("not run: %d of %s, %s: %s\n", len(names), path, strings.Join(names, ", "), reason)
	}
}

// tested is a package of go list's.
type tested struct {
	Dir, ImportPath                    string
	GoFiles, TestGoFiles, XTestGoFiles []string
}

func listPackages(patterns []string) ([]tested, error) {
	command := exec.Command("go", append([]string{"list", "-json=Dir,ImportPath,GoFiles,TestGoFiles,XTestGoFiles"}, patterns...)...)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []tested
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var one tested
		if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list's answer: %w", err)
		}
		packages = append(packages, one)
	}
}

// startLoad starts busy loops, which end with this process at the latest.
func startLoad(count int) (stop func(), err error) {
	var loops []*exec.Cmd
	stop = func() {
		for _, loop := range loops {
			_ = loop.Process.Kill()
			_ = loop.Wait()
		}
	}
	for range count {
		loop := exec.Command("/proc/self/exe", "-busy")
		loop.Env = append(os.Environ(), "GOMAXPROCS=1")
		loop.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := loop.Start(); err != nil {
			stop()
			return nil, fmt.Errorf("start a busy loop: %w", err)
		}
		loops = append(loops, loop)
	}
	return stop, nil
}

// compile makes the test binary of a package.
func (o options) compile(tested tested, binary string) error {
	arguments := []string{"test", "-c", "-vet", "off", "-ldflags", "-s -w", "-o", binary}
	if o.race {
		arguments = append(arguments, "-race")
	}
	command := exec.Command("go", append(arguments, ".")...)
	command.Dir = tested.Dir
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if o.race {
		command.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if err := command.Run(); err != nil {
		return fmt.Errorf("compile the tests of %s: %w", tested.ImportPath, err)
	}
	return nil
}

// runAll runs each of the tests, prints a row for each when it ends, and what failing
// ones said, and in the end what was skipped.
func (o options) runAll(tested tested, binary string, tests []string) (unsteady bool) {
	var (
		lanes   sync.WaitGroup
		printer sync.Mutex
	)
	notRun := skips{}
	next := make(chan string)
	for range o.lanes {
		lanes.Go(func() {
			for name := range next {
				outcome, said := o.repeat(tested, binary, name)
				printer.Lock()
				fmt.Printf("%6d %5d %8d %9.2f %8.2f  %s %s\n", outcome.passed, outcome.runs(), outcome.skipped,
					slices.Min(outcome.took), slices.Max(outcome.took), tested.ImportPath, name)
				for skipped, reason := range outcome.reasons {
					notRun[reason] = append(notRun[reason], skipped)
				}
				if outcome.failed > 0 {
					unsteady = true
					os.Stdout.Write(said)
				}
				printer.Unlock()
			}
		})
	}
	for _, name := range tests {
		next <- name
	}
	close(next)
	lanes.Wait()
	notRun.print(tested.ImportPath)
	return unsteady
}

// outcome counts the runs of one test.
type outcome struct {
	passed, failed, skipped int
	took                    []float64         // of each run, in seconds
	reasons                 map[string]string // of the test or its parts, why it was skipped
}

func (o outcome) runs() int { return o.passed + o.failed + o.skipped }

// repeat runs a test once, and then as often as it may, in one process of its own; said
// is what the failing runs printed.
func (o options) repeat(tested tested, binary, name string) (all outcome, said []byte) {
	all.reasons = map[string]string{}
	times := 1
	for times > 0 {
		command := exec.Command(binary, "-test.v", "-test.run", "^"+name+"$", "-test.count", strconv.Itoa(times), "-test.timeout", "20m")
		command.Dir = tested.Dir
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		began := time.Now()
		output, err := command.CombinedOutput()
		runs := parse(output, name)
		all.passed += runs.passed
		all.failed += runs.failed
		all.skipped += runs.skipped
		all.took = append(all.took, runs.took...)
		maps.Copy(all.reasons, runs.reasons)
		switch {
		case err == nil:
		case runs.failed == 0: // it died
			all.failed++
			all.took = append(all.took, time.Since(began).Seconds())
			fallthrough
		default:
			said = append(said, failures(output, name)...)
		}
		if all.runs() > 1 || o.times == 1 || all.skipped > 0 {
			break
		}
		times = o.times - 1
		if longest := slices.Max(all.took); longest*float64(times) > o.most.Seconds() {
			times = max(2, int(o.most.Seconds()/longest)-1)
		}
	}
	return all, said
}

// failures is what a test printed with -test.v, without the runs that passed.
func failures(output []byte, name string) (all []byte) {
	for run := range bytes.SplitSeq(output, []byte("=== RUN   "+name+"\n")) {
		if !bytes.Contains(run, []byte("--- PASS: "+name+" (")) && !bytes.Contains(run, []byte("--- SKIP: "+name+" (")) {
			all = append(all, run...)
		}
	}
	return all
}

var (
	began = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)`)
	said  = regexp.MustCompile(`^ +\S+\.go:\d+: (.*)`)
	ended = regexp.MustCompile(`^( *)--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)`)
)

// parse counts the ends of a test in what it printed with -test.v.
func parse(output []byte, name string) (runs outcome) {
	runs.reasons = map[string]string{}
	running, last := "", map[string]string{} // what each said last
	for line := range strings.Lines(string(output)) {
		if parts := began.FindStringSubmatch(line); parts != nil {
			running = parts[1]
		} else if parts := said.FindStringSubmatch(line); parts != nil {
			last[running] = parts[1]
		}
		parts := ended.FindStringSubmatch(line)
		if parts == nil {
			continue
		}
		if parts[2] == "SKIP" {
			runs.reasons[parts[3]] = last[parts[3]]
		}
		if parts[3] != name {
			continue
		}
		seconds, _ := strconv.ParseFloat(parts[4], 64)
		runs.took = append(runs.took, seconds)
		switch parts[2] {
		case "PASS":
			runs.passed++
		case "FAIL":
			runs.failed++
		default:
			runs.skipped++
		}
	}
	return runs
}
