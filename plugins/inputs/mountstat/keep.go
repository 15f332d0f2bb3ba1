package mountstat

import (
	"encoding/json"
	"maps"
	"net/netip"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

var _ state.Keeper = (*Mountstat)(nil)

// kept is what is known across a restart.
type kept struct {
	Units   map[string]fault.History `json:"units,omitempty"`   // by their ids
	Missing map[string]time.Time     `json:"missing,omitempty"` // since when, by mount point
	// Tags are those that the missing mounts had while they were mounted: their series goes on.
	Tags     map[string]map[string]string `json:"tags,omitempty"`
	ReadOnly map[string]time.Time         `json:"read_only,omitempty"` // the same
	// SMBPorts are where SMB servers listen that are not at the usual port. It can't be found out
	// while they are dead.
	SMBPorts map[netip.Addr][]uint16 `json:"smb_ports,omitempty"`
}

// Keep implements state.Keeper.
func (m *Mountstat) Keep() any {
	k := kept{Units: make(map[string]fault.History), Missing: sinceWhen(m.expectations.missing), ReadOnly: sinceWhen(m.expectations.readOnly),
		Tags: maps.Clone(m.expectations.tags), SMBPorts: maps.Clone(m.servers.smbAt.ports)}
	maps.DeleteFunc(k.Tags, func(path string, _ map[string]string) bool { return m.expectations.missing[path] == nil })
	maps.DeleteFunc(k.SMBPorts, func(address netip.Addr, _ []uint16) bool { return !m.inventory.hasSMBServerAt(address) })
	for _, t := range m.targets {
		if t.Notable() {
			k.Units[t.ID] = t.Kept()
		}
	}
	if len(k.Units)+len(k.Missing)+len(k.ReadOnly)+len(k.SMBPorts) == 0 {
		return nil
	}
	return k
}

// Restore implements state.Keeper.
func (m *Mountstat) Restore(content json.RawMessage) error {
	var k kept
	if err := json.Unmarshal(content, &k); err != nil {
		return err
	}
	m.kept, m.expectations.tags = k.Units, k.Tags
	m.expectations.missing, m.expectations.readOnly = shortfalls(k.Missing), shortfalls(k.ReadOnly)
	for address, ports := range k.SMBPorts {
		m.servers.smbAt.ports[address] = ports[:min(len(ports), maxSMBPorts)]
	}
	return nil
}

func sinceWhen(all map[string]*shortfall) map[string]time.Time {
	since := make(map[string]time.Time, len(all))
	for path, s := range all {
		since[path] = s.since.UTC()
	}
	return since
}

func shortfalls(since map[string]time.Time) map[string]*shortfall {
	all := make(map[string]*shortfall, len(since))
	for path, at := range since {
		all[path] = &shortfall{expectation: expectation{path: path}, since: at}
	}
	return all
}
