package doctor

import (
	"fmt"
	"strings"
)

// dropIn is the drop-in for telegraf.service that the packages bring: a block for
// each feature, to be uncommented.
func dropIn() string {
	var b strings.Builder
	b.WriteString(`# For a Telegraf that runs vfsprobe.
[Service]

## A helper of vfsprobe's that hangs in a file system outlives Telegraf's stop. With
## KillMode=mixed, which is Telegraf's own, systemd sends it SIGKILL, waits 90 s for
## its end, and says that the unit has failed; and who waits for a FUSE daemon
## becomes a hung task by that. Telegraf ends its plugins itself, and gives each
## [[inputs.execd]] 15 s.
` + killModeCure + `
TimeoutStopSec=60

## Capabilities that vfsprobe has a use for. Without any, it sees what Telegraf's
## user may see. Each block buys what it says; uncomment those you want, then
##   systemctl daemon-reload && systemctl restart telegraf
## Telegraf and its other plugins get them, too. vfsprobe doctor says what is missing.
`)
	for _, f := range Features() {
		fmt.Fprintf(&b, "\n%s\n# AmbientCapabilities=%v\n", comment(f.Buys), f.Capabilities)
	}
	return b.String()
}

// comment breaks a text into lines of a unit that are no longer than 80 bytes,
// unless a word is.
func comment(text string) string {
	var lines []string
	line := "##"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 80 {
			lines, line = append(lines, line), "##"
		}
		line += " " + word
	}
	return strings.Join(append(lines, line), "\n")
}
