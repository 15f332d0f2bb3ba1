package prober

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

const (
	// freshFor is how long a helper counts as one that is about to finish. A
	// healthy file system answers in well under a millisecond.
	freshFor = 50 * time.Millisecond
	// minGrace and maxGrace bound [Plan.grace].
	minGrace = 100 * time.Millisecond
	maxGrace = time.Second
	// killableExitTimeout is how long a helper of a Killable plan may take to end
	// before it is called stuck: it must be scheduled for that.
	killableExitTimeout = 10 * time.Second
	// serverAnswerTimeout is how long the fork server may say nothing while it is to
	// fork a helper, before it is replaced: all helpers are lost with it.
	serverAnswerTimeout = 5 * time.Second
	// fullSocketRetryDelay passes before a request that found the socket full is sent again.
	fullSocketRetryDelay = time.Millisecond
)

// Options of a Prober. The zero value is usable.
type Options struct {
	// Concurrency is how many helpers may be at work at one time; those that
	// hang don't count. Default 16.
	Concurrency int
	// MaxStuck is the cap on helpers that survive SIGKILL, those of earlier runs
	// included. Default 16: each adds 1 to the host's load average. Of fewer than
	// 8 nothing is kept for [Check.Independent] keys, of fewer than 4 for no keys.
	MaxStuck int
	// MaxAsleep is the cap on helpers that are left [Asleep], those of earlier runs
	// included; more of them count as stuck. Default 256.
	MaxAsleep int
	// KillAsleep has SIGKILL sent at the deadline to those helpers, too.
	KillAsleep bool
	// RootCgroups are files cgroup.procs by which helpers that may outlive this process
	// are moved out of its cgroups, so that nobody who stops it waits for them.
	RootCgroups []string
	// Proc is where procfs is mounted. Default /proc.
	Proc string
	// Warnf is told once about each change of the fork server's state.
	Warnf func(format string, args ...any)
	// Untrimmed lets helpers inherit all the memory of the server's launcher.
	// For tests and comparisons.
	Untrimmed bool
}

// A Check is a Plan with what the prober needs to know to admit it.
type Check struct {
	// Key names what is checked: a superblock, usually. There is never more
	// than one helper per key.
	Key string
	// Group names what shares a fate with other keys: a server, a daemon. No
	// group can use up the cap on stuck helpers alone.
	Group string
	// Trusted says that the last check of this key was answered. A quarter of
	// the cap is kept for such checks, so that those which are likely to hang
	// can't keep healthy ones waiting.
	Trusted bool
	// Independent says that the key needs no server or daemon to answer. A sixteenth
	// of the cap is kept for such checks if they are trusted: not even dozens of dead
	// daemons at one time keep the root file system from being checked.
	Independent bool
	// Essential says that the check reads what the host says of itself, such as
	// /proc/self/mountinfo, without which nothing else is known. It is never refused
	// because of the caps, and waits for no place under them; nor does it take one from
	// others. There still is no more than one helper of its key: it is for a handful of
	// keys, since nothing else bounds how many of their helpers get stuck.
	Essential bool
	Plan      *Plan
}

// Stats are counters since the prober was made, and gauges.
type Stats struct {
	Forked         int64 // helpers
	Killed         int64 // helpers that got SIGKILL at their deadline
	Running        int64 // helpers now, stuck ones and those left asleep left out
	Stuck          int64 // helpers now that survive SIGKILL, those of earlier runs included
	Asleep         int64 // helpers now that were left asleep, those of earlier runs included
	ServerRestarts int64
	CPUSeconds     float64 // of the fork server and the helpers it has reaped
	ResidentBytes  int64   // of the fork server
}

