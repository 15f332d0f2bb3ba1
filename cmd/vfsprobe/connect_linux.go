package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"

	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/service"
)

const connectUsage = `vfsprobe connect is what Telegraf runs where vfsprobe is a service: it passes
newlines one way, and metrics and log lines the other. It ends with stdin.

Flags:
`

// defaultSocket is where vfsprobe.service listens.
const defaultSocket = "/run/vfsprobe/socket"

// connect is the subcommand of that name.
func connect(arguments []string) int {
	flags := flag.NewFlagSet("connect", flag.ContinueOnError)
	socket := flags.String("socket", defaultSocket, "connect to this `socket`, where the service listens")
	if code, done := parseFlags(flags, connectUsage, arguments); done {
		return min(code, exitUsage)
	}
	lines := newLog(os.Stderr)
	defer lines.Flush(logFlushTimeout)
	signal.Ignore(syscall.SIGPIPE) // a closed stdout is an error to report
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client := &service.Client{Socket: *socket, Stdout: os.Stdout, Stderr: lines, Log: lines.Named("vfsprobe connect")}
	go func() {
		execd.ReadLines(os.Stdin, client.Trigger)
		stop()
	}()
	if err := client.Run(ctx); err != nil {
		lines.Named("vfsprobe connect").Error(err)
		return exitFailure
	}
	return 0
}
