// Package execd runs Telegraf inputs as a child of Telegraf's execd input: a
// newline on stdin triggers a gather, stdout carries line protocol, stderr
// carries log lines, and the end of stdin ends the program.
//
// Inputs gather side by side, with one timestamp. The metrics of an input are
// written when it has finished; if it takes longer, what it has after 0.1 s is
// written first, or when it calls the accumulator's Flush. An input that is still
// gathering is not started again.
package execd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/oncelog"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

const (
	// batchDelay is how long the metrics of an input that has not finished are held
	// back to be one write.
	batchDelay = 100 * time.Millisecond
	// shutdownGrace is how long gathers that are about to end may take after stdin
	// has ended, and then again their writes.
	shutdownGrace = 40 * time.Millisecond
)

// A Interrupter is an input whose Gather may wait for something that hangs. Interrupt
// makes a Gather that is under way return at once with what it has. The runner
// calls it when the next gather is due.
type Interrupter interface{ Interrupt() }

// A HostUser is an input that looks at the host. The runner hands it the Host that all
// inputs share, before Init.
type HostUser interface{ UseHost(*host.Host) }

// Options of a Runner.
type Options struct {
	Inputs []config.Input
	Host   *host.Host
	Log    *Log
	Stdout io.Writer
	// Lines is handed the metrics of each input instead of Stdout, as soon as the
	// input has finished; if it takes longer, what it has after 0.1 s comes first.
	// It is called by one goroutine at a time for each round. All metrics of a round
	// have the time of its trigger, which is at.
	Lines func(at time.Time, lines []byte)
	// Metric is handed each metric instead, as soon as it is made, and must not keep it. It is
	// called by one goroutine at a time for each round.
	Metric func(*metric.Metric)
	// State keeps what inputs know, see [state.Keeper]; may be nil.
	State *state.Store
}

// A Runner gathers from its inputs whenever it is triggered.
type Runner struct {
	inputs  []*input
	output  *Output // nil where the options say who is handed the metrics instead
	lines   func(at time.Time, lines []byte)
	metric  func(*metric.Metric)
	health  *health
	state   *state.Store
	gathers sync.WaitGroup // each input's part of each round
	said    *oncelog.Log
	rounds  atomic.Int64 // that have ended
}

// New initializes the inputs. Its error is about the configuration.
func New(o Options) (*Runner, error) {
	own := o.Log.Named("vfsprobe")
	o.Host.SetLog(own)
	if o.State == nil {
		o.State = state.Open("", "/proc", o.Host.Prober, own, nil)
	}
	r := &Runner{lines: o.Lines, metric: o.Metric, health: newHealth(o.Host.Prober, o.State), state: o.State, said: oncelog.New(own)}
	if r.lines == nil && r.metric == nil {
		r.output = NewOutput(o.Stdout, "stdout", own, len(o.Inputs))
		r.lines = func(_ time.Time, lines []byte) { r.output.Write(lines) }
	}
	var problems []error
	of := make(map[string]int) // tables of each name
	for _, c := range o.Inputs {
		name := "inputs." + c.Name
		if c.Alias != "" {
			name += "::" + c.Alias
		}
		of[name]++
		in := &input{name: name, key: fmt.Sprintf("%s %d", name, of[name]), options: c.Options, plugin: c.Plugin, log: o.Log.Named(name)}
		if u, ok := c.Plugin.(HostUser); ok {
			u.UseHost(o.Host)
		}
		setLog(c.Plugin, in.log)
		if p, ok := c.Plugin.(telegraf.Initializer); ok {
			if err := p.Init(); err != nil {
				problems = append(problems, fmt.Errorf("[[inputs.%s]] in line %d: %w", c.Name, c.Line, err))
			}
		}
		in.restore(o.State)
		r.inputs = append(r.inputs, in)
	}
	return r, errors.Join(problems...)
}

// setLog sets the logger of a plugin where Telegraf does: the field Log.
func setLog(plugin telegraf.Input, log telegraf.Logger) {
	v := reflect.ValueOf(plugin)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return
	}
	if field := v.Elem().FieldByName("Log"); field.IsValid() && field.Type() == reflect.TypeFor[telegraf.Logger]() {
		field.Set(reflect.ValueOf(log))
	}
}

