package collect

import (
	"runtime"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/race"
)

// allocationsPatience is for what the process does beside its gathers, on a machine that is slow.
const allocationsPatience = 30 * time.Second

// AssertAllocations fails the test unless the process allocates less often than most, and less than mostBytes,
// for each of n things during a gather. It gathers until it does, since other work adds to it. It
// asserts nothing with the race detector, which allocates too.
func AssertAllocations(t *testing.T, input telegraf.Input, n int, most, mostBytes float64) {
	t.Helper()
	for began := time.Now(); ; {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.NoError(t, input.Gather(&Metrics{}))
		runtime.ReadMemStats(&after)
		count := float64(after.Mallocs-before.Mallocs) / float64(n)
		bytes := float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
		within := race.Enabled || count < most && bytes < mostBytes
		if within || time.Since(began) >= allocationsPatience {
			t.Logf("for each of %d: %.1f allocations of %.0f bytes in all", n, count, bytes)
			assert.True(t, within, "less than %v of less than %v bytes, in some gather of %v", most, mostBytes, allocationsPatience)
			return
		}
	}
}
