package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/plugins/inputs/dentrycache"
)

const dentriesUsage = `vfsprobe dentries prints which directories and processes fill the dentry cache
now. Rates are those of one interval. It needs root, or CAP_BPF, CAP_PERFMON and
CAP_SYS_PTRACE.

With -free it frees the names that do not exist in one directory, by reclaiming
memory of the cgroup that holds them. It says what it will do, and asks first.

Usage: vfsprobe dentries [flags]

Flags:
`

// clear makes a terminal empty.
const clear = "\x1b[H\x1b[2J\x1b[3J"

func showDentries(arguments []string) int {
	lines := newLog(os.Stderr)
	defer lines.Flush(logFlushTimeout)
	own := lines.Named("vfsprobe")

	flags := flag.NewFlagSet("vfsprobe dentries", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("config", "", "use the first [[inputs.dentrycache]] of this `file`")
	watch := flags.Bool("watch", false, "show it again after every -interval, until interrupted")
	interval := flags.Duration("interval", 2*time.Second, "how long to count for the rates")
	free := flags.String("free", "", "ask, and then free the names that do not exist in this `directory`")
	group := flags.String("cgroup", "", "with -free: reclaim the memory of this `cgroup`, instead of the one that holds most of the names")
	switch err := flags.Parse(arguments); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(dentriesUsage)
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
		return 0
	case err != nil:
		own.Error(err)
		return exitUsage
	case flags.NArg() > 0:
		own.Errorf("unknown argument %q; -help lists the flags", flags.Arg(0))
		return exitUsage
	case *free != "" && !filepath.IsAbs(*free), *free == "" && *group != "":
		own.Error("-free takes an absolute path, and -cgroup belongs to it")
		return exitUsage
	case *interval <= 0:
		own.Errorf("-interval %v: it must be more than 0", *interval)
		return exitUsage
	}
	p := prober.New(prober.Options{Warnf: own.Warnf})
	defer p.Close()
	h := newHost(p)
	h.SetLog(own)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *free != "" {
		f := dentrycache.Freeing{Directory: filepath.Clean(*free), Cgroup: *group, Host: h, In: os.Stdin, Out: os.Stdout}
		if err := f.Run(ctx); err != nil {
			own.Error(err)
			return exitFailure
		}
		return 0
	}
	input, err := dentriesInput(h, *file)
	if err != nil {
		logLines(own.Error, err)
		return exitFailure
	}
	input.UseHost(h)
	input.Log, input.Eager = lines.Named("inputs.dentrycache"), true
	if err := input.Init(); err != nil {
		logLines(own.Error, err)
		return exitFailure
	}
	if err := refresh(ctx, input, *interval, *watch); err != nil {
		own.Error(err)
		return exitFailure
	}
	return 0
}

// dentriesInput is the input as the file has it.
func dentriesInput(h *host.Host, file string) (*dentrycache.DentryCache, error) {
	selected, err := selectInputs(h, file)
	if err != nil {
		return nil, err
	}
	for _, s := range selected {
		if input, ok := s.Plugin.(*dentrycache.DentryCache); ok {
			return input, nil
		}
	}
	return nil, fmt.Errorf("%s: there is no [[inputs.dentrycache]]", file)
}

// refresh prints once, or with watch until ctx ends. What comes first is not
// shown: it has no rates.
func refresh(ctx context.Context, d *dentrycache.DentryCache, interval time.Duration, watch bool) error {
	if _, _, err := execd.Collect(d); err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if watch && checkup.IsTerminal(os.Stdout) {
			fmt.Print(clear)
		}
		metrics, problems, err := execd.Collect(d)
		if err != nil {
			return err
		}
		if err := checkup.WriteDentries(os.Stdout, metrics, problems); err != nil || !watch {
			return err
		}
		fmt.Println()
	}
}
