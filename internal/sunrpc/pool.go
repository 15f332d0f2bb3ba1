package sunrpc

import (
	"context"
	"errors"
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

// Pool asks servers on behalf of several callers: a question that was asked in the
// same round, or is still under way, is not asked again. It keeps the last answer to
// each question. Its methods may be called from several goroutines.
type Pool struct {
	mu    sync.Mutex
	known map[Question]*asked
}

type asked struct {
	round   uint64
	used    uint64 // the last round in which somebody wanted it
	answer  Answer
	pending bool
	due     time.Time // when the answer comes at the latest, if it is pending
	waiting []*waiter
}

// waiter is a caller of [Pool.Ask].
type waiter struct {
	done func(Answer)
	late *time.Timer // ends its wait for an answer that is due too late for it; or nil
}

// NewPool returns a Pool that has asked nothing.
func NewPool() *Pool { return &Pool{known: make(map[Question]*asked)} }

// keptRounds is for how many rounds an answer is kept that nobody asks for.
const keptRounds = 3

// AnswerLimit is how long a server may take that is asked about checks with a timeout: its
// word must be here before those that hang are given up.
func AnswerLimit(timeout time.Duration) time.Duration { return timeout * 4 / 5 }

// Ask puts the question, with NULL calls of one of the versions: the first that is
// registered, or the first where nothing is looked up. The answer comes within limit;
// a server that has not answered then is Broken with ETIMEDOUT. done is called once, by
// another goroutine or, where the round has the answer already, at once; it must not
// block.
func (p *Pool) Ask(round uint64, q Question, limit time.Duration, versions []uint32, done func(Answer)) {
	p.mu.Lock()
	a := p.known[q]
	if a == nil {
		a = &asked{}
		p.known[q] = a
	}
	a.used = round
	if a.round == round && !a.pending && a.answer.Known {
		answer := a.answer
		p.mu.Unlock()
		done(answer)
		return
	}
	w := &waiter{done: done}
	a.waiting = append(a.waiting, w)
	start := !a.pending
	switch {
	case start:
		a.pending, a.round, a.due = true, round, time.Now().Add(limit)
		p.forgetLocked(round)
	case time.Until(a.due) > limit:
		w.late = time.AfterFunc(limit, func() { p.giveUp(q, a, w) })
	}
	p.mu.Unlock()
	if start {
		go func() { p.answered(q, put(q, limit, versions)) }()
	}
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

// put asks the server. A lookup takes half of the limit at most.
func put(q Question, limit time.Duration, versions []uint32) Answer {
	if q.Address.Port() != 0 {
		return null(q, q.Address, versions[0], limit)
	}
	rpcbind := netip.AddrPortFrom(q.Address.Addr(), PortRPCBind)
	ctx, cancel := context.WithTimeout(context.Background(), limit/2)
	defer cancel()
	for _, version := range versions {
		port, err := LookUp(ctx, q.Network, rpcbind, Service{Program: q.Program, Version: version, Network: q.Network})
		if err == nil {
			return null(q, netip.AddrPortFrom(q.Address.Addr(), port), version, limit/2)
		}
		if refusal, ok := errors.AsType[*AnswerError](err); !ok || refusal.Status != NotRegistered {
			return Answer{} // that is rpcbind's fault: nothing is known of the program
		}
	}
	return Answer{Known: true, Errno: NotRegistered.name(), Reached: true}
}

// null makes a NULL call. A call that this host could not make tells nothing. A server
// that has another version of the program, or refuses for another reason, is alive. One
// that does not have the program is not: no better than none (RFC 5531, section 9).
func null(q Question, address netip.AddrPort, version uint32, limit time.Duration) Answer {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
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
