// Package serverpool asks servers whether they answer, gently, on behalf of several
// callers. It knows nothing of their protocols: those who ask bring an [Asker].
package serverpool

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

// Service is what is asked for at an address.
type Service string

// The file services, each of which is asked over a connection of its own.
const (
	NFS     Service = "nfs"
	SMB     Service = "smb"
	NineP   Service = "9p"
	CephMon Service = "ceph"
)

// FileServices returns all of them.
func FileServices() []Service { return []Service{NFS, SMB, NineP, CephMon} }

// fileService reports whether it is one of them.
func (s Service) fileService() bool { return slices.Contains(FileServices(), s) }

// Question is what a [Pool] asks a server: whether a service answers at an address, or
// which port it has and whether it answers there.
type Question struct {
	Network string // tcp or udp
	// Address is where the service listens. A port of 0 is to be looked up first.
	Address netip.AddrPort
	Service Service
}

// Asker puts a question, and returns by the time due. It makes one or two calls, a look-up and
// the question itself. Each may take as long as each says.
type Asker func(q Question, due time.Time, each time.Duration) Answer

// NotRegistered is the Errno of a service that the host's register does not know.
const NotRegistered = "ENOTREGISTERED"

// Answer is what a server said when it was last asked.
type Answer struct {
	Known   bool          // it was asked, and this host was able to ask
	Errno   string        // see [ErrorName]; empty: the service answers
	Reached bool          // the server's host answered in some way, if only to refuse
	Elapsed time.Duration // of the call that was answered
	Text    string        // what else it said, of a question that asks for more
	// Connections are those that this host had when the server was asked over TCP for
	// evidence: those of its mounts, without the one that asked.
	Connections sockdiag.Connections
	At          time.Time // when the answer came, or none had come in time
	Since       time.Time // since when it has been so
}

// Answered reports whether the service answers.
func (a Answer) Answered() bool { return a.Known && a.Errno == "" }

// Broken reports whether the service was asked and does not answer.
func (a Answer) Broken() bool { return a.Known && a.Errno != "" }

// TimedOut reports whether the service was asked, and nothing came in time.
func (a Answer) TimedOut() bool { return a.Known && a.Errno == "ETIMEDOUT" }

// Late reports whether the service took the connection, and its answer did not come in time: it
// hangs, or is busy.
func (a Answer) Late() bool { return a.Reached && a.TimedOut() }

// Unregistered reports whether the host's register answers and does not know the service.
func (a Answer) Unregistered() bool { return a.Known && a.Errno == NotRegistered }

// since notes since when it has been so, by the answer before.
func (a *Answer) since(before Answer) {
	a.Since = before.Since
	if a.Errno != before.Errno || a.Known != before.Known {
		a.Since = a.At
	}
}

// AddTo adds the time of the answer, or the reason for its absence, to a metric's fields.
func (a Answer) AddTo(fields map[string]any, name string) {
	switch {
	case a.Answered():
		fields[name+"_seconds"] = a.Elapsed.Seconds()
	case a.Known:
		fields[name+"_errno"] = a.Errno
	}
}

// Pool asks servers on behalf of several callers, and keeps the last answer to each
// question. It is gentle for two reasons. The hosts of a fleet share their servers, and gather
// in the same second. And nfsd closes the oldest connections, whosever they are, when there are
// more than 20 for each of its threads and 60 (svc_check_conn_limits, net/sunrpc/svc_xprt.c).
//
//   - An answer that is evidence is fetched while the check that it is about may last, by each
//     host at its own moment of that time. All others are fetched once a minute, at the host's
//     own moment of the minute. This host itself is asked at once.
//   - A question that was asked in the same round, or is still under way, is not asked
//     again.
//   - There is at most one connection to each file service of a server, mostly NFS or SMB,
//     and one to all other services.
//
// Its methods may be called from several goroutines.
type Pool struct {
	// AtOnce has questions put without waiting for the host's moment. It is for callers that
	// look once, and wait.
	AtOnce bool
	// Sockets tells which connections this host has. Others may ask it, too.
	Sockets *sockdiag.Table

	seed     maphash.Seed  // of the host's own moments
	interval time.Duration // how often a question is put whose answer is no evidence
	mu       sync.Mutex
	known    map[Question]*asked
	lines    map[endpoint][]chan struct{} // of those who wait for their turn, the first of whom has it
}

