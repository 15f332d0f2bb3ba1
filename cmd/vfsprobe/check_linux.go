package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/hostreport"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

const checkUsage = `Gathers once and tells what is at fault on this host, and why.

Usage: vfsprobe check [flags]

The exit code is 0 if all is well, 1 for a warning, 2 for a fault, and 3 if not
everything could be looked at, or the configuration is bad. With -problem it prints one line, and
the exit code is that of a plugin of node-problem-detector: 0 if there is no fault, 1
if there is one, and 2 if that is not known.

Flags:
`

// deliverTimeout is how long a report waits for somebody to read it.
const deliverTimeout = 10 * time.Second

// parseFlags parses the flags of a subcommand that takes no other arguments. If there is nothing
// more to do, it says so and returns the exit code.
func parseFlags(flags *flag.FlagSet, usage string, arguments []string) (code int, done bool) {
	code, done = parseLeading(flags, usage, arguments)
	if !done && flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vfsprobe %s: unknown argument %q; -help lists the flags\n", flags.Name(), flags.Arg(0))
		return int(checkup.Unknown), true
	}
	return code, done
}

// parseLeading is parseFlags for a subcommand that takes arguments after the flags.
func parseLeading(flags *flag.FlagSet, usage string, arguments []string) (code int, done bool) {
	flags.SetOutput(io.Discard)
	switch err := flags.Parse(arguments); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
		return 0, true
	case err != nil:
		fmt.Fprintf(os.Stderr, "vfsprobe %s: %v\n", flags.Name(), err)
		return int(checkup.Unknown), true
	}
	return 0, false
}

// check is the subcommand of that name.
func check(arguments []string) int {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	file := flags.String("config", "", "read the inputs from this `file`; without it, all inputs run with their defaults")
	proberOptions := proberFlags(flags)
	timeout := flags.Duration("timeout", 45*time.Second, "how long to wait for what does not answer")
	all := flags.Bool("all", false, "list what is healthy as well")
	asJSON := flags.Bool("json", false, "print a JSON object")
	explain := flags.Bool("explain", false, "tell how to prove each cause, and everything that can be done")
	watch := flags.Bool("watch", false, "show it again after every -interval, until interrupted")
	interval := flags.Duration("interval", 5*time.Second, "how often to look, with -watch")
	problem := flags.Bool("problem", false, "print one line, and exit as node-problem-detector expects")
	hostReport := flags.String("host-report", "", "write what a ticket about the faults should have to this `file`; with - to stdout, instead of the answer")
	mask := flags.Bool("mask", false, "replace names and addresses in the -host-report by words")
	if code, done := parseFlags(flags, checkUsage, arguments); done {
		return code
	}
	code := func(s checkup.Status) int { return int(s) }
	if *problem {
		code = problemCode
	}
	complain := func(err error) int {
		fmt.Fprintf(os.Stderr, "vfsprobe check: %v\n", err)
		return code(checkup.Unknown)
	}
	if *timeout <= 0 || *interval <= 0 {
		return complain(fmt.Errorf("-timeout %v, -interval %v: they must be more than 0", *timeout, *interval))
	}

	// What the prober has to warn of shows in the results.
	p := newProber(proberOptions)
	defer p.Close()
	h := newHost(p)
	h.Servers.AtOnce = true
	selected, err := selectInputs(h, *file)
	if err != nil {
		return complain(err)
	}
	signal.Ignore(syscall.SIGPIPE)
	faults := &hostreport.Collector{}
	if *hostReport != "" {
		h.Recorder = faults
	}
	progress := checkup.Show(os.Stderr, "checking", *timeout)
	c, err := checkup.New(checkup.Options{Inputs: selected, Host: h, Timeout: *timeout, Arrived: func(rows int) {
		progress.Update(fmt.Sprintf("checking: %d answered", rows))
	}})
	if err != nil {
		progress.Stop()
		if *file != "" {
			err = fmt.Errorf("%s: %w", *file, err)
		}
		return complain(err)
	}
	report := c.Report()
	progress.Stop()
	if *hostReport != "" {
		if err := writeHostReport(h, *hostReport, report, faults.Faults(), *mask); err != nil {
			return complain(err)
		}
		if *hostReport == "-" {
			return report.Code
		}
	}
	options := checkup.TextOptions{All: *all, Explain: *explain, Color: checkup.WantsColor(os.Stdout, os.LookupEnv)}
	write := func(w io.Writer, report *checkup.Report) error {
		switch {
		case *problem:
			_, err := fmt.Fprintln(w, report.Summary)
			return err
		case *asJSON:
			return report.JSON(w)
		}
		return report.Text(w, options)
	}
	if *watch {
		return complain(repeat(c, report, write, *interval))
	}
	var content bytes.Buffer
	if err := write(&content, report); err != nil {
		return complain(err)
	}
	// A reader that has had enough, or reads nothing, still gets the exit code.
	_ = checkup.Deliver(os.Stdout, content.Bytes(), deliverTimeout)
	return code(report.Status)
}

// repeat shows a report, and looks again after every interval, until it can't be shown.
func repeat(c *checkup.Checkup, report *checkup.Report, write func(io.Writer, *checkup.Report) error, interval time.Duration) error {
	for {
		var content bytes.Buffer
		if err := write(&content, report); err != nil {
			return err
		}
		if err := checkup.Paint(os.Stdout, content.Bytes()); err != nil {
			return err
		}
		time.Sleep(interval)
		report = c.Report()
	}
}

// problemCode is the exit code of a plugin of node-problem-detector's: 0 clears the
// condition, 1 sets it, and others say that nothing is known.
func problemCode(s checkup.Status) int {
	switch s {
	case checkup.OK, checkup.Warning:
		return 0
	case checkup.Critical:
		return 1
	}
	return 2
}

// writeHostReport writes the file for a ticket: what check says, and what is behind it.
func writeHostReport(h *host.Host, name string, said *checkup.Report, faults []*fault.Report, masked bool) error {
	var mask *hostreport.Mask
	if masked {
		mask = hostreport.NewMask()
		for i := range said.Metrics {
			for tag, kind := range map[string]string{"path": "mount", "device": "device", "server": "server", "container": "container"} {
				mask.Name(kind, said.Metrics[i].Tags[tag])
			}
		}
	}
	var content bytes.Buffer
	if err := said.Text(&content, checkup.TextOptions{Explain: true}); err != nil {
		return err
	}
	behind := hostreport.Text(h, faults, hostreport.Options{Version: buildVersion(), Mask: mask}) // from which the mask learns names
	text := content.Bytes()
	if masked {
		text = mask.Apply(text)
	}
	text = append(append(text, '\n'), behind...)
	if name == "-" {
		return checkup.Deliver(os.Stdout, text, deliverTimeout)
	}
	path, err := absolute(name)
	if err != nil {
		return err
	}
	if err := state.WriteFile(h.Prober, path, text); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	fmt.Fprintf(os.Stderr, "the report for the ticket is %s\n", path)
	return nil
}
