// Package printable makes text of unknown origin fit for line protocol, logs and
// terminals.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Name is the name with the bytes that a terminal, a log or line protocol can't
// carry written as the kernel does in its mount table, as octal escapes: control
// characters, those that change the direction of writing or end a line in
// Unicode's eyes, the backslash, and what is not UTF-8. Different names stay
// different.
func Name(name string) string {
	return escape(name, `\%03o`, func(r rune) bool { return r == '\\' || unprintable(r) })
}

// Text is text that may hold escapes already: it is [Name] but for the
// backslash, unless it ends with one, which would escape what follows in line
// protocol.
func Text(text string) string {
	text = escape(text, `\%03o`, unprintable)
	if strings.HasSuffix(text, `\`) {
		text = text[:len(text)-1] + `\134`
	}
	return text
}

// Line is [Text] for logs: the escapes are Go's, \n, \t and \x1b.
func Line(text string) string {
	if !strings.ContainsFunc(text, unprintable) {
		return text
	}
	return escape(strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(text), `\x%02x`, unprintable)
}

// Terminal is [Text] for terminals: nothing is left that is no printable character,
// or a space other than the ASCII one. Backslashes stay.
func Terminal(text string) string {
	return escape(text, `\%03o`, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// escape writes each byte of the runes that must not be in the format.
func escape(text, format string, not func(rune) bool) string {
	if !strings.ContainsFunc(text, not) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if not(r) {
			for _, c := range []byte(text[:size]) {
				fmt.Fprintf(&b, format, c)
			}
		} else {
			b.WriteString(text[:size])
		}
		text = text[size:]
	}
	return b.String()
}

// unprintable holds for U+FFFD too, which stands for a byte that is not UTF-8.
func unprintable(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == '\x7f'
	}
	return r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
}
