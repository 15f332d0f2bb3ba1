// Package mountstat is a Telegraf input which checks every mounted file system.
// A mount that hangs costs a helper process, never the gather.
package mountstat

import (
	_ "embed"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

//go:embed sample.conf
var sampleConfig string

// Mountstat is the input. Its exported fields are its configuration, which
// sample.conf explains.
type Mountstat struct {
	MountPoints        []string        `toml:"mount_points"`
	FS                 []string        `toml:"fs"`
	Devices            []string        `toml:"devices"`
	IgnoreMountPoints  []string        `toml:"ignore_mount_points"`
	IgnoreFS           []string        `toml:"ignore_fs"`
	IgnoreDevices      []string        `toml:"ignore_devices"`
	IgnoreMountOpts    []string        `toml:"ignore_mount_opts"`
	Checks             []string        `toml:"checks"`
	Canary             string          `toml:"canary"`
	RunAs              string          `toml:"run_as"`
	Timeout            config.Duration `toml:"timeout"`
	SlowThreshold      config.Duration `toml:"slow_threshold"`
	PerMount           bool            `toml:"per_mount"`
	ProbeAutomounted   bool            `toml:"probe_automounted"`
	Fstab              string          `toml:"fstab"`
	Expected           []string        `toml:"expected"`
	MountNamespaces    string          `toml:"mount_namespaces"`
	EnterHostNamespace bool            `toml:"enter_host_namespace"`
	BlockedTop         int             `toml:"blocked_top"`
	Override           []Override      `toml:"override"`

	Log telegraf.Logger `toml:"-"`

	settings
	prober *prober.Prober

	source       *mounts.Table
	table        []mounts.Mount // as last read
	superblocks  []*superblock
	above        map[int]placed // by mount id
	hidden       int
	malformed    int // lines of the table
	namespaces   namespaces
	expectations expectations
	waiters      waiters

	// What was said, and is not said again.
	tableErr, statsErr, fstabErr, namespacesErr, blockedErr string
	saidRefused, saidLate                                   bool

	mu      sync.Mutex
	arrived []*superblock // whose report came
	held    []*superblock // whose report waits for their server's answer
	wake    chan struct{} // something arrived, or Hurry was called
	hurried bool
	asking  map[mounts.NFSServer]bool // calls under way
	answers map[mounts.NFSServer]answer
}

// placed is a mount and, if it is checked, its superblock.
type placed struct {
	mount      *mounts.Mount
	superblock *superblock
}

func init() {
	inputs.Add("mountstat", func() telegraf.Input {
		return &Mountstat{
			IgnoreFS:        []string{"tmpfs", "devtmpfs", "devfs", "iso9660", "overlay", "aufs", "squashfs"},
			Checks:          []string{string(checkStatfs), string(checkReaddir)},
			Canary:          ".mountstat",
			RunAs:           "owner",
			Timeout:         config.Duration(5 * time.Second),
			SlowThreshold:   config.Duration(time.Second),
			Fstab:           defaultFstab,
			MountNamespaces: "own",
			BlockedTop:      10,
			wake:            make(chan struct{}, 1),
			asking:          make(map[mounts.NFSServer]bool),
			answers:         make(map[mounts.NFSServer]answer),
		}
	})
}

// SampleConfig returns the documented configuration.
func (*Mountstat) SampleConfig() string { return sampleConfig }

// UseProber sets the prober that all inputs of the plugin share.
func (m *Mountstat) UseProber(p *prober.Prober) { m.prober = p }

// Init checks the configuration.
func (m *Mountstat) Init() error {
	if err := m.resolve(); err != nil {
		return err
	}
	if m.prober == nil {
		m.prober = prober.New(prober.Options{Warnf: m.Log.Warnf})
	}
	if (m.policy.runAs.owner || m.policy.runAs.user) && !m.becomes {
		m.Log.Infof("file systems are checked as this user, not as run_as says: that takes CAP_SETUID, CAP_SETGID and CAP_KILL")
	}
	return nil
}

// Gather checks all file systems side by side and reports each as soon as it
// has answered. It returns when all have, or their time is up, or Hurry is
// called.
func (m *Mountstat) Gather(acc telegraf.Accumulator) error {
	began := time.Now()
	changed, err := m.refresh(began)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.hurried = false
	m.mu.Unlock()
	m.readTraffic(began)
	m.askServers()
	m.askFstab(began)
	m.expect(changed)
	pending := make(map[*superblock]struct{}, len(m.superblocks))
	for _, sb := range m.superblocks {
		if sb.exempt == "" {
			pending[sb] = struct{}{}
		}
	}
	m.submit()

	var counts counts
	var refused int
	for m.next(pending) {
		for _, sb := range m.take(pending) {
			found := m.judge(sb)
			if found.code.Fault() && m.holdBack(sb) {
				continue
			}
			found.cause = m.causeOf(sb, &found)
			if sb.report.Err != nil {
				refused += len(sb.mounts)
			}
			m.settle(sb, found)
			m.emit(acc, sb, &sb.found, &counts)
			sb.report = nil
			delete(pending, sb)
		}
	}
	for _, sb := range m.superblocks {
		if _, late := pending[sb]; late {
			m.emitPending(acc, sb, &counts)
		} else if sb.exempt != "" {
			m.emitExempt(acc, sb, &counts)
		}
	}
	m.sayRefused(refused)
	m.expect(false)
	m.emitMissing(acc, &counts)
	m.emitServers(acc)
	m.summarise(acc, &counts, began)
	return nil
}

// Hurry makes a Gather under way return. What still hangs then is reported by
// the first Gather after its timeout.
func (m *Mountstat) Hurry() {
	m.mu.Lock()
	m.hurried = true
	m.mu.Unlock()
	m.signal()
}

func (m *Mountstat) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// refresh brings superblocks up to date with the mount table.
func (m *Mountstat) refresh(now time.Time) (changed bool, err error) {
	if m.source == nil {
		if m.source, err = mounts.OpenTable(m.mountinfo); err != nil {
			return false, fmt.Errorf("opening the mount table: %w", err)
		}
	}
	all, changed, err := m.source.Mounts()
	if err != nil && all == nil {
		return false, err
	}
	m.sayOnce(&m.tableErr, err)
	m.table, m.malformed = all, countErrors(err)
	if looked := m.findNamespaces(now); looked || changed {
		m.regroup()
	}
	slices.SortStableFunc(m.superblocks, func(a, b *superblock) int { return a.risk() - b.risk() })
	return changed, nil
}

// countErrors counts what errors.Join has joined.
func countErrors(err error) int {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return len(joined.Unwrap())
	}
	if err != nil {
		return 1
	}
	return 0
}

