package dentrycache

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
)

var errOff = errors.New(`attribution = "none"`)

// startAttribution starts the BPF programs at the first gather, in a goroutine of
// its own: it can take seconds. Unless somebody waits for them, it begins when the first
// metrics have been written.
func (d *DentryCache) startAttribution() {
	if d.started {
		return
	}
	d.started = true
	modes, p, timeout, count, proc, v1 := d.modes, d.host.Prober, d.timeout, d.CountChildren, d.host.Proc, d.owners.hierarchies.V1()
	if len(modes) == 0 && !count {
		d.attributionStarted(nil, errOff, nil, nil, time.Now())
		return
	}
	delay := d.startDelay()
	go func() {
		time.Sleep(delay)
		var walker *attribution.Walker
		var walkerErr error
		if count {
			walker, walkerErr = attribution.OpenWalker(p)
		}
		var tracer *attribution.Tracer
		err := errOff
		if len(modes) > 0 {
			tracer, err = attribution.Start(attribution.Options{Prober: p, Modes: modes, Timeout: min(timeout, maxSelfTest), Proc: proc, MemoryV1: v1})
		}
		counts := time.Now()
		debug.FreeOSMemory() // the kernel's types took some 10 MB
		d.mail.Post(func() { d.attributionStarted(tracer, err, walker, walkerErr, counts) })
	}()
}

// waits reports whether a gather waits for what takes long the first time: the BPF programs
// and the watches. It is so for callers that look only once.
func (d *DentryCache) waits() bool { return d.Eager || d.host.Servers.AtOnce }

// startDelay is how long after the beginning of the first gather the start begins, so that the
// first metrics come before it. Loading the programs takes 0.1 s of CPU time.
func (d *DentryCache) startDelay() time.Duration {
	if d.waits() {
		return 0
	}
	return 100 * time.Millisecond
}

// attributionStarted takes over what could be started, which counts from then on, and logs once
// what could not.
func (d *DentryCache) attributionStarted(tracer *attribution.Tracer, err error, walker *attribution.Walker, walkerErr error, since time.Time) {
	d.ready = true
	switch {
	case !d.CountChildren:
	case walkerErr != nil:
		d.walkerErr = walkerErr.Error()
		d.Log.Infof("the children of directories can't be counted, and stalls can't be predicted: %v", walkerErr)
	default:
		d.walker = walker
		for _, dir := range d.directories {
			if dir.history.Known && !dir.underWay && dir.found.code == 0 {
				d.wantWalk(dir)
			}
		}
	}
	switch {
	case len(d.modes) == 0:
		d.startErr = err.Error()
	case err != nil:
		d.startErr = err.Error()
		d.Log.Infof("the processes that create negative dentries can't be named: %v", err)
	default:
		d.tracer, d.sources.read = tracer, since
		if d.Eager {
			d.watchMisses(time.Now())
		}
		status := tracer.Status()
		d.sayMode(&status)
	}
}

// sayMode logs which mode is used, if it is not the best one. The mode can change later:
// where fentry turns out to miss events, kprobe takes over.
func (d *DentryCache) sayMode(status *attribution.Status) {
	var lacks error
	if why := refusals(status); why != "" {
		lacks = fmt.Errorf("who creates negative dentries is seen in the mode %q only: %s", status.Mode, why)
	}
	d.said.Info("mode", lacks)
}

// refusals tells why no better mode is used.
func refusals(status *attribution.Status) string {
	all := make([]string, len(status.Refused))
	for i, refused := range status.Refused {
		all[i] = fmt.Sprintf("%s: %v", refused.Mode, refused.Err)
	}
	return strings.Join(all, "; ")
}

// emitStatus tells how the figures were made, and what they may lack.
func (d *DentryCache) emitStatus(acc telegraf.Accumulator) {
	fields := map[string]any{"walker": d.walker != nil}
	switch {
	case !d.CountChildren:
		fields["walker_reason"] = "count_children = false"
	case d.walkerErr != "":
		fields["walker_reason"] = d.walkerErr
	}
	if d.watches != nil && d.watches.Hidden != nil {
		fields["watches_reason"] = d.watches.Hidden.Error()
	}
	switch {
	case !d.ready:
		fields["mode"] = "starting"
	case d.tracer == nil:
		fields["mode"], fields["mode_code"], fields["reason"] = attribution.None.String(), int64(attribution.None), d.startErr
	default:
		status := d.tracer.Status()
		d.sayMode(&status)
		fields["mode"], fields["mode_code"] = status.Mode.String(), int64(status.Mode)
		if why := refusals(&status); why != "" {
			fields["reason"] = why
		}
		if status.Mode == attribution.None {
			break
		}
		fields["watching"], fields["events_lost"], fields["map_bytes"] = status.Watching, status.EventsLost, status.MapBytes
		fields["selftest_lookups"], fields["selftest_counted"] = status.SelfTest.Lookups, status.SelfTest.Counted
		t := &d.sources.totals
		if fields["created"] = t.Created; status.Mode > attribution.ENOENT {
			fields["converted"], fields["unlinked"], fields["killed"] = t.Converted, t.Unlinked, t.Killed
		} else {
			fields["sampled"] = t.Sampled
			if status.Counted {
				fields["converted"], fields["unlinked"] = t.Converted, t.Unlinked
			}
		}
	}
	if d.sources.known {
		fields["unexplained_per_s"] = d.sources.unexplained
	}
	acc.AddGauge("dentrycache_status", fields, nil)
}

// maxSelfTest is how long a self-test of the attribution may take.
const maxSelfTest = 2 * time.Second
