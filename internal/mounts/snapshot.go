package mounts

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
)

// Snapshot is a mount table as it was read. It does not change.
type Snapshot struct {
	Mounts []Mount // in the table's order
	// Malformed is how many lines could not be understood, Err what they were.
	Malformed int
	Err       error

	byID     map[int]*Mount
	at       map[string]*Mount
	byNumber func() map[number][]*Mount // made when it is first asked for
}

type number struct{ major, minor int }

// Parse reads the content of a mountinfo file. Lines that make no sense are left out,
// and named in the snapshot's Err.
func Parse(content []byte) *Snapshot {
	infos, err := parseText(content)
	return newSnapshot(infos, err, Devices{})
}

// NewSnapshot makes a snapshot of mounts that were found in another way.
func NewSnapshot(all []Mount) *Snapshot {
	s := &Snapshot{Mounts: all}
	s.index()
	s.resolvePaths()
	return s
}

func newSnapshot(infos []*mountinfo.Info, err error, devices Devices) *Snapshot {
	s := &Snapshot{Mounts: make([]Mount, len(infos)), Err: err, Malformed: countErrors(err)}
	for i, info := range infos {
		s.Mounts[i].Info = info
		s.Mounts[i].Device = devices.Tag(&s.Mounts[i])
	}
	s.index()
	markReach(s.Mounts, s.byID, &notes{})
	s.resolvePaths()
	return s
}

// index finds the mounts by their numbers.
func (s *Snapshot) index() {
	s.byID = make(map[int]*Mount, len(s.Mounts))
	for i := range s.Mounts {
		if m := &s.Mounts[i]; m.ID != 0 {
			s.byID[m.ID] = m
		}
	}
	s.byNumber = sync.OnceValue(func() map[number][]*Mount {
		all := make(map[number][]*Mount, len(s.Mounts))
		for i := range s.Mounts {
			m := &s.Mounts[i]
			key := number{m.Major, m.Minor}
			all[key] = append(all[key], m)
		}
		return all
	})
}

// resolvePaths finds the mounts by their paths.
func (s *Snapshot) resolvePaths() {
	s.at = make(map[string]*Mount, len(s.Mounts))
	for i := range s.Mounts {
		if m := &s.Mounts[i]; !m.Hidden {
			s.at[m.Mountpoint] = m
		}
	}
}

// ByID returns the mount of that number, or nil.
func (s *Snapshot) ByID(id int) *Mount { return s.byID[id] }

// At returns the mount that a mount point's path leads to, or nil.
func (s *Snapshot) At(path string) *Mount { return s.at[path] }

// ByDevice returns the mounts of the file system with that device number, in the
// table's order.
func (s *Snapshot) ByDevice(major, minor int) []*Mount { return s.byNumber()[number{major, minor}] }

// Above returns the mount that m was put on, or nil if that is out of sight.
func (s *Snapshot) Above(m *Mount) *Mount {
	if above := s.byID[m.Parent]; above != m {
		return above
	}
	return nil
}

// NeedsFUSE reports whether a daemon on this host serves the mount, or a mount that its path
// leads through.
func (s *Snapshot) NeedsFUSE(m *Mount) bool {
	for range s.Mounts { // a table that lies may be a ring
		if m == nil || m.FUSE() {
			break
		}
		m = s.Above(m)
	}
	return m != nil && m.FUSE()
}

// Holding returns the mount that a path lies on, judged by the path alone; nil if the
// table shows no root.
func (s *Snapshot) Holding(path string) *Mount {
	for {
		if m := s.at[path]; m != nil {
			return m
		}
		i := strings.LastIndexByte(path, '/')
		switch {
		case i < 0 || path == "/":
			return nil
		case i == 0:
			path = "/"
		default:
			path = path[:i]
		}
	}
}

// Below reports whether the path is the directory or in it.
func Below(path, directory string) bool {
	return directory == "/" || path == directory || strings.HasPrefix(path, directory) && path[len(directory)] == '/'
}

// A Unit is what is judged as one: the mounts of one file system that can't differ. A
// local file system is a unit as a whole. If a server or daemon stands behind it,
// each directory is a unit, since it can be removed alone: NFS gives all directories of an
// export one superblock.
type Unit struct {
	ID     string   // the same at the next reading
	Probed *Mount   // through which it is checked
	Mounts []*Mount // in the table's order; Probed is one of them
}

