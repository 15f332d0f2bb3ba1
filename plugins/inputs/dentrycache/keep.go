package dentrycache

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

var _ state.Keeper = (*DentryCache)(nil)

// keptDirectory is what is kept across a restart about a directory that is looked at.
type keptDirectory struct {
	Path     string        `json:"path"`
	Grew     time.Time     `json:"grew"`
	Children int64         `json:"children"` // at the last count
	History  fault.History `json:"history"`
}

// Keep implements state.Keeper: it returns the directories that were found growing, and those
// about which there is something to know.
func (d *DentryCache) Keep() any {
	var kept []keptDirectory
	for _, dir := range d.directories {
		if !dir.configured || dir.history.Notable() {
			kept = append(kept, keptDirectory{Path: dir.path, Grew: dir.grew.UTC(), Children: dir.walk.Children, History: dir.history.Kept()})
		}
	}
	if kept == nil {
		return nil
	}
	return kept
}

// Restore implements state.Keeper.
func (d *DentryCache) Restore(content json.RawMessage) error {
	var all []keptDirectory
	if err := json.Unmarshal(content, &all); err != nil {
		return err
	}
	for _, k := range all {
		i := slices.IndexFunc(d.directories, func(dir *directory) bool { return dir.path == k.Path })
		switch {
		case i >= 0:
			d.directories[i].history = k.History
		case d.FindDirectories && len(d.directories) < maxDirectories:
			found := &directory{path: k.Path, grew: k.Grew, history: k.History}
			found.walk.Children = k.Children // until it is counted again
			d.directories = append(d.directories, found)
		}
	}
	return nil
}
