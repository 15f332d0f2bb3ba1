// Package mountstat is a Telegraf input that checks every mounted file system.
// A mount that hangs costs a helper process, never the gather.
package mountstat

import (
	"cmp"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
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
	"github.com/vfsprobe/vfsprobe/internal/printable"
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
	LetDisksSleep      bool            `toml:"let_disks_sleep"`
	DiskMetrics        bool            `toml:"disk_metrics"`
	Fstab              string          `toml:"fstab"`
	Units              bool            `toml:"units"`
	Expected           []string        `toml:"expected"`
	MountNamespaces    string          `toml:"mount_namespaces"`
	EnterHostNamespace bool            `toml:"enter_host_namespace"`
	BlockedTop         int             `toml:"blocked_top"`
	Override           []Override      `toml:"override"`

	Log telegraf.Logger `toml:"-"`

	// The parts. Each owns its fields; docs/TOUR.md says which of them read others.
	kit
	inventory
	namespaces   namespaces
	expectations expectations
	kernelLog    kernelLog
	disks        disks
	servers      servers
	smb          smbClient
	ceph         cephClients
	automounts   automounts
	daemons      daemons
	guards       guards
	causes       causes
	blocked      blockedTasks

	view   mounts.View // of this round
	reread time.Time   // when the table is read again for bind mounts
	// turnsReadOnly is when a file system last seemed to: ext4 counts an error before it does.
	turnsReadOnly time.Time

	// Of the gather under way.
	reports reports
	take    func()    // takeReports
	awaited int       // targets that are
	arrived []*target // whose report came
	spare   []*target // room for arrived
	held    []*target // whose report waits for evidence
	// fields and tags are those of the metric that is being made: whoever is given them copies them.
	fields      map[string]any
	tags        map[string]string
	timings     []timing // of the report that is judged
	interrupted atomic.Bool
}

// kit is what the parts of the input share. Init sets it; nothing but the round changes afterwards.
type kit struct {
	settings
	host         *host.Host
	allProcesses bool   // of the host show
	round        uint64 // under way, or the last one
	log          telegraf.Logger
	said         *oncelog.Log
	mail         *mailbox.Mailbox
	// reconsider has the reports that wait for evidence judged again, since there is more of it.
	reconsider func()
}

func init() {
	inputs.Add("mountstat", func() telegraf.Input {
		return &Mountstat{
			IgnoreFS:        []string{"tmpfs", "devtmpfs", "devfs", "iso9660", "overlay", "aufs", "squashfs"},
			Checks:          []string{string(checkStatfs), string(checkReaddir), string(checkDevice)},
			Canary:          ".mountstat",
			RunAs:           "owner",
			Timeout:         config.Duration(5 * time.Second),
			SlowThreshold:   config.Duration(time.Second),
			Fstab:           defaultFstab,
			Units:           true,
			MountNamespaces: "own",
			BlockedTop:      10,
			kernelLog:       kernelLog{name: kmsg.Device, devices: make(map[string]*deviceLog), servers: make(map[string]message)},
			kit:             kit{mail: mailbox.New()},
			fields:          make(map[string]any),
			tags:            make(map[string]string),
			automounts:      automounts{demands: make(map[string]*demand)},
			servers:         servers{smbAt: smbLocations{ports: make(map[netip.Addr][]uint16)}},
		}
	})
}

// SampleConfig returns the documented configuration.
func (*Mountstat) SampleConfig() string { return sampleConfig }

// UseHost sets the host that all inputs of the plugin share.
func (m *Mountstat) UseHost(h *host.Host) { m.host = h }

// Init checks the configuration.
func (m *Mountstat) Init() error {
	if m.host == nil {
		m.host = host.Alone(m.Log)
	}
	m.log, m.said, m.kit.reconsider, m.take = m.Log, oncelog.New(m.Log), m.reconsider, m.takeReports
	m.allProcesses = m.host.SeesAllProcesses()
	if err := m.resolve(); err != nil {
		return err
	}
	m.connect()
	m.host.ExpectKernelLog(m.kernelLog.name, &m.kernelLog)
	m.expectations.configure(m.Expected)
	if (m.policy.runAs.owner || m.policy.runAs.user) && !m.becomes {
		m.Log.Infof("file systems are checked as this user, not as run_as says, which needs CAP_SETUID, CAP_SETGID and CAP_KILL")
	}
	return nil
}

