package units

import (
	"path"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// condition is what systemd asks before it starts a unit, systemd.unit(5).
type condition struct {
	path    string // whose existence is asked for; empty: something else is
	not     bool
	trigger bool // one of these that holds will do
}

// addCondition takes an assignment. An empty one is as if there had been none before.
func addCondition(all []condition, kind, value string) []condition {
	if value == "" {
		return nil
	}
	var c condition
	value, c.trigger = strings.CutPrefix(value, "|")
	value, c.not = strings.CutPrefix(strings.TrimSpace(value), "!")
	value = strings.TrimSpace(value)
	if kind == "PathExists" && path.IsAbs(value) && !strings.Contains(value, "%") && lasting(path.Clean(value)) {
		c.path = path.Clean(value)
	}
	return append(all, c)
}

// lasting reports whether what is at a path now was there when the host booted, most likely,
// which is when systemd has asked.
func lasting(name string) bool {
	return !slices.ContainsFunc([]string{"/dev", "/media", "/mnt", "/proc", "/run", "/sys", "/tmp", "/var/run", "/var/tmp"},
		func(directory string) bool { return mounts.Below(name, directory) })
}

// met reports whether conditions hold. One that can't be answered does not.
func met(all []condition, exists map[string]bool) bool {
	triggers, triggered := false, false
	for _, c := range all {
		there, known := exists[c.path]
		switch holds := there != c.not; {
		case !known:
			return false
		case c.trigger:
			triggers, triggered = true, triggered || holds
		case !holds:
			return false
		}
	}
	return !triggers || triggered
}
