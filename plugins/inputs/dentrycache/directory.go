package dentrycache

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/watches"
)

const (
	// stallPerChild is how long the first inotify_add_watch(2) on a directory holds
	// its lock for each child. On 6.18, with 100 thousand to 5 million children, 66
	// to 108 ns were measured (BenchmarkStall).
	stallPerChild = 90 * time.Nanosecond
	// walkShare is the part of a CPU that walking one directory may take.
	walkShare = 0.02
	// idleTimeout is how long a directory that was found growing is looked at after it
	// has stopped growing, if it is not dangerous.
	idleTimeout = 10 * time.Minute
	// dangerousStall is the predicted stall from which on a directory is not forgotten: that of
	// the alert DirectoryStallNears.
	dangerousStall = 50 * time.Millisecond
	// scanShare is the part of the time in which watches may be looked for. It makes 1 % of a
	// CPU, since 1.2 CPUs are at work meanwhile, those of the helpers included.
	scanShare = 0.008
	// sampledNames is how many of the newest names are reported, if that is wanted.
	sampledNames = 8
)

// directory is a directory that is looked at.
type directory struct {
	path       string // the host's, as configured or found
	configured bool
	grew       time.Time // when the attribution last found it growing
	rate       float64   // its growth per second then

	deadline   time.Time
	underWay   bool // a helper's report is to come
	again      bool // it has been looked at twice in this gather
	automount  bool // by its path: a look-up would mount something
	mount      *mounts.Mount
	inode      uint64
	mode       uint16
	cachedName string
	lookups    map[string]float64 // seconds by field, of the last look

	walking bool
	walkDue time.Time
	walked  time.Time
	walk    attribution.Directory

	found   finding
	history fault.History
}

// finding is the outcome of a look at a directory.
type finding struct {
	code   result.Code
	errno  syscall.Errno
	reason string
	pid    int // of the helper that is stuck
	wait   prober.Wait
}

// predictedStall is how long the first process that watches the directory would hold its lock, by
// the last count of its children.
func (dir *directory) predictedStall() time.Duration {
	return time.Duration(dir.walk.Children) * stallPerChild
}

// dangerous reports whether the directory would stall the host according to the last count,
// whether or not it still grows.
func (d *DentryCache) dangerous(dir *directory) bool {
	return d.walker != nil && dir.predictedStall() >= dangerousStall && dir.found.code != result.Missing
}

// check returns the check of a plan for the prober. Directories of one file system, server or
// daemon share a fate.
func (dir *directory) check() prober.Check {
	c := prober.Check{Key: "dentrycache " + dir.path, Trusted: dir.history.Answered}
	if dir.mount != nil {
		c.Group = dir.mount.FateGroup()
	}
	return c
}

// startLooks starts to look at each directory for which no helper is under way.
func (d *DentryCache) startLooks(now time.Time) {
	for _, dir := range d.directories {
		dir.deadline = now.Add(d.timeout)
		if dir.underWay {
			continue
		}
		dir.again = false
		dir.mount = d.mounts.Holding(dir.path)
		dir.automount = dir.mount != nil && dir.mount.FSType == "autofs"
		d.submit(dir)
	}
}

func (d *DentryCache) submit(dir *directory) {
	dir.underWay = true
	check := dir.check()
	plan, steps := d.newPlan(dir)
	check.Plan = plan
	d.host.Prober.Submit(check, func(r prober.Report) {
		d.mail.Post(func() {
			dir.underWay = false
			d.judge(dir, &r, &steps)
		})
	})
}

// judge evaluates a helper's report, and goes on to the walk.
func (d *DentryCache) judge(dir *directory, r *prober.Report, steps *lookSteps) {
	dir.examine(r, steps, d.mounts)
	f := dir.findingOf(r, steps)
	if f.code == result.OK && dir.cachedName != "" && !dir.again && d.LookupProbe {
		if _, timed := dir.lookups["lookup_cached_seconds"]; !timed && !dir.automount {
			dir.again = true
			d.submit(dir)
			return
		}
	}
	d.settle(dir, f, r.Since)
	if f.code == result.OK {
		d.wantWalk(dir)
	}
}

