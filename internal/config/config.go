// Package config reads the plugin's configuration file: TOML in the form of
// Telegraf's own, with any number of [[inputs.NAME]] tables.
//
// Nothing in a file is ever ignored. What is not known, not possible here or of
// the wrong type is an error with file, line and key, and all errors are
// reported at once.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Input is one [[inputs.NAME]] table: the plugin, and those of Telegraf's
// options for every input that take effect here.
type Input struct {
	Name   string // "mountstat"
	Line   int    // of the table's header; 0 where there is no file
	Plugin telegraf.Input
	Options
}

// Options are Telegraf's options for every input which are honored here.
type Options struct {
	Alias        string            `toml:"alias"`
	NameOverride string            `toml:"name_override"`
	NamePrefix   string            `toml:"name_prefix"`
	NameSuffix   string            `toml:"name_suffix"`
	Tags         map[string]string `toml:"tags"`
}

func honored(key string) bool {
	return slices.Contains([]string{"alias", "name_override", "name_prefix", "name_suffix", "tags"}, key)
}

// telegrafs reports whether Telegraf itself has to act on an input's option.
func telegrafs(key string) bool {
	return slices.Contains([]string{
		"interval", "precision", "collection_jitter", "collection_offset", "startup_error_behavior", "log_level",
		"metric_batch_size", "metric_buffer_limit", "time_source", "always_include_local_tags",
		"always_include_global_tags", "namepass", "namepass_separator", "namedrop", "namedrop_separator",
		"pass", "drop", "fieldpass", "fielddrop", "fieldinclude", "fieldexclude",
		"tagpass", "tagdrop", "taginclude", "tagexclude", "metricpass",
	}, key)
}

// Defaults returns one input of each kind with its default settings, in
// alphabetical order. These run where there is no file.
func Defaults(creators map[string]inputs.Creator) []Input {
	var all []Input
	for _, name := range slices.Sorted(maps.Keys(creators)) {
		all = append(all, Input{Name: name, Plugin: creators[name]()})
	}
	return all
}

// Parse reads the content of a file, which is only named in errors. creators makes the
// plugins by their names, lookup finds environment variables.
func Parse(file string, content []byte, lookup Lookup, creators map[string]inputs.Creator) ([]Input, error) {
	content, err := expanded(file, content, lookup)
	if err != nil {
		return nil, err
	}
	var anything map[string]any
	if err := toml.Unmarshal(content, &anything); err != nil {
		return nil, located(file, content, err)
	}
	sections, err := split(file, content, creators)
	if err == nil && len(sections) == 0 {
		return nil, fmt.Errorf("%s:1: no inputs; add one of %s", file, tableNames(creators))
	}
	var all []Input
	problems := []error{err}
	for _, s := range sections {
		input := Input{Name: s.name, Line: s.line, Plugin: creators[s.name]()}
		if err := toml.Unmarshal(s.document, &input.Options); err != nil {
			problems = append(problems, located(file, s.document, err))
			continue
		}
		if err := decode(s.document, input.Plugin); err != nil {
			problems = append(problems, unknownKeys(file, s, err)...)
		}
		all = append(all, input)
	}
	return all, errors.Join(problems...)
}

// decode decodes twice. Only Duration's own UnmarshalTOML gets numbers right,
// but the decoder which calls it takes timeout.x = 5 for timeout = 5.
func decode(document []byte, plugin telegraf.Input) error {
	strict := func() *toml.Decoder { return toml.NewDecoder(bytes.NewReader(document)).DisallowUnknownFields() }
	err := strict().Decode(plugin)
	if _, positioned := err.(*toml.DecodeError); positioned {
		return err
	}
	return strict().EnableUnmarshalerInterface().Decode(plugin)
}

// unknownKeys turns a decoder's error into the user's terms. Keys that belong
// to Options are none.
func unknownKeys(file string, s section, err error) []error {
	var missing *toml.StrictMissingError
	if !errors.As(err, &missing) {
		return []error{located(file, s.document, err)}
	}
	var problems []error
	for i := range missing.Errors {
		e := &missing.Errors[i]
		line, column := e.Position()
		key := strings.Join(e.Key(), ".")
		// A key in an inline table comes without the keys above it.
		atLine, atColumn := position(s.document, e.Key())
		option := line == atLine && column == atColumn
		switch {
		case option && honored(e.Key()[0]):
		case option && telegrafs(e.Key()[0]):
			problems = append(problems, fmt.Errorf("%s:%d: key %q of [[inputs.%s]] is for Telegraf to act on: put it into the [[inputs.execd]] table in telegraf.conf which runs vfsprobe",
				file, line, key, s.name))
		default:
			problems = append(problems, fmt.Errorf("%s:%d: [[inputs.%s]] has no key %q; vfsprobe -sample-config shows those it has", file, line, s.name, key))
		}
	}
	return problems
}

