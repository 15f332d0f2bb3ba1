// Package units knows which mounts systemd is to make at boot by units of its own, beside
// those it makes of fstab: systemd.unit(5), systemd.mount(5), systemd.automount(5).
package units

import (
	"fmt"
	"path"
	"strings"
)

// unit is what matters here of a unit's file and of its drop-ins, which change it in turn.
type unit struct {
	what, where, fstype, options string
	conditions, asserts          []condition
}

// apply reads a unit file or a drop-in. Lines that make no sense are left out, as by
// systemd.
func (u *unit) apply(content []byte) {
	section := ""
	for line := range logicalLines(string(content)) {
		if name, found := strings.CutPrefix(line, "["); found {
			section, _, _ = strings.Cut(name, "]")
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if found {
			u.set(section, strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
}

// set makes one assignment. An empty value is as if there had been none before.
func (u *unit) set(section, key, value string) {
	switch {
	case section == "Unit" && strings.HasPrefix(key, "Condition"):
		u.conditions = addCondition(u.conditions, strings.TrimPrefix(key, "Condition"), value)
	case section == "Unit" && strings.HasPrefix(key, "Assert"):
		u.asserts = addCondition(u.asserts, strings.TrimPrefix(key, "Assert"), value)
	case section == "Mount" && key == "What":
		u.what = expand(value)
	case (section == "Mount" || section == "Automount") && key == "Where":
		u.where = expand(value)
	case section == "Mount" && key == "Type":
		u.fstype = expand(value)
	case section == "Mount" && key == "Options":
		u.options = expand(value)
	}
}

// expand replaces the one specifier that needs no knowledge of the host.
func expand(value string) string { return strings.ReplaceAll(value, "%%", "%") }

// starts reports whether the unit's conditions let systemd start it.
func (u *unit) starts(exists map[string]bool) bool {
	return met(u.conditions, exists) && met(u.asserts, exists)
}

// fits reports whether systemd takes the unit for one of the mount point, which its name
// tells. With a specifier in it, it is taken for right.
func (u *unit) fits(point string) bool {
	return u.where == "" || strings.Contains(u.where, "%") || path.Clean(u.where) == point
}

// logicalLines are the lines without blanks around them, comments and empty ones left out.
// A backslash at the end joins a line and the next, but for comments between them, by a
// blank.
func logicalLines(content string) func(func(string) bool) {
	return func(yield func(string) bool) {
		before := ""
		for line := range strings.Lines(strings.TrimPrefix(content, "\ufeff")) {
			line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t")
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			if backslashes := len(line) - len(strings.TrimRight(line, `\`)); backslashes%2 == 1 {
				before += line[:len(line)-1] + " "
				continue
			}
			if before = strings.TrimSpace(before + line); before != "" && !yield(before) {
				return
			}
			before = ""
		}
		if before = strings.TrimSpace(before); before != "" {
			yield(before)
		}
	}
}

// nameOf returns the name of the mount unit for a clean absolute path, as systemd-escape(1)
// makes it.
func nameOf(point string) string {
	point = strings.Trim(point, "/")
	if point == "" {
		return "-" + mountSuffix
	}
	var b strings.Builder
	for i := range len(point) {
		switch c := point[i]; {
		case c == '/':
			b.WriteByte('-')
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == ':', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + mountSuffix
}

// pointOf returns the mount point that the name of a mount unit without its suffix stands
// for, and nothing for one that systemd does not make.
func pointOf(stem string) string {
	var b strings.Builder
	b.WriteByte('/')
	for rest := stem; rest != "" && stem != "-"; rest = rest[1:] {
		c := rest[0]
		switch {
		case c == '-':
			c = '/'
		case strings.HasPrefix(rest, `\x`) && len(rest) > 3:
			high, low := strings.IndexByte(hexDigits, rest[2]), strings.IndexByte(hexDigits, rest[3])
			if high < 0 || low < 0 {
				return ""
			}
			c, rest = byte(high<<4|low), rest[3:]
		}
		b.WriteByte(c)
	}
	point := b.String()
	if nameOf(point) != stem+mountSuffix || path.Clean(point) != point {
		return ""
	}
	return point
}

const hexDigits = "0123456789abcdef"