// Once gathers from all inputs, waits for all of them, and writes the metrics.
func (r *Runner) Once() error {
	r.trigger(time.Now())
	r.gathers.Wait()
	return r.output.Close(time.Minute)
}

// Round gathers from all inputs and waits for them. When ctx ends earlier, inputs
// that can be are interrupted, and have a moment to report what they know. It reports
// whether all ended in time. It is for runners with Options.Metric.
func (r *Runner) Round(ctx context.Context) bool {
	r.trigger(time.Now())
	ended := r.ended()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
	}
	for _, in := range r.inputs {
		if h, ok := in.plugin.(Interrupter); ok {
			h.Interrupt()
		}
	}
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return false
}

// Collect gathers from one input that belongs to no Runner. errors are those that the input has
// reported beside its metrics, sorted.
func Collect(plugin telegraf.Input) (metrics []*metric.Metric, errors []string, err error) {
	in, all := &input{plugin: plugin}, &round{time: time.Now()}
	all.take = func(m *metric.Metric) { metrics = append(metrics, m.Clone()) }
	err = plugin.Gather(&accumulator{input: in, round: all})
	return metrics, slices.Sorted(maps.Keys(in.errors)), err
}

// Run gathers at each trigger until ctx ends, which is no error, or stdout can
// no longer be written to.
func (r *Runner) Run(ctx context.Context, triggers <-chan time.Time) error {
	var failed <-chan error
	if r.output != nil {
		failed = r.output.Failed()
	}
	for {
		select {
		case now := <-triggers:
			r.trigger(now)
		case err := <-failed:
			return err
		case <-ctx.Done():
			select {
			case <-r.ended():
			case <-time.After(shutdownGrace):
			}
			if r.output == nil {
				return nil
			}
			if err := r.output.Close(shutdownGrace); !errors.Is(err, errBlocked) {
				return err
			}
			return nil // nobody reads any more
		}
	}
}

// ended returns a channel that is closed when no input is gathering any more.
func (r *Runner) ended() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		r.gathers.Wait()
		close(ended)
	}()
	return ended
}

// trigger begins a round.
func (r *Runner) trigger(now time.Time) {
	r.gathers.Add(len(r.inputs))
	if r.output != nil {
		r.output.Begin()
	}
	all := &round{time: now, runner: r, gathering: len(r.inputs)}
	all.take = func(m *metric.Metric) {
		r.state.Observe(m)
		if r.metric != nil {
			r.metric(m)
			return
		}
		if all.lines == nil && r.output != nil {
			all.lines = r.output.buffer()
		}
		all.lines = r.appendLine(all.lines, m)
	}
	all.timer = time.AfterFunc(batchDelay, func() { all.write(true) })
	for _, in := range slices.Backward(r.inputs) { // the Go runtime lets the last one begin
		in.start(all)
	}
}

// appendLine appends the metric in line protocol. If that can't carry it, or a field, only this
// one is lost, and that is logged once.
func (r *Runner) appendLine(text []byte, m *metric.Metric) []byte {
	line, err := m.AppendLine(text)
	if err != nil {
		fate := "is incomplete"
		if len(line) == len(text) {
			fate = "is lost"
		}
		err = fmt.Errorf("metric %q %s: %w", m.Name, fate, err)
		r.said.Error(err.Error(), err)
	}
	return line
}

// trimInterval is after how many rounds free memory is given back to the kernel.
const trimInterval = 10

// trim gives free memory back now and then. The Go runtime lets at least 1 MB of garbage come
// together, as much as is in use, before it collects any.
func (r *Runner) trim() {
	if r.rounds.Add(1)%trimInterval == 0 {
		debug.FreeOSMemory()
	}
}

// round holds the metrics of one trigger.
type round struct {
	time   time.Time
	runner *Runner
	timer  *time.Timer

	mu        sync.Mutex
	gathering int           // inputs that have not finished
	healthy   bool          // the plugin's own metric was written
	metric    metric.Metric // that is being made
	take      func(*metric.Metric)
	lines     []byte
}

