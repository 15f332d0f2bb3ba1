package nfslock

import (
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// target is a unit whose locks are probed: one probe answers for all of its mounts.
type target struct {
	*mounts.Unit
	superblock string // its device number
	policy     policy
	scope      scope
	nlm        bool
	server     *lockServer // nil: unknown
	skipReason string      // why it is not probed

	canary     canary
	plan       *plan // of the last check
	underWay   bool  // a helper's report is to come
	ticket     prober.Ticket
	killable   bool // no helper of it was ever stuck
	deadline   time.Time
	patient    bool      // the helper may outlast the deadline
	superseded bool      // it is killed for a new one that will know sooner
	late       *attempt  // the failure that the last lock to hang ended with
	attempt    *attempt  // is to be reported
	waits      string    // where the helper waited when last seen
	recovers   time.Time // since when it was seen to wait until the client has its state again, at each look

	fault.History
	found     finding
	concluded finding   // the last one that told something
	said      diagnosis // in the log
	// leftover: a helper was killed while it held a lock or was about to take one, and
	// no lock could be taken since.
	leftover bool
	lease    mounts.NFS4State // as last read; of NFSv4
}

// canary is what is known about the file that is locked.
type canary struct {
	regular bool // it is there, and can be locked
	access  int  // index of accesses
	create  bool // it is to be made
	retried bool // after a refusal, in this gather
	// This host's own file is to be made.
	createOwn bool
	// The owners, as last seen.
	uid, gid  uint32
	rootOwned bool // of the root: uid 0
}

// regroup sorts the mounts by unit, and keeps what is known about units that were there
// before.
func (n *NFSLock) regroup() {
	before := make(map[string]*target, len(n.targets))
	for _, t := range n.targets {
		before[t.ID] = t
	}
	n.targets, n.byMount = nil, make(map[int]*target)
	for _, unit := range mounts.Units(n.table.Visible(n.selection.Fits), false) {
		t := before[unit.ID]
		if t != nil && unit.Same(t.Probed) {
			delete(before, unit.ID)
		} else {
			t = &target{killable: true, History: n.kept[unit.ID]}
			delete(n.kept, unit.ID)
		}
		t.Unit, t.superblock, t.skipReason = unit, unit.Probed.Superblock(), ""
		t.policy, t.scope, t.nlm = n.policyFor(unit.Probed), scopeOf(unit.Probed), locksByNLM(unit.Probed)
		if unit.Probed.OnDemand && !n.ProbeAutomounted {
			t.skipReason = "mounted on demand: a probe would keep it mounted; see probe_automounted"
		}
		n.targets = append(n.targets, t)
		for _, mount := range unit.Mounts {
			n.byMount[mount.ID] = t
		}
	}
	for _, gone := range before {
		n.host.Prober.SetDeadline(gone.ticket, time.Now()) // it would keep the mount busy
	}
	n.linkServers()
}

// settle notes a finding, and logs it if it differs from the one before.
func (n *NFSLock) settle(t *target, f finding) {
	o := fault.Observation{
		Code: f.code, Hangs: f.end == hung, Answered: f.end == passed || f.end == failed, At: time.Now(),
		Inconclusive: f.code == result.Unchecked && f.diagnosis == unknown,
	}
	if f.report != nil {
		o.Began = f.report.Since
	}
	before, known := t.concluded, t.Known
	began := t.FaultSince.IsZero()
	lasted := t.Observe(o)
	t.found = f
	file := ""
	if began && f.code.Fault() {
		file = n.host.FaultBegan(n.reportOf(t))
	}
	if f.refused && known && (f.diagnosis == unknown || f.diagnosis == before.diagnosis) {
		return // it is one of those that are counted in one line, and nothing else is new
	}
	t.concluded = f
	changed := !known || f.code != before.code || f.errno != before.errno || f.diagnosis != before.diagnosis
	if changed && !t.onlyEvidenceChanged(&before) {
		t.said = f.diagnosis
		n.logChange(t, &before, lasted.Round(100*time.Millisecond), file)
	}
}

// onlyEvidenceChanged reports whether a finding is no news. That is so if the lock hangs as before,
// or was at fault for the same reason before a helper could be had, and the diagnosis was logged
// already or says nothing new: the evidence of a server that answers some calls comes and goes.
func (t *target) onlyEvidenceChanged(before *finding) bool {
	f := &t.found
	sameHang := f.end == hung && before.end == hung && f.code == before.code
	sameFault := before.refused && before.code.Fault() && f.code.Fault()
	return sameHang && f.diagnosis == unknown || (sameHang || sameFault) && f.diagnosis == t.said
}
