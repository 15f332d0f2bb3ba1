//go:build !race

package dashboards

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
)

func TestMain(m *testing.M) { namespace.MainOfHost(m) } // the doctor would take a PID namespace for a container

// patience is how long the first data of a phase may take, on a busy machine.
const patience = 3 * time.Minute

// recent is of when the points are that panels show.
const recent = 15 * time.Second

// live is a fleet: one host whose faults are made here, and some whose metrics
// were recorded from real NFS faults in virtual machines (make record).
type live struct {
	influx     *stores.Influx
	prometheus *stores.Prometheus
	flux       *stores.Flux // nil: it is not run
	lines      string       // a file with all that Telegraf has taken in
	replay     string       // a file that is taken in at each interval, when it is there
}

// thisHost is the name of the one whose faults are made here.
const thisHost = "web-1"

// startLive starts a real Telegraf with vfsprobe, which feeds both databases.
func startLive(t *testing.T, inputs, rules string) *live {
	t.Helper()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		return path
	}
	l, outputs, port := startDatabases(t)
	vfsprobe, err := programs.Vfsprobe()
	require.NoError(t, err)
	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	l.lines, l.replay = filepath.Join(dir, "lines"), filepath.Join(dir, "replay")
	main := fmt.Sprintf(`%[1]s
[[inputs.execd]]
  command = [%[2]q, "-config", %[3]q]
  signal = "STDIN"
  data_format = "influx"
[[inputs.execd]]
  command = ["sh", "-c", "while read -r _; do [ ! -f '%[4]s' ] || cat '%[4]s'; done"]
  signal = "STDIN"
  data_format = "influx"
[[outputs.file]]
  files = [%[5]q]
  data_format = "influx"
  [outputs.file.tagdrop]
    copy = ["prometheus"]
`, outputs, vfsprobe, file("vfsprobe.toml", inputs), l.replay, l.lines)
	shipped, err := os.ReadFile(filepath.Join(programs.Repository(), "dashboards/prometheus/telegraf-prometheus.conf"))
	require.NoError(t, err)
	l.runTelegraf(t, exec.Command(telegraf, "--config", file("telegraf.conf", main), "--config", file("prometheus.conf", listening(t, string(shipped), port))))
	l.startPrometheus(t, file("rules.yml", rules), port)
	return l
}

// startDatabases starts InfluxDB, and returns the part of Telegraf's configuration
// that makes it write there each second, and the port at which Prometheus will
// look for Telegraf.
func startDatabases(t *testing.T) (l *live, outputs string, port int) {
	t.Helper()
	stores.Program(t, "prometheus") // skips early
	l = &live{influx: stores.StartInflux(t), flux: runnableFlux(t)}
	return l, fmt.Sprintf(`[agent]
  interval = "1s"
  flush_interval = "1s"
  hostname = %q
[[outputs.influxdb]]
  urls = [%q]
  database = %q
  skip_database_creation = true
  [outputs.influxdb.tagdrop]
    copy = ["prometheus"]
`, thisHost, l.influx.URL, stores.Database), stores.Port(t)
}

// listening is the shipped part of Telegraf's configuration with the port, for an
// interval of 1 s.
func listening(t *testing.T, shipped string, port int) string {
	t.Helper()
	require.Contains(t, shipped, `":9273"`)
	shipped = strings.Replace(shipped, `":9273"`, fmt.Sprintf(`"127.0.0.1:%d"`, port), 1)
	return strings.Replace(shipped, `"30s"`, `"5s"`, 1)
}

// runTelegraf runs it until the test ends.
func (l *live) runTelegraf(t *testing.T, agent *exec.Cmd) {
	t.Helper()
	var log bytes.Buffer
	agent.Stderr = &log
	if agent.SysProcAttr == nil {
		agent.SysProcAttr = &syscall.SysProcAttr{}
	}
	agent.SysProcAttr.Pdeathsig = syscall.SIGTERM
	require.NoError(t, agent.Start())
	t.Cleanup(func() {
		_ = agent.Process.Signal(syscall.SIGTERM)
		_ = agent.Wait()
		if t.Failed() {
			t.Logf("Telegraf said:\n%s", log.String())
		}
	})
}

// runnableFlux returns the program that runs scripts in Flux, which takes minutes to build,
// if the environment says so: CI's long mode.
func runnableFlux(t *testing.T) *stores.Flux {
	if os.Getenv("VFSPROBE_FLUX") == "" {
		return nil
	}
	program, err := programs.Flux()
	require.NoError(t, err)
	return stores.StartFlux(t, program)
}

// databases are those that can be asked.
func (l *live) databases() []store {
	return slices.DeleteFunc(slices.Clone(databases), func(s store) bool { return s == fluxDB && l.flux == nil })
}

