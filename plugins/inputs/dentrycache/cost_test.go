package dentrycache

import (
	"math"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// The bounds are some twice of what is needed, to be seen when it becomes more; four
// times where the kernel's means and the host's processes have a part in it.
func TestAllocationsOfAGather(t *testing.T) {
	for name, c := range map[string]struct {
		change       func(*Dentrycache)
		count, bytes float64
	}{
		"the host's counters":  {func(d *Dentrycache) { d.TopCgroups = 0 }, 200, 42000},
		"a directory, and all": {everything, 2400, 220000},
	} {
		t.Run(name, func(t *testing.T) {
			const gathers = 20
			d, _ := newInput(t, c.change)
			collect.Gather(t, d)
			count, bytes := math.Inf(1), math.Inf(1) // the least of several: cgroups are not walked in each
			for range gathers {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				require.NoError(t, d.Gather(&collect.Metrics{}))
				runtime.ReadMemStats(&after)
				count = min(count, float64(after.Mallocs-before.Mallocs))
				bytes = min(bytes, float64(after.TotalAlloc-before.TotalAlloc))
			}
			t.Logf("%.0f allocations of %.0f bytes in all", count, bytes)
			assert.Less(t, count, c.count)
			assert.Less(t, bytes, c.bytes)
		})
	}
}
