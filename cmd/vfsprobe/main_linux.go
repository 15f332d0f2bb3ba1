// Command vfsprobe runs the inputs mountstat, dentrycache and nfslock as a
// child of Telegraf's execd input.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/drill"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/hostreport"
	"github.com/vfsprobe/vfsprobe/internal/pages"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/schema"
	"github.com/vfsprobe/vfsprobe/internal/service"
	_ "github.com/vfsprobe/vfsprobe/internal/startup"
	"github.com/vfsprobe/vfsprobe/internal/state"
	"github.com/vfsprobe/vfsprobe/internal/threads"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/dentrycache"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/mountstat"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/nfslock"
)

// version is set when the binary is linked.
var version string

const usage = `vfsprobe tells which file systems hang, what fills the dentry cache, and whether
NFS locks work. Telegraf runs it through [[inputs.execd]].

Usage: vfsprobe [flags]
       vfsprobe connect [flags]  pass newlines and metrics to and from vfsprobe.service
       vfsprobe check [flags]    what is at fault on this host, and why
       vfsprobe who MOUNT        who uses a mount, which may hang
       vfsprobe dentries [flags] which directories and processes fill the dentry cache
       vfsprobe drill [flags]    make a mount hang for a while, to test alerts
       vfsprobe doctor [flags]   what vfsprobe lacks here, and how to grant it
       vfsprobe setpriv PROGRAM  run a program as another user that keeps capabilities

Without flags it gathers once for each newline on stdin, and prints the metrics
as line protocol. It ends when stdin ends.

Flags:
`

// Exit codes.
const (
	exitFailure = 1 // the configuration is bad, or stdout can't be written to
	exitUsage   = 2
)

func main() {
	drill.Guard()
	os.Exit(run(os.Args[1:]))
}

func run(arguments []string) int {
	if len(arguments) > 0 {
		switch arguments[0] {
		case "connect":
			return connect(arguments[1:])
		case "check":
			return check(arguments[1:])
		case "who":
			return who(arguments[1:])
		case "drill":
			return makeDrill(arguments[1:])
		case "dentries":
			return showDentries(arguments[1:])
		case "doctor":
			return examine(arguments[1:])
		case "setpriv":
			return setPrivileges(arguments[1:])
		}
	}
	fan := &service.LogFan{}
	lines := newLog(io.MultiWriter(os.Stderr, fan))
	defer lines.Flush(logFlushTimeout)
	own := lines.Named("vfsprobe")
	o, code := parse(arguments, own)
	if o == nil {
		return code
	}
	if err := o.gather(lines, fan); err != nil {
		logLines(own.Error, err)
		return exitFailure
	}
	return 0
}

// options are those of gathers.
type options struct {
	config        string
	test          bool
	interval      time.Duration
	socket, group string
	state         string
	prober        *prober.Options
}

// parse returns the options. If there is nothing more to do, or something is wrong, it returns none,
// and the exit code.
func parse(arguments []string, log telegraf.Logger) (*options, int) {
	flags := flag.NewFlagSet("vfsprobe", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var o options
	flags.StringVar(&o.config, "config", "", "read the inputs from this `file`; without it, all inputs run with their defaults")
	flags.BoolVar(&o.test, "test", false, "gather once, print the metrics, and exit")
	flags.DurationVar(&o.interval, "interval", 0, "gather at this interval instead of on newlines, for execd's signal = \"none\"")
	flags.StringVar(&o.socket, "listen", "", "gather for the clients that connect to this `socket`, instead of on newlines on stdin")
	flags.StringVar(&o.group, "group", "telegraf", "the `name` of the group whose members may connect, beside root")
	flags.StringVar(&o.state, "state", "", "keep what is known of faults in this `file` over a restart, and what was known of each when it began in files beside it")
	o.prober = proberFlags(flags)
	sample := flags.Bool("sample-config", false, "print a documented configuration")
	describe := flags.Bool("metrics", false, "print what the metrics mean, as Markdown")
	showVersion := flags.Bool("version", false, "print the version")
	switch err := flags.Parse(arguments); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
		flags.SetOutput(os.Stdout)
		flags.PrintDefaults()
	case err != nil:
		log.Error(err)
		return nil, exitUsage
	case flags.NArg() > 0:
		log.Errorf("unknown argument %q; -help lists the flags", flags.Arg(0))
		return nil, exitUsage
	case o.interval < 0:
		log.Errorf("-interval %v is negative", o.interval)
		return nil, exitUsage
	case *showVersion:
		fmt.Println("vfsprobe", buildVersion())
	case *sample:
		fmt.Print(sampleConfig())
	case *describe:
		if err := describeMetrics(os.Stdout); err != nil {
			log.Error(err)
			return nil, exitFailure
		}
	default:
		return &o, 0
	}
	return nil, 0
}