// A Prober runs checks in helper processes. Its methods may be called from
// several goroutines at a time, and never block on a file system. Methods with
// the suffix Locked, of whatever type, need mu to be held.
type Prober struct {
	options Options

	mu            sync.Mutex
	closed        bool
	admission     admission          // of checks that wait
	helpers       map[uint64]*helper // by id
	byPID         map[int]*helper
	byKey         map[string]*helper
	orphans       orphans     // stuck helpers of earlier servers
	behindOrphans []*pending  // wait until it is known how many orphans there are
	completed     []func()    // callbacks to be made when mu is free
	server        *server     // nil while there is none
	untrimmed     atomic.Bool // servers inherit all memory
	unfiltered    atomic.Bool // servers have no seccomp filter
	restart       restartState
	cgroups       rootCgroups
	statx         statxSupport
	nextID        uint64
	fresh         int           // helpers younger than freshFor, but those of Essential checks
	stats         Stats         // counters only
	cpuBefore     time.Duration // of servers that have ended
}

type pending struct {
	check    Check
	id       uint64
	comm     string // of its helper
	compiled *compiled
	done     func(Report)
	deadline time.Time
	timer    *time.Timer // refuses the check when it is too late to start it
	ahead    *helper     // of the same key, for whose end it waits
	decided  bool
	overdue  bool // its time is up, and it has got some more
}

// A Ticket stands for a check that was submitted. The zero Ticket stands for none.
type Ticket struct{ check *pending }

type stage uint8

const (
	fresh   stage = iota // younger than freshFor
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
	leftCgroups bool // or is about to
	lacksStatx  bool
	timer       *time.Timer
	report      Report
	reported    bool
	err         error
	answered    int        // steps
	part        []byte     // of the output of the compound step that is under way
	ended       bool       // by a step that failed
	behind      []*pending // checks of the same key, which wait for its end

	slot   *forkserver.Slot // where it leaves its answers; nil: it sends them, or has ended
	read   uint32           // how many of the slot's answers
	shares bool             // it was to share the server's memory
}

// New makes a Prober and begins to start its fork server.
func New(options Options) *Prober {
	p := newProber(options)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.startServerInLocked(0)
	return p
}

func newProber(options Options) *Prober {
	if options.Concurrency == 0 {
		options.Concurrency = 16
	}
	if options.MaxStuck == 0 {
		options.MaxStuck = 16
	}
	if options.MaxAsleep == 0 {
		options.MaxAsleep = 256
	}
	if options.Proc == "" {
		options.Proc = "/proc"
	}
	if options.Warnf == nil {
		options.Warnf = func(string, ...any) {}
	}
	p := &Prober{
		options:   options,
		admission: admission{groups: make(map[string]*group)},
		helpers:   make(map[uint64]*helper),
		byPID:     make(map[int]*helper),
		byKey:     make(map[string]*helper),
		cgroups:   rootCgroups{files: options.RootCgroups},
	}
	p.untrimmed.Store(options.Untrimmed)
	return p
}

// Close ends the fork server, and with it all helpers that can be killed.
// Checks that are under way are not reported any more; those submitted later are Unavailable.
func (p *Prober) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.server != nil {
		p.server.conn.Close()
	}
}

var errClosed = errors.New("the prober is closed")

// Run submits the check and waits for its report.
func (p *Prober) Run(check Check) Report {
	reports := make(chan Report, 1)
	p.Submit(check, func(r Report) { reports <- r })
	return <-reports
}

