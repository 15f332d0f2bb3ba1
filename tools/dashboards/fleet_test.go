//go:build !race

package dashboards

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
)

// The defaults, on a host with 100 mounts, of which ten fail: both databases get
// less than a thousand series.
func TestFleet_SeriesOfAHostWith100Mounts(t *testing.T) {
	faultfs.Require(t)
	const mounts, failing = 100, 10
	start := func(t *testing.T) *live {
		return startLive(t, "[[inputs.mountstat]]\n[[inputs.dentrycache]]\n[[inputs.nfslock]]\n", "groups: []\n")
	}
	t.Run("FUSE", func(t *testing.T) {
		all := make([]*faultfs.FS, mounts)
		for i := range all {
			all[i] = faultfs.New(t)
		}
		l := start(t)
		l.await(t, mounts, `count(mountstat_result_code{fstype="fuse.faultfs"} == 0)`)
		for _, fs := range all[:failing] {
			fs.Abort()
		}
		l.await(t, failing, `count(mountstat_info_result_code{fstype="fuse.faultfs",result="error"})`)
		l.judgeSeries(t, mounts)
	})
	t.Run("NFS", func(t *testing.T) {
		const servers = 5
		l := start(t)
		ill := nfsHost(t, mounts, failing, servers)
		l.play(t, ill.lines(thisHost))
		l.await(t, 2*mounts, `count({__name__=~"(mountstat|nfslock)_result_code",fstype=~"nfs.*"})`)
		l.await(t, float64(ill.count("mountstat", faulty)), `count(mountstat_fault_seconds{fstype=~"nfs.*"} > 0)`)
		l.await(t, float64(ill.count("nfslock", faulty)), `count(nfslock_fault_seconds > 0)`)
		l.judgeSeries(t, 2*mounts)

		// What is rare ends with the faults: at zero, and then it is gone. What
		// shows it has zeros.
		l.play(t, ill.healed().lines(thisHost))
		l.await(t, float64(ill.count("mountstat", faulty)), `count(min_over_time(mountstat_fault_seconds{fstype=~"nfs.*"}[5m]) == 0)`)
		l.await(t, 0, `count({__name__=~"(mountstat|nfslock)_(fault_seconds|hung_seconds|tasks_blocked|info_result_code)",fstype=~"nfs.*"}) or vector(0)`)
		for _, s := range l.databases() {
			rows := 0
			for _, row := range l.ask(t, s, panelOf(t, "host", "Hung for"), thisHost) {
				if strings.HasPrefix(fmt.Sprint(row["path"]), "/mnt/nfs-") {
					rows++
					assert.Equal(t, 0.0, row["value"], "%s: %v", s.name, row)
				}
			}
			assert.Equal(t, mounts, rows, s.name)
		}
		l.judgeSeries(t, 2*mounts)
	})
}

// await waits until a query of one number has this one.
func (l *live) await(t *testing.T, want float64, query string) {
	t.Helper()
	var got []stores.Row
	require.Eventually(t, func() bool {
		got = l.prometheus.Now(t, query)
		return len(got) == 1 && got[0].Points[0].Values["value"] == want
	}, patience, 500*time.Millisecond, "%s is not %v", query, want)
}

// judgeSeries counts those of both databases. Of the sources of dentries, which are those of
// other tests on this machine, it counts what is there at an interval of 10 s: top_sources of
// each gather for 30 s. Here there is a gather each second.
func (l *live) judgeSeries(t *testing.T, atLeast int) {
	const sources = 10 * 30 / 10
	byMetric := make(map[string]float64)
	inPrometheus := 0.0
	for _, row := range l.prometheus.Now(t, `count by (__name__) ({job="telegraf",__name__=~"(mountstat|nfslock|dentrycache|vfsprobe).*"})`) {
		n, _ := row.Points[0].Values["value"].(float64)
		byMetric[row.Labels["__name__"]] = n
		if strings.HasPrefix(row.Labels["__name__"], "dentrycache_source_") {
			n = min(n, sources)
		}
		inPrometheus += n
	}
	var inInflux float64
	byMeasurement := make(map[string]float64)
	for _, row := range l.influx.Query(t, "SHOW SERIES") {
		for _, point := range row.Points {
			name, _, _ := strings.Cut(point.Values["key"].(string), ",")
			byMeasurement[name]++
			inInflux++
		}
	}
	inInflux -= max(0, byMeasurement["dentrycache_source"]-sources)
	t.Logf("%v series in InfluxDB (%v), %v in Prometheus (%v)", inInflux, byMeasurement, inPrometheus, byMetric)
	assert.Less(t, inInflux, 1000.0)
	assert.Less(t, inPrometheus, 1000.0)
	assert.GreaterOrEqual(t, inInflux, float64(atLeast))
	assert.GreaterOrEqual(t, inPrometheus, float64(atLeast))
}

