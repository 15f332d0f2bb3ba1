package prober

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

type stage uint8

const (
	fresh   stage = iota // younger than maxFreshTime
	waiting              // older
	killed               // SIGKILL was sent
	stuck                // and did not help
	asleep               // its time is up, and it was not killed
)

type helper struct {
	*pending
	started     time.Time
	killed      time.Time
	pid         int
	stage       stage
	place       place
	group       *group // that counts it; nil: none has
	leftCgroups bool   // or is about to
	lacksStatx  bool
	report      Report
	reported    bool
	err         error
	answered    int        // steps
	part        []byte     // of the output of the compound step that is under way
	outputs     []byte     // of the other steps, one behind the other
	ended       bool       // by a step that failed
	shown       bool       // what it has found so far was told of, and may still be read
	behind      []*pending // checks of the same key, which wait for its end

	slot *forkserver.Slot // where it leaves its answers; nil: it sends them, or has ended
	read uint32           // how many of the slot's answers
}

// missedItsTimeLocked reports whether a helper of a plan that OutlivesServer has ended because its
// time was up while both it and this process were stopped.
func (h *helper) missedItsTimeLocked() bool {
	return h.check.Plan.OutlivesServer && !h.reported && (h.renewLocked() || h.overdue && time.Now().Before(h.deadline))
}

// startLocked asks the server for one helper. It reports false if the socket is full.
func (p *Prober) startLocked(w *pending) bool {
	s := p.server
	slot := s.submitLocked(w)
	if slot == nil && !p.sendLocked(w) {
		return false
	}
	w.decided = true
	now := time.Now()
	h := p.spare.helper()
	*h = helper{pending: w, started: now, slot: slot}
	memory := p.spare.answers(w.compiled)
	h.outputs, h.report = memory.outputs, Report{HangsAt: -1, Steps: memory.steps}
	if slot != nil {
		s.holders[s.slots.Index(slot)] = h
	}
	p.helpers[h.id] = h
	p.byKey[w.check.Key] = h
	p.countFreshLocked(h, 1)
	p.admission.moveLocked(h, w.check.place())
	p.stats.Forked++
	p.setTimerLocked(w, min(maxFreshTime, w.deadline.Sub(now)))
	return true
}

// sendLocked sends a request that is in no slot. It reports false if the socket is full.
func (p *Prober) sendLocked(w *pending) bool {
	s := p.server
	// After any other error the server is ending: that end will be noticed, and the queue is kept.
	err := s.send(w.message())
	if errors.Is(err, unix.EAGAIN) {
		s.full = true
		time.AfterFunc(fullSocketRetryDelay, func() {
			p.mu.Lock()
			defer p.unlock()
			s.full = false
			p.pumpLocked()
		})
	}
	return err == nil
}

// countFreshLocked counts a helper that has just begun, if it takes a place under the caps.
func (p *Prober) countFreshLocked(h *helper, change int) {
	if !h.check.Essential {
		p.fresh += change
	}
}

// dueLocked moves a helper to the next stage of its life.
func (p *Prober) dueLocked(h *helper) {
	if p.helpers[h.id] != h || p.server == nil {
		return
	}
	if h.stage == fresh && h.slot != nil {
		h.slot.Tell()
	}
	if p.readSlotLocked(p.server, h); p.server.err != nil {
		return // it ends all checks
	}
	switch h.stage {
	case fresh:
		p.countFreshLocked(h, -1)
		h.stage = waiting
		fallthrough
	case waiting:
		wait := p.waitLocked(h)
		if wait != Killable {
			p.leaveCgroupsLocked(h)
		}
		if left := time.Until(h.deadline); left > 0 {
			h.timer.Reset(left)
			p.pumpLocked()
			return
		}
		if h.pid == 0 {
			p.unforkedLocked(h)
			return
		}
		if h.renewLocked() {
			h.timer.Reset(h.check.Plan.Timeout)
			return
		}
		if p.isDoneLocked(h) {
			h.timer.Reset(minGrace)
			return
		}
		if wait == Asleep && !p.options.KillAsleep {
			p.leaveLocked(h, asleep, Stuck)
			return
		}
		h.stage = killed
		h.killed = time.Now()
		p.stats.Killed++
		p.killLocked(h)
		h.timer.Reset(h.check.Plan.grace())
		p.pumpLocked()
	case killed:
		// The timer may have fired once more while the helper was being killed.
		if left := time.Until(h.killed.Add(h.check.Plan.grace())); left > 0 {
			h.timer.Reset(left)
			return
		}
		outcome := Stuck
		if p.endsSoonLocked(h) {
			if !h.check.Plan.Killable && time.Since(h.killed) < maxGrace {
				h.timer.Reset(minGrace) // then it has ended, or waits
				return
			}
			outcome = Expired // if it is stuck, the next check will say so
		}
		p.leaveLocked(h, stuck, outcome)
	}
}

