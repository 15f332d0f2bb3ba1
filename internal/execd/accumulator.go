package execd

import (
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// accumulator collects the metrics of one input in one round.
type accumulator struct {
	input *input
	round *round
}

var _ telegraf.Accumulator = (*accumulator)(nil)

func (a *accumulator) AddFields(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	when := a.round.time
	if len(at) > 0 {
		when = at[0]
	}
	r := a.round
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metric.Set(name, tags, fields, when)
	a.input.label(&r.metric)
	clean(&r.metric)
	r.take(&r.metric)
}

// The kind of a metric has no place in line protocol.

func (a *accumulator) AddGauge(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.AddFields(name, fields, tags, at...)
}

func (a *accumulator) AddCounter(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.AddFields(name, fields, tags, at...)
}

func (a *accumulator) AddSummary(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.AddFields(name, fields, tags, at...)
}

func (a *accumulator) AddHistogram(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.AddFields(name, fields, tags, at...)
}

// AddMetric is for metrics that were made elsewhere.
func (a *accumulator) AddMetric(m telegraf.Metric) {
	a.AddFields(m.Name(), m.Fields(), m.Tags(), m.Time())
}

// label names and tags the metric as the input's options say, in the way
// Telegraf does: the metric's own tags win.
func (in *input) label(m *metric.Metric) {
	o := &in.options
	if o.NameOverride != "" {
		m.Name = o.NameOverride
	}
	m.Name = o.NamePrefix + m.Name + o.NameSuffix
	for key, value := range o.Tags {
		if _, has := m.Tag(key); !has {
			m.AddTag(key, value)
		}
	}
}

// clean keeps names that others have chosen from being more than values. Inputs
// make theirs printable; this is for those that they forget.
func clean(m *metric.Metric) {
	for i := range m.Tags {
		m.Tags[i].Value = printable.Text(m.Tags[i].Value)
	}
	for i := range m.Fields {
		if text, ok := m.Fields[i].Value.(string); ok {
			if safe := printable.Text(text); safe != text { // else it would be copied to the heap
				m.Fields[i].Value = safe
			}
		}
	}
}

// Flush writes what was collected so far: the input is about to wait.
func (a *accumulator) Flush() { a.round.write(false) }

// AddError reports an error of the gather, like returning it from Gather.
func (a *accumulator) AddError(err error) {
	if err != nil {
		a.input.fail(err)
	}
}

// SetPrecision does nothing: times are those of the round, to the nanosecond.
func (*accumulator) SetPrecision(time.Duration) {}

// WithTracking is for inputs that wait for delivery, which line protocol on
// stdout can't confirm.
func (*accumulator) WithTracking(int) telegraf.TrackingAccumulator {
	panic("vfsprobe's inputs can't track the delivery of metrics")
}
