package report

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Summary is a row's expectations and what was seen, in one line each. Those
// which are known to fail stand in parentheses.
func (r Row) Summary() (want, got string, ok bool) {
	var wants, gots []string
	ok = true
	for _, c := range r.Checks {
		verdict := c.Verdict()
		ok = ok && verdict != Failed && verdict != Unexpected
		if c.What == "recovers" || strings.HasPrefix(c.Want, "never ") {
			continue // its time is a column of its own
		}
		name := ""
		if measurement, field, found := strings.Cut(c.What, " "); !found || field == "left" {
			name = c.What + " "
		} else if measurement != "mountstat" {
			name = measurement + " "
		}
		w, g := name+c.Want, name+c.Got
		if verdict == ExpectedToFail {
			w, g = "("+w+")", "("+g+")"
		}
		wants, gots = append(wants, w), append(gots, g)
	}
	return strings.Join(wants, ", "), strings.Join(gots, ", "), ok
}

// The markers between which the table goes.
const (
	tableBegin = "<!-- begin: NFS faults, written by make faults-nfs -->"
	tableEnd   = "<!-- end: NFS faults -->"
)

// WriteTable writes the results into a Markdown file, between its markers.
func WriteTable(file string, results []*Result) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !found || !ended {
		return fmt.Errorf("%s: the markers %q and %q are needed", file, tableBegin, tableEnd)
	}
	return os.WriteFile(file, []byte(before+tableBegin+"\n"+Table(results)+tableEnd+after), 0o644)
}

// Table renders what was seen as Markdown.
func Table(results []*Result) string {
	var b strings.Builder
	b.WriteString("| scenario | mount | expected | reported | system calls | seconds to report | to recover |\n|---|---|---|---|---|---|---|\n")
	results = slices.Clone(results)
	slices.SortFunc(results, func(a, b *Result) int { return strings.Compare(a.Scenario, b.Scenario) })
	for _, r := range results {
		for _, row := range r.Rows {
			if row.Mount == "" || strings.HasPrefix(row.Mount, "healthy-") {
				continue
			}
			calls := Row{}
			said := Row{}
			for _, c := range row.Checks {
				if strings.Contains(c.What, " ") || c.What == "recovers" {
					said.Checks = append(said.Checks, c)
				} else {
					calls.Checks = append(calls.Checks, c)
				}
			}
			want, got, _ := said.Summary()
			_, seen, _ := calls.Summary()
			name := r.Scenario
			if row.Phase > 1 {
				name = fmt.Sprintf("%s (%d)", name, row.Phase)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n",
				name, escape(row.Mount), escape(want), escape(got), escape(seen), cell(row.Report), cell(row.Recover))
		}
	}
	return b.String()
}

func escape(s string) string { return strings.NewReplacer("|", " or ", "*", `\*`).Replace(s) }

func cell(s float64) string {
	if s < 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", s)
}