// findingOf is the verdict on the report of a look.
func (dir *directory) findingOf(r *prober.Report, steps *lookSteps) finding {
	missing := r.Step(steps.missing)
	switch {
	case r.Outcome != prober.Done, r.Step(steps.examine).Statx() == nil:
		return failure(r)
	case dir.mode&unix.S_IFMT != unix.S_IFDIR:
		return finding{code: result.Error, errno: unix.ENOTDIR, reason: "it is " + typeName(dir.mode)}
	case missing == nil || missing.Errno == 0 || missing.Errno == unix.ENOENT:
		return finding{}
	case fault.CodeOf(missing.Errno) == result.Denied: // its children can be counted nevertheless
		return finding{reason: "this user may not look names up in it"}
	default:
		return finding{code: fault.CodeOf(missing.Errno), errno: missing.Errno}
	}
}

// failure is the verdict on a report by its outcome, and by the first step that failed.
func failure(r *prober.Report) finding {
	v := fault.VerdictOf(r)
	f := finding{code: v.Code, reason: v.Reason, pid: v.PID, wait: v.Wait}
	if v.Call != "" {
		f.reason = "hangs in " + v.Call
	}
	if failed := r.Failed(); v.Answered && failed != nil {
		f.code, f.errno = fault.CodeOf(failed.Errno), failed.Errno
		if failed.Errno == unix.ENOENT {
			f.code = result.Missing
		}
	}
	return f
}

// settle notes the finding of a helper that was started at that time, and logs it if it differs
// from the last one.
func (d *DentryCache) settle(dir *directory, f finding, began time.Time) {
	before, known := dir.found, dir.history.Known
	o := fault.Observation{Code: f.code, Began: began, At: time.Now(), Inconclusive: f.code == result.Unchecked}
	o.Hangs = f.code == result.Timeout || f.code == result.Stuck
	o.Answered = !o.Hangs && !o.Inconclusive
	dir.history.Observe(o)
	dir.found = f
	if !dir.configured || known && f.code == before.code && f.errno == before.errno {
		return
	}
	what, why := mounts.Printable(dir.path), f.code.String()
	if f.errno != 0 {
		why += ", " + result.ErrnoName(f.errno)
	}
	if f.reason != "" {
		why += ": " + mounts.Printable(f.reason)
	}
	switch {
	case f.code.Fault():
		d.Log.Warnf("%s can't be looked at: %s", what, why)
	case f.code != result.OK:
		d.Log.Infof("%s is not looked at: %s", what, why)
	case known:
		d.Log.Infof("%s can be looked at again", what)
	}
}

// wantWalk starts a walk of the directory, unless the last walk took so long that it
// must rest.
func (d *DentryCache) wantWalk(dir *directory) {
	if d.walker == nil || dir.walking || time.Now().Before(dir.walkDue) {
		return
	}
	dir.walking = true
	d.walks++
	names := 0
	if d.SampleNames {
		names = sampledNames
	}
	request := attribution.Request{
		Path:        d.host.MountPrefix + dir.path,
		Below:       d.host.MountPrefix,
		Check:       dir.check(),
		Timeout:     max(time.Until(dir.deadline), d.timeout/20),
		MaxChildren: int64(d.MaxChildren), Names: names,
	}
	walker := d.walker
	go func() {
		began := time.Now()
		found, err := walker.Walk(request)
		took := found.Elapsed
		if err != nil {
			took = time.Since(began)
		}
		d.mail.Post(func() {
			d.walks--
			dir.walking = false
			dir.walkDue = began.Add(time.Duration(float64(took) / walkShare))
			d.endWalk(dir, found, err)
		})
	}()
}

