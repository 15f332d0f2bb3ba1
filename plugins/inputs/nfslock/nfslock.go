// Package nfslock is a Telegraf input which tells whether this host can take
// file locks on its NFS mounts, and if not, which link of the chain is broken. A
// lock that hangs costs a helper process, never the gather.
package nfslock

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mailbox"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

//go:embed sample.conf
var sampleConfig string

// Nfslock is the input. Its exported fields are its configuration, which
// sample.conf explains.
type Nfslock struct {
	MountPoints       []string        `toml:"mount_points"`
	IgnoreMountPoints []string        `toml:"ignore_mount_points"`
	FSTypes           []string        `toml:"fstypes"`
	Canary            string          `toml:"canary"`
	CreateCanary      bool            `toml:"create_canary"`
	Timeout           config.Duration `toml:"timeout"`
	SlowThreshold     config.Duration `toml:"slow_threshold"`
	GraceTimeout      config.Duration `toml:"grace_timeout"`
	ProbeAutomounted  bool            `toml:"probe_automounted"`
	KernelLog         string          `toml:"kernel_log"`
	Override          []Override      `toml:"override"`

	Log telegraf.Logger `toml:"-"`

	settings
	prober   *prober.Prober
	hostHash uint64    // where this host's range is; 0: not known yet
	began    time.Time // the gather

	table       *mounts.Table
	all         []mounts.Mount // as last read
	superblocks []*superblock
	byMountID   map[int]*superblock
	chains      map[endpoint]*chain
	local       chain // of this host
	kernel      kernel
	waiters     waiters

	// What was said, and is not said again.
	tableErr, locksErr, blockedErr      string
	saidNone, saidNoCanary, saidRefused bool

	mail    *mailbox.Mailbox
	hurried bool
}

func init() {
	inputs.Add("nfslock", func() telegraf.Input {
		return &Nfslock{
			FSTypes:       []string{"nfs", "nfs4"},
			Canary:        ".nfslock-probe",
			Timeout:       config.Duration(5 * time.Second),
			SlowThreshold: config.Duration(time.Second),
			GraceTimeout:  config.Duration(100 * time.Second),
			KernelLog:     kmsg.Device,
			mail:          mailbox.New(),
		}
	})
}

// SampleConfig returns the documented configuration.
func (*Nfslock) SampleConfig() string { return sampleConfig }

// UseProber sets the prober that all inputs of the plugin share.
func (n *Nfslock) UseProber(p *prober.Prober) { n.prober = p }

// Init checks the configuration.
func (n *Nfslock) Init() error {
	if err := n.resolve(); err != nil {
		return err
	}
	if n.prober == nil {
		n.prober = prober.New(prober.Options{Warnf: n.Log.Warnf})
	}
	return nil
}

// Gather probes all mounts side by side, asks the services that their locks
// depend on, and reports each mount as soon as its diagnosis is sure. It returns
// when all are reported, or their time is up, or Hurry is called.
func (n *Nfslock) Gather(acc telegraf.Accumulator) error {
	n.began = time.Now()
	n.hurried = false
	if err := n.refresh(); err != nil {
		return err
	}
	pending := n.setDeadlines()
	n.mail.Open()
	if len(n.superblocks) > 0 {
		n.kernel.read(n)
	}
	locks := n.readLocks(n.began)
	n.ask()

	var counts counts
	for {
		n.mail.Open()
		for sb := range pending {
			n.advance(sb)
			if sb.attempt != nil && n.evident(sb) {
				n.report(acc, sb, locks, &counts)
				delete(pending, sb)
			}
		}
		if n.hurried || len(pending) == 0 && !n.askingAny() {
			break
		}
		n.await(pending)
	}
	n.watch(pending) // for the gather that reports them
	for sb := range pending {
		n.reportPending(acc, sb, locks, &counts)
	}
	n.sayRefused()
	n.emitServers(acc)
	n.emitHost(acc, locks, &counts)
	return nil
}

