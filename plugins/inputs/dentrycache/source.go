package dentrycache

import (
	"cmp"
	"maps"
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

const (
	// missedWatch is how long the mode ENOENT stays on after growth that was not seen: the
	// next burst of a program that comes once a minute is. It is doubled up to
	// maxMissedWatch while that does not help.
	missedWatch    = 150 * time.Second
	maxMissedWatch = 20 * time.Minute
	// trickleWindow is the time over which slow growth is looked at.
	trickleWindow = 10 * time.Minute
	// bystander is the part of the growth that is not explained below which a source has
	// nothing to do with it.
	bystander = 0.1
	// fewSamples are as many of those in the mode ENOENT as chance alone gives to somebody.
	fewSamples = 4 * attribution.SampleWeight
)

// sources are who creates negative dentries.
type sources struct {
	before map[rowKey]counts // at the last read
	read   time.Time         // or the start
	totals attribution.Totals
	still  bool // they were the same in the last two reads: a row is counted after its total

	calm    int       // intervals without growth
	until   time.Time // the mode ENOENT is on at least
	hold    time.Duration
	trickle trickle

	watched     bool // all that came since the last read
	known       bool // whether what follows is
	explained   float64
	unexplained float64 // per second, of the growth since the last read
}

// trickle is the state of the cache at the beginning of a trickleWindow.
type trickle struct {
	at    time.Time
	count int64
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

// grown is how many negative dentries there are more for it, those that were freed
// left aside.
func (c counts) grown() int64 { return max(c.created+c.unlinked-c.converted, 0) }

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
	latest int64 // grown by, of the row that pid and uid are of
	// Of directories below that have created too little to be reported.
	below       int64 // that they have become more by since the last read
	directories int64
}

// gatherSources reports who has created most negative dentries since the last
// gather, and notes which directories grow.
func (d *Dentrycache) gatherSources(acc telegraf.Accumulator, now time.Time) {
	s := &d.sources
	if d.tracer == nil {
		return
	}
	rows, totals, err := d.readRows()
	d.said.Error("sources", err)
	elapsed := now.Sub(s.read).Seconds()
	if err != nil || elapsed <= 0 {
		return
	}
	before := s.totals
	asBefore := totals == before
	unread := asBefore && s.still
	s.read, s.totals, s.still = now, totals, asBefore
	var all map[seriesKey]*series
	var growth map[string]float64
	if !unread {
		all, growth = d.sumUp(rows, now)
	}
	d.explain(&before, elapsed)
	chance := 0.0
	if totals.Sampled > before.Sampled {
		chance = fewSamples
	}
	chosen := choose(all, max(d.SourceThreshold*elapsed, s.unexplained*elapsed*bystander, chance, 1))
	if d.FindDirectories {
		maps.DeleteFunc(growth, func(_ string, grown float64) bool { return grown < chance })
		for name := range growth {
			growth[name] /= elapsed
		}
		for _, one := range chosen {
			// Each of the many directories below may be a name in this one.
			if one.below > 0 && strings.HasPrefix(one.key.directory, "/") {
				growth[one.key.directory] += float64(one.below) / elapsed
			}
		}
		d.foundGrowing(growth, now)
	}
	status := d.tracer.Status()
	for _, one := range chosen[:min(len(chosen), d.TopSources)] {
		emitSource(acc, one, d.host.OwnerOf(one.owner), elapsed, &status)
	}
}

// readRows reads the rows, unless they were read since they have last changed: mostly nothing is
// counted in the mode ENOENT.
func (d *Dentrycache) readRows() ([]attribution.Source, attribution.Totals, error) {
	if d.sources.still {
		return d.tracer.ReadUnless(d.sources.totals)
	}
	return d.tracer.Read()
}

// explain finds out how much of the growth since the last read has no source.
func (d *Dentrycache) explain(before *attribution.Totals, elapsed float64) {
	s, c := &d.sources, &d.cache
	if s.known = c.rates.known && c.before.dentries.HasNegative; !s.known {
		s.unexplained = 0
		return
	}
	t := &s.totals
	s.explained = 0
	if s.watched {
		made := t.Created - before.Created + t.Unlinked - before.Unlinked
		gone := t.Converted - before.Converted + t.Killed - before.Killed
		s.explained = float64(made-gone) / elapsed
	}
	s.unexplained = max(c.rates.negative-max(s.explained, 0), 0)
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
		if grown := recent.grown(); grown >= one.latest {
			one.latest, one.pid, one.uid = grown, row.PID, row.UID
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

// choose returns the series by which there are at least so many more, the greatest
// first. What has less counts for the directory above: a program that
// makes directory after directory shows, and each series is worth its place in a
// database.
func choose(all map[seriesKey]*series, least float64) []*series {
	byDepth := make([]map[seriesKey]*series, 1)
	for _, one := range all {
		if one.recent.grown() == 0 {
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
			if float64(one.recent.grown()+one.below) >= least {
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
		return cmp.Or(cmp.Compare(b.recent.grown()+b.below, a.recent.grown()+a.below),
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
	above.below += one.recent.grown() + one.below
	above.directories += one.directories
	if one.recent.grown() > 0 {
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

// emitSource reports a series. In the mode ENOENT it is not known what became of the negative
// dentries, and in some kernels not that files were made and removed.
func emitSource(acc telegraf.Accumulator, one *series, owner containers.Owner, elapsed float64, status *attribution.Status) {
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
		"negative_per_s": float64(one.recent.grown()) / elapsed,
		"pid":            int64(one.pid), "uid": int64(one.uid),
	}
	if status.Mode > attribution.ENOENT {
		fields["killed_in_dir"] = one.total.killed
	}
	if status.Mode > attribution.ENOENT || status.Counted {
		fields["converted"], fields["unlinked"] = one.total.converted, one.total.unlinked
	}
	if one.directories > 0 {
		fields["below_created_per_s"], fields["below_directories"] = float64(one.below)/elapsed, one.directories
	}
	owner.AddTo(fields, "")
	acc.AddGauge("dentrycache_source", fields, tags)
}

// watchMisses turns the mode ENOENT on while negative dentries grow, and off
// when they have not for some intervals: each system call costs more meanwhile.
func (d *Dentrycache) watchMisses(now time.Time) {
	s := &d.sources
	s.watched = true
	if d.tracer == nil || d.tracer.Status().Mode != attribution.ENOENT {
		return
	}
	watching := d.tracer.Status().Watching
	growing := d.Eager || d.cache.grows(d.ENOENTThreshold)
	s.expect(watching, growing, d.trickles(now), now)
	if growing {
		s.calm = 0
	} else {
		s.calm++
	}
	if want := growing || now.Before(s.until) || watching && s.calm < calm; want != watching {
		err := d.tracer.Watch(want)
		d.said.Error("watching", err)
		if want && err == nil {
			s.read = time.Now() // what comes is counted from here on
		}
		s.watched = want && err == nil
	} else {
		s.watched = watching
	}
}

// expect decides how long to wait for more of what has grown. A burst that was not watched
// may come again; one that was, and is explained, need not be waited for.
func (s *sources) expect(watching, growing, trickles bool, now time.Time) {
	switch {
	case watching && growing && s.explained >= s.unexplained:
		s.hold, s.until = 0, time.Time{}
	case !watching && growing:
		s.hold = min(max(2*s.hold, missedWatch), maxMissedWatch)
		s.until = now.Add(s.hold)
	case !watching && trickles:
		s.until = now.Add(missedWatch)
	}
}

// trickles reports, once in a trickleWindow, whether the negative dentries have become more in
// it by what source_threshold takes to be worth a look.
func (d *Dentrycache) trickles(now time.Time) bool {
	t, count := &d.sources.trickle, d.cache.before.dentries.Negative
	if !t.at.IsZero() && now.Sub(t.at) < trickleWindow {
		return false
	}
	before := *t
	*t = trickle{now, count}
	return !before.at.IsZero() && d.cache.before.dentries.HasNegative &&
		float64(count-before.count) >= max(d.SourceThreshold*now.Sub(before.at).Seconds(), 1)
}