// Submit queues the check and returns at once. done is called exactly once,
// by another goroutine, at the latest the plan's Timeout and a twentieth of it
// (but at least 0.1 s, and at most 1 s) later, or two twentieths if another check's
// helper or the fork server was in the way. A check has its time anew if this process was
// stopped when it was up. done must not block. Groups take
// turns; checks of one group are started in the order they were submitted,
// trusted ones before others. One whose key has a helper already waits for its end,
// and keeps no other waiting.
func (p *Prober) Submit(check Check, done func(Report)) Ticket {
	p.mu.Lock()
	defer p.unlock()
	w := &pending{check: check, id: p.nextID, comm: commOf(check.Key, check.Group), done: done, deadline: time.Now().Add(check.Plan.Timeout)}
	p.nextID++
	var err error
	if w.compiled, err = check.Plan.compile(p.statx); err != nil {
		p.decideLocked(w, Report{Outcome: Unavailable, Err: err})
		return Ticket{}
	}
	if p.closed {
		p.decideLocked(w, Report{Outcome: Unavailable, Err: errClosed})
		return Ticket{}
	}
	if !p.restart.under && p.server == nil && time.Now().After(p.restart.next) {
		p.startServerInLocked(0)
	}
	if !p.restart.under && p.server == nil {
		p.decideLocked(w, Report{Outcome: Unavailable, Err: p.restart.err})
		return Ticket{}
	}
	p.admission.enqueueLocked(w)
	p.pumpLocked()
	if !w.decided {
		w.timer = time.AfterFunc(check.Plan.Timeout/2, func() { p.giveUp(w) })
	}
	return Ticket{w}
}

// Progress reports how far the check's helper has come, or the one of its key for
// which it waits; HangsIn names the step it is in, of which Partial is what it has
// found so far. It reports false where there is none. The Outcome means nothing yet.
func (p *Prober) Progress(t Ticket) (Report, bool) {
	p.mu.Lock()
	defer p.unlock()
	h := p.helperOfLocked(t)
	if h == nil && t.check != nil {
		h = t.check.ahead
	}
	if h == nil {
		return Report{}, false
	}
	if p.server != nil {
		p.readSlotLocked(p.server, h)
	}
	r := h.report
	r.Steps = slices.Clone(r.Steps)
	r.PID, r.Since, r.Elapsed = h.pid, h.started, time.Since(h.started)
	r.HangsIn, r.HangsAt, r.Partial = h.nextStepLocked(), -1, nil
	if h.pending == t.check || t.check.asksTheSame(h.pending) {
		r.HangsAt, r.Partial = h.nextIndexLocked(), slices.Clip(h.part)
	}
	return r, true
}

// SetDeadline moves the moment at which the check's helper is killed: its plan's
// timeout no longer counts. It reports false where there is none, or it was killed
// already. A helper that is given more time keeps its place under the caps; one whose
// plan OutlivesServer can be given less alone.
func (p *Prober) SetDeadline(t Ticket, deadline time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.helperOfLocked(t)
	if h == nil || h.stage >= killed {
		return false
	}
	h.deadline = deadline
	left := time.Until(deadline)
	if h.stage == fresh {
		left = min(left, freshFor)
	}
	h.timer.Reset(left)
	return true
}

// helperOfLocked returns the check's own helper, or nil.
func (p *Prober) helperOfLocked(t Ticket) *helper {
	if t.check == nil {
		return nil
	}
	return p.helpers[t.check.id]
}

// Stats returns the counters and gauges of now.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	for _, h := range p.helpers {
		switch {
		case !h.leftLocked():
			s.Running++
		case p.waitLocked(h) == Unkillable:
			s.Stuck++
		default:
			s.Asleep++
		}
	}
	orphans := p.orphans.countLocked(p.options.Proc)
	s.Stuck += int64(orphans.stuck)
	s.Asleep += int64(orphans.asleep)
	cpu := p.cpuBefore
	if p.server != nil {
		used, resident := usage(p.options.Proc, p.server.pid)
		cpu += used
		s.ResidentBytes = resident
	}
	s.CPUSeconds = cpu.Seconds()
	return s
}

// unlock frees mu and makes the callbacks that became due while it was held.
func (p *Prober) unlock() {
	p.wakeServerLocked()
	completed := p.completed
	p.completed = nil
	p.mu.Unlock()
	for _, call := range completed {
		call()
	}
}

// warnLocked says something to the log once mu is free: the log may block.
func (p *Prober) warnLocked(format string, args ...any) {
	p.completed = append(p.completed, func() { p.options.Warnf(format, args...) })
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
	p.completed = append(p.completed, func() { w.done(r) })
}

