package execd

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/metric"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/schema"
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
}

func (h *health) metric(now time.Time) telegraf.Metric {
	fields := make(map[string]any)
	var own unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &own) == nil {
		fields["cpu_seconds"] = time.Duration(own.Utime.Nano() + own.Stime.Nano()).Seconds()
	}
	if resident, ok := residentBytes(); ok {
		fields["resident_bytes"] = resident
	}
	s := h.prober.Stats()
	fields["helpers_forked"] = s.Forked
	fields["helpers_killed"] = s.Killed
	fields["helpers_running"] = s.Running
	fields["helpers_stuck"] = s.Stuck
	fields["helpers_asleep"] = s.Asleep
	fields["fork_server_restarts"] = s.ServerRestarts
	fields["fork_server_cpu_seconds"] = s.CPUSeconds
	fields["fork_server_resident_bytes"] = s.ResidentBytes
	return metric.New("vfsprobe", nil, fields, now, telegraf.Gauge)
}

// residentBytes reads how much memory this process has.
func residentBytes() (int64, bool) {
	content, err := os.ReadFile("/proc/self/statm")
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
