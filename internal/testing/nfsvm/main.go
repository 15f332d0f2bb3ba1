// Command nfsvm runs vfsprobe against real NFS faults: it boots virtual
// machines with a kernel NFS server and two clients in each, has the scenarios
// run there, and says what came of them. It is the machines' init as well.
// docs/NFS-SCENARIOS.md explains it.
package main

import (
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/guest"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/image"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/machine"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenarios"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// Exit codes. Skipped is the one that test drivers such as automake's know.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitSkipped = 77
)

func main() {
	guest.Main()
	os.Exit(run())
}

type options struct {
	kind    machine.Kind
	names   []string
	vms     int
	table   string
	record  string
	verbose bool
}

func parse() (options, error) {
	var o options
	flags := flag.NewFlagSet("nfsvm", flag.ContinueOnError)
	accel := flags.String("accel", "uml", "what runs the machines: uml, kvm or tcg")
	only := flags.String("run", "", "run the scenarios whose names match this `expression` only")
	flags.IntVar(&o.vms, "vms", 2, "how many machines may run at once")
	flags.StringVar(&o.table, "table", "", "write what was seen into this `file`, between the markers of the NFS section")
	flags.StringVar(&o.record, "record", "", "write what was reported during each fault into this `directory`, as line protocol")
	flags.BoolVar(&o.verbose, "v", false, "show the machines' consoles")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return o, err
	}
	i := slices.IndexFunc(machine.Kinds(), func(k machine.Kind) bool { return k.Name == *accel })
	if i < 0 {
		return o, fmt.Errorf("unknown -accel %q", *accel)
	}
	o.kind = machine.Kinds()[i]
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return o, err
	}
	all, err := scenarios.Names()
	if err != nil {
		return o, err
	}
	for _, name := range all {
		if pattern.MatchString(name) {
			o.names = append(o.names, name)
		}
	}
	switch {
	case len(o.names) == 0 || o.vms < 1:
		return o, errors.New("nothing to run")
	case o.table != "" && len(o.names) < len(all):
		return o, errors.New("a table of some of the scenarios would lack the others")
	}
	return o, nil
}

// maxAgain is how many scenarios may fail to be run again.
const maxAgain = 3

// runAgain runs the few scenarios that have failed once more, one machine at a
// time, and replaces their results. On a busy host a machine can miss the ten
// seconds of a grace period, or be too slow to end its helpers.
func runAgain(ctx context.Context, o options, initrd string, results []*report.Result) (int, error) {
	var failed []string
	for _, r := range results {
		if r.Count().Failed > 0 {
			failed = append(failed, r.Scenario)
		}
	}
	if len(failed) == 0 || len(failed) > maxAgain {
		return 0, nil
	}
	fmt.Println("\nonce more:", strings.Join(failed, ", "))
	o.names, o.vms = failed, 1
	second, err := runAll(ctx, o, initrd, print)
	for _, r := range second {
		i := slices.IndexFunc(results, func(first *report.Result) bool { return first.Scenario == r.Scenario })
		results[i] = r
	}
	return len(failed), err
}

func run() int {
	o, err := parse()
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "nfsvm:", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	initrd, err := prepare(ctx, o)
	if err != nil {
		return withoutMachine(o, err)
	}
	defer os.RemoveAll(filepath.Dir(initrd))

	fmt.Println(heading())
	var counts report.Counts
	var skipped int
	results, err := runAll(ctx, o, initrd, print)
	if err != nil && len(results) == 0 {
		return withoutMachine(o, err)
	}
	again := 0
	if err == nil {
		again, err = runAgain(ctx, o, initrd, results)
	}
	for _, r := range results {
		c := r.Count()
		counts.Passed += c.Passed
		counts.Failed += c.Failed
		counts.ExpectedToFail += c.ExpectedToFail
	}
	if err != nil {
		counts.Failed++
		fmt.Println("FAIL ", err)
	}
	for _, name := range o.names {
		if !slices.ContainsFunc(results, func(r *report.Result) bool { return r.Scenario == name }) {
			skipped++
			fmt.Println("SKIP ", name)
		}
	}
	if o.table != "" && err == nil {
		if err := report.WriteTable(o.table, results); err != nil {
			fmt.Println(err)
			counts.Failed++
		}
	}
	if o.record != "" {
		if err := record(o.record, results); err != nil {
			fmt.Println(err)
			counts.Failed++
		}
	}
	if again > 0 {
		fmt.Printf("\n%d scenarios had failed and were run again, which counts\n", again)
	}
	fmt.Printf("\n%d scenarios in %v: %d passed, %d failed, %d expected to fail, %d skipped\n",
		len(results), time.Since(began).Round(time.Second), counts.Passed, counts.Failed, counts.ExpectedToFail, skipped)
	switch {
	case counts.Failed > 0:
		return exitFailed
	case skipped > 0:
		return exitSkipped
	}
	return 0
}

