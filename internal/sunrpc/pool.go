package sunrpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Question is what a [Pool] asks a server: whether a program answers at an address, or
// which port it has and whether it answers there.
type Question struct {
	Network string // tcp or udp
	// Address is where the program listens. A port of 0 is looked up with the host's
	// rpcbind first.
	Address netip.AddrPort
	Program uint32
}

// Answer is what a server said when it was last asked.
type Answer struct {
	Known   bool          // it was asked, and this host was able to ask
	Errno   string        // see [ErrorName]; empty: the program answers
	Reached bool          // the server's host answered in some way, if only to refuse
	Elapsed time.Duration // of the NULL call that was answered
	At      time.Time     // when the answer came, or none had come in time
	Since   time.Time     // since when it has been so
}

// Answered reports whether the program answers.
func (a Answer) Answered() bool { return a.Known && a.Errno == "" }

// Broken reports whether the program was asked and does not answer.
func (a Answer) Broken() bool { return a.Known && a.Errno != "" }

// Unregistered reports whether rpcbind answers and knows of no such program.
func (a Answer) Unregistered() bool { return a.Known && a.Errno == NotRegistered.name() }

// AddTo adds the time of the answer, or why there was none, to a metric's fields.
func (a Answer) AddTo(fields map[string]any, name string) {
	switch {
	case a.Answered():
		fields[name+"_seconds"] = a.Elapsed.Seconds()
	case a.Known:
		fields[name+"_errno"] = a.Errno
	}
}

// Pool asks servers on behalf of several callers, and keeps the last answer to each
// question. It is gentle: a fleet shares its servers, and gathers at the same second.
//
//   - An answer that is evidence is fetched at once, or within a quarter of the time that it
//     has: each host at a moment of its own, and itself at once. All others are fetched once
//     a minute, at a moment of the host's own.
//   - A question that was asked in the same round, or is still under way, is not asked
//     again.
//   - There are at most two connections to a server.
//
// Its methods may be called from several goroutines.
type Pool struct {
	// turn is this host's share of what is waited for, from 0 to 1: hosts differ in it.
	turn  float64
	mu    sync.Mutex
	known map[Question]*asked
	lines map[netip.Addr][]chan struct{} // by server: of those who want to connect, the first of whom may
}

type asked struct {
	round     uint64 // the last one in which its answer was evidence
	used      uint64 // the last one in which somebody wanted it
	answer    Answer
	scheduled bool // for this host's turn
	pending   bool
	due       time.Time // when the answer comes at the latest, once it was pending
	waiting   []*waiter
}

// waiter is a caller of [Pool.Ask].
type waiter struct {
	done func(Answer)
	late *time.Timer // ends its wait for an answer that is due too late for it; or nil
}

// NewPool returns a Pool that has asked nothing.
func NewPool() *Pool {
	return &Pool{turn: rand.Float64(), known: make(map[Question]*asked), lines: make(map[netip.Addr][]chan struct{})}
}

const (
	// keptRounds is for how many rounds an answer is kept that nobody asks for.
	keptRounds = 3
	// refreshInterval is how often a question is put whose answer is no evidence.
	refreshInterval = time.Minute
	// maxConnections to a server at a time. nfsd closes the oldest ones, whosever they are,
	// when there are more than 20 for each of its threads (svc_check_conn_limits,
	// net/sunrpc/svc_xprt.c).
	maxConnections = 2
)

// EvidenceAfter is how long a check with a timeout may take before its server's answer is
// evidence.
func EvidenceAfter(timeout time.Duration) time.Duration { return timeout / 20 }

// AnswerLimit is how long a server may take that is asked about checks with a timeout: with
// [EvidenceAfter] and the wait for this host's turn, its word is here before those that hang
// are given up.
func AnswerLimit(timeout time.Duration) time.Duration { return timeout * 3 / 4 }

// Wanted is how an answer is wanted.
type Wanted struct {
	// Evidence says that something is at fault, or may be. It is not asked for by turns.
	Evidence bool
	// Versions of the program, of which the NULL call is of the first that is registered, or
	// of the first where nothing is looked up.
	Versions []uint32
	// Limit is how long the server may take; [AnswerLimit].
	Limit time.Duration
}

// Ask wants an answer. If it is evidence, or there was none yet, it comes within 1.25 times
// the limit, and done is called with it once, by another goroutine or, where the round has
// the answer already, at once; done must not block. A server that has not answered by then is
// Broken with ETIMEDOUT. Else it comes when it is this host's turn, and done is not called.
// Ask reports whether it is.
func (p *Pool) Ask(round uint64, q Question, w Wanted, done func(Answer)) bool {
	p.mu.Lock()
	a := p.known[q]
	if a == nil {
		a = &asked{}
		p.known[q] = a
	}
	a.used = round
	first := a.answer.At.IsZero()
	switch {
	case !w.Evidence && !first:
		p.scheduleLocked(q, a, w)
		p.mu.Unlock()
		return false
	case a.round == round && !a.pending && a.answer.Known:
		answer := a.answer
		p.mu.Unlock()
		done(answer)
		return true
	}
	var delay time.Duration
	if !first && !q.Address.Addr().IsLoopback() {
		delay = time.Duration(p.turn * float64(w.Limit/4))
	}
	caller := &waiter{done: done}
	a.waiting = append(a.waiting, caller)
	a.round = round
	switch {
	case !a.pending:
		p.putLocked(q, a, w, delay)
		p.forgetLocked(round)
	case time.Until(a.due) > w.Limit+delay:
		caller.late = time.AfterFunc(w.Limit+delay, func() { p.giveUp(q, a, caller) })
	}
	p.mu.Unlock()
	return true
}

