package report

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Summary is what vfsprobe was expected to say and what it said, in one line
// each. What is known to fail stands in parentheses.
func (r Row) Summary() (want, got string) {
	return summary(r.Checks, func(c Check) bool {
		return !c.Witness() && c.What != "recovers" && !strings.HasPrefix(c.Want, "never ")
	})
}

// Calls are the system calls that were tried, and how they ended.
func (r Row) Calls() string {
	_, got := summary(r.Checks, Check.Witness)
	return got
}

func summary(checks []Check, wanted func(Check) bool) (want, got string) {
	var wants, gots []string
	for _, c := range checks {
		if !wanted(c) {
			continue
		}
		name := ""
		if measurement, field, found := strings.Cut(c.What, " "); !found || field == "left" {
			name = c.What + " "
		} else if measurement != "mountstat" {
			name = measurement + " "
		}
		w, g := name+c.Want, name+c.Got
		if c.Verdict() == ExpectedToFail {
			w, g = "("+w+")", "("+g+")"
		}
		wants, gots = append(wants, w), append(gots, g)
	}
	return strings.Join(wants, ", "), strings.Join(gots, ", ")
}

// Failed tells whether a check has failed, or should have.
func (r Row) Failed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Verdict() == Failed || c.Verdict() == Unexpected })
}

// The markers between which the table goes.
const (
	tableBegin = "<!-- nfs -->"
	tableEnd   = "<!-- /nfs -->"
)

// WriteTable writes the results into a Markdown file, between its markers. Of scenarios that
// were not run, and are among all that there are, it leaves what is there.
func WriteTable(file string, results []*Result, all []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), tableBegin)
	old, after, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		return fmt.Errorf("%s: the markers %q and %q are needed", file, tableBegin, tableEnd)
	}
	rows := rowsByScenario(old)
	maps.DeleteFunc(rows, func(name, _ string) bool { return !slices.Contains(all, name) })
	for _, r := range results {
		rows[r.Scenario] = r.rows()
	}
	var b strings.Builder
	b.WriteString("| fault | mount | expected | reported | system calls | seconds to report | to recover |\n|---|---|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	return os.WriteFile(file, []byte(before+tableBegin+"\n"+b.String()+tableEnd+after), 0o644)
}

// rowsByScenario are a table's rows, of which the first of each scenario has its name.
func rowsByScenario(table string) map[string]string {
	rows := make(map[string]string)
	name := ""
	for line := range strings.Lines(table) {
		if title, begins := strings.CutPrefix(line, "| **"); begins {
			name, _, _ = strings.Cut(title, "**")
		}
		if name != "" {
			rows[name] += line
		}
	}
	return rows
}

// rows renders what was seen as rows of the table.
func (r *Result) rows() string {
	var b strings.Builder
	for i, row := range r.joined() {
		title := ""
		if i == 0 {
			title = fmt.Sprintf("**%s**: %s", r.Scenario, r.Title)
		}
		mount := row.Mount
		if row.After != "" {
			mount += " after " + row.After
		}
		want, got := row.Summary()
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n",
			escape(title), escape(mount), escape(want), escape(got), row.Calls(), cell(row.Report), cell(row.Recover))
	}
	return b.String()
}

// joined are the rows of the mounts that had the fault. What was seen in a later
// phase, in which nothing new was to be reported, belongs to the earlier one.
func (r *Result) joined() []Row {
	var rows []Row
	for _, row := range r.Rows {
		if row.Mount == "" || strings.HasPrefix(row.Mount, "healthy-") {
			continue
		}
		want, _ := row.Summary()
		i := len(rows) - 1
		for ; i >= 0 && rows[i].Mount != row.Mount; i-- {
		}
		switch {
		case want != "":
			rows = append(rows, row)
		case i >= 0:
			rows[i].Checks = slices.Concat(rows[i].Checks, row.Checks)
			rows[i].Recover = max(rows[i].Recover, row.Recover)
		}
	}
	return rows
}

func escape(s string) string { return strings.NewReplacer("|", " or ", "-*", `-\*`).Replace(s) }

func cell(s float64) string {
	if s < 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", s)
}
