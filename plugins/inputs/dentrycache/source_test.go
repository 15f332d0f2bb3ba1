package dentrycache

import (
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/serializers/influx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/containers"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

const table = `21 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
22 21 254:2 / /srv rw,relatime - ext4 /dev/mapper/srv rw
23 21 254:1 /var/lib/data /data rw,relatime - ext4 /dev/vda1 rw
24 21 0:40 /@home /home rw,relatime - btrfs /dev/vdb rw,subvol=/@home
25 21 0:50 / /var/lib/docker/overlay2/abc/merged rw,relatime - overlay overlay rw
26 21 0:60 /part /mnt/part rw - xfs /dev/vdc rw
27 21 254:2 / /a/longer/way/to/srv rw,relatime - ext4 /dev/mapper/srv rw
`

func mountTable(t testing.TB) *mounts.Snapshot {
	t.Helper()
	all := mounts.Parse([]byte(table))
	require.NoError(t, all.Err)
	return all
}

func TestLocate(t *testing.T) {
	all := mountTable(t)
	type p = attribution.Place
	dev := func(major, minor uint32) attribution.Device { return attribution.Device{Major: major, Minor: minor} }
	for _, c := range []struct {
		place p
		want  location
	}{
		{p{}, location{}},
		{p{Device: dev(254, 1)}, location{"/", true, "vda1", "ext4"}},
		{p{Device: dev(254, 1), Path: []string{"usr", "lib"}}, location{"/usr/lib", true, "vda1", "ext4"}},
		{p{Device: dev(254, 2)}, location{"/srv", true, "mapper/srv", "ext4"}},
		{p{Device: dev(254, 2), Path: []string{"x"}}, location{"/srv/x", true, "mapper/srv", "ext4"}},
		{p{Device: dev(0, 40), Path: []string{"@home", "joe"}}, location{"/home/joe", true, "vdb", "btrfs"}},
		{p{Device: dev(0, 40), Path: []string{"@", "usr"}}, location{"/@/usr", false, "vdb", "btrfs"}}, // not mounted
		{p{Device: dev(0, 40), Path: []string{"@homework"}}, location{"/@homework", false, "vdb", "btrfs"}},
		{p{Device: dev(0, 50), Path: []string{"tmp"}}, location{"/var/lib/docker/overlay2/abc/merged/tmp", true, "overlay", "overlay"}},
		{p{Device: dev(0, 60), Path: []string{"part"}}, location{"/mnt/part", true, "vdc", "xfs"}},
		{p{Device: dev(0, 77), Path: []string{"in", "another"}, FSType: "tmpfs"}, location{"/in/another", false, "0:77", "tmpfs"}},
		{p{Device: dev(254, 1), Path: []string{"deep", "down"}, Truncated: true, FSType: "ext4"}, location{"…/deep/down", false, "254:1", "ext4"}},
		{p{Device: dev(254, 1), Truncated: true}, location{"…", false, "254:1", ""}},
		{p{Device: dev(254, 1), Relative: "tmp/x", FromRoot: true}, location{"/tmp/x", true, "vda1", "ext4"}},
		{p{Device: dev(254, 1), Relative: "srv/x", FromRoot: true}, location{"/srv/x", true, "mapper/srv", "ext4"}}, // crosses a mount point
		{p{Device: dev(254, 1), Path: []string{"opt"}, Relative: "./a//b"}, location{"/opt/a/b", true, "vda1", "ext4"}},
		{p{Device: dev(254, 1), Path: []string{"opt"}, Relative: "a/../b"}, location{"/opt/a/../b", false, "vda1", "ext4"}},
		{p{Device: dev(0, 50), Relative: "etc", FromRoot: true}, location{"/var/lib/docker/overlay2/abc/merged/etc", true, "overlay", "overlay"}}, // a container's root
	} {
		assert.Equal(t, c.want, locate(all, &c.place), "%+v", c.place)
	}
}

func FuzzLocate(f *testing.F) {
	f.Add("a", "b", "c/d", uint32(254), uint32(1), false)
	f.Add("", "..", "../..", uint32(0), uint32(40), true)
	f.Add("a", "b", "c", uint32(0), uint32(0), false) // a system call without a path: no directory is known
	f.Fuzz(func(t *testing.T, first, second, relative string, major, minor uint32, truncated bool) {
		place := attribution.Place{Device: attribution.Device{Major: major, Minor: minor}, Path: []string{first, second}, Relative: relative, Truncated: truncated}
		at := locate(mountTable(t), &place)
		if place.Nowhere() {
			require.Zero(t, at)
			return
		}
		require.NotEmpty(t, at.path)
		require.NotEmpty(t, at.device)
		require.False(t, truncated && at.real)
	})
}

// row is one of the attribution's on the root file system.
func row(comm, directory string, created int64) attribution.Source {
	id := fnv.New64a()
	id.Write([]byte(comm + directory))
	return attribution.Source{ID: id.Sum64(), Comm: comm, Place: attribution.Place{Device: attribution.Device{Major: 254, Minor: 1}, Relative: directory[1:], FromRoot: true},
		Created: created, PID: int32(created % 1000), UID: 7}
}

func TestSources_AreSummedUp(t *testing.T) {
	d, _ := newInput(t, nil)
	d.mounts = mountTable(t)
	now := time.Now()
	rows := []attribution.Source{row("busy", "/srv/x", 5000), row("idle", "/tmp", 3), row("busy", "/tmp", 100)}
	rows[0].Converted, rows[0].Unlinked, rows[0].KilledInDir = 10, 20, 30
	rows[0].Place.Inode, rows[2].Place.Inode = 2, 3
	// Another row of the same directory, from a cgroup with no name.
	twin := rows[0]
	twin.ID, twin.CgroupID, twin.Created = 1, 12345, 700
	rows = append(rows, twin)
	sum := d.sumUp(rows, now)
	require.Len(t, sum.all, 3)
	assert.EqualValues(t, 5000+700+2*(20-10), sum.growth["/srv/x"], "when those were killed is not known")
	chosen := choose(sum.all, 100)
	require.Len(t, chosen, 2)
	assert.Equal(t, seriesKey{comm: "busy", directory: "/srv/x", device: "mapper/srv", fstype: "ext4"}, chosen[0].key)
	assert.Equal(t, counts{5700, 20, 40, 30}, chosen[0].total)

	// The rows that were there before count by what came since; one that was
	// dropped and made anew from zero.
	rows[0].Created, rows[2].Created = 5500, 40
	sum = d.sumUp(rows, now)
	chosen = choose(sum.all, 1)
	require.Len(t, chosen, 2)
	assert.Equal(t, counts{created: 500}, chosen[0].recent)
	assert.Equal(t, counts{created: 40}, chosen[1].recent)
	assert.EqualValues(t, 500, sum.growth["/srv/x"])
	assert.Len(t, sum.unchanged, 2)
	d.addUnchanged(&sum, chosen, now)
	assert.Equal(t, counts{6200, 20, 40, 30}, chosen[0].total, "the twin, which rests, counts for all that there are")

	// What is killed counts once.
	rows[0].KilledInDir, rows[3].KilledInDir = 37, 37
	sum = d.sumUp(rows, now)
	assert.EqualValues(t, -7, sum.growth["/srv/x"])
	assert.Len(t, sum.unchanged, 2)
}

// TestSumUp_LeavesWhatRests: thousands of rows that have not changed take no memory to speak of.
func TestSumUp_LeavesWhatRests(t *testing.T) {
	const all, most = 8192, 1 << 20
	d, _ := newInput(t, nil)
	d.mounts = mountTable(t)
	rows := make([]attribution.Source, all)
	for i := range rows {
		rows[i] = row("builder", fmt.Sprintf("/tmp/build/%d/out", i), 5)
	}
	require.Len(t, d.sumUp(rows, time.Now()).all, all)
	rows[7].Created += 100
	allocated := func() (bytes uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		sum := d.sumUp(rows, time.Now())
		runtime.ReadMemStats(&after)
		require.Len(t, sum.all, 1)
		require.Len(t, sum.unchanged, all-1)
		return after.TotalAlloc - before.TotalAlloc
	}
	assert.Less(t, allocated(), uint64(most))
}

func TestSources_ManyDirectoriesCountForTheOneAbove(t *testing.T) {
	d, _ := newInput(t, nil)
	d.mounts = mountTable(t)
	var rows []attribution.Source
	for i := range 1000 {
		rows = append(rows, row("builder", fmt.Sprintf("/tmp/build/%d/out", i), 5))
	}
	rows = append(rows, row("builder", "/tmp/build", 60), row("builder", "/tmp/build/7", 200), row("other", "/opt/a", 5), row("other", "/opt/b", 4), row("third", "/", 3))
	all := d.sumUp(rows, time.Now()).all
	chosen := choose(all, 100)
	require.Len(t, chosen, 2)
	build, seven := chosen[0], chosen[1]
	assert.Equal(t, "/tmp/build", build.key.directory)
	assert.Equal(t, []int64{60, 60, 999 * 5, 999}, []int64{build.total.created, build.recent.created, build.below, build.directories})
	assert.Equal(t, "/tmp/build/7", seven.key.directory)
	assert.Equal(t, []int64{200, 5, 1}, []int64{seven.recent.created, seven.below, seven.directories})
	acc := &collect.Metrics{}
	emitSource(acc, build, containers.Owner{Namespace: "shop", Pod: "web-0"}, 10, &attribution.Status{Mode: attribution.Fentry})
	assert.Equal(t, map[string]any{
		"created": int64(60), "created_per_s": 6.0, "negative_per_s": 6.0, "below_created_per_s": 499.5, "below_directories": int64(999),
		"converted": int64(0), "unlinked": int64(0), "killed_in_dir": int64(0), "pid": int64(60), "uid": int64(7),
		"namespace": "shop", "pod_name": "web-0",
	}, acc.Named("dentrycache_source")[0].Fields())
	// Up to the root, where nothing has enough by itself.
	for _, one := range choose(all, 1) {
		if one.key.comm == "other" {
			assert.Contains(t, []string{"/opt/a", "/opt/b"}, one.key.directory)
		}
	}
	all = d.sumUp([]attribution.Source{row("other", "/opt/a", 10), row("other", "/opt/b", 9)}, time.Now()).all
	chosen = choose(all, 6)
	require.Len(t, chosen, 1, "5 and 5 more than before, together")
	assert.Equal(t, "/opt", chosen[0].key.directory)
	assert.EqualValues(t, 10, chosen[0].below)
	all = d.sumUp([]attribution.Source{row("other", "/opt/a", 12), row("other", "/opt/b", 11)}, time.Now()).all
	assert.Empty(t, choose(all, 5))
}

// Any byte may be in a name, and must not break a line of line protocol.
func TestSources_NamesWithAnyBytes(t *testing.T) {
	d, _ := newInput(t, nil)
	d.mounts = mountTable(t)
	serializer := &influx.Serializer{}
	require.NoError(t, serializer.Init())
	for b := 1; b < 256; b++ {
		comm := fmt.Sprintf("a%cb", rune(b))
		raw := "a" + string([]byte{byte(b)}) + "b"
		for _, comm := range []string{comm, raw, string([]byte{byte(b)})} {
			source := row(comm, "/tmp", 10)
			source.Place.Relative = "x" + string([]byte{byte(b)}) + "y"
			all := d.sumUp([]attribution.Source{source}, time.Now()).all
			d.sources.before = nil
			chosen := choose(all, 1)
			require.Len(t, chosen, 1)
			acc := &collect.Metrics{}
			emitSource(acc, chosen[0], containers.Owner{}, 1, &attribution.Status{Mode: attribution.ENOENT})
			metrics := acc.Named("dentrycache_source")
			line, err := serializer.SerializeBatch([]telegraf.Metric{metrics[0]})
			require.NoError(t, err)
			require.Equal(t, byte('\n'), line[len(line)-1])
			require.NotContains(t, string(line[:len(line)-1]), "\n")
			require.Equal(t, mounts.Printable(comm), metrics[0].Tags()["comm"])
		}
	}
}

func TestSources_TheModeENOENTIsOnWhileNegativesGrow(t *testing.T) {
	var h cache
	h.before.dentries.HasNegative = true
	assert.False(t, h.grows(0), "nothing is known yet")
	h.rates.known, h.rates.elapsed, h.rates.negative, h.rates.dentries = true, 10, 101, -5
	assert.True(t, h.grows(100))
	assert.False(t, h.grows(101))
	h.rates.elapsed = 0.01
	assert.False(t, h.grows(100), "one more in 10 ms is nothing")
	h.before.dentries.HasNegative, h.rates.elapsed = false, 10
	assert.False(t, h.grows(0), "dentries have to do")
}

// TestSources_BurstsAreWaitedFor: the mode ENOENT is on when a program that comes once a minute
// comes again, within a few minutes, and is off again when it does not.
func TestSources_BurstsAreWaitedFor(t *testing.T) {
	for _, every := range []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute} {
		const interval = 10 * time.Second
		d := &DentryCache{SourceThreshold: 10, ENOENTThreshold: 100}
		s := &d.sources
		now, start := time.Unix(1e9, 0), time.Unix(1e9, 0)
		watching, seen := false, time.Duration(0)
		for ; now.Sub(start) < 2*time.Hour; now = now.Add(interval) {
			burst := now.Sub(start) > 0 && now.Sub(start)%every == 0 && now.Sub(start) < time.Hour
			s.explained, s.unexplained = 0, 0
			if burst && watching {
				if s.explained = 2000; seen == 0 {
					seen = now.Sub(start)
				}
			} else if burst {
				s.unexplained = 2000
			}
			s.expect(watching, burst, false, now)
			if s.calm++; burst {
				s.calm = 0
			}
			watching = burst || now.Before(s.until) || watching && s.calm < calmIntervals
		}
		assert.NotZero(t, seen, "%v", every)
		assert.LessOrEqual(t, seen, 5*every, "%v", every)
		assert.False(t, watching, "%v: an hour after the last", every)
	}
}

