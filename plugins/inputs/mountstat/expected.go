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
	*kit
	own       []expectation // of the configuration
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
	news := e.takeNews()
	if news {
		m.skip()
	}
	if m.view.Snapshot != nil && (news || tableChanged || e.missing == nil) {
		e.compare(&m.inventory) // without a table nothing is known to be missing
	}
}

// takeNews takes over what was read since the last time. It reports whether there was something.
func (e *expectations) takeNews() bool {
	read := e.read
	e.read = nil
	if read == nil {
		return false
	}
	e.said.Error("fstab", read.fstab)
	e.said.Error("units", read.units)
	e.wanted = read.wanted
	return true
}

// wants reports whether something should be mounted at a path.
func (e *expectations) wants(path string) bool {
	return slices.ContainsFunc(e.wanted, func(w expectation) bool { return w.path == path })
}

// configure sets what the configuration wants.
func (e *expectations) configure(paths []string) {
	e.own = nil
	for _, path := range paths {
		e.own = append(e.own, expectation{path: filepath.Clean(path), by: "the configuration"})
	}
	e.wanted = e.own
}

// compare finds what is missing, and what is read-only though it should not be, and
// logs what has changed.
func (e *expectations) compare(in *inventory) {
	missing, readOnly := e.findShortfalls(in)
	e.missing = follow(e.missing, missing,
		func(s *shortfall) {
			e.log.Warnf("%s is not mounted, though %s wants it", mounts.Printable(s.path), s.by)
		},
		func(s *shortfall) {
			if in.mountedAt(s.path) != nil {
				e.log.Infof("%s is mounted; it was missing for %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
	e.readOnly = follow(e.readOnly, readOnly,
		func(s *shortfall) {
			why := joinReasons(string(result.ReadOnly), s.why)
			if s.by == "" {
				e.log.Warnf("%s was mounted for writing, and turned read-only: %s", mounts.Printable(s.path), why)
			} else {
				e.log.Warnf("%s is mounted read-only, though %s wants it writable: %s", mounts.Printable(s.path), s.by, why)
			}
		},
		func(s *shortfall) {
			if in.mountedAt(s.path) != nil {
				e.log.Infof("%s is writable again after %v", mounts.Printable(s.path), time.Since(s.since).Round(time.Second))
			}
		})
}

// findShortfalls compares what is wanted with the mount table.
func (e *expectations) findShortfalls(in *inventory) (missing, readOnly map[string]*shortfall) {
	automounts := make(map[string]bool)
	for i := range in.table.Mounts {
		if mount := &in.table.Mounts[i]; mount.FSType == "autofs" {
			automounts[mount.Mountpoint] = true
		}
	}
	missing, readOnly = make(map[string]*shortfall), make(map[string]*shortfall)
	if e.tags == nil {
		e.tags = make(map[string]map[string]string)
	}
	e.untouched = nil
	for _, w := range e.wanted {
		mount := in.mountedAt(w.path)
		switch {
		case mount == nil && automounts[w.path]:
			e.untouched = append(e.untouched, w)
		case mount == nil:
			missing[w.path] = &shortfall{expectation: w}
			continue
		case w.source != "" && !w.readOnly && mount.ReadOnly() && !mounts.AlwaysReadOnly(mount.FSType):
			readOnly[w.path] = &shortfall{expectation: w}
			if t := in.byMount[mount.ID]; t != nil {
				readOnly[w.path].why = t.quote(quoted[result.ReadOnly]...)
			}
		}
		if mount != nil {
			e.tags[w.path] = mountTags(mount)
		}
	}
	for _, t := range in.targets {
		for _, mount := range t.Mounts {
			if readOnly[mount.Mountpoint] == nil && t.namespace == nil && (t.turnedReadOnly && !mount.ReadOnly() || turnedReadOnly(mount)) {
				readOnly[mount.Mountpoint] = &shortfall{expectation: expectation{path: mount.Mountpoint}, why: t.quote(quoted[result.ReadOnly]...)}
			}
		}
	}
	return missing, readOnly
}

// follow keeps the time since which each shortfall has been there.
func follow(before, now map[string]*shortfall, began, ended func(*shortfall)) map[string]*shortfall {
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

// emit reports the mounts that are missing, and the automounts that nobody has asked for, except
// those of which it is known that they can't be made.
func (e *expectations) emit(acc telegraf.Accumulator, counts *counts, unmet map[string]*shortfall) {
	tags := func(w *expectation) map[string]string {
		if last := e.tags[w.path]; last != nil {
			return maps.Clone(last) // the series that was well is the one that is not
		}
		mode := "rw"
		if w.readOnly {
			mode = "ro"
		}
		t := map[string]string{"path": mounts.Printable(w.path), "mode": mode}
		if w.source != "" {
			t["device"], t["fstype"] = mounts.SourceTag(w.source), mounts.Printable(w.fstype)
		}
		return t
	}
	for _, s := range e.missing {
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
	for i := range e.untouched {
		if unmet[e.untouched[i].path] != nil {
			continue // it can't be mounted
		}
		counts[result.Unchecked]++
		acc.AddGauge("mountstat", map[string]any{
			"result":        result.Unchecked.String(),
			"result_code":   int64(result.Unchecked),
			"reason":        "to be mounted on demand; nobody has asked for it",
			"hung_seconds":  0.0,
			"fault_seconds": 0.0,
		}, tags(&e.untouched[i]))
	}
}