func (l *live) startPrometheus(t *testing.T, rules string, port int) {
	l.prometheus = stores.StartPrometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- job_name: telegraf
  honor_labels: true
  static_configs: [{targets: ["127.0.0.1:%d"]}]
`, rules, port))
}

// play makes the lines what the other hosts report from now on.
func (l *live) play(t *testing.T, lines string) {
	require.NoError(t, os.WriteFile(l.replay+".new", []byte(lines), 0o644))
	require.NoError(t, os.Rename(l.replay+".new", l.replay))
}

// recorded returns the lines of a scenario as those of a host.
func recorded(t *testing.T, scenario, host string) string {
	content, err := os.ReadFile(filepath.Join("testdata/nfs", scenario+".lp"))
	require.NoError(t, err)
	name := regexp.MustCompile(`(?m)^([a-z_]+)`)
	when := regexp.MustCompile(`(?m) [0-9]+$`)
	return when.ReplaceAllString(name.ReplaceAllString(string(content), "$1,host="+host), "")
}

// An answer is what a panel would show: a table's lines, or series, with the
// last value in "value".
type answer []map[string]any

func (a answer) String() string {
	var b strings.Builder
	for _, row := range a {
		fmt.Fprintln(&b, row)
	}
	return b.String()
}

// where returns the rows with these values, which are compared as text.
func (a answer) where(pairs ...string) answer {
	var found answer
	for _, row := range a {
		fits := true
		for i := 0; i < len(pairs); i += 2 {
			fits = fits && fmt.Sprint(row[pairs[i]]) == pairs[i+1]
		}
		if fits {
			found = append(found, row)
		}
	}
	return found
}

// ask runs a panel's queries as Grafana would.
func (l *live) ask(t *testing.T, s store, p *Panel, host string) answer {
	t.Helper()
	within := fmt.Sprintf("time > now() - %.0fs", recent.Seconds())
	replace := strings.NewReplacer("$timeFilter", within, "$__interval", "1s", "$host", host, "${host:regex}", "("+host+")", "$__rate_interval", "5s")
	rows := make(map[string]map[string]any)
	row := func(labels map[string]string, columns ...string) map[string]any {
		key := ""
		own := make(map[string]any)
		for name, value := range labels {
			if value != "" {
				own[name] = value
			}
		}
		for _, column := range columns {
			key += labels[column] + "\x00"
		}
		if rows[key] == nil {
			rows[key] = own
		}
		for name, value := range own {
			rows[key][name] = value
		}
		return rows[key]
	}
	by := p.Query.By
	if p.Query.Count != nil {
		by = p.Query.Count.By
	}
	for i, target := range s.targets(p) {
		var got []stores.Row
		switch {
		case s == influxDB:
			got = l.influx.Query(t, replace.Replace(target.Query))
		case s == fluxDB:
			stored := l.influx.Query(t, fmt.Sprintf("SELECT %s FROM %q WHERE %s GROUP BY *", quoted(p.Query.Names().Fields), p.Query.From, within))
			got = l.flux.Query(t, replace.Replace(target.Query), p.Query.From, stored, by)
		case target.Range:
			got = l.prometheus.Over(t, replace.Replace(target.Expr), recent, time.Second)
		default:
			got = l.prometheus.Now(t, replace.Replace(target.Expr))
		}
		for _, series := range got {
			// Like the transformation "merge": rows with equal labels are one.
			line := row(series.Labels, by...)
			last := series.Points[len(series.Points)-1].Values
			if p.kind() == overTime {
				line["points"] = len(series.Points)
			}
			for name, value := range last {
				switch {
				case p.kind() != table:
					name = "value"
				case s == influxDB || s == fluxDB:
				case i < len(p.Query.Fields) && p.Query.Count == nil:
					name = p.Query.Fields[i]
				case p.Query.Count != nil:
					name = p.Query.name()
				default:
					continue // of an info metric only the labels count
				}
				line[name] = value
			}
		}
	}
	all := make(answer, 0, len(rows))
	for _, line := range rows {
		all = append(all, line)
	}
	slices.SortFunc(all, func(a, b map[string]any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return all
}

// demand is what a panel must show while the faults are there; and when nothing
// is wrong, if it must be something.
type demand struct {
	host    string // chosen in the dashboard; this one if empty
	faulty  func(t assert.TestingT, got answer)
	healthy func(t assert.TestingT, got answer)
}

func empty(t assert.TestingT, got answer) { assert.Empty(t, got, "%v", got) }

// equal demands one number.
func equal(want float64) func(assert.TestingT, answer) {
	return func(t assert.TestingT, got answer) {
		if want == 0 && len(got) == 0 { // InfluxQL's way to say so
			return
		}
		if assert.Len(t, got, 1) {
			assert.Equal(t, want, got[0]["value"])
		}
	}
}

// atLeast demands one number.
func atLeast(want float64) func(assert.TestingT, answer) {
	return func(t assert.TestingT, got answer) {
		if assert.Len(t, got, 1) {
			assert.GreaterOrEqual(t, got[0]["value"], want)
		}
	}
}

// has demands exactly one row with these values.
func has(pairs ...string) func(assert.TestingT, answer) {
	return func(t assert.TestingT, got answer) {
		assert.Len(t, got.where(pairs...), 1, "%v in\n%v", pairs, got)
	}
}

func all(demands ...func(assert.TestingT, answer)) func(assert.TestingT, answer) {
	return func(t assert.TestingT, got answer) {
		for _, d := range demands {
			d(t, got)
		}
	}
}

// number64 demands a value in the range, in the one row with these values.
func number64(from, to float64, column string, pairs ...string) func(assert.TestingT, answer) {
	return func(t assert.TestingT, got answer) {
		if rows := got.where(pairs...); assert.Len(t, rows, 1, "%v in\n%v", pairs, got) {
			value, isNumber := rows[0][column].(float64)
			assert.True(t, isNumber && value >= from && value <= to, "%s of %v: %v", column, pairs, rows[0][column])
		}
	}
}
