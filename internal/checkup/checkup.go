// Package checkup makes one gather of the inputs into an answer for a person on
// call, or for a monitoring system that runs checks in the way of Nagios: what
// is at fault on this host, and why.
//
// It knows nothing of how an input finds faults. All it shows are the metrics
// that the inputs emit, so that it says what the dashboards say. A metric with a
// field result_code is a row; package result has the codes.
package checkup

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// secondLookDelay is how long a task has to wait for a file system to be shown as
// blocked: two looks at the same task are needed.
const secondLookDelay = time.Second

// TableTimeout is how long a single gather waits for the mount table, without which it would
// know of the root alone: on a busy host longer than one of many gathers may.
const TableTimeout = 4 * time.Second

// Options of a checkup.
type Options struct {
	Inputs []config.Input
	Host   *host.Host // its log lines are the report's
	// Timeout is how long the gather may take. What has not answered then is
	// missing, and the report says so.
	Timeout time.Duration
	// Arrived is called with the number of rows that are there, whenever that
	// grows. It may be nil.
	Arrived func(rows int)
}

// Checkup gathers, as often as it is asked to.
type Checkup struct {
	Options
	metrics collector
	said    logLines
	log     *execd.Log
	runner  *execd.Runner
}

// New returns a Checkup. Its error is about the configuration.
func New(o Options) (*Checkup, error) {
	c := &Checkup{Options: o, metrics: collector{arrived: o.Arrived}}
	c.log = execd.NewLog(&c.said)
	var err error
	c.runner, err = execd.New(execd.Options{Inputs: o.Inputs, Host: o.Host, Log: c.log, Metric: c.metrics.take})
	return c, err
}

// Report gathers. Where something hangs, it gathers a second time, after a second,
// to learn who waits for it.
func (c *Checkup) Report() *Report {
	o, runner := &c.Options, c.runner
	began := time.Now()
	o.Host.AwaitMounts(min(TableTimeout, o.Timeout))
	ctx, cancel := context.WithTimeout(context.Background(), o.Timeout-time.Since(began))
	defer cancel()
	complete := runner.Round(ctx)
	c.log.Flush(time.Second) // which is into memory
	metrics, lines := c.metrics.taken(), c.said.taken()
	if complete && hangs(metrics) {
		time.Sleep(secondLookDelay)
		// What hangs is known: this is not to wait for it again.
		again, cancel := context.WithTimeout(ctx, secondLookDelay/2)
		defer cancel()
		runner.Round(again)
		metrics = withWaiters(metrics, c.metrics.taken())
	}
	r := newReport(metrics, lines)
	r.Elapsed = time.Since(began).Seconds()
	if !complete {
		r.Incomplete = fmt.Sprintf("not everything has answered within %v, and what has not is missing here", o.Timeout)
	}
	r.conclude()
	return r
}

func hangs(metrics []Metric) bool {
	return slices.ContainsFunc(metrics, func(m Metric) bool {
		code, found := m.code()
		return found && (code == result.Timeout || code == result.Stuck)
	})
}

// blockedTasks is the measurement of the tasks that wait for file systems.
const blockedTasks = "mountstat_blocked"

// withWaiters replaces the tasks that wait by those of a second gather, instead of those that
// the first knew of earlier ones.
func withWaiters(first, second []Metric) []Metric {
	waits := func(m Metric) bool { return m.Name == blockedTasks }
	if !slices.ContainsFunc(second, waits) {
		return first
	}
	second = slices.DeleteFunc(second, func(m Metric) bool { return !waits(m) })
	return append(slices.DeleteFunc(first, waits), second...)
}

// collector takes metrics as they come, those of gathers that have been given up
// included.
type collector struct {
	arrived func(int)

	mu      sync.Mutex
	metrics []Metric
	rows    int
}

func (c *collector) take(m *metric.Metric) {
	taken := newMetric(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.metrics = append(c.metrics, taken)
	if _, isRow := taken.code(); isRow {
		c.rows++
		if c.arrived != nil {
			c.arrived(c.rows)
		}
	}
}

// taken returns what has come since the last call.
func (c *collector) taken() []Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.metrics
	c.metrics, c.rows = nil, 0
	return all
}

// newMetric copies a metric. Its strings become safe for terminals.
func newMetric(m *metric.Metric) Metric {
	made := Metric{Name: printable.Terminal(m.Name), Tags: make(map[string]string), Fields: make(map[string]any)}
	for _, tag := range m.Tags {
		made.Tags[printable.Terminal(tag.Key)] = printable.Terminal(tag.Value)
	}
	for _, field := range m.Fields {
		value := field.Value
		if text, ok := value.(string); ok {
			value = printable.Terminal(text)
		}
		made.Fields[printable.Terminal(field.Key)] = value
	}
	return made
}

// logLines keeps what the inputs log, in the form of package execd:
//
//	W! [inputs.mountstat] text
type logLines struct {
	mu    sync.Mutex
	lines []LogLine
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		level, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "! [")
		input, text, found := strings.Cut(rest, "] ")
		if found && level != "D" && level != "T" {
			l.lines = append(l.lines, LogLine{Level: printable.Terminal(level), Input: printable.Terminal(strings.TrimPrefix(input, "inputs.")), Text: printable.Terminal(text)})
		}
	}
	return len(p), nil
}

func (l *logLines) taken() []LogLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}
