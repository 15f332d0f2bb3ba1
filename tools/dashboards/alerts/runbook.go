package alerts

import (
	"fmt"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// Runbooks returns a page per alert, by file name.
func Runbooks() map[string][]byte {
	pages := make(map[string][]byte)
	for _, a := range All() {
		pages[a.Name+".md"] = []byte(a.page())
	}
	return pages
}

func code(text string) string { return "`" + strings.ReplaceAll(text, "|", `\|`) + "`" }

func (a *Alert) page() string {
	var b strings.Builder
	title := strings.NewReplacer("{{ $labels.server }}", "SERVER", "{{ $labels.host }}", "HOST", "{{ $labels.fstype }}", "TYPE",
		"{{ $labels.directory }}", "DIRECTORY", "{{ $value }}", "N", "{{ $value | humanize }}", "N", "{{ $value | humanizePercentage }}", "N %", "{{ $value | humanizeDuration }}", "some time").Replace(a.Summary)
	fmt.Fprintf(&b, "<!-- Made by \"make dashboards\". -->\n# %s\n\n%s, for %s. Severity: %s.\n\n", a.Name, title, duration(a.For), a.severity())
	if f := a.Faults; f != nil {
		fmt.Fprintf(&b, "One alert per %s: what they have in common is mended once.\n\n", strings.ReplaceAll(f.by(), ", ", " and "))
		fmt.Fprintf(&b, "The annotation `cause` names the %s, `evidence` who reports it.\n\n", f.Label)
		b.WriteString(result.Table(f.Label, f.Causes))
	} else {
		fmt.Fprintf(&b, "Cause: %s.\n\n| prove it with | and then |\n|---|---|\n| %s | %s |\n", a.Cause, code(a.Prove), strings.ReplaceAll(a.Fix, "|", `\|`))
	}
	if a.Page != "" {
		fmt.Fprintf(&b, "\n%s\n", a.Page)
	}
	fmt.Fprintf(&b, "\nThe dashboard %s (`vfsprobe-%s-promql` or `-influxql`) shows it. On the host, `vfsprobe -test` prints what is the case now.\n", a.Board, a.Board)
	fmt.Fprintf(&b, "\nThe rule:\n\n```promql\n%s\n```\n", a.Expr)
	return b.String()
}
