package nfslock

import (
	"time"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// A lock that hangs may still fail: rpc.statd that does not answer makes it
// ENOLCK after 65 s. So the helper of a lock that hangs is left waiting, up to
// grace_timeout, while the hang is reported. What the call returns at last refines
// the report.

// maxPatient bounds the helpers that are left waiting: each adds 1 to the load
// average.
const maxPatient = 8

// watch looks where the helpers that are about to be killed wait, and gives more
// time to those whose call may still return what is worth knowing.
func (n *Nfslock) watch(pending map[*superblock]struct{}) {
	for sb := range pending {
		if !sb.underWay || sb.patient {
			continue
		}
		r, found := n.prober.Progress(sb.ticket)
		if !found {
			continue
		}
		sb.waits = waitsOf(n.proc, r.PID)
		if n.mayReturn(sb, &r) && n.patientProbes() < maxPatient {
			sb.patient = n.prober.SetDeadline(sb.ticket, r.Since.Add(max(n.grace, sb.policy.timeout)))
		}
	}
}

// mayReturn reports whether it is worth waiting for a helper: one that hangs in a
// lock, and can be killed there. In a grace period a new one knows sooner.
func (n *Nfslock) mayReturn(sb *superblock, r *prober.Report) bool {
	return sb.killable && sb.probed.NFS() && stageOf(r.HangsIn) >= asking && !inGrace(sb.waits)
}

func (n *Nfslock) patientProbes() (count int) {
	for _, sb := range n.superblocks {
		if sb.patient {
			count++
		}
	}
	return count
}

// nextWatch is when to look at the pending probes again.
func (n *Nfslock) nextWatch(pending map[*superblock]struct{}, now time.Time) (in time.Duration, due bool) {
	for sb := range pending {
		at := sb.deadline.Add(-sb.policy.timeout / 10)
		if sb.patient {
			at = sb.deadline
		}
		if left := at.Sub(now); sb.underWay && left > 0 && (!due || left < in) {
			in, due = left, true
		}
	}
	return in, due
}

// judgePatient makes an attempt of a probe that is left waiting, once its time is
// up. Where what was broken works again, or the server has begun a grace period,
// the helper is killed: a new one knows sooner.
func (n *Nfslock) judgePatient(sb *superblock, now time.Time) {
	if !sb.patient || sb.outrun || now.Before(sb.deadline) || n.awaitsAnswers(sb) {
		return
	}
	r, found := n.prober.Progress(sb.ticket)
	if !found {
		return // its report is on the way
	}
	sb.waits = waitsOf(n.proc, r.PID)
	a := newAttempt(&r)
	a.hang(r.HangsIn)
	e := n.evidenceOf(sb, a)
	if d := e.diagnose(); sb.found.code.Fault() && d != sb.found.diagnosis && (d == unknown || d == gracePeriod) {
		sb.outrun = n.prober.SetDeadline(sb.ticket, now)
	}
	if !sb.outrun {
		sb.attempt = a
	}
}

// waitedFor takes the report of a probe that was left waiting. It reports whether the
// probe is to be made anew.
func (sb *superblock) waitedFor(r *prober.Report) (again bool) {
	outrun := sb.outrun
	sb.outrun = false
	switch r.Outcome {
	case prober.Done:
		return r.Failed() == nil
	case prober.Expired:
		return outrun
	}
	return false
}

// refine replaces a hang by the failure that the last one ended with, as long as
// it has not lasted longer.
func (sb *superblock) refine() {
	a, late := sb.attempt, sb.late
	if late == nil || a == late {
		return
	}
	if a.end != hung || a.call != late.call || a.report.Elapsed > late.report.Elapsed+sb.policy.timeout || a.stuck() {
		sb.late = nil
		return
	}
	refined := *late
	refined.report = a.report
	sb.attempt = &refined
}
