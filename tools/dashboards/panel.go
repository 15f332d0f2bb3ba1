package dashboards

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// A Panel is one picture of a dashboard, whatever the database.
type Panel struct {
	Title string
	Says  string // what to read from it
	Query Query
	Form  Form
	Unit  string // one of Grafana's; of the numbers
	Steps []Step // colors by value
	// States are result codes, shown by name.
	States bool
	Recent string // a table shows this time at most; "2m" if empty
	Width  int    // of 24
	Height int
}

// Form of a panel.
type Form string

// Forms, named as Grafana's panels.
const (
	Stat          Form = "stat"
	Table         Form = "table"
	TimeSeries    Form = "timeseries"
	StateTimeline Form = "state-timeline"
	StatusHistory Form = "status-history"
	Heatmap       Form = "heatmap"
)

// A Step is the color of values from a number on.
type Step struct {
	From  float64
	Color string
}

func (p *Panel) kind() kind {
	switch p.Form {
	case Table:
		return table
	case Stat:
		return single
	}
	return overTime
}

// colors of the result codes.
var colors = [result.Count]string{
	result.OK: "green", result.Slow: "yellow", result.Denied: "purple", result.Missing: "orange", result.Stale: "dark-orange",
	result.Error: "red", result.Timeout: "dark-red", result.Stuck: "#5c0011", result.Unchecked: "text",
}

// states maps result codes to their names and colors.
func states() mapping {
	options := make(map[string]mapped, result.Count)
	for code := range result.Count {
		options[strconv.Itoa(code)] = mapped{result.Code(code).String(), colors[code], code}
	}
	return mapping{"value", options}
}

// store is a kind of database.
type store struct {
	name, source, title string
}

var (
	influxDB   = store{"influxql", "influxdb", "InfluxQL"}
	fluxDB     = store{"flux", "influxdb", "Flux"}
	prometheus = store{"promql", "prometheus", "PromQL"}
	databases  = []store{influxDB, fluxDB, prometheus}
)

func (s store) datasource() source { return source{s.source, "${datasource}"} }

func legend(q *Query, format func(tag string) string) string {
	by := q.By
	if q.Count != nil {
		by = q.Count.By
	}
	all := make([]string, len(by))
	for i, tag := range by {
		all[i] = format(tag)
	}
	return strings.Join(all, " ")
}

// targets are the panel's queries.
func (s store) targets(p *Panel) []target {
	k := p.kind()
	switch s {
	case fluxDB:
		return []target{{RefID: "A", Datasource: s.datasource(), Query: p.Query.flux(k)}}
	case influxDB:
		t := target{RefID: "A", Datasource: s.datasource(), RawQuery: true, Query: p.Query.influxQL(k), ResultFormat: "time_series"}
		if k == table {
			t.ResultFormat = "table"
		} else {
			t.Alias = legend(&p.Query, func(tag string) string { return "$tag_" + tag })
		}
		return []target{t}
	}
	expressions := p.Query.promQL(k)
	all := make([]target, len(expressions))
	for i, expression := range expressions {
		t := target{RefID: string(rune('A' + i)), Datasource: s.datasource(), Expr: expression}
		switch k {
		case table:
			t.Format, t.Instant = "table", true
		case single:
			t.Instant = true
		case overTime:
			t.Range = true
			t.LegendFormat = legend(&p.Query, func(tag string) string { return "{{" + tag + "}}" })
		}
		all[i] = t
	}
	return all
}

// transformations make one table of the answers.
func (s store) transformations(p *Panel) []transformation {
	if p.kind() != table || s == fluxDB {
		return nil // Flux returns the table as it is shown
	}
	hide := map[string]bool{"Time": true}
	names := make(map[string]string)
	if s == influxDB {
		return []transformation{{"organize", map[string]any{"excludeByName": hide}}}
	}
	columns := p.Query.Fields
	if p.Query.Count != nil {
		columns = []string{p.Query.name()}
	}
	for i, column := range columns {
		name := "Value #" + string(rune('A'+i))
		if len(columns) == 1 && len(p.Query.Text) == 0 {
			name = "Value"
		}
		names[name] = column
	}
	if len(p.Query.Text) > 0 {
		hide["Value #"+string(rune('A'+len(columns)))] = true
	}
	return []transformation{{"merge", map[string]any{}}, {"organize", map[string]any{"excludeByName": hide, "renameByName": names}}}
}

