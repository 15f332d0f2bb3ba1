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
	All     bool // healthy rows as well
	Explain bool // how to prove each cause, and all that can be done
	Color   bool
}

// alike is how many problems of one place with the same cause are shown each:
// a dead server has hundreds of mounts.
const alike = 5

// Text writes the report for a person: the state in the first line, which is all
// that monitoring systems show, then the problems, the worst first, and what to do.
func (r *Report) Text(w io.Writer, o TextOptions) error {
	t := NewText(w, o.Color)
	t.Line(r.Status, "vfsprobe "+r.Status.String()+": "+r.Summary)
	for _, measurement := range r.measurements() {
		r.rows(t, measurement, o)
	}
	r.servers(t)
	r.blocked(t)
	r.capacity(t)
	r.healthy(t, o.All)
	r.dentries(t, o.All)
	r.notes(t)
	return t.err
}

// measurements are those with rows, the one with the worst problem first.
func (r *Report) measurements() []string {
	var names []string
	for i := range r.Problems {
		names = append(names, r.Problems[i].Measurement)
	}
	for i := range r.Metrics {
		if _, isRow := r.Metrics[i].code(); isRow {
			names = append(names, r.Metrics[i].Name)
		}
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(names, func(name string) bool {
		before := seen[name]
		seen[name] = true
		return before
	})
}

func title(measurement string) string {
	switch measurement {
	case "mountstat":
		return "Mounts"
	case "nfslock":
		return "NFS locks"
	case "nfslock_readiness":
		return "Locks of NFS 3, before the first mount"
	case "dentrycache":
		return "Dentry cache"
	case "dentrycache_dir":
		return "Watched directories"
	}
	return measurement
}

// rows shows the problems of a measurement, and what to do about each cause.
func (r *Report) rows(t *Text, measurement string, o TextOptions) {
	table := [][]string{{"RESULT", "FOR", "USED", "CAUSE", "WHAT"}}
	var states []Status
	var evidences []string
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
		if shown[kind]++; shown[kind] > alike && !o.All {
			continue
		}
		said := ""
		if shown[kind] == 1 || o.All {
			said = joined(on(p.metric), p.Evidence)
		}
		if shown[kind] == 1 {
			kinds = append(kinds, kind)
		}
		table, states, evidences = append(table, cells(p.metric)), append(states, p.Status), append(evidences, said)
		v := values(p.metric)
		if !slices.Contains(causes, p.Cause) {
			causes, known[p.Cause] = append(causes, p.Cause), v
		}
		// What is not the same for all stays a placeholder.
		maps.DeleteFunc(known[p.Cause], func(name result.Placeholder, value string) bool { return v[name] != value })
	}
	for i := range r.Metrics {
		if m := &r.Metrics[i]; o.All && m.Name == measurement && m.isHealthy() {
			table, states, evidences = append(table, cells(m)), append(states, OK), append(evidences, joined(on(m), evidence(m)))
		}
	}
	if len(table) == 1 {
		return
	}
	t.Line(OK, "")
	t.heading(title(measurement))
	t.rows(table, states, func(row int) { t.wrapped("    ", evidences[row]) })
	for _, kind := range kinds {
		if n := shown[kind] - alike; n > 0 && !o.All {
			t.Line(OK, fmt.Sprintf("  and %d more: %s on %s %s", n, kind[0], cmp.Or(kind[1], "the same"), parenthesized(kind[2])))
		}
	}
	for _, cause := range causes {
		if cause.Meaning() == "" {
			continue
		}
		t.wrapped("  ", string(cause)+": "+cause.Meaning())
		if o.Explain || o.All {
			t.wrapped("    ", "by hand: "+cause.Proof(known[cause]))
			t.wrapped("    ", "what to do: "+cause.Cure(known[cause]))
		} else {
			t.wrapped("    ", "what to do: "+advice(cause, known[cause]))
		}
	}
}

// advice is the beginning of a cure, and where that has no command the one that shows more.
func advice(cause result.Cause, v result.Values) string {
	whole := cause.Cure(v)
	cure := firstSentence(whole)
	if !strings.Contains(cure, "`") {
		if _, rest, found := strings.Cut(cause.Proof(v), "`"); found {
			command, _, _ := strings.Cut(rest, "`")
			return cure + " Look: `" + command + "`"
		}
	}
	if cure != whole {
		cure += " Else: `vfsprobe check -explain`."
	}
	return cure
}