// gather gathers once, on newlines, at an interval or for clients, until it is told to end.
func (o *options) gather(lines *execd.Log, fan *service.LogFan) error {
	own := lines.Named("vfsprobe")
	o.prober.Warnf = own.Warnf
	p := newProber(o.prober)
	defer p.Close()

	h := newHost(p)
	selected, err := selectInputs(h, o.config)
	if err != nil {
		return err
	}
	if o.test {
		o.state, o.socket, h.Servers.AtOnce = "", "", true
	}
	e := execd.Options{Inputs: selected, Host: h, Log: lines, Stdout: os.Stdout, State: state.Open(o.state, "/proc", p, own, h.ReadFile)}
	defer e.State.Close(stateTimeout)
	if e.State.Keeps() {
		h.Recorder = hostreport.NewFlightRecorder(h, filepath.Dir(o.state), buildVersion(), e.State.AtFault, own)
	}
	server, err := o.listen(service.ServerOptions{Log: own, Fan: fan, Inputs: len(selected),
		Group: func() (uint32, bool) { gid, err := h.LookUpGroup(o.group); return gid, err == nil }})
	if err != nil {
		return err
	}
	if server != nil {
		defer server.Close()
		e.Lines = server.Write
	}
	runner, err := execd.New(e)
	if err != nil {
		if o.config != "" {
			err = fmt.Errorf("%s: %w", o.config, err)
		}
		return err
	}

	if !o.test {
		time.AfterFunc(setUpDelay, func() {
			p.Start()
			prepare(own)
		})
	}
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), maxAtWork))
	// A closed stdout is an error to report, not a signal to die of.
	signal.Ignore(syscall.SIGPIPE)
	switch {
	case o.test:
		h.AwaitMounts(checkup.TableTimeout)
		return runner.Once()
	case server == nil:
		return serve(runner, o.interval)
	}
	reload, err := serveClients(runner, server, func() error { _, err := checkConfig(o.config); return err }, own)
	if !reload {
		return err
	}
	server.Close()
	e.State.Close(stateTimeout)
	p.Close()
	lines.Flush(logFlushTimeout)
	return restart()
}

// listen returns the server for clients, or nil if newlines come on stdin.
func (o *options) listen(server service.ServerOptions) (*service.Server, error) {
	if o.socket == "" {
		return nil, nil
	}
	return service.Listen(o.socket, server)
}

// proberFlags defines the flags that say what helper processes may do.
func proberFlags(flags *flag.FlagSet) *prober.Options {
	o := &prober.Options{MaxStuck: 16, MaxAsleep: 256}
	flags.Var(atLeastOne{&o.MaxStuck}, "max-stuck", "the largest `number` of helper processes that may hang unkillably on this host")
	flags.Var(atLeastOne{&o.MaxAsleep}, "max-asleep", "the largest `number` of helper processes that may be left asleep, waiting for FUSE daemons")
	flags.BoolVar(&o.KillAsleep, "kill-asleep", false, "kill helper processes that are asleep as well, which makes them unkillable")
	return o
}

// newProber makes a prober whose helpers leave this process's cgroups when they hang.
func newProber(o *prober.Options) *prober.Prober {
	roots := host.FindRoots(os.Getenv)
	o.RootCgroups = cgroups.RootProcs("/proc", roots.Sys, prober.CanBecome())
	return prober.New(*o)
}

// atLeastOne is a flag for a cap.
type atLeastOne struct{ n *int }

func (a atLeastOne) String() string {
	if a.n == nil {
		return ""
	}
	return strconv.Itoa(*a.n)
}

func (a atLeastOne) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return errors.New("a number is needed, of at least 1")
	}
	*a.n = n
	return nil
}

// logFlushTimeout is how long the last lines of the log wait for somebody to read them.
const logFlushTimeout = 500 * time.Millisecond

// stateTimeout is how long writing the state may take at the end: Telegraf's stop waits for it.
const stateTimeout = 40 * time.Millisecond

// newLog makes a Log that writes to stderr. Telegraf's packages log through the
// standard logger, with the level in front of the text already.
func newLog(w io.Writer) *execd.Log {
	lines := execd.NewLog(w)
	log.SetFlags(0)
	log.SetOutput(lines)
	return lines
}

// setUpDelay is how long after the start everything is made ready that only worse times need. The
// first metrics are out by then.
const setUpDelay = 100 * time.Millisecond

// prepare makes this process ready for a host that lacks memory or processes, and for many gathers:
// from the first one on the plugin has little to do at a time, so that a thread which wakes another
// one costs more than it saves.
func prepare(log telegraf.Logger) {
	runtime.GOMAXPROCS(1)
	debug.FreeOSMemory() // most of what the start took
	threads.Reserve(runtime.GOMAXPROCS(0) + maxWaiting)
	if err := lockProgram(); err != nil {
		log.Infof("a root file system that hangs may stop vfsprobe when memory is short: %v", err)
	}
}

// lockProgram keeps the program in memory, unless a sandbox kills a process that asks for that.
func lockProgram() error {
	if survives, err := forkserver.Survives(unix.SYS_MLOCK2); !survives {
		return errors.Join(errors.New("a sandbox kills a process that calls mlock2(2)"), err)
	}
	return pages.LockProgram("/proc")
}

// newHost makes the Host that all inputs share.
func newHost(p *prober.Prober) *host.Host {
	return host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p})
}

