package dentrycache

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// replayed is the flood of a test. The small one is for every run of the tests.
type replayed struct {
	names       int
	interval    time.Duration
	least, most float64 // of the prediction against the measured stall
	intervals   int     // in which it is seen, at most
}

func replaySize() replayed {
	if os.Getenv("FAULTS") != "" {
		return replayed{3_000_000, 2 * time.Second, 0.7, 1.3, 2}
	}
	// So few dentries are in a processor's caches, if others leave them there. And others may take the
	// CPU for an interval, or have so many dentries freed that there are none the more.
	return replayed{300_000, time.Second, 0.1, 3, 16}
}

// TestFaults replays the post-mortem that this input starts from:
// an agent looks up ever new names, negative dentries grow, and whoever watches the
// directory then stalls for as long as the kernel takes to go through them. Where FAULTS
// names a file, it floods more, and writes its table there: "make faults" does so.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	size := replaySize()
	part := size.names / 20
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	dir := directoryOf(t, fs.Dir, "srv")
	d, log := newInput(t, func(d *DentryCache) {
		d.Directories, d.Attribution, d.CountChildren = []string{"/"}, "auto", true
		d.ENOENTThreshold = float64(part) / size.interval.Seconds() / 5 // the rest of the host may be busy
	})
	before := collect.Gather(t, d)
	status := before.Named("dentrycache_status")[0]
	mode := d.tracerMode()
	if d.walker == nil || mode == attribution.None {
		t.Skipf("no BPF here: %v", status.Fields())
	}
	// What is counted only while negative dentries grow is off before.
	require.Eventually(t, func() bool {
		collect.Gather(t, d)
		return d.tracer.Status().Watching == (mode != attribution.ENOENT)
	}, 2*time.Minute, size.interval) // others on the host may make bursts, too

	f := startFlooder(t, dir)
	// It floods as long as it takes to be seen, and then up to the full number in
	// one go.
	began := time.Now()
	f.start(part)
	next := began.Add(size.interval)
	seen := make(map[string]time.Duration)
	intervals := make(map[string]int)
	note := func(what string, interval int) {
		if _, known := seen[what]; !known {
			seen[what], intervals[what] = time.Since(began), interval
		}
	}
	var source, directory, host telegraf.Metric
	var rates float64 // the first that shows the flood
	var early string  // the first prediction
	looked := part
	gathered := began
	wanted := []string{"negative_per_s", "directory", "process", "predicted_stall_seconds"}
	for interval := 1; interval <= 4 || len(seen) < len(wanted) && interval <= size.intervals; interval++ {
		f.wait()
		time.Sleep(time.Until(next))
		elapsed := time.Since(gathered)
		gathered = time.Now()
		acc := collect.Gather(t, d)
		host = acc.Named("dentrycache")[0]
		if rate, _ := mustFloat(host, "negative_per_s"); rate > float64(part)/elapsed.Seconds()/2 {
			note("negative_per_s", interval)
			if rates == 0 {
				rates = rate
			}
		}
		if m := acc.Tagged("dentrycache_source", "directory", mounts.Printable(dir)); m != nil {
			source = m
			note("directory", interval)
			if m.Tags()["comm"] == mounts.Printable(floodComm) {
				note("process", interval)
			}
		}
		if m := acc.Tagged("dentrycache_dir", "directory", mounts.Printable(dir)); m != nil {
			directory = m
			note("predicted_stall_seconds", interval)
			if early == "" {
				stall, _ := mustFloat(m, "predicted_stall_seconds")
				early = fmt.Sprintf("%.1f ms of %d children so far", stall*1e3, number(m, "children"))
			}
		}
		next = next.Add(size.interval)
		if interval < 4 || len(seen) < len(wanted) && interval < size.intervals {
			f.start(part)
			looked += part
		}
	}
	for _, what := range wanted {
		require.Contains(t, intervals, what, "was seen")
		assert.LessOrEqual(t, intervals[what], size.intervals, "%s was seen after %v", what, seen[what])
	}
	require.NotNil(t, source)
	assert.EqualValues(t, f.pid(), number(source, "pid"))
	assert.EqualValues(t, os.Getuid(), number(source, "uid"))
	assert.Equal(t, strings.TrimPrefix(fs.Device, "/dev/"), source.Tags()["device"])
	assert.Equal(t, "ext4", source.Tags()["fstype"])

	// Now that it is being counted in every mode: how exactly is it?
	counted := number(source, "created")
	rest := size.names - looked
	f.start(rest)
	f.wait()
	d.directoryAt(dir).walkDue = time.Time{}
	acc := collect.Gather(t, d)
	source, directory = acc.Tagged("dentrycache_source", "directory", mounts.Printable(dir)), acc.Tagged("dentrycache_dir", "directory", mounts.Printable(dir))
	require.NotNil(t, source)
	require.NotNil(t, directory)
	counted = number(source, "created") - counted
	lost := number(acc.Named("dentrycache_status")[0], "events_lost")
	errorShare := float64(counted-int64(rest)) / float64(rest)
	t.Logf("mode %v: %d look-ups, %d counted, %d lost", mode, rest, counted, lost)
	if mode == attribution.ENOENT {
		// One in 64 is counted, with a standard deviation of a little less than
		// 8/sqrt(n): five of them.
		assert.InDelta(t, 0, errorShare, 5*8/math.Sqrt(float64(rest)))
	} else {
		assert.EqualValues(t, rest, counted)
	}
	children, negative := number(directory, "children"), number(directory, "negative_children")
	// The missing name of the look-up probe is one more.
	assert.InDelta(t, size.names, negative, 2, "%v", directory.Fields())
	assert.GreaterOrEqual(t, children, negative)
	complete, _ := directory.GetField("complete")
	assert.Equal(t, true, complete)
	predicted, _ := directory.GetField("predicted_stall_seconds")
	walk, _ := directory.GetField("walk_seconds")

	stall := watchTime(t, dir)
	ratio := predicted.(float64) / stall.Seconds()
	t.Logf("%d children, %d of them negative, walked in %.1f ms; predicted %.1f ms, inotify_add_watch took %.1f ms: %.2f",
		children, negative, walk.(float64)*1e3, predicted.(float64)*1e3, stall.Seconds()*1e3, ratio)
	assert.Greater(t, ratio, size.least)
	assert.Less(t, ratio, size.most)

	// Everything is given back, and the growth ends.
	f.stdin.Close()
	_ = f.command.Wait()
	require.NoError(t, unix.Unmount(fs.Dir, 0))
	d.ENOENTThreshold = 1e9 // whatever others do meanwhile
	freed := 0.0
	for range calmIntervals + 1 {
		after := collect.Gather(t, d)
		rate, _ := mustFloat(after.Named("dentrycache")[0], "negative_per_s")
		freed = min(freed, rate)
		require.Nil(t, after.Tagged("dentrycache_dir", "directory", mounts.Printable(dir)), "it is gone")
	}
	assert.Negative(t, freed)
	assert.Empty(t, log.About("W!"))
	assert.Equal(t, mode != attribution.ENOENT, d.tracer.Status().Watching, "the mode enoent is off again")

	if name := os.Getenv("FAULTS"); name != "" && !t.Failed() {
		table := document.Table{Header: []string{"what", "field", "reported", "true", "after", "intervals"}}
		row := func(what, field, reported, truth, noted string) {
			table.Add(what, field, reported, truth, fmt.Sprintf("%.1f s", seen[noted].Seconds()), strconv.Itoa(intervals[noted]))
		}
		row("negative dentries grow", "`negative_per_s`", fmt.Sprintf("%.0f", rates), fmt.Sprintf("%.0f", float64(part)/size.interval.Seconds()), "negative_per_s")
		row("the directory", "`directory` of `dentrycache_source`", "it", "it", "directory")
		row("the process", "`comm`, `pid`", "it", "it", "process")
		row("the stall", "`predicted_stall_seconds`", early, "", "predicted_stall_seconds")
		table.Add("look-ups of missing names while they were counted, mode "+mode.String(), "`created`", strconv.FormatInt(counted, 10), strconv.Itoa(rest), "", "")
		table.Add("negative dentries in the directory at last", "`negative_children`", strconv.FormatInt(negative, 10), strconv.Itoa(size.names)+", and the look-up probe's", "", "")
		table.Add("the stall at last", "`predicted_stall_seconds`", fmt.Sprintf("%.0f ms", predicted.(float64)*1e3), fmt.Sprintf("%.0f ms", stall.Seconds()*1e3), "", "")
		require.NoError(t, table.Write(name, "dentries"))
	}
}