// located gives an error of the TOML library the file's name and the line.
func located(file string, document []byte, err error) error {
	var decode *toml.DecodeError
	if !errors.As(err, &decode) {
		return fmt.Errorf("%s: %w", file, err)
	}
	line, column := decode.Position()
	if line == 1 && column == 1 && len(decode.Key()) > 0 {
		// An array within an array has no position.
		line, _ = position(document, decode.Key())
	}
	message := strings.TrimPrefix(decode.Error(), "toml: ")
	if key := strings.Join(decode.Key(), "."); key != "" {
		return fmt.Errorf("%s:%d: key %q: %s", file, line, key, message)
	}
	return fmt.Errorf("%s:%d: %s", file, line, message)
}

// section is one [[inputs.NAME]] table as a document of its own, which has the
// lines of the whole file, so that positions in errors are those of the file.
type section struct {
	name     string
	line     int
	document []byte
}

func tableNames(creators map[string]inputs.Creator) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(creators)) {
		names = append(names, "[[inputs."+name+"]]")
	}
	return strings.Join(names, ", ")
}

// split finds the tables. TOML's own array of tables is no help here: the
// decoder would make plugins without their defaults.
func split(file string, content []byte, creators map[string]inputs.Creator) ([]section, error) {
	var sections []section
	var problems []error
	complain := func(line int, format string, arguments ...any) {
		problems = append(problems, fmt.Errorf("%s:%d: %s", file, line, fmt.Sprintf(format, arguments...)))
	}
	end := func(offset int) {
		if len(sections) > 0 {
			s := &sections[len(sections)-1]
			copy(s.document[offset:], blank(content[offset:]))
		}
	}
	inTable := false
	parser := unstable.Parser{}
	parser.Reset(content)
	for parser.NextExpression() {
		node := parser.Expression()
		if node.Kind != unstable.Table && node.Kind != unstable.ArrayTable && node.Kind != unstable.KeyValue {
			continue
		}
		keys, ranges := keyOf(node)
		start := int(ranges[0].Offset)
		line := 1 + bytes.Count(content[:start], []byte("\n"))
		lineStart := bytes.LastIndexByte(content[:start], '\n') + 1
		dotted := strings.Join(keys, ".")
		within := len(keys) > 2 && keys[0] == "inputs" && len(sections) > 0 && sections[len(sections)-1].name == keys[1]
		if node.Kind != unstable.KeyValue && !within {
			end(lineStart)
		}

		switch {
		case node.Kind == unstable.KeyValue:
			if !inTable {
				complain(line, "key %q is outside of every table; begin one with one of %s", dotted, tableNames(creators))
			}
			continue
		case keys[0] != "inputs":
			complain(line, "table %q does not belong here: this file holds %s; everything else is telegraf.conf's", dotted, tableNames(creators))
		case len(keys) == 1:
			complain(line, "table %q lacks the input's name: write one of %s", dotted, tableNames(creators))
		case creators[keys[1]] == nil:
			complain(line, "unknown input %q; there are %s", dotted, tableNames(creators))
		case len(keys) == 2 && node.Kind == unstable.Table:
			complain(line, "[%s] must be written [[%s]]", dotted, dotted)
		case len(keys) > 2 && !within:
			complain(line, "table %q stands without a [[inputs.%s]] before it", dotted, keys[1])
		case within:
			// A table within the input: its name loses the first two parts.
			s := &sections[len(sections)-1]
			copy(s.document[start:], blank(content[start:int(ranges[2].Offset)]))
		default:
			last := ranges[len(ranges)-1]
			bodyStart := int(last.Offset+last.Length) + bytes.IndexByte(content[last.Offset+last.Length:], ']') + len("]]")
			document := append(blank(content[:bodyStart]), content[bodyStart:]...)
			sections = append(sections, section{name: keys[1], line: line, document: document})
		}
		inTable = true
	}
	if err := parser.Error(); err != nil {
		problems = append(problems, located(file, content, err))
	}
	return sections, errors.Join(problems...)
}

func keyOf(node *unstable.Node) (keys []string, ranges []unstable.Range) {
	for it := node.Key(); it.Next(); {
		keys = append(keys, string(it.Node().Data))
		ranges = append(ranges, it.Node().Raw)
	}
	return keys, ranges
}

// position is where a key stands, of a table or in one. Line and column 1, if
// nowhere.
func position(document []byte, key []string) (line, column int) {
	var table []string
	parser := unstable.Parser{}
	parser.Reset(document)
	for parser.NextExpression() {
		node := parser.Expression()
		keys, ranges := keyOf(node)
		full := slices.Concat(table, keys)
		if node.Kind != unstable.KeyValue {
			table, full = keys, keys
		}
		if slices.Equal(full, key) {
			start := parser.Shape(ranges[0]).Start
			return start.Line, start.Column
		}
	}
	return 1, 1
}

// blank is the text with everything but line ends replaced by spaces.
func blank(text []byte) []byte {
	blanked := bytes.Repeat([]byte(" "), len(text))
	for i, c := range text {
		if c == '\n' {
			blanked[i] = c
		}
	}
	return blanked
}
