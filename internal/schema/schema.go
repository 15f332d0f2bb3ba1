// Package schema describes what the inputs emit: one description serves the
// documentation, the tests that compare real output with it, and whoever must
// know of a field's type.
package schema

import (
	"fmt"
	"io"
	"strings"
)

// Describer is an input that says what it emits.
type Describer interface {
	Schema() []Measurement
}

// Measurement is a name of metrics with what they hold.
type Measurement struct {
	Name   string
	About  string // may be empty
	Tags   []Tag
	Fields []Fields
}

// Tag of a measurement.
type Tag struct {
	Name  string
	About string // may be empty
}

// Kind is a field's type.
type Kind string

// The kinds.
const (
	Integer Kind = "integer"
	Float   Kind = "float"
	String  Kind = "string"
	Boolean Kind = "boolean"
)

// Fields are some of one kind and meaning.
type Fields struct {
	Names []string
	Kind  Kind
	About string // unit or meaning, and when they are absent; may be empty
	// Counter says that the values only grow, until a restart.
	Counter bool
}

// T is a tag.
func T(name, about string) Tag { return Tag{Name: name, About: about} }

// Integers are fields of that kind.
func Integers(about string, names ...string) Fields {
	return Fields{Names: names, Kind: Integer, About: about}
}

// Counters are integers that only grow.
func Counters(about string, names ...string) Fields {
	return Fields{Names: names, Kind: Integer, About: about, Counter: true}
}

// Floats are fields of that kind.
func Floats(about string, names ...string) Fields {
	return Fields{Names: names, Kind: Float, About: about}
}

// Strings are fields of that kind.
func Strings(about string, names ...string) Fields {
	return Fields{Names: names, Kind: String, About: about}
}

// Booleans are fields of that kind.
func Booleans(about string, names ...string) Fields {
	return Fields{Names: names, Kind: Boolean, About: about}
}

// WriteList writes the measurements as a Markdown list, in the form of Telegraf's
// README files.
func WriteList(w io.Writer, all []Measurement) error {
	var b strings.Builder
	for _, m := range all {
		item(&b, 0, m.Name, m.About)
		if len(m.Tags) > 0 {
			item(&b, 1, "tags:", "")
		}
		for _, tag := range m.Tags {
			item(&b, 2, tag.Name, tag.About)
		}
		item(&b, 1, "fields:", "")
		for _, f := range m.Fields {
			about := string(f.Kind)
			if f.Counter {
				about += ", counter"
			}
			if f.About != "" {
				about += ", " + f.About
			}
			item(&b, 2, strings.Join(f.Names, ", "), about)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WritePrometheusTypes writes the table of [[outputs.prometheus_client]] that says
// which metrics are counters and which gauges.
func WritePrometheusTypes(w io.Writer, all []Measurement) error {
	var counters, gauges strings.Builder
	for _, m := range all {
		for _, f := range m.Fields {
			for _, name := range f.Names {
				switch {
				case f.Counter:
					fmt.Fprintf(&counters, "      %q,\n", m.Name+"_"+name)
				case f.Kind == Integer || f.Kind == Float:
					fmt.Fprintf(&gauges, "      %q,\n", m.Name+"_"+name)
				}
			}
		}
	}
	_, err := fmt.Fprintf(w, "  [outputs.prometheus_client.metric_types]\n    counter = [\n%s    ]\n    gauge = [\n%s    ]\n", &counters, &gauges)
	return err
}

// item writes an item of a list, in lines of at most 80 characters.
func item(b *strings.Builder, level int, name, about string) {
	const width = 80
	if about != "" {
		name += " (" + about + ")"
	}
	indent := strings.Repeat("  ", level)
	line := indent + "-"
	for word := range strings.FieldsSeq(name) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent + " "
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}
