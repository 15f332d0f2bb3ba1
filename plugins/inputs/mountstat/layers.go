package mountstat

import (
	"cmp"
	"fmt"
	"iter"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// layer is a path that a file system is made of.
type layer struct{ what, path string }

// layersOf are the directories that the target shows in another form, and the images that it
// lies on.
func layersOf(t *target) (all []layer) {
	for _, path := range t.Probed.Layers() {
		all = append(all, layer{"the directory", path})
	}
	if t.disk.device != nil {
		for device := range t.disk.device.All() {
			if path := device.BackingFile(); path != "" {
				all = append(all, layer{"the image", path})
			}
		}
	}
	return all
}

// usedBy are the targets that a target depends on: what its daemon uses, or what it lies on.
func (c *causes) usedBy(t *target) iter.Seq[*target] {
	if t.Probed.FUSE() {
		return c.daemons.usedBy(t)
	}
	return func(yield func(*target) bool) {
		if t.namespace != nil {
			return // its paths mean other files
		}
		for _, l := range layersOf(t) {
			if below := c.holding(l.path); below != nil && below != t && !yield(below) {
				return
			}
		}
	}
}

// above are the targets that a target's path leads through, the nearest first.
func (c *causes) above(t *target) iter.Seq[*target] {
	return func(yield func(*target) bool) {
		if t.namespace != nil {
			return // its paths mean other files
		}
		mount := t.Probed
		for range c.table.Mounts { // a table that lies may be a ring
			if mount = c.table.Above(mount); mount == nil {
				return
			}
			if above := c.byMount[mount.ID]; above != nil && above != t && !yield(above) {
				return
			}
		}
	}
}

// barred reports whether a target hangs as long as another one does: its last check waited on the
// way to it, which leads through one that hangs still. It takes no helper to know that.
func (c *causes) barred(t *target) bool {
	if t.concluded.code != result.Timeout || t.concluded.call != stepOpen || t.HungSince.IsZero() {
		return false
	}
	for above := range c.above(t) {
		if above.found.hangs() {
			return true
		}
	}
	return false
}

// awaitsBelow reports whether a target that this one is made of, or uses, has not been judged.
func (c *causes) awaitsBelow(t *target) bool { return c.awaits(t, c.usedBy(t)) }

// awaitsAbove reports whether a target has not been judged that the path of this one leads
// through.
func (c *causes) awaitsAbove(t *target) bool { return c.awaits(t, c.above(t)) }

// awaits reports whether one of the targets that a target depends on has not been judged. Those
// that depend on it in turn are not waited for.
func (c *causes) awaits(t *target, others iter.Seq[*target]) bool {
	for other := range others {
		if (other.underWay || other.report != nil) && !c.dependsOn(other, t, make(map[*target]bool)) {
			return true
		}
	}
	return false
}

// dependsOn reports whether a target depends on another, directly or through further ones. It
// adds to seen.
func (c *causes) dependsOn(t, other *target, seen map[*target]bool) bool {
	seen[t] = true
	for _, all := range []iter.Seq[*target]{c.usedBy(t), c.above(t)} {
		for one := range all {
			if one == other || !seen[one] && c.dependsOn(one, other, seen) {
				return true
			}
		}
	}
	return false
}

// causeBelow is the cause of a fault that comes from what the file system is made of. The reason
// then names that.
func (c *causes) causeBelow(t *target, f *finding) cause {
	if t.namespace != nil {
		return "" // its paths mean other files
	}
	for _, l := range layersOf(t) {
		below := c.holding(l.path)
		if below == nil || below == t {
			continue
		}
		if why := c.causeOfOther(below, f.hangs()); why != "" {
			f.addReason(fmt.Sprintf("%s it lies on, %s, is on %s", l.what, mounts.Printable(l.path), below.Probed))
			f.blame(below)
			return why
		}
	}
	return ""
}

// causeOfOther is why another target is at fault. Its check may still be under way: what
// depends on it may have been found to hang, or to fail, before it. Empty means that it is not at
// fault.
func (c *causes) causeOfOther(other *target, hangs bool) cause {
	f := other.found
	switch {
	case f.code.Fault():
		return f.cause
	case hangs && other.underWay:
		f.check = other.policy.checks[0]
		c.collect(other)
		return c.causeOfHang(other, &f)
	}
	return ""
}

// blame notes whose fault it is: another target's, or that of the target to blame for the other's.
func (f *finding) blame(other *target) { f.culprit = cmp.Or(other.found.culprit, other) }

// culpritOf is the target whose fault a finding is.
func culpritOf(t *target, f *finding) *target { return cmp.Or(f.culprit, t) }