const (
	// configTimeout is how long the file system of the configuration may take.
	configTimeout = 10 * time.Second
	// maxConfig bounds the configuration, in bytes.
	maxConfig = 16 << 20
)

// selectInputs reads the file; without one, all inputs run with their defaults. A
// helper reads it, which can be given up.
func selectInputs(h *host.Host, file string) ([]config.Input, error) {
	if file == "" {
		return config.Defaults(inputs.Inputs), nil
	}
	name, err := absolute(file) // helpers work in another directory
	if err != nil {
		return nil, err
	}
	content, err := h.ReadFile(name, maxConfig, configTimeout)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	return config.Parse(file, content, os.LookupEnv, inputs.Inputs)
}

// maxWaiting is more than the threads that wait in system calls at a time, beside the one for
// signals, which does so already.
const maxWaiting = 8

// maxAtWork is how many threads may run at a time at the start, on a machine that has more
// processors: so many that nothing waits, and no more, since each is made beforehand
// and counts under a limit such as TasksMax.
const maxAtWork = 4

// serve gathers until stdin ends or a signal asks to stop.
func serve(runner *execd.Runner, interval time.Duration) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	triggers := make(chan time.Time, 1)
	trigger := func() {
		select {
		case triggers <- time.Now():
		default: // one is waiting already
		}
	}
	// Not before the gather that waits already: for each signal the Go runtime changes threads twice.
	go func() {
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
		for s := range signals {
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				stop()
				continue
			}
			trigger() // what execd's signal option can be set to
		}
	}()
	onLine := trigger
	if interval > 0 {
		onLine = func() {}
		go func() {
			trigger()
			for range time.Tick(interval) {
				trigger()
			}
		}()
	}
	go func() {
		execd.ReadLines(execd.Pollable(os.Stdin), onLine)
		// Started by hand or by an init system, a program with -interval may
		// have no stdin to speak of: only a pipe's end means "stop".
		if interval == 0 || isPipe(os.Stdin) {
			stop()
		}
	}()
	return runner.Run(ctx, triggers)
}

// serveClients gathers for those who connect until a signal asks to stop. It reports
// whether that was SIGHUP, for another configuration, which was found to be good.
func serveClients(runner *execd.Runner, server *service.Server, check func() error, log telegraf.Logger) (reload bool, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, end := context.WithCancel(ctx)
	defer end()
	var again atomic.Bool
	go func() {
		for range hangup {
			if err := check(); err != nil {
				logLines(log.Error, fmt.Errorf("the configuration stays as it was: %w", err))
				continue
			}
			log.Info("starting again with the configuration as it is now")
			again.Store(true)
			end()
		}
	}()
	err = runner.Run(ctx, server.Triggers())
	return again.Load(), err
}

// restart starts the program anew in this process. Clients connect again, and what is
// known was kept.
func restart() error {
	for range 100 { // until the fork server was reaped
		if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); errors.Is(err, unix.ECHILD) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	const own = "/proc/self/exe"
	return &os.PathError{Op: "exec", Path: own, Err: unix.Exec(own, os.Args, os.Environ())}
}

func isPipe(f *os.File) bool {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return err == nil && (st.Mode&unix.S_IFMT == unix.S_IFIFO || st.Mode&unix.S_IFMT == unix.S_IFSOCK)
}

// logLines logs each of the errors that were joined on a line of its own.
func logLines(log func(...any), err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		log(line)
	}
}

// sampleConfig is the file sample.conf in the repository.
func sampleConfig() string {
	text := "# Configuration of vfsprobe: which inputs run, and how. Each table may be given\n" +
		"# several times. This file is not Telegraf's: keep it out of telegraf.d.\n"
	for _, name := range slices.Sorted(maps.Keys(inputs.Inputs)) {
		text += "\n" + inputs.Inputs[name]().SampleConfig()
	}
	return text
}

// describeMetrics writes the file docs/METRICS.md in the repository.
func describeMetrics(w io.Writer) error {
	var all []schema.Measurement
	fmt.Fprint(w, "# Metrics\n\nFor whoever writes queries. It is what `vfsprobe -metrics` prints. Any tag and any field may be absent: what does not\n"+
		"apply is left out. The READMEs of the inputs explain results, causes and diagnoses.\n")
	section := func(name string, measurements []schema.Measurement) error {
		all = append(all, measurements...)
		fmt.Fprintf(w, "\n## %s\n\n", name)
		return schema.WriteList(w, measurements)
	}
	for _, name := range slices.Sorted(maps.Keys(inputs.Inputs)) {
		if described, ok := inputs.Inputs[name]().(schema.Describer); ok {
			if err := section(name, described.Schema()); err != nil {
				return err
			}
		}
	}
	if err := section("vfsprobe", execd.Schema()); err != nil {
		return err
	}
	fmt.Fprint(w, "\n## Types for Prometheus\n\nLine protocol carries no types. This gives them back to Telegraf's output:\n\n```toml\n")
	if err := schema.WritePrometheusTypes(w, all); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "```\n")
	return err
}

// buildVersion is what the Makefile has linked in, or else what the go command
// knows about the build.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown version)"
	}
	return info.Main.Version
}
