package collect

import (
	"runtime"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/require"
)

// allocationsPatience is for what the process does beside its gathers, on a machine that is slow.
const allocationsPatience = 30 * time.Second

// AssertAllocations fails the test unless the process allocates at most so often, and so many bytes, for
// each of n things during a gather. It gathers until it does, since other work adds to it. It
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
		within := count <= most && bytes <= mostBytes
		if !within && !raceDetector && time.Since(began) < allocationsPatience {
			continue
		}
		t.Logf("for each of %d: %.1f allocations of %.0f bytes in all", n, count, bytes)
		if !within && !raceDetector {
			t.Errorf("they are more than %v, or their bytes than %v, in each gather of %v", most, mostBytes, allocationsPatience)
		}
		return
	}
}