// TestDentryCache_NamesBursts: a program that looks for 100,000 names at once and then rests is
// named when it does so the second time, at the latest, in the mode that is on while negative
// dentries grow.
func TestDentryCache_NamesBursts(t *testing.T) {
	// Others may take the CPU for some intervals of a second, in which a rate is the less.
	const names, rest = 100_000, 8 // intervals, of which the mode would be on for three
	began := time.Now()
	dir := directoryOf(t, loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, "bursts")
	d, _ := newInput(t, func(d *DentryCache) {
		d.Attribution, d.FindDirectories = "enoent", false
		d.ENOENTThreshold, d.SourceThreshold = names/10, 1000 // the rest of the host may be busy
	})
	require.Eventually(t, func() bool {
		collect.Gather(t, d)
		return d.ready
	}, time.Minute, 100*time.Millisecond)
	if d.tracer == nil || d.tracer.Status().Mode != attribution.ENOENT {
		t.Skip("no BPF here")
	}
	f := startFlooder(t, dir)
	interval := func() *collect.Metrics {
		time.Sleep(time.Second)
		return collect.Gather(t, d)
	}
	for quiet := 0; quiet < calmIntervals; quiet++ { // others on the host may make bursts, too
		interval()
		if d.tracer.Status().Watching {
			quiet = -1
		}
		require.Less(t, time.Since(began), 2*time.Minute, "it never gets calm")
	}
	f.start(names)
	f.wait()
	assert.Nil(t, interval().Tagged("dentrycache_source", "directory", mounts.Printable(dir)), "the first came unseen")
	for range rest {
		interval()
	}
	require.True(t, d.tracer.Status().Watching, "the next is waited for")
	f.start(names)
	f.wait()
	source := interval().Tagged("dentrycache_source", "directory", mounts.Printable(dir))
	require.NotNil(t, source)
	assert.Equal(t, mounts.Printable(floodComm), source.Tags()["comm"])
	assert.InDelta(t, names, number(source, "created"), names/4, "sampled")
}

