package printable

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

func TestPrintable(t *testing.T) {
	for name, want := range map[string][3]string{ // Name, Text, Line
		"/srv/a b":     {"/srv/a b", "/srv/a b", "/srv/a b"},
		"ünï":          {"ünï", "ünï", "ünï"},
		"a\nb\tc":      {`a\012b\011c`, `a\012b\011c`, `a\nb\tc`},
		"\x1b[31m":     {`\033[31m`, `\033[31m`, `\x1b[31m`},
		"\u009b31m":    {`\302\23331m`, `\302\23331m`, `\xc2\x9b31m`}, // CSI in eight bits
		"\xff\x9b":     {`\377\233`, `\377\233`, `\xff\x9b`},
		"\u202etxt":    {`\342\200\256txt`, `\342\200\256txt`, `\xe2\x80\xaetxt`}, // right to left
		"a\u2028b":     {`a\342\200\250b`, `a\342\200\250b`, `a\xe2\x80\xa8b`},    // ends a line for some
		`a\b`:          {`a\134b`, `a\b`, `a\b`},
		`end\`:         {`end\134`, `end\134`, `end\`},
		"":             {"", "", ""},
		"\ufffd":       {`\357\277\275`, `\357\277\275`, `\xef\xbf\xbd`},
		"\x00\x7f":     {`\000\177`, `\000\177`, `\x00\x7f`},
		"👩\u200d🚀.txt": {"👩\u200d🚀.txt", "👩\u200d🚀.txt", "👩\u200d🚀.txt"},
	} {
		assert.Equal(t, want, [3]string{Name(name), Text(name), Line(name)}, "%q", name)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\nb\\")
	f.Add("\xff\u009b")
	f.Fuzz(func(t *testing.T, text string) {
		for _, got := range []string{Name(text), Text(text), Line(text)} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, unprintable) {
				t.Errorf("%q of %q", got, text)
			}
		}
		if strings.HasSuffix(Name(text), `\`) || strings.HasSuffix(Text(text), `\`) {
			t.Errorf("%q ends with a backslash", text)
		}
		if name := Name(text); Text(name) != name {
			t.Errorf("%q is escaped twice", name)
		}
	})
}
