package mounts

import "path"

// reach finds out how the way to each mount point leads through the others. Everything it
// does is linear in the number of mounts, whatever their shape: each asks its parent,
// whose answer is kept.
type reach struct {
	mounts []Mount
	byID   map[int]*Mount
	at     map[site]int // the last mount there
	ways   map[int]way  // by id: how it is to come from the root to the mount's parent
	notes  *notes
}

// site is where a mount was put: a path, seen from its parent.
type site struct {
	parent int
	path   string
}

// way is what lies between a mount and the root.
type way struct{ hidden, onDemand bool }

// markReach fills Hidden, OnDemand and Submount in.
func markReach(all []Mount, byID map[int]*Mount, n *notes) {
	r := &reach{mounts: all, byID: byID, notes: n, at: make(map[site]int, len(all)), ways: make(map[int]way, len(all))}
	for i := range all {
		if m := &all[i]; m.ID != m.Parent {
			r.at[site{m.Parent, m.Mountpoint}] = m.ID
		}
	}
	for i := range all {
		m := &all[i]
		w := r.wayTo(m)
		m.Submount = r.submount(m)
		m.Hidden, m.OnDemand = w.hidden || r.covered(m, 0), w.onDemand || m.Submount
	}
}

// likenessOf compares a mount with the one that it was put on.
func (r *reach) likenessOf(m *Mount) likeness {
	if parent := r.byID[m.Parent]; parent != nil {
		return m.like(parent)
	}
	return unlike
}

// submount reports whether the kernel seems to have made a mount by itself. It has made what looks
// like a referral if libmount has noted the mount above, and nothing about this one.
func (r *reach) submount(m *Mount) bool {
	switch like := r.likenessOf(m); {
	case like == unlike || r.notes.byHand(m):
		return false
	case like == sameTree:
		return true
	}
	above := r.byID[m.Parent]
	for range r.mounts { // a table that lies may be a ring
		if r.likenessOf(above) == unlike {
			break
		}
		above = r.byID[above.Parent]
	}
	return r.notes.utab[above.Mountpoint].notes(above)
}

// wayTo follows the chain of parents up to one whose way is known. Parents usually
// come first in the table, but need not; in a table that lies they may be a ring, which
// leads nowhere.
func (r *reach) wayTo(m *Mount) way {
	if w, known := r.ways[m.ID]; known {
		return w
	}
	parent := r.byID[m.Parent]
	if parent == nil || parent == m {
		r.ways[m.ID] = way{}
		return way{}
	}
	if w, known := r.ways[parent.ID]; known {
		return r.through(parent, m, w)
	}
	chain := []*Mount{m}
	r.ways[m.ID] = way{} // until it is known better: a ring ends here
	for m = parent; ; m = parent {
		if _, known := r.ways[m.ID]; known {
			break
		}
		r.ways[m.ID] = way{}
		if parent = r.byID[m.Parent]; parent == nil || parent == m {
			break
		}
		chain = append(chain, m)
	}
	w := r.ways[m.ID]
	for i := len(chain) - 1; i >= 0; i-- {
		w = r.through(r.byID[chain[i].Parent], chain[i], w)
	}
	return w
}

// through is the way to a mount by its parent. The way to the parent is known.
func (r *reach) through(parent, m *Mount, w way) way {
	w = way{hidden: w.hidden || r.covered(parent, m.ID), onDemand: w.onDemand || parent.expires()}
	r.ways[m.ID] = w
	return w
}

// covered reports whether path look-up misses a mount, or the child on the way
// through it (0: none). Look-up goes from mount to mount; it misses a mount
//   - that has another one on its own root (which stands in its place),
//   - that lies below a directory on which another mount of the same parent
//     was put,
//   - whose parent is missed,
//   - that was put on the root directory itself: look-up starts below it.
func (r *reach) covered(m *Mount, child int) bool {
	if m.Mountpoint == "/" && r.byID[m.Parent] == nil { // where look-up starts
		return r.byID[child] != nil && r.byID[child].Mountpoint == "/"
	}
	if top, onTop := r.at[site{m.ID, m.Mountpoint}]; onTop && top != child {
		return true
	}
	if top, ok := r.at[site{m.Parent, m.Mountpoint}]; ok && top != m.ID && m.Parent != m.ID {
		return true
	}
	above := "/" // in a chroot the parent may be out of sight
	if parent := r.byID[m.Parent]; parent != nil {
		above = parent.Mountpoint
	}
	for dir := path.Dir(m.Mountpoint); len(dir) > max(len(above), len("/")); dir = path.Dir(dir) {
		if _, between := r.at[site{m.Parent, dir}]; between {
			return true
		}
	}
	return false
}