// scheduleLocked has the question put at this host's turn in the minute.
func (p *Pool) scheduleLocked(q Question, a *asked, w Wanted) {
	if a.scheduled {
		return
	}
	a.scheduled = true
	p.forgetLocked(a.used)
	time.AfterFunc(time.Until(nextTurn(time.Now(), p.turn)), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		a.scheduled = false
		if !a.pending && p.known[q] == a {
			p.putLocked(q, a, w, 0)
		}
	})
}

// nextTurn is when a host is to ask next that has this share of the minute.
func nextTurn(now time.Time, turn float64) time.Time {
	next := now.Truncate(refreshInterval).Add(time.Duration(turn * float64(refreshInterval)))
	if !next.After(now) {
		next = next.Add(refreshInterval)
	}
	return next
}

// putLocked puts the question after a delay, once there are less than two connections to
// the server.
func (p *Pool) putLocked(q Question, a *asked, w Wanted, delay time.Duration) {
	start := time.Now().Add(delay)
	due := start.Add(w.Limit)
	a.pending, a.due = true, due
	leave, turn := p.joinLocked(q.Address.Addr())
	go func() {
		var answer Answer // none: this host was not able to ask
		select {
		case <-turn:
			time.Sleep(time.Until(start))
			if time.Until(due) > w.Limit/3 {
				answer = put(q, due, w.Limit/2, w.Versions)
			}
		case <-time.After(time.Until(due)):
		}
		leave()
		p.answered(q, answer)
	}()
}

// joinLocked joins the line of those who want to connect to a server. turn is closed when it
// is their turn; leave must be called.
func (p *Pool) joinLocked(server netip.Addr) (leave func(), turn chan struct{}) {
	turn = make(chan struct{})
	line := append(p.lines[server], turn)
	p.lines[server] = line
	if len(line) <= maxConnections {
		close(turn)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		line := p.lines[server]
		i := slices.Index(line, turn)
		line = slices.Delete(line, i, i+1)
		if i < maxConnections && len(line) >= maxConnections {
			close(line[maxConnections-1])
		}
		p.lines[server] = line
		if len(line) == 0 {
			delete(p.lines, server)
		}
	}, turn
}

// giveUp ends the wait of one that has less time than who has put the question.
func (p *Pool) giveUp(q Question, a *asked, w *waiter) {
	p.mu.Lock()
	i := slices.Index(a.waiting, w)
	if i >= 0 {
		a.waiting = slices.Delete(a.waiting, i, i+1)
	}
	p.mu.Unlock()
	switch now := time.Now(); {
	case i < 0:
	case q.Address.Port() == 0:
		w.done(Answer{}) // it may be rpcbind that does not answer
	default:
		w.done(Answer{Known: true, Errno: ErrorName(context.DeadlineExceeded), At: now, Since: now})
	}
}

// Last returns the last answer to a question, which may be of an earlier round.
func (p *Pool) Last(q Question) Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.known[q]; a != nil {
		return a.answer
	}
	return Answer{}
}

func (p *Pool) answered(q Question, answer Answer) {
	p.mu.Lock()
	a := p.known[q]
	answer.At, answer.Since = time.Now(), a.answer.Since
	if answer.Errno != a.answer.Errno || answer.Known != a.answer.Known {
		answer.Since = answer.At
	}
	a.answer, a.pending = answer, false
	waiting := a.waiting
	a.waiting = nil
	p.mu.Unlock()
	for _, w := range waiting {
		if w.late != nil {
			w.late.Stop()
		}
		w.done(answer)
	}
}

func (p *Pool) forgetLocked(round uint64) {
	for q, a := range p.known {
		if !a.pending && a.used+keptRounds < round {
			delete(p.known, q)
		}
	}
}

// put asks until it is due, what is looked up for no longer than for each of the two calls.
func put(q Question, due time.Time, each time.Duration, versions []uint32) Answer {
	if q.Address.Port() != 0 {
		return null(q, q.Address, versions[0], due)
	}
	rpcbind := netip.AddrPortFrom(q.Address.Addr(), PortRPCBind)
	half := time.Now().Add(min(each, time.Until(due)/2))
	ctx, cancel := context.WithDeadline(context.Background(), half)
	defer cancel()
	for _, version := range versions {
		port, err := LookUp(ctx, q.Network, rpcbind, Service{Program: q.Program, Version: version, Network: q.Network})
		if err == nil {
			return null(q, netip.AddrPortFrom(q.Address.Addr(), port), version, time.Now().Add(min(each, time.Until(due))))
		}
		if refusal, ok := errors.AsType[*AnswerError](err); !ok || refusal.Status != NotRegistered {
			return Answer{} // that is rpcbind's fault: nothing is known of the program
		}
	}
	return Answer{Known: true, Errno: NotRegistered.name(), Reached: true}
}

func null(q Question, address netip.AddrPort, version uint32, due time.Time) Answer {
	ctx, cancel := context.WithDeadline(context.Background(), due)
	defer cancel()
	began := time.Now()
	elapsed, err := Null(ctx, q.Network, address, q.Program, version)
	refusal, refused := errors.AsType[*AnswerError](err)
	switch {
	case err == nil:
		return Answer{Known: true, Reached: true, Elapsed: elapsed}
	case refused && refusal.Status != ProgramUnavailable:
		return Answer{Known: true, Reached: true, Elapsed: time.Since(began)}
	case Local(err):
		return Answer{}
	}
	return Answer{Known: true, Errno: ErrorName(err), Reached: Reached(err)}
}
