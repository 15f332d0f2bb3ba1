package prober

import (
	"fmt"
	"time"
)

// maxWaiting bounds the helpers of Killable plans that hang at one time.
const maxWaiting = 1024

// A class is a kind of checks that has limits of its own. Lower ones are
// started first.
type class uint8

const (
	independent class = iota // and trusted
	trusted
	killable
	untrusted
	classes int = iota
)

func (c *Check) class() class {
	switch {
	case c.Plan.Killable:
		return killable
	case c.Trusted && c.Independent:
		return independent
	case c.Trusted:
		return trusted
	}
	return untrusted
}

// kept is what of a cap is left to classes that are less likely to hang.
func (c class) kept(limit int) int {
	switch c {
	case untrusted:
		return limit / 4
	case trusted:
		return (limit + 8) / 16 // rounded, so that small caps keep one, too
	}
	return 0
}

// group is the checks that wait, and the helpers there are, of keys that share
// a fate.
type group struct {
	name    string
	waiting [classes][]*pending // in order of submission
	ready   [classes]bool       // is in admission.ready
	running int                 // helpers of plans that are not Killable
	stuck   int                 // helpers that survive SIGKILL
}

// mostStuck is how many helpers of one group may be stuck at one time, but for one:
// when so many are, a trusted key is tried, and others after it while they answer.
func mostStuck(limit int) int { return max(1, limit*5/16) }

// admission decides which of the waiting checks may start. All it does takes
// constant time per check, however many wait.
type admission struct {
	groups  map[string]*group
	ready   [classes][]*group // those with a check that may perhaps start, in turn
	running [classes]int      // helpers of plans that are not Killable
	stuck   int               // helpers that survive SIGKILL, orphans left out
}

func (a *admission) group(name string) *group {
	g := a.groups[name]
	if g == nil {
		g = &group{name: name}
		a.groups[name] = g
	}
	return g
}

func (a *admission) enqueue(w *pending) {
	g := a.group(w.check.Group)
	c := w.check.class()
	g.waiting[c] = append(g.waiting[c], w)
	a.wake(g)
}

// wake has a group looked at again which had to wait for its own helpers.
func (a *admission) wake(g *group) {
	for c := range g.waiting {
		if len(g.waiting[c]) > 0 && !g.ready[c] {
			g.ready[c] = true
			a.ready[c] = append(a.ready[c], g)
		}
	}
}

// rest takes the first group of a class out of turn.
func (a *admission) rest(c class) {
	g := a.ready[c][0]
	a.ready[c] = a.ready[c][1:]
	g.ready[c] = false
	a.forget(g)
}

// forget drops a group of which there is nothing to know.
func (a *admission) forget(g *group) {
	for k := range g.waiting {
		if len(g.waiting[k]) > 0 {
			return
		}
	}
	if g.running == 0 && g.stuck == 0 {
		delete(a.groups, g.name)
	}
}

// next is the first check of the first group of a class.
func (a *admission) next(c class) *pending {
	for len(a.ready[c]) > 0 {
		g := a.ready[c][0]
		for len(g.waiting[c]) > 0 {
			if w := g.waiting[c][0]; !w.decided {
				return w
			}
			g.waiting[c] = g.waiting[c][1:] // given up meanwhile
		}
		a.rest(c)
	}
	return nil
}

// advance goes on to the next group of a class, after a check of the first one
// was started or refused.
func (a *admission) advance(c class) {
	g := a.ready[c][0]
	g.waiting[c] = g.waiting[c][1:]
	a.rest(c)
	if len(g.waiting[c]) > 0 {
		g.ready[c] = true
		a.ready[c] = append(a.ready[c], g)
	}
}

// drain takes all checks that wait out of the queue.
func (a *admission) drain() []*pending {
	var all []*pending
	for _, g := range a.groups {
		for c := range g.waiting {
			for _, w := range g.waiting[c] {
				if !w.decided {
					all = append(all, w)
				}
			}
			g.waiting[c] = nil
		}
	}
	return all
}

// started, turnedStuck and ended keep the counts.
func (a *admission) started(c *Check) {
	if !c.Plan.Killable {
		a.running[c.class()]++
		a.group(c.Group).running++
	}
}

func (a *admission) turnedStuck(c *Check) {
	a.stuck++
	a.group(c.Group).stuck++
	a.notRunning(c)
}

func (a *admission) notRunning(c *Check) {
	g := a.group(c.Group)
	if !c.Plan.Killable {
		a.running[c.class()]--
		g.running--
	}
	a.wake(g)
	a.forget(g)
}