// isDoneLocked reports whether a helper whose time is up has made all its steps, and waits for nothing: on
// a busy host the helper must be scheduled to end, or the server to tell that it has.
func (p *Prober) isDoneLocked(h *helper) bool {
	if h.nextIndexLocked() < len(h.compiled.steps) || time.Since(h.deadline) >= killableExitTimeout {
		return false
	}
	fields, err := statFields(p.options.Proc, h.pid)
	return err != nil || bytes.ContainsAny(fields[statState], "RZX")
}

// endsSoonLocked reports whether a helper that is to be killed may only be there still because the server
// must be scheduled to do so, or the helper to end, for which a busy host may take long.
func (p *Prober) endsSoonLocked(h *helper) bool {
	if time.Since(h.killed) >= killableExitTimeout {
		return false
	}
	return h.check.Plan.Killable || !survivesKill(p.options.Proc, h.pid)
}

// leaveLocked reports a helper that stays, and frees what is not needed to recognize it: it may be
// remembered for days.
func (p *Prober) leaveLocked(h *helper, s stage, outcome Outcome) {
	h.stage = s
	h.report.Wait = p.waitLocked(h)
	h.noteHangLocked()
	p.finishLocked(h, outcome)
	h.compiled, h.check.Plan.cached = &compiled{steps: h.compiled.steps}, nil
	h.part, h.report.Partial = nil, nil
	p.releaseLocked(h)
	p.pumpLocked()
}

// leftLocked reports whether the helper was reported, and stays until its file system answers.
func (h *helper) leftLocked() bool { return h.stage == stuck || h.stage == asleep }

// waitLocked finds out how a helper waits, and counts it accordingly.
func (p *Prober) waitLocked(h *helper) Wait {
	wait := Unkillable // it survives SIGKILL
	if h.stage != stuck {
		wait, h.report.Function = findWait(p.options.Proc, h.check.Plan, h.pid)
	}
	to := h.check.place()
	switch {
	case h.leftLocked() && wait == Unkillable:
		to = stuckPlace // someone else may have killed it
	case h.stage == asleep, wait == Asleep && !p.options.KillAsleep:
		to = asleepPlace
	}
	p.admission.moveLocked(h, to)
	return wait
}

// unforkedLocked handles a helper that can't be killed when its time is up: the server
// has not said which process it is. Either our own process was stopped, and the answer
// is about to be read, or the host is so busy that the server was not scheduled, or the
// server does not answer.
func (p *Prober) unforkedLocked(h *helper) {
	if !h.overdue {
		h.overdue = true
		h.timer.Reset(h.check.Plan.grace())
		return
	}
	silent := min(time.Since(h.started), time.Since(p.server.heard))
	if silent >= serverAnswerTimeout {
		p.warnLocked("the fork server (pid %d) has not answered for %v, killing it", p.server.pid, silent.Round(time.Millisecond))
		p.server.killLocked()
		return
	}
	h.err = fmt.Errorf("the fork server has not confirmed a helper within %v", h.check.Plan.Timeout)
	p.finishLocked(h, Unavailable)
	h.timer.Reset(serverAnswerTimeout - silent)
}

// killLocked has the server send SIGKILL to a helper.
func (p *Prober) killLocked(h *helper) {
	header := forkserver.RequestHeader{Kind: forkserver.Kill, PID: int32(h.pid)}
	if err := p.server.send(forkserver.Bytes(&header)); errors.Is(err, unix.EAGAIN) {
		time.AfterFunc(fullSocketRetryDelay, func() {
			p.mu.Lock()
			defer p.unlock()
			if p.helpers[h.id] == h && p.server != nil {
				p.killLocked(h)
			}
		})
	}
}

// exit is what a helper does after its last step.
const exit = "exit"

// nextIndexLocked returns the index of the step that a helper has not answered, or the number of
// steps.
func (h *helper) nextIndexLocked() int {
	i := h.answered
	for i < len(h.compiled.steps) && h.compiled.steps[i].isSilent() {
		i++
	}
	return i
}

// nextStepLocked returns the name of the step that a helper has not answered.
func (h *helper) nextStepLocked() string {
	if i := h.nextIndexLocked(); i < len(h.compiled.steps) {
		return h.compiled.steps[i].Name
	}
	return exit
}

// noteHangLocked notes in the report where the helper hangs.
func (h *helper) noteHangLocked() {
	h.report.HangsIn, h.report.HangsAt, h.report.Partial = h.nextStepLocked(), h.nextIndexLocked(), slices.Clip(h.part)
}

