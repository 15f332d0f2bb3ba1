package dentrycache

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/metric"
)

// Show gathers, and writes what was found as tables for a person. What it needs
// two gathers for, such as rates, is there from the second call on.
func (d *Dentrycache) Show(w io.Writer) error {
	d.eager = true
	var all gathered
	if err := d.Gather(&all); err != nil {
		return err
	}
	var b bytes.Buffer
	all.summary(&b)
	all.table(&b, "dentrycache_dir", []column{
		{"DIRECTORY", tag("directory")}, {"CHILDREN", field("children")}, {"NEGATIVE", field("negative_children")},
		{"STALL", stall}, {"WATCHED", field("watched")}, {"DEVICE", tag("device")}, {"RESULT", field("result")}, {"NOTE", dirNote}})
	all.table(&b, "dentrycache_source", []column{
		{"CREATED/S", perSecond("negative_per_s", "below_created_per_s")}, {"COMM", tag("comm")}, {"PID", field("pid")}, {"UID", field("uid")},
		{"CONTAINER", owner}, {"DIRECTORY", tag("directory")}, {"CREATED", field("created")}, {"NOTE", sourceNote}})
	all.table(&b, "dentrycache_cgroup", []column{
		{"MEMORY", mebibytes("slab_reclaimable_own_bytes", "kernel_memory_own_bytes")}, {"CONTAINER", tag("container")}, {"CGROUP", tag("cgroup")}})
	for _, err := range all.errors {
		fmt.Fprintf(&b, "\n%v\n", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// gathered is what one Gather has added. It is a telegraf.Accumulator.
type gathered struct {
	all    []telegraf.Metric
	errors []error
}

func (g *gathered) named(name string) []telegraf.Metric {
	return slices.DeleteFunc(slices.Clone(g.all), func(m telegraf.Metric) bool { return m.Name() != name })
}

func (g *gathered) AddGauge(name string, fields map[string]any, tags map[string]string, _ ...time.Time) {
	g.all = append(g.all, metric.New(name, tags, fields, time.Time{}, telegraf.Gauge))
}

func (g *gathered) AddFields(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	g.AddGauge(name, fields, tags, at...)
}

func (g *gathered) AddCounter(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	g.AddGauge(name, fields, tags, at...)
}

func (g *gathered) AddSummary(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	g.AddGauge(name, fields, tags, at...)
}

func (g *gathered) AddHistogram(name string, fields map[string]any, tags map[string]string, at ...time.Time) {
	g.AddGauge(name, fields, tags, at...)
}

func (g *gathered) AddMetric(m telegraf.Metric)                 { g.all = append(g.all, m) }
func (g *gathered) AddError(err error)                          { g.errors = append(g.errors, err) }
func (*gathered) SetPrecision(time.Duration)                    {}
func (*gathered) WithTracking(int) telegraf.TrackingAccumulator { return nil }

// summary is one line about the host, and one about how it is looked at.
func (g *gathered) summary(w io.Writer) {
	for _, m := range g.named("dentrycache") {
		fmt.Fprintf(w, "%v dentries", value(m, "dentries"))
		if m.HasField("negative") {
			fmt.Fprintf(w, ", %v of them negative", value(m, "negative"))
		}
		if rate, ok := m.GetField("negative_per_s"); ok {
			fmt.Fprintf(w, " (%+.0f/s)", rate)
		}
		if share, ok := m.GetField("memory_share"); ok {
			fmt.Fprintf(w, "; %.1f %% of the memory", share.(float64)*100)
		}
		if load, ok := m.GetField("hash_load"); ok {
			fmt.Fprintf(w, "; hash load %.2f", load)
		}
		fmt.Fprintln(w)
	}
	for _, m := range g.named("dentrycache_status") {
		fmt.Fprintf(w, "attribution: %v", value(m, "mode"))
		if m.HasField("watching") && value(m, "watching") == "false" {
			fmt.Fprint(w, ", off while negative dentries do not grow")
		}
		for _, name := range []string{"reason", "walker_reason"} {
			if m.HasField(name) {
				fmt.Fprintf(w, "; %v", value(m, name))
			}
		}
		fmt.Fprintln(w)
	}
}

type column struct {
	title string
	cell  func(telegraf.Metric) string
}

// table writes the metrics of that name, without the columns that are empty in
// all rows.
func (g *gathered) table(w io.Writer, name string, columns []column) {
	rows := g.named(name)
	if len(rows) == 0 {
		return
	}
	if name == "dentrycache_dir" { // the others come sorted
		slices.SortStableFunc(rows, func(a, b telegraf.Metric) int { return int(number(b, "children") - number(a, "children")) })
	}
	cells := make([][]string, len(rows))
	used := make(map[int]bool)
	for i, m := range rows {
		for k, c := range columns {
			cell := c.cell(m)
			cells[i] = append(cells[i], cell)
			if cell != "" {
				used[k] = true
			}
		}
	}
	fmt.Fprintln(w)
	var b bytes.Buffer
	aligned := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(cell func(k int) string) {
		var all []string
		for _, k := range slices.Sorted(maps.Keys(used)) {
			all = append(all, cell(k))
		}
		fmt.Fprintln(aligned, strings.Join(all, "\t"))
	}
	line(func(k int) string { return columns[k].title })
	for i := range rows {
		line(func(k int) string { return cells[i][k] })
	}
	_ = aligned.Flush()
	for text := range strings.Lines(b.String()) {
		fmt.Fprintln(w, strings.TrimRight(text, " \n"))
	}
}

func value(m telegraf.Metric, name string) string {
	v, ok := m.GetField(name)
	if !ok {
		return ""
	}
	return fmt.Sprint(v)
}

func number(m telegraf.Metric, name string) int64 {
	v, _ := m.GetField(name)
	n, _ := v.(int64)
	return n
}

func field(name string) func(telegraf.Metric) string {
	return func(m telegraf.Metric) string { return value(m, name) }
}

func tag(name string) func(telegraf.Metric) string {
	return func(m telegraf.Metric) string {
		v, _ := m.GetTag(name)
		return v
	}
}

// perSecond is the sum of rates.
func perSecond(names ...string) func(telegraf.Metric) string {
	return func(m telegraf.Metric) string {
		var sum float64
		for _, name := range names {
			v, _ := m.GetField(name)
			rate, _ := v.(float64)
			sum += rate
		}
		return fmt.Sprintf("%.0f", sum)
	}
}

func mebibytes(names ...string) func(telegraf.Metric) string {
	return func(m telegraf.Metric) string {
		for _, name := range names {
			if m.HasField(name) {
				return fmt.Sprintf("%.1f MiB", float64(number(m, name))/(1<<20))
			}
		}
		return ""
	}
}

func owner(m telegraf.Metric) string {
	if container, ok := m.GetTag("container"); ok {
		return container
	}
	return tag("cgroup")(m)
}

// stall is the predicted one; of an incomplete count it is at least so long.
func stall(m telegraf.Metric) string {
	v, ok := m.GetField("predicted_stall_seconds")
	if !ok {
		return ""
	}
	least := ""
	if complete, _ := m.GetField("complete"); complete == false {
		least = "> "
	}
	return fmt.Sprintf("%s%.1f ms", least, v.(float64)*1000)
}

func dirNote(m telegraf.Metric) string {
	var all []string
	for _, name := range []string{"errno", "reason", "incomplete_reason", "newest_names"} {
		if m.HasField(name) {
			all = append(all, value(m, name))
		}
	}
	return strings.Join(all, ", ")
}

func sourceNote(m telegraf.Metric) string {
	if !m.HasField("below_directories") {
		return ""
	}
	return fmt.Sprintf("%v/s of it in %v directories below", perSecond("below_created_per_s")(m), value(m, "below_directories"))
}