// giveUp refuses a check for which no place was found in time.
func (p *Prober) giveUp(w *pending) {
	p.mu.Lock()
	defer p.unlock()
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
	p.refuseLocked(w)
}

// renewLocked gives a check its time anew, once, if our own process did not run when it
// was up: we were stopped, or the host was, and the helper perhaps as well. What it has
// told meanwhile is about to be read.
func (w *pending) renewLocked() bool {
	if w.overdue || time.Since(w.deadline) <= 2*w.check.Plan.grace() {
		return false
	}
	w.overdue = true
	w.deadline = time.Now().Add(w.check.Plan.Timeout)
	return true
}

// missedItsTimeLocked reports whether a helper of a plan that OutlivesServer has ended
// because its time was up while it was stopped, as was our own process.
func (h *helper) missedItsTimeLocked() bool {
	return h.check.Plan.OutlivesServer && !h.reported && (h.renewLocked() || h.overdue && time.Now().Before(h.deadline))
}

// lateLocked reports whether too little of the check's time is left for a helper: what
// is started late on a busy machine must not be said to hang.
func (w *pending) lateLocked() bool { return time.Until(w.deadline) < w.check.Plan.Timeout/2 }

// refuseLocked ends a check for which there is no place, or no fork server.
func (p *Prober) refuseLocked(w *pending) {
	r := Report{Outcome: Capped, Err: fmt.Errorf("no place for another helper within %v, %d hang", w.check.Plan.Timeout/2, len(p.helpers)-p.fresh)}
	if p.server == nil {
		r = Report{Outcome: Unavailable, Err: errors.Join(errors.New("the fork server is being restarted"), p.restart.err)}
	}
	p.decideLocked(w, r)
}

// startLocked asks for one helper. It reports false if the socket is full.
func (p *Prober) startLocked(w *pending) bool {
	s := p.server
	slot := s.submitLocked(w)
	if slot == nil && !p.sendLocked(w) {
		return false
	}
	w.decided = true
	if w.timer != nil {
		w.timer.Stop()
	}
	h := &helper{pending: w, started: time.Now(), slot: slot, shares: slot != nil && !s.apart && w.compiled.header.Apart == 0}
	h.report = Report{HangsAt: -1, Steps: make([]StepResult, 0, w.compiled.told)}
	if slot != nil {
		s.holders[s.slots.Index(slot)] = h
	}
	p.helpers[h.id] = h
	p.byKey[w.check.Key] = h
	p.countFreshLocked(h, 1)
	p.admission.moveLocked(h, w.check.place())
	p.stats.Forked++
	h.timer = time.AfterFunc(min(freshFor, time.Until(w.deadline)), func() { p.due(h) })
	return true
}

// sendLocked sends a request that is in no slot. It reports false if the socket is full.
func (p *Prober) sendLocked(w *pending) bool {
	s := p.server
	// Where there is another error the server is ending; its end will be noticed, and
	// the queue kept.
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

// countFreshLocked counts a helper that is at work, if it takes a place.
func (p *Prober) countFreshLocked(h *helper, change int) {
	if !h.check.Essential {
		p.fresh += change
	}
}

// due moves a helper to the next stage of its life.
func (p *Prober) due(h *helper) {
	p.mu.Lock()
	defer p.unlock()
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
		if h.check.Plan.Killable {
			outcome = Expired // a busy host may take long to end it; if it is stuck, the next check will say so
		}
		p.leaveLocked(h, stuck, outcome)
	}
}

// leaveLocked reports a helper that stays, and forgets all of it that is not needed to
// know it: it may be remembered for days.
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

// leftLocked reports whether the helper was reported, and stays until it is answered.
func (h *helper) leftLocked() bool { return h.stage == stuck || h.stage == asleep }

// waitLocked looks how a helper waits, and counts it accordingly.
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

