package mountstat

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

const (
	defaultFstab = "/etc/fstab"
	maxFstab     = 1 << 20 // bytes
	// fstabEvery is how often: people edit it by hand.
	fstabEvery = time.Minute
)

// expectation is a mount that should be there.
type expectation struct {
	path, source, fstype string
	readOnly             bool
	automount            bool
	by                   string // who expects it
}

// shortfall is an expectation that is not met.
type shortfall struct {
	expectation
	since time.Time
}

// expectations are what fstab and the configuration want, against the table.
type expectations struct {
	wanted    []expectation
	missing   map[string]*shortfall        // by mount point
	untouched []expectation                // automounts that nobody has triggered
	readOnly  map[string]*shortfall        // mounted read-only against fstab's word
	tags      map[string]map[string]string // of what was mounted last, by mount point
	due       time.Time                    // for fstab to be read again
	reading   bool
	read      *fstab // was read, and is to be looked at
}

type fstab struct {
	entries []mounts.FstabEntry
	absent  map[string]bool   // devices that do not exist
	devices map[string]string // the kernel's names, of those that links lead to
	links   map[string]string // where mount points lead that are symbolic links
	err     error
}

// askFstab has fstab read when it is due. It lies on a monitored file system, so
// a helper reads it.
func (m *Mountstat) askFstab(now time.Time) {
	e := &m.expectations
	if m.fstab == "" || now.Before(e.due) || e.reading {
		return
	}
	e.reading, e.due = true, now.Add(fstabEvery)
	p := &prober.Plan{Timeout: m.timeout}
	p.SearchBelow(m.fstab)
	if m.namespace != "" {
		p.EnterMountNS(m.namespace)
	}
	content := p.ReadFile(m.fstab, maxFstab)
	m.submitFstab("mountstat fstab", p, func(r *prober.Report) {
		read := &fstab{}
		switch failed := r.Failed(); {
		case failed != nil:
			read.err = fmt.Errorf("reading %s: %w", m.fstab, failed.Errno)
		case r.Outcome != prober.Done:
			read.err = fmt.Errorf("reading %s: %w", m.fstab, errors.Join(errors.New("it was not answered"), r.Err))
		default:
			var err error
			if read.entries, err = mounts.ParseFstab(r.Step(content).Output); err != nil {
				read.err = fmt.Errorf("%s: %w", m.fstab, err)
			}
		}
		m.findDevices(read)
	})
}

func (m *Mountstat) submitFstab(key string, p *prober.Plan, take func(*prober.Report)) {
	m.host.Prober.Submit(prober.Check{Key: key, Group: "fstab", Trusted: true, Independent: true, Plan: p}, func(r prober.Report) {
		m.mail.Post(func() { take(&r) })
	})
}

// findDevices looks for the devices of entries: their names as the kernel has them, and
// whether they are there. Without its device a nofail mount is not expected.
func (m *Mountstat) findDevices(read *fstab) {
	p, prefix := m.lookupPlan()
	read.devices, read.absent = make(map[string]string), make(map[string]bool)
	asked := make(map[int]string) // by step
	for i := range read.entries {
		if path := read.entries[i].Device(); path != "" && len(p.Steps) < forkserver.MaxSteps {
			asked[p.Add(prober.Readlink(prober.CWD(), prefix+path).Optional())] = path
		}
	}
	m.submitLookup("mountstat fstab devices", p, len(asked), func(r *prober.Report) {
		for step, path := range asked {
			switch s := r.Step(step); {
			case s == nil:
			case s.Errno == 0:
				read.devices[path] = filepath.Base(string(s.Output))
			case s.Errno == unix.ENOENT:
				read.absent[path] = true
			}
		}
		m.followLinks(read)
	})
}

