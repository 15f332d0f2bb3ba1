package nfslock

import (
	"time"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// A lock that hangs may still fail: rpc.statd that does not answer turns it into
// ENOLCK after 65 s. So the helper of a lock that hangs is left waiting, up to
// grace_timeout, while the hang is reported. What the call finally returns refines
// the report.

// maxPatient bounds the helpers that are left waiting. Each adds 1 to the load
// average.
const maxPatient = 8

// watchShare is the part of a timeout that is left when nfslock looks where a helper waits. That
// takes helpers of its own, which a busy machine is slow to run.
const watchShare = 4

// watch looks where the helpers that are about to be killed wait, and gives more
// time to those whose call may still return something worth knowing. Reading a stack takes a
// helper. Where time runs out, the function that each helper waits in must do.
func (n *NFSLock) watch(pending map[*target]struct{}) {
	enough := time.Now().Add(n.shortestTimeout() / (2 * watchShare))
	for t := range pending {
		if !t.underWay || t.patient {
			continue
		}
		r, found := n.host.Prober.Progress(t.ticket)
		if !found {
			continue
		}
		placeOf := n.host.FunctionOf
		if time.Now().Before(enough) {
			placeOf = n.host.WaitOf
		}
		if waits := placeOf(r.PID); waits != "" { // it has not ended meanwhile
			t.noteWait(waits)
		}
		switch w := waitOf(t.waits); {
		case w == waitDelay, w == waitRecovery:
			n.readState(time.Now().Add(-n.shortestTimeout() / 2)) // whether the server was restarted
		case t.v4():
			n.readState(time.Now().Add(-stateInterval / 3)) // whether the lease has expired
		}
		if n.mayReturn(t, &r) && n.patientProbes() < maxPatient {
			t.patient = n.host.Prober.SetDeadline(t.ticket, r.Since.Add(max(n.grace, t.policy.timeout)))
		}
	}
}

// noteWait notes where the target's helper waits now.
func (t *target) noteWait(waits string) {
	t.waits = waits
	switch {
	case waitOf(waits) != waitRecovery:
		t.recovers = time.Time{}
	case t.recovers.IsZero():
		t.recovers = time.Now()
	}
}

// mayReturn reports whether it is worth waiting for a helper: for one that hangs in a
// lock, and can be killed there. In a grace period a new helper knows sooner.
func (n *NFSLock) mayReturn(t *target, r *prober.Report) bool {
	explained := waitOf(t.waits) != waitOther || n.inGrace(t)
	return t.killable && t.Probed.NFS() && t.plan.hangsAt(r) >= asking && !explained
}

func (n *NFSLock) patientProbes() (count int) {
	for _, t := range n.targets {
		if t.patient {
			count++
		}
	}
	return count
}

// nextWatch is when to look at the pending probes again.
func (n *NFSLock) nextWatch(pending map[*target]struct{}, now time.Time) (in time.Duration, due bool) {
	for t := range pending {
		at := t.deadline.Add(-t.policy.timeout / watchShare)
		if t.patient {
			at = t.deadline
		}
		if left := at.Sub(now); t.underWay && left > 0 && (!due || left < in) {
			in, due = left, true
		}
	}
	return in, due
}

// judgePatient makes an attempt of a probe that is left waiting, once its time is
// up. If what was broken works again, or the server has begun a grace period,
// the helper is killed: a new one knows sooner.
func (n *NFSLock) judgePatient(t *target, now time.Time) {
	if !t.patient || t.superseded || now.Before(t.deadline) {
		return
	}
	r, found := n.host.Prober.Progress(t.ticket)
	if !found {
		return // its report is on the way
	}
	t.noteWait(n.host.WaitOf(r.PID))
	a := t.plan.attempt(&r)
	a.hang(t.plan, &r)
	e := n.evidenceOf(t, a)
	if d := e.diagnose(); t.found.code.Fault() && d != t.found.diagnosis && (d == unknown || d == gracePeriod) {
		t.superseded = n.host.Prober.SetDeadline(t.ticket, now)
	}
	if !t.superseded {
		t.attempt = a
	}
}

// waitedFor records the report of a probe that was left waiting. It reports whether the
// probe must be made again.
func (t *target) waitedFor(r *prober.Report) (again bool) {
	superseded := t.superseded
	t.superseded = false
	switch r.Outcome {
	case prober.Done:
		return r.Failed() == nil
	case prober.Expired:
		return superseded
	}
	return false
}

// refine replaces a hang by the failure that the last hang ended with, as long as
// the hang has not lasted longer than that one.
func (t *target) refine() {
	a, late := t.attempt, t.late
	if late == nil || a == late {
		return
	}
	if a.end != hung || a.call != late.call || a.report.Elapsed > late.report.Elapsed+t.policy.timeout || a.stuck {
		t.late = nil
		return
	}
	refined := *late
	refined.report = a.report
	t.attempt = &refined
}
