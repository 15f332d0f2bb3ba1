// Command nfsvm runs vfsprobe against real NFS faults: it boots virtual
// machines with a kernel NFS server and two clients in each, has the scenarios
// run there, and says what came of them. It is the machines' init as well.
// docs/NFS-SCENARIOS.md explains it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/guest"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenarios"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// Exit codes, beside vm.ExitSkipped.
const (
	exitFailed = 1
	exitUsage  = 2
)

// suite is the Debian that the machines run, but for the kernel.
const suite = "bookworm"

func main() {
	guest.Main()
	os.Exit(run())
}

type options struct {
	emulator vm.Emulator
	names    []string
	all      []string // scenarios that there are
	vms      int
	table    string
	record   string
	verbose  bool
}

func parse() (options, error) {
	var o options
	flags := flag.NewFlagSet("nfsvm", flag.ContinueOnError)
	accel := flags.String("accel", "uml", "what runs the machines: uml, kvm or tcg")
	kernel := flags.String("kernel", vm.KernelSuite, "the Debian `suite` whose kernel they have")
	only := flags.String("run", "", "run the scenarios whose names match this `expression` only")
	flags.IntVar(&o.vms, "vms", 2, "how many machines may run at once")
	flags.StringVar(&o.table, "table", "", "write what was seen into this `file`, between the markers of the NFS section")
	flags.StringVar(&o.record, "record", "", "write what was reported during each fault into this `directory`, as line protocol")
	flags.BoolVar(&o.verbose, "v", false, "show the machines' consoles")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return o, err
	}
	var err error
	if o.emulator, err = vm.EmulatorByName(*accel, *kernel); err != nil {
		return o, fmt.Errorf("-accel: %w", err)
	}
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
	if o.all = all; len(o.names) == 0 || o.vms < 1 {
		return o, errors.New("nothing to run")
	}
	return o, longestFirst(o.names)
}

// longestFirst sorts scenarios, so that no machine has a long one left when the others end.
func longestFirst(names []string) error {
	takes := make(map[string]time.Duration)
	for _, name := range names {
		s, err := scenarios.Load(name)
		if err != nil {
			return err
		}
		takes[name] = s.Takes()
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(takes[b], takes[a]) })
	return nil
}

// maxAgain is how many scenarios may fail to be run again.
const maxAgain = 3

// runAgain runs the few scenarios that have failed once more, one machine at a
// time, and replaces their results. On a busy host a machine can miss the ten
// seconds of a grace period, or be too slow to end its helpers.
func runAgain(ctx context.Context, o options, image *vm.Image, results []*report.Result) (int, error) {
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
	second, err := runAll(ctx, o, image, print)
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
	image, err := prepare(ctx, o)
	if err != nil {
		return withoutMachine(o, err)
	}
	defer image.Remove()

	fmt.Println(heading())
	var counts report.Counts
	var skipped int
	results, err := runAll(ctx, o, image, print)
	if err != nil && len(results) == 0 {
		return withoutMachine(o, err)
	}
	again := 0
	if err == nil {
		again, err = runAgain(ctx, o, image, results)
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
		if err := report.WriteTable(o.table, results, o.all); err != nil {
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
		return vm.ExitSkipped
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

// withoutMachine names the scenarios that were not run, and why.
func withoutMachine(o options, err error) int {
	for _, name := range o.names {
		fmt.Println("SKIP ", name)
	}
	if errors.As(err, new(vm.Unavailable)) {
		fmt.Printf("\nskipped, since %v\n0 passed, 0 failed, %d skipped\n", err, len(o.names))
		return vm.ExitSkipped
	}
	fmt.Printf("\n%v\n0 passed, 1 failed, %d skipped\n", err, len(o.names))
	return exitFailed
}

// prepare builds what the machines start from.
func prepare(ctx context.Context, o options) (*vm.Image, error) {
	if err := o.emulator.Available(); err != nil {
		return nil, err
	}
	own, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("looking for this program: %w", err)
	}
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return nil, err
	}
	telegraf, err := programs.Telegraf()
	if err != nil {
		return nil, err
	}
	tests, testdata, err := programs.EndToEndTests()
	if err != nil {
		return nil, err
	}
	base := vm.NFSBase(suite)
	base.Packages = append(base.Packages, "nfs-ganesha", "nfs-ganesha-vfs")
	config := vm.Config{
		Emulator: o.emulator,
		Base:     base,
		// The kernel's parts that may be modules.
		Modules: []string{"lockd", "nfs", "nfsv3", "nfsv4", "nfsd", "veth", "brd", "ext4", "fuse", "crc32c_generic",
			"ip_tables", "iptable_filter", "ipt_REJECT", "xt_tcpudp"},
		Init: vm.Program(own),
		Files: []vm.File{{From: vfsprobe, Name: "opt/vfsprobe"}, {From: telegraf, Name: "opt/telegraf"},
			{From: tests, Name: "opt/e2e.test"}, {From: testdata, Name: "opt/testdata/vfsprobe.toml"},
			{From: filepath.Join(filepath.Dir(testdata), "../dashboards/prometheus/telegraf-prometheus.conf"), Name: "opt/telegraf-prometheus.conf"}},
		Logf: func(format string, args ...any) { fmt.Printf("      "+format+"\n", args...) },
	}
	if o.verbose {
		config.Console = os.Stderr
	}
	return vm.Build(ctx, config)
}
