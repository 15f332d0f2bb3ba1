package mountstat

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// layer is a path that a file system is made of.
type layer struct{ what, path string }

// layersOf are the directories that the target shows in another way, and the images that it
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

// causeBelow is the cause of a fault that is one of what the file system is made of, which
// the reason then names.
func (m *Mountstat) causeBelow(t *target, f *finding) cause {
	if t.namespace != nil {
		return "" // its paths mean other files
	}
	for _, l := range layersOf(t) {
		below := m.holding(l.path)
		if below == nil || below == t {
			continue
		}
		if c := m.causeOfOther(below, f.hangs()); c != "" {
			f.addReason(fmt.Sprintf("%s it lies on, %s, is on %s", l.what, mounts.Printable(l.path), below.Probed))
			return c
		}
	}
	return ""
}

// holding is the target that a path lies on, or nil.
func (m *Mountstat) holding(path string) *target {
	if mount := m.table.Holding(path); mount != nil {
		return m.byMount[mount.ID]
	}
	return nil
}

// causeOfOther is why another target is at fault, whose check may still be under way: what
// depends on it was found to hang, or to fail, before it. Empty means that it is not.
func (m *Mountstat) causeOfOther(other *target, hangs bool) cause {
	f := other.found
	switch {
	case f.code.Fault():
		return f.cause
	case hangs && other.underWay:
		f.check = other.policy.checks[0]
		return m.causeOfHang(other, &f)
	}
	return ""
}
