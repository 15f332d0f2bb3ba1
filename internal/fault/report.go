package fault

import (
	"net/netip"
	"time"
)

// Report is what was known of a fault when it began, as an input's evidence has it: for people,
// who may come when it is over.
type Report struct {
	Input   string
	Subject string // what is at fault: a mount point, mostly
	Began   time.Time
	// Cause is that of the metric, which Fields say more about.
	Cause  string
	Fields map[string]any
	Facts  []Fact // beside the fields
	// Helper is the process of vfsprobe's own that waits; 0: none does. Processes are those
	// of the host whose threads tell more.
	Helper    int
	Processes []int
	Servers   []netip.Addr // with which this host may have connections
}

// Fact is one thing that is known, of one or more lines.
type Fact struct{ Name, Text string }

// Add adds a fact, if there is one.
func (r *Report) Add(name, text string) {
	if text != "" {
		r.Facts = append(r.Facts, Fact{name, text})
	}
}

// A Recorder keeps what is known of faults when they begin.
type Recorder interface {
	// Began takes a fault. It returns the name of the file in which its report will be; empty:
	// it is not kept, or in no file.
	Began(*Report) (file string)
}

// KeptIn is what a line of the log says of the file in which a fault's report will be.
func KeptIn(file string) string {
	if file == "" {
		return ""
	}
	return "; what is known of it is kept in " + file
}