// connect gives the parts what they share, and those that read others these others.
func (m *Mountstat) connect() {
	for _, part := range []**kit{
		&m.namespaces.kit, &m.expectations.kit, &m.kernelLog.kit, &m.disks.kit, &m.servers.kit, &m.smb.kit, &m.ceph.kit,
		&m.automounts.kit, &m.daemons.kit, &m.guards.kit, &m.causes.kit, &m.blocked.kit,
	} {
		*part = &m.kit
	}
	for _, part := range []**inventory{&m.automounts.inventory, &m.daemons.inventory, &m.causes.inventory} {
		*part = &m.inventory
	}
	m.automounts.servers = &m.servers
	c := &m.causes
	c.kernelLog, c.disks, c.smb, c.ceph, c.daemons, c.guards = &m.kernelLog, &m.disks, &m.smb, &m.ceph, &m.daemons, &m.guards
}

// rereadInterval is how often the table is read again to see whether the source of a bind mount
// was deleted. It is also for how long the table is read again after an error, to see whether a
// file system has turned read-only.
const rereadInterval = time.Minute

// Gather checks all file systems side by side and reports each as soon as it
// has answered. It returns when all have answered, when their time is up, or when
// Interrupt is called.
func (m *Mountstat) Gather(acc telegraf.Accumulator) error {
	began := time.Now()
	m.interrupted.Store(false)
	m.round = m.host.Join(m)
	changed := m.refresh(began)
	m.disks.readBcachefs(m.targets, began)
	m.disks.inspect(m.targets, &m.kernelLog, began)
	m.servers.readTraffic(m.targets, began)
	m.expectations.ask(began, m.table)
	m.mail.Drain()
	m.expect(changed)
	m.submit()
	m.daemons.begin()
	m.servers.askAll(m.targets, m.suspects)
	m.askWaitedFor()
	m.automounts.findDemands(&m.blocked)
	m.causes.askDaemons(began)
	defer m.servers.askAboutLate(m.targets)()
	m.reconsider() // what a gather that was cut short has left

	var counts counts
	var refused int
	for m.await() {
		arrived := m.arrived
		m.arrived, m.spare = m.spare[:0], nil
		for _, t := range arrived {
			if !t.awaited {
				m.release(t)
				continue // it was unmounted meanwhile, or is not to be checked any more
			}
			found := m.judge(t)
			if found.code.Fault() && (t.Probed.BlockDevice() || t.Probed.SMB() || t.Probed.Ceph()) {
				m.readKernelLog() // the check may have it say something
			}
			m.causes.collect(t)
			if found.code.Fault() && m.holdBack(t, &found) {
				continue
			}
			m.causes.explain(t, &found)
			if t.report.Err != nil && found.code == result.Unchecked {
				refused += len(t.Mounts)
			}
			m.settle(t, found)
			m.emit(acc, t, &t.found, &counts)
			m.release(t)
			t.awaited = false
			m.awaited--
			m.reconsider() // those that wait for this one
		}
		clear(arrived)
		m.spare = arrived
	}
	m.finish(acc, &counts, refused)
	m.summarize(acc, &counts, began)
	return nil
}

// finish reports the mounts that were not checked, and the sums of all mounts.
func (m *Mountstat) finish(acc telegraf.Accumulator, counts *counts, refused int) {
	for _, t := range m.targets {
		if t.awaited {
			t.awaited = false // in the next gather its mounts may be gone
			m.emitPending(acc, t, counts)
		} else if t.skipReason != "" {
			m.emitSkipped(acc, t, counts)
		} else if t.leftAlone {
			m.emitPending(acc, t, counts)
		}
	}
	m.sayRefused(refused)
	m.expect(false)
	m.automounts.judge(&m.expectations)
	m.expectations.emit(acc, counts, m.automounts.unmet)
	m.automounts.emit(acc, counts)
	m.servers.emit(acc, m.targets, m.automounts.demands)
	m.servers.locateSMB(&m.inventory)
}

