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

// calmIntervals is how many intervals without growth turn the mode ENOENT off.
const calmIntervals = 3

const (
	// missedWatchTime is how long the mode ENOENT stays on after growth that was not seen. That
	// is enough to see the next burst of a program that runs once a minute. It is doubled up to
	// maxMissedWatchTime while that does not help.
	missedWatchTime    = 150 * time.Second
	maxMissedWatchTime = 20 * time.Minute
	// trickleWindow is the time over which slow growth is looked at.
	trickleWindow = 10 * time.Minute
	// bystander is the share of the unexplained growth below which a source has nothing to do
	// with that growth.
	bystander = 0.1
	// fewSamples is how many samples in the mode ENOENT chance alone can give to somebody.
	fewSamples = 4 * attribution.SampleWeight
)

// sources are who creates negative dentries.
type sources struct {
	before map[uint64]counted // rows by their id
	reads  int
	read   time.Time // the last one, or the start
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

// counted is what a row said when it was read.
type counted struct {
	counts
	read int
}

// placeKey identifies the directory of a row.
type placeKey struct {
	device   attribution.Device
	inode    uint64
	relative string
	absolute bool
}

func keyOf(p *attribution.Place) placeKey {
	return placeKey{p.Device, p.Inode, p.Relative, p.FromRoot}
}

// seriesKey identifies a series: by its tags.
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

// grown is by how much the negative dentries have become more because of it, leaving aside those
// that were freed.
func (c counts) grown() int64 { return max(c.created+c.unlinked-c.converted, 0) }

// since is what was counted since before. A row that was dropped for another and came back has
// begun at zero again, and so has a directory: it is kept apart from its rows.
func (c counts) since(before counts) counts {
	recent := counts{c.created - before.created, c.converted - before.converted, c.unlinked - before.unlinked, c.killed - before.killed}
	if min(recent.created, recent.converted, recent.unlinked) < 0 {
		recent.created, recent.converted, recent.unlinked = c.created, c.converted, c.unlinked
	}
	if recent.killed < 0 {
		recent.killed = c.killed
	}
	return recent
}

// series is a series that may be reported.
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

// gatherSources reports which processes have created most negative dentries since the last
// gather, and notes which directories grow.
func (d *DentryCache) gatherSources(acc telegraf.Accumulator, now time.Time) {
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
	var sum sums
	if !unread {
		sum = d.sumUp(rows, now)
	}
	d.explain(&before, elapsed)
	chance := 0.0
	if totals.Sampled > before.Sampled {
		chance = fewSamples
	}
	chosen := choose(sum.all, max(d.SourceThreshold*elapsed, s.unexplained*elapsed*bystander, chance, 1))
	if d.FindDirectories {
		growth := sum.growth
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
	chosen = chosen[:min(len(chosen), d.TopSources)]
	d.addUnchanged(&sum, chosen, now)
	status := d.tracer.Status()
	for _, one := range chosen {
		emitSource(acc, one, d.host.OwnerOf(one.owner), elapsed, &status)
	}
}

// readRows reads the rows, unless they have not changed since they were last read: in the mode
// ENOENT mostly nothing is counted.
func (d *DentryCache) readRows() ([]attribution.Source, attribution.Totals, error) {
	if d.sources.still {
		return d.tracer.ReadUnless(d.sources.totals)
	}
	return d.tracer.Read()
}

// explain finds out how much of the growth since the last read has no source.
func (d *DentryCache) explain(before *attribution.Totals, elapsed float64) {
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

// sums are what the rows have in common that the same tags would be given to.
type sums struct {
	all map[seriesKey]*series // that have changed since the last read
	// growth is by how much the negative dentries of each directory that can be looked at
	// have grown since then.
	growth    map[string]float64
	unchanged []*attribution.Source
	// killed is set for a directory once a series has its killed dentries: its rows share them.
	killed map[killedIn]bool
}

// killedIn is a directory whose killed dentries a series has.
type killedIn struct {
	*series
	placeKey
}

// killedOnce reports whether a series should get the killed dentries of a directory, so that
// they are not counted twice.
func (s *sums) killedOnce(one *series, place placeKey) bool {
	at := killedIn{one, place}
	again := s.killed[at]
	s.killed[at] = true
	return !again
}

// sumUp sums up the rows that have changed. There can be thousands of others.
func (d *DentryCache) sumUp(rows []attribution.Source, now time.Time) sums {
	sum := sums{all: make(map[seriesKey]*series), growth: make(map[string]float64), killed: make(map[killedIn]bool)}
	type place struct {
		location
		killed int64 // that its growth is less by
	}
	places := make(map[placeKey]*place)
	d.sources.reads++
	for i := range rows {
		row := &rows[i]
		total, recent := d.sources.count(row)
		if recent == (counts{}) {
			sum.unchanged = append(sum.unchanged, row)
			continue
		}
		at := keyOf(&row.Place)
		in := places[at]
		if in == nil {
			in = &place{location: locate(d.mounts, &row.Place)}
			places[at] = in
		}
		if in.real {
			killed := max(recent.killed-in.killed, 0)
			in.killed += killed
			sum.growth[in.path] += float64(recent.created + recent.unlinked - recent.converted - killed)
		}
		key, owner := d.seriesOf(row, in.location, now)
		one := sum.all[key]
		if one == nil {
			one = &series{key: key, owner: owner}
			sum.all[key] = one
		}
		if !sum.killedOnce(one, at) {
			total.killed, recent.killed = 0, 0
		}
		one.total.add(total)
		one.recent.add(recent)
		if grown := recent.grown(); grown >= one.latest {
			one.latest, one.pid, one.uid = grown, row.PID, row.UID
		}
	}
	maps.DeleteFunc(d.sources.before, func(_ uint64, c counted) bool { return c.read != d.sources.reads })
	return sum
}

// count notes what a row says, and returns it with what came since the last read. The directory
// of a new row may be an old one, for which it is not known when its dentries were killed.
func (s *sources) count(row *attribution.Source) (total, recent counts) {
	if s.before == nil {
		s.before = make(map[uint64]counted)
	}
	total = counts{row.Created, row.Converted, row.Unlinked, row.KilledInDir}
	before, known := s.before[row.ID]
	recent = total.since(before.counts)
	if !known {
		recent.killed = 0
	}
	s.before[row.ID] = counted{total, s.reads}
	return total, recent
}

// addUnchanged adds the rows that have not changed to the totals of the series that are reported.
func (d *DentryCache) addUnchanged(sum *sums, reported []*series, now time.Time) {
	comms, byKey := make(map[string]bool), make(map[seriesKey]*series)
	for _, one := range reported {
		comms[one.key.comm], byKey[one.key] = true, one
	}
	for _, row := range sum.unchanged {
		if !comms[mounts.Printable(row.Comm)] {
			continue
		}
		key, _ := d.seriesOf(row, locate(d.mounts, &row.Place), now)
		one := byKey[key]
		if one == nil {
			continue
		}
		total := counts{row.Created, row.Converted, row.Unlinked, row.KilledInDir}
		if !sum.killedOnce(one, keyOf(&row.Place)) {
			total.killed = 0
		}
		one.total.add(total)
	}
}

// seriesOf returns which series a row belongs to, and who owns it.
func (d *DentryCache) seriesOf(row *attribution.Source, at location, now time.Time) (seriesKey, cgroups.Identity) {
	key := seriesKey{
		comm:      mounts.Printable(row.Comm),
		directory: mounts.Printable(at.path),
		device:    at.device,
		fstype:    at.fstype,
	}
	cgroup := d.cgroupName(row.CgroupID, now)
	id := cgroups.IdentityOf(cgroup)
	if id.Name != "" {
		key.container = mounts.Printable(id.Name)
	} else {
		key.cgroup = mounts.Printable(cgroup)
	}
	return key, id
}

// choose returns the series that have grown by at least so many, the greatest
// first. A series with less counts for the directory above: so a program that
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

// raise adds a series to that of the directory above.
func raise(one *series, all, level map[seriesKey]*series) {
	key := one.key
	key.directory = path.Dir(key.directory)
	above := level[key]
	if above == nil {
		// There may be a series for it that has created nothing itself.
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

// depthOf is how many directories are above a directory.
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
	}
	if one.pid != 0 {
		fields["pid"], fields["uid"] = int64(one.pid), int64(one.uid)
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
// when they have not grown for some intervals: each system call costs more while it is on.
func (d *DentryCache) watchMisses(now time.Time) {
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
	if want := growing || now.Before(s.until) || watching && s.calm < calmIntervals; want != watching {
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

// expect decides how long to wait for more growth. A burst that was not watched
// may come again. A burst that was watched, and is explained, need not be waited for.
func (s *sources) expect(watching, growing, trickles bool, now time.Time) {
	switch {
	case watching && growing && s.explained >= s.unexplained:
		s.hold, s.until = 0, time.Time{}
	case !watching && growing:
		s.hold = min(max(2*s.hold, missedWatchTime), maxMissedWatchTime)
		s.until = now.Add(s.hold)
	case !watching && trickles:
		s.until = now.Add(missedWatchTime)
	}
}

// trickles reports, once in a trickleWindow, whether the negative dentries have grown in it by
// as much as source_threshold says is worth a look.
func (d *DentryCache) trickles(now time.Time) bool {
	t, count := &d.sources.trickle, d.cache.before.dentries.Negative
	if !t.at.IsZero() && now.Sub(t.at) < trickleWindow {
		return false
	}
	before := *t
	*t = trickle{now, count}
	return !before.at.IsZero() && d.cache.before.dentries.HasNegative &&
		float64(count-before.count) >= max(d.SourceThreshold*now.Sub(before.at).Seconds(), 1)
}