// finishLocked reports a helper's outcome, once. An answer also answers checks that wait for the
// helper and ask the same.
func (p *Prober) finishLocked(h *helper, outcome Outcome) {
	if h.reported {
		return
	}
	h.reported = true
	r := h.report
	r.Outcome, r.PID, r.Since, r.Elapsed = outcome, h.pid, h.started, time.Since(h.started)
	r.Err = h.err
	if len(h.behind) == 0 && !h.shown && !h.leftLocked() {
		r.outputs = h.outputs // nobody else is told of them, and the helper adds no more
	}
	p.completed = append(p.completed, callback{done: h.done, report: r})
	for _, w := range h.behind {
		if !w.decided && outcome == Done && w.asksTheSame(h.pending) {
			shared := r
			shared.Steps = slices.Clone(r.Steps)
			p.decideLocked(w, shared)
		}
	}
}

// releaseLocked lets the checks go on that waited for a helper which has ended or is stuck.
func (p *Prober) releaseLocked(h *helper) {
	for _, w := range h.behind {
		w.ahead = nil
		switch {
		case w.decided, p.closed:
		case h.leftLocked():
			_, r := p.applyRulesLocked(w) // which refuses it, as all later ones
			p.decideLocked(w, r)
		case !w.lateLocked():
			p.admission.enqueueLocked(w)
		default:
			p.decideLocked(w, w.outwaitedLocked(h, h.report.HangsIn))
		}
	}
	h.behind = nil
}

// removeLocked forgets a helper that is gone.
func (p *Prober) removeLocked(h *helper) {
	h.timer.Stop()
	if h.stage == fresh {
		p.countFreshLocked(h, -1)
	}
	p.admission.moveLocked(h, nowhere)
	delete(p.helpers, h.id)
	delete(p.byKey, h.check.Key)
	delete(p.byPID, h.pid)
	p.server.freeSlotLocked(h)
	p.releaseLocked(h)
}

// retryLocked queues a check again whose helper has said nothing about its file system.
func (p *Prober) retryLocked(h *helper) {
	h.reported = true
	p.removeLocked(h)
	w := h.pending // which tickets name
	w.id, w.decided, w.overdue, w.ahead = p.nextID, false, false, nil
	p.nextID++
	var err error
	if w.compiled, err = w.check.Plan.compile(p.statx); err != nil {
		p.decideLocked(w, Report{Outcome: Unavailable, Err: err})
		return
	}
	p.admission.enqueueLocked(w)
	p.setTimerLocked(w, max(0, time.Until(w.deadline)-w.check.Plan.Timeout/2))
}

// exitedLocked handles the end of a helper.
func (p *Prober) exitedLocked(h *helper, status syscall.WaitStatus) {
	outcome := Done
	if i := h.nextIndexLocked(); status.Signaled() && status.Signal() == syscall.SIGSYS && i < len(h.compiled.steps) {
		h.lacksStatx = h.lacksStatx || p.noteStatxLocked(h.compiled.steps[i].number, unix.ENOSYS)
	}
	switch {
	case h.lacksStatx && !h.reported:
		p.retryWithoutStatxLocked(h)
		return
	case status.Signaled() && status.Signal() == syscall.SIGKILL && h.stage >= killed:
		outcome = Expired
		h.noteHangLocked()
	case memoryFault(unix.WaitStatus(status)) && p.server != nil && p.server.trimmed:
		outcome = Unavailable
		h.err = errors.New("the helper needs more memory than it was given")
		p.needAllMemoryLocked()
		p.server.killLocked()
	case status.Signaled():
		outcome = Died
		h.report.Signal = status.Signal()
		h.err = fmt.Errorf("the helper was killed by someone else (%v) in %s", status.Signal(), h.nextStepLocked())
	case status.ExitStatus() == forkserver.Traceable && h.slot != nil && !h.reported:
		p.server.others = false
		p.retryLocked(h)
		p.pumpLocked()
		return
	case status.ExitStatus() != 0:
		outcome = Unavailable
		h.err = errors.New("the helper lost its fork server")
	case !h.ended && h.nextStepLocked() != exit && h.missedItsTimeLocked():
		h.deadline = time.Now().Add(h.check.Plan.Timeout)
		p.retryLocked(h)
		p.pumpLocked()
		return
	case !h.ended && h.nextStepLocked() != exit && time.Now().After(h.deadline):
		outcome = Expired // it has noticed so itself
		h.noteHangLocked()
	case !h.ended && h.nextStepLocked() != exit:
		p.distrustLocked(p.server, "the end of a helper before its plan's")
		return
	}
	p.finishLocked(h, outcome)
	p.removeLocked(h)
	if outcome == Done && h.stage == fresh && !h.overdue {
		p.spare.keep(h)
	}
	p.pumpLocked()
}
