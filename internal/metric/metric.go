// Package metric has the metrics of a gather, and writes them in InfluxDB's line protocol.
package metric

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Metric is a name, tags, fields and a time.
type Metric struct {
	Name   string
	Tags   []Tag   // by key
	Fields []Field // by key, since people read the lines, too
	Time   time.Time
}

// Tag is one of a Metric.
type Tag struct{ Key, Value string }

// Field is one of a Metric. Its Value is an int64, a uint64, a float64, a bool or a string.
type Field struct {
	Key   string
	Value any
}

// New makes a metric, as [Metric.Set] does.
func New(name string, tags map[string]string, fields map[string]any, at time.Time) *Metric {
	m := new(Metric)
	m.Set(name, tags, fields, at)
	return m
}

// Set makes another metric of m, in the same memory. It copies the maps. Fields of other types
// become those that a Field has; those that can't are left out, as Telegraf leaves them out.
func (m *Metric) Set(name string, tags map[string]string, fields map[string]any, at time.Time) {
	m.Name, m.Time = name, at
	if !m.setTags(tags) {
		m.Tags = m.Tags[:0]
		for key, value := range tags {
			m.Tags = append(m.Tags, Tag{key, value})
		}
		slices.SortFunc(m.Tags, func(a, b Tag) int { return cmp.Compare(a.Key, b.Key) })
	}
	if !m.setFields(fields) {
		m.Fields = m.Fields[:0]
		for key, value := range fields {
			if value = converted(value); value != nil {
				m.Fields = append(m.Fields, Field{key, value})
			}
		}
		slices.SortFunc(m.Fields, func(a, b Field) int { return cmp.Compare(a.Key, b.Key) })
	}
}

// setTags reports whether the keys are those that m has, in order already: most metrics are like
// the one before.
func (m *Metric) setTags(tags map[string]string) (same bool) {
	same = len(tags) == len(m.Tags)
	for i := 0; same && i < len(m.Tags); i++ {
		m.Tags[i].Value, same = tags[m.Tags[i].Key]
	}
	return same
}

// setFields does so for fields.
func (m *Metric) setFields(fields map[string]any) (same bool) {
	same = len(fields) == len(m.Fields)
	for i := 0; same && i < len(m.Fields); i++ {
		m.Fields[i].Value = converted(fields[m.Fields[i].Key])
		same = m.Fields[i].Value != nil
	}
	return same
}

// Clone returns a copy.
func (m *Metric) Clone() *Metric {
	return &Metric{Name: m.Name, Tags: slices.Clone(m.Tags), Fields: slices.Clone(m.Fields), Time: m.Time}
}

// converted returns nil for what no field can have.
func converted(value any) any {
	switch v := value.(type) {
	case int64, uint64, float64, bool, string:
		return value
	case []byte:
		return string(v)
	}
	v := reflect.Indirect(reflect.ValueOf(value))
	switch {
	case v.CanInt():
		return v.Int()
	case v.CanUint():
		return v.Uint()
	case v.CanFloat():
		return v.Float()
	case v.Kind() == reflect.Bool:
		return v.Bool()
	case v.Kind() == reflect.String:
		return v.String()
	}
	return nil
}

// Tag returns the tag with that key, if there is one.
func (m *Metric) Tag(key string) (value string, found bool) {
	for _, tag := range m.Tags {
		if tag.Key == key {
			return tag.Value, true
		}
	}
	return "", false
}

// Field returns the value of the field with that key, or nil.
func (m *Metric) Field(key string) any {
	for _, field := range m.Fields {
		if field.Key == key {
			return field.Value
		}
	}
	return nil
}

// AddTag adds a tag that is not there.
func (m *Metric) AddTag(key, value string) {
	i, _ := slices.BinarySearchFunc(m.Tags, key, func(t Tag, key string) int { return cmp.Compare(t.Key, key) })
	m.Tags = slices.Insert(m.Tags, i, Tag{key, value})
}

var (
	errUnnamed  = errors.New("it has no name")
	errNoFields = errors.New("it has no fields that line protocol can carry")
)

// AppendLine appends the metric in line protocol, as Telegraf's serializer writes it. Fields that
// the protocol can't carry are left out, and an error says so. Where that leaves nothing, or the
// metric has no name, nothing is appended.
func (m *Metric) AppendLine(text []byte) ([]byte, error) {
	if m.Name == "" {
		return text, errUnnamed
	}
	before := len(text)
	text = appendEscaped(text, m.Name, ", ")
	for _, tag := range m.Tags {
		// A backslash at the end would escape what follows; a tag without key or value is none.
		key, value := strings.TrimRight(tag.Key, `\`), strings.TrimRight(tag.Value, `\`)
		if key != "" && value != "" {
			text = append(appendEscaped(append(text, ','), key, ",= "), '=')
			text = appendEscaped(text, value, ",= ")
		}
	}
	var err error
	separator := byte(' ')
	for _, field := range m.Fields {
		start := len(text)
		text = append(appendEscaped(append(text, separator), field.Key, ",= "), '=')
		var ok bool
		if text, ok = appendValue(text, field.Value); !ok || field.Key == "" {
			text = text[:start]
			err = errors.Join(err, fmt.Errorf("the field %q can't be %v", field.Key, field.Value))
			continue
		}
		separator = ','
	}
	if separator == ' ' {
		return text[:before], errors.Join(errNoFields, err)
	}
	return append(strconv.AppendInt(append(text, ' '), m.Time.UnixNano(), 10), '\n'), err
}

// appendValue appends a field's value, if line protocol can carry it. An unsigned one that is
// too large becomes the largest that InfluxDB 1 knows.
func appendValue(text []byte, value any) ([]byte, bool) {
	switch v := value.(type) {
	case int64:
		return append(strconv.AppendInt(text, v, 10), 'i'), true
	case uint64:
		return append(strconv.AppendUint(text, min(v, math.MaxInt64), 10), 'i'), true
	case float64:
		return strconv.AppendFloat(text, v, 'f', -1, 64), !math.IsNaN(v) && !math.IsInf(v, 0)
	case bool:
		return strconv.AppendBool(text, v), true
	case string:
		text = append(text, '"')
		for i := range len(v) {
			if v[i] == '"' || v[i] == '\\' {
				text = append(text, '\\')
			}
			text = append(text, v[i])
		}
		return append(text, '"'), true
	}
	return text, false
}

// appendEscaped appends a name, or a key or value of a tag, in which the special characters get
// a backslash, and those that end a line or look like a space their letter.
func appendEscaped(text []byte, s, special string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c > '=': // none of them is behind it in ASCII
			text = append(text, c)
		case c == '\t':
			text = append(text, `\t`...)
		case c == '\n':
			text = append(text, `\n`...)
		case c == '\f':
			text = append(text, `\f`...)
		case c == '\r':
			text = append(text, `\r`...)
		case strings.IndexByte(special, c) >= 0:
			text = append(text, '\\', c)
		default:
			text = append(text, c)
		}
	}
	return text
}
