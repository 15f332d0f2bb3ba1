package dashboards

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Query asks for fields of one measurement.
type Query struct {
	From   string
	Fields []string // numbers; in a table its columns, else one
	Text   []string // strings, in tables
	By     []string // tags which tell the series, or rows, apart
	Fold   string   // how points of one series and interval become one: max, sum, mean or last; max if empty
	Rate   bool     // of a counter: growth per second
	Host   bool     // only of the hosts chosen in the dashboard
	When   *Range   // only while a field of the same point is in this range
	Count  *Count   // of the series, instead of the series themselves
}

// A Range is what a field's value must be in, ends included.
type Range struct {
	Field    string
	From, To float64 // To counts if it is not below From
}

// A Count puts together the series of a Query: each one's last value in an
// interval.
type Count struct {
	How   string   // sum or count
	Above *float64 // leaving out series that are not above this
	By    []string // tags that remain
}

// Names of everything a query needs an input to report.
type Names struct {
	Measurement  string
	Fields, Tags []string
}

// hostTag is Telegraf's.
const hostTag = "host"

// Names returns what the query asks for.
func (q *Query) Names() Names {
	n := Names{Measurement: q.From, Fields: slices.Concat(q.Fields, q.Text)}
	if q.When != nil {
		n.Fields = append(n.Fields, q.When.Field)
	}
	for _, tag := range q.By {
		if tag != hostTag {
			n.Tags = append(n.Tags, tag)
		}
	}
	return n
}

// Kind of answer a panel wants.
type kind int

const (
	overTime kind = iota
	table         // the last point of each series
	single        // one number
)

func (q *Query) fold() string {
	if q.Fold == "" {
		return "max"
	}
	return q.Fold
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func quoted(names []string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = strconv.Quote(name)
	}
	return strings.Join(all, ", ")
}

// influxQL is the query for InfluxDB 1.x. $timeFilter and $__interval are
// Grafana's.
func (q *Query) influxQL(k kind) string {
	where := "$timeFilter"
	if q.Host {
		where += ` AND "host" =~ /^$host$/`
	}
	if q.When != nil {
		where += fmt.Sprintf(` AND %q >= %s`, q.When.Field, number(q.When.From))
		if q.When.To >= q.When.From {
			where += fmt.Sprintf(` AND %q <= %s`, q.When.Field, number(q.When.To))
		}
	}
	from := fmt.Sprintf(`FROM %q WHERE %s`, q.From, where)
	by := quoted(q.By)
	if q.Count != nil {
		return q.influxCount(k, from, by)
	}
	if k == table {
		// Whole points, since fields which are no longer reported are no longer so.
		return fmt.Sprintf(`SELECT %s %s GROUP BY %s ORDER BY time DESC LIMIT 1`, quoted(slices.Concat(q.Fields, q.Text)), from, by)
	}
	value := fmt.Sprintf("%s(%q)", q.fold(), q.Fields[0])
	if q.Rate {
		value = fmt.Sprintf("non_negative_derivative(%s, 1s)", value)
	}
	if k == single {
		return fmt.Sprintf(`SELECT %s %s`, value, from)
	}
	return fmt.Sprintf(`SELECT %s %s GROUP BY time($__interval), %s fill(null)`, value, from, by)
}

func (q *Query) influxCount(k kind, from, by string) string {
	inner := fmt.Sprintf(`SELECT last(%q) AS "v" %s GROUP BY `, q.Fields[0], from)
	outer := fmt.Sprintf(`SELECT %s("v") AS %q FROM (`, q.Count.How, q.name())
	end := ")"
	if q.Count.Above != nil {
		end += fmt.Sprintf(` WHERE "v" > %s`, number(*q.Count.Above))
	}
	group := quoted(q.Count.By)
	if k == overTime {
		inner += "time($__interval), "
		group = strings.TrimSuffix("time($__interval), "+group, ", ")
		if q.Count.Above == nil {
			end += " WHERE $timeFilter"
		} else {
			end += " AND $timeFilter"
		}
	}
	if group != "" {
		end += " GROUP BY " + group
	}
	if k == overTime {
		end += " fill(null)"
	}
	return outer + inner + by + end
}

// name of the column in a table.
func (q *Query) name() string {
	if q.Count != nil && q.Count.How == "count" {
		return "hosts"
	}
	return q.Fields[0]
}

// metric is a field's name in Prometheus.
func (q *Query) metric(field string) string {
	metric := q.From + "_" + field
	if q.Host {
		metric += `{host=~"$host"}`
	}
	return metric
}

// promQL are the queries for Prometheus, one for each number and one for all
// strings.
func (q *Query) promQL(k kind) []string {
	if q.Count != nil {
		return []string{q.promCount(k)}
	}
	if k != table {
		return []string{q.promField(q.Fields[0])}
	}
	all := make([]string, 0, len(q.Fields)+1)
	for _, field := range q.Fields {
		all = append(all, q.while(q.promField(field), field))
	}
	if len(q.Text) > 0 {
		info := infos[q.From]
		text := q.From + "_info_" + info.Carrier
		if q.Host {
			text += `{host=~"$host"}`
		}
		labels := *q
		labels.By = slices.Concat(q.By, q.Text)
		all = append(all, q.while(labels.promFold(text), info.Carrier))
	}
	return all
}

// promField is a field by the query's tags. Of one that is rare the zeros are those
// of the series that are well.
func (q *Query) promField(field string) string {
	value := q.promFold(q.metric(field))
	if slices.Contains(rare[q.From], field) {
		return fmt.Sprintf("(%s or 0 * %s)", value, q.promFold(q.metric(resultCode)))
	}
	return value
}

// while leaves what is reported beside a value in the range.
func (q *Query) while(expression, field string) string {
	if q.When == nil {
		return expression
	}
	if field == q.When.Field {
		return expression + q.When.promQL()
	}
	return fmt.Sprintf("%s and on (%s) (%s%s)", expression, strings.Join(q.By, ", "), q.metric(q.When.Field), q.When.promQL())
}

func (r *Range) promQL() string {
	s := " >= " + number(r.From)
	if r.To >= r.From {
		s += " <= " + number(r.To)
	}
	return s
}

func (q *Query) promFold(expression string) string {
	if q.Rate {
		expression = "rate(" + expression + "[$__rate_interval])"
	}
	fold := q.fold()
	switch fold {
	case "mean":
		fold = "avg"
	case "last":
		fold = "max"
	}
	return fmt.Sprintf("%s by (%s) (%s)", fold, strings.Join(q.By, ", "), expression)
}

func (q *Query) promCount(k kind) string {
	expression := fmt.Sprintf("max by (%s) (%s)", strings.Join(q.By, ", "), q.while(q.metric(q.Fields[0]), q.Fields[0]))
	if q.Count.Above != nil {
		expression += " > " + number(*q.Count.Above)
	}
	how := q.Count.How
	if len(q.Count.By) > 0 {
		return fmt.Sprintf("%s by (%s) (%s)", how, strings.Join(q.Count.By, ", "), expression)
	}
	expression = fmt.Sprintf("%s(%s)", how, expression)
	if k == single {
		expression += " or vector(0)"
	}
	return expression
}