// Interrupt makes a Gather under way return. What still hangs then is reported by
// the first Gather after its timeout.
func (m *Mountstat) Interrupt() {
	m.interrupted.Store(true)
	m.mail.Post(func() {}) // wakes it
}

// refresh updates the targets to the mount table. It reports whether the table has changed
// since the last gather.
func (m *Mountstat) refresh(now time.Time) (changed bool) {
	m.readKernelLog()
	if m.disks.extErrorsGrew(m.targets) {
		m.turnsReadOnly = now
	}
	if now.Sub(m.turnsReadOnly) < rereadInterval || m.binds && now.After(m.reread) {
		m.host.RereadMounts() // since the kernel does not announce it
		m.reread = now.Add(rereadInterval)
	}
	m.view = m.host.Mounts(m.round)
	table := m.view.Snapshot
	if table == nil {
		if table = m.table; table == nil {
			table = m.named()
		}
	}
	changed = table != m.table
	m.table = table
	panics := panicsOverHungTasks(m.host.Proc)
	if looked := m.namespaces.find(m.table, now); looked || changed || panics != m.disks.panics {
		m.disks.panics = panics
		m.regroup()
	}
	slices.SortStableFunc(m.targets, compareSchedule)
	return changed
}

// readKernelLog reads what is new in the kernel's log. What it says of a file system that turned
// read-only shows in the mount table.
func (m *Mountstat) readKernelLog() {
	if m.kernelLog.read(m.targets) {
		m.turnsReadOnly = time.Now()
	}
}

// submit starts a check of each target, unless one is under way, or has ended since
// the last gather.
func (m *Mountstat) submit() {
	m.awaited = 0
	for _, t := range m.targets {
		if t.awaited = t.skipReason == "" && !m.smb.awaitsLogin(t); !t.awaited {
			continue
		}
		m.awaited++
		if t.underWay || t.report != nil {
			continue
		}
		t.underWay, t.submitted = true, time.Now()
		if t.plan == nil {
			t.plan = m.newPlan(t, m.table.NeedsFUSE(t.Probed))
		}
		if t.done == nil {
			t.done = func(r prober.Report) {
				if m.reports.add(t, r) {
					m.mail.Post(m.take)
				}
			}
		}
		t.asked = t.plan
		m.host.Prober.Submit(t.check(), t.done)
	}
}

// takeReports hands the reports that came to their targets.
func (m *Mountstat) takeReports() {
	m.reports.mu.Lock()
	defer m.reports.mu.Unlock()
	for _, a := range m.reports.arrived {
		t := a.target
		t.underWay, t.report, t.reportOf = false, a.report, t.asked
		m.arrived = append(m.arrived, t)
	}
	clear(m.reports.arrived)
	m.reports.arrived = m.reports.arrived[:0]
}

// release gives back the memory of a target's report, which was turned into metrics or is of no use.
func (m *Mountstat) release(t *target) {
	for _, f := range []*finding{&t.found, &t.concluded} {
		f.statfs, f.timings = nil, nil
	}
	m.host.Prober.Recycle(t.report)
	m.reports.giveBack(t.report)
	t.report = nil
}

// holdBack keeps the report of a fault until the evidence of its cause has come.
func (m *Mountstat) holdBack(t *target, f *finding) bool {
	waits := m.awaitsServers(t) || m.causes.awaitsDaemon(t, f) || m.guards.await(t, f) || !t.Probed.FUSE() && m.causes.awaitsBelow(t) ||
		f.hangs() && f.call == stepOpen && m.causes.awaitsAbove(t)
	if waits {
		m.held = append(m.held, t)
	}
	return waits
}

// reconsider has the reports that were held back judged again.
func (m *Mountstat) reconsider() {
	m.arrived = append(m.arrived, m.held...)
	clear(m.held)
	m.held = m.held[:0]
}

// awaitsServers reports whether an answer of the servers is still to come, or the SMB or
// Ceph client is still to be read.
func (m *Mountstat) awaitsServers(t *target) (waits bool) {
	waits = m.servers.await(t)
	if len(t.servers) > 0 && t.Probed.SMB() {
		m.smb.read()
		waits = waits || m.smb.reading
	}
	if len(t.servers) > 0 && t.Probed.Ceph() {
		m.ceph.read()
		waits = waits || m.ceph.reading
	}
	return waits
}

