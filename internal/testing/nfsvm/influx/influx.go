// Package influx reads InfluxDB line protocol as vfsprobe and Telegraf write
// it. Telegraf's own parser would bring its configuration packages along.
package influx

import (
	"errors"
	"strings"
)

// A Point is one line. Values of fields are as written, strings without their
// quotes.
type Point struct {
	Name         string
	Tags, Fields map[string]string
}

// Parse reads one line.
func Parse(line string) (Point, error) {
	p := Point{Tags: map[string]string{}, Fields: map[string]string{}}
	series, rest := cut(line, ' ', false)
	fields, _ := cut(rest, ' ', true)
	p.Name, series = cut(series, ',', false)
	p.Name = unescape(p.Name)
	for series != "" {
		var tag string
		tag, series = cut(series, ',', false)
		key, value := cut(tag, '=', false)
		p.Tags[unescape(key)] = unescape(value)
	}
	for fields != "" {
		var field string
		field, fields = cut(fields, ',', true)
		key, value := cut(field, '=', true)
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(value[1 : n-1])
		} else {
			value = strings.TrimSuffix(value, "i")
		}
		p.Fields[unescape(key)] = value
	}
	if p.Name == "" || p.Name[0] == '#' || len(p.Fields) == 0 {
		return Point{}, errors.New("not line protocol")
	}
	return p, nil
}

// cut cuts at the first separator that is neither escaped nor, in fields,
// within quotes.
func cut(s string, separator byte, fields bool) (before, after string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && (quoted || i+1 < len(s) && strings.IndexByte(",= ", s[i+1]) >= 0):
			i++ // elsewhere it stands for itself
		case s[i] == '"' && fields:
			quoted = !quoted
		case s[i] == separator && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func unescape(s string) string {
	return strings.NewReplacer(`\,`, ",", `\=`, "=", `\ `, " ").Replace(s)
}