// submit starts a check of each superblock for which none is under way, or has
// ended since the last gather.
func (m *Mountstat) submit() {
	for _, sb := range m.superblocks {
		if sb.exempt != "" {
			continue
		}
		m.mu.Lock()
		idle := !sb.underWay && sb.report == nil
		sb.underWay = sb.underWay || idle
		m.mu.Unlock()
		if idle {
			m.prober.Submit(prober.Check{
				Key:         "mountstat " + sb.id,
				Group:       group(sb.checked),
				Trusted:     sb.answered || !sb.known && (independent(sb.checked) || onDevice(sb.checked)),
				Independent: independent(sb.checked),
				Plan:        m.planOf(sb),
			}, func(r prober.Report) { m.arrive(sb, r) })
		}
	}
}

// arrive is called by the prober.
func (m *Mountstat) arrive(sb *superblock, r prober.Report) {
	m.mu.Lock()
	sb.underWay = false
	sb.report = &r
	m.arrived = append(m.arrived, sb)
	m.mu.Unlock()
	m.signal()
}

// holdBack keeps a report until the server has answered a call that was made
// since the check began, or not answered it in time: a soft mount fails before.
func (m *Mountstat) holdBack(sb *superblock) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sb.remote == nil || !m.asking[*sb.remote] || m.answers[*sb.remote].at.After(sb.report.Since) {
		return false
	}
	m.held = append(m.held, sb)
	return true
}

// next waits for a report while any is to come. It returns false when there is
// nothing left to wait for, or no time.
func (m *Mountstat) next(pending map[*superblock]struct{}) bool {
	for {
		m.mu.Lock()
		arrived, hurried := len(m.arrived) > 0, m.hurried
		others := len(m.asking) > 0 || m.expectations.reading
		m.mu.Unlock()
		switch {
		case arrived:
			return true
		case hurried:
			m.sayLate(len(pending))
			return false
		case len(pending) == 0 && !others:
			return false
		}
		<-m.wake
	}
}

