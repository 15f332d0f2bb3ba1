package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, set := variables[name]
		return value, set
	}
}

func TestExpand(t *testing.T) {
	lookup := environment(map[string]string{
		"SET": "value", "EMPTY": "", "A_1": "digits", "_x9": "underscore", "lower": "case", "DOLLAR": "${SET}", "LINES": "a\nb",
	})
	for _, c := range []struct{ name, text, want string }{
		{"no variable", "timeout = 5", "timeout = 5"},
		{"empty text", "", ""},
		{"set", "a ${SET} b", "a value b"},
		{"empty", "a ${EMPTY} b", "a  b"},
		{"unset stays", "a ${UNSET} b", "a ${UNSET} b"},
		{"adjacent", "${SET}${SET}", "valuevalue"},
		{"twice on many lines", "${SET}\n${UNSET}\n${SET}\n", "value\n${UNSET}\nvalue\n"},
		{"digits in the name", "${A_1}", "digits"},
		{"underscore first", "${_x9}", "underscore"},
		{"lower case", "${lower}", "case"},
		{"names are case-sensitive", "${LOWER}", "${LOWER}"},
		{"the value is not expanded again", "${DOLLAR}", "${SET}"},
		{"a value of several lines", "${LINES}", "a\nb"},

		{"default of a set variable", "${SET:-other}", "value"},
		{"default of an empty variable", "${EMPTY:-other}", "other"},
		{"default of an unset variable", "${UNSET:-other}", "other"},
		{"empty default", "<${UNSET:-}>", "<>"},
		{"default with spaces and colons", "${UNSET:-a : b:-c}", "a : b:-c"},
		{"default that is a variable", "${UNSET:-${SET}}", "value"},
		{"default within a default", "${UNSET:-${EMPTY:-${ALSO_UNSET:-deep}}}", "deep"},
		{"default around a variable", "${UNSET:-<${SET}>}", "<value>"},
		{"default that is an unset variable", "${UNSET:-${ALSO_UNSET}}", "${ALSO_UNSET}"},
		{"default with a lone dollar", "${UNSET:-$5}", "$5"},
		{"text after a default", "${UNSET:-a}}", "a}"},

		{"no closing brace", "${SET", "${SET"},
		{"no closing brace before text", "${SET and more}", "${SET and more}"},
		{"no closing brace of a default", "${UNSET:-a", "${UNSET:-a"},
		{"no closing brace of an inner default", "${UNSET:-${SET}", "${UNSET:-value"},
		{"a default ends with its line", "${UNSET:-a\n}", "${UNSET:-a\n}"},
		{"a variable after an open brace", "${ ${SET}", "${ value"},
		{"a variable in a name", "${A${SET}}", "${Avalue}"},

		{"dollar without braces", "$HOME $SET", "$HOME $SET"},
		{"two dollars", "$$ $${SET}", "$$ $value"},
		{"dollar at the end", "a$", "a$"},
		{"regular expression", `^foo$|^[a-z]{2}$`, `^foo$|^[a-z]{2}$`},
		{"group of a regular expression", "${1}-${2}", "${1}-${2}"},
		{"no name", "${} ${:-x}", "${} ${:-x}"},
		{"name with a hyphen", "${SET-x}", "${SET-x}"},
		{"name with a letter that is not ASCII", "${SETé}", "${SETé}"},
		{"shell operators which Telegraf's configuration seldom has", "${SET:?no} ${SET:+yes}", "${SET:?no} ${SET:+yes}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.want, expand(c.text, lookup))
		})
	}
}

func FuzzExpand(f *testing.F) {
	for _, text := range []string{"", "a", "$", "${", "${A}", "${A:-", "${A:-${B:-c}}", "${B:-x}y}", "$${A}", "${A:-\n}", "${1}", "a}b{c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		nothing := expand(text, environment(nil))
		if !strings.Contains(text, "${") {
			assert.Equal(t, text, nothing)
		}
		if !strings.Contains(text, ":-") {
			assert.Equal(t, text, nothing, "without variables and defaults everything stays")
		}
		// A value is never read for more variables, and does not change what follows.
		lookup := environment(map[string]string{"A": "wrong", "B": "${A}"})
		assert.Equal(t, "${A}"+expand(text, lookup), expand("${B}"+text, lookup))
	})
}
