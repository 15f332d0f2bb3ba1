package nfslock

import (
	"encoding/json"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

var _ state.Keeper = (*Nfslock)(nil)

// Keep implements state.Keeper: it returns the histories of units by their ids.
func (n *Nfslock) Keep() any {
	kept := make(map[string]fault.History)
	for _, t := range n.targets {
		if t.Notable() {
			kept[t.ID] = t.Kept()
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// Restore implements state.Keeper.
func (n *Nfslock) Restore(content json.RawMessage) error { return json.Unmarshal(content, &n.kept) }
