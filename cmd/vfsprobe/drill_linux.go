package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/drill"
	"github.com/vfsprobe/vfsprobe/internal/host"
)

const drillUsage = `Makes a mount that hangs for a while, so that alerts and the pager can be tested.
Only root may look at it. A program of root's that looks at all mounts, as df does,
waits until the drill ends, or until the program is killed. The drill ends by itself,
on Ctrl-C, and when it is killed.

Usage: vfsprobe drill [flags]

Flags:
`

// maxDrill is the longest drill.
const maxDrill = time.Hour

// makeDrill is the subcommand drill.
func makeDrill(arguments []string) int {
	flags := flag.NewFlagSet("drill", flag.ContinueOnError)
	duration := flags.Duration("duration", 5*time.Minute, "how long the mount hangs, an hour at most")
	dir := flags.String("mountpoint", "/run/vfsprobe-drill", "the `directory` that hangs; it is made for the drill")
	if code, done := parseFlags(flags, drillUsage, arguments); done {
		return code
	}
	complain := func(err error) int {
		fmt.Fprintf(os.Stderr, "vfsprobe drill: %v\n", err)
		return int(checkup.Unknown)
	}
	if *duration <= 0 || *duration > maxDrill {
		return complain(fmt.Errorf("-duration %v: it must be more than 0, and at most %v", *duration, maxDrill))
	}
	path, err := absolute(*dir)
	if err != nil {
		return complain(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	err = drill.Run(ctx, drill.Options{Dir: path, Duration: *duration, RootCgroups: cgroups.RootProcs("/proc", host.FindRoots(os.Getenv).Sys, false), Began: func() {
		fmt.Printf("%s hangs for %v from now on: a fault of vfsprobe's, with the cause fuse_daemon_silent\n", path, *duration)
	}})
	if err != nil {
		return complain(err)
	}
	fmt.Println("it is over, and gone: what was at fault recovers with the next gather")
	return 0
}
