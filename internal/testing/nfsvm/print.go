package main

import (
	"fmt"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

const columns = "%-5s %-36s %-72s %-48s %8s %9s\n"

// logLines is how much of vfsprobe's log is shown of a scenario that failed.
const logLines = 30

func heading() string {
	return strings.TrimRight(fmt.Sprintf(columns, "", "scenario", "expected", "got", "report s", "recover s"), "\n")
}

// print prints a line per mount of a scenario, and more about what failed.
// In a line, an expectation that is known to fail stands in parentheses.
func print(r *report.Result) {
	for _, row := range r.Rows {
		name := r.Scenario
		if row.Phase > 1 {
			name = fmt.Sprintf("%s#%d", name, row.Phase)
		}
		if row.Mount != "" {
			name += "/" + row.Mount
		}
		want, got := row.Summary()
		if want == "" {
			want, got = "recovers", "recovers"
		}
		verdict := "ok"
		if row.Failed() {
			verdict = "FAIL"
		}
		fmt.Printf(columns, verdict, name, want, got, seconds(row.Report), seconds(row.Recover))
		for _, check := range row.Checks {
			switch check.Verdict() {
			case report.Failed:
				fmt.Printf("      %s: expected %s, got %s\n", check.What, check.Want, check.Got)
			case report.Unexpected:
				fmt.Printf("      %s: is %s as it should be, though marked as not yet (%s): remove the mark\n", check.What, check.Got, check.NotYet)
			}
		}
	}
	for _, err := range r.Errors {
		fmt.Printf("FAIL  %s: %s\n", r.Scenario, err)
	}
	if more := len(r.Log) - logLines; more > 0 {
		fmt.Printf("      | (%d lines of log before these)\n", more)
	}
	for _, line := range r.Log[max(0, len(r.Log)-logLines):] {
		fmt.Printf("      | %s\n", line)
	}
	fmt.Printf("      %s took %.0f s\n", r.Scenario, r.Seconds)
}

func seconds(s float64) string {
	if s < 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", s)
}