// finished writes an input's metrics. The plugin's own metrics come with the last input's.
func (r *round) finished() {
	defer r.runner.gathers.Done()
	r.mu.Lock()
	r.gathering--
	last := r.gathering == 0
	r.mu.Unlock()
	if last {
		r.timer.Stop()
	}
	r.write(last)
	if last {
		r.runner.state.Save()
		r.runner.trim()
	}
}

func (r *round) write(withHealth bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if withHealth && !r.healthy {
		r.take(r.runner.health.metric(r.time))
		r.healthy = true
	}
	if len(r.lines) > 0 {
		r.runner.lines(r.time, r.lines)
		r.lines = nil
	}
}

// input is one configured input.
type input struct {
	name    string
	key     string // of what it keeps
	options config.Options
	plugin  telegraf.Input
	log     telegraf.Logger

	mu      sync.Mutex
	busy    bool                // a gather is under way
	next    *round              // begins when the one under way has been interrupted to its end
	errors  map[string]struct{} // of this gather
	known   map[string]struct{} // of the last one, logged already
	skipped bool                // a gather was skipped, and that was said
}

// start begins to gather for the round. An input that is still gathering for an
// earlier round is interrupted, or left out of this one.
func (in *input) start(r *round) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.busy {
		in.busy = true
		go in.gather(r)
		return
	}
	if h, ok := in.plugin.(Interrupter); ok && in.next == nil {
		in.next = r
		h.Interrupt()
		return
	}
	if !in.skipped {
		in.skipped = true
		in.log.Warnf("still gathering when the next interval began: that interval is left out")
	}
	go r.finished()
}

func (in *input) gather(r *round) {
	for r != nil {
		ok := in.gatherOnce(r)
		in.mu.Lock()
		in.report(ok)
		r.finished() // the input is busy until its metrics are on their way
		r, in.next = in.next, nil
		in.busy = r != nil
		in.mu.Unlock()
	}
}

func (in *input) gatherOnce(r *round) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			in.fail(fmt.Errorf("this gather is lost to a fault in vfsprobe: panic: %v, at %s", p, callers()))
		}
	}()
	if err := in.plugin.Gather(&accumulator{input: in, round: r}); err != nil {
		in.fail(err)
		return false
	}
	if k, ok := in.plugin.(state.Keeper); ok && r.runner.state.Keeps() {
		r.runner.state.Put(in.key, k.Keep())
	}
	return true
}

// restore hands an input what it kept in an earlier run.
func (in *input) restore(s *state.Store) {
	var err error
	if k, ok := in.plugin.(state.Keeper); ok && s.Get(in.key) != nil {
		err = k.Restore(s.Get(in.key))
	} else if h, ok := in.plugin.(state.Heir); ok && s.Earlier(in.key) != nil {
		err = h.Inherit(s.Earlier(in.key))
	}
	if err != nil {
		in.log.Warnf("what was known before is lost: %v", err)
	}
}

// callers is the stack of a panic without addresses, so that the same fault
// makes the same text and is logged once.
func callers() string {
	counters := make([]uintptr, 16)
	frames := runtime.CallersFrames(counters[:runtime.Callers(3, counters)])
	var b strings.Builder
	for {
		frame, more := frames.Next()
		fmt.Fprintf(&b, "%s (%s:%d)", frame.Function, filepath.Base(frame.File), frame.Line)
		if !more {
			return b.String()
		}
		b.WriteString(" < ")
	}
}

// fail notes an error of the gather under way.
func (in *input) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.errors == nil {
		in.errors = make(map[string]struct{})
	}
	in.errors[err.Error()] = struct{}{}
}

// report logs what changed since the last gather: an error that persists is
// logged once, and so is the end of all errors.
func (in *input) report(ok bool) {
	for text := range in.errors {
		if _, said := in.known[text]; !said {
			in.log.Error(text)
		}
	}
	if ok && len(in.errors) == 0 && len(in.known) > 0 {
		in.log.Info("gathers without errors again")
	}
	in.known, in.errors = in.errors, nil
}