// TestDentryCache_Trickles: what is too slow to be seen in an interval is looked at once in a
// while.
func TestDentryCache_Trickles(t *testing.T) {
	d := &DentryCache{SourceThreshold: 10}
	now := time.Unix(1e9, 0)
	c := &d.cache.before.dentries
	c.HasNegative = true
	assert.False(t, d.trickles(now), "nothing is known yet")
	c.Negative += 50 * 300
	assert.False(t, d.trickles(now.Add(5*time.Minute)))
	c.Negative += 50 * 300
	assert.True(t, d.trickles(now.Add(trickleWindow)), "50 per second")
	assert.False(t, d.trickles(now.Add(trickleWindow+time.Second)))
	c.Negative += 5 * 600
	assert.False(t, d.trickles(now.Add(2*trickleWindow)), "5 per second")
}

func TestDentryCache_Explains(t *testing.T) {
	d := &DentryCache{}
	s := &d.sources
	d.explain(&attribution.Totals{}, 10)
	assert.False(t, s.known)
	d.cache.rates.known, d.cache.rates.negative, d.cache.before.dentries.HasNegative = true, 1000, true
	s.totals = attribution.Totals{Created: 6000, Unlinked: 2500, Converted: 500}
	for _, c := range []struct {
		watched bool
		before  attribution.Totals
		want    float64
	}{
		{true, attribution.Totals{}, 200},
		{true, attribution.Totals{Created: 6000, Unlinked: 2500, Converted: 500}, 1000},
		{true, attribution.Totals{Created: -10000}, 0}, // others were freed meanwhile
		{false, attribution.Totals{}, 1000},
	} {
		s.watched = c.watched
		d.explain(&c.before, 10)
		assert.InDelta(t, c.want, s.unexplained, 1e-9, "%+v", c)
	}
}

