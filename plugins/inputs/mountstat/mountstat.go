// Package mountstat is a Telegraf input which checks every mounted file system.
// A mount that hangs costs a helper process, never the gather.
package mountstat

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"golang.org/x/sys/unix"

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
	MountPoints     []string        `toml:"mount_points"`
	IgnoreFS        []string        `toml:"ignore_fs"`
	IgnoreMountOpts []string        `toml:"ignore_mount_opts"`
	Timeout         config.Duration `toml:"timeout"`
	SlowThreshold   config.Duration `toml:"slow_threshold"`

	Log telegraf.Logger `toml:"-"`

	prober      *prober.Prober
	proc        string
	table       *mounts.Table
	tableErr    string // logged already
	superblocks []*superblock
	hidden      int
	unchecked   bool // some are, and that was said

	mu      sync.Mutex
	arrived []*superblock // whose report came
	wake    chan struct{} // something arrived, or Hurry was called
	hurried bool
}

func init() {
	inputs.Add("mountstat", func() telegraf.Input {
		return &Mountstat{
			IgnoreFS:      []string{"tmpfs", "devtmpfs", "devfs", "iso9660", "overlay", "aufs", "squashfs"},
			Timeout:       config.Duration(5 * time.Second),
			SlowThreshold: config.Duration(time.Second),
			proc:          "/proc",
			wake:          make(chan struct{}, 1),
		}
	})
}

// SampleConfig returns the documented configuration.
func (*Mountstat) SampleConfig() string { return sampleConfig }

// UseProber sets the prober that all inputs of the plugin share.
func (m *Mountstat) UseProber(p *prober.Prober) { m.prober = p }

// Init checks the configuration and opens the mount table.
func (m *Mountstat) Init() error {
	if m.Timeout < config.Duration(10*time.Millisecond) {
		return fmt.Errorf("timeout = %q: at least 10ms are needed", m.Timeout)
	}
	for _, path := range m.MountPoints {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("mount_points: %q is not an absolute path", path)
		}
	}
	if m.prober == nil {
		m.prober = prober.New(prober.Options{Proc: m.proc, Warnf: m.Log.Warnf})
	}
	return nil
}

// superblock is one file system instance with the mounts that show it. One
// check answers for all of them.
type superblock struct {
	id     string
	checks *mounts.Mount   // whose path is checked
	mounts []*mounts.Mount // in the table's order; checks is one of them

	known     bool // a check has ended
	code      result.Code
	errno     string
	since     time.Time // of code and errno
	answered  bool      // the last check that was made
	hungSince time.Time // start of the first check without an answer; zero: it answers

	// Under Mountstat.mu:
	underWay bool
	report   *prober.Report // came, and was not yet turned into metrics
}