func (s store) config(p *Panel) fieldConfig {
	c := fieldConfig{Defaults: fieldDefaults{Unit: p.Unit, Custom: map[string]any{}}, Overrides: []override{}}
	if s == fluxDB && p.kind() == overTime { // else the name of the column would be there, too
		c.Defaults.DisplayName = legend(&p.Query, func(tag string) string { return "${__field.labels." + tag + "}" })
	}
	if len(p.Steps) > 0 {
		t := &thresholds{Mode: "absolute", Steps: []step{{Color: "green"}}}
		for _, s := range p.Steps {
			t.Steps = append(t.Steps, step{s.Color, &s.From})
		}
		c.Defaults.Thresholds = t
		c.Defaults.Color = map[string]any{"mode": "thresholds"}
	}
	if p.States {
		c.Defaults.Mappings = []mapping{states()}
	}
	switch p.Form {
	case TimeSeries:
		zero := 0.0
		c.Defaults.Min = &zero
		c.Defaults.Color = map[string]any{"mode": "palette-classic"}
		if len(p.Steps) > 0 {
			c.Defaults.Custom["thresholdsStyle"] = map[string]any{"mode": "line"}
		}
	case StateTimeline, StatusHistory:
		c.Defaults.Custom["fillOpacity"] = 80
	case Table:
		c.Overrides = p.columns()
	}
	return c
}

// columns colors a table: states by name, errnos as what they are, and links
// of a chain that answer.
func (p *Panel) columns() []override {
	background := property{"custom.cellOptions", map[string]any{"type": "color-background"}}
	all := []override{} // not null, which Grafana does not take
	for _, field := range p.Query.Text {
		if strings.HasSuffix(field, "errno") {
			broken := mapping{"regex", map[string]any{"pattern": ".+", "result": mapped{Color: "red"}}}
			all = append(all, override{matcher{"byName", field}, []property{{"mappings", []mapping{broken}}, background}})
		}
	}
	for _, field := range p.Query.Fields {
		switch {
		case field == "result_code":
			all = append(all, override{matcher{"byName", field}, []property{{"mappings", []mapping{states()}}, background}})
		case strings.HasSuffix(field, "_seconds"):
			all = append(all, override{matcher{"byName", field}, []property{{"unit", "s"}}})
		case strings.HasSuffix(field, "_bytes"):
			all = append(all, override{matcher{"byName", field}, []property{{"unit", "bytes"}}})
		}
	}
	return all
}

func (p *Panel) options() map[string]any {
	switch p.Form {
	case Stat:
		return map[string]any{"colorMode": "background", "reduceOptions": map[string]any{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}}
	case Table:
		return map[string]any{"showHeader": true, "cellHeight": "sm"}
	case TimeSeries:
		return map[string]any{"legend": map[string]any{"displayMode": "list", "placement": "bottom", "showLegend": true},
			"tooltip": map[string]any{"mode": "multi", "sort": "desc"}}
	case StateTimeline:
		return map[string]any{"mergeValues": true, "showValue": "auto", "rowHeight": 0.9}
	case StatusHistory:
		return map[string]any{"showValue": "auto", "rowHeight": 0.9}
	case Heatmap:
		return map[string]any{"calculate": true,
			"calculation": map[string]any{"yBuckets": map[string]any{"mode": "count", "scale": map[string]any{"type": "log", "log": 10}}},
			"color":       map[string]any{"mode": "scheme", "scheme": "Oranges", "steps": 64},
			"yAxis":       map[string]any{"unit": "s"}}
	}
	panic(fmt.Sprintf("dashboards: no options for %q", p.Form))
}
