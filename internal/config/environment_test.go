package config

import (
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, set := variables[name]
		return value, set
	}
}

func TestExpand(t *testing.T) {
	lookup := environment(map[string]string{
		"SET": "value", "EMPTY": "", "A_1": "digits", "_x9": "underscore", "lower": "case", "DOLLAR": "${SET}", "QUOTES": "q\"\\u\n'", "LINES": "a\nb",
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
		{"default that is an unset variable", "<${UNSET:-${ALSO_UNSET}}>", "<>"},
		{"default with a lone dollar", "${UNSET:-$5}", "$5"},
		{"text after a default", "${UNSET:-a}}", "a}"},

		{"no closing brace", "${SET", "${SET"},
		{"no closing brace before text", "${SET and more}", "${SET and more}"},
		{"no closing brace of a default", "${UNSET:-a", "${UNSET:-a"},
		{"no closing brace of an inner default", "${UNSET:-${SET}", "${UNSET:-value"},
		{"a default ends with its line", "${UNSET:-a\n}", "${UNSET:-a\n}"},
		{"a variable after an open brace", "${ ${SET}", "${ value"},
		{"a variable in a name", "${A${SET}}", "${Avalue}"},

		{"dollar without braces", "$HOME $SET!", "$HOME value!"},
		{"two dollars", "$$ $${SET} $$$SET", "$ ${SET} $value"},
		{"dollar at the end", "a$", "a$"},
		{"regular expression", `^foo$|^[a-z]{2}$`, `^foo$|^[a-z]{2}$`},
		{"group of a regular expression", "${1}-${2}", "${1}-${2}"},
		{"no name", "${} ${:-x}", "${} ${:-x}"},
		{"default of an unset one only", "${SET-x} <${EMPTY-x}> ${UNSET-x}", "value <> x"},
		{"name with a letter that is not ASCII", "${SETé}", "${SETé}"},
		{"a word instead of a value", "${SET:+yes} <${EMPTY:+yes}> ${EMPTY+yes} <${UNSET+yes}>", "yes <> yes <>"},
		{"required and there", "${SET:?no} <${EMPTY?no}>", "value <>"},

		{"comments go", "a = 1 # ${SET:?\n# ${UNSET:?no} '\nb = 2", "a = 1 \n\nb = 2"},
		{"no comments in strings", "a = \"# ${SET}\" # x\nb = '# ${SET}' # y\n", "a = \"# value\" \nb = '# value' \n"},
		{"quotes of the other kind", `a = "it's # one" # two`, `a = "it's # one" `},
		{"an escaped quote", `a = "\" # ${SET}" # x`, `a = "\" # value" `},
		{"strings of several lines", "a = \"\"\"\n\"# ${SET}\"\"\"\" # x\nb = '''# \\''' # y", "a = \"\"\"\n\"# value\"\"\"\" \nb = '''# \\''' "},
		{"an empty string", `a = "" # ${SET}`, `a = "" `},
		{"a string that is not closed", "a = \"x\n# ${SET}\nb", "a = \"x\n\nb"},
		{"a value stays in its string", `a = "${QUOTES}" + ${QUOTES}`, `a = "q\"\\u\u000a'" + q"\u` + "\n'"},
		{"a default of quotes", `a = ${UNSET:-"x"}`, `a = "x"`},
		{"a default with a hash", `a = ${UNSET:-"#"} # ${SET}`, `a = "#" `},
		{"a value in a default", `a = "${UNSET:-<${QUOTES}>}"`, `a = "<q\"\\u\u000a'>"`},
		{"Windows line ends", "a = 1 # x\r\nb = ${SET}\r\n", "a = 1 \nb = value\r\n"},
		{"byte order mark", "\ufeffa", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Expand(c.text, lookup)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestExpand_Refuses(t *testing.T) {
	lookup := environment(map[string]string{"QUOTE": "it's", "EMPTY": "", "SET": "x"})
	for text, want := range map[string]string{
		"a\n\"\nb = ${UNSET:?say which ${SET}}": "the environment variable UNSET is required: say which x",
		"${UNSET?}":                             "the environment variable UNSET is required: it has no value",
		"${EMPTY:?no}":                          "the environment variable EMPTY is required: no",
		"${SET:-${UNSET?deep}}":                 "the environment variable UNSET is required: deep",
		"a = '${QUOTE}'":                        "can't stand in",
		"\xff\xfea\x00":                         "UTF-16",
	} {
		_, err := Expand(text, lookup)
		assert.ErrorContains(t, err, want, text)
		_, err = Parse("probe.toml", []byte(text), lookup, nil)
		assert.ErrorContains(t, err, want, text)
		assert.ErrorContains(t, err, "probe.toml:")
	}
	_, err := Parse("probe.toml", []byte("# one\r\n# ${TWO:?no}\r\n\r\na = ${UNSET?four}"), lookup, nil)
	assert.ErrorContains(t, err, "probe.toml:4: ")
}

func FuzzExpand(f *testing.F) {
	for _, text := range []string{"", "a", "$", "${", "${A}", "${A:-", "${A:-${B:-c}}", "${B:-x}y}", "$${A}", "${A:-\n}", "${1}", "a}b{c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		plain, err := Expand(text, environment(nil))
		if err == nil && !strings.ContainsAny(text, "$#") && !strings.HasPrefix(text, "\ufeff") {
			assert.Equal(t, text, plain)
		}
		// A value is never read for more variables, and does not change what follows.
		lookup := environment(map[string]string{"A": "wrong", "B": "${A}\"'\\\n"})
		alone, err := Expand("\n"+text, lookup)
		both, err2 := Expand("${B}\n"+text, lookup)
		assert.Equal(t, err == nil, err2 == nil)
		if err == nil {
			assert.Equal(t, "${A}\"'\\\n"+alone, both)
		}
		// In a string it is what it is.
		var document map[string]string
		quoted, err := Expand(`a = "${B}"`+"\n#"+strings.ReplaceAll(text, "\n", ""), lookup)
		require.NoError(t, err)
		require.NoError(t, toml.Unmarshal([]byte(quoted), &document))
		assert.Equal(t, "${A}\"'\\\n", document["a"])
	})
}
