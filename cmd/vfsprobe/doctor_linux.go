package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/doctor"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/plugins/inputs/nfslock"
)

const doctorUsage = `Tells which capabilities, files and kernel features vfsprobe lacks on this host, which
metrics that costs, and which line grants each. Tells also what is wrong with the way
Telegraf runs it.

Usage: vfsprobe doctor [flags]

The exit code is 0 if all is well, 1 for a warning, 2 if Telegraf gets no metrics
now or has an input that a mount can stop, and 3 if not everything could be looked at.

Flags:
`

// examining marks the process that looks at files which may be on mounts that
// hang, and says how to show what it finds.
const (
	examining = "VFSPROBE_EXAMINING"
	inColor   = "color"
)

// doctorTimeout is how long that may take.
const doctorTimeout = 10 * time.Second

// systemdTimeout is how long systemd may take to tell of a unit.
const systemdTimeout = 3 * time.Second

// examine is the subcommand doctor.
func examine(arguments []string) int {
	var o doctor.Options
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	asJSON := flags.Bool("json", false, "print a JSON object")
	flags.BoolVar(&o.Self, "self", false, "judge the privileges of this process, not those of the vfsprobe that Telegraf runs")
	fix := flags.Bool("fix", false, "print the systemd drop-in that grants what is missing; nothing is changed")
	flags.StringVar(&o.TelegrafConfig, "telegraf-config", "", "the `directory` with telegraf.conf and telegraf.d, or a file; without it, what Telegraf's unit names, or else /etc/telegraf")
	flags.StringVar(&o.Telegraf, "telegraf", "", "the `file` of Telegraf's program")
	flags.StringVar(&o.Root, "root", "/", "the `directory` where the host's files are")
	if code, done := parseFlags(flags, doctorUsage, arguments); done {
		return code
	}
	how := os.Getenv(examining)
	if how == "" {
		return leavable(arguments)
	}
	o.Proc, o.Sys = os.Getenv("HOST_PROC"), os.Getenv("HOST_SYS")
	o.CheckConfig = checkConfig
	o.SeccompRefuses = attribution.SeccompRefuses
	roots := host.FindRoots(os.Getenv)
	o.Contained = new(host.Host).Container() == host.ApplicationContainer && (o.Root == "/" || filepath.Clean(o.Root) == roots.MountPrefix)
	if o.Root == "/" {
		o.ShowUnit = showUnit
		if o.TelegrafConfig != "" {
			o.TelegrafConfig, _ = filepath.Abs(o.TelegrafConfig)
		}
	}
	report := doctor.Run(o)
	var err error
	switch {
	case *fix:
		err = report.Fix(os.Stdout)
	case *asJSON:
		err = report.JSON(os.Stdout)
	default:
		err = report.Text(os.Stdout, how == inColor)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "vfsprobe doctor: %v\n", err)
		return int(checkup.Unknown)
	}
	return report.Code
}

// leavable examines in a process of its own, which is left behind when it hangs.
// That process has none of our files open: a reader of our output would wait for its end.
func leavable(arguments []string) int {
	signal.Ignore(syscall.SIGPIPE)
	how := "plain"
	if checkup.WantsColor(os.Stdout, os.LookupEnv) {
		how = inColor
	}
	var content, complaints bytes.Buffer
	child := exec.Command("/proc/self/exe", append([]string{"doctor"}, arguments...)...)
	child.Env = append(os.Environ(), examining+"="+how)
	child.Stdout, child.Stderr = &content, &complaints
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the signal comes when this thread ends
		ended <- child.Run()
	}()
	progress := checkup.Show(os.Stderr, "examining", doctorTimeout)
	var err error
	select {
	case err = <-ended:
		progress.Stop()
	case <-time.After(doctorTimeout):
		progress.Stop() // and the process, which dies with this one if it can
		fmt.Fprintf(os.Stderr, "vfsprobe doctor: not done within %v: one of the files it looks at is on a mount that hangs; vfsprobe check says which\n", doctorTimeout)
		return int(checkup.Unknown)
	}
	_, _ = os.Stderr.Write(complaints.Bytes())
	_ = checkup.Deliver(os.Stdout, content.Bytes(), deliverTimeout)
	if exit, failed := errors.AsType[*exec.ExitError](err); failed && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "vfsprobe doctor: %v\n", err)
		return int(checkup.Unknown)
	}
	return 0
}

// showUnit asks systemd about a unit, where it runs: sd_booted(3).
func showUnit(name string) ([]byte, error) {
	if _, err := os.Lstat("/run/systemd/system"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	return exec.CommandContext(ctx, "systemctl", "show", name).Output()
}

// checkConfig reads a configuration as the plugin does at its start.
func checkConfig(file string) (doctor.Configured, error) {
	var configured doctor.Configured
	p := prober.New(prober.Options{})
	defer p.Close()
	h := newHost(p)
	selected, err := selectInputs(h, file)
	if err != nil {
		return configured, err
	}
	for i := range selected {
		if locks, is := selected[i].Plugin.(*nfslock.NFSLock); is && configured.ExpectNFS == nil {
			configured.ExpectNFS = locks.ExpectNFS
		}
	}
	_, err = execd.New(execd.Options{Inputs: selected, Host: h, Log: execd.NewLog(io.Discard), Stdout: io.Discard})
	return configured, err
}