// Gather checks all file systems side by side and reports each as soon as it
// has answered. It returns when all have, or their time is up, or Hurry is
// called.
func (m *Mountstat) Gather(acc telegraf.Accumulator) error {
	began := time.Now()
	if err := m.refresh(); err != nil {
		return err
	}
	pending := make(map[*superblock]struct{}, len(m.superblocks))
	for _, sb := range m.superblocks {
		pending[sb] = struct{}{}
	}
	m.mu.Lock()
	m.hurried = false
	m.mu.Unlock()
	m.submit()

	var counts counts
	for m.next(pending) {
		for _, sb := range m.take(pending) {
			found := m.judge(sb.report)
			m.settle(sb, found)
			m.emit(acc, sb, found)
			counts[found.code] += len(sb.mounts)
			sb.report = nil
			delete(pending, sb)
		}
	}
	for sb := range pending {
		m.emitPending(acc, sb, &counts)
	}
	m.sayUnchecked(counts[result.Unchecked])
	m.summarise(acc, &counts, time.Since(began))
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
func (m *Mountstat) refresh() error {
	if m.table == nil {
		table, err := mounts.OpenTable(m.proc)
		if err != nil {
			return fmt.Errorf("opening the mount table: %w", err)
		}
		m.table = table
	}
	all, changed, err := m.table.Mounts()
	if err != nil && all == nil {
		return err
	}
	if err != nil && err.Error() != m.tableErr {
		m.Log.Errorf("left out: %v", err)
		m.tableErr = err.Error()
	}
	if changed {
		m.regroup(all)
	}
	// Those that answered come first, so that they don't wait behind others
	// which hang; local ones before those that depend on a server or daemon.
	slices.SortStableFunc(m.superblocks, func(a, b *superblock) int { return a.risk() - b.risk() })
	return nil
}

// regroup sorts the mounts to be checked by superblock, and keeps what is known
// about those that were there before.
func (m *Mountstat) regroup(all []mounts.Mount) {
	before := make(map[string]*superblock, len(m.superblocks))
	for _, sb := range m.superblocks {
		before[sb.id] = sb
	}
	found := make(map[string]*superblock, len(all))
	m.superblocks, m.hidden = nil, 0
	for i := range all {
		mount := &all[i]
		if m.ignored(mount) {
			continue
		}
		if mount.Hidden {
			m.hidden++
			continue
		}
		id := mount.Superblock()
		sb := found[id]
		if sb == nil {
			if sb = before[id]; sb == nil || sb.checks.Source != mount.Source || sb.checks.FSType != mount.FSType {
				sb = &superblock{id: id}
			}
			sb.mounts = nil
			sb.checks = mount
			found[id] = sb
			m.superblocks = append(m.superblocks, sb)
		}
		sb.mounts = append(sb.mounts, mount)
		if sb.checks.Bind() && !mount.Bind() {
			sb.checks = mount
		}
	}
}

func (m *Mountstat) ignored(mount *mounts.Mount) bool {
	if slices.Contains(mounts.PseudoFileSystems(), mount.FSType) || slices.Contains(m.IgnoreFS, mount.FSType) {
		return true
	}
	if len(m.MountPoints) > 0 && !slices.Contains(m.MountPoints, mount.Mountpoint) {
		return true
	}
	return slices.ContainsFunc(m.IgnoreMountOpts, func(option string) bool {
		return mount.HasOption(option) || option == "bind" && mount.Bind()
	})
}

func (sb *superblock) risk() int {
	risk := 0
	switch {
	case !sb.hungSince.IsZero():
		risk = 4
	case !sb.answered:
		risk = 2
	}
	if !strings.HasPrefix(sb.checks.Source, "/dev/") || strings.HasPrefix(sb.checks.FSType, "fuse") {
		risk++
	}
	return risk
}

// submit starts a check of each superblock for which none is under way, or has
// ended since the last gather.
func (m *Mountstat) submit() {
	for _, sb := range m.superblocks {
		m.mu.Lock()
		idle := !sb.underWay && sb.report == nil
		sb.underWay = sb.underWay || idle
		m.mu.Unlock()
		if idle {
			m.prober.Submit(m.check(sb), func(r prober.Report) { m.arrive(sb, r) })
		}
	}
}

func (m *Mountstat) check(sb *superblock) prober.Check {
	mount := sb.checks
	return prober.Check{
		Key:     "mountstat " + sb.id,
		Group:   group(mount),
		Trusted: sb.answered,
		Plan: &prober.Plan{
			Steps: []prober.Step{{Name: "statfs", Number: unix.SYS_STATFS, Arguments: []prober.Argument{
				prober.Path(mount.Mountpoint), prober.Output(unsafe.Sizeof(unix.Statfs_t{}))}}},
			Timeout: time.Duration(m.Timeout),
			// rpc_wait_bit_killable, net/sunrpc/sched.c
			Killable: mount.NFS(),
		},
	}
}

// group names what mounts share a fate with: their server, daemon or device.
func group(mount *mounts.Mount) string {
	if server, ok := mount.Option("addr"); ok {
		return mount.FSType + " " + server
	}
	return mount.FSType + " " + mount.Source
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

// next waits for a report while any is to come. It returns false when there is
// nothing left to wait for, or no time.
func (m *Mountstat) next(pending map[*superblock]struct{}) bool {
	for {
		m.mu.Lock()
		arrived, hurried := len(m.arrived) > 0, m.hurried
		m.mu.Unlock()
		switch {
		case arrived:
			return true
		case hurried || len(pending) == 0:
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

// finding is what a report says of a file system.
type finding struct {
	code   result.Code
	errno  string // its name, if there was one
	reason string // why it was not checked
}

// judge turns a report into a finding.
func (m *Mountstat) judge(r *prober.Report) finding {
	switch r.Outcome {
	case prober.Expired:
		return finding{code: result.Timeout}
	case prober.Stuck, prober.Busy:
		return finding{code: result.Stuck}
	case prober.Capped, prober.Died, prober.Unavailable:
		return finding{code: result.Unchecked, reason: r.Err.Error()}
	}
	if r.Err != nil || len(r.Steps) == 0 {
		return finding{code: result.Unchecked, reason: errors.Join(r.Err, errors.New("the helper gave no answer")).Error()}
	}
	failed := r.Failed()
	if failed == nil {
		if r.Steps[0].Elapsed > time.Duration(m.SlowThreshold) {
			return finding{code: result.Slow}
		}
		return finding{code: result.OK}
	}
	errno := unix.ErrnoName(failed.Errno)
	switch failed.Errno {
	case unix.EACCES, unix.EPERM:
		return finding{code: result.Denied, errno: errno}
	case unix.ESTALE:
		return finding{code: result.Stale, errno: errno}
	}
	return finding{code: result.Error, errno: errno}
}

// settle notes a finding, and logs it if it is another than before.
func (m *Mountstat) settle(sb *superblock, found finding) {
	switch found.code {
	case result.Timeout, result.Stuck:
		sb.answered = false
		if sb.hungSince.IsZero() {
			sb.hungSince = sb.report.Since
		}
	case result.Unchecked: // tells nothing about the file system
	default:
		sb.answered = true
		sb.hungSince = time.Time{}
	}
	if sb.known && found.code == sb.code && found.errno == sb.errno {
		return
	}
	now := time.Now()
	if !sb.known {
		sb.since = now
	}
	m.logChange(sb, found, now.Sub(sb.since).Round(time.Second))
	sb.known, sb.code, sb.errno, sb.since = true, found.code, found.errno, now
}

func (m *Mountstat) logChange(sb *superblock, found finding, lasted time.Duration) {
	what := fmt.Sprintf("%s (%s on %s)", mounts.Printable(sb.checks.Mountpoint), sb.checks.FSType, mounts.Printable(sb.checks.Source))
	if n := len(sb.mounts); n > 1 {
		what += fmt.Sprintf(" and %d more mounts of it", n-1)
	}
	switch found.code {
	case result.OK, result.Slow:
		if sb.known && sb.code != result.OK && sb.code != result.Slow && sb.code != result.Unchecked {
			m.Log.Infof("%s answers again; it was %s for %v", what, sb.code, lasted)
		}
	case result.Timeout:
		m.Log.Warnf("%s hangs: statfs has not answered within %v", what, m.Timeout)
	case result.Stuck:
		// A duration, since a time of day would have Go read the time zone's file.
		m.Log.Warnf("%s hangs: helper process %d has waited in it for %v and survives SIGKILL",
			what, sb.report.PID, time.Since(sb.report.Since).Round(100*time.Millisecond))
	case result.Unchecked:
		m.Log.Debugf("%s is not checked: %s", what, found.reason)
	default:
		m.Log.Warnf("%s: %s: %s", what, sb.report.Failed().Name, found.errno)
	}
}

// sayUnchecked sums up in one line what a full host or a restarting fork server
// can cause for many mounts at once.
func (m *Mountstat) sayUnchecked(n int) {
	if (n > 0) == m.unchecked {
		return
	}
	m.unchecked = n > 0
	if n > 0 {
		m.Log.Warnf("%d mounts are not checked; the field reason says why", n)
	} else {
		m.Log.Info("all mounts are checked again")
	}
}

// counts of mounts per result.
type counts [result.Count]int

// emit makes the metrics of a superblock's mounts.
func (m *Mountstat) emit(acc telegraf.Accumulator, sb *superblock, found finding) {
	r := sb.report
	fields := m.fields(sb, found.code)
	if found.errno != "" {
		fields["errno"] = found.errno
	}
	if found.reason != "" {
		fields["reason"] = found.reason
	}
	if r.HangsIn != "" {
		fields["hangs_in"] = r.HangsIn
	}
	if r.PID != 0 && found.code == result.Stuck {
		fields["stuck_pid"] = int64(r.PID)
	}
	if r.Outcome == prober.Done && len(r.Steps) > 0 {
		fields["response_seconds"] = r.Steps[0].Elapsed.Seconds()
		if size := int(unsafe.Sizeof(unix.Statfs_t{})); len(r.Steps[0].Output) == size {
			usage(fields, (*unix.Statfs_t)(unsafe.Pointer(unsafe.SliceData(r.Steps[0].Output))))
		}
	}
	m.add(acc, sb, fields)
}

// emitPending reports a superblock whose check was still under way when Gather
// had to return: one that hung before still does; of others nothing is known.
func (m *Mountstat) emitPending(acc telegraf.Accumulator, sb *superblock, counts *counts) {
	if sb.hungSince.IsZero() || !sb.code.Fault() {
		return
	}
	m.add(acc, sb, m.fields(sb, sb.code))
	counts[sb.code] += len(sb.mounts)
}

func (m *Mountstat) fields(sb *superblock, code result.Code) map[string]any {
	fields := map[string]any{
		"result":       code.String(),
		"result_code":  int64(code),
		"hung_seconds": 0.0,
	}
	if !sb.hungSince.IsZero() {
		fields["hung_seconds"] = time.Since(sb.hungSince).Seconds()
	}
	return fields
}

// usage adds sizes in the terms of Telegraf's disk input. File systems without
// a size, such as an empty FUSE one, get none.
func usage(fields map[string]any, st *unix.Statfs_t) {
	if st.Blocks == 0 {
		return
	}
	block := st.Frsize // the unit of the block counts, statvfs(3)
	if block == 0 {
		block = st.Bsize
	}
	bytes := func(blocks uint64) int64 { return int64(blocks) * block }
	used, free := st.Blocks-st.Bfree, st.Bavail
	fields["total"] = bytes(st.Blocks)
	fields["free"] = bytes(free)
	fields["used"] = bytes(used)
	fields["used_percent"] = percent(used, free)
	fields["inodes_total"] = int64(st.Files)
	fields["inodes_free"] = int64(st.Ffree)
	fields["inodes_used"] = int64(st.Files - st.Ffree)
	fields["inodes_used_percent"] = percent(st.Files-st.Ffree, st.Ffree)
}

func percent(used, free uint64) float64 {
	if used+free == 0 {
		return 0
	}
	return float64(used) / (float64(used) + float64(free)) * 100
}

// add makes one metric per mount of the superblock.
func (m *Mountstat) add(acc telegraf.Accumulator, sb *superblock, fields map[string]any) {
	for _, mount := range sb.mounts {
		own := fields
		if mount != sb.checks {
			own = make(map[string]any, len(fields)+1)
			for key, value := range fields {
				own[key] = value
			}
			own["shared_with"] = mounts.Printable(sb.checks.Mountpoint)
		}
		mode := "rw"
		if mount.ReadOnly() {
			mode = "ro"
		}
		acc.AddGauge("mountstat", own, map[string]string{
			"path":   mounts.Printable(mount.Mountpoint),
			"device": mounts.Printable(strings.ReplaceAll(mount.Source, "/dev/", "")),
			"fstype": mount.FSType,
			"mode":   mode,
		})
	}
}

func (m *Mountstat) summarise(acc telegraf.Accumulator, counts *counts, took time.Duration) {
	fields := map[string]any{
		"superblocks":    int64(len(m.superblocks)),
		"hidden":         int64(m.hidden),
		"gather_seconds": took.Seconds(),
	}
	var reported, faults int
	for code, n := range counts {
		fields[result.Code(code).String()] = int64(n)
		reported += n
		if result.Code(code).Fault() {
			faults += n
		}
	}
	fields["mounts"] = int64(reported)
	fields["faults"] = int64(faults)
	acc.AddGauge("mountstat_summary", fields, nil)
}
