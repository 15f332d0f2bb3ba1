package mountstat

import (
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// inventory is the mount table, sorted into targets.
type inventory struct {
	table   *mounts.Snapshot // as it was last read, or what is named while there is none
	targets []*target
	byID    map[string]*target
	byMount map[int]*target          // by the mount's number in the table
	kept    map[string]fault.History // of an earlier run, by unit
	sorted  bool                     // there were targets before
	binds   bool                     // some of the targets' mounts are such
	hidden  int                      // mounts that others cover
	// superblocks is how many the targets have.
	superblocks int
}

// sort makes targets of the mounts of the table, and of those of other namespaces, that are to be
// checked. It keeps what is known about targets that were there before.
func (in *inventory) sort(s *settings, perMount bool, others []*namespace) {
	before := in.byID
	in.targets, in.byID, in.byMount, in.hidden, in.binds = nil, make(map[string]*target, len(before)), make(map[int]*target), 0, false
	for i := range in.table.Mounts {
		if mount := &in.table.Mounts[i]; mount.Hidden && !s.ignores(mount) {
			in.hidden++
		}
	}
	add := func(all []*mounts.Mount, ns *namespace) {
		for _, unit := range mounts.Units(all, perMount) {
			if in.byID[unit.ID] != nil {
				continue // it is checked where it was seen first
			}
			t := before[unit.ID]
			if t == nil || !unit.Same(t.Probed) {
				t = in.newTarget(unit.ID)
			}
			t.Unit, t.namespace = unit, ns
			t.key, t.group = "mountstat "+t.ID, t.Probed.FateGroup()
			in.byID[unit.ID] = t
			in.targets = append(in.targets, t)
			in.binds = in.binds || slices.ContainsFunc(t.Mounts, (*mounts.Mount).Bind)
		}
	}
	wanted := func(mount *mounts.Mount) bool { return !s.ignores(mount) }
	add(in.table.Visible(wanted), nil)
	for _, t := range in.targets {
		for _, mount := range t.Mounts {
			in.byMount[mount.ID] = t
		}
	}
	for _, ns := range others {
		add(slices.DeleteFunc(slices.Clone(ns.mounts), func(mount *mounts.Mount) bool { return !wanted(mount) }), ns)
	}
	superblocks := make(map[[2]int]struct{})
	for _, t := range in.targets {
		superblocks[[2]int{t.Probed.Major, t.Probed.Minor}] = struct{}{}
	}
	in.superblocks = len(superblocks)
	in.sorted = true
}

// newTarget is a target that was not there before, in this run.
func (in *inventory) newTarget(id string) *target {
	t := &target{History: in.kept[id], worked: make(map[check]bool)}
	if in.sorted {
		t.appeared = time.Now()
	}
	delete(in.kept, id)
	return t
}

// holding is the target that a path lies on, or nil.
func (in *inventory) holding(path string) *target {
	if mount := in.table.Holding(path); mount != nil {
		return in.byMount[mount.ID]
	}
	return nil
}

// mountedAt returns what is mounted at a path, except autofs.
func (in *inventory) mountedAt(path string) *mounts.Mount {
	if mount := in.table.At(path); mount != nil && mount.FSType != "autofs" {
		return mount
	}
	return nil
}

// onDemand reports whether an automounter should mount something at a path, and has not.
func (in *inventory) onDemand(path string) bool {
	holder := in.table.Holding(path)
	return holder != nil && holder.FSType == "autofs"
}

// named are the mounts that are checked while there is no table: the root, and what
// the configuration names by a path.
func (m *Mountstat) named() *mounts.Snapshot {
	paths := append([]string{"/"}, m.Expected...)
	paths = append(paths, m.MountPoints...)
	for i := range m.Override {
		paths = append(paths, m.Override[i].MountPoints...)
	}
	paths = slices.DeleteFunc(paths, func(path string) bool { return strings.ContainsAny(path, "*?[{") })
	slices.Sort(paths)
	var all []mounts.Mount
	for _, path := range slices.Compact(paths) {
		all = append(all, mounts.Named(path))
	}
	return mounts.NewSnapshot(all)
}
