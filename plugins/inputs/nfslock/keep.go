package nfslock

import (
	"encoding/json"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

var _ state.Heir = (*NFSLock)(nil)

// kept is what outlives a restart.
type kept struct {
	Hostname  string                   `json:"hostname"` // the host's own files are named by it
	Histories map[string]fault.History `json:"histories"`
}

// Keep implements state.Keeper: it returns the histories of units by their ids.
func (n *NFSLock) Keep() any {
	k := kept{Hostname: n.hostname, Histories: make(map[string]fault.History)}
	for _, t := range n.targets {
		if t.Notable() {
			k.Histories[t.ID] = t.Kept()
		}
	}
	return k
}

// Restore implements state.Keeper.
func (n *NFSLock) Restore(content json.RawMessage) error {
	k, err := n.restoreKept(content)
	n.kept = k.Histories
	return err
}

// Inherit implements state.Heir: the file with the host's earlier name still exists.
func (n *NFSLock) Inherit(content json.RawMessage) error {
	_, err := n.restoreKept(content)
	return err
}

// restoreKept restores what also outlives a start of the machine: the name that the host had.
func (n *NFSLock) restoreKept(content json.RawMessage) (k kept, err error) {
	if err = json.Unmarshal(content, &k); err == nil && k.Hostname != n.hostname {
		n.formerHostname = k.Hostname
	}
	return k, err
}