// await returns when something was posted, or it is time to look at the probes
// that do not answer.
func (n *Nfslock) await(pending map[*superblock]struct{}) {
	var watch <-chan time.Time
	if in, due := n.nextWatch(pending, time.Now()); due {
		timer := time.NewTimer(in)
		defer timer.Stop()
		watch = timer.C
	}
	select {
	case <-n.mail.Wake():
	case <-watch:
		n.watch(pending)
	}
}

// Hurry makes a Gather under way return. What still hangs then is reported by
// the first Gather after its timeout.
func (n *Nfslock) Hurry() { n.mail.Post(func() { n.hurried = true }) }

// refresh brings superblocks up to date with the mount table.
func (n *Nfslock) refresh() error {
	if n.table == nil {
		table, err := mounts.OpenTable(n.mountinfo)
		if err != nil {
			return fmt.Errorf("opening the mount table: %w", err)
		}
		n.table = table
	}
	all, changed, err := n.table.Mounts()
	if err != nil && all == nil {
		return err // counts of nothing would say that all is well
	}
	n.sayOnce(&n.tableErr, err)
	n.all = all
	if changed {
		n.regroup(all)
	}
	if len(n.superblocks) == 0 && !n.saidNone {
		n.saidNone = true
		n.Log.Debugf("no mounts of %q here: only the host's own locks are reported", n.FSTypes)
	}
	return nil
}

// sayOnce reports a problem when it comes up, and not again while it lasts.
func (n *Nfslock) sayOnce(said *string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != *said && text != "" {
		n.Log.Warn(text)
	}
	*said = text
}

// ask puts the questions to all servers and to this host, and does not wait for
// the answers. One that is still under way is not put again.
func (n *Nfslock) ask() {
	nlm := false
	for _, sb := range n.superblocks {
		nlm = nlm || sb.nlm
	}
	timeout := n.shortestTimeout()
	put := func(c *chain, question func() links) {
		if c.asking {
			return
		}
		c.asking = true
		go func() {
			answer := question()
			n.mail.Post(func() { c.links, c.asking, c.known = answer, false, true })
		}()
	}
	for _, c := range n.chains {
		e, q := c.endpoint, c.question
		put(c, func() links { return askServer(e, q, timeout) })
	}
	if nlm {
		put(&n.local, func() links { return askThisHost(timeout) })
	} else {
		n.local.known, n.local.links = false, links{}
	}
}

func (n *Nfslock) askingAny() bool {
	for _, c := range n.chains {
		if c.asking {
			return true
		}
	}
	return n.local.asking
}

// setDeadlines gives the probes of all superblocks their time, and returns those
// which are to be reported: all.
func (n *Nfslock) setDeadlines() map[*superblock]struct{} {
	pending := make(map[*superblock]struct{}, len(n.superblocks))
	if n.hostHash == 0 && len(n.superblocks) > 0 {
		n.findHost()
	}
	for _, sb := range n.superblocks {
		pending[sb] = struct{}{}
		if !sb.patient {
			sb.deadline = n.began.Add(sb.policy.timeout)
		}
	}
	return pending
}

// advance starts the probe of a superblock if none is under way, and looks after
// one that takes long.
func (n *Nfslock) advance(sb *superblock) {
	switch {
	case sb.attempt != nil:
	case sb.underWay:
		n.judgePatient(sb, time.Now())
	case sb.exempt != "":
		sb.attempt = &attempt{reason: sb.exempt}
	default:
		n.start(sb)
	}
}

// evident reports whether all is known that the diagnosis of the attempt needs.
// A lock that works needs this host's rpc.statd only, and the last answer of it
// will do: healthy mounts wait for nobody.
func (n *Nfslock) evident(sb *superblock) bool {
	if sb.attempt.end == passed {
		return !sb.nlm || n.local.known
	}
	return !n.awaitsAnswers(sb)
}

// awaitsAnswers reports whether a service has still to answer on which the locks
// of the superblock depend.
func (n *Nfslock) awaitsAnswers(sb *superblock) bool {
	return sb.chain != nil && sb.chain.asking || sb.nlm && n.local.asking
}

