package prober

import "fmt"

// maxHanging bounds the helpers of Killable plans that hang at one time.
const maxHanging = 1024

// A class is a kind of checks that has limits of its own. Lower ones are
// started first, mostly.
type class uint8

const (
	essential   class = iota
	independent       // and trusted
	trusted
	killable
	untrusted
	classes int = iota
)

func (c *Check) class() class {
	switch {
	case c.Essential:
		return essential
	case c.Plan.Killable:
		return killable
	case c.Trusted && c.Independent:
		return independent
	case c.Trusted:
		return trusted
	}
	return untrusted
}

// reserved returns how many places of a cap are held back for classes that are less
// likely to hang.
func (c class) reserved(limit int) int {
	switch c {
	case untrusted:
		return limit / 4
	case trusted:
		return (limit + 8) / 16 // rounded, so that small caps hold one back, too
	}
	return 0
}

// group is the checks that wait, and the helpers there are, of keys that share
// a fate. It is forgotten when there are none.
type group struct {
	name    string
	waiting [classes]queue // in order of submission
	ready   [classes]bool  // is in admission.ready
	running int            // helpers of plans that are not Killable
	asleep  int            // helpers that are left asleep, or will be at their deadline
	stuck   int            // helpers that survive SIGKILL
}

// A queue is of checks, each of which is in one queue at most.
type queue struct{ first, last *pending }

func (q *queue) add(w *pending) {
	if q.first == nil {
		q.first = w
	} else {
		q.last.next = w
	}
	q.last = w
}

// drop removes the first check.
func (q *queue) drop() {
	w := q.first
	q.first, w.next = w.next, nil
}

// A place is what a helper counts as.
type place uint8

const (
	nowhere place = iota // it is outside of the caps, or has ended
	atWork               // it may turn out stuck
	asleepPlace
	stuckPlace
)

// place is that of the check's helper while nothing is known of it.
func (c *Check) place() place {
	if c.Essential || c.Plan.Killable {
		return nowhere
	}
	return atWork
}

// roomLocked returns how many more helpers a check's group may have at the same time: five
// sixteenths of the limit, less those that hang already (hang, of which own are of this run). When
// so many hang, one trusted key is tried, and then others for as long as they answer.
func (c *Check) roomLocked(hang, own, limit int) int {
	switch most := max(1, limit*5/16); {
	case hang < most:
		return most - hang
	case own <= most && c.Trusted:
		return 1
	}
	return 0
}

// admission decides which of the waiting checks may start. All it does takes
// constant time per check, however many wait.
type admission struct {
	groups  map[string]*group
	spare   []*group
	ready   [classes][]*group // those with a check that may perhaps start, in turn
	starts  int               // by whose number a class has its turn
	running [classes]int      // helpers of plans that are not Killable
	asleep  int               // as in group; orphans left out
	stuck   int               // helpers that survive SIGKILL, orphans left out
}

func (a *admission) groupLocked(name string) *group {
	g := a.groups[name]
	if g == nil {
		var found bool
		if g, found = take(&a.spare); !found {
			g = new(group)
		}
		*g = group{name: name}
		a.groups[name] = g
	}
	return g
}

func (a *admission) enqueueLocked(w *pending) {
	g := a.groupLocked(w.check.Group)
	c := w.check.class()
	g.waiting[c].add(w)
	a.wakeLocked(g)
}

// wakeLocked makes a group ready again that had to wait for its own helpers.
func (a *admission) wakeLocked(g *group) {
	for c := range g.waiting {
		if g.waiting[c].first != nil && !g.ready[c] {
			g.ready[c] = true
			a.ready[c] = append(a.ready[c], g)
		}
	}
}

// restLocked removes the first group of a class from those that are ready.
func (a *admission) restLocked(c class) {
	g := a.ready[c][0]
	a.ready[c] = a.ready[c][1:]
	g.ready[c] = false
	a.forgetLocked(g)
}

