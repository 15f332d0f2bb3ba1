package fault

import (
	"net/netip"
	"time"
)

// Report is what was known of a fault when it began, from an input's evidence. It is for people
// who may come when the fault is over.
type Report struct {
	Input   string
	Subject string // what is at fault: a mount point, mostly
	Began   time.Time
	// Cause is that of the metric. Fields say more about it.
	Cause  string
	Fields map[string]any
	Facts  []Fact // beside the fields
	// Helper is vfsprobe's own process that waits; 0 if none does. Processes are those
	// of the host whose threads tell more.
	Helper    int
	Processes []int
	Servers   []netip.Addr // with which this host may have connections
}

// Fact is one thing that is known, of one or more lines.
type Fact struct{ Name, Text string }

// Add adds a fact, unless it is empty.
func (r *Report) Add(name, text string) {
	if text != "" {
		r.Facts = append(r.Facts, Fact{name, text})
	}
}

// A Recorder keeps what is known of faults when they begin.
type Recorder interface {
	// Began records a fault. It returns the name of the file in which its report will be. The
	// name is empty if the report is not kept, or in no file.
	Began(*Report) (file string)
}

// KeptIn is the part of a log line that names the file in which a fault's report will be.
func KeptIn(file string) string {
	if file == "" {
		return ""
	}
	return "; what is known of it is kept in " + file
}
