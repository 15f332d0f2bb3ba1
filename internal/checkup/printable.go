package checkup

import (
	"unicode"
	"unicode/utf8"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// Printable is the text without anything that could move a cursor, change
// colours, end a line or turn its direction: what is no printable character is
// written as octal escapes of its bytes. Names of mounts and processes are
// whatever their makers liked.
func Printable(text string) string { return mounts.Escape(text, hidden) }

// hidden holds for U+FFFD too, which stands for a byte that is not UTF-8. The
// only space that unicode.IsPrint takes is the ASCII one.
func hidden(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
