package mountstat

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// expectation is a mount that should be there.
type expectation struct {
	path, source, fstype string
	readOnly             bool
	by                   string // who expects it
}

// shortfall is an expectation that is not met.
type shortfall struct {
	expectation
	since time.Time
	why   string // of one that is read-only, if the kernel says so
	cause cause  // of one that can't be mounted on demand
	// answer is the answer of its server, if that is the reason.
	answer serverpool.Answer
	server string // its address
}

// expectations are what the sources and the configuration want, compared with the table.
type expectations struct {
	wanted    []expectation
	missing   map[string]*shortfall        // by mount point
	untouched []expectation                // automounts that nobody has triggered
	readOnly  map[string]*shortfall        // mounted read-only against fstab's word
	tags      map[string]map[string]string // of what was mounted last, by mount point
	sources   *sources
	due       time.Time // for them to be read again
	reading   bool
	read      *reading // is to be looked at
}

// expect updates the expectations.
func (m *Mountstat) expect(tableChanged bool) {
	e := &m.expectations
	read := e.read
	e.read = nil
	if read != nil {
		m.said.Error("fstab", read.fstab)
		m.said.Error("units", read.units)
		e.wanted = read.wanted
		m.skip()
	}
	if m.view.Snapshot != nil && (read != nil || tableChanged || e.missing == nil) {
		m.compare() // without a table nothing is known to be missing
	}
}

// wants reports whether something should be mounted at a path.
func (e *expectations) wants(path string) bool {
	return slices.ContainsFunc(e.wanted, func(w expectation) bool { return w.path == path })
}

// configured is what the configuration wants.
func (m *Mountstat) configured() []expectation {
	var all []expectation
	for _, path := range m.Expected {
		all = append(all, expectation{path: filepath.Clean(path), by: "the configuration"})
	}
	return all
}

// compare finds what is missing, and what is read-only though it should not be, and
// logs what has changed.
func (m *Mountstat) compare() {
	e := &m.expectations
	missing, readOnly := m.findShortfalls()
	e.missing = m.follow(e.missing, missing,
		func(s *shortfall) {
			m.Log.Warnf("%s is not mounted, though %s wants it", mounts.Printable(s.path), s.by)
		},
		func(s *shortfall) {
			if m.mountedAt(s.path) != nil {
				m.Log.Infof("%s is mounted; it was missing for %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
	e.readOnly = m.follow(e.readOnly, readOnly,
		func(s *shortfall) {
			why := joinReasons(string(result.ReadOnly), s.why)
			if s.by == "" {
				m.Log.Warnf("%s was mounted for writing, and turned read-only: %s", mounts.Printable(s.path), why)
			} else {
				m.Log.Warnf("%s is mounted read-only, though %s wants it writable: %s", mounts.Printable(s.path), s.by, why)
			}
		},
		func(s *shortfall) {
			if m.mountedAt(s.path) != nil {
				m.Log.Infof("%s is writable again after %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
}

// findShortfalls compares what is wanted with the mount table.
func (m *Mountstat) findShortfalls() (missing, readOnly map[string]*shortfall) {
	e := &m.expectations
	automounts := make(map[string]bool)
	for i := range m.table.Mounts {
		if mount := &m.table.Mounts[i]; mount.FSType == "autofs" {
			automounts[mount.Mountpoint] = true
		}
	}
	missing, readOnly = make(map[string]*shortfall), make(map[string]*shortfall)
	if e.tags == nil {
		e.tags = make(map[string]map[string]string)
	}
	e.untouched = nil
	for _, w := range e.wanted {
		mount := m.mountedAt(w.path)
		switch {
		case mount == nil && automounts[w.path]:
			e.untouched = append(e.untouched, w)
		case mount == nil:
			missing[w.path] = &shortfall{expectation: w}
			continue
		case w.source != "" && !w.readOnly && mount.ReadOnly() && !mounts.AlwaysReadOnly(mount.FSType):
			readOnly[w.path] = &shortfall{expectation: w}
			if t := m.byMount[mount.ID]; t != nil {
				readOnly[w.path].why = t.quote(quoted[result.ReadOnly]...)
			}
		}
		if mount != nil {
			e.tags[w.path] = mountTags(mount)
		}
	}
	for _, t := range m.targets {
		for _, mount := range t.Mounts {
			if readOnly[mount.Mountpoint] == nil && t.namespace == nil && (t.turnedReadOnly && !mount.ReadOnly() || turnedReadOnly(mount)) {
				readOnly[mount.Mountpoint] = &shortfall{expectation: expectation{path: mount.Mountpoint}, why: t.quote(quoted[result.ReadOnly]...)}
			}
		}
	}
	return missing, readOnly
}

// follow keeps the time since which each shortfall has been there.
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

// emitMissing reports the mounts that are missing.
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
		if m.automounts[m.expectations.untouched[i].path] != nil {
			continue // it can't be mounted
		}
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
