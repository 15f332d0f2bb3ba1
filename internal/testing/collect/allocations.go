package collect

import (
	"math"
	"runtime"
	"testing"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/require"
)

// LeastAllocations returns how often, and how many bytes, the process has allocated
// during a gather: the least of several, since other work now and then adds to it.
func LeastAllocations(t testing.TB, input telegraf.Input, gathers int) (count, bytes float64) {
	t.Helper()
	count, bytes = math.Inf(1), math.Inf(1)
	for range gathers {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.NoError(t, input.Gather(&Metrics{}))
		runtime.ReadMemStats(&after)
		count = min(count, float64(after.Mallocs-before.Mallocs))
		bytes = min(bytes, float64(after.TotalAlloc-before.TotalAlloc))
	}
	return count, bytes
}