// followLinks looks where mount points lead that are symbolic links, as /home to var/home.
// Where something is mounted, nothing is to be found out, and nothing is asked.
func (m *Mountstat) followLinks(read *fstab) {
	p, prefix := m.lookupPlan()
	read.links = make(map[string]string)
	asked := make(map[int]string) // by step
	for _, w := range m.wantedBy(read) {
		if m.table.At(w.path) == nil && len(p.Steps) < forkserver.MaxSteps {
			asked[p.Add(prober.Readlink(prober.CWD(), prefix+w.path).Optional())] = w.path
		}
	}
	m.submitLookup("mountstat fstab links", p, len(asked), func(r *prober.Report) {
		for step, path := range asked {
			if s := r.Step(step); s != nil && s.Errno == 0 && len(s.Output) > 0 {
				if target := string(s.Output); filepath.IsAbs(target) {
					read.links[path] = filepath.Clean(target)
				} else {
					read.links[path] = filepath.Join(filepath.Dir(path), target)
				}
			}
		}
		m.expectations.reading, m.expectations.read = false, read
	})
}

// lookupPlan begins a plan that looks for files of the host, whose paths begin with the
// prefix.
func (m *Mountstat) lookupPlan() (p *prober.Plan, prefix string) {
	p = &prober.Plan{Timeout: m.timeout}
	if m.namespace != "" {
		p.EnterMountNS(m.namespace)
		return p, ""
	}
	p.SearchBelow(m.prefix)
	return p, m.prefix
}

// submitLookup starts a plan, if it asks for anything.
func (m *Mountstat) submitLookup(key string, p *prober.Plan, asked int, take func(*prober.Report)) {
	if asked == 0 {
		take(&prober.Report{})
		return
	}
	m.submitFstab(key, p, take)
}

// expect brings the expectations up to date.
func (m *Mountstat) expect(tableChanged bool) {
	e := &m.expectations
	read := e.read
	e.read = nil
	if read != nil {
		err := read.err
		if errors.Is(err, unix.ENOENT) && m.Fstab == defaultFstab {
			err = nil // containers have none
		}
		m.said.Error("fstab", err)
		if read.err == nil || read.entries != nil {
			e.wanted = m.wantedBy(read)
		}
	}
	if m.view.Snapshot != nil && (read != nil || tableChanged || e.missing == nil) {
		m.compare() // without a table nothing is known to be missing
	}
}

func (m *Mountstat) configured() []expectation {
	var all []expectation
	for _, path := range m.Expected {
		all = append(all, expectation{path: filepath.Clean(path), by: "the configuration"})
	}
	return all
}

func (m *Mountstat) wantedBy(read *fstab) []expectation {
	all := m.configured()
	for i := range read.entries {
		entry := &read.entries[i]
		switch {
		case !entry.HasMountpoint() || entry.NoAuto() && !entry.Automount():
			continue
		case entry.NoFail() && read.absent[entry.Device()]:
			continue
		case mounts.Pseudo(entry.FSType) || !m.selection.FitsEntry(entry.Mountpoint, entry.FSType, entry.Source):
			continue
		}
		all = append(all, expectation{
			path: entry.Mountpoint, source: cmp.Or(read.devices[entry.Device()], entry.Source), fstype: entry.MountedType(), readOnly: entry.ReadOnly(),
			automount: entry.Automount(), by: fmt.Sprintf("%s, line %d,", m.fstab, entry.Line),
		})
	}
	for i := range all {
		all[i].path = cmp.Or(read.links[all[i].path], all[i].path)
	}
	return all
}