// TestDentryCache_NamesWhoGrows: whoever makes the cache grow is named, by look-ups or by files
// that are removed, and not whoever looks for names that are not kept.
func TestDentryCache_NamesWhoGrows(t *testing.T) {
	const names = 4000
	leak, memory := loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, t.TempDir()
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(memory, unix.MNT_DETACH) })
	d, _ := newInput(t, func(d *DentryCache) { d.Attribution, d.FindDirectories = "enoent", false })
	d.Eager = true
	require.Eventually(t, func() bool {
		collect.Gather(t, d)
		return d.ready
	}, time.Minute, 100*time.Millisecond)
	if d.tracer == nil || !d.tracer.Status().Counted {
		t.Skip("no BPF here, or this kernel's count can't be read")
	}
	collect.Gather(t, d)
	for i := range names {
		name := fmt.Sprintf("/random-%d", i)
		for range 3 {
			_, err := os.Lstat(memory + name) // by its whole path
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		_, err := os.Lstat(leak + "/none/below" + name)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, os.WriteFile(leak+name, nil, 0o600))
		require.NoError(t, os.Remove(leak+name))
	}
	acc := collect.Gather(t, d)
	source := acc.Tagged("dentrycache_source", "directory", mounts.Printable(leak)) // others on the host may grow, too
	require.NotNil(t, source)
	assert.InDelta(t, names, number(source, "unlinked"), names/2) // sampled above 2000
	grown, _ := mustFloat(source, "negative_per_s")
	assert.Positive(t, grown)
	assert.Nil(t, acc.Tagged("dentrycache_source", "directory", mounts.Printable(memory)), "tmpfs keeps none")
	assert.Nil(t, acc.Tagged("dentrycache_source", "directory", mounts.Printable(leak+"/none/below")), "nothing is below what does not exist")
	growth, _ := mustFloat(acc.Named("dentrycache")[0], "negative_per_s")
	unexplained, known := mustFloat(acc.Named("dentrycache_status")[0], "unexplained_per_s")
	assert.True(t, known)
	assert.LessOrEqual(t, unexplained, max(0, growth)/2, "others on the host may free theirs meanwhile")
	if hierarchies := d.owners.hierarchies; hierarchies.V1() {
		content, err := os.ReadFile("/proc/self/cgroup")
		require.NoError(t, err)
		assert.Contains(t, string(content), ":memory:"+source.Tags()["cgroup"]+"\n", "the one that holds them")
	}
}