// firstSentence is the text up to the first full stop outside of commands that ends a sentence.
func firstSentence(text string) string {
	inCommand := false
	for i := range len(text) {
		switch {
		case text[i] == '`':
			inCommand = !inCommand
		case text[i] == '.' && !inCommand && strings.HasPrefix(text[i+1:], " "):
			return text[:i+1]
		}
	}
	return text
}

func joined(place, evidence string) string {
	if place == "" || evidence == "" {
		return place + evidence
	}
	return place + ": " + evidence
}

// on is what something is on: a server or a device, and the kind of file system.
func on(m *Metric) string {
	return strings.TrimSpace(m.place() + " " + parenthesized(m.Tags["fstype"]))
}

func cells(m *Metric) []string {
	since, used := "", ""
	switch seconds := m.float("fault_seconds"); {
	case seconds >= 1:
		since = duration(seconds)
	case seconds > 0:
		since = "<1s" // as of all faults that it has seen begin
	}
	if share, found := m.Fields["used_percent"].(float64); found {
		used = percent(share)
	}
	return []string{m.text("result"), since, used, string(m.cause()), m.subject()}
}

// healthy sums up what is no problem.
func (r *Report) healthy(t *Text, all bool) {
	var lines []string
	for _, measurement := range r.measurements() {
		counts, reasons := make(map[string]int), make(map[string]int)
		for i := range r.Metrics {
			m := &r.Metrics[i]
			if m.Name != measurement || !m.isHealthy() {
				continue
			}
			code, _ := m.code()
			counts[code.String()]++
			if code == result.Unchecked {
				reasons[cmp.Or(m.text("reason"), string(m.cause()), "no reason given")]++
			}
		}
		var summary []string
		for _, name := range slices.Sorted(maps.Keys(counts)) {
			summary = append(summary, fmt.Sprintf("%d %s", counts[name], name))
		}
		if len(summary) > 0 {
			lines = append(lines, "  "+title(measurement)+": "+strings.Join(summary, ", "))
		}
		for _, reason := range slices.Sorted(maps.Keys(reasons)) {
			lines = append(lines, fmt.Sprintf("    %d unchecked: %s", reasons[reason], reason))
		}
	}
	if all || len(lines) == 0 {
		return
	}
	t.Line(OK, "")
	t.heading("No fault (-all lists them)")
	for _, line := range lines {
		t.Line(OK, line)
	}
}

const (
	// full is how much of a file system is used, in percent, where it is shown.
	full = 85
	// fullest is how many of them are.
	fullest = 10
)

// capacity shows file systems that fill up, the fullest first, each once.
func (r *Report) capacity(t *Text) {
	seen := make(map[string]bool)
	var filling []*Metric
	for i := range r.Metrics {
		m := &r.Metrics[i]
		fills := max(m.float("used_percent"), m.float("inodes_used_percent")) >= full
		same := m.place() + " " + fmt.Sprint(m.integer("total"), m.integer("free"))
		if m.Name == "mountstat" && fills && !seen[same] && m.Tags["mode"] != "ro" {
			seen[same] = true
			filling = append(filling, m)
		}
	}
	slices.SortStableFunc(filling, func(a, b *Metric) int {
		return cmp.Compare(max(b.float("used_percent"), b.float("inodes_used_percent")), max(a.float("used_percent"), a.float("inodes_used_percent")))
	})
	table := [][]string{{"USED", "OF", "FREE", "INODES", "WHAT"}}
	for _, m := range filling[:min(len(filling), fullest)] {
		inodes := ""
		if share, found := m.Fields["inodes_used_percent"].(float64); found {
			inodes = percent(share)
		}
		table = append(table, []string{percent(m.float("used_percent")), size(m.integer("total")), size(m.integer("free")), inodes, m.subject()})
	}
	t.section("Filling up", table, make([]Status, len(table)))
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
					return duration(m.float(name + "_seconds"))
				}
			}
			return ""
		}
		table = append(table, []string{strings.TrimSpace(m.Tags["server"] + " " + parenthesized(m.Tags["service"])), fmt.Sprint(m.integer("mounts")), fmt.Sprint(m.integer("faults")),
			answer("rpc", "nfs"), answer("rpcbind"), answer("nlm"), answer("nsm")})
		states = append(states, Critical)
	}
	t.section("Servers", table, states)
}

