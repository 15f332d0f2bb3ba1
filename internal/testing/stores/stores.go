// Package stores runs the databases that metrics go to, from the Debian packages
// that tools/stores unpacks: each as a process of the test's, on a port of
// loopback, with its files in a directory that goes with the test.
package stores

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// patience is for a database's start, on a machine that may be busy.
const patience = 3 * time.Minute

// Program is the path of one of influxd, prometheus and promtool. Without it the
// test is skipped.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := programs.Packaged(name)
	if err != nil {
		t.Skip(err)
	}
	return path
}

// Port is a port of loopback that is free now.
func Port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// run starts a server, and waits until it answers at the URL.
func run(t testing.TB, command *exec.Cmd, ready string) *os.Process {
	t.Helper()
	var log bytes.Buffer
	command.Stdout, command.Stderr = &log, &log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(command.Path), lastLines(log.String(), 30))
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if answer, err := http.Get(ready); err == nil {
			answer.Body.Close()
			if answer.StatusCode/100 == 2 {
				return command.Process
			}
		}
		select {
		case <-exited:
			t.Fatalf("%s has ended", command.Path)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not answer at %s", command.Path, ready)
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// A Row is one series or line of an answer: its labels or tags, and by column
// its points; the oldest comes first.
type Row struct {
	Labels map[string]string
	Points []Point
}

// A Point is what a series had at a time. Values are by column: of Prometheus
// the only one is "value". A string, float64, bool, or absent.
type Point struct {
	Time   time.Time
	Values map[string]any
}

// Influx is a running InfluxDB.
type Influx struct {
	URL string
	Dir string // of its files
	PID int
}

// Database is the name of the one it has.
const Database = "telegraf"

// StartInflux starts it with an empty database. Settings are further variables of
// its environment.
func StartInflux(t testing.TB, settings ...string) *Influx {
	t.Helper()
	program, port, rpc := Program(t, "influxd"), Port(t), Port(t)
	db := &Influx{URL: fmt.Sprintf("http://127.0.0.1:%d", port), Dir: t.TempDir()}
	command := exec.Command(program, "run")
	command.Env = append(append(os.Environ(), settings...),
		"INFLUXDB_REPORTING_DISABLED=true",
		fmt.Sprintf("INFLUXDB_BIND_ADDRESS=127.0.0.1:%d", rpc),
		fmt.Sprintf("INFLUXDB_HTTP_BIND_ADDRESS=127.0.0.1:%d", port),
		"INFLUXDB_HTTP_LOG_ENABLED=false",
		"INFLUXDB_MONITOR_STORE_ENABLED=false",
		"INFLUXDB_META_DIR="+db.Dir+"/meta", "INFLUXDB_DATA_DIR="+db.Dir+"/data", "INFLUXDB_DATA_WAL_DIR="+db.Dir+"/wal",
		"HOME="+db.Dir)
	db.PID = run(t, command, db.URL+"/ping").Pid
	db.Query(t, "CREATE DATABASE "+Database)
	return db
}

// Write writes line protocol, with timestamps in nanoseconds.
func (db *Influx) Write(t testing.TB, lines io.Reader) {
	t.Helper()
	answer, err := http.Post(db.URL+"/write?db="+Database, "text/plain", lines)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		said, _ := io.ReadAll(answer.Body)
		t.Fatalf("writing to InfluxDB: %s: %s", answer.Status, said)
	}
}

