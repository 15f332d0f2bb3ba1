package checkup

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/metric"
)

// WriteDentries shows what dentrycache has gathered as tables for a person, and the errors of
// that gather below.
func WriteDentries(w io.Writer, metrics []*metric.Metric, errors []string) error {
	t := &Text{w: w}
	all := make([]Metric, len(metrics))
	for i, m := range metrics {
		all[i] = newMetric(m)
	}
	for _, m := range named(all, "dentrycache") {
		t.Line(OK, dentriesLine(&m))
	}
	for _, m := range named(all, "dentrycache_status") {
		t.Line(OK, attributionLine(&m))
	}
	directories := named(all, "dentrycache_dir") // the others come sorted
	slices.SortStableFunc(directories, func(a, b Metric) int { return int(b.integer("children") - a.integer("children")) })
	t.metrics(directories, []column{
		{"DIRECTORY", tag("directory")}, {"CHILDREN", field("children")}, {"NEGATIVE", field("negative_children")},
		{"STALL", stall}, {"WATCHED", field("watched")}, {"DEVICE", tag("device")}, {"RESULT", field("result")}, {"NOTE", directoryNote}})
	t.metrics(named(all, "dentrycache_source"), []column{
		{"CREATED/S", perSecond("negative_per_s", "below_created_per_s")}, {"COMM", tag("comm")}, {"PID", field("pid")}, {"UID", field("uid")},
		{"CONTAINER", owner}, {"DIRECTORY", tag("directory")}, {"CREATED", field("created")}, {"NOTE", sourceNote}})
	t.metrics(named(all, "dentrycache_cgroup"), []column{
		{"MEMORY", mebibytes("slab_reclaimable_own_bytes", "kernel_memory_own_bytes")}, {"CONTAINER", tag("container")}, {"CGROUP", tag("cgroup")}})
	for _, err := range errors {
		t.Line(OK, "\n"+err)
	}
	return t.err
}

// dentriesLine is about the host.
func dentriesLine(m *Metric) string {
	line := m.shown("dentries") + " dentries"
	if negative := m.shown("negative"); negative != "" {
		line += ", " + negative + " of them negative"
	}
	if rate, ok := m.Fields["negative_per_s"]; ok {
		line += fmt.Sprintf(" (%+.0f/s)", rate)
	}
	if _, ok := m.Fields["memory_share"]; ok {
		line += fmt.Sprintf("; %.1f %% of the memory", m.float("memory_share")*100)
	}
	if load, ok := m.Fields["hash_load"]; ok {
		line += fmt.Sprintf("; hash load %.2f", load)
	}
	return line
}

// attributionLine is about how the host is looked at.
func attributionLine(m *Metric) string {
	line := "attribution: " + m.shown("mode")
	if m.Fields["watching"] == false {
		line += ", off while negative dentries do not grow"
	}
	for _, name := range []string{"reason", "walker_reason", "watches_reason"} {
		if reason := m.shown(name); reason != "" {
			line += "; " + reason
		}
	}
	return line
}

// column is one of a table of metrics.
type column struct {
	title string
	cell  func(*Metric) string
}

// metrics writes a table of metrics, if there are any.
func (t *Text) metrics(all []Metric, columns []column) {
	if len(all) == 0 {
		return
	}
	rows := make([][]string, 1+len(all))
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
		for i := range all {
			rows[i+1] = append(rows[i+1], c.cell(&all[i]))
		}
	}
	t.Line(OK, "")
	t.Table(rows, make([]Status, len(all)))
}

func named(all []Metric, name string) []Metric {
	return slices.DeleteFunc(slices.Clone(all), func(m Metric) bool { return m.Name != name })
}

func field(name string) func(*Metric) string {
	return func(m *Metric) string { return m.shown(name) }
}

func tag(name string) func(*Metric) string {
	return func(m *Metric) string { return m.Tags[name] }
}

// perSecond is the sum of rates.
func perSecond(names ...string) func(*Metric) string {
	return func(m *Metric) string {
		var sum float64
		for _, name := range names {
			sum += m.float(name)
		}
		return fmt.Sprintf("%.0f", sum)
	}
}

// mebibytes shows the first of the fields that there is.
func mebibytes(names ...string) func(*Metric) string {
	return func(m *Metric) string {
		for _, name := range names {
			if _, ok := m.Fields[name]; ok {
				return fmt.Sprintf("%.1f MiB", float64(m.integer(name))/(1<<20))
			}
		}
		return ""
	}
}

func owner(m *Metric) string {
	if container, ok := m.Tags["container"]; ok {
		return container
	}
	return m.Tags["cgroup"]
}

// stall is the predicted one; of an incomplete count it is at least so long.
func stall(m *Metric) string {
	if _, ok := m.Fields["predicted_stall_seconds"]; !ok {
		return ""
	}
	least := ""
	if m.Fields["complete"] == false {
		least = "> "
	}
	return fmt.Sprintf("%s%.1f ms", least, m.float("predicted_stall_seconds")*1000)
}

func directoryNote(m *Metric) string {
	var all []string
	for _, name := range []string{"errno", "reason", "incomplete_reason", "newest_names"} {
		if note := m.shown(name); note != "" {
			all = append(all, note)
		}
	}
	return strings.Join(all, ", ")
}

func sourceNote(m *Metric) string {
	if _, ok := m.Fields["below_directories"]; !ok {
		return ""
	}
	return fmt.Sprintf("%s/s of it in %s directories below", perSecond("below_created_per_s")(m), m.shown("below_directories"))
}
