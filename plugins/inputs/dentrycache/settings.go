package dentrycache

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/selection"
)

// maxDirectories is how many directories are looked at, including those that were found
// growing.
const maxDirectories = 16

// settings are the configuration, checked and resolved.
type settings struct {
	timeout time.Duration
	modes   []attribution.Mode // of the attribution, that may be used; none: it is off
}

// resolve checks the configuration. Its error names everything that is wrong.
func (d *DentryCache) resolve() error {
	var wrong config.Problems
	if len(d.Directories) > maxDirectories {
		wrong.Add("directories: %d of them, at most %d are possible", len(d.Directories), maxDirectories)
	}
	for i, directory := range d.Directories {
		if !filepath.IsAbs(directory) || strings.ContainsRune(directory, 0) {
			wrong.Add("directories: %q is not an absolute path", directory)
			continue
		}
		clean := filepath.Clean(directory)
		if slices.Contains(d.Directories[:i], clean) {
			wrong.Add("directories: %q is there twice", directory)
		}
		d.Directories[i] = clean
	}
	if d.MaxChildren < 0 {
		wrong.Add("max_children = %d: it can't be negative", d.MaxChildren)
	}
	for key, value := range map[string]int{"top_sources": d.TopSources, "top_cgroups": d.TopCgroups} {
		if value < 0 {
			wrong.Add("%s = %d: it can't be negative", key, value)
		}
	}
	for key, value := range map[string]float64{"source_threshold": d.SourceThreshold, "enoent_threshold": d.ENOENTThreshold} {
		if !(value >= 0) {
			wrong.Add("%s = %v: it can't be negative", key, value)
		}
	}
	if !(d.MemoryShare > 0 && d.MemoryShare <= 1) {
		wrong.Add("memory_share = %v: it must be more than 0 and at most 1", d.MemoryShare)
	}
	d.timeout = time.Duration(d.Timeout)
	wrong.AddError(selection.CheckTimeout("timeout", d.timeout))
	switch d.Attribution {
	case "auto":
		d.modes = []attribution.Mode{attribution.Fentry, attribution.Kprobe, attribution.ENOENT}
	case "none":
		d.modes = nil
	case attribution.Fentry.String():
		d.modes = []attribution.Mode{attribution.Fentry}
	case attribution.Kprobe.String():
		d.modes = []attribution.Mode{attribution.Kprobe}
	case attribution.ENOENT.String():
		d.modes = []attribution.Mode{attribution.ENOENT}
	default:
		wrong.Add(`attribution = %q: there are "auto", "fentry", "kprobe", "enoent" and "none"`, d.Attribution)
	}
	return wrong.Err()
}