func (a *admission) ended(c *Check, wasStuck bool) {
	if !wasStuck {
		a.notRunning(c)
		return
	}
	a.stuck--
	g := a.group(c.Group)
	g.stuck--
	a.forget(g)
	for _, g := range a.groups { // every group's share has grown
		a.wake(g)
	}
}

type verdict uint8

const (
	admitted verdict = iota
	refused
	groupWaits // for one of its own helpers
	classWaits // for any helper
	keyWaits   // for the helper of its key
	unsettled  // until orphans that are about to end have done so
)

// pump starts what can be started.
func (p *Prober) pump() {
	for c := range class(classes) {
		for w := p.next(c); w != nil; w = p.next(c) {
			if p.server == nil || p.server.ended || p.server.full || p.fresh >= p.options.Concurrency {
				return
			}
			if w.late() {
				p.advance(c)
				p.refuse(w)
				continue
			}
			v, report := p.admit(w)
			if v == classWaits {
				break
			}
			switch v {
			case groupWaits:
				p.rest(c)
			case keyWaits:
				p.advance(c)
				w.ahead = p.byKey[w.check.Key]
				w.ahead.behind = append(w.ahead.behind, w)
			case unsettled:
				p.advance(c)
				p.awaitOrphans(w)
			case refused:
				p.advance(c)
				p.decide(w, report)
			case admitted:
				if !p.start(w) {
					return
				}
				p.advance(c)
			}
		}
	}
}

// admit decides whether a helper may be forked for the check now.
func (p *Prober) admit(w *pending) (verdict, Report) {
	v, report := p.judge(w)
	if v != admitted && v != keyWaits && p.orphans.mayEnd(w.check.Plan.grace()) {
		return unsettled, Report{}
	}
	return v, report
}

// judge applies the rules. There is one helper per key. Any helper
// of a plan that is not Killable may turn out stuck, so those that run and
// those that are stuck together never exceed the cap. Two rules keep some of it
// free. A quarter is for trusted keys, and a sixteenth for independent ones. No group
// may hold more than three eighths of the cap, nor more than half of what the stuck
// ones have left: two dead daemons with hundreds of mounts leave room for everyone
// else.
func (p *Prober) judge(w *pending) (verdict, Report) {
	c := &w.check
	if h := p.byKey[c.Key]; h != nil {
		if h.stage != stuck {
			return keyWaits, Report{}
		}
		outcome := Busy
		if h.check.Plan.Killable && time.Since(h.killed) < killablePatience {
			outcome = Expired // and about to end
		}
		return refused, Report{Outcome: outcome, PID: h.pid, Since: h.started, HangsIn: h.report.HangsIn}
	}
	if o, ok := p.orphans.find(p.options.Proc, w.compiled.comm); ok {
		return refused, Report{Outcome: Busy, PID: o.pid, Since: o.started}
	}
	if c.Plan.Killable {
		if len(p.helpers) >= maxWaiting {
			return refused, Report{Outcome: Capped, Err: fmt.Errorf("%d helpers hang on this host", len(p.helpers))}
		}
		return admitted, Report{}
	}

	g := p.group(c.Group)
	stuckAll := p.stuck + p.orphans.count(p.options.Proc)
	free := p.options.MaxStuck - stuckAll
	kept := c.class().kept(p.options.MaxStuck)
	stuckHere := g.stuck + p.orphans.countLike(p.options.Proc, w.compiled.comm)
	share := free / 2
	if stuckHere == 0 {
		share = (free + 1) / 2
	}
	switch most := mostStuck(p.options.MaxStuck); {
	case stuckHere < most:
		share = min(share, most-stuckHere)
	case g.stuck <= most && c.Trusted:
		share = min(share, 1)
	default:
		share = 0
	}
	running, risky := 0, 0 // of all classes, and of those for which as much is kept at least
	for other, n := range p.running {
		running += n
		if class(other).kept(p.options.MaxStuck) >= kept {
			risky += n
		}
	}
	switch {
	case free <= kept || share <= 0:
		return refused, Report{Outcome: Capped, Err: fmt.Errorf("%d helpers are stuck on this host, %d of them on %s; %d are allowed",
			stuckAll, stuckHere, c.Group, p.options.MaxStuck)}
	case running >= free, risky >= free-kept:
		return classWaits, Report{}
	case g.running >= share:
		return groupWaits, Report{}
	}
	return admitted, Report{}
}
