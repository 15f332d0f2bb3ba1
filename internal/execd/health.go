package execd

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/schema"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

// Schema describes the plugin's metric about itself.
func Schema() []schema.Measurement {
	return []schema.Measurement{{
		Name: "vfsprobe",
		Fields: []schema.Fields{
			schema.Floats("of the plugin's process", "cpu_seconds"),
			schema.Integers("of the plugin's process", "resident_bytes"),
			schema.Counters("helper processes", "helpers_forked"),
			schema.Counters("of them, those that did not end in time", "helpers_killed"),
			schema.Integers("now; those that survive SIGKILL, those that were left asleep, and the others", "helpers_stuck", "helpers_asleep", "helpers_running"),
			schema.Counters("because it ended or did not answer", "fork_server_restarts"),
			schema.Floats("of the fork server and the helpers", "fork_server_cpu_seconds"),
			schema.Integers("", "fork_server_resident_bytes"),
		},
	}}
}

// health makes the plugin's metric about itself.
type health struct {
	prober *prober.Prober
	state  *state.Store
	before counters // of earlier runs
}

// counters are those that go on across a restart.
type counters struct {
	Forked   int64 `json:"helpers_forked"`
	Killed   int64 `json:"helpers_killed"`
	Restarts int64 `json:"fork_server_restarts"`
}

// healthKey is the name that the counters are kept under.
const healthKey = "vfsprobe"

func newHealth(p *prober.Prober, s *state.Store) *health {
	h := &health{prober: p, state: s}
	if kept := s.First(healthKey); kept != nil && json.Unmarshal(kept, &h.before) != nil {
		h.before = counters{}
	}
	return h
}

func (h *health) metric(at time.Time) *metric.Metric {
	fields := make(map[string]any)
	var own unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &own) == nil {
		fields["cpu_seconds"] = time.Duration(own.Utime.Nano() + own.Stime.Nano()).Seconds()
	}
	if resident, ok := residentBytes(); ok {
		fields["resident_bytes"] = resident
	}
	s := h.prober.Stats()
	now := counters{h.before.Forked + s.Forked, h.before.Killed + s.Killed, h.before.Restarts + s.ServerRestarts}
	h.state.Count(healthKey, now)
	fields["helpers_forked"] = now.Forked
	fields["helpers_killed"] = now.Killed
	fields["helpers_running"] = s.Running
	fields["helpers_stuck"] = s.Stuck
	fields["helpers_asleep"] = s.Asleep
	fields["fork_server_restarts"] = now.Restarts
	fields["fork_server_cpu_seconds"] = s.CPUSeconds
	fields["fork_server_resident_bytes"] = s.ResidentBytes
	return metric.New("vfsprobe", nil, fields, at)
}

// residentBytes reads how much memory this process has.
func residentBytes() (int64, bool) {
	content, err := procfs.Read("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	pages, ok := parseResident(content)
	return pages * int64(os.Getpagesize()), ok
}

// parseResident returns the second field of proc_pid_statm(5), in pages.
func parseResident(content []byte) (int64, bool) {
	fields := bytes.Fields(content)
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 44) // their bytes fit into an int64
	return int64(pages), err == nil
}