// forgetLocked drops a group that has no checks and no helpers, and is not ready in any class.
func (a *admission) forgetLocked(g *group) {
	for k := range g.waiting {
		if g.waiting[k].first != nil || g.ready[k] {
			return
		}
	}
	if g.running == 0 && g.asleep == 0 && g.stuck == 0 && a.groups[g.name] == g {
		delete(a.groups, g.name)
		keepOne(&a.spare, g)
	}
}

// nextLocked is the first check of the first group of a class.
func (a *admission) nextLocked(c class) *pending {
	for len(a.ready[c]) > 0 {
		g := a.ready[c][0]
		for w := g.waiting[c].first; w != nil; w = g.waiting[c].first {
			if !w.decided {
				return w
			}
			g.waiting[c].drop() // given up meanwhile
		}
		a.restLocked(c)
	}
	return nil
}

// advanceLocked goes on to the next group of a class, after a check of the first one
// was started or refused.
func (a *admission) advanceLocked(c class) {
	g := a.ready[c][0]
	g.waiting[c].drop()
	if g.waiting[c].first != nil {
		a.ready[c] = append(a.ready[c][1:], g)
		return
	}
	a.restLocked(c)
}

// drainLocked empties the queue, and returns all checks that wait.
func (a *admission) drainLocked() []*pending {
	var all []*pending
	for _, g := range a.groups {
		for c := range g.waiting {
			for w := g.waiting[c].first; w != nil; w = g.waiting[c].first {
				if !w.decided {
					all = append(all, w)
				}
				g.waiting[c].drop()
			}
		}
	}
	return all
}

// moveLocked counts a helper in another place, unless its check is Essential.
func (a *admission) moveLocked(h *helper, to place) {
	from := h.place
	if from == to || h.check.Essential {
		return
	}
	h.place = to
	if from == nowhere {
		h.group = a.groupLocked(h.check.Group)
	}
	a.countLocked(h, from, -1)
	a.countLocked(h, to, 1)
	if from == asleepPlace || from == stuckPlace {
		for _, g := range a.groups { // every group's share may have grown
			a.wakeLocked(g)
		}
	}
	a.wakeLocked(h.group)
	a.forgetLocked(h.group)
}

func (a *admission) countLocked(h *helper, at place, change int) {
	g := h.group
	switch at {
	case atWork:
		a.running[h.check.class()] += change
		g.running += change
	case asleepPlace:
		a.asleep += change
		g.asleep += change
	case stuckPlace:
		a.stuck += change
		g.stuck += change
	}
}

type verdict uint8

const (
	admitted verdict = iota
	refused
	groupWaits  // for one of its own helpers
	classWaits  // for any helper
	keyWaits    // for the helper of its key
	orphanWaits // until orphans that are about to end have done so
)

// startsPerTurn is how many checks are started for each that is of the class whose turn it is.
const startsPerTurn = 4

// pumpLocked starts what can be started. Each class has its turn now and then: on a host that does
// not come to all checks in time, it would never come to those of the last ones.
func (p *Prober) pumpLocked() {
	for p.startAnyLocked() {
		p.admission.starts++
	}
}

// startAnyLocked is startNextLocked for the essential class, for the one whose turn it is, and for the
// others in order, until there is one to start.
func (p *Prober) startAnyLocked() bool {
	turn := class(p.admission.starts / startsPerTurn % classes)
	if p.startNextLocked(essential) || p.admission.starts%startsPerTurn == 0 && p.startNextLocked(turn) {
		return true
	}
	for c := independent; c < class(classes); c++ {
		if p.startNextLocked(c) {
			return true
		}
	}
	return false
}

// startNextLocked starts, refuses or sets aside the first check of a class. It reports false if there
// is none, or no room for it.
func (p *Prober) startNextLocked(c class) bool {
	w := p.admission.nextLocked(c)
	if w == nil || p.server == nil || p.server.ended || p.server.full || p.fresh >= p.options.Concurrency && c != essential {
		return false
	}
	if w.lateLocked() {
		p.admission.advanceLocked(c)
		p.refuseLocked(w)
		return true
	}
	switch v, report := p.admitLocked(w); v {
	case classWaits:
		return false
	case groupWaits:
		p.admission.restLocked(c)
	case keyWaits:
		p.admission.advanceLocked(c)
		w.ahead = p.byKey[w.check.Key]
		w.ahead.behind = append(w.ahead.behind, w)
	case orphanWaits:
		p.admission.advanceLocked(c)
		p.queueBehindOrphansLocked(w)
	case refused:
		p.admission.advanceLocked(c)
		p.decideLocked(w, report)
	case admitted:
		if !p.startLocked(w) {
			return false
		}
		p.admission.advanceLocked(c)
	}
	return true
}