// nextIndexLocked is that of the step a helper has not answered, or the number of steps.
func (h *helper) nextIndexLocked() int {
	i := h.answered
	for i < len(h.compiled.steps) && h.compiled.steps[i].isSilent() {
		i++
	}
	return i
}

// nextStepLocked names the step a helper has not answered.
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

// finishLocked reports a helper's outcome, once. An answer is also that of checks which
// wait for the helper and ask the same.
func (p *Prober) finishLocked(h *helper, outcome Outcome) {
	if h.reported {
		return
	}
	h.reported = true
	r := h.report
	r.Outcome, r.PID, r.Since, r.Elapsed = outcome, h.pid, h.started, time.Since(h.started)
	r.Err = h.err
	p.completed = append(p.completed, func() { h.done(r) })
	for _, w := range h.behind {
		if !w.decided && outcome == Done && w.asksTheSame(h.pending) {
			shared := r
			shared.Steps = slices.Clone(r.Steps)
			p.decideLocked(w, shared)
		}
	}
}

// releaseLocked lets the checks go on that wait for a helper, which has ended or is stuck.
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

// outwaitedLocked is the report of a check which has waited so long for a helper of its key
// that no time is left for its own. A hang of the helper's, in a step that the check
// would make too, is the check's as well, unless it was short: the helper may have
// begun later than the check did.
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

// retryLocked queues a check anew whose helper has told nothing of its file system.
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
	w.timer = time.AfterFunc(max(0, time.Until(w.deadline)-w.check.Plan.Timeout/2), func() { p.giveUp(w) })
}

// receive handles one message from the server or a helper.
func (p *Prober) receive(s *server, message []byte) {
	answer, output, ok := forkserver.ParseAnswer(message)
	p.mu.Lock()
	defer p.unlock()
	if p.server != s || s.err != nil {
		return // it has ended, or is about to
	}
	if !ok {
		p.distrustLocked(s, "a message that makes no sense")
		return
	}
	if answer.Kind.OfServer() {
		s.heard = time.Now()
	}
	switch answer.Kind {
	case forkserver.Ready:
		if s.ready {
			p.distrustLocked(s, "a second greeting")
			return
		}
		p.greetedLocked(s, syscall.Errno(answer.Errno))
	case forkserver.Forked:
		h := p.helpers[answer.ID]
		if h == nil {
			return
		}
		if h.pid != 0 || answer.Errno == 0 && (answer.PID <= 0 || p.byPID[int(answer.PID)] != nil) {
			p.distrustLocked(s, "a helper that can't have been forked")
			return
		}
		if answer.Errno != 0 {
			p.unforkableLocked(s, h, syscall.Errno(answer.Errno))
			return
		}
		h.pid = int(answer.PID)
		p.byPID[h.pid] = h
		if h.overdue {
			h.timer.Reset(h.check.Plan.grace()) // for this long it may still tell; now it can be killed
		}
	case forkserver.StepPart:
		if h := p.helpers[answer.ID]; h != nil && !h.addPartLocked(&answer, output) {
			p.distrustLocked(s, "a part of an answer that its plan does not ask for")
		}
	case forkserver.StepDone:
		h := p.helpers[answer.ID]
		if h != nil && !p.answeredLocked(h, &answer, output) {
			p.distrustLocked(s, "an answer that its plan does not ask for")
		}
	case forkserver.Progressed:
		if h := p.helpers[answer.ID]; h != nil {
			p.readSlotLocked(s, h)
		}
	case forkserver.Ended:
		p.endedLocked(s)
	case forkserver.Exited:
		if h := p.byPID[int(answer.PID)]; h != nil {
			p.exitedLocked(h, syscall.WaitStatus(answer.Status))
		}
	}
}

