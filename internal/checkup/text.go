package checkup

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// TextOptions say how a report is shown.
type TextOptions struct {
	All   bool // healthy rows as well
	Color bool
}

// alike is how many problems of one place with the same cause are shown each:
// a dead server has hundreds of mounts.
const alike = 5

// Text writes the report for a person: the state in the first line, which is all
// that monitoring systems show, then tables with the problems first.
func (r *Report) Text(w io.Writer, o TextOptions) error {
	t := NewText(w, o.Color)
	t.Line(r.Status, "vfsprobe "+r.Status.String()+": "+r.Summary)
	for _, measurement := range r.measurements() {
		t.Line(OK, "")
		t.heading(title(measurement))
		r.rows(t, measurement, o.All)
	}
	r.servers(t)
	r.blocked(t)
	r.dentries(t)
	r.notes(t)
	return t.err
}

// measurements are those with rows, in alphabetical order.
func (r *Report) measurements() []string {
	names := make(map[string]bool)
	for i := range r.Metrics {
		if _, isRow := r.Metrics[i].code(); isRow {
			names[r.Metrics[i].Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func title(measurement string) string {
	switch measurement {
	case "mountstat":
		return "Mounts"
	case "nfslock":
		return "NFS locks"
	case "dentrycache":
		return "Dentry cache"
	}
	return measurement
}

// rows shows the problems of a measurement and sums up the rest.
func (r *Report) rows(t *Text, measurement string, all bool) {
	table := [][]string{{"RESULT", "FOR", "WHAT", "ON", "CAUSE", "EVIDENCE"}}
	var states []Status
	shown := make(map[[3]string]int)
	var kinds [][3]string
	var causes []result.Cause
	known := make(map[result.Cause]result.Values)
	for i := range r.Problems {
		p := &r.Problems[i]
		if p.Measurement != measurement {
			continue
		}
		kind := [3]string{p.Result, p.metric.place(), string(p.Cause)}
		if shown[kind]++; shown[kind] > alike && !all {
			continue
		}
		if shown[kind] == 1 {
			kinds = append(kinds, kind)
		}
		table, states = append(table, cells(p.metric, p.Evidence)), append(states, p.Status)
		v := values(p.metric)
		if !slices.Contains(causes, p.Cause) {
			causes, known[p.Cause] = append(causes, p.Cause), v
		}
		// What is not the same for all stays a placeholder.
		maps.DeleteFunc(known[p.Cause], func(name result.Placeholder, value string) bool { return v[name] != value })
	}
	counts, reasons := make(map[string]int), make(map[string]int)
	for i := range r.Metrics {
		m := &r.Metrics[i]
		code, isRow := m.code()
		if m.Name != measurement || !isRow || m.status() != OK {
			continue
		}
		counts[code.String()]++
		if code == result.Unchecked {
			reasons[cmp.Or(m.text("reason"), string(m.cause()))]++
		}
		if all {
			table, states = append(table, cells(m, evidence(m))), append(states, OK)
		}
	}
	if len(table) > 1 {
		t.table(table, states)
	}
	for _, kind := range kinds {
		if n := shown[kind] - alike; n > 0 && !all {
			t.Line(OK, fmt.Sprintf("  and %d more: %s on %s %s", n, kind[0], cmp.Or(kind[1], "the same"), parenthesised(kind[2])))
		}
	}
	for _, cause := range causes {
		if cause.Meaning() != "" {
			t.Line(OK, "  "+string(cause)+": "+cause.Meaning())
			t.Line(OK, "    by hand: "+cause.Proof(known[cause]))
			t.Line(OK, "    what to do: "+cause.Cure(known[cause]))
		}
	}
	var summary []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		summary = append(summary, fmt.Sprintf("%d %s", counts[name], name))
	}
	if len(summary) > 0 && !all {
		t.Line(OK, "  "+strings.Join(summary, ", ")+" (-all lists them)")
	}
	if !all {
		for _, reason := range slices.Sorted(maps.Keys(reasons)) {
			t.Line(OK, fmt.Sprintf("    %d unchecked: %s", reasons[reason], cmp.Or(reason, "no reason given")))
		}
	}
}

func cells(m *Metric, evidence string) []string {
	since := ""
	if seconds := m.seconds("fault_seconds"); seconds > 0 {
		since = duration(seconds)
	}
	on := strings.TrimSpace(m.place() + " " + parenthesised(m.Tags["fstype"]))
	return []string{m.text("result"), since, m.subject(), on, string(m.cause()), evidence}
}

// servers shows what the mounts at fault have in common.
func (r *Report) servers(t *Text) {
	table := [][]string{{"SERVER", "MOUNTS", "FAULTS", "NFS", "RPCBIND", "LOCKS (NLM)", "STATD (NSM)"}}
	var states []Status
	for i := range r.Metrics {
		m := &r.Metrics[i]
		if m.Name != "mountstat_server" && m.Name != "nfslock_server" || m.integer("faults") == 0 {
			continue
		}
		answer := func(names ...string) string {
			for _, name := range names {
				if errno := m.text(name + "_errno"); errno != "" {
					return errno
				}
				if _, answered := m.Fields[name+"_seconds"]; answered {
					return duration(m.seconds(name + "_seconds"))
				}
			}
			return ""
		}
		table = append(table, []string{strings.TrimSpace(m.Tags["server"] + " " + parenthesised(m.Tags["service"])), fmt.Sprint(m.integer("mounts")), fmt.Sprint(m.integer("faults")),
			answer("rpc", "nfs"), answer("rpcbind"), answer("nlm"), answer("nsm")})
		states = append(states, Critical)
	}
	t.section("Servers", table, states)
}

func (r *Report) blocked(t *Text) {
	table := [][]string{{"TASKS", "FOR", "COMMAND", "WAITS IN", "ON", "SUCH AS"}}
	var states []Status
	for i := range r.Metrics {
		m := &r.Metrics[i]
		if m.Name != blockedTasks {
			continue
		}
		pid := fmt.Sprintf("pid %d", m.integer("pid"))
		if container := m.text("container"); container != "" {
			pid += " in " + container
		}
		table = append(table, []string{fmt.Sprint(m.integer("count")), "> " + duration(m.seconds("longest_seconds")), m.Tags["comm"],
			m.Tags["wchan"], m.Tags["path"], pid})
		states = append(states, Warning)
	}
	t.section("Blocked", table, states)
}

// dentries shows all numbers of the dentry cache.
func (r *Report) dentries(t *Text) {
	for i := range r.Metrics {
		m := &r.Metrics[i]
		if m.Name != "dentrycache" || len(m.Tags) > 0 {
			continue
		}
		var numbers []string
		for _, field := range slices.Sorted(maps.Keys(m.Fields)) {
			switch value := m.Fields[field].(type) {
			case int64:
				numbers = append(numbers, fmt.Sprintf("%d %s", value, strings.ReplaceAll(field, "_", " ")))
			case float64:
				numbers = append(numbers, fmt.Sprintf("%s %.3g", strings.ReplaceAll(field, "_", " "), value))
			}
		}
		t.Line(OK, "")
		t.heading(title(m.Name))
		t.Line(OK, "  "+strings.Join(numbers, ", "))
	}
}

func (r *Report) notes(t *Text) {
	if failures := r.failures(); len(failures) > 0 || r.Incomplete != "" {
		t.Line(OK, "")
		t.heading("Not looked at")
		if r.Incomplete != "" {
			t.Line(Unknown, "  "+r.Incomplete)
		}
		for _, line := range failures {
			t.Line(Unknown, "  "+line.Input+": "+line.Text)
		}
	}
	if limits := r.limits(); len(limits) > 0 {
		t.Line(OK, "")
		t.heading("Notes (vfsprobe doctor says more)")
		for _, line := range limits {
			t.Line(OK, "  "+line.Input+": "+line.Text)
		}
	}
}

// Text writes lines in colours, and remembers the first error.
type Text struct {
	w     io.Writer
	color bool
	err   error
}

// SGR parameters, ECMA-48 8.3.117.
const (
	bold   = "1"
	red    = "1;31"
	yellow = "33"
	purple = "35"
)

func (t *Text) write(sgr, line string) {
	if t.color && sgr != "" && line != "" {
		line = "\x1b[" + sgr + "m" + line + "\x1b[0m"
	}
	if t.err == nil {
		_, t.err = io.WriteString(t.w, line+"\n")
	}
}

// NewText returns a Text that writes to w, without colours unless color is set.
func NewText(w io.Writer, color bool) *Text { return &Text{w: w, color: color} }

// Err is the first error of writing.
func (t *Text) Err() error { return t.err }

// Line writes a line in the colour of the status.
func (t *Text) Line(s Status, line string) {
	t.write([...]string{OK: "", Warning: yellow, Critical: red, Unknown: purple}[s], line)
}

func (t *Text) heading(line string) { t.write(bold, line) }

// section writes a table with rows.
func (t *Text) section(title string, table [][]string, states []Status) {
	if len(table) > 1 {
		t.Line(OK, "")
		t.heading(title)
		t.table(table, states)
	}
}

// table writes a header and rows in columns. Columns without content are left
// out.
func (t *Text) table(rows [][]string, states []Status) {
	widths := make([]int, len(rows[0]))
	for i, row := range rows {
		for column, cell := range row {
			if i > 0 {
				widths[column] = max(widths[column], utf8.RuneCountInString(cell))
			}
		}
	}
	last := 0
	for column, width := range widths {
		if width > 0 {
			widths[column], last = max(width, len(rows[0][column])), column
		}
	}
	for i, row := range rows {
		var b strings.Builder
		for column, cell := range row {
			if widths[column] == 0 {
				continue
			}
			b.WriteString("  " + cell)
			if column != last {
				b.WriteString(strings.Repeat(" ", widths[column]-utf8.RuneCountInString(cell)))
			}
		}
		state := OK
		if i > 0 {
			state = states[i-1]
		}
		t.Line(state, strings.TrimRight(b.String(), " "))
	}
}
