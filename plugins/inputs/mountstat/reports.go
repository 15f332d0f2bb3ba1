package mountstat

import (
	"sync"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// reports are those that came from the prober, on goroutines of its own. Their memory is used
// again.
type reports struct {
	mu      sync.Mutex
	arrived []arrival
	spare   []*prober.Report
}

type arrival struct {
	target *target
	report *prober.Report
}

// add takes a report. It reports whether it is the first one since they were taken.
func (r *reports) add(t *target, report prober.Report) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var memory *prober.Report
	if last := len(r.spare) - 1; last >= 0 {
		memory, r.spare = r.spare[last], r.spare[:last]
	} else {
		memory = new(prober.Report)
	}
	*memory = report
	r.arrived = append(r.arrived, arrival{t, memory})
	return len(r.arrived) == 1
}

// giveBack takes the memory of a report that is of no use any more.
func (r *reports) giveBack(report *prober.Report) {
	*report = prober.Report{}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = append(r.spare, report)
}