// Query runs InfluxQL.
func (db *Influx) Query(t testing.TB, query string) []Row {
	t.Helper()
	answer, err := http.PostForm(db.URL+"/query", url.Values{"db": {Database}, "q": {query}, "epoch": {"ns"}})
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var said struct {
		Error   string
		Results []struct {
			Error  string
			Series []struct {
				Name    string
				Tags    map[string]string
				Columns []string
				Values  [][]any
			}
		}
	}
	decoder := json.NewDecoder(answer.Body)
	decoder.UseNumber()
	if err := decoder.Decode(&said); err != nil {
		t.Fatalf("InfluxDB's answer to %s: %v", query, err)
	}
	if said.Error != "" {
		t.Fatalf("InfluxDB to %s: %s", query, said.Error)
	}
	var rows []Row
	for _, result := range said.Results {
		if result.Error != "" {
			t.Fatalf("InfluxDB to %s: %s", query, result.Error)
		}
		for _, series := range result.Series {
			row := Row{Labels: series.Tags}
			for _, values := range series.Values {
				p := Point{Values: make(map[string]any)}
				for i, value := range values {
					number, isNumber := value.(json.Number)
					switch {
					case series.Columns[i] == "time" && isNumber:
						ns, _ := number.Int64()
						p.Time = time.Unix(0, ns)
					case isNumber:
						p.Values[series.Columns[i]], _ = number.Float64()
					case value != nil:
						p.Values[series.Columns[i]] = value
					}
				}
				if len(p.Values) > 0 {
					row.Points = append(row.Points, p)
				}
			}
			if len(row.Points) > 0 {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// Prometheus is a running one.
type Prometheus struct{ URL string }

// StartPrometheus starts it. The configuration is that of prometheus.yml.
func StartPrometheus(t testing.TB, configuration string) *Prometheus {
	t.Helper()
	program, port, dir := Program(t, "prometheus"), Port(t), t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	db := &Prometheus{fmt.Sprintf("http://127.0.0.1:%d", port)}
	run(t, exec.Command(program, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port), "--log.level=warn"), db.URL+"/-/ready")
	return db
}

// Now runs an instant query.
func (db *Prometheus) Now(t testing.TB, expression string) []Row {
	t.Helper()
	return db.query(t, "/api/v1/query", url.Values{"query": {expression}})
}

// Over runs a query over the time until now.
func (db *Prometheus) Over(t testing.TB, expression string, last, step time.Duration) []Row {
	t.Helper()
	now := time.Now()
	seconds := func(at time.Time) string { return fmt.Sprintf("%.3f", float64(at.UnixMilli())/1000) }
	return db.query(t, "/api/v1/query_range", url.Values{"query": {expression},
		"start": {seconds(now.Add(-last))}, "end": {seconds(now)}, "step": {fmt.Sprint(step.Seconds())}})
}

// Type is that of a metric, as it was scraped: counter, gauge or unknown.
func (db *Prometheus) Type(t testing.TB, metric string) string {
	t.Helper()
	answer, err := http.Get(db.URL + "/api/v1/metadata?metric=" + metric)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var said struct {
		Data map[string][]struct{ Type string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
		t.Fatalf("Prometheus's metadata of %s: %v", metric, err)
	}
	if len(said.Data[metric]) == 0 {
		return ""
	}
	return said.Data[metric][0].Type
}

func (db *Prometheus) query(t testing.TB, path string, form url.Values) []Row {
	t.Helper()
	answer, err := http.PostForm(db.URL+path, form)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var said struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Value  sample
				Values []sample
			}
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&said); err != nil {
		t.Fatalf("Prometheus's answer to %s: %v", form.Get("query"), err)
	}
	if said.Error != "" {
		t.Fatalf("Prometheus to %s: %s", form.Get("query"), said.Error)
	}
	rows := make([]Row, 0, len(said.Data.Result))
	for _, result := range said.Data.Result {
		row := Row{Labels: result.Metric}
		if result.Value.text != "" {
			result.Values = append(result.Values, result.Value)
		}
		for _, s := range result.Values {
			var value float64
			if _, err := fmt.Sscan(s.text, &value); err != nil {
				t.Fatalf("Prometheus to %s: %q is no number", form.Get("query"), s.text)
			}
			row.Points = append(row.Points, Point{time.UnixMilli(int64(s.at * 1000)), map[string]any{"value": value}})
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(fmt.Sprint(a.Labels), fmt.Sprint(b.Labels)) })
	return rows
}

// sample is a pair of a time in seconds and a number in quotes.
type sample struct {
	at   float64
	text string
}

func (s *sample) UnmarshalJSON(content []byte) error {
	return json.Unmarshal(content, &[]any{&s.at, &s.text})
}
