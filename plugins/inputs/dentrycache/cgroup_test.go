package dentrycache

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPauseAfter_CountsNoTimeInWhichOthersHadTheCPU(t *testing.T) {
	const busy, idle = 20 * time.Millisecond, 300 * time.Millisecond
	var used time.Duration
	pause := pauseAfter(func() {
		for before := threadCPU(); used < busy; {
			used = threadCPU() - before
		}
		time.Sleep(idle)
	})
	assert.GreaterOrEqual(t, pause, time.Duration(float64(busy)/walkCgroupsShare))
	assert.Less(t, pause, time.Duration(float64(idle)/walkCgroupsShare))
}

func TestPauseAfter_AWalkShorterThanATick(t *testing.T) {
	const busy = 100 * time.Microsecond
	for range 50 {
		pause := pauseAfter(func() {
			for began := time.Now(); time.Since(began) < busy; {
			}
		})
		assert.Positive(t, pause)
	}
}
