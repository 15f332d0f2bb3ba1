package guest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
)

const (
	// deadline is how long a report or a recovery may take.
	deadline = 90 * time.Second
	// watch is how long a phase is watched at least, so that what must hold all
	// the time is seen to.
	watch = 6 * time.Second
	// silence is how long nothing may be said about a mount.
	silence = 10 * time.Second
	// stopLimit is how long vfsprobe or Telegraf may take to stop.
	stopLimit = 10 * time.Second
)

// okOnly are the results of a mount that works. A slow answer on a busy
// machine is no fault.
func okOnly(value string) bool { return value == "ok" || value == "slow" }

// noFault are the results of a mount whose locks work, or prove nothing.
func noFault(value string) bool { return okOnly(value) || value == "unchecked" }

// anything is any result.
func anything(value string) bool { return value != scenario.None }

// valueOf is a sample's value of a field.
func valueOf(s sample, field string) string {
	if value, ok := s.Fields[field]; ok {
		return value
	}
	if value, ok := s.Tags[field]; ok {
		return value
	}
	return scenario.None
}

// latest is what was last said, by how many mounts if there are several.
func (r *run) latest(since time.Time, mount, input, field string) string {
	counts := map[string]int{}
	for _, path := range paths(mount) {
		value := scenario.None
		if samples := r.observer.since(since, input, path); len(samples) > 0 {
			value = valueOf(samples[len(samples)-1], field)
		}
		counts[value]++
	}
	var values []string
	for value, n := range counts {
		if strings.Contains(mount, "*") {
			value = fmt.Sprintf("%d×%s", n, value)
		}
		values = append(values, value)
	}
	slices.Sort(values)
	return strings.Join(values, " ")
}

// settledAt is when the result of all mounts began to be what it still is.
func (r *run) settledAt(since time.Time, mount string, good func(string) bool) (time.Time, bool) {
	return r.settled(since, mount, "mountstat", "result", good)
}

func (r *run) settled(since time.Time, mount, input, field string, good func(string) bool) (time.Time, bool) {
	var all time.Time
	for _, path := range paths(mount) {
		samples := r.observer.since(since, input, path)
		first := len(samples)
		for first > 0 && good(valueOf(samples[first-1], field)) {
			first--
		}
		if first == len(samples) || time.Since(samples[len(samples)-1].at) > silence {
			return time.Time{}, false
		}
		if at := samples[first].at; at.After(all) {
			all = at
		}
	}
	return all, !all.IsZero()
}

// always tells whether every sample is good, and there are some.
func (r *run) always(since time.Time, mount, input, field string, good func(string) bool) (bad string, ok bool) {
	for _, path := range paths(mount) {
		samples := r.observer.since(since, input, path)
		for _, s := range samples {
			if value := valueOf(s, field); !good(value) {
				return value, false
			}
		}
		if len(samples) == 0 {
			return scenario.None, false
		}
		if quiet := time.Since(samples[len(samples)-1].at); quiet > silence && !slices.Contains(r.gone, mount) {
			return fmt.Sprintf("nothing for %.0f s", quiet.Seconds()), false
		}
	}
	return "", true
}

// pending is a statement about one mount, and the row it belongs to.
type pending struct {
	statement *scenario.Statement
	mount     string
	call      string // of a witness
	row       int
	check     report.Check
	at        time.Time // when it settled
}