func TestDentryCache_FindsDirectories(t *testing.T) {
	d, _ := newInput(t, on("/", "/srv"))
	now := time.Now()
	rates := map[string]float64{"/": 50, "/slow": 9, "/shrinks": -100}
	for i := range 20 {
		rates[fmt.Sprintf("/found%d", i)] = float64(1000 + i)
	}
	d.foundGrowing(rates, now)
	assert.Len(t, d.directories, maxDirectories)
	d.foundGrowing(map[string]float64{"/faster": 1e6}, now.Add(time.Minute))
	assert.Len(t, d.directories, maxDirectories)
	require.NotNil(t, d.directoryAt("/faster"))
	assert.False(t, d.directoryAt("/faster").configured)
	assert.True(t, d.directoryAt("/").configured)
	assert.Nil(t, d.directoryAt("/slow"))
	d.forget(now.Add(idleTimeout + time.Second))
	assert.Len(t, d.directories, 3, "two that are configured, and one that still grew after a minute")
	d.refused["/gone"] = now
	d.foundGrowing(map[string]float64{"/gone": 1e6}, now)
	assert.Nil(t, d.directoryAt("/gone"))
	d.forget(now.Add(2 * idleTimeout))
	assert.Empty(t, d.refused)
	assert.Len(t, d.directories, 2)
}
