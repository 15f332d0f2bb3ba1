package prober

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

type pending struct {
	check    Check
	serial   uint64 // of the submission; its id may become another one
	id       uint64
	comm     string // of its helper
	compiled *compiled
	done     func(Report)
	deadline time.Time
	timer    *time.Timer // until it is too late to start it, and then of its helper
	ahead    *helper     // of the same key, for whose end it waits
	next     *pending    // in the queue
	decided  bool
	overdue  bool // its time is up, and it has got some more
}

// setTimerLocked sets the check's one timer: while it waits that ends in expireLocked, and when it has a
// helper in dueLocked.
func (p *Prober) setTimerLocked(w *pending, d time.Duration) {
	if w.timer != nil {
		w.timer.Reset(d)
		return
	}
	w.timer = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.unlock()
		if h := p.helpers[w.id]; h != nil {
			p.dueLocked(h)
		} else {
			p.expireLocked(w)
		}
	})
}

// decideLocked ends a check without a helper.
func (p *Prober) decideLocked(w *pending, r Report) {
	w.decided = true
	if r.HangsIn == "" {
		r.HangsAt = -1
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	p.completed = append(p.completed, callback{done: w.done, report: r})
}

// expireLocked refuses a check for which no place was found in time.
func (p *Prober) expireLocked(w *pending) {
	if w.decided {
		return
	}
	if h := w.ahead; h != nil {
		if h.stage == killed {
			return // it is released in a moment, one way or the other
		}
		if left := time.Until(w.deadline.Add(w.check.Plan.grace())); left > 0 {
			w.timer.Reset(left) // it may still tell
			return
		}
		if w.renewLocked() {
			w.timer.Reset(w.check.Plan.Timeout)
			return
		}
		if p.server != nil {
			p.readSlotLocked(p.server, h)
		}
		h.behind = slices.DeleteFunc(h.behind, func(o *pending) bool { return o == w })
		p.decideLocked(w, w.outwaitedLocked(h, h.nextStepLocked()))
		return
	}
	if left := time.Until(w.deadline) - w.check.Plan.Timeout/2; left > 0 {
		w.timer.Reset(left) // it was the time of a helper after which the check is queued again
		return
	}
	p.refuseLocked(w)
}

// renewLocked gives a check its whole time again, once, if this process did not run when the time
// was up: it was stopped, or the host was, and perhaps the helper too. Answers that the helper
// sent meanwhile are about to be read.
func (w *pending) renewLocked() bool {
	if w.overdue || time.Since(w.deadline) <= 2*w.check.Plan.grace() {
		return false
	}
	w.overdue = true
	w.deadline = time.Now().Add(w.check.Plan.Timeout)
	return true
}

// lateLocked reports whether too little of the check's time is left for a helper: a check that was
// started late on a busy machine must not be reported as one that hangs.
func (w *pending) lateLocked() bool { return time.Until(w.deadline) < w.check.Plan.Timeout/2 }

// refuseLocked ends a check for which there is no place, or no fork server.
func (p *Prober) refuseLocked(w *pending) {
	r := Report{Outcome: Capped, Err: fmt.Errorf("no place for another helper within %v, %d hang", w.check.Plan.Timeout/2, len(p.helpers)-p.fresh)}
	if p.server == nil {
		r = Report{Outcome: Unavailable, Err: errors.Join(errors.New("the fork server is being restarted"), p.restart.err)}
	}
	p.decideLocked(w, r)
}

// outwaitedLocked returns the report of a check that has waited so long for another helper of its
// key that no time is left for a helper of its own. If that helper hangs in a step that the check
// would make too, the check hangs as well, unless the hang is short: the helper may have begun
// later than the check.
func (w *pending) outwaitedLocked(h *helper, hangsIn string) Report {
	elapsed := time.Since(h.started)
	if h.err != nil {
		return Report{Outcome: Unavailable, Err: h.err}
	}
	r := Report{Outcome: Capped, Err: fmt.Errorf("another check of it was under way for %v", elapsed.Round(time.Millisecond))}
	if h.pid == 0 || hangsIn == "" || elapsed < w.check.Plan.Timeout/4 {
		return r
	}
	r.PID, r.Since, r.Elapsed, r.HangsIn, r.HangsAt = h.pid, h.started, elapsed, hangsIn, -1
	if w.compiled.has(hangsIn) {
		r.Outcome, r.Err = Expired, nil
		if w.asksTheSame(h.pending) {
			r.HangsAt, r.Partial = h.nextIndexLocked(), slices.Clip(h.part)
		}
	} else {
		r.Err = fmt.Errorf("%w, in %s", r.Err, hangsIn)
	}
	return r
}
