package alerts

import (
	"fmt"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// runbooks is where the pages are.
const runbooks = "https://github.com/vfsprobe/vfsprobe/blob/main/docs/runbooks/"

func (a *Alert) severity() string {
	if a.Critical {
		return "critical"
	}
	return "warning"
}

// duration as both Prometheus and Grafana write it.
func duration(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}

// block writes a YAML key with a literal text.
func block(b *strings.Builder, indent int, key, text string) {
	pad := strings.Repeat(" ", indent)
	fmt.Fprintf(b, "%s%s: |-\n", pad, key)
	for line := range strings.Lines(text) {
		fmt.Fprintf(b, "%s  %s\n", pad, strings.TrimRight(line, "\n"))
	}
}

// Prometheus returns the rules for it.
func Prometheus() []byte {
	var b strings.Builder
	b.WriteString(`# Alert rules for vfsprobe's metrics, as telegraf-prometheus.conf beside this file
# names them. Made by "make dashboards". Durations are for an interval of up to 20 s.
groups:
- name: vfsprobe
  rules:
`)
	for _, a := range All() {
		fmt.Fprintf(&b, "  - alert: %s\n", a.Name)
		block(&b, 4, "expr", a.Expr)
		fmt.Fprintf(&b, "    for: %s\n    labels:\n      severity: %s\n    annotations:\n", duration(a.For), a.severity())
		block(&b, 6, "summary", a.Summary)
		cause, evidence, command := a.texts()
		block(&b, 6, "cause", cause)
		block(&b, 6, "evidence", evidence)
		block(&b, 6, "command", command)
		fmt.Fprintf(&b, "      dashboard: vfsprobe-%s-promql\n", a.Board)
		fmt.Fprintf(&b, "      runbook_url: %s%s.md\n", runbooks, a.Name)
	}
	return []byte(b.String())
}

// texts are templates of the annotations that differ by what is the case.
func (a *Alert) texts() (cause, evidence, command string) {
	f := a.Faults
	if f == nil {
		evidence = fmt.Sprintf("{{ range query (printf `%s` $labels.host) }}{{ range $name, $value := .Labels }}{{ $value }} {{ end }}{{ .Value | humanize }}; {{ end }}", a.Evidence)
		return a.Cause, evidence, a.Prove + "\n" + a.Fix
	}
	narrowed := fmt.Sprintf(`, %s=%%q`, f.By) // users choose the names of FUSE sources
	arguments := "$labels." + f.By
	if f.More != "" {
		narrowed += fmt.Sprintf(`, %s=%%q`, f.More)
		arguments += " $labels." + f.More
	}
	series := f.series(narrowed)
	each := func(text func(result.Cause) string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "{{ range query (printf `count by (%s) (%s)` %s) }}", f.Label, series, arguments)
		for i, c := range f.Causes {
			condition := "else if"
			if i == 0 {
				condition = "if"
			}
			fmt.Fprintf(&b, "{{ %s eq .Labels.%s %q }}%s", condition, f.Label, string(c), text(c))
		}
		b.WriteString("{{ end }}\n{{ end }}")
		return b.String()
	}
	cause = each(func(c result.Cause) string { return fmt.Sprintf("%s: %s ({{ .Value }})", c, c.Meaning()) })
	command = each(f.command)
	switch {
	case f.From == "nfslock_readiness":
		evidence = fmt.Sprintf("{{ range query (printf `max by (needed_by) (%s)` %s) }}{{ .Labels.needed_by }}: no rpc.statd to rely on; {{ end }}", series, arguments)
	case f.By != "host":
		evidence = fmt.Sprintf("{{ range query (printf `topk(5, count by (host) (%s))` %s) }}{{ .Labels.host }}: {{ .Value }} mounts; {{ end }}", series, arguments)
	default:
		what := "failed_check, hangs_in, errno"
		show := "{{ .Labels.failed_check }} {{ .Labels.errno }}"
		if f.From == "nfslock" {
			what, show = "failed_call, hangs_in, errno", "{{ .Labels.failed_call }} {{ .Labels.hangs_in }} {{ .Labels.errno }}"
		}
		evidence = fmt.Sprintf("{{ range query (printf `topk(5, max by (path, %s) (%s))` %s) }}{{ .Labels.path }} (%s); {{ end }}", what, series, arguments, show)
	}
	return cause, evidence, command
}