// judge watches until all statements hold that should, or their time is up.
func (r *run) judge(statements []*scenario.Statement) {
	r.phase++
	r.clocked = false
	var expected, witnessed []*pending
	for _, s := range statements {
		for _, mount := range r.named(s.Mounts) {
			p := pending{statement: s, mount: mount, row: r.row(mount)}
			if s.Calls == nil {
				expected = append(expected, &p)
				continue
			}
			for _, call := range s.Calls {
				p := p
				p.call = call
				witnessed = append(witnessed, &p)
			}
		}
	}
	began := r.began
	done := make(chan struct{})
	go func() {
		r.witness(witnessed)
		close(done)
	}()
	for limit := began.Add(deadline); ; time.Sleep(100 * time.Millisecond) {
		open := false
		for _, p := range expected {
			r.look(p, began)
			open = open || !p.check.OK && p.statement.NotYet == ""
		}
		if time.Now().After(limit) || !open && time.Since(began) > watch && isClosed(done) {
			break
		}
	}
	<-done
	for _, p := range slices.Concat(expected, witnessed) {
		row := &r.result.Rows[p.row]
		row.Checks = append(row.Checks, p.check)
		if p.check.OK && !p.at.IsZero() {
			row.Report = max(row.Report, p.at.Sub(began).Seconds())
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// look judges an expectation by what has come so far.
func (r *run) look(p *pending, since time.Time) {
	s := p.statement
	p.check = report.Check{
		What: s.Input + " " + s.Field, Want: strings.Join(s.Values, "|"), NotYet: s.NotYet,
		Got: r.latest(since, p.mount, s.Input, s.Field),
	}
	if s.Field == "result" && slices.Equal(s.Values, []string{"ok"}) {
		var bad string
		if bad, p.check.OK = r.always(since, p.mount, s.Input, s.Field, okOnly); bad != "" {
			p.check.Got = bad
		}
		return
	}
	if s.Tolerance > 0 {
		p.check.Want = fmt.Sprintf("%s counts, ±%g s", s.Field, s.Tolerance)
		p.check.Got, p.check.OK = r.counts(since, p.mount, s)
		return
	}
	p.at, p.check.OK = r.settled(since, p.mount, s.Input, s.Field, s.Has)
}

// witness tries the calls: those of one line side by side, but for locks of one
// file, which exclude each other; one line after another, since a call that
// hangs can make the next one hang, by a lock of the directory.
func (r *run) witness(all []*pending) {
	for len(all) > 0 {
		n := slices.IndexFunc(all, func(p *pending) bool { return p.statement != all[0].statement })
		if n < 0 {
			n = len(all)
		}
		var wait sync.WaitGroup
		locks := map[string]*sync.Mutex{}
		for _, p := range all[:n] {
			if locks[p.mount] == nil {
				locks[p.mount] = &sync.Mutex{}
			}
			lock := locks[p.mount]
			wait.Go(func() {
				if isLock(p.call) {
					lock.Lock()
					defer lock.Unlock()
				}
				r.try(p)
			})
		}
		wait.Wait()
		all = all[n:]
	}
}

func (r *run) try(p *pending) {
	limit := callLimit
	if slices.Contains(p.statement.Values, hangs) || slices.Contains(p.statement.Values, stuck) {
		limit = hangLimit
	}
	got := r.observer.host.witness(p.call, "/mnt/"+p.mount, "lock-"+p.mount, limit)
	p.check = report.Check{
		What: p.call, Want: strings.Join(p.statement.Values, "|"), NotYet: p.statement.NotYet,
		Got: got, OK: slices.Contains(p.statement.Values, got),
	}
}

// named are the mounts which a statement names.
func (r *run) named(names []string) []string {
	var found []string
	if slices.Contains(names, scenario.Host) {
		found = append(found, scenario.Host)
	}
	for _, mount := range r.mounts {
		if slices.ContainsFunc(names, func(name string) bool { ok, _ := filepath.Match(name, mount); return ok || name == mount }) {
			found = append(found, mount)
		}
	}
	return found
}

// row is the row of a mount in this phase.
func (r *run) row(mount string) int {
	i := slices.IndexFunc(r.result.Rows, func(row report.Row) bool { return row.Mount == mount && row.Phase == r.phase })
	if i < 0 {
		i = len(r.result.Rows)
		r.result.Rows = append(r.result.Rows, report.Row{Phase: r.phase, After: r.after, Mount: mount, Report: -1, Recover: -1})
	}
	return i
}

// lastRow is the last row of a mount, made if there is none.
func (r *run) lastRow(mount string) *report.Row {
	for i := len(r.result.Rows) - 1; i >= 0; i-- {
		if r.result.Rows[i].Mount == mount {
			return &r.result.Rows[i]
		}
	}
	r.result.Rows = append(r.result.Rows, report.Row{Mount: mount, Report: -1, Recover: -1})
	return &r.result.Rows[len(r.result.Rows)-1]
}

func (r *run) expectNever(s *scenario.Statement) {
	for _, mount := range r.named(s.Mounts) {
		r.nevers = append(r.nevers, never{since: r.began, statement: s, mount: mount})
	}
}

// judgeNevers looks back, also at the mounts of the server that had no fault.
func (r *run) judgeNevers() {
	for _, n := range r.nevers {
		s := n.statement
		bad, ok := r.always(n.since, n.mount, s.Input, s.Field, func(value string) bool { return !s.Has(value) })
		row := r.lastRow(n.mount)
		row.Checks = append(row.Checks, report.Check{
			What: s.Input + " " + s.Field, Want: "never " + strings.Join(s.Values, "|"), Got: bad, NotYet: s.NotYet, OK: ok})
	}
	if r.checkRepeated {
		row := r.lastRow("")
		n := r.observer.repeated()
		row.Checks = append(row.Checks, report.Check{What: "repeated lines", Want: "0", Got: strconv.Itoa(n), OK: n == 0})
	}
	if r.observed.IsZero() || slices.Contains(r.gone, "healthy-v3") {
		return
	}
	row := r.lastRow("healthy-*")
	bad, ok := r.always(r.observed, "healthy-*", "mountstat", "result", okOnly)
	row.Checks = append(row.Checks, report.Check{What: "mountstat result", Want: "ok", Got: or(bad, "ok"), OK: ok})
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// recover waits until all mounts are ok again, and no helper is left.
func (r *run) recover() {
	healed := r.began
	var left []string
	_ = poll(deadline, func() error {
		left = helpersLeft(watch)
		// Helpers first: what they wait for is the mounts' recovery.
		if len(left) > 0 {
			return fmt.Errorf("helpers are left: %s", strings.Join(left, ", "))
		}
		for _, mount := range r.mounts {
			if _, ok := r.recovered(healed, mount); !ok {
				return fmt.Errorf("%s is not ok", mount)
			}
		}
		if got := r.hostValue(healed, "helpers_stuck"); got != "0" {
			return fmt.Errorf("helpers_stuck is %s", got)
		}
		return nil
	})
	for _, mount := range r.mounts {
		if strings.HasPrefix(mount, "healthy-") {
			continue
		}
		at, ok := r.recovered(healed, mount)
		row := r.lastRow(mount)
		if ok {
			row.Recover = max(0, at.Sub(healed).Seconds())
		}
		row.Checks = append(row.Checks, report.Check{What: "recovers", Want: "ok", OK: ok,
			Got: r.latest(healed, mount, "mountstat", "result") + ", locks " + r.latest(healed, mount, "nfslock", "result")})
	}
	row := r.lastRow("")
	stuck := r.hostValue(healed, "helpers_stuck")
	row.Checks = append(row.Checks,
		report.Check{What: "helpers_stuck", Want: "0", Got: stuck, OK: stuck == "0"},
		report.Check{What: "helpers left", Want: "none", Got: or(strings.Join(left, ", "), "none"), OK: len(left) == 0})
}

// recovered is when both inputs began to find no fault.
func (r *run) recovered(since time.Time, mount string) (time.Time, bool) {
	at, ok := r.settledAt(since, mount, okOnly)
	locksAt, locksOK := r.settled(since, mount, "nfslock", "result", noFault)
	if locksAt.After(at) {
		at = locksAt
	}
	return at, ok && locksOK
}

// hostValue is the latest of a field of the measurement vfsprobe.
func (r *run) hostValue(since time.Time, field string) string {
	samples := r.observer.since(since, "vfsprobe", "")
	if len(samples) == 0 {
		return scenario.None
	}
	return valueOf(samples[len(samples)-1], field)
}
