package fault

import "github.com/vfsprobe/vfsprobe/internal/result"

// Sums are what happened to the mounts of one server together. The zero Sums are empty.
type Sums struct {
	mounts, faults, hung int64
	superblocks          map[string]struct{}
}

// Add counts mounts of a superblock that are judged as one.
func (s *Sums) Add(mounts int, superblock string, code result.Code, h *History) {
	if s.superblocks == nil {
		s.superblocks = make(map[string]struct{})
	}
	s.superblocks[superblock] = struct{}{}
	s.mounts += int64(mounts)
	if code.Fault() {
		s.faults += int64(mounts)
	}
	if h.Hung() {
		s.hung += int64(mounts)
	}
}

// Fields are mounts, superblocks, faults and hung.
func (s *Sums) Fields() map[string]any {
	return map[string]any{"mounts": s.mounts, "superblocks": int64(len(s.superblocks)), "faults": s.faults, "hung": s.hung}
}