// record writes the lines of each scenario into a file named after it.
func record(dir string, results []*report.Result) error {
	for _, r := range results {
		if r.Count().Failed > 0 {
			continue
		}
		file := filepath.Join(dir, r.Scenario+".lp")
		if err := os.WriteFile(file, []byte(strings.Join(r.Lines, "\n")+"\n"), 0o644); err != nil {
			return fmt.Errorf("recording %s: %w", r.Scenario, err)
		}
	}
	return nil
}

// An unavailable machine can't be had here: something is missing that is not
// part of the project.
type unavailable struct{ error }

func (u unavailable) Unwrap() error { return u.error }

// withoutMachine names the scenarios that were not run, and why.
func withoutMachine(o options, err error) int {
	for _, name := range o.names {
		fmt.Println("SKIP ", name)
	}
	if errors.As(err, new(unavailable)) {
		fmt.Printf("\nskipped, since %v\n0 passed, 0 failed, %d skipped\n", err, len(o.names))
		return exitSkipped
	}
	fmt.Printf("\n%v\n0 passed, 1 failed, %d skipped\n", err, len(o.names))
	return exitFailed
}

// prepare builds what the machines start from.
func prepare(ctx context.Context, o options) (initrd string, err error) {
	if missing, packages := o.kind.Missing(); len(missing) > 0 {
		return "", unavailable{fmt.Errorf("of what it needs, these are missing: %s; get them, as root, with: apt-get install %s",
			strings.Join(missing, ", "), strings.Join(packages, " "))}
	}
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	if err := static(own); err != nil {
		return "", err
	}
	began := time.Now()
	base, err := image.Base(ctx, func() {
		fmt.Println("building the root file system, once")
	})
	if err != nil {
		why := "it needs a Debian mirror"
		if os.Getuid() != 0 {
			why = "it needs root, once, and a Debian mirror"
		}
		return "", unavailable{fmt.Errorf("the root file system can't be built (%s): %w", why, err)}
	}
	if took := time.Since(began); took > time.Second {
		fmt.Printf("root file system built in %v\n", took.Round(time.Second))
	}
	modules, err := o.kind.Modules()
	if err != nil {
		return "", unavailable{err}
	}
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return "", err
	}
	telegraf, err := programs.Telegraf()
	if err != nil {
		return "", err
	}
	tests, testdata, err := programs.EndToEndTests()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "nfsvm-")
	if err != nil {
		return "", err
	}
	initrd = filepath.Join(dir, "initrd")
	err = image.Compose(initrd, base, modules, []image.Program{
		{From: own, Name: "init"}, {From: vfsprobe, Name: "opt/vfsprobe"}, {From: telegraf, Name: "opt/telegraf"},
		{From: tests, Name: "opt/e2e.test"}, {From: testdata, Name: "opt/testdata/vfsprobe.toml"}})
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return initrd, nil
}

// static fails for a program that needs a loader, which the machine's init
// can't count on.
func static(binary string) error {
	file, err := elf.Open(binary)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("this program is not static: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

func console(verbose bool, tail *lastBytes) io.Writer {
	if verbose {
		return io.MultiWriter(os.Stderr, tail)
	}
	return tail
}
