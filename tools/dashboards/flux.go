package dashboards

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// flux is the query in Flux, the language of InfluxDB 2. v and ${host:regex} are
// Grafana's. https://docs.influxdata.com/flux/v0/
func (q *Query) flux(k kind) string {
	pipe := []string{"from(bucket: v.defaultBucket)", "range(start: v.timeRangeStart, stop: v.timeRangeStop)",
		fmt.Sprintf("filter(fn: (r) => r._measurement == %q)", q.From)}
	if q.Host {
		pipe = append(pipe, `filter(fn: (r) => r.host =~ /^${host:regex}$/)`)
	}
	pipe = append(pipe, q.fluxFields(k)...)
	switch {
	case q.Count != nil:
		pipe = append(pipe, q.fluxCount(k)...)
	case k == table:
		// Whole points, since fields which are no longer reported are no longer so.
		pipe = append(pipe, fluxGroup(q.By), `sort(columns: ["_time"], desc: true)`, "limit(n: 1)", "group()",
			fluxKeep(q.By, slices.Concat(q.Fields, q.Text)...))
	case k == single:
		pipe = append(pipe, "group()", q.fold()+"()", `keep(columns: ["_value"])`)
	default:
		pipe = append(pipe, fluxGroup(q.By), `sort(columns: ["_time"])`,
			fmt.Sprintf("aggregateWindow(every: v.windowPeriod, fn: %s, createEmpty: false)", q.fold()))
		if q.Rate {
			pipe = append(pipe, "derivative(unit: 1s, nonNegative: true)")
		}
		pipe = append(pipe, fluxKeep(q.By, "_time", "_value"))
	}
	return strings.Join(pipe, "\n  |> ")
}

// fluxFields leaves the fields that the query asks for: in a table as columns, else as
// values.
func (q *Query) fluxFields(k kind) []string {
	wanted := slices.Concat(q.Fields, q.Text)
	asColumns := k == table && q.Count == nil
	if q.When != nil && !slices.Contains(wanted, q.When.Field) {
		wanted, asColumns = append(wanted, q.When.Field), true
	}
	names := make([]string, len(wanted))
	for i, name := range wanted {
		names[i] = "r._field == " + strconv.Quote(name)
	}
	pipe := []string{fmt.Sprintf("filter(fn: (r) => %s)", strings.Join(names, " or "))}
	column := "_value"
	if asColumns {
		pipe = append(pipe, `pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")`)
		if q.When != nil {
			column = q.When.Field
		}
	}
	if q.When != nil {
		within := fmt.Sprintf("r.%s >= %s", column, number(q.When.From))
		if q.When.To >= q.When.From {
			within += fmt.Sprintf(" and r.%s <= %s", column, number(q.When.To))
		}
		pipe = append(pipe, fmt.Sprintf("filter(fn: (r) => %s)", within))
	}
	if asColumns && (k != table || q.Count != nil) {
		pipe = append(pipe, fmt.Sprintf(`rename(columns: {%s: "_value"})`, q.Fields[0]))
	}
	return pipe
}

func (q *Query) fluxCount(k kind) []string {
	pipe := []string{fluxGroup(q.By), `sort(columns: ["_time"])`}
	group := q.Count.By
	if k == overTime {
		pipe = append(pipe, "aggregateWindow(every: v.windowPeriod, fn: last, createEmpty: false)")
		group = slices.Concat(group, []string{"_time"})
	} else {
		pipe = append(pipe, "last()")
	}
	if q.Count.Above != nil {
		pipe = append(pipe, fmt.Sprintf("filter(fn: (r) => r._value > %s)", number(*q.Count.Above)))
	}
	pipe = append(pipe, fluxGroup(group), q.Count.How+"()")
	switch k {
	case overTime:
		pipe = append(pipe, fluxGroup(q.Count.By), `sort(columns: ["_time"])`)
	case table:
		pipe = append(pipe, "group()", fmt.Sprintf(`rename(columns: {_value: %q})`, q.name()))
	}
	return pipe
}

// fluxKeep leaves these columns: each other one of strings would be shown.
func fluxKeep(by []string, more ...string) string {
	return fmt.Sprintf("keep(columns: [%s])", quoted(slices.Concat(by, more)))
}

func fluxGroup(by []string) string {
	if len(by) == 0 {
		return "group()"
	}
	return fmt.Sprintf("group(columns: [%s])", quoted(by))
}
