package dentrycache

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// The bounds are some twice of what is needed, to be seen when it becomes more; four
// times where the kernel's means and the host's processes have a part in it.
func TestDentryCache_AllocationsOfAGather(t *testing.T) {
	for name, c := range map[string]struct {
		change       func(*DentryCache)
		count, bytes float64
	}{
		"the host's counters":  {func(d *DentryCache) { d.TopCgroups = 0 }, 200, 42000},
		"a directory, and all": {everything, 2400, 220000},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newInput(t, c.change)
			collect.Gather(t, d)
			collect.AssertAllocations(t, d, 1, c.count, c.bytes)
		})
	}
}