type asked struct {
	round     uint64 // the last one in which its answer was evidence
	used      uint64 // the last one in which somebody wanted it
	answer    Answer
	scheduled bool // for this host's moment of the minute
	pending   bool
	evidence  bool      // for somebody who waits for the answer
	due       time.Time // when the answer comes at the latest, once it was pending
	waiting   []*waiter
}

// waiter is a caller of [Pool.Ask].
type waiter struct {
	done func(Answer)
	late *time.Timer // ends its wait, if the answer is due too late for it; or nil
}

// endpoint is what there is one connection to.
type endpoint struct {
	server      netip.Addr
	fileService Service // empty: all else
}

// NewPool returns a Pool that has asked nothing.
func NewPool() *Pool {
	return &Pool{Sockets: sockdiag.NewTable(), seed: maphash.MakeSeed(), interval: time.Minute, known: make(map[Question]*asked), lines: make(map[endpoint][]chan struct{})}
}

// keptRounds is for how many rounds an answer is kept that nobody asks for.
const keptRounds = 3

// EvidenceAfter is how long a check with a timeout may take before its server's answer is
// evidence.
func EvidenceAfter(timeout time.Duration) time.Duration { return timeout / 20 }

// answerLimit is how long answers may take: with [EvidenceAfter], they have come before the
// check that they are about is given up.
func answerLimit(timeout time.Duration) time.Duration { return timeout * 9 / 10 }

// callLimit is how long a call may take, after the last answer. An overloaded server has a
// connection of each of its clients open for that long. One whose last answer was late gets twice as
// much: a server that is only busy must not look like one that is dead for as long as it is busy.
func (q *Question) callLimit(timeout time.Duration, last Answer) time.Duration {
	limit := timeout / 4
	if q.Address.Addr().IsLoopback() {
		limit = timeout * 2 / 5
	}
	if last.Late() {
		limit = min(2*limit, answerLimit(timeout)/q.calls())
	}
	return limit
}

// calls is how many calls the question takes: an unknown port is looked up first.
func (q *Question) calls() time.Duration {
	if q.Address.Port() == 0 {
		return 2
	}
	return 1
}

func (q *Question) line() endpoint {
	if q.Service.fileService() {
		return endpoint{q.Address.Addr(), q.Service}
	}
	return endpoint{q.Address.Addr(), ""}
}

// moment is this host's place in the time in which a server is asked, from 0 to 1.
func (p *Pool) moment(server netip.Addr) float64 {
	return float64(maphash.Comparable(p.seed, server)>>11) / (1 << 53)
}

// delay is how long this host waits before it puts a question. It leaves enough time for the
// last question in its line to be answered in time.
func (p *Pool) delay(q *Question, timeout time.Duration, last Answer) time.Duration {
	if p.AtOnce || q.Address.Addr().IsLoopback() {
		return 0
	}
	calls := q.calls()
	if !q.Service.fileService() {
		calls = 2
	}
	return time.Duration(p.moment(q.Address.Addr()) * float64(max(0, answerLimit(timeout)-calls*q.callLimit(timeout, last))))
}

// Wanted is how an answer is wanted.
type Wanted struct {
	// Evidence says that something is at fault, or may be.
	Evidence bool
	Ask      Asker
	// Timeout is that of the checks that the answer is about.
	Timeout time.Duration
}

