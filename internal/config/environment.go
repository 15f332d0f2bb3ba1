package config

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// Lookup finds an environment variable.
type Lookup func(name string) (value string, set bool)

// RequiredError says that a variable lacks the value that ${NAME:?message} demands.
type RequiredError struct {
	Line          int
	Name, Message string
}

func (e *RequiredError) Error() string {
	return fmt.Sprintf("the environment variable %s is required: %s", e.Name, cmp.Or(e.Message, "it has no value"))
}

// errUTF16 is what editors on Windows can make of a file.
var errUTF16 = errors.New("the file is UTF-16; save it as UTF-8")

// Expand prepares a text for the TOML parser as Telegraf does: it takes off a byte order
// mark and the comments, and replaces variables. Of these it knows all forms of Telegraf's:
//
//	$NAME ${NAME}               the value; unset, it stays as it is
//	${NAME:-word} ${NAME-word}  the word, where the variable is unset (or empty, with a colon)
//	${NAME:+word} ${NAME+word}  the word, where the variable is set (and not empty)
//	${NAME:?text} ${NAME?text}  an error, where the variable is unset (or empty)
//	$$                          a dollar
//
// Variables are replaced anywhere, as in Telegraf's mode that is not strict. One within a
// string stays in it, whatever its value holds, as in the strict mode. Words end with their
// line, and may hold variables.
func Expand(text string, lookup Lookup) (string, error) {
	if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
		return "", errUTF16
	}
	e := &expander{text: strings.TrimPrefix(text, "\ufeff"), lookup: lookup}
	err := e.run()
	return e.out.String(), err
}

// expander reads a TOML text from left to right.
type expander struct {
	text   string
	at     int    // in the text
	quote  string // of the string that at is in: one or three of them
	within bool   // the text is a word: unset variables are empty
	lookup Lookup
	out    strings.Builder
}

func (e *expander) take(n int) {
	n = min(n, len(e.text)-e.at)
	e.out.WriteString(e.text[e.at : e.at+n])
	e.at += n
}

func (e *expander) run() error {
	for e.at < len(e.text) {
		rest := e.text[e.at:]
		switch c := rest[0]; {
		case c == '$':
			if err := e.variable(); err != nil {
				if required, ok := errors.AsType[*RequiredError](err); ok {
					required.Line = 1 + strings.Count(e.text[:e.at], "\n")
				}
				return err
			}
		case e.quote == "" && c == '#' && !e.within:
			comment, _, _ := strings.Cut(rest, "\n")
			e.at += len(comment)
		case e.quote == "" && (c == '"' || c == '\''):
			e.quote = rest[:1]
			if triple := strings.Repeat(e.quote, 3); strings.HasPrefix(rest, triple) {
				e.quote = triple
			}
			e.take(len(e.quote))
		case e.quote == "":
			e.take(1)
		case c == '\\' && e.quote[0] == '"':
			e.take(2)
		case strings.HasPrefix(rest, e.quote):
			e.closeString()
		case c == '\n' && len(e.quote) == 1: // it was not closed
			e.quote = ""
			e.take(1)
		default:
			e.take(1)
		}
	}
	return nil
}

// closeString ends a string. One of several lines may end with two quotes of its own.
func (e *expander) closeString() {
	c, closing := e.quote[0], len(e.quote)
	e.quote = ""
	for closing > 1 && closing < 5 && e.at+closing < len(e.text) && e.text[e.at+closing] == c {
		closing++
	}
	e.take(closing)
}

// variable replaces what begins with the dollar at e.at.
func (e *expander) variable() error {
	rest := e.text[e.at+1:]
	if strings.HasPrefix(rest, "$") {
		e.out.WriteByte('$')
		e.at += 2
		return nil
	}
	inner, braced := strings.CutPrefix(rest, "{")
	name := variableName(inner)
	after := inner[len(name):]
	size := 1 + len(name) // of the whole
	switch {
	case name == "":
		e.take(1)
		return nil
	case braced && !strings.HasPrefix(after, "}"):
		return e.conditional(name, after)
	case braced:
		size += len("{}")
	}
	value, set := e.lookup(name)
	if !set && !e.within {
		e.take(size)
		return nil
	}
	e.at += size
	return e.write(value)
}

// conditional replaces ${NAME and what follows it: an operator, a word and a brace. What
// is none stays as it is.
func (e *expander) conditional(name, after string) error {
	operation, orEmpty := strings.CutPrefix(after, ":")
	if operation == "" || !strings.Contains("-+?", operation[:1]) {
		e.take(1)
		return nil
	}
	word, closed := untilBrace(operation[1:])
	if !closed {
		e.take(1)
		return nil
	}
	value, set := e.lookup(name)
	has := set && (value != "" || !orEmpty)
	inner := &expander{text: word, quote: e.quote, within: true, lookup: e.lookup}
	if err := inner.run(); err != nil {
		return err
	}
	switch operation[0] {
	case '?':
		if !has {
			return &RequiredError{Name: name, Message: inner.out.String()}
		}
	case '-':
		if !has {
			value = ""
			e.out.WriteString(inner.out.String())
		}
	case '+':
		value = ""
		if has {
			e.out.WriteString(inner.out.String())
		}
	}
	e.at += len("${") + len(name) + (len(after) - len(operation)) + 1 + len(word) + len("}")
	return e.write(value)
}

// write writes a variable's value so that it ends no string.
func (e *expander) write(value string) error {
	switch {
	case e.quote == "":
		e.out.WriteString(value)
	case e.quote[0] == '"':
		for _, r := range value {
			switch {
			case r == '"' || r == '\\':
				e.out.WriteByte('\\')
				e.out.WriteRune(r)
			case r < ' ' || r == 0x7f:
				fmt.Fprintf(&e.out, `\u%04x`, r)
			default:
				e.out.WriteRune(r)
			}
		}
	case strings.ContainsAny(value, "'\n"):
		return errors.New("a variable whose value has a quote or a line break can't stand in '…'; write \"…\"")
	default:
		e.out.WriteString(value)
	}
	return nil
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

// untilBrace returns the text before the closing brace of a word, which may hold
// variables in braces. A word ends with its line at the latest.
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

// expanded is [Expand] for a file, which errors name.
func expanded(file string, content []byte, lookup Lookup) ([]byte, error) {
	text, err := Expand(string(content), lookup)
	if required, ok := errors.AsType[*RequiredError](err); ok {
		return nil, fmt.Errorf("%s:%d: %w", file, required.Line, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return []byte(text), nil
}
