package config

import "strings"

// Expand is what [Parse] does to a file first, for files of Telegraf's own: a byte order mark
// is taken off, and variables are expanded.
func Expand(text string, lookup func(string) (string, bool)) string {
	return expand(strings.TrimPrefix(text, "\ufeff"), lookup)
}

// expand replaces ${NAME} by the variable's value, and ${NAME:-default} by the
// default where the variable is unset or empty, as Telegraf does in its own
// configuration. As there, ${NAME} of an unset variable stays as it is; so
// does every other use of $.
func expand(text string, lookup func(string) (string, bool)) string {
	var expanded strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		expanded.WriteString(before)
		if !found {
			return expanded.String()
		}
		text = rest
		name := variableName(rest)
		value, set := lookup(name)
		switch after := rest[len(name):]; {
		case name == "":
			expanded.WriteString("${")
		case strings.HasPrefix(after, "}") && set:
			expanded.WriteString(value)
			text = after[1:]
		case strings.HasPrefix(after, ":-"):
			fallback, end := untilBrace(after[2:])
			if !end {
				expanded.WriteString("${")
				continue
			}
			if value == "" {
				value = expand(fallback, lookup)
			}
			expanded.WriteString(value)
			text = after[2+len(fallback)+1:]
		default:
			expanded.WriteString("${")
		}
	}
}

func variableName(text string) string {
	for i, c := range []byte(text) {
		letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return text[:i]
		}
	}
	return text
}

// untilBrace returns the text before the closing brace of a default, which may
// hold further variables. A default ends with its line at the latest.
func untilBrace(text string) (string, bool) {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\n':
			return "", false
		case strings.HasPrefix(text[i:], "${"):
			depth++
		case text[i] == '}' && depth > 0:
			depth--
		case text[i] == '}':
			return text[:i], true
		}
	}
	return "", false
}
