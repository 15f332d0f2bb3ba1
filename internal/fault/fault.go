// Package fault keeps what happened to one thing that is checked: since when it hangs
// or is at fault, when it was last well, and how often it has recovered.
package fault

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// Observation is what one check has found.
type Observation struct {
	Code result.Code
	// Hangs says that there was no answer. Such a check may be no fault yet: a lock
	// waits for the server's grace period to end.
	Hangs bool
	// Answered says that there was an answer.
	Answered bool
	Began    time.Time // the check; zero: At
	At       time.Time // when this was found
	// Inconclusive observations neither begin nor end a fault.
	Inconclusive bool
}

// History is what is known about one thing that is checked. The zero History knows nothing.
type History struct {
	Known      bool // it was observed
	Answered   bool // the last check that was made
	HungSince  time.Time
	FaultSince time.Time
	LastOK     time.Time
	Recoveries int64
	// FaultTotal is how long past faults have lasted together.
	FaultTotal time.Duration
}

// Notable reports whether there is more to tell than that all was always well.
func (h *History) Notable() bool {
	return !h.HungSince.IsZero() || !h.FaultSince.IsZero() || h.Recoveries > 0 || h.FaultTotal > 0
}

// Kept is the history as it is kept across a restart. When the thing was last well matters only
// while it is not well. Times are in UTC: for local ones Go would read the time zone's file.
func (h *History) Kept() History {
	kept := *h
	if h.FaultSince.IsZero() {
		kept.LastOK = time.Time{}
	}
	for _, t := range []*time.Time{&kept.HungSince, &kept.FaultSince, &kept.LastOK} {
		*t = t.UTC()
	}
	return kept
}

// Observe notes what a check has found. It returns how long a fault had lasted until then.
func (h *History) Observe(o Observation) (lasted time.Duration) {
	if o.Began.IsZero() {
		o.Began = o.At
	}
	if !h.FaultSince.IsZero() {
		lasted = o.At.Sub(h.FaultSince)
	}
	h.Known = true
	switch {
	case o.Hangs:
		h.Answered = false
		if h.HungSince.IsZero() {
			h.HungSince = o.Began
		}
	case o.Answered:
		h.Answered = true
		h.HungSince = time.Time{}
	}
	switch {
	case o.Code.Fault():
		if h.FaultSince.IsZero() {
			h.FaultSince = o.At
			if o.Hangs {
				h.FaultSince = h.HungSince
			}
		}
	case o.Inconclusive:
	default:
		if !h.FaultSince.IsZero() {
			h.Recoveries++
			h.FaultTotal += lasted
		}
		h.FaultSince = time.Time{}
		if o.Code == result.OK || o.Code == result.Slow {
			h.LastOK = o.At
		}
	}
	return lasted
}

// Hung reports whether the last check that was made had no answer.
func (h *History) Hung() bool { return !h.HungSince.IsZero() }

// AddTo adds the fields that every input reports: hung_seconds, fault_seconds,
// fault_seconds_total, recoveries and, once it was well, last_ok_seconds_ago.
func (h *History) AddTo(fields map[string]any) {
	fields["hung_seconds"] = SecondsSince(h.HungSince)
	fields["fault_seconds"] = SecondsSince(h.FaultSince)
	fields["fault_seconds_total"] = h.FaultTotal.Seconds() + SecondsSince(h.FaultSince)
	fields["recoveries"] = h.Recoveries
	if !h.LastOK.IsZero() {
		fields["last_ok_seconds_ago"] = SecondsSince(h.LastOK)
	}
}

// SecondsSince is the time that has passed in seconds; 0 since the zero time.
func SecondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

// Verdict is what a helper's report says by itself.
type Verdict struct {
	Code result.Code
	// Answered says that the helper came to the end of its plan, or to a call that failed.
	Answered bool
	// Call is the step that hangs; empty where that is not known.
	Call string
	// Reason says why nothing was checked.
	Reason string
	// PID is the helper that is stuck; 0: none is. Wait is how it waits.
	PID  int
	Wait prober.Wait
}

// Hangs reports whether there was no answer.
func (v *Verdict) Hangs() bool { return v.Code == result.Timeout || v.Code == result.Stuck }

// VerdictOf judges a report by its outcome alone. A plan that came to its end or to a
// failure is OK, and the input judges it further. A check also hangs if it got no place because
// the helper of another check hangs in the same thing.
func VerdictOf(r *prober.Report) Verdict {
	switch r.Outcome {
	case prober.Expired:
		return Verdict{Code: result.Timeout, Call: r.HangsIn}
	case prober.Stuck, prober.Busy:
		return Verdict{Code: result.Stuck, Call: r.HangsIn, PID: r.PID, Wait: r.Wait}
	case prober.Capped, prober.Died, prober.Unavailable:
		if r.HangsIn != "" {
			return Verdict{Code: result.Timeout, Call: r.HangsIn}
		}
		return Verdict{Code: result.Unchecked, Reason: fmt.Sprint(r.Err)}
	}
	if r.Err != nil || len(r.Steps) == 0 {
		return Verdict{Code: result.Unchecked, Reason: errors.Join(r.Err, errors.New("the helper gave no answer")).Error()}
	}
	return Verdict{Answered: true}
}

// Survival tells, for the log, why a stuck helper is still there.
func Survival(r *prober.Report) string {
	if r.Wait == prober.Asleep {
		return ", asleep and to nobody's harm"
	}
	return " and survives SIGKILL"
}

// CodeOf is the result for a call that failed with an errno.
func CodeOf(errno syscall.Errno) result.Code {
	switch errno {
	case 0:
		return result.OK
	case unix.EACCES, unix.EPERM:
		return result.Denied
	case unix.ESTALE:
		return result.Stale
	}
	return result.Error
}
