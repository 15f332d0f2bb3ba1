// Package selection says which mounts an input means: by mount point, type and device,
// with globs. The checks that inputs have in common of their settings are here, too.
package selection

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/influxdata/telegraf/filter"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// minTimeout is the shortest timeout that any input takes.
const minTimeout = 10 * time.Millisecond

// CheckTimeout returns an error, which names the setting, for a timeout that is too
// short.
func CheckTimeout(key string, timeout time.Duration) error {
	if timeout < minTimeout {
		return fmt.Errorf("%s = %q: at least %v are needed", key, timeout, minTimeout)
	}
	return nil
}

// Patterns are globs, by what they are for. Without any of a kind to include, all are.
type Patterns struct {
	MountPoints, IgnoreMountPoints []string
	Types, IgnoreTypes             []string
	Devices, IgnoreDevices         []string
}

// Selection holds for the mounts that its patterns fit.
type Selection struct {
	points, types           filter.Filter
	devices, ignoredDevices filter.Filter // nil: none are named
}

// New compiles the patterns. The error names all that are wrong, by their keys; typesKey
// is what the input calls types.
func New(p Patterns, typesKey string) (Selection, error) {
	var problems []error
	for _, pattern := range slices.Concat(p.MountPoints, p.IgnoreMountPoints) {
		if pattern == "" || !strings.ContainsRune("/*?[{", rune(pattern[0])) {
			problems = append(problems, fmt.Errorf("mount_points: %q is not an absolute path", pattern))
		}
	}
	compile := func(key string, include, exclude []string) filter.Filter {
		compiled, err := filter.NewIncludeExcludeFilter(include, exclude)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: a pattern of %q is not a glob: %w", key, slices.Concat(include, exclude), err))
		}
		return compiled
	}
	s := Selection{points: compile("mount_points", p.MountPoints, p.IgnoreMountPoints), types: compile(typesKey, p.Types, p.IgnoreTypes)}
	if len(p.Devices) > 0 {
		s.devices = compile("devices", p.Devices, nil)
	}
	if len(p.IgnoreDevices) > 0 {
		s.ignoredDevices = compile("ignore_devices", p.IgnoreDevices, nil)
	}
	return s, errors.Join(problems...)
}

// Fits reports whether a mount is meant. A device can be named as the mount table names
// it, without /dev/, or as the kernel does.
func (s *Selection) Fits(m *mounts.Mount) bool {
	return s.FitsEntry(m.Mountpoint, m.FSType, m.Source, m.Device)
}

// FitsEntry is Fits for what is not mounted. A device may have several names.
func (s *Selection) FitsEntry(point, fstype string, devices ...string) bool {
	if !s.points.Match(point) || !s.types.Match(fstype) {
		return false
	}
	matches := func(f filter.Filter) bool {
		return slices.ContainsFunc(devices, func(name string) bool {
			return f.Match(name) || f.Match(strings.TrimPrefix(name, "/dev/"))
		})
	}
	return (s.devices == nil || matches(s.devices)) && (s.ignoredDevices == nil || !matches(s.ignoredDevices))
}

// FitsPoint is Fits by the mount point alone.
func (s *Selection) FitsPoint(point string) bool { return s.points.Match(point) }