// UnitID names the unit that a mount belongs to.
func UnitID(m *Mount) string {
	id := m.Superblock()
	switch {
	case m.ID == 0:
		return m.Mountpoint
	case !m.Network() && !m.FUSE():
		return id
	}
	if id += " " + m.Source; m.Bind() {
		id += " " + m.Root
	}
	return id
}

// Units sorts mounts by unit, in the order in which the units first occur. With each,
// every mount is a unit of its own.
func Units(all []*Mount, each bool) []*Unit {
	var units []*Unit
	found := make(map[string]*Unit, len(all))
	for _, m := range all {
		id := UnitID(m)
		if each {
			id += " " + m.Mountpoint
		}
		u := found[id]
		if u == nil {
			u = &Unit{ID: id, Probed: m}
			found[id] = u
			units = append(units, u)
		}
		u.Mounts = append(u.Mounts, m)
		if probeRank(m) < probeRank(u.Probed) {
			u.Probed = m
		}
	}
	return units
}

// Same reports whether a unit that was known before under this ID is the same file
// system: numbers are used again.
func (u *Unit) Same(before *Mount) bool {
	return u.Probed.Source == before.Source && u.Probed.FSType == before.FSType
}

// probeRank orders mounts of one unit: what autofs has mounted is checked last, and
// the whole file system is preferred to a part of it.
func probeRank(m *Mount) int {
	rank := 0
	if m.OnDemand {
		rank = 2
	}
	if m.Bind() {
		rank++
	}
	return rank
}

// String describes the mount in a log line.
func (m *Mount) String() string {
	if m.FSType == "" {
		return Printable(m.Mountpoint)
	}
	return fmt.Sprintf("%s (%s on %s)", Printable(m.Mountpoint), m.FSType, Printable(m.Source))
}

// Visible returns the mounts that a path leads to and that keep accepts.
func (s *Snapshot) Visible(keep func(*Mount) bool) []*Mount {
	var all []*Mount
	for i := range s.Mounts {
		if m := &s.Mounts[i]; !m.Hidden && keep(m) {
			all = append(all, m)
		}
	}
	return slices.Clip(all)
}

// AskForOptions reports whether there is a file system that may not answer when somebody reads
// the table as text, in this namespace or in another one.
func (s *Snapshot) AskForOptions() bool {
	return slices.ContainsFunc(s.Mounts, func(m Mount) bool { return asksForOptions(m.FSType) })
}

// hasLikeSubmounts reports whether some mounts look like those that the kernel makes.
func (s *Snapshot) hasLikeSubmounts() bool {
	r := reach{byID: s.byID}
	for i := range s.Mounts {
		if r.likenessOf(&s.Mounts[i]) != unlike {
			return true
		}
	}
	return false
}

// told returns the snapshot in which notes tell mounts by hand from the kernel's. It is the same
// snapshot if they make no difference.
func (s *Snapshot) told(n *notes) *Snapshot {
	other := &Snapshot{Mounts: slices.Clone(s.Mounts), Malformed: s.Malformed, Err: s.Err}
	other.index()
	markReach(other.Mounts, other.byID, n)
	other.resolvePaths()
	for i := range s.Mounts {
		if s.Mounts[i].Submount != other.Mounts[i].Submount {
			return other
		}
	}
	return s
}

// with returns the snapshot with those mounts of an earlier one that it lacks: a reading
// during which mounts vanished may have skipped others.
func (s *Snapshot) with(before *Snapshot) *Snapshot {
	if before == nil {
		return s
	}
	infos := make([]*mountinfo.Info, 0, len(s.Mounts))
	devices := make(map[int]string)
	for i := range s.Mounts {
		infos = append(infos, s.Mounts[i].Info)
		devices[s.Mounts[i].ID] = s.Mounts[i].Device
	}
	for i := range before.Mounts {
		if m := &before.Mounts[i]; s.byID[m.ID] == nil {
			infos = append(infos, m.Info)
			devices[m.ID] = m.Device
		}
	}
	both := newSnapshot(infos, s.Err, Devices{})
	both.Malformed = s.Malformed
	for i := range both.Mounts {
		both.Mounts[i].Device = devices[both.Mounts[i].ID]
	}
	return both
}