// template is what one host reports in one gather, of which a fleet is made.
type template struct {
	points []influx.Point
}

func faulty(p influx.Point) bool {
	code, err := strconv.Atoi(p.Fields[resultCode])
	return err == nil && result.Code(code).Fault()
}

// count is how many points of a measurement are so.
func (h template) count(measurement string, is func(influx.Point) bool) int {
	n := 0
	for _, p := range h.points {
		if p.Name == measurement && is(p) {
			n++
		}
	}
	return n
}

// healed has the mounts that fail report what others do.
func (h template) healed() template {
	h.points = slices.Clone(h.points)
	for i, p := range h.points {
		if faulty(p) {
			well := slices.IndexFunc(h.points, func(other influx.Point) bool { return other.Name == p.Name && other.Fields[resultCode] == "0" })
			h.points[i].Fields = h.points[well].Fields
		}
	}
	return h
}

// lines are the points as those of a host, now.
func (h template) lines(host string) string {
	var b bytes.Buffer
	h.write(&b, 0, 0, time.Time{}, rand.New(rand.NewPCG(1, 2)))
	return regexp.MustCompile(`(?m) -?[0-9]+$`).ReplaceAllString(strings.ReplaceAll(b.String(), ",host=host-00000", ",host="+host), "")
}

// nfsHost makes a template of what hosts have reported that were recorded: with
// this many NFS mounts, some of which fail, each in another of the recorded ways.
func nfsHost(t *testing.T, mounts, failing, servers int) template {
	files, err := filepath.Glob("testdata/nfs/*.lp")
	require.NoError(t, err)
	var h template
	var well, ill [][]influx.Point // what mountstat and nfslock say of a mount
	perServer := make(map[bool][]influx.Point)
	for turn := range 3 { // of each recording's faults so many
		for _, file := range files {
			many := strings.HasSuffix(file, "/many-mounts.lp")
			paths, byPath, others := recordedMounts(t, file)
			n := 0
			for _, path := range paths {
				switch all := byPath[path]; {
				case slices.ContainsFunc(all, faulty):
					if n == turn {
						ill = append(ill, all)
					}
					n++
				case many && turn == 0 && len(all) == 2:
					well = append(well, all)
				}
			}
			for _, p := range others {
				switch _, ofServer := p.Tags["server"]; {
				case !many || turn > 0:
				case ofServer:
					dead := p.Fields["hung"] != "0"
					perServer[dead] = append(perServer[dead], p)
				default:
					h.points = append(h.points, p)
				}
			}
		}
	}
	require.NotEmpty(t, well)
	require.GreaterOrEqual(t, len(ill), failing)
	twin := func(p influx.Point, server int) influx.Point {
		p.Tags = maps.Clone(p.Tags)
		p.Tags["server"] = fmt.Sprintf("10.2.1.%d", server+1)
		return p
	}
	for i := range mounts {
		of := well[i%len(well)]
		if i < failing {
			of = ill[i]
		}
		for _, p := range of {
			p = twin(p, i%servers)
			p.Tags["path"] = fmt.Sprintf("/mnt/nfs-%d", i)
			h.points = append(h.points, p)
		}
	}
	for i := range servers {
		for _, p := range perServer[failing > 0 && i == 0] {
			h.points = append(h.points, twin(p, i))
		}
	}
	require.Equal(t, mounts, h.count("mountstat", func(influx.Point) bool { return true }))
	require.Equal(t, mounts, h.count("nfslock", func(influx.Point) bool { return true }))
	require.Equal(t, servers, h.count("nfslock_server", func(influx.Point) bool { return true }))
	return h
}

// recordedMounts returns a recording's points by mount, in its order, and the others.
func recordedMounts(t *testing.T, file string) (paths []string, byPath map[string][]influx.Point, others []influx.Point) {
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	byPath = make(map[string][]influx.Point)
	for line := range strings.Lines(string(content)) {
		point, err := influx.Parse(strings.TrimSpace(line))
		require.NoError(t, err)
		path, ofMount := point.Tags["path"]
		if !ofMount || point.Name != "mountstat" && point.Name != "nfslock" {
			others = append(others, point)
			continue
		}
		if byPath[path] == nil {
			paths = append(paths, path)
		}
		byPath[path] = append(byPath[path], point)
	}
	// A file system has one point of nfslock's, whatever the number of its mounts.
	paths = slices.DeleteFunc(paths, func(path string) bool { return len(byPath[path]) != 2 })
	return paths, byPath, others
}

