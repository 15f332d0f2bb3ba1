package stores

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Flux runs scripts in Flux on points that it is given: a program of tools/flux.
type Flux struct {
	scripts *json.Encoder
	answers *json.Decoder
}

// StartFlux starts the program, until the test ends.
func StartFlux(t testing.TB, program string) *Flux {
	t.Helper()
	command := exec.Command(program)
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = command.Wait()
	})
	return &Flux{json.NewEncoder(in), json.NewDecoder(out)}
}

// Query runs the script, which reads from a bucket, on these points of the measurement, of
// the last 15 s, with windows of 1 s. Columns named in labels are the rows' labels.
func (f *Flux) Query(t testing.TB, script, measurement string, points []Row, labels []string) []Row {
	t.Helper()
	const bucket = "from(bucket: v.defaultBucket)"
	head, body, found := strings.Cut(script, bucket)
	if !found {
		t.Fatalf("the script does not begin with %s:\n%s", bucket, script)
	}
	if len(points) == 0 {
		return nil // csv.from takes no empty text
	}
	now := time.Now()
	when := func(at time.Time) string { return at.UTC().Format(time.RFC3339Nano) }
	whole := fmt.Sprintf("import \"csv\"\noption v = {timeRangeStart: %s, timeRangeStop: %s, windowPeriod: 1s, defaultBucket: %q}\n%scsv.from(csv: %s)%s",
		when(now.Add(-15*time.Second)), when(now), Database, head, strconv.Quote(annotated(measurement, points)), body)
	if err := f.scripts.Encode(whole); err != nil {
		t.Fatal(err)
	}
	var said struct{ CSV, Error string }
	if err := f.answers.Decode(&said); err != nil {
		t.Fatal(err)
	}
	if said.Error != "" {
		t.Fatalf("Flux to %s: %s", script, said.Error)
	}
	rows, err := parseAnnotated(said.CSV, labels)
	if err != nil {
		t.Fatalf("the answer to %s: %v\n%s", script, err, said.CSV)
	}
	return rows
}

// annotated is Flux's form of CSV: a table for each series and field.
// https://docs.influxdata.com/influxdb/v2/reference/syntax/annotated-csv/
func annotated(measurement string, points []Row) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	table := 0
	for _, series := range points {
		tags := slices.Sorted(maps.Keys(series.Labels))
		fields := make(map[string]any) // by name, with one of the values
		for _, p := range series.Points {
			maps.Copy(fields, p.Values)
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			lines := head(fluxType(fields[field]), tags)
			for _, p := range series.Points {
				value, there := p.Values[field]
				if !there {
					continue
				}
				line := []string{"", "", strconv.Itoa(table), p.Time.UTC().Format(time.RFC3339Nano), fmt.Sprint(value), field, measurement}
				for _, tag := range tags {
					line = append(line, series.Labels[tag])
				}
				lines = append(lines, line)
			}
			_ = w.WriteAll(lines) // to memory
			b.WriteString("\r\n")
			table++
		}
	}
	return b.String()
}

func fluxType(value any) string {
	switch value.(type) {
	case float64:
		return "double"
	case bool:
		return "boolean"
	}
	return "string"
}

// head begins a table of values of that type.
func head(valueType string, tags []string) [][]string {
	types := []string{"#datatype", "string", "long", "dateTime:RFC3339Nano", valueType, "string", "string"}
	groups := []string{"#group", "false", "false", "false", "false", "true", "true"}
	names := []string{"", "result", "table", "_time", "_value", "_field", "_measurement"}
	for _, tag := range tags {
		types, groups, names = append(types, "string"), append(groups, "true"), append(names, tag)
	}
	defaults := make([]string, len(names))
	defaults[0], defaults[1] = "#default", "_result"
	return [][]string{types, groups, defaults, names}
}

// parseAnnotated reads the tables of an answer: each line is a Row, of a table's lines those
// with the same labels are one, with the value of the column _value under "value".
func parseAnnotated(text string, labels []string) ([]Row, error) {
	var rows []Row
	byKey := make(map[string]int)
	var types, names []string
	r := csv.NewReader(strings.NewReader(text))
	r.FieldsPerRecord = -1
	lines, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		switch {
		case line[0] == "#datatype":
			types, names = line, nil
			continue
		case strings.HasPrefix(line[0], "#"):
			continue
		case line[0] == "error" || len(line) > 1 && line[1] == "error":
			return nil, fmt.Errorf("%v", line)
		case names == nil:
			names = line
			continue
		}
		row, point := Row{Labels: make(map[string]string)}, Point{Values: make(map[string]any)}
		key := ""
		for i, cell := range line {
			switch name := names[i]; {
			case i < 3 || cell == "" || i >= len(types):
			case name == "_time":
				if point.Time, err = time.Parse(time.RFC3339Nano, cell); err != nil {
					return nil, err
				}
			case slices.Contains(labels, name):
				row.Labels[name] = cell
				key += name + "=" + cell + "\x00"
			case types[i] == "double" || types[i] == "long":
				if point.Values[strings.TrimPrefix(name, "_")], err = strconv.ParseFloat(cell, 64); err != nil {
					return nil, err
				}
			case !strings.HasPrefix(name, "_"):
				point.Values[name] = cell
			}
		}
		if len(point.Values) == 0 {
			continue
		}
		if at, known := byKey[key]; known {
			rows[at].Points = append(rows[at].Points, point)
			continue
		}
		byKey[key] = len(rows)
		row.Points = []Point{point}
		rows = append(rows, row)
	}
	return rows, nil
}
