package mountstat

import (
	"cmp"
	"strconv"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// target is a unit that is judged: one check answers for all of its mounts.
type target struct {
	*mounts.Unit
	namespace  *namespace // where the mounts are; nil: in the table
	appeared   time.Time  // when its mount did; zero: it was there before
	policy     policy
	plan       *plan     // of its check; nil: to be made
	key, group string    // of its check
	skipReason string    // why it is not checked
	servers    []*server // which can be asked; of SMB one of which is its own
	// search is for its SMB server, and notAt the servers that it is not.
	search smbSearch
	notAt  []serverpool.Question
	// behindDaemon is where its FUSE daemon was last seen to be connected to.
	behindDaemon mounts.Server

	fault.History
	found     finding
	concluded finding // the last one that was not Unchecked
	rootOwned bool    // the last check saw that its root belongs to uid 0
	worked    map[check]bool
	// writesAtime says that listing the root always writes its access time.
	writesAtime bool
	// saysReadOnly: in the last check statfs said that the file system is read-only, and the
	// table that it is not. turnedReadOnly: in the check before as well, so it is no matter of
	// a table that has just changed and was not read yet.
	saysReadOnly, turnedReadOnly bool
	seenWritable                 bool // by statfs, in some check
	traffic                      traffic
	disk                         disk
	evidence                               // of its last check
	waitedSince                  time.Time // since when FUSE requests wait, of one that is not checked
	examined                     time.Time // when its daemon was, since somebody had begun to wait

	underWay  bool
	awaited   bool      // by the gather under way
	submitted time.Time // when its last check was
	checkedIn uint64    // the last round in which a check told something
	leftAlone bool      // in this gather, see awaitsLogin
	asked     *plan     // of its last check
	done      func(prober.Report)
	report    *prober.Report // came, and was not yet turned into metrics
	reportOf  *plan          // which may be an older one
}

// regroup sorts the mounts that are to be checked into targets, and finds out how each is checked.
func (m *Mountstat) regroup() {
	m.inventory.sort(&m.settings, m.PerMount, m.namespaces.found)
	before := m.servers.byQuestion
	m.servers.byQuestion = make(map[serverpool.Question]*server)
	for _, t := range m.targets {
		t.policy, t.plan = m.policyFor(t.Probed, m.disks.conditionOf(t)), nil
		m.servers.link(t, before)
	}
	m.skip()
}

// skip finds out which targets must not be checked.
func (m *Mountstat) skip() {
	for _, t := range m.targets {
		t.skipReason = m.skipReasonOf(t)
	}
}

// skipReasonOf says why a target must not be checked; empty if it may be.
func (m *Mountstat) skipReasonOf(t *target) string {
	mount := t.Probed
	if !m.ProbeAutomounted && m.keptByChecks(t) {
		return "mounted on demand: a check would keep it mounted; see probe_automounted"
	}
	if uid, _, private := privateFUSE(mount); private && !m.becomes && !isUser(uid) {
		return "only the user who mounted it, " + strconv.FormatUint(uint64(uid), 10) + ", may look at it"
	}
	return ""
}

// keptByChecks reports whether the mount would be unmounted some time if it were not checked.
// The autofs of another namespace does not unmount it. A submount of the kernel's that somebody
// expects should stay: it was mounted by hand, or is to be kept.
func (m *Mountstat) keptByChecks(t *target) bool {
	if t.Probed.Submount {
		return t.namespace != nil || !m.expectations.wants(t.Probed.Mountpoint)
	}
	return t.Probed.OnDemand && t.namespace == nil
}

// compareSchedule orders targets for their checks: of one rank, those come first whose last check is
// the longest ago.
func compareSchedule(a, b *target) int {
	return cmp.Or(cmp.Compare(a.schedulingRank(), b.schedulingRank()), cmp.Compare(a.checkedIn, b.checkedIn))
}

// schedulingRank ranks targets. Those that answered come first, so that they don't
// wait behind others that hang; local ones come before those that depend on a server or
// daemon.
func (t *target) schedulingRank() int {
	rank := 0
	switch {
	case t.Hung():
		rank = 4
	case !t.Answered:
		rank = 2
	}
	if !t.Probed.BlockDevice() {
		rank++
	}
	return rank
}

// check is the target's check as the prober gets it.
func (t *target) check() prober.Check {
	local := t.Probed.Independent() || t.Probed.BlockDevice()
	return prober.Check{
		Key:         t.key,
		Group:       t.group,
		Trusted:     t.Answered || !t.Known && local,
		Independent: t.Probed.Independent(),
		Plan:        &t.plan.Plan,
	}
}

// onlyEvidenceChanged reports whether a fault is the same, and only its cause is
// described differently: a firewall that rejects, for example, does not answer every call.
func (t *target) onlyEvidenceChanged(before *finding) bool {
	ofDevice := before.code == result.Error && before.errno == "" // then the cause is all that is known
	return before.cause != "" && before.cause != unknown && before.code == t.found.code && before.errno == t.found.errno && !ofDevice
}

// settle notes a finding, and logs it if it differs from the one before.
func (m *Mountstat) settle(t *target, found finding) {
	o := fault.Observation{Code: found.code, Hangs: found.hangs(), At: time.Now(), Inconclusive: found.code == result.Unchecked}
	o.Answered = !o.Hangs && !o.Inconclusive
	if o.Hangs {
		o.Began = t.report.Since
	}
	before, known := t.concluded, t.Known
	if o.Inconclusive {
		before = t.found
	} else {
		t.concluded, t.checkedIn = found, m.round
	}
	began := t.FaultSince.IsZero()
	lasted := t.Observe(o)
	t.found = found
	file := ""
	if began && found.code.Fault() {
		file = m.host.FaultBegan(m.reportOf(t))
	}
	changed := !known || found.code != before.code || found.errno != before.errno || found.cause != before.cause
	if changed && !t.onlyEvidenceChanged(&before) {
		m.logChange(t, &before, lasted.Round(100*time.Millisecond), file)
	}
}
