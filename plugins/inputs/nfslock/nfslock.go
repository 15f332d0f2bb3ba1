// Package nfslock is a Telegraf input that tells whether this host can take
// file locks on its NFS mounts, and if not, which link of the chain is broken. A
// lock that hangs costs a helper process, never the gather.
package nfslock

import (
	_ "embed"
	"sync/atomic"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mailbox"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/oncelog"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

//go:embed sample.conf
var sampleConfig string

// NFSLock is the input. Its exported fields are its configuration, which
// sample.conf explains.
type NFSLock struct {
	MountPoints       []string        `toml:"mount_points"`
	IgnoreMountPoints []string        `toml:"ignore_mount_points"`
	FS                []string        `toml:"fs"`
	FSTypes           []string        `toml:"fstypes"` // the old name of fs
	Canary            string          `toml:"canary"`
	CreateCanary      bool            `toml:"create_canary"`
	Timeout           config.Duration `toml:"timeout"`
	SlowThreshold     config.Duration `toml:"slow_threshold"`
	GraceTimeout      config.Duration `toml:"grace_timeout"`
	ProbeAutomounted  bool            `toml:"probe_automounted"`
	KernelLog         string          `toml:"kernel_log"`
	ExpectNFS         *bool           `toml:"expect_nfs"` // nil: as the host shows
	Override          []Override      `toml:"override"`

	Log telegraf.Logger `toml:"-"`

	settings
	host     *host.Host
	said     *oncelog.Log
	hostHash uint64    // where this host's range is; 0: not known yet
	round    uint64    // the gather's
	began    time.Time // the gather

	table   *mounts.Snapshot // nil: none could be read yet
	targets []*target
	kept    map[string]fault.History // of an earlier run, by unit
	// formerHostname is the host's earlier name; empty: it is the same, or not known.
	formerHostname string
	byMount        map[int]*target // by mount ID
	servers        map[mounts.NFSServer]*lockServer
	local          lockServer // this host
	asking         int        // answers to come, of all servers
	kernel         kernel
	waiters        waiters
	readiness      readiness
	stateRead      time.Time // when the counters of NFSv4 were read
	stateReading   bool

	mail        *mailbox.Mailbox
	interrupted atomic.Bool
}

func init() {
	inputs.Add("nfslock", func() telegraf.Input {
		return &NFSLock{
			Canary:        ".nfslock-probe",
			Timeout:       config.Duration(5 * time.Second),
			SlowThreshold: config.Duration(time.Second),
			GraceTimeout:  config.Duration(100 * time.Second),
			KernelLog:     kmsg.Device,
			local:         thisHost(),
			mail:          mailbox.New(),
		}
	})
}

// SampleConfig returns the documented configuration.
func (*NFSLock) SampleConfig() string { return sampleConfig }

// UseHost sets the host that all inputs of the plugin share.
func (n *NFSLock) UseHost(h *host.Host) { n.host = h }

// Init checks the configuration.
func (n *NFSLock) Init() error {
	if err := n.resolve(); err != nil {
		return err
	}
	if n.host == nil {
		n.host = host.Alone(n.Log)
	}
	n.said = oncelog.New(n.Log)
	return nil
}

// Gather probes all mounts side by side, asks the services that their locks
// depend on, and reports each mount as soon as its diagnosis is sure. It returns
// when all are reported, when their time is up, or when Interrupt is called.
func (n *NFSLock) Gather(acc telegraf.Accumulator) error {
	n.began = time.Now()
	n.interrupted.Store(false)
	n.round = n.host.Join(n)
	n.refresh()
	pending := n.setDeadlines()
	n.mail.Drain()
	if len(n.targets) > 0 {
		n.kernel.read(n)
	}
	locks := n.readLocks(n.began)
	n.askAll()
	n.askReadiness()
	n.readState(n.began.Add(-stateInterval))
	if len(n.servers) > 0 {
		defer n.askAboutLate(pending)()
	}

	var counts counts
	for {
		n.mail.Drain()
		for t := range pending {
			n.advance(t)
			if t.attempt != nil && n.evident(t) {
				n.settle(t, n.findingOf(t))
				t.attempt = nil
				n.emit(acc, t, &t.found, locks, &counts)
				delete(pending, t)
			}
		}
		if n.interrupted.Load() || len(pending) == 0 && n.asking == 0 && !n.readiness.awaited {
			break
		}
		n.await(pending)
	}
	n.finish(acc, pending, locks, &counts)
	return nil
}

// finish reports the targets that are still pending, and the sums of all.
func (n *NFSLock) finish(acc telegraf.Accumulator, pending map[*target]struct{}, locks *lockTable, counts *counts) {
	n.watch(pending) // for the gather that reports them
	for t := range pending {
		n.emitPending(acc, t, locks, counts)
	}
	n.logRefused()
	n.emitServers(acc)
	n.emitReadiness(acc)
	n.findBlocked()
	n.emitHost(acc, locks, counts)
}

// await returns when something was posted, or it is time to look at the probes
// that do not answer.
func (n *NFSLock) await(pending map[*target]struct{}) {
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

// Interrupt makes a Gather under way return. What still hangs then is reported by
// the first Gather after its timeout.
func (n *NFSLock) Interrupt() {
	n.interrupted.Store(true)
	n.mail.Post(func() {}) // wakes it
}

// refresh updates the targets to the mount table. Before the first table there are none.
func (n *NFSLock) refresh() {
	view := n.host.Mounts(n.round)
	if view.Snapshot == nil {
		return
	}
	if view.Snapshot != n.table {
		n.table = view.Snapshot
		n.regroup()
	}
	none := ""
	if len(n.targets) == 0 {
		none = "none"
	}
	if n.said.Changed("targets", none) && none != "" {
		n.Log.Debugf("no mounts of %q here: only the host's own locks are reported", n.types)
	}
}

// setDeadlines sets the deadlines of all targets' probes, and returns the targets that are
// to be reported: all.
func (n *NFSLock) setDeadlines() map[*target]struct{} {
	pending := make(map[*target]struct{}, len(n.targets))
	if n.hostHash == 0 && len(n.targets) > 0 {
		n.findHost()
	}
	for _, t := range n.targets {
		pending[t] = struct{}{}
		if !t.patient {
			t.deadline = n.began.Add(t.policy.timeout)
		}
	}
	return pending
}

// advance starts the probe of a target if none is under way, and otherwise looks after one that
// takes long.
func (n *NFSLock) advance(t *target) {
	switch {
	case t.attempt != nil:
	case t.underWay:
		n.judgePatient(t, time.Now())
	case t.skipReason != "":
		t.attempt = &attempt{reason: t.skipReason}
	default:
		n.start(t)
	}
}

// evident reports whether everything is known that the diagnosis of the attempt needs. It asks
// the server of a lock that does not work: that answer must be newer than the attempt. A lock
// that works needs only this host's rpc.statd, whose last answer suffices: healthy mounts wait
// for nobody.
func (n *NFSLock) evident(t *target) bool {
	switch t.attempt.end {
	case passed:
		return !t.nlm || !n.local.answered.IsZero()
	case notTried:
		return n.answeredSince(t, time.Time{}) || !n.awaitsAnswers(t)
	}
	if n.answeredSince(t, t.attempt.report.Since) {
		return !t.attempt.awaitsHolder
	}
	if t.server != nil {
		n.ask(t.server, true)
	}
	return !t.attempt.awaitsHolder && !n.awaitsAnswers(t)
}

// answeredSince reports whether all services that the target's locks depend on have
// answered, or been given up, after a time.
func (n *NFSLock) answeredSince(t *target, at time.Time) bool {
	return (t.server == nil || t.server.answered.After(at)) && (!t.nlm || n.local.answered.After(at))
}

// awaitsAnswers reports whether a service that the target's locks depend on has still
// to answer.
func (n *NFSLock) awaitsAnswers(t *target) bool {
	return t.server != nil && t.server.asking > 0 || t.nlm && n.local.asking > 0
}

// emitPending reports a target whose probe was still under way when Gather had to
// return. A target that hung before still does; of others nothing is known.
func (n *NFSLock) emitPending(acc telegraf.Accumulator, t *target, locks *lockTable, counts *counts) {
	if t.Hung() && t.found.end == hung || t.late != nil {
		f := t.found
		f.seconds = nil
		n.emit(acc, t, &f, locks, counts)
	}
}

func (n *NFSLock) logChange(t *target, before *finding, lasted time.Duration, file string) {
	f := &t.found
	what := t.Probed.String()
	why := string(f.diagnosis) + ": " + f.diagnosis.Meaning()
	if f.reason != "" {
		why += "; " + mounts.Printable(f.reason)
	}
	why += fault.KeptIn(file)
	switch {
	case f.code == result.Stuck:
		n.Log.Warnf("%s: a lock hangs in %s, where helper process %d waits%s: %s", what, f.call, f.report.PID, fault.Survival(f.report), why)
	case f.end == hung && f.code.Fault():
		n.Log.Warnf("%s: a lock hangs, %s has not answered within %v: %s", what, f.call, t.policy.timeout, why)
	case f.end == hung:
		n.Log.Infof("%s: a lock waits: %s", what, why)
	case f.end == failed && f.report.Elapsed >= t.policy.timeout:
		n.Log.Warnf("%s: no lock, %s failed after %v: %s: %s", what, f.call, f.report.Elapsed.Round(time.Second), result.ErrnoName(f.errno), why)
	case f.end == failed:
		n.Log.Warnf("%s: no lock, %s: %s: %s", what, f.call, result.ErrnoName(f.errno), why)
	case f.code.Fault():
		n.Log.Warnf("%s: %s", what, why)
	case before.code.Fault() && f.diagnosis != unknown:
		n.Log.Infof("%s: locks work again, after %v of %s", what, lasted, before.diagnosis)
	case f.diagnosis == noCanary && n.said.Changed("canary", "none"):
		n.Log.Infof("%s: %s; no lock is tried on it, nor on other mounts without a canary. Provide an empty file that everybody may write, or see create_canary", what, mounts.Printable(f.reason))
	case f.code == result.Unchecked && f.diagnosis == unknown:
		n.Log.Debugf("%s: %s: %s", what, f.code, mounts.Printable(f.reason)) // nothing hung or failed
	case f.code != result.OK:
		n.Log.Debugf("%s: %s", what, why)
	}
}

// logRefused sums up in one line what a full host or a restarting fork server can cause
// for many mounts at once.
func (n *NFSLock) logRefused() {
	refused, state := 0, ""
	for _, t := range n.targets {
		if t.found.refused {
			refused += len(t.Mounts)
			state = "refused"
		}
	}
	switch {
	case !n.said.Changed("refused", state):
	case refused > 0:
		n.Log.Errorf("%d mounts are not probed; the field reason says why", refused)
	default:
		n.Log.Info("all mounts are probed again")
	}
}
