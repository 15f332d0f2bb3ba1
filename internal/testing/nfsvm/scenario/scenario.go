// Package scenario reads the descriptions of NFS faults: what is mounted, what
// breaks, and what vfsprobe must say about it. docs/NFS-SCENARIOS.md explains
// the language.
package scenario

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Scenario is one file.
type Scenario struct {
	Name  string
	Title string // the first comment
	Steps []Step
}

// Takes is about how long it takes, to begin with the longest: what its lines wait for, and a
// second for each line. The kernel needs some 20 s to unmount what nobody uses.
func (s *Scenario) Takes() (sum time.Duration) {
	for _, step := range s.Steps {
		sum += time.Second
		switch step.Verb {
		case "wait":
			d, _ := time.ParseDuration(step.Arguments[0])
			sum += d
		case "expire":
			sum += 20 * time.Second
		}
	}
	return sum
}

// A Step is one line: something to do, or something to hold.
type Step struct {
	Line      int
	Verb      string
	Arguments []string
	Statement *Statement // of expect, never and witness; nil for the others
}

// A Statement says what must be seen at some mounts.
type Statement struct {
	Mounts []string
	// Input and Field name what vfsprobe reports: a measurement and its field.
	// Both are empty where a witness tries a system call, which Calls names.
	Input, Field string
	Calls        []string
	Values       []string // any of them; None stands for an absent field, LOW..HIGH for a number
	// Tolerance is that of counts, in seconds, which has no Values.
	Tolerance float64
	NotYet    string // why it is expected to fail; empty if it is not
}

// None is the value of a field which is not there.
const None = "-"

// Host stands for the machine in place of a mount: what is reported without a
// path.
const Host = "host"

// Has tells whether the value is one of the statement's.
func (s *Statement) Has(value string) bool {
	return slices.ContainsFunc(s.Values, func(wanted string) bool {
		low, high, isRange := strings.Cut(wanted, "..")
		if !isRange {
			return value == wanted
		}
		from, errFrom := strconv.ParseFloat(low, 64)
		to, errTo := strconv.ParseFloat(high, 64)
		got, err := strconv.ParseFloat(value, 64)
		return errors.Join(errFrom, errTo, err) == nil && from <= got && got <= to
	})
}

// Parse reads a scenario. The name is for messages.
func Parse(name, text string) (*Scenario, error) {
	s := &Scenario{Name: name}
	lines := bufio.NewScanner(strings.NewReader(text))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if comment, ok := strings.CutPrefix(line, "#"); ok || line == "" {
			if s.Title == "" {
				s.Title = strings.TrimSpace(comment)
			}
			continue
		}
		step, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		step.Line = number
		s.Steps = append(s.Steps, step)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

func parseStep(line string) (Step, error) {
	line, notYet, marked := strings.Cut(line, "; not yet:")
	notYet = strings.TrimSpace(notYet)
	words := strings.Fields(line)
	if len(words) == 0 {
		return Step{}, fmt.Errorf("nothing is marked as not yet")
	}
	step := Step{Verb: words[0], Arguments: words[1:]}
	verb, ok := lookup(step.Verb)
	if !ok {
		return Step{}, fmt.Errorf("unknown verb %q", step.Verb)
	}
	if n := len(step.Arguments); n < verb.Min || n > verb.Max {
		return Step{}, fmt.Errorf("usage: %s %s", verb.Name, verb.Usage)
	}
	if len(verb.First) > 0 && !slices.Contains(verb.First, step.Arguments[0]) {
		return Step{}, fmt.Errorf("%s %s: want one of %s", verb.Name, step.Arguments[0], strings.Join(verb.First, ", "))
	}
	if verb.Statement {
		var err error
		if step.Statement, err = newStatement(&step); err != nil {
			return Step{}, err
		}
		step.Statement.NotYet = notYet
	}
	switch {
	case marked && step.Statement == nil:
		return Step{}, fmt.Errorf("%s is no statement, and can't be marked as not yet", step.Verb)
	case marked && notYet == "":
		return Step{}, fmt.Errorf("the mark lacks its reason")
	}
	return step, nil
}

func newStatement(step *Step) (*Statement, error) {
	list := func(s, separator string) []string {
		return slices.DeleteFunc(strings.Split(s, separator), func(s string) bool { return s == "" })
	}
	a := step.Arguments
	s := &Statement{Mounts: list(a[0], ","), Values: list(a[len(a)-1], "|")}
	switch step.Verb {
	case "witness":
		s.Calls = list(a[1], ",")
		return s, nil
	case "counts":
		var err error
		if s.Tolerance, err = strconv.ParseFloat(a[3], 64); err != nil || s.Tolerance <= 0 {
			return nil, fmt.Errorf("counts: the tolerance %q is no number of seconds", a[3])
		}
		s.Values = nil
	}
	s.Input, s.Field = a[1], a[2]
	return s, nil
}

// check finds what no single line shows.
func (s *Scenario) check() error {
	if s.Title == "" {
		return fmt.Errorf("the first line must be a comment that says what happens")
	}
	mounted := map[string]bool{Host: true, "healthy-v3": true, "healthy-v4": true}
	observed, recovers, tested := false, false, false
	for _, step := range s.Steps {
		fail := func(format string, arguments ...any) error {
			return fmt.Errorf("line %d: "+format, append([]any{step.Line}, arguments...)...)
		}
		switch step.Verb {
		case "mount":
			for _, name := range s.mounts(step) {
				if mounted[name] {
					return fail("%s is mounted twice", name)
				}
				mounted[name] = true
			}
		case "walk":
			mounted[step.Arguments[0]] = true
		case "many", "crowd":
			mounted[step.Arguments[1]+"-*"] = true
		case "observe":
			observed = true
		case "recover":
			recovers = true
		case "tests":
			tested = true
		}
		if step.Statement == nil {
			continue
		}
		if !observed {
			return fail("%s comes before observe", step.Verb)
		}
		if len(step.Statement.Mounts) == 0 || len(step.Statement.Values) == 0 && step.Statement.Tolerance == 0 {
			return fail("%s without a mount or value", step.Verb)
		}
		for _, name := range step.Statement.Mounts {
			if !mounted[name] {
				return fail("%s is not mounted", name)
			}
		}
	}
	if tested && !observed {
		return nil // the tests observe and recover
	}
	if !observed || !recovers {
		return fmt.Errorf("observe and recover are needed: a fault which is not undone shows half of it")
	}
	return nil
}

// Standard are the mounts of "mount all": name and options.
func Standard() [][2]string {
	const soft = ",soft,timeo=5,retrans=1"
	return [][2]string{
		{"v3", "vers=3,hard"},
		{"v3-soft", "vers=3" + soft},
		{"v3-nolock", "vers=3,hard,nolock,nosharecache"},
		{"v4", "vers=4.2,hard"},
		{"v4-soft", "vers=4.2" + soft},
	}
}

func (s *Scenario) mounts(step Step) []string {
	if step.Arguments[0] != "all" {
		return step.Arguments[:1]
	}
	var names []string
	for _, mount := range Standard() {
		names = append(names, mount[0])
	}
	return names
}
