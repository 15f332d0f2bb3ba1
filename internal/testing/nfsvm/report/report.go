// Package report holds what a run of the scenarios has found.
package report

import "strings"

// A Row is what was expected and seen at one mount in one phase of a scenario.
type Row struct {
	Phase  int    `json:"phase,omitempty"`
	After  string `json:"after,omitempty"` // what was done before this phase, if not the fault
	Mount  string `json:"mount"`           // empty: the host
	Checks []Check
	// Report and Recover are the seconds from the fault to the report, and from
	// the heal to the end of it; negative where there was none.
	Report  float64 `json:"report"`
	Recover float64 `json:"recover"`
}

// A Check is one statement about one mount.
type Check struct {
	What   string `json:"what"` // such as "mountstat result"
	Want   string `json:"want"`
	Got    string `json:"got"`
	NotYet string `json:"not_yet,omitempty"`
	OK     bool   `json:"ok"`
}

// Witness tells whether the check is of a system call, and not of what vfsprobe
// says.
func (c Check) Witness() bool {
	return !strings.Contains(c.What, " ") && c.What != "recovers" && c.What != "helpers_stuck"
}

// Verdict of a check.
type Verdict int

// The verdicts. Unexpected is a check that holds although it was marked as
// expected to fail: the mark must go.
const (
	Passed Verdict = iota
	Failed
	ExpectedToFail
	Unexpected
)

// Verdict weighs the mark.
func (c Check) Verdict() Verdict {
	switch {
	case c.OK && c.NotYet == "":
		return Passed
	case c.OK:
		return Unexpected
	case c.NotYet == "":
		return Failed
	}
	return ExpectedToFail
}

// A Result is what came of one scenario.
type Result struct {
	Scenario string   `json:"scenario"`
	Title    string   `json:"title"`
	Rows     []Row    `json:"rows"`
	Errors   []string `json:"errors,omitempty"` // of the scenario itself: a step that can't be done
	Log      []string `json:"log,omitempty"`    // vfsprobe's, of a scenario that failed
	Lines    []string `json:"lines,omitempty"`  // line protocol: of each series the last point under the fault
	Seconds  float64  `json:"seconds"`
}

// Counts of checks by verdict.
type Counts struct{ Passed, Failed, ExpectedToFail int }

// Count counts a scenario's checks. One that could not be run to its end
// counts as a failure more.
func (r *Result) Count() Counts {
	c := Counts{Failed: len(r.Errors)}
	for _, row := range r.Rows {
		for _, check := range row.Checks {
			switch check.Verdict() {
			case Passed:
				c.Passed++
			case ExpectedToFail:
				c.ExpectedToFail++
			default:
				c.Failed++
			}
		}
	}
	return c
}
