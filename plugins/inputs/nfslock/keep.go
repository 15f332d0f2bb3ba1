package nfslock

import (
	"encoding/json"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

var _ state.Heir = (*Nfslock)(nil)

// kept is what outlives a restart.
type kept struct {
	Hostname  string                   `json:"hostname"` // the host's own files are named by it
	Histories map[string]fault.History `json:"histories"`
}

// Keep implements state.Keeper: it returns the histories of units by their ids.
func (n *Nfslock) Keep() any {
	k := kept{Hostname: n.hostname, Histories: make(map[string]fault.History)}
	for _, t := range n.targets {
		if t.Notable() {
			k.Histories[t.ID] = t.Kept()
		}
	}
	return k
}

// Restore implements state.Keeper.
func (n *Nfslock) Restore(content json.RawMessage) error {
	k, err := n.takeKept(content)
	n.kept = k.Histories
	return err
}

// Inherit implements state.Heir: the file by the host's earlier name is still there.
func (n *Nfslock) Inherit(content json.RawMessage) error {
	_, err := n.takeKept(content)
	return err
}

// takeKept takes what holds over a start of the machine, too: the name that the host had.
func (n *Nfslock) takeKept(content json.RawMessage) (k kept, err error) {
	if err = json.Unmarshal(content, &k); err == nil && k.Hostname != n.hostname {
		n.formerHostname = k.Hostname
	}
	return k, err
}