// take returns those of the superblocks whose report has come. Reports about
// file systems that were unmounted meanwhile are dropped.
func (m *Mountstat) take(pending map[*superblock]struct{}) []*superblock {
	m.mu.Lock()
	defer m.mu.Unlock()
	arrived := m.arrived
	m.arrived = nil
	return slices.DeleteFunc(arrived, func(sb *superblock) bool {
		_, wanted := pending[sb]
		return !wanted
	})
}

// settle notes a finding, and logs it if it is another than before.
func (m *Mountstat) settle(sb *superblock, found finding) {
	if changed, before, lasted := sb.settle(found, time.Now()); changed && !sb.onlyEvidenceChanged(&before) {
		m.logChange(sb, &before, lasted.Round(100*time.Millisecond))
	}
}

func (m *Mountstat) logChange(sb *superblock, before *finding, lasted time.Duration) {
	what := fmt.Sprintf("%s (%s on %s)", mounts.Printable(sb.checked.Mountpoint), sb.checked.FSType, mounts.Printable(sb.checked.Source))
	if n := len(sb.mounts); n > 1 {
		what += fmt.Sprintf(" and %d more mounts of it", n-1)
	}
	if sb.namespace != nil && sb.namespace.container != "" {
		what += " in container " + sb.namespace.container
	}
	f := &sb.found
	why := string(f.cause)
	if f.reason != "" {
		why += "; " + mounts.Printable(f.reason)
	}
	switch f.code {
	case result.OK, result.Slow:
		if before.code.Fault() {
			m.Log.Infof("%s answers again; it was %s for %v", what, before.code, lasted)
		}
	case result.Timeout:
		m.Log.Warnf("%s hangs: %s has not answered within %v: %s", what, f.call, sb.policy.timeout, why)
	case result.Stuck:
		// A duration, since a time of day would have Go read the time zone's file.
		m.Log.Warnf("%s hangs: helper process %d has waited in it for %v and survives SIGKILL: %s",
			what, sb.report.PID, time.Since(sb.report.Since).Round(100*time.Millisecond), why)
	case result.Unchecked:
		m.Log.Debugf("%s is not checked: %s", what, f.reason)
	default:
		if f.call != "" {
			what += ": " + f.call
		}
		m.Log.Warnf("%s: %s: %s", what, f.errno, why)
	}
}

// sayRefused sums up in one line what a full host or a restarting fork server
// can cause for many mounts at once.
func (m *Mountstat) sayRefused(n int) {
	if (n > 0) == m.saidRefused {
		return
	}
	m.saidRefused = n > 0
	if n > 0 {
		m.Log.Warnf("%d mounts are not checked; the field reason says why", n)
	} else {
		m.Log.Info("all mounts are checked again")
	}
}

// sayLate says once that hangs are found later than they could be.
func (m *Mountstat) sayLate(n int) {
	if n > 0 && !m.saidLate {
		m.saidLate = true
		m.Log.Warnf("timeout = %v is longer than the time between two gathers: a hang is reported late", m.longestTimeout())
	}
}

// emitPending reports a superblock whose check was still under way when Gather
// had to return: one that was at fault still is; of others nothing is known.
func (m *Mountstat) emitPending(acc telegraf.Accumulator, sb *superblock, counts *counts) {
	found := finding{code: result.Unchecked, reason: "the check was under way when the next gather was due"}
	if f := &sb.found; f.code.Fault() {
		found = finding{code: f.code, errno: f.errno, cause: f.cause, check: f.check, call: f.call}
	}
	m.emit(acc, sb, &found, counts)
}

// emitExempt reports a superblock which must not be checked. That its server is
// dead can be known nevertheless: it answers neither us nor those who use it.
func (m *Mountstat) emitExempt(acc telegraf.Accumulator, sb *superblock, counts *counts) {
	found := finding{code: result.Unchecked, reason: sb.exempt}
	if c := m.causeAtServer(sb); c != "" && sb.traffic.unanswered() > 0 {
		found.code, found.errno, found.cause = result.Error, m.answerOf(sb.remote).errno, c
		m.settle(sb, found)
	} else if !sb.badSince.IsZero() {
		m.settle(sb, finding{code: result.OK})
	}
	m.emit(acc, sb, &found, counts)
}
