// Package dentrycache is a Telegraf input that tells whether the dentry cache
// grows toward the stall that freezes hosts, how long that stall would last by now,
// and which process and directory cause it.
package dentrycache

import (
	_ "embed"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mailbox"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/oncelog"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/watches"
)

//go:embed sample.conf
var sampleConfig string

// DentryCache is the input. Its exported fields are its configuration, which
// sample.conf explains.
type DentryCache struct {
	Directories     []string        `toml:"directories"`
	FindDirectories bool            `toml:"find_directories"`
	MaxChildren     int             `toml:"max_children"`
	CountChildren   bool            `toml:"count_children"`
	SampleNames     bool            `toml:"sample_names"`
	LookupProbe     bool            `toml:"lookup_probe"`
	InotifyProbe    bool            `toml:"inotify_probe"`
	Attribution     string          `toml:"attribution"`
	ENOENTThreshold float64         `toml:"enoent_threshold"`
	TopSources      int             `toml:"top_sources"`
	SourceThreshold float64         `toml:"source_threshold"`
	TopCgroups      int             `toml:"top_cgroups"`
	MemoryShare     float64         `toml:"memory_share"`
	Timeout         config.Duration `toml:"timeout"`
	KernelLog       string          `toml:"kernel_log"`

	Log   telegraf.Logger `toml:"-"`
	Eager bool            `toml:"-"` // count what the mode ENOENT can at once: somebody is looking

	settings
	host   *host.Host
	said   *oncelog.Log
	cache  cache
	owners owners

	mounts      *mounts.Snapshot // as last read
	directories []*directory
	refused     map[string]time.Time // that were found growing and can't be looked at; when

	watches  *watches.Watches
	scanning bool
	scanDue  time.Time

	tracer    *attribution.Tracer
	walker    *attribution.Walker
	walks     int    // under way
	started   bool   // the attribution's start
	ready     bool   // it has ended
	startErr  string // why there is no tracer
	walkerErr string // why there is no walker
	sources   sources

	mail        *mailbox.Mailbox
	interrupted atomic.Bool
}

func init() {
	inputs.Add("dentrycache", func() telegraf.Input {
		return &DentryCache{
			Directories:     []string{"/"},
			FindDirectories: true,
			CountChildren:   true,
			MaxChildren:     20_000_000,
			LookupProbe:     true,
			Attribution:     "auto",
			ENOENTThreshold: 100,
			TopSources:      10,
			SourceThreshold: 10,
			TopCgroups:      10,
			MemoryShare:     0.25,
			Timeout:         config.Duration(5 * time.Second),
			KernelLog:       kmsg.Device,
			mail:            mailbox.New(),
		}
	})
}

// SampleConfig returns the documented configuration.
func (*DentryCache) SampleConfig() string { return sampleConfig }

// UseHost sets the host that all inputs of the plugin share.
func (d *DentryCache) UseHost(h *host.Host) { d.host = h }

// Init checks the configuration, and finds out which kernel this is.
func (d *DentryCache) Init() error {
	if err := d.resolve(); err != nil {
		return err
	}
	if d.host == nil {
		d.host = host.Alone(d.Log)
	}
	d.said, d.mounts = oncelog.New(d.Log), mounts.NewSnapshot(nil)
	kernel, err := dcache.ReadVersion(d.host.Proc)
	if err != nil {
		return fmt.Errorf("finding the kernel's version: %w", err)
	}
	d.cache.kernel = kernel
	d.host.ExpectKernelLog(d.KernelLog, d)
	d.owners.hierarchies = cgroups.FindHierarchies(d.host.Sys)
	d.directories, d.refused = nil, make(map[string]time.Time)
	for _, name := range d.Directories {
		d.directories = append(d.directories, &directory{path: name, configured: true})
	}
	return nil
}