// answeredLocked handles the end of a step. It reports false for what a helper with this
// plan can't have said.
func (p *Prober) answeredLocked(h *helper, answer *forkserver.Answer, output []byte) bool {
	step := h.expectedStepLocked(answer)
	if step != nil {
		h.lacksStatx = h.lacksStatx || p.noteStatxLocked(step.number, syscall.Errno(answer.Errno))
	}
	return h.addResultLocked(step, answer, output)
}

// distrustLocked ends a server which has said, or one of its helpers, what no plan asks
// for: who says so was taken over, and shares its socket.
func (p *Prober) distrustLocked(s *server, what string) {
	p.warnLocked("the fork server (pid %d) or a helper of it has sent %s, killing it", s.pid, what)
	s.err = fmt.Errorf("the fork server or a helper of it has sent %s", what)
	s.killLocked()
}

// expectedStepLocked returns the step that an answer is about, or nil if a helper with
// this plan can't be there now: so each step is answered once at most.
func (h *helper) expectedStepLocked(answer *forkserver.Answer) *Step {
	i := int(answer.Step)
	if h.ended || i < h.answered || i >= len(h.compiled.steps) {
		return nil
	}
	for k := range h.compiled.steps[h.answered:i] {
		if !h.compiled.steps[h.answered+k].isSilent() {
			return nil
		}
	}
	return &h.compiled.steps[i]
}

// addPartLocked adds some of what a compound step has found. It reports false for what
// a helper with this plan can't have said.
func (h *helper) addPartLocked(answer *forkserver.Answer, output []byte) bool {
	step := h.expectedStepLocked(answer)
	if step == nil || !step.compound() || len(h.part)+len(output) > step.limit {
		return false
	}
	h.answered = int(answer.Step) // those before it have succeeded
	if cap(h.part)-len(h.part) < len(output) {
		h.part = slices.Grow(h.part, max(len(h.part), len(output))) // twice what it was: a table has hundreds of parts
	}
	h.part = append(h.part, output...)
	return true
}

// addResultLocked adds the end of a step. It reports false for what a helper with this
// plan can't have said: what follows may rely on the length of its output.
func (h *helper) addResultLocked(step *Step, answer *forkserver.Answer, output []byte) bool {
	if step == nil {
		return false
	}
	errno := syscall.Errno(answer.Errno)
	output, ok := step.output(answer, output, h.part)
	if !ok {
		return false
	}
	h.part = nil
	if h.place == asleepPlace && h.stage == waiting {
		h.timer.Reset(min(freshFor, time.Until(h.deadline))) // the next step may wait in another way
	}
	h.answered, h.ended = int(answer.Step)+1, errno != 0 && !step.optional
	h.report.Steps = append(h.report.Steps, StepResult{
		Name: step.Name, Index: int(answer.Step), Result: answer.Result, Errno: errno,
		Elapsed: time.Duration(answer.Nanoseconds), Output: output,
	})
	return true
}

// output returns what the step has found: what its last answer carries, or what came
// before. It reports false for what it can't have found.
func (s *Step) output(answer *forkserver.Answer, output, parts []byte) ([]byte, bool) {
	size := s.outputSize()
	if answer.Errno != 0 {
		size = 0
	}
	if len(output) != size {
		return nil, false
	}
	if s.compound() {
		return parts, answer.Errno != 0 || s.found(answer.Result, len(parts))
	}
	if s.statxByStat && size > 0 {
		return statxOf(output), true
	}
	if size > 0 && s.returnsLength() {
		if answer.Result < 0 || answer.Result > int64(size) {
			return nil, false
		}
		output = output[:answer.Result]
	}
	return slices.Clone(output), true
}

// found reports whether a compound step can return result after so many bytes.
func (s *Step) found(result int64, bytes int) bool {
	if s.number == forkserver.ReadAll || s.number == forkserver.ReadDirectory {
		return result == int64(bytes)
	}
	return result >= 0 && result <= int64(bytes)
}

// exitedLocked reports the end of a helper.
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
	p.pumpLocked()
}