var floating = regexp.MustCompile(`^[0-9]*\.[0-9]+$`)

// write appends a gather's lines. Times vary as they do, counters grow a little.
func (h template) write(b *bytes.Buffer, host, gather int, at time.Time, random *rand.Rand) {
	for _, p := range h.points {
		fmt.Fprintf(b, "%s,host=host-%05d", p.Name, host)
		for _, tag := range slices.Sorted(keys(p.Tags)) {
			fmt.Fprintf(b, ",%s=%s", tag, strings.NewReplacer(" ", `\ `, ",", `\,`, "=", `\=`).Replace(p.Tags[tag]))
		}
		separator := " "
		for _, field := range slices.Sorted(keys(p.Fields)) {
			value := p.Fields[field]
			number, err := strconv.ParseFloat(value, 64)
			switch {
			case value == "true" || value == "false":
			case err != nil:
				value = strconv.Quote(value)
			case strings.HasSuffix(field, "_seconds") || strings.HasSuffix(field, "_seconds_total") || strings.HasSuffix(field, "_ago") || strings.HasSuffix(field, "_percent") || floating.MatchString(value):
				if number != 0 {
					number *= 0.7 + 0.6*random.Float64()
				}
				value = strconv.FormatFloat(number, 'f', 9, 64)
			case strings.HasPrefix(field, "nfs_") && strings.HasSuffix(field, "bytes"), field == "helpers_forked", field == "free", field == "used":
				value = fmt.Sprintf("%di", int64(number)+int64(gather)*random.Int64N(1<<20))
			default:
				value += "i"
			}
			fmt.Fprintf(b, "%s%s=%s", separator, field, value)
			separator = ","
		}
		fmt.Fprintf(b, " %d\n", at.UnixNano())
	}
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

// TestFleet measures what a fleet costs an InfluxDB, and writes docs/FLEET.md's
// tables. FLEET is that file.
func TestFleet(t *testing.T) {
	file := os.Getenv("FLEET")
	if file == "" {
		t.Skip("measures for minutes: make fleet")
	}
	const mounts, interval = 20, 10 * time.Second
	h := nfsHost(t, mounts, 0, 2)
	values := 0
	measurements := make(map[string]int)
	fields := make(map[string]int)
	for _, p := range h.points {
		values += len(p.Fields)
		measurements[p.Name]++
		fields[p.Name] += len(p.Fields)
	}
	// Many series for a short time, and few for long: what a series costs, and
	// what a value.
	const hosts, short, few, long = 1000, 5, 20, 300
	wide := h.measure(t, hosts, short, interval)
	narrow := h.measure(t, few, long, interval)
	valueBytes := (float64(narrow.files) - float64(wide.files)*few/hosts) / (few * (long - short) * float64(values))
	hostBytes := (float64(wide.files) - hosts*short*float64(values)*valueBytes) / hosts

	perHost := document.Table{Header: []string{"measurement", "points in a gather (series in InfluxDB)", "values", "series in Prometheus"}}
	inPrometheus := 0
	for _, name := range slices.Sorted(keys(measurements)) {
		n := h.prometheusSeries(name)
		inPrometheus += n
		perHost.Add("`"+name+"`", fmt.Sprint(measurements[name]), fmt.Sprint(fields[name]), fmt.Sprint(n))
	}
	perHost.Add("all", fmt.Sprint(len(h.points)), fmt.Sprint(values), fmt.Sprint(inPrometheus))
	require.NoError(t, perHost.Write(file, "host"))

	measured := document.Table{Header: []string{"measured", ""}}
	measured.Add("1,000 hosts", fmt.Sprintf("%.0f series, %d points in %d gathers", wide.series, wide.points, short))
	measured.Add("line protocol", fmt.Sprintf("%.0f bytes per point", float64(wide.sent)/float64(wide.points)))
	perPoint := float64(values) / float64(len(h.points))
	measured.Add("written by one connection, series mostly new", fmt.Sprintf("%.0f points (%.0f values) per second", wide.speed, wide.speed*perPoint))
	measured.Add("of 20 hosts, series mostly known", fmt.Sprintf("%.0f points (%.0f values) per second", narrow.speed, narrow.speed*perPoint))
	measured.Add("memory of influxd with 1,000 hosts", fmt.Sprintf("%.0f MB", float64(wide.resident)/1e6))
	measured.Add("files, compacted", fmt.Sprintf("%.0f MB; and %.0f MB of 20 hosts in %d gathers", float64(wide.files)/1e6, float64(narrow.files)/1e6, long))
	measured.Add("so a value takes", fmt.Sprintf("%.2f bytes", valueBytes))
	measured.Add("and the names of a host's series, in each shard (a week by default)", fmt.Sprintf("%.0f kB", hostBytes/1e3))
	require.NoError(t, measured.Write(file, "measured"))

	reckoned := document.Table{Header: []string{"hosts, each with 20 NFS mounts, every 10 s", "points per second", "values per second", "on disk per week", "series in InfluxDB", "series in Prometheus"}}
	const week = 7 * 24 * time.Hour
	for _, n := range []int{1000, 3000, 10000} {
		reckoned.Add(fmt.Sprint(n), fmt.Sprint(n*len(h.points)/10), fmt.Sprint(n*values/10),
			fmt.Sprintf("%.0f GB", float64(n)*(hostBytes+float64(values)*valueBytes*float64(week/interval))/1e9), fmt.Sprint(n*len(h.points)), fmt.Sprint(n*inPrometheus))
	}
	require.NoError(t, reckoned.Write(file, "reckoned"))
}

// load is what it took to keep a fleet's points.
type load struct {
	points, sent, files, resident int64
	speed, series                 float64 // points per second
}

// measure writes the points of so many hosts and gathers into a fresh InfluxDB,
// and waits until it has put them in order.
func (h template) measure(t *testing.T, hosts, gathers int, interval time.Duration) load {
	db := stores.StartInflux(t, "INFLUXDB_DATA_CACHE_SNAPSHOT_WRITE_COLD_DURATION=5s", "INFLUXDB_DATA_COMPACT_FULL_WRITE_COLD_DURATION=5s")
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Now().Add(-2 * time.Hour).Truncate(interval)
	l := load{points: int64(hosts * gathers * len(h.points))}
	var took time.Duration
	var b bytes.Buffer
	send := func() {
		l.sent += int64(b.Len())
		began := time.Now()
		db.Write(t, &b)
		took += time.Since(began)
		b.Reset()
	}
	for gather := range gathers {
		for host := range hosts {
			h.write(&b, host, gather, start.Add(time.Duration(gather)*interval+time.Duration(host)*time.Millisecond), random)
			if b.Len() > 4<<20 {
				send()
			}
		}
	}
	send()
	l.speed = float64(l.points) / took.Seconds()
	// The files have settled when the log is empty and they have not changed for a while.
	var before int64
	for quiet := 0; quiet < 5; time.Sleep(3 * time.Second) {
		if l.files = diskUse(t, db.Dir); l.files == before && diskUse(t, filepath.Join(db.Dir, "wal")) == 0 {
			quiet++
		} else {
			quiet = 0
		}
		before = l.files
	}
	l.resident = residentBytes(t, db.PID)
	series := db.Query(t, "SHOW SERIES CARDINALITY")
	require.NotEmpty(t, series)
	l.series = anyNumber(series[0])
	t.Logf("%d hosts, %d gathers: %+v", hosts, gathers, l)
	return l
}

func anyNumber(row stores.Row) float64 {
	for _, value := range row.Points[0].Values {
		if number, isNumber := value.(float64); isNumber {
			return number
		}
	}
	return 0
}

// prometheusSeries counts those that the shipped configuration makes of a
// measurement's points.
func (h template) prometheusSeries(measurement string) int {
	n := 0
	for _, p := range h.points {
		if p.Name != measurement {
			continue
		}
		for _, field := range shown()[measurement] {
			carrier, isInfo := strings.CutPrefix(field, "info_")
			value, reported := p.Fields[carrier]
			number, err := strconv.ParseFloat(value, 64)
			zero := err == nil && number == 0
			switch {
			case !reported, isInfo && carrier == resultCode && zero, slices.Contains(rare[measurement], field) && zero:
			default:
				n++
			}
		}
	}
	return n
}

// diskUse is the size of a directory's data: files of points, and the log's. Those
// of the index of series are allocated in large pieces.
func diskUse(t *testing.T, dir string) int64 {
	var sum int64
	require.NoError(t, filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // compaction removes files
		}
		if ext := filepath.Ext(entry.Name()); ext != ".tsm" && ext != ".wal" {
			return nil
		}
		if info, err := entry.Info(); err == nil && !entry.IsDir() {
			sum += info.Size()
		}
		return nil
	}))
	return sum
}

func residentBytes(t *testing.T, pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, found)
	kilobytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	require.NoError(t, err)
	return kilobytes * 1024
}
