package dentrycache

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/containers"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// calm is how many intervals without growth turn the mode ENOENT off.
const calm = 3

// sources are who creates negative dentries.
type sources struct {
	before map[rowKey]counts // at the last read
	read   time.Time         // or the start
	totals attribution.Totals

	calm int // intervals without growth
}

// rowKey is what a row of the attribution's is known by.
type rowKey struct {
	comm     string
	cgroup   uint64
	device   attribution.Device
	inode    uint64
	relative string
	absolute bool
}

// seriesKey is what a series is known by: its tags.
type seriesKey struct {
	comm, cgroup, container, directory, device, fstype string
}

type counts struct{ created, converted, unlinked, killed int64 }

func (c *counts) add(o counts) {
	c.created += o.created
	c.converted += o.converted
	c.unlinked += o.unlinked
	c.killed += o.killed
}

// since is what was counted since before. A row that was dropped for another and
// came back has begun at zero.
func (c counts) since(before counts) counts {
	if c.created < before.created || c.converted < before.converted || c.unlinked < before.unlinked || c.killed < before.killed {
		return c
	}
	return counts{c.created - before.created, c.converted - before.converted, c.unlinked - before.unlinked, c.killed - before.killed}
}

// series is one that may be reported.
type series struct {
	key    seriesKey
	owner  cgroups.Identity
	total  counts
	recent counts // since the last read
	pid    int32
	uid    uint32
	latest int64 // created by the row that pid and uid are of
	// Of directories below that have created too little to be reported.
	below       int64 // created since the last read
	directories int64
}

// gatherSources reports who has created most negative dentries since the last
// gather, and notes which directories grow.
func (d *Dentrycache) gatherSources(acc telegraf.Accumulator, now time.Time) {
	s := &d.sources
	if d.tracer == nil {
		return
	}
	rows, totals, err := d.tracer.Read()
	d.said.Error("sources", err)
	elapsed := now.Sub(s.read).Seconds()
	if err != nil || elapsed <= 0 {
		return
	}
	s.read, s.totals = now, totals
	all, growth := d.sumUp(rows, now)
	if d.FindDirectories {
		for name := range growth {
			growth[name] /= elapsed
		}
		d.foundGrowing(growth, now)
	}
	chosen := choose(all, max(d.SourceThreshold*elapsed, 1))
	known := d.tracer.Status().Mode > attribution.ENOENT
	for _, one := range chosen[:min(len(chosen), d.TopSources)] {
		emitSource(acc, one, d.host.OwnerOf(one.owner), elapsed, known)
	}
}

// sumUp makes one of the rows that the same tags would be given to. growth is by
// how much the negative dentries of each directory that can be looked at have
// become more since the last read.
func (d *Dentrycache) sumUp(rows []attribution.Source, now time.Time) (all map[seriesKey]*series, growth map[string]float64) {
	s := &d.sources
	before := s.before
	s.before = make(map[rowKey]counts, len(rows))
	all, growth = make(map[seriesKey]*series), make(map[string]float64)
	locations := make(map[rowKey]location)
	// The rows of one directory have those that were killed in common.
	killed := make(map[rowKey]bool)
	type inSeries struct {
		*series
		where rowKey
	}
	killedInSeries := make(map[inSeries]bool)
	for i := range rows {
		row := &rows[i]
		key := rowKey{row.Comm, row.CgroupID, row.Place.Device, row.Place.Inode, row.Place.Relative, row.Place.FromRoot}
		total := counts{row.Created, row.Converted, row.Unlinked, row.KilledInDir}
		s.before[key] = total
		recent := total.since(before[key])
		where := key
		where.comm, where.cgroup = "", 0
		at, known := locations[where]
		if !known {
			at = locate(d.mounts, &row.Place)
			locations[where] = at
		}
		if at.real {
			growth[at.path] += float64(recent.created + recent.unlinked - recent.converted)
			if !killed[where] {
				growth[at.path] -= float64(recent.killed)
			}
			killed[where] = true
		}
		one := seriesOf(all, row, at, d.cgroupName(row.CgroupID, now))
		if killedInSeries[inSeries{one, where}] {
			total.killed, recent.killed = 0, 0
		}
		killedInSeries[inSeries{one, where}] = true
		one.total.add(total)
		one.recent.add(recent)
		if recent.created >= one.latest {
			one.latest, one.pid, one.uid = recent.created, row.PID, row.UID
		}
	}
	return all, growth
}