// report makes the metrics of a superblock from its attempt.
func (n *Nfslock) report(acc telegraf.Accumulator, sb *superblock, locks *lockTable, counts *counts) {
	now := time.Now()
	f := n.findingOf(sb, now)
	sb.attempt = nil
	if changed, before, lasted := sb.settle(f, now); changed && !sb.onlyEvidenceChanged(&before) {
		sb.said = f.diagnosis
		n.logChange(sb, &before, lasted.Round(100*time.Millisecond))
	}
	n.emit(acc, sb, &sb.found, locks, counts)
}

// onlyEvidenceChanged reports whether the lock hangs as before, and what is said
// of it was said already or is nothing new: the evidence of a server that answers
// some calls comes and goes.
func (sb *superblock) onlyEvidenceChanged(before *finding) bool {
	f := &sb.found
	sameHang := f.end == hung && before.end == hung && f.code == before.code
	return sameHang && (f.diagnosis == unknown || f.diagnosis == sb.said)
}

// reportPending reports a superblock whose probe was still under way when Gather
// had to return: one that hung before still does; of others nothing is known.
func (n *Nfslock) reportPending(acc telegraf.Accumulator, sb *superblock, locks *lockTable, counts *counts) {
	if sb.hung() && sb.found.end == hung || sb.late != nil {
		f := sb.found
		f.seconds = nil
		n.emit(acc, sb, &f, locks, counts)
	}
}

func (n *Nfslock) logChange(sb *superblock, before *finding, lasted time.Duration) {
	f := &sb.found
	what := fmt.Sprintf("%s (%s on %s)", mounts.Printable(sb.probed.Mountpoint), sb.probed.FSType, mounts.Printable(sb.probed.Source))
	why := string(f.diagnosis) + ": " + f.diagnosis.explain()
	if f.reason != "" {
		why += "; " + mounts.Printable(f.reason)
	}
	switch {
	case f.code == result.Stuck:
		n.Log.Warnf("%s: a lock hangs in %s, and helper process %d survives SIGKILL: %s", what, f.call, f.report.PID, why)
	case f.end == hung && f.code.Fault():
		n.Log.Warnf("%s: a lock hangs, %s has not answered within %v: %s", what, f.call, sb.policy.timeout, why)
	case f.end == hung:
		n.Log.Infof("%s: a lock waits: %s", what, why)
	case f.end == failed && f.report.Elapsed >= sb.policy.timeout:
		n.Log.Warnf("%s: no lock, %s failed after %v: %s: %s", what, f.call, f.report.Elapsed.Round(time.Second), result.ErrnoName(f.errno), why)
	case f.end == failed:
		n.Log.Warnf("%s: no lock, %s: %s: %s", what, f.call, result.ErrnoName(f.errno), why)
	case f.code.Fault():
		n.Log.Warnf("%s: %s", what, why)
	case before.code.Fault() && f.diagnosis != unknown:
		n.Log.Infof("%s: locks work again, after %v of %s", what, lasted, before.diagnosis)
	case f.diagnosis == noCanary && !n.saidNoCanary:
		n.saidNoCanary = true
		n.Log.Infof("%s: %s; no lock is tried on it, nor on other mounts without a canary. Provide an empty file which all may write, or see create_canary", what, mounts.Printable(f.reason))
	case f.code != result.OK:
		n.Log.Debugf("%s: %s", what, why)
	}
}

// sayRefused sums up in one line what a full host or a restarting fork server
// can cause for many mounts at once.
func (n *Nfslock) sayRefused() {
	refused := 0
	for _, sb := range n.superblocks {
		if sb.known && sb.found.report != nil && sb.found.report.Err != nil {
			refused++
		}
	}
	if (refused > 0) == n.saidRefused {
		return
	}
	if n.saidRefused = refused > 0; refused > 0 {
		n.Log.Warnf("%d mounts are not probed; the field reason says why", refused)
	} else {
		n.Log.Info("all mounts are probed again")
	}
}
