package checkup

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// Status is the state of the host, in the numbers that Nagios gives exit codes
// (Monitoring Plugins Development Guidelines, "Plugin Return Codes").
type Status int

const (
	OK       Status = 0
	Warning  Status = 1 // slow, or this user may not look
	Critical Status = 2 // hangs, fails, or is missing
	Unknown  Status = 3 // not everything could be looked at
)

func (s Status) String() string { return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[s] }

// MarshalText is the name in lower case.
func (s Status) MarshalText() ([]byte, error) { return []byte(strings.ToLower(s.String())), nil }

// Worse orders the states: what was not looked at may hang, but what is known to
// hang is certain.
func (s Status) Worse(than Status) bool {
	order := [...]int{OK: 0, Warning: 1, Critical: 3, Unknown: 2}
	return order[s] > order[than]
}

// Metric is one that an input has emitted, with strings that are safe for
// terminals.
type Metric struct {
	Name   string            `json:"name"`
	Tags   map[string]string `json:"tags"`
	Fields map[string]any    `json:"fields"`
}

// code is the metric's result_code. False: it has none, and is no row.
func (m *Metric) code() (result.Code, bool) {
	number, found := m.Fields["result_code"].(int64)
	return result.Code(number), found && number >= 0 && number < int64(result.Count)
}

func (m *Metric) text(field string) string {
	text, _ := m.Fields[field].(string)
	return text
}

func (m *Metric) float(field string) float64 {
	number, _ := m.Fields[field].(float64)
	return number
}

// shown is a field's value as text, or nothing.
func (m *Metric) shown(field string) string {
	if value, found := m.Fields[field]; found {
		return fmt.Sprint(value)
	}
	return ""
}

func (m *Metric) integer(field string) int64 {
	number, _ := m.Fields[field].(int64)
	return number
}

// cause is why it is at fault, in one word.
func (m *Metric) cause() result.Cause {
	return result.Cause(cmp.Or(m.text("cause"), m.text("diagnosis")))
}

// subject is what the metric is about: a mount point, mostly.
func (m *Metric) subject() string {
	subject := cmp.Or(m.Tags["path"], m.Tags["server"], m.Name)
	if container := m.Tags["container"]; container != "" {
		subject += " in " + container
	}
	return subject
}

// place is where the thing at fault is: many rows have it in common when a
// server dies.
func (m *Metric) place() string { return cmp.Or(m.Tags["server"], m.Tags["device"]) }

// status of a row.
func (m *Metric) status() Status {
	code, found := m.code()
	switch {
	case !found:
		return OK
	case code == result.Unchecked && m.cause() == result.GracePeriod:
		return Warning // no fault yet, but nobody gets a lock
	case code == result.Slow, code == result.Denied:
		return Warning
	case code.Fault():
		return Critical
	}
	return OK
}

// isHealthy reports whether it is a row without a problem.
func (m *Metric) isHealthy() bool {
	_, isRow := m.code()
	return isRow && m.status() == OK
}

// LogLine is what an input has logged.
type LogLine struct {
	Level string `json:"level"` // E, W or I
	Input string `json:"input"`
	Text  string `json:"text"`
}

// Report is what a checkup has found.
type Report struct {
	Status     Status    `json:"status"`
	Code       int       `json:"exit_code"`
	Summary    string    `json:"summary"`
	Incomplete string    `json:"incomplete,omitempty"` // why
	Elapsed    float64   `json:"elapsed_seconds"`
	Problems   []Problem `json:"problems"`
	Metrics    []Metric  `json:"metrics"`
	Log        []LogLine `json:"log"`
}

// Problem is a row that is not as it should be.
type Problem struct {
	Status      Status       `json:"status"`
	Measurement string       `json:"measurement"`
	Subject     string       `json:"subject"`
	Result      string       `json:"result"`
	Cause       result.Cause `json:"cause,omitempty"`
	Meaning     string       `json:"meaning,omitempty"` // of the cause
	Proof       string       `json:"proof,omitempty"`   // by hand
	Cure        string       `json:"cure,omitempty"`
	Evidence    string       `json:"evidence,omitempty"`
	metric      *Metric
}

// newReport makes a report without its conclusion.
func newReport(metrics []Metric, lines []LogLine) *Report {
	r := &Report{Metrics: metrics, Log: lines, Problems: []Problem{}}
	if r.Log == nil {
		r.Log = []LogLine{}
	}
	slices.SortStableFunc(r.Metrics, func(a, b Metric) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.subject(), b.subject()))
	})
	for i := range r.Metrics {
		m := &r.Metrics[i]
		if status := m.status(); status != OK {
			cause, v := m.cause(), values(m)
			r.Problems = append(r.Problems, Problem{
				Status: status, Measurement: m.Name, Subject: m.subject(), Result: m.text("result"),
				Cause: cause, Meaning: cause.Meaning(), Proof: cause.Proof(v), Cure: cause.Cure(v), Evidence: evidence(m), metric: m,
			})
		}
	}
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return b.compare(&a) })
	return r
}

// compare is more than 0 if a problem is worse than another: by its status, then one that hangs
// before one that fails, then the one that has lasted longer.
func (p *Problem) compare(other *Problem) int {
	switch {
	case p.Status.Worse(other.Status):
		return 1
	case other.Status.Worse(p.Status):
		return -1
	}
	hangs := func(p *Problem) int {
		if code, _ := p.metric.code(); code == result.Timeout || code == result.Stuck {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(hangs(p), hangs(other)), cmp.Compare(p.metric.float("fault_seconds"), other.metric.float("fault_seconds")))
}

// conclude sets the status and the summary.
func (r *Report) conclude() {
	var reasons []string
	for i := range r.Problems {
		p := &r.Problems[i]
		if p.Status.Worse(r.Status) {
			r.Status = p.Status
		}
		const most = 3
		if i < most {
			reasons = append(reasons, strings.TrimSpace(p.Subject+" "+p.Result+" "+parenthesized(string(p.Cause))))
		} else if i == most {
			reasons = append(reasons, fmt.Sprintf("%d more", len(r.Problems)-most))
		}
	}
	unknown := r.Incomplete
	rows := 0
	for i := range r.Metrics {
		if _, isRow := r.Metrics[i].code(); isRow {
			rows++
		}
	}
	for _, line := range r.failures() {
		unknown = cmp.Or(unknown, line.Text)
	}
	if unknown != "" {
		if Unknown.Worse(r.Status) {
			r.Status = Unknown
		}
		reasons = append(reasons, unknown)
	}
	if len(reasons) == 0 {
		reasons = append(reasons, fmt.Sprintf("%d checked, no fault", rows))
	}
	r.Summary, r.Code = strings.Join(reasons, "; "), int(r.Status)
}

// failures are the log lines which say that something could not be looked at.
// Warnings are of what the rows show.
func (r *Report) failures() []LogLine {
	return slices.DeleteFunc(slices.Clone(r.Log), func(l LogLine) bool { return l.Level != "E" })
}

// limits are the log lines about what this user or this kernel does not show.
func (r *Report) limits() []LogLine {
	return slices.DeleteFunc(slices.Clone(r.Log), func(l LogLine) bool { return l.Level != "I" })
}

func parenthesized(text string) string {
	if text == "" {
		return ""
	}
	return "(" + text + ")"
}

// JSON writes the report as one JSON object.
func (r *Report) JSON(w io.Writer) error {
	return WriteJSON(w, r)
}

// WriteJSON writes a report as one JSON object, indented.
func WriteJSON(w io.Writer, report any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(report)
}