// admitLocked decides whether a helper may be forked for the check now.
func (p *Prober) admitLocked(w *pending) (verdict, Report) {
	v, report := p.applyRulesLocked(w)
	if v != admitted && v != keyWaits && p.orphans.mayEndLocked(w.check.Plan.grace()) {
		return orphanWaits, Report{}
	}
	return v, report
}

// applyRulesLocked applies the rules. There is one helper per key, which is all that
// holds for Essential checks. Any other helper of a plan that is not Killable may turn
// out stuck, so those that run and those that are stuck together never exceed the cap.
// Two rules keep some of it free. A quarter is for trusted keys, and a sixteenth for
// independent ones. No group may hold more than three eighths of the cap, nor more than
// half of what the stuck ones have left: two dead daemons with hundreds of mounts leave
// room for everyone else. Helpers that sleep have a cap of their own, of which a group
// gets as much; where there are more, those count as stuck.
func (p *Prober) applyRulesLocked(w *pending) (verdict, Report) {
	c := &w.check
	if h := p.byKey[c.Key]; h != nil {
		if !h.leftLocked() {
			return keyWaits, Report{}
		}
		outcome := Busy
		if h.stage == stuck && p.endsSoonLocked(h) {
			outcome = Expired
		}
		return refused, Report{Outcome: outcome, PID: h.pid, Since: h.started, Wait: p.waitLocked(h), HangsIn: h.report.HangsIn, HangsAt: -1}
	}
	if o, wait, ok := p.orphans.findLocked(p.options.Proc, w.comm); ok {
		return refused, Report{Outcome: Busy, PID: o.pid, Since: o.started, Wait: wait}
	}
	if c.Essential {
		return admitted, Report{}
	}
	if c.Plan.Killable {
		if len(p.helpers) >= maxHanging {
			return refused, Report{Outcome: Capped, Err: fmt.Errorf("%d helpers hang on this host", len(p.helpers))}
		}
		return admitted, Report{}
	}

	g := p.admission.groupLocked(c.Group)
	before, beforeHere := p.orphans.countLocked(p.options.Proc), p.orphans.countLikeLocked(p.options.Proc, w.comm)
	asleepAll, asleepHere := p.admission.asleep+before.asleep, g.asleep+beforeHere.asleep
	stuckAll, stuckHere := p.admission.stuck+before.stuck+max(0, asleepAll-p.options.MaxAsleep), g.stuck+beforeHere.stuck
	free := p.options.MaxStuck - stuckAll
	reserved := c.class().reserved(p.options.MaxStuck)
	share := free / 2
	if stuckHere == 0 {
		share = (free + 1) / 2
	}
	share = min(share, c.roomLocked(stuckHere, g.stuck, p.options.MaxStuck), c.roomLocked(asleepHere, g.asleep, p.options.MaxAsleep))
	running, risky := 0, 0 // of all classes, and of those for which as much is reserved at least
	for other, n := range p.admission.running {
		running += n
		if class(other).reserved(p.options.MaxStuck) >= reserved {
			risky += n
		}
	}
	switch {
	case free <= reserved || share <= 0:
		return refused, Report{Outcome: Capped, Err: fmt.Errorf("%d helpers are stuck on this host, %d of them on %s; %d are allowed (%d, %d and %d asleep)",
			stuckAll, stuckHere, c.Group, p.options.MaxStuck, asleepAll, asleepHere, p.options.MaxAsleep)}
	case running >= free, risky >= free-reserved:
		return classWaits, Report{}
	case g.running >= share:
		return groupWaits, Report{}
	}
	return admitted, Report{}
}