// watchTime is how long the call takes that the stall is about, but for the time in which others had
// the CPU.
func watchTime(t testing.TB, dir string) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	before := threadCPU()
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY)
	took := threadCPU() - before
	require.NoError(t, err)
	return took
}

func mustFloat(m telegraf.Metric, name string) (float64, bool) {
	v, ok := m.GetField(name)
	f, _ := v.(float64)
	return f, ok
}

// tracerMode is what is counted; None if nothing is.
func (d *DentryCache) tracerMode() attribution.Mode {
	if d.tracer == nil {
		return attribution.None
	}
	return d.tracer.Status().Mode
}

func (d *DentryCache) directoryAt(path string) *directory {
	for _, dir := range d.directories {
		if dir.path == path {
			return dir
		}
	}
	return nil
}

// TestDentryCache_ADirectoryOfSevenMillion fills a directory until the alerts of a stall fire,
// the warning before the critical one, with the options that are preset. It is not forgotten
// when it has ceased to grow, nor over a restart, but when its children are gone.
func TestDentryCache_ADirectoryOfSevenMillion(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes two minutes")
	}
	const warning, critical = 600_000, 7_000_000
	var memory unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&memory))
	if memory.Freeram+memory.Bufferram < 4<<30 {
		t.Skip("it takes 2 GB of memory")
	}
	rules, err := os.ReadFile("../../../dashboards/prometheus/vfsprobe-alerts.yml")
	require.NoError(t, err)
	preset := make(map[string]float64) // the alerts' thresholds
	for _, m := range regexp.MustCompile(`alert: (DirectoryStall\w+)\n    expr: \|-\n.*? > ([0-9.]+)`).FindAllStringSubmatch(string(rules), -1) {
		preset[m[1]], err = strconv.ParseFloat(m[2], 64)
		require.NoError(t, err)
	}
	require.Len(t, preset, 2)
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	dir := directoryOf(t, fs.Dir, "srv")
	found := func(d *DentryCache) {
		d.Directories, d.CountChildren = nil, true
		d.Timeout = inputs.Inputs["dentrycache"]().(*DentryCache).Timeout
	}
	d, _ := newInput(t, found)
	d.foundGrowing(map[string]float64{dir: 1e6}, time.Now())
	collect.Gather(t, d)
	if d.walker == nil {
		t.Skip("no BPF here")
	}
	f := startFlooder(t, dir)
	stall := func(d *DentryCache, least int) (seconds float64) {
		t.Helper()
		require.Eventually(t, func() bool {
			m := collect.Gather(t, d).Tagged("dentrycache_dir", "directory", mounts.Printable(dir))
			require.NotNil(t, m, "it was forgotten")
			seconds, _ = mustFloat(m, "predicted_stall_seconds")
			return m.HasField("children") && number(m, "children") >= int64(least)
		}, 2*time.Minute, time.Second)
		return seconds
	}
	f.start(warning)
	f.wait()
	early := stall(d, warning)
	assert.Greater(t, early, preset["DirectoryStallNears"])
	assert.Less(t, early, preset["DirectoryStallAhead"])
	f.start(critical - warning)
	f.wait()
	assert.Greater(t, stall(d, critical), preset["DirectoryStallAhead"])

	d.forget(time.Now().Add(24 * time.Hour))
	assert.NotNil(t, d.directoryAt(dir), "it has as many children as before")
	kept, err := json.Marshal(d.Keep())
	require.NoError(t, err)
	d, _ = newInput(t, found)
	require.NoError(t, d.Restore(kept))
	collect.Gather(t, d)
	d.forget(time.Now().Add(24 * time.Hour))
	assert.Greater(t, stall(d, critical), preset["DirectoryStallAhead"])

	require.NoError(t, os.Remove(dir)) // which frees them
	require.Eventually(t, func() bool {
		collect.Gather(t, d)
		d.forget(time.Now().Add(24 * time.Hour))
		return d.directoryAt(dir) == nil
	}, time.Minute, time.Second)
}

// BenchmarkStall measures what stallPerChild says: inotify_add_watch on directories
// of negative dentries. Run it with -benchtime 1x: on kernels that are not slow
// each time, only the first watch is.
func BenchmarkStall(b *testing.B) {
	for _, children := range []int{100_000, 300_000, 1_000_000, 3_000_000} {
		b.Run(strconv.Itoa(children), func(b *testing.B) {
			fs := loopfs.New(b, "ext4", loopfs.DefaultSize, "")
			f := startFlooder(b, fs.Dir)
			f.start(children)
			f.wait()
			var total time.Duration
			for range b.N {
				total += watchTime(b, fs.Dir)
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N)/float64(children), "ns/child")
		})
	}
}