// Gather reports the cgroups and the whole host at once, and then the directories.
// A helper process looks at each directory, and its children are counted. Gather returns
// when all are reported, when their time is up, or when Interrupt is called.
func (d *DentryCache) Gather(acc telegraf.Accumulator) error {
	now, round := time.Now(), d.host.Join(d)
	d.interrupted.Store(false)
	d.gatherCgroups(acc, now)
	if f, can := acc.(interface{ Flush() }); can && !d.started {
		f.Flush() // the kernel's log is read for the first time, which takes a while
	}
	if err := d.gatherHost(acc, now); err != nil {
		return err
	}
	d.startAttribution()
	d.mail.Drain()
	if view := d.host.Mounts(round); view.Snapshot != nil {
		d.mounts = view.Snapshot
	}
	d.gatherSources(acc, now)
	d.watchMisses(now)
	d.forget(now)
	d.startLooks(now)
	d.scanWatches(now)

	pending := slices.Clone(d.directories)
	end := time.After(d.timeout + d.timeout/10)
	for {
		d.mail.Drain()
		complete := !d.waits() || d.ready && (!d.scanning || d.watches != nil)
		if complete {
			pending = slices.DeleteFunc(pending, func(dir *directory) bool {
				done := !dir.underWay && !dir.walking
				if done {
					d.report(acc, dir, now)
				}
				return done
			})
		}
		if d.interrupted.Load() || complete && len(pending) == 0 {
			break
		}
		select {
		case <-d.mail.Wake():
			continue
		case <-end:
		}
		d.mail.Drain()
		break
	}
	for _, dir := range pending {
		d.reportPending(acc, dir)
	}
	d.emitStatus(acc)
	return nil
}

// Interrupt makes a Gather under way return.
func (d *DentryCache) Interrupt() {
	d.interrupted.Store(true)
	d.mail.Post(func() {}) // wakes it
}

// Close ends the attribution. It is not needed where the process ends.
func (d *DentryCache) Close() {
	d.await(func() bool { return !d.started || d.ready })
	if d.tracer != nil {
		d.tracer.Close()
	}
	d.await(func() bool { return d.walks == 0 })
	if d.walker != nil {
		d.walker.Close()
	}
}

// await runs what is posted until so returns true.
func (d *DentryCache) await(so func() bool) {
	for !so() {
		<-d.mail.Wake()
		d.mail.Drain()
	}
}

// report reports a directory. If a directory was found growing and can't be looked at, there is
// nothing to alert on: it is forgotten.
func (d *DentryCache) report(acc telegraf.Accumulator, dir *directory, now time.Time) {
	if dir.configured || dir.found.code == result.OK {
		d.emitDirectory(acc, dir)
		return
	}
	d.refused[dir.path] = now
	d.drop(dir)
}

// reportPending reports a directory about which something was still under way
// when Gather had to return. A directory that hung before still does, and one that is
// being walked has an older figure. Of others nothing is known.
func (d *DentryCache) reportPending(acc telegraf.Accumulator, dir *directory) {
	if dir.history.Known && (!dir.underWay || dir.history.Hung()) {
		d.emitDirectory(acc, dir)
	}
}

// foundGrowing records directories in which negative dentries grow, with how many
// per second. The fastest ones get a place beside the configured ones.
func (d *DentryCache) foundGrowing(rates map[string]float64, now time.Time) {
	for _, dir := range d.directories {
		if rate, growing := rates[dir.path]; growing {
			delete(rates, dir.path)
			if dir.rate = rate; rate >= d.SourceThreshold && rate > 0 {
				dir.grew = now
			}
		} else {
			dir.rate = 0
		}
	}
	for name, rate := range rates {
		if rate < d.SourceThreshold || rate <= 0 || !d.refused[name].IsZero() {
			continue
		}
		if len(d.directories) >= maxDirectories {
			slowest := d.slowest()
			if slowest == nil || slowest.rate >= rate {
				continue
			}
			d.drop(slowest)
		}
		d.directories = append(d.directories, &directory{path: name, rate: rate, grew: now})
	}
}

// slowest is the directory that can be dropped for one that grows faster.
func (d *DentryCache) slowest() (slowest *directory) {
	for _, dir := range d.directories {
		if !dir.configured && !dir.underWay && !dir.walking && !d.dangerous(dir) && (slowest == nil || dir.rate < slowest.rate) {
			slowest = dir
		}
	}
	return slowest
}

func (d *DentryCache) drop(dir *directory) {
	d.directories = slices.DeleteFunc(d.directories, func(o *directory) bool { return o == dir })
	d.said.Error("walk of "+dir.path, nil)
	d.said.Info("negatives of "+dir.path, nil)
}

// forget drops the directories that were found growing, have not grown for long, and are harmless.
func (d *DentryCache) forget(now time.Time) {
	for _, dir := range slices.Clone(d.directories) {
		if !dir.configured && !dir.underWay && !dir.walking && now.Sub(dir.grew) > idleTimeout && !d.dangerous(dir) {
			d.drop(dir)
		}
	}
	for name, at := range d.refused {
		if now.Sub(at) > idleTimeout {
			delete(d.refused, name)
		}
	}
}
