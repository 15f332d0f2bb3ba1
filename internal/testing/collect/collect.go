// Package collect takes the metrics of an input in tests. Telegraf's own
// testutil would do the same, and bring Docker's client library along.
package collect

import (
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/metric"

	"github.com/vfsprobe/vfsprobe/internal/schema"
)

// MountsPatience is how long an input under test may wait for the mount table. On a busy machine the
// time that the product takes is not always enough, and what is mounted for the test would not show.
const MountsPatience = 20 * time.Second

// Metrics is what an input has added. It is a telegraf.Accumulator.
type Metrics struct {
	mu     sync.Mutex
	all    []telegraf.Metric
	errors []error
}

var _ telegraf.Accumulator = (*Metrics)(nil)

// Gather gathers once. What the input emits must be as it describes it.
func Gather(t testing.TB, input telegraf.Input) *Metrics {
	t.Helper()
	m := &Metrics{}
	if err := input.Gather(m); err != nil {
		t.Fatalf("Gather: %v", err)
	}
	if described, ok := input.(schema.Describer); ok {
		for _, metric := range m.all {
			if err := check(described.Schema(), metric); err != nil {
				t.Error(err)
			}
		}
	}
	return m
}

// GatherUntil gathers until mounts have the verdicts that are wanted, all in one gather: a busy machine
// may not come to a check, or to why it hangs, in time. verdictOf tells the verdict on one of them,
// which is empty for one that was not reported.
func GatherUntil(t testing.TB, input telegraf.Input, want map[string]string, verdictOf func(m *Metrics, path string) string) *Metrics {
	t.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		m := Gather(t, input)
		got := make(map[string]string, len(want))
		for path := range want {
			got[path] = verdictOf(m, path)
		}
		if maps.Equal(want, got) {
			return m
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s there is %v, not %v", got, want)
		}
	}
}

// Named returns the metrics of that name, in the order they were added.
func (m *Metrics) Named(name string) []telegraf.Metric {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.all), func(o telegraf.Metric) bool { return o.Name() != name })
}

// Tagged returns the metric of that name whose tag has the value, or nil.
func (m *Metrics) Tagged(name, tag, value string) telegraf.Metric {
	for _, o := range m.Named(name) {
		if v, ok := o.GetTag(tag); ok && v == value {
			return o
		}
	}
	return nil
}

// Errors returns what was given to AddError.
func (m *Metrics) Errors() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.errors)
}

func (m *Metrics) AddFields(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	m.add(name, fields, tags, telegraf.Untyped, at)
}

func (m *Metrics) AddGauge(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	m.add(name, fields, tags, telegraf.Gauge, at)
}

func (m *Metrics) AddCounter(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	m.add(name, fields, tags, telegraf.Counter, at)
}

func (m *Metrics) AddSummary(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	m.add(name, fields, tags, telegraf.Summary, at)
}

func (m *Metrics) AddHistogram(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	m.add(name, fields, tags, telegraf.Histogram, at)
}

func (m *Metrics) add(name string, fields map[string]any, tags map[string]string, kind telegraf.ValueType, at []time.Time) {
	when := time.Now()
	if len(at) > 0 {
		when = at[0]
	}
	m.AddMetric(metric.New(name, tags, fields, when, kind))
}

func (m *Metrics) AddMetric(o telegraf.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, o)
}

func (m *Metrics) AddError(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errors = append(m.errors, err)
}

func (m *Metrics) SetPrecision(time.Duration)                    {}
func (m *Metrics) WithTracking(int) telegraf.TrackingAccumulator { panic("not for tests") }
