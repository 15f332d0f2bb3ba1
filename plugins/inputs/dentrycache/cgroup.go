package dentrycache

import (
	"cmp"
	"runtime"
	"slices"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// walkCgroupsShare is the part of a CPU that walking the cgroups may take.
const walkCgroupsShare = 0.01

// owners are the cgroups, by what they hold.
type owners struct {
	hierarchies cgroups.Hierarchies
	due         time.Time
	at          time.Time // of the figures
	all         []cgroups.Memory
	usage       map[string]cgroups.Usage // by path, of those that are reported
	before      map[string]int64         // bytes by path, at the walk before
	elapsed     float64                  // seconds between the walks

	names    map[uint64]string // paths by id
	namesDue time.Time
}

// gatherCgroups reports the cgroups that hold most, not counting what is below them.
func (d *DentryCache) gatherCgroups(acc telegraf.Accumulator, now time.Time) {
	o := &d.owners
	if d.TopCgroups == 0 || o.hierarchies.Memory == "" {
		return
	}
	if !now.Before(o.due) {
		o.due = now.Add(pauseAfter(func() { d.walkCgroups(now) }))
	}
	for _, c := range o.all[:min(len(o.all), d.TopCgroups)] {
		if c.Own == 0 {
			break
		}
		tags := map[string]string{"cgroup": mounts.Printable(c.Path)}
		id := cgroups.IdentityOf(c.Path)
		if id.Name != "" {
			tags["container"] = mounts.Printable(id.Name)
		}
		if id.PodUID != "" {
			tags["pod"] = id.PodUID
		}
		name := "slab_reclaimable"
		if o.hierarchies.V1() {
			name = "kernel_memory"
		}
		fields := map[string]any{name + "_bytes": c.Bytes, name + "_own_bytes": c.Own}
		growth := 0.0
		if before, known := o.before[c.Path]; known && o.elapsed > 0 {
			growth = float64(c.Bytes-before) / o.elapsed
			fields[name+"_bytes_per_s"] = growth
		}
		addUsage(fields, o.usage[c.Path], c.Bytes, growth)
		d.host.OwnerOf(id).AddTo(fields, "")
		acc.AddGauge("dentrycache_cgroup", fields, tags)
	}
}

// addUsage adds how a cgroup stands to its limit. It holds so many bytes, and so many more per
// second.
func addUsage(fields map[string]any, u cgroups.Usage, held int64, growth float64) {
	if u.Kernel > 0 {
		fields["kernel_memory_bytes"] = u.Kernel
	}
	if u.WorkingSet > 0 {
		fields["working_set_bytes"] = u.WorkingSet
	}
	if u.Limit == 0 {
		return
	}
	fields["memory_limit_bytes"], fields["memory_limit_used_bytes"] = u.Limit, u.Used
	fields["limit_share"] = float64(held) / float64(u.Limit)
	switch left := u.Limit - u.Used; {
	case left <= 0:
		fields["seconds_to_limit"] = 0.0
	case growth > 0:
		fields["seconds_to_limit"] = float64(left) / growth
	}
}

// pauseAfter makes a walk, and returns how long to wait for the next one to take no more than
// walkCgroupsShare of a CPU. What a walk waits for others on a busy host does not count.
func pauseAfter(walk func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadCPU()
	walk()
	return time.Duration(float64(threadCPU()-before) / walkCgroupsShare)
}

// threadCPU is the CPU time of the thread: clock_gettime(2). It is exact, where getrusage(2) says
// what was at the last tick, and a walk shorter than that would have no pause.
func threadCPU() time.Duration {
	var used unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used) // it can't fail
	return time.Duration(used.Nano())
}

// walkCgroups updates the figures.
func (d *DentryCache) walkCgroups(now time.Time) {
	o := &d.owners
	o.before = make(map[string]int64, len(o.all))
	for _, c := range o.all {
		o.before[c.Path] = c.Bytes
	}
	o.elapsed = now.Sub(o.at).Seconds()
	all, err := o.hierarchies.ReadMemory()
	d.said.Error("cgroups", err)
	slices.SortFunc(all, func(a, b cgroups.Memory) int {
		return cmp.Or(cmp.Compare(b.Own, a.Own), cmp.Compare(a.Path, b.Path))
	})
	o.all, o.at = all, now
	o.usage = make(map[string]cgroups.Usage, d.TopCgroups)
	reader := o.hierarchies.NewUsageReader()
	for _, c := range all[:min(len(all), d.TopCgroups)] {
		o.usage[c.Path] = reader.Read(c.Path)
	}
}

// cgroupName is the path of a cgroup by its id; empty if it is unknown. Names are
// read again when one is missing, but seldom: the cgroup may be gone.
func (d *DentryCache) cgroupName(id uint64, now time.Time) string {
	o := &d.owners
	name, known := o.names[id]
	if known || now.Before(o.namesDue) {
		return name
	}
	var err error
	o.namesDue = now.Add(pauseAfter(func() { o.names, err = o.hierarchies.Names() }))
	d.said.Error("names of cgroups", err)
	return o.names[id]
}