// compare finds what is missing, and what is read-only that should not be, and
// logs what has changed.
func (m *Mountstat) compare() {
	e := &m.expectations
	if e.wanted == nil {
		e.wanted = m.configured()
	}
	automounts := make(map[string]bool)
	for i := range m.table.Mounts {
		if mount := &m.table.Mounts[i]; mount.FSType == "autofs" {
			automounts[mount.Mountpoint] = true
		}
	}
	at := func(path string) *mounts.Mount { // what is mounted there but for autofs
		if mount := m.table.At(path); mount != nil && mount.FSType != "autofs" {
			return mount
		}
		return nil
	}
	missing, readOnly := make(map[string]*shortfall), make(map[string]*shortfall)
	if e.tags == nil {
		e.tags = make(map[string]map[string]string)
	}
	e.untouched = nil
	for _, w := range e.wanted {
		mount := at(w.path)
		switch {
		case mount == nil && automounts[w.path]:
			e.untouched = append(e.untouched, w)
		case mount == nil:
			missing[w.path] = &shortfall{expectation: w}
			continue
		case w.source != "" && !w.readOnly && mount.ReadOnly() && !mounts.AlwaysReadOnly(mount.FSType):
			readOnly[w.path] = &shortfall{expectation: w}
		}
		if mount != nil {
			e.tags[w.path] = mountTags(mount)
		}
	}
	for _, t := range m.targets {
		for _, mount := range t.Mounts {
			if readOnly[mount.Mountpoint] == nil && t.namespace == nil && (t.turnedReadOnly && !mount.ReadOnly() || turnedReadOnly(mount)) {
				readOnly[mount.Mountpoint] = &shortfall{expectation: expectation{path: mount.Mountpoint}}
			}
		}
	}
	e.missing = m.follow(e.missing, missing,
		func(s *shortfall) {
			m.Log.Warnf("%s is not mounted, though %s wants it", mounts.Printable(s.path), s.by)
		},
		func(s *shortfall) {
			if at(s.path) != nil {
				m.Log.Infof("%s is mounted; it was missing for %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
	e.readOnly = m.follow(e.readOnly, readOnly,
		func(s *shortfall) {
			if s.by == "" {
				m.Log.Warnf("%s was mounted for writing, and turned read-only: read_only", mounts.Printable(s.path))
			} else {
				m.Log.Warnf("%s is mounted read-only, though %s wants it writable: read_only", mounts.Printable(s.path), s.by)
			}
		},
		func(s *shortfall) {
			if at(s.path) != nil {
				m.Log.Infof("%s is writable again after %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
}

// follow keeps since when each shortfall has been there.
func (m *Mountstat) follow(before, now map[string]*shortfall, began, ended func(*shortfall)) map[string]*shortfall {
	for path, s := range now {
		if earlier := before[path]; earlier != nil {
			s.since = earlier.since
			continue
		}
		s.since = time.Now()
		began(s)
	}
	for path, s := range before {
		if now[path] == nil {
			ended(s)
		}
	}
	return now
}

// turnedReadOnly reports whether the kernel has made a file system read-only
// after an error: its mount still says rw. (Whoever mounts or remounts it
// read-only changes both.) Since Linux 6.16 ext4 says so in an option.
func turnedReadOnly(mount *mounts.Mount) bool {
	switch mount.FSType {
	case "ext2", "ext3", "ext4", "f2fs", "btrfs", "vfat", "jfs", "nilfs2", "ocfs2":
	default:
		return false
	}
	has := func(list, option string) bool { return strings.Contains(","+list+",", ","+option+",") }
	return has(mount.VFSOptions, "emergency_ro") || has(mount.VFSOptions, "ro") && has(mount.Options, "rw")
}

// emitMissing reports the mounts that are not there.
func (m *Mountstat) emitMissing(acc telegraf.Accumulator, counts *counts) {
	tags := func(e *expectation) map[string]string {
		if last := m.expectations.tags[e.path]; last != nil {
			return maps.Clone(last) // the series that was well is the one that is not
		}
		mode := "rw"
		if e.readOnly {
			mode = "ro"
		}
		t := map[string]string{"path": mounts.Printable(e.path), "mode": mode}
		if e.source != "" {
			t["device"], t["fstype"] = mounts.SourceTag(e.source), mounts.Printable(e.fstype)
		}
		return t
	}
	for _, s := range m.expectations.missing {
		counts[result.Missing]++
		acc.AddGauge("mountstat", map[string]any{
			"result":        result.Missing.String(),
			"result_code":   int64(result.Missing),
			"cause":         string(notMounted),
			"reason":        s.by + " wants it",
			"hung_seconds":  0.0,
			"fault_seconds": time.Since(s.since).Seconds(),
		}, tags(&s.expectation))
	}
	for i := range m.expectations.untouched {
		counts[result.Unchecked]++
		acc.AddGauge("mountstat", map[string]any{
			"result":        result.Unchecked.String(),
			"result_code":   int64(result.Unchecked),
			"reason":        "to be mounted on demand; nobody has asked for it",
			"hung_seconds":  0.0,
			"fault_seconds": 0.0,
		}, tags(&m.expectations.untouched[i]))
	}
}