// await waits for a report while any is to come. It returns false when there is
// nothing left to wait for, or no time left.
func (m *Mountstat) await() bool {
	for {
		m.mail.Drain()
		switch {
		case len(m.arrived) > 0:
			return true
		case m.interrupted.Load():
			m.sayLate(m.awaited)
			return false
		case m.awaited == 0 && m.servers.asking+m.automounts.searching == 0 && !m.servers.looking && !m.expectations.reading && !m.smb.reading && m.daemons.again == 0 && (!m.daemons.underWay || m.daemons.late):
			return false
		}
		<-m.mail.Wake()
	}
}

// logChange logs a finding that differs from the last one. file names the report of the fault, if
// one was written.
func (m *Mountstat) logChange(t *target, before *finding, lasted time.Duration, file string) {
	what := t.Probed.String()
	if n := len(t.Mounts); n > 1 {
		what += fmt.Sprintf(" and %d more mounts of it", n-1)
	}
	if t.namespace != nil && t.namespace.container != "" {
		what += " in container " + t.namespace.container
	}
	f := &t.found
	why := string(f.cause)
	if f.reason != "" {
		why += "; " + printable.Text(f.reason)
	}
	if f.hangs() {
		why += culpritOf(t, f).commands()
	}
	why += fault.KeptIn(file)
	switch f.code {
	case result.OK, result.Slow:
		if before.code.Fault() {
			m.Log.Infof("%s answers again; it was %s for %v", what, before.code, lasted)
		}
	case result.Timeout:
		m.Log.Warnf("%s hangs: %s has not answered within %v: %s", what, f.call, t.policy.timeout, why)
	case result.Stuck:
		// A duration: for a time of day Go would read the time zone's file.
		m.Log.Warnf("%s hangs: helper process %d has waited in it for %v%s: %s",
			what, t.report.PID, time.Since(t.report.Since).Round(100*time.Millisecond), fault.Survival(t.report), why)
	case result.Unchecked:
		m.Log.Debugf("%s is not checked: %s", what, f.reason)
	default:
		if f.call != "" {
			what += ": " + f.call
		}
		m.Log.Warnf("%s: %s: %s", what, cmp.Or(f.errno, f.code.String()), why)
	}
}

// sayRefused sums up in one line what a full host or a restarting fork server
// can cause for many mounts at once.
func (m *Mountstat) sayRefused(n int) {
	state := ""
	if n > 0 {
		state = "refused"
	}
	switch changed := m.said.Changed("checks", state); {
	case changed && n > 0:
		m.Log.Errorf("%d mounts are not checked; the field reason says why", n)
	case changed:
		m.Log.Info("all mounts are checked again")
	}
}

// sayLate logs once that hangs are found later than they could be.
func (m *Mountstat) sayLate(n int) {
	if n > 0 && m.said.Changed("late", "said") {
		m.Log.Warnf("timeout = %v is longer than the time between two gathers: a hang is reported late", m.longestTimeout())
	}
}

// emitPending reports a target whose check was still under way when Gather had to
// return. A target that was at fault still is; of others nothing is known.
func (m *Mountstat) emitPending(acc telegraf.Accumulator, t *target, counts *counts) {
	m.causes.collect(t)
	found := finding{code: result.Unchecked, reason: "the check was under way when the next gather was due"}
	if f := &t.found; f.code.Fault() {
		found = finding{code: f.code, errno: f.errno, cause: f.cause, check: f.check, call: f.call, culprit: f.culprit}
	}
	if t.leftAlone {
		found.reason = "it is left alone: each check could be one more login that is refused"
	}
	m.emit(acc, t, &found, counts)
}

// emitSkipped reports a target that must not be checked.
func (m *Mountstat) emitSkipped(acc telegraf.Accumulator, t *target, counts *counts) {
	m.causes.collect(t)
	found := m.causes.judgeUntouched(t)
	if found.code.Fault() {
		m.settle(t, found)
	} else if !t.FaultSince.IsZero() {
		m.settle(t, finding{code: result.OK})
	}
	m.emit(acc, t, &found, counts)
}
