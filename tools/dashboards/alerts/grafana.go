package alerts

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// A GrafanaRule is one rule that Grafana evaluates on InfluxDB.
type GrafanaRule struct {
	Alert   *Alert
	Title   string
	Cause   result.Cause // of alerts on faults
	Query   string       // InfluxQL, with Grafana's $timeFilter
	Above   float64
	For     time.Duration
	Seconds int // how far back the query looks
}

// Grafana returns the rules.
func Grafana() []GrafanaRule {
	var rules []GrafanaRule
	for _, a := range All() {
		// What is found stays in the query's time for that long: one interval
		// with a fault must not be enough.
		const back = time.Minute
		rule := GrafanaRule{Alert: &a, Title: a.Name, Query: a.InfluxQL, Above: a.Above, For: max(a.For, 2*back), Seconds: int(back.Seconds())}
		if a.Faults == nil {
			rules = append(rules, rule)
			continue
		}
		for _, c := range a.Faults.Causes {
			one := rule
			one.Title, one.Cause, one.Query = a.Name+": "+string(c), c, a.Faults.influxQL(c)
			rules = append(rules, one)
		}
	}
	return rules
}

// GrafanaFile is the file that provisions them.
func GrafanaFile() ([]byte, error) {
	var b strings.Builder
	b.WriteString(`# Alerts that Grafana evaluates on InfluxDB. Made by "make dashboards". Put it into
# /etc/grafana/provisioning/alerting; "influxdb" is the UID of the data source.
apiVersion: 1
groups:
- orgId: 1
  name: vfsprobe
  folder: vfsprobe
  interval: 30s
  rules:
`)
	for _, r := range Grafana() {
		a := r.Alert
		id := fnv.New64a()
		id.Write([]byte(r.Title))
		fmt.Fprintf(&b, "  - uid: vfsprobe-%x\n    title: %q\n    condition: C\n    data:\n", id.Sum64(), r.Title)
		for _, q := range r.data() {
			model, err := json.Marshal(q.Model)
			if err != nil {
				return nil, fmt.Errorf("making the alert %s: %w", r.Title, err)
			}
			text := strings.NewReplacer(`\u003e`, ">", `\u003c`, "<", `\u0026`, "&").Replace(string(model))
			fmt.Fprintf(&b, "    - refId: %s\n      datasourceUid: %s\n      relativeTimeRange: {from: %d, to: 0}\n      model: %s\n", q.RefID, q.Source, r.Seconds, text)
		}
		fmt.Fprintf(&b, "    noDataState: OK\n    execErrState: Error\n    for: %s\n    labels: {severity: %s}\n    annotations:\n", duration(r.For), a.severity())
		// Grafana's $value is a text of all values; a number is one of $values.
		block(&b, 6, "summary", strings.NewReplacer("$value ", "$values.B.Value ", "| humanizeDuration", "| humanizeDuration").Replace(a.Summary))
		cause, evidence, command := a.Cause, "the query's value: {{ $values.B.Value }}", a.Prove+"\n"+a.Fix
		if c := r.Cause; c != "" {
			cause, command = string(c)+": "+c.Meaning(), a.Faults.command(c)
			evidence = fmt.Sprintf("{{ $values.B.Value }} mounts with %s = %s", a.Faults.Label, c)
		}
		block(&b, 6, "cause", cause)
		block(&b, 6, "evidence", evidence)
		block(&b, 6, "command", command)
		fmt.Fprintf(&b, "      dashboard: vfsprobe-%s-influxql\n", a.Board)
		fmt.Fprintf(&b, "      runbook_url: %s%s.md\n", runbooks, a.Name)
	}
	return []byte(b.String()), nil
}

type data struct {
	RefID, Source string
	Model         any
}

// data is the chain from the query by its last value to the threshold.
func (r *GrafanaRule) data() []data {
	return []data{
		{"A", "influxdb", map[string]any{"refId": "A", "rawQuery": true, "query": r.Query, "resultFormat": "time_series", "intervalMs": 10000, "maxDataPoints": 100}},
		{"B", "__expr__", map[string]any{"refId": "B", "type": "reduce", "expression": "A", "reducer": "last", "settings": map[string]any{"mode": "dropNN"}}},
		{"C", "__expr__", map[string]any{"refId": "C", "type": "threshold", "expression": "B",
			"conditions": []any{map[string]any{"evaluator": map[string]any{"type": "gt", "params": []float64{r.Above}}}}}},
	}
}
