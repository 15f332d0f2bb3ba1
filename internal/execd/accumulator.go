package execd

import (
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/metric"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// accumulator collects the metrics of one input in one round.
type accumulator struct {
	input *input
	round *round
}

var _ telegraf.Accumulator = (*accumulator)(nil)

func (a *accumulator) AddFields(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.add(name, fields, tags, telegraf.Untyped, at)
}

func (a *accumulator) AddGauge(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.add(name, fields, tags, telegraf.Gauge, at)
}

func (a *accumulator) AddCounter(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.add(name, fields, tags, telegraf.Counter, at)
}

func (a *accumulator) AddSummary(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.add(name, fields, tags, telegraf.Summary, at)
}

func (a *accumulator) AddHistogram(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	a.add(name, fields, tags, telegraf.Histogram, at)
}

func (a *accumulator) add(name string, fields map[string]any, tags map[string]string, kind telegraf.ValueType, at []time.Time) {
	when := a.round.time
	if len(at) > 0 {
		when = at[0]
	}
	a.AddMetric(metric.New(name, tags, fields, when, kind))
}

// AddMetric names and tags the metric as the input's options say, in the way
// Telegraf does: the metric's own tags win.
func (a *accumulator) AddMetric(m telegraf.Metric) {
	o := &a.input.options
	if o.NameOverride != "" {
		m.SetName(o.NameOverride)
	}
	if o.NamePrefix != "" {
		m.AddPrefix(o.NamePrefix)
	}
	if o.NameSuffix != "" {
		m.AddSuffix(o.NameSuffix)
	}
	for key, value := range o.Tags {
		if !m.HasTag(key) {
			m.AddTag(key, value)
		}
	}
	clean(m)
	a.round.add(m)
}

// clean keeps names that others have chosen from being more than values. Inputs
// make theirs printable; this is for those that they forget.
func clean(m telegraf.Metric) {
	for _, tag := range m.TagList() {
		tag.Value = printable.Text(tag.Value)
	}
	for _, field := range m.FieldList() {
		if text, ok := field.Value.(string); ok {
			field.Value = printable.Text(text)
		}
	}
}

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