func (d *DentryCache) endWalk(dir *directory, found attribution.Directory, err error) {
	if failed, ok := errors.AsType[*attribution.OpenError](err); ok {
		// The directory hangs or went away since it was looked at.
		d.settle(dir, failure(&failed.Report), failed.Report.Since)
		return
	}
	if d.said.Error("walk of "+dir.path, err); err != nil {
		return
	}
	dir.walk, dir.walked = found, time.Now()
	if dir.configured && !found.KeepsNegatives && found.Negative == 0 {
		d.said.Info("negatives of "+dir.path, fmt.Errorf("%s is on %s, which keeps no negative dentries", mounts.Printable(dir.path), found.FSType))
	}
}

// emitDirectory reports a directory with what is known about it.
func (d *DentryCache) emitDirectory(acc telegraf.Accumulator, dir *directory) {
	f := &dir.found
	fields := map[string]any{"result": f.code.String(), "result_code": int64(f.code), "configured": dir.configured}
	if f.errno != 0 {
		fields["errno"] = result.ErrnoName(f.errno)
	}
	if f.reason != "" {
		fields["reason"] = mounts.Printable(f.reason)
	}
	if f.pid != 0 {
		fields["stuck_pid"], fields["stuck_state"] = int64(f.pid), f.wait.String()
	}
	dir.history.AddTo(fields)
	if f.code == result.OK {
		for name, seconds := range dir.lookups {
			fields[name] = seconds
		}
	}
	if !dir.walked.IsZero() && f.code == result.OK {
		d.addWalk(fields, dir)
	}
	tags := map[string]string{"directory": mounts.Printable(dir.path)}
	if dir.mount != nil {
		tags["device"], tags["fstype"] = dir.mount.Device, dir.mount.FSType
	}
	d.addWatches(fields, dir)
	acc.AddGauge("dentrycache_dir", fields, tags)
}

func (d *DentryCache) addWalk(fields map[string]any, dir *directory) {
	w := &dir.walk
	fields["children"], fields["negative_children"] = w.Children, w.Negative
	fields["complete"], fields["capped"] = w.Complete, w.Capped
	switch {
	case w.Disturbed:
		fields["incomplete_reason"] = "disturbed"
	case w.TimedOut:
		fields["incomplete_reason"] = "timeout"
	case w.Capped:
		fields["incomplete_reason"] = "max_children"
	}
	fields["walk_seconds"] = w.Elapsed.Seconds()
	fields["walked_seconds_ago"] = time.Since(dir.walked).Seconds()
	fields["predicted_stall_seconds"] = dir.predictedStall().Seconds()
	if d.SampleNames && len(w.Newest) > 0 {
		all := make([]string, len(w.Newest))
		for i, child := range w.Newest {
			all[i] = mounts.Printable(child.Name)
		}
		fields["newest_names"] = strings.Join(all, "/") // the one byte that no name has
	}
}

// addWatches tells whether somebody watches the directory.
func (d *DentryCache) addWatches(fields map[string]any, dir *directory) {
	if d.watches == nil || dir.mount == nil || dir.found.code != result.OK {
		return
	}
	count := d.watches.Counts[watches.Inode{Major: uint32(dir.mount.Major), Minor: uint32(dir.mount.Minor), Number: dir.inode}]
	if count > 0 || d.watches.Hidden == nil {
		fields["watched"], fields["watches"] = count > 0, int64(count)
	}
}

// scanWatches looks for watches, in a goroutine of its own: a host can have
// hundreds of thousands of open files. It takes at most scanShare of the time.
func (d *DentryCache) scanWatches(now time.Time) {
	if d.scanning || now.Before(d.scanDue) || len(d.directories) == 0 {
		return
	}
	d.scanning = true
	delay := time.Duration(0)
	if d.watches == nil {
		delay = d.startDelay()
	}
	go func() {
		time.Sleep(delay)
		began := time.Now()
		found, err := watches.Scan(d.host.Files)
		took := time.Since(began)
		d.mail.Post(func() {
			d.scanning = false
			d.scanDue = began.Add(time.Duration(float64(took) / scanShare))
			d.said.Error("watches", err)
			if found != nil {
				d.watches = found
				d.said.Info("hidden watches", found.Hidden)
			}
		})
	}()
}
