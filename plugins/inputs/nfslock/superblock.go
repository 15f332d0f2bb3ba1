package nfslock

import (
	"strings"
	"syscall"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// superblock is one file system instance with the mounts that show it. One
// probe answers for all of them.
type superblock struct {
	id     string
	probed *mounts.Mount   // whose canary is locked
	mounts []*mounts.Mount // in the table's order; probed is one of them
	policy policy
	scope  scope
	nlm    bool
	chain  *chain // of the server; nil: unknown
	exempt string // why it is not probed

	canary   canary
	underWay bool // a helper's report is to come
	ticket   prober.Ticket
	killable bool // no helper of it was ever stuck
	deadline time.Time
	patient  bool     // the helper may outlast the deadline
	outrun   bool     // it is killed for a new one that will know sooner
	late     *attempt // the failure that the last lock to hang ended with
	attempt  *attempt // is to be reported
	waits    string   // where the helper waited when last seen

	found     finding
	said      diagnosis // in the log
	known     bool
	answered  bool      // the last probe
	hungSince time.Time // start of the first probe without an answer; zero: it answers
	badSince  time.Time // start of the first probe that found a fault; zero: there is none
	lastOK    time.Time
	recovered int64
	// leftover: a helper was killed while it held a lock or was about to, and
	// none could be taken since.
	leftover bool
}

// canary is what is known of the file that is locked.
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

// attempt is what a probe met, before it is known why.
type attempt struct {
	end      ending
	stage    stage
	call     string // that hung or failed
	errno    syscall.Errno
	absent   bool   // there is no canary, or nothing that could be one
	reason   string // what else there is to say
	holder   *holder
	flocked  bool // the host's own file was locked with flock
	readOnly bool // by a read lock
	seconds  map[string]time.Duration
	report   *prober.Report
}

// newAttempt notes what a helper has done.
func newAttempt(r *prober.Report) *attempt {
	a := &attempt{report: r, seconds: make(map[string]time.Duration)}
	for i := range r.Steps {
		if field, timed := timedSteps()[r.Steps[i].Name]; timed {
			a.seconds[field] += r.Steps[i].Elapsed
		}
	}
	return a
}

func (a *attempt) hang(call string) { a.end, a.call, a.stage = hung, call, stageOf(call) }

// stuck reports whether a helper survives SIGKILL.
func (a *attempt) stuck() bool {
	return a.report != nil && (a.report.Outcome == prober.Stuck || a.report.Outcome == prober.Busy)
}

// holder is who has the lock, as F_GETLK names it.
type holder struct {
	pid   int64 // negative: on another host; -1: an open file's, of nobody; 0: unknown
	write bool
}

// finding is an attempt with its cause.
type finding struct {
	attempt
	diagnosis diagnosis
	code      result.Code
}

// group names what mounts share a fate with: their server.
func group(mount *mounts.Mount) string {
	if server, ok := mount.Option("addr"); ok {
		return "nfslock " + server
	}
	return "nfslock " + mount.Source
}

// hostOf is the server's name in a mount's source.
func hostOf(mount *mounts.Mount) string {
	host, _, _ := strings.Cut(mount.Source, ":/")
	return strings.Trim(host, "[]")
}

func (sb *superblock) hung() bool { return !sb.hungSince.IsZero() }

// key of its helpers.
func (sb *superblock) key() string { return "nfslock " + sb.id }

// regroup sorts the mounts by superblock, and keeps what is known about those
// that were there before.
func (n *Nfslock) regroup(table []mounts.Mount) {
	before := make(map[string]*superblock, len(n.superblocks))
	for _, sb := range n.superblocks {
		before[sb.id] = sb
	}
	n.superblocks = nil
	n.byMountID = make(map[int]*superblock)
	found := make(map[string]*superblock)
	for i := range table {
		mount := &table[i]
		if mount.Hidden || !n.types.Match(mount.FSType) || !n.points.Match(mount.Mountpoint) {
			continue
		}
		id := mount.Superblock()
		sb := found[id]
		if sb == nil {
			if sb = before[id]; sb == nil || sb.probed.Source != mount.Source || sb.probed.FSType != mount.FSType {
				sb = &superblock{id: id, killable: true}
			}
			sb.mounts, sb.probed = nil, mount
			found[id] = sb
			n.superblocks = append(n.superblocks, sb)
		}
		sb.mounts = append(sb.mounts, mount)
		if sb.probed.Bind() && !mount.Bind() {
			sb.probed = mount
		}
		n.byMountID[mount.ID] = sb
	}
	for _, sb := range n.superblocks {
		sb.policy, sb.scope, sb.nlm = n.policyFor(sb.probed), scopeOf(sb.probed), locksByNLM(sb.probed)
		sb.exempt = ""
		if sb.probed.OnDemand && !n.ProbeAutomounted {
			sb.exempt = "mounted on demand: a probe would keep it mounted; see probe_automounted"
		}
	}
	for id, sb := range before {
		if found[id] != sb {
			n.prober.SetDeadline(sb.ticket, time.Now()) // it would keep the mount busy
		}
	}
	n.linkChains()
}

// linkChains finds the server of each superblock.
func (n *Nfslock) linkChains() {
	before := n.chains
	n.chains = make(map[endpoint]*chain)
	for _, sb := range n.superblocks {
		sb.chain = nil
		e, q := endpointOf(sb.probed)
		if e == nil {
			continue
		}
		c := n.chains[*e]
		if c == nil {
			if c = before[*e]; c == nil {
				c = &chain{endpoint: *e}
			}
			c.question, c.names = q, map[string]bool{e.address.String(): true}
			n.chains[*e] = c
		}
		c.nlm = c.nlm || q.nlm
		c.names[hostOf(sb.probed)] = true
		sb.chain = c
	}
}

// settle notes a finding, and reports whether it is another than before, and
// how long the locks had been at fault.
func (sb *superblock) settle(f finding, now time.Time) (changed bool, before finding, lasted time.Duration) {
	started := now
	if f.report != nil && !f.report.Since.IsZero() {
		started = f.report.Since
	}
	if !sb.badSince.IsZero() {
		lasted = now.Sub(sb.badSince)
	}
	switch {
	case f.end == hung:
		sb.answered = false
		if !sb.hung() {
			sb.hungSince = started
		}
	case f.end != notTried:
		sb.answered = true
		sb.hungSince = time.Time{}
	}
	switch {
	case f.code.Fault():
		if sb.badSince.IsZero() {
			sb.badSince = started
			if f.end == hung {
				sb.badSince = sb.hungSince
			}
		}
	case f.code != result.Unchecked || f.diagnosis != unknown:
		if !sb.badSince.IsZero() {
			sb.recovered++
		}
		sb.badSince = time.Time{}
		if f.end == passed && f.diagnosis != localOnly {
			sb.lastOK = now
		}
	}
	before = sb.found
	changed = !sb.known || f.code != before.code || f.errno != before.errno || f.diagnosis != before.diagnosis
	sb.found, sb.known = f, true
	return changed, before, lasted
}
