package hostreport

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/state"
)

const (
	// collectWindow is for how long faults that begin are taken into one file: those of all
	// mounts of a server begin together.
	collectWindow = 2 * time.Second
	// minReportInterval is when the same fault is worth another file, as of a mount that comes and goes.
	minReportInterval = time.Hour
	// maxFiles and maxFile bound what is kept, in number and bytes.
	maxFiles = 32
	maxFile  = 256 << 10
	// maxRemembered is how many faults are remembered.
	maxRemembered = 4096
	writeTimeout  = 5 * time.Second
	maxNames      = 1 << 20 // bytes of a directory's entries
	prefix        = "fault-"
	suffix        = ".txt"
)

// Collector is a Recorder that keeps the faults in memory.
type Collector struct {
	mu     sync.Mutex
	faults []*fault.Report
}

// Began takes a fault.
func (c *Collector) Began(f *fault.Report) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, f)
	return ""
}

// Faults are those that were taken.
func (c *Collector) Faults() []*fault.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.faults)
}

// FlightRecorder is a Recorder that writes what is known of faults to files of a directory, once for
// each: at 3 a.m. a fault may be over. Helper processes write, and nothing is written while that
// directory's file system is at fault.
type FlightRecorder struct {
	host    *host.Host
	dir     string
	version string
	atFault func() bool
	log     telegraf.Logger

	mu      sync.Mutex
	seen    map[string]time.Time // when a fault was taken, by what and why
	open    string               // the file that takes faults; empty: none does
	faults  []*fault.Report      // that it is to tell of
	writing bool                 // one is being written; the open one has to wait
}

// NewFlightRecorder returns a Flight of a directory. atFault reports whether its file system is.
func NewFlightRecorder(h *host.Host, dir, version string, atFault func() bool, log telegraf.Logger) *FlightRecorder {
	return &FlightRecorder{host: h, dir: dir, version: version, atFault: atFault, log: log, seen: make(map[string]time.Time)}
}

// Began takes a fault, and returns the file that is to tell of it, in a while.
func (f *FlightRecorder) Began(r *fault.Report) string {
	if f.atFault() {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now, id := time.Now(), r.Input+" "+r.Subject+" "+r.Cause
	if at, known := f.seen[id]; known && now.Sub(at) < minReportInterval {
		return ""
	}
	if len(f.seen) >= maxRemembered {
		clear(f.seen)
	}
	f.seen[id] = now
	if f.open == "" {
		f.open = filepath.Join(f.dir, prefix+now.UTC().Format("20060102T150405.000Z")+suffix)
		if !f.writing {
			time.AfterFunc(collectWindow, f.write)
		}
	}
	if len(f.faults) < maxRemembered {
		f.faults = append(f.faults, r)
	}
	return f.open
}

// write writes the file that is open, and has the next one written if there is one by then.
func (f *FlightRecorder) write() {
	f.mu.Lock()
	name, faults := f.open, f.faults
	f.open, f.faults, f.writing = "", nil, true
	f.mu.Unlock()
	f.writeFile(name, faults)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writing = false; f.open != "" {
		time.AfterFunc(collectWindow, f.write)
	}
}

func (f *FlightRecorder) writeFile(name string, faults []*fault.Report) {
	if f.atFault() {
		f.log.Warnf("%s is not written: its file system is at fault itself", name)
		return
	}
	content := Text(f.host, faults, Options{Version: f.version, Brief: true})
	if len(content) > maxFile {
		content = append(content[:maxFile-len(cut):maxFile-len(cut)], cut...)
	}
	if err := state.WriteFile(f.host.Prober, name, content); err != nil {
		f.log.Warnf("what is known of a fault could not be kept: %v", err)
		return
	}
	if err := f.removeOld(); err != nil {
		f.log.Warnf("old reports of faults could not be removed: %v", err)
	}
}

const cut = "\nthe rest is left out\n"

// removeOld removes the oldest files, if there are too many.
func (f *FlightRecorder) removeOld() error {
	list := &prober.Plan{Timeout: writeTimeout}
	list.SearchBelow(f.dir)
	dir := prober.ResultOf(list.Add(prober.Open(prober.CWD(), f.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)))
	names := list.Add(prober.ReadDirectory(dir, maxNames))
	r := f.host.Prober.Run(f.check(list))
	if failed := r.Failed(); failed != nil || r.Outcome != prober.Done {
		return fmt.Errorf("reading %s: the helper process is %v: %v", f.dir, r.Outcome, failed)
	}
	files := slices.DeleteFunc(r.Step(names).Names(), func(name string) bool {
		return !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, suffix)
	})
	slices.Sort(files)
	const perPlan = 16
	for old := range slices.Chunk(files[:max(0, len(files)-maxFiles)], perPlan) {
		remove := &prober.Plan{Timeout: writeTimeout}
		for _, name := range old {
			remove.Add(prober.Unlink(prober.CWD(), filepath.Join(f.dir, name)).Optional())
		}
		if r := f.host.Prober.Run(f.check(remove)); r.Outcome != prober.Done {
			return fmt.Errorf("removing files of %s: the helper process is %v", f.dir, r.Outcome)
		}
	}
	return nil
}

func (f *FlightRecorder) check(p *prober.Plan) prober.Check {
	return prober.Check{Key: "reports of faults", Group: "reports of faults", Trusted: true, Independent: true, Plan: p}
}