// seriesOf finds or makes the series of a row.
func seriesOf(all map[seriesKey]*series, row *attribution.Source, at location, cgroup string) *series {
	key := seriesKey{
		comm:      mounts.Printable(row.Comm),
		directory: mounts.Printable(at.path),
		device:    at.device,
		fstype:    at.fstype,
	}
	id := cgroups.IdentityOf(cgroup)
	if id.Name != "" {
		key.container = mounts.Printable(id.Name)
	} else {
		key.cgroup = mounts.Printable(cgroup)
	}
	one := all[key]
	if one == nil {
		one = &series{key: key, owner: id}
		all[key] = one
	}
	return one
}

// choose returns the series that have created at least so many, the greatest
// first. What has created less counts for the directory above: a program that
// makes directory after directory shows, and each series is worth its place in a
// database.
func choose(all map[seriesKey]*series, least float64) []*series {
	byDepth := make([]map[seriesKey]*series, 1)
	for _, one := range all {
		if one.recent.created == 0 {
			continue
		}
		depth := depthOf(one.key.directory)
		for len(byDepth) <= depth {
			byDepth = append(byDepth, nil)
		}
		if byDepth[depth] == nil {
			byDepth[depth] = make(map[seriesKey]*series)
		}
		byDepth[depth][one.key] = one
	}
	var chosen []*series
	for depth := len(byDepth) - 1; depth >= 0; depth-- {
		for _, one := range byDepth[depth] {
			if float64(one.recent.created+one.below) >= least {
				chosen = append(chosen, one)
			} else if depth > 0 {
				if byDepth[depth-1] == nil {
					byDepth[depth-1] = make(map[seriesKey]*series)
				}
				raise(one, all, byDepth[depth-1])
			}
		}
	}
	slices.SortFunc(chosen, func(a, b *series) int {
		return cmp.Or(cmp.Compare(b.recent.created+b.below, a.recent.created+a.below),
			cmp.Compare(a.key.directory, b.key.directory), cmp.Compare(a.key.comm, b.key.comm))
	})
	return chosen
}

// raise counts a series for the directory above.
func raise(one *series, all, level map[seriesKey]*series) {
	key := one.key
	key.directory = path.Dir(key.directory)
	above := level[key]
	if above == nil {
		// It may be there, and have created nothing itself.
		if above = all[key]; above == nil {
			above = &series{key: key, owner: one.owner}
		}
		level[key] = above
	}
	above.below += one.recent.created + one.below
	above.directories += one.directories
	if one.recent.created > 0 {
		above.directories++
	}
	if one.latest > above.latest {
		above.latest, above.pid, above.uid = one.latest, one.pid, one.uid
	}
}

// depthOf is how many directories are above.
func depthOf(directory string) int {
	if directory == "/" || !strings.HasPrefix(directory, "/") {
		return 0
	}
	return strings.Count(directory, "/")
}

// emitSource reports a series. Where only look-ups are seen, what became of the
// negative dentries is not known.
func emitSource(acc telegraf.Accumulator, one *series, owner containers.Owner, elapsed float64, known bool) {
	tags := make(map[string]string)
	for name, value := range map[string]string{
		"comm": one.key.comm, "cgroup": one.key.cgroup, "container": one.key.container,
		"directory": one.key.directory, "device": one.key.device, "fstype": one.key.fstype,
	} {
		if value != "" {
			tags[name] = value
		}
	}
	fields := map[string]any{
		"created": one.total.created, "created_per_s": float64(one.recent.created) / elapsed,
		"pid": int64(one.pid), "uid": int64(one.uid),
	}
	if known {
		fields["converted"], fields["unlinked"], fields["killed_in_dir"] = one.total.converted, one.total.unlinked, one.total.killed
	}
	if one.directories > 0 {
		fields["below_created_per_s"], fields["below_directories"] = float64(one.below)/elapsed, one.directories
	}
	owner.AddTo(fields, "")
	acc.AddGauge("dentrycache_source", fields, tags)
}

// watchMisses turns the mode ENOENT on while negative dentries grow, and off
// when they have not for some intervals: each system call costs more meanwhile.
func (d *Dentrycache) watchMisses() {
	s := &d.sources
	if d.tracer == nil || d.tracer.Status().Mode != attribution.ENOENT {
		return
	}
	growing := d.eager || d.cache.grows(d.ENOENTThreshold)
	if growing {
		s.calm = 0
	} else {
		s.calm++
	}
	watching := d.tracer.Status().Watching
	if want := growing || watching && s.calm < calm; want != watching {
		err := d.tracer.Watch(want)
		d.said.Error("watching", err)
		if want && err == nil {
			s.read = time.Now() // what comes is counted from here on
		}
	}
}
