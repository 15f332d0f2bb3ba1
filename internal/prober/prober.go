package prober

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFreshTime is how long a helper counts as one that is about to finish. A
	// healthy file system answers in well under a millisecond.
	maxFreshTime = 50 * time.Millisecond
	// minGrace and maxGrace bound [Plan.grace].
	minGrace = 100 * time.Millisecond
	maxGrace = time.Second
	// killableExitTimeout is how long a helper that SIGKILL ends may take to end before it is
	// called stuck: it must be scheduled for that.
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
	// others. There is still at most one helper of its key. It is for a handful of
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
	orphans       orphans    // stuck helpers of earlier servers
	behindOrphans []*pending // wait until it is known how many orphans there are
	completed     []callback // to be made when mu is free
	spare         spare
	server        *server     // nil while there is none
	untrimmed     atomic.Bool // servers inherit all memory
	unfiltered    atomic.Bool // servers have no seccomp filter
	restart       restartState
	cgroups       rootCgroups
	statx         statxSupport
	nextID        uint64
	fresh         int           // helpers younger than maxFreshTime, but those of Essential checks
	stats         Stats         // counters only
	cpuBefore     time.Duration // of servers that have ended
}

// A Ticket stands for a check that was submitted. The zero Ticket stands for none.
type Ticket struct {
	check  *pending
	serial uint64 // of the check; it may have become another one
}

// A callback is of a check that is done, or any other.
type callback struct {
	done   func(Report)
	report Report
	other  func()
}

// New makes a Prober. Its fork server is started by [Prober.Start], or by the first check.
func New(options Options) *Prober {
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

// Start begins to start the fork server, if there is none.
func (p *Prober) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !p.restart.under && p.server == nil && time.Now().After(p.restart.next) {
		p.startServerInLocked(0)
	}
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

// Submit queues the check and returns at once. done is called exactly once, by another goroutine,
// at the latest the plan's Timeout and a twentieth of it (but at least 0.1 s, and at most 1 s)
// later, or two twentieths if another check's helper or the fork server was in the way. A check
// gets its whole time again if this process was stopped when the time was up. done must not block.
// Groups take turns; checks of one group are started in the order they were submitted, trusted
// ones mostly before others. One whose key has a helper already waits for its end, and keeps no other
// waiting.
func (p *Prober) Submit(check Check, done func(Report)) Ticket {
	p.mu.Lock()
	defer p.unlock()
	w := p.spare.pending()
	*w = pending{check: check, serial: p.nextID, id: p.nextID, done: done, deadline: time.Now().Add(check.Plan.Timeout), timer: w.timer}
	p.nextID++
	var err error
	if w.compiled, err = check.Plan.compile(p.statx); err != nil {
		p.decideLocked(w, Report{Outcome: Unavailable, Err: err})
		return Ticket{}
	}
	w.comm = w.compiled.commOf(&check)
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
		p.setTimerLocked(w, check.Plan.Timeout/2)
	}
	return Ticket{w, w.serial}
}

// Progress reports how far the check's helper has come, or the one of its key for
// which it waits; HangsIn names the step it is in, of which Partial is what it has
// found so far. It reports false where there is none. The Outcome means nothing yet.
func (p *Prober) Progress(t Ticket) (Report, bool) {
	p.mu.Lock()
	defer p.unlock()
	h := p.helperOfLocked(t)
	if h == nil && t.check != nil && t.check.serial == t.serial {
		h = t.check.ahead
	}
	if h == nil {
		return Report{}, false
	}
	if p.server != nil {
		p.readSlotLocked(p.server, h)
	}
	h.shown = true
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
		left = min(left, maxFreshTime)
	}
	h.timer.Reset(left)
	return true
}

// helperOfLocked returns the check's own helper, or nil.
func (p *Prober) helperOfLocked(t Ticket) *helper {
	if t.check == nil || t.check.serial != t.serial {
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
	if len(completed) == 0 {
		p.mu.Unlock()
		return
	}
	p.completed = p.spare.takeCallbacks()
	p.mu.Unlock()
	for i := range completed {
		if c := &completed[i]; c.done != nil {
			c.done(c.report)
		} else {
			c.other()
		}
	}
	p.mu.Lock()
	p.spare.keepCallbacks(completed)
	p.mu.Unlock()
}

// warnLocked writes to the log once mu is free: the log may block.
func (p *Prober) warnLocked(format string, args ...any) {
	p.completed = append(p.completed, callback{other: func() { p.options.Warnf(format, args...) }})
}
