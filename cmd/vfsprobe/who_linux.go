package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/mountusers"
)

const whoUsage = `Tells which processes use a mount, without touching it. So it does not hang where
the mount hangs, as lsof and fuser do. Only root sees the processes of other users.

Usage: vfsprobe who [flags] MOUNT

The exit code is 0 if no process uses it, 1 if one does, 2 if one that uses it is
blocked, and 3 if not everything could be looked at, or there is no such mount.

Flags:
`

// who is the subcommand of that name.
func who(arguments []string) int {
	flags := flag.NewFlagSet("who", flag.ContinueOnError)
	options := proberFlags(flags)
	timeout := flags.Duration("timeout", 20*time.Second, "how long to look")
	asJSON := flags.Bool("json", false, "print a JSON object")
	quiet := flags.Bool("quiet", false, "print process numbers only")
	var path string
	if last := len(arguments) - 1; last >= 0 && len(arguments[last]) > 0 && arguments[last][0] != '-' {
		path, arguments = arguments[last], arguments[:last]
	}
	if code, done := parseFlags(flags, whoUsage, arguments); done {
		return code
	}
	complain := func(err error) int {
		fmt.Fprintf(os.Stderr, "vfsprobe who: %v\n", err)
		return int(checkup.Unknown)
	}
	switch {
	case path == "":
		return complain(errors.New("it takes a mount point; -help says more"))
	case *timeout <= 0:
		return complain(fmt.Errorf("-timeout %v: it must be more than 0", *timeout))
	}
	path, err := absolute(path)
	if err != nil {
		return complain(err)
	}
	p := newProber(options)
	defer p.Close()
	h := newHost(p)
	lines := newLog(os.Stderr)
	defer lines.Flush(logFlushTimeout)
	h.SetLog(lines.Named("vfsprobe"))
	signal.Ignore(syscall.SIGPIPE)
	progress := checkup.Show(os.Stderr, "looking at all processes", *timeout)
	report, err := mountusers.Find(h, path, mountusers.Options{Timeout: *timeout})
	progress.Stop()
	if err != nil {
		return complain(err)
	}
	var content bytes.Buffer
	switch {
	case *asJSON:
		err = report.JSON(&content)
	case *quiet:
		err = report.PIDs(&content)
	default:
		err = report.Text(&content, checkup.WantsColor(os.Stdout, os.LookupEnv))
	}
	if err != nil {
		return complain(err)
	}
	_ = checkup.Deliver(os.Stdout, content.Bytes(), deliverTimeout)
	switch {
	case len(report.Unseen) > 0:
		return int(checkup.Unknown)
	case report.Blocked() > 0:
		return int(checkup.Critical)
	case len(report.Users) > 0:
		return int(checkup.Warning)
	}
	return 0
}

// absolute is a path from the root, without asking any file system for it.
func absolute(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	var directory [unix.PathMax]byte
	n, err := unix.Getcwd(directory[:]) // os.Getwd would look at the directory itself
	if err != nil {
		return "", fmt.Errorf("finding the working directory, for %s: %w", name, err)
	}
	return filepath.Join(string(directory[:n-1]), name), nil
}