// Ask has a question put. If its answer is evidence, or there was none yet, the answer comes
// within nine tenths of the timeout: done is called with it once, by another goroutine or, where
// the round has the answer already, at once. done must not block. A server that has not answered
// by then is Broken with ETIMEDOUT. In other cases the answer comes at this host's moment, and
// done is not called. Ask reports whether done is called.
func (p *Pool) Ask(round uint64, q Question, w Wanted, done func(Answer)) bool {
	p.mu.Lock()
	a := p.known[q]
	if a == nil {
		a = &asked{}
		p.known[q] = a
	}
	a.used = round
	switch {
	case !w.Evidence && !a.answer.At.IsZero():
		p.scheduleLocked(q, a, w)
		p.mu.Unlock()
		return false
	case a.round == round && !a.pending && a.answer.Known:
		answer := a.answer
		p.mu.Unlock()
		done(answer)
		return true
	}
	caller := &waiter{done: done}
	a.waiting = append(a.waiting, caller)
	a.evidence = a.evidence || w.Evidence || a.answer.At.IsZero()
	a.round = round
	limit := answerLimit(w.Timeout)
	switch {
	case !a.pending:
		p.putLocked(q, a, w, p.delay(&q, w.Timeout, a.answer))
		p.forgetLocked(round)
	case time.Until(a.due) > limit:
		caller.late = time.AfterFunc(limit, func() { p.giveUp(q, a, caller) })
	}
	p.mu.Unlock()
	return true
}

// scheduleLocked has the question put at this host's moment of the interval.
func (p *Pool) scheduleLocked(q Question, a *asked, w Wanted) {
	if a.scheduled {
		return
	}
	a.scheduled = true
	p.forgetLocked(a.used)
	time.AfterFunc(time.Until(nextMoment(time.Now(), p.interval, p.moment(q.Address.Addr()))), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		a.scheduled = false
		if !a.pending && p.known[q] == a {
			p.putLocked(q, a, w, 0)
		}
	})
}

// nextMoment is when a host asks next, given its place in an interval.
func nextMoment(now time.Time, interval time.Duration, moment float64) time.Time {
	next := now.Truncate(interval).Add(time.Duration(moment * float64(interval)))
	if !next.After(now) {
		next = next.Add(interval)
	}
	return next
}

// putLocked puts the question after a delay, once the connection is free.
func (p *Pool) putLocked(q Question, a *asked, w Wanted, delay time.Duration) {
	now := time.Now()
	due, start, each := now.Add(answerLimit(w.Timeout)), now.Add(delay), q.callLimit(w.Timeout, a.answer)
	a.pending, a.due = true, due
	leave, turn := p.joinLocked(q.line())
	go func() {
		var answer Answer // none: this host was not able to ask
		select {
		case <-turn:
			time.Sleep(time.Until(start))
			// A server must not be Broken because others were asked before.
			if time.Until(due) >= each*3/4 {
				answer = w.Ask(q, due, each)
				p.addConnections(q, a, &answer, each/4)
			}
		case <-time.After(time.Until(due)):
		}
		leave()
		p.answered(q, answer)
	}()
}

// addConnections adds to an answer, if it is evidence, how this host's connections are.
func (p *Pool) addConnections(q Question, a *asked, answer *Answer, limit time.Duration) {
	p.mu.Lock()
	evidence := a.evidence
	p.mu.Unlock()
	if evidence && answer.Known && q.Network == "tcp" {
		answer.Connections = p.Sockets.To(q.Address, limit)
	}
}

// joinLocked joins a line. turn is closed when it is the caller's turn. leave must be called.
func (p *Pool) joinLocked(l endpoint) (leave func(), turn chan struct{}) {
	turn = make(chan struct{})
	p.lines[l] = append(p.lines[l], turn)
	if len(p.lines[l]) == 1 {
		close(turn)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		i := slices.Index(p.lines[l], turn)
		p.lines[l] = slices.Delete(p.lines[l], i, i+1)
		switch rest := p.lines[l]; {
		case len(rest) == 0:
			delete(p.lines, l)
		case i == 0:
			close(rest[0])
		}
	}, turn
}

// giveUp ends the wait of a caller that has less time than the one that has put the question.
func (p *Pool) giveUp(q Question, a *asked, w *waiter) {
	p.mu.Lock()
	i := slices.Index(a.waiting, w)
	if i >= 0 {
		a.waiting = slices.Delete(a.waiting, i, i+1)
	}
	before := a.answer
	p.mu.Unlock()
	silent := Answer{Known: true, Errno: "ETIMEDOUT", At: time.Now()}
	silent.since(before)
	switch {
	case i < 0:
	case q.Address.Port() == 0:
		w.done(Answer{}) // it may be the register that does not answer
	default:
		w.done(silent)
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
	answer.At = time.Now()
	answer.since(a.answer)
	a.answer, a.pending, a.evidence = answer, false, false
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
