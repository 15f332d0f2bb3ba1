package execd

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/influxdata/telegraf"
)

var (
	errUnnamed  = errors.New("it has no name")
	errNoFields = errors.New("it has no fields that line protocol can carry")
)

// appendLine appends a metric in InfluxDB's line protocol, as Telegraf's serializer writes it,
// with the fields sorted, which it leaves sorted: people read the lines, too. Fields that the
// protocol can't carry are left out, and an error says so. Where that leaves nothing, or the
// metric has no name, nothing is appended.
func appendLine(text []byte, m telegraf.Metric) ([]byte, error) {
	if m.Name() == "" {
		return text, errUnnamed
	}
	before := len(text)
	text = appendEscaped(text, m.Name(), ", ")
	for _, tag := range m.TagList() {
		// A backslash at the end would escape what follows; a tag without key or value is none.
		key, value := strings.TrimRight(tag.Key, `\`), strings.TrimRight(tag.Value, `\`)
		if key != "" && value != "" {
			text = append(appendEscaped(append(text, ','), key, ",= "), '=')
			text = appendEscaped(text, value, ",= ")
		}
	}
	fields := m.FieldList()
	slices.SortFunc(fields, func(a, b *telegraf.Field) int { return cmp.Compare(a.Key, b.Key) })
	var err error
	separator := byte(' ')
	for _, field := range fields {
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
	return append(strconv.AppendInt(append(text, ' '), m.Time().UnixNano(), 10), '\n'), err
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