func (r *Report) blocked(t *Text) {
	table := [][]string{{"TASKS", "FOR", "COMMAND", "WAITS IN", "SUCH AS", "ON"}}
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
		table = append(table, []string{fmt.Sprint(m.integer("count")), "> " + duration(m.float("longest_seconds")), shortened(m.Tags["comm"]),
			m.Tags["wchan"], pid, m.Tags["path"]})
		states = append(states, Warning)
	}
	t.section("Blocked", table, states)
}

// shortened is the name of a program, as long as the kernel lets it be: bytes that can't be
// printed make it longer.
func shortened(comm string) string {
	const most = 16 // TASK_COMM_LEN, include/linux/sched.h
	if runes := []rune(comm); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return comm
}

// dentries shows the numbers of the dentry cache; of those that are settings only with all.
func (r *Report) dentries(t *Text, all bool) {
	for i := range r.Metrics {
		m := &r.Metrics[i]
		if m.Name != "dentrycache" || len(m.Tags) > 0 {
			continue
		}
		var numbers []string
		for _, field := range slices.Sorted(maps.Keys(m.Fields)) {
			setting := strings.HasPrefix(field, "vfs_cache_pressure") || slices.Contains([]string{"hash_buckets", "drop_slab", "dentry_negative"}, field)
			if text := number(field, m.Fields[field]); text != "" && (all || !setting) {
				numbers = append(numbers, text)
			}
		}
		t.Line(OK, "")
		t.heading(title(m.Name))
		for i := range numbers[:max(0, len(numbers)-1)] {
			numbers[i] += ","
		}
		t.fill(OK, "  ", numbers) // each with its unit
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
			t.wrapped("  ", line.Input+": "+line.Text)
		}
	}
}

// Text writes lines in colors, and remembers the first error.
type Text struct {
	w      io.Writer
	color  bool
	indent string // of tables
	err    error
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

// NewText returns a Text that writes to w, without colors unless color is set.
func NewText(w io.Writer, color bool) *Text { return &Text{w: w, color: color, indent: "  "} }

// Err is the first error of writing.
func (t *Text) Err() error { return t.err }

// Wrapped writes a text, in the color of the status, in lines that fit a terminal.
func (t *Text) Wrapped(s Status, text string) { t.fill(s, "  ", words(text)) }

// Line writes a line in the color of the status.
func (t *Text) Line(s Status, line string) {
	t.write([...]string{OK: "", Warning: yellow, Critical: red, Unknown: purple}[s], line)
}

func (t *Text) heading(line string) { t.write(bold, line) }

// section writes a table with rows.
func (t *Text) section(title string, table [][]string, states []Status) {
	if len(table) > 1 {
		t.Line(OK, "")
		t.heading(title)
		t.Table(table, states)
	}
}

// Table writes a header and rows in columns. Columns without content are left
// out.
func (t *Text) Table(rows [][]string, states []Status) { t.rows(rows, states, func(int) {}) }

// rows is Table, and calls after behind each row.
func (t *Text) rows(rows [][]string, states []Status, after func(row int)) {
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
		space := t.indent
		for column, cell := range row {
			if widths[column] == 0 {
				continue
			}
			b.WriteString(space + cell)
			space = "  "
			if column != last {
				b.WriteString(strings.Repeat(" ", widths[column]-utf8.RuneCountInString(cell)))
			}
		}
		state := OK
		if i > 0 {
			state = states[i-1]
		}
		t.Line(state, strings.TrimRight(b.String(), " "))
		if i > 0 {
			after(i - 1)
		}
	}
}

// columns is how wide text is: that of a terminal which nobody has made wider.
const columns = 80

// wrapped writes a text in lines that are indented, the second and further ones by two more. A
// command in backquotes is not broken, so that it can be copied.
func (t *Text) wrapped(indent, text string) { t.fill(OK, indent, words(text)) }

// fill writes words likewise, none of which is broken.
func (t *Text) fill(s Status, indent string, words []string) {
	line := ""
	for _, word := range words {
		switch {
		case line == "":
			line = indent + word
			indent += "  "
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= columns:
			line += " " + word
		default:
			t.Line(s, line)
			line = indent + word
		}
	}
	if line != "" {
		t.Line(s, line)
	}
}

// words are what a line may be broken between.
func words(text string) []string {
	var all []string
	for part := range strings.FieldsSeq(text) {
		if last := len(all) - 1; last >= 0 && strings.Count(all[last], "`")%2 == 1 {
			all[last] += " " + part
		} else {
			all = append(all, part)
		}
	}
	return all
}
