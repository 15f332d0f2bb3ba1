package mountstat

import (
	"errors"
	"fmt"
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
	// fstabBlocks of MaxOutput bytes are read.
	fstabBlocks = 15
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
	missing   map[string]*shortfall // by mount point
	untouched []expectation         // automounts that nobody has triggered
	readOnly  map[string]*shortfall // mounted read-only against fstab's word
	due       time.Time             // for fstab to be read again

	// Under Mountstat.mu:
	reading bool
	read    *fstab // was read, and is to be looked at
}

type fstab struct {
	entries []mounts.FstabEntry
	absent  map[string]bool // devices of nofail entries that do not exist
	err     error
}

// askFstab has fstab read when it is due. It lies on a monitored file system, so
// a helper reads it.
func (m *Mountstat) askFstab(now time.Time) {
	e := &m.expectations
	if m.fstab == "" || now.Before(e.due) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.reading {
		return
	}
	e.reading, e.due = true, now.Add(fstabEvery)
	p := &prober.Plan{Timeout: m.timeout}
	p.Below(m.fstab)
	if m.namespace != "" {
		p.EnterMountNS(m.namespace)
	}
	file := p.Add(prober.Step{Name: stepOpen, Number: unix.SYS_OPENAT, Arguments: []prober.Argument{
		prober.Value(unix.AT_FDCWD), prober.Path(m.fstab), prober.Value(unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK)}})
	for i := range fstabBlocks {
		p.Add(prober.Step{Name: "pread64", Number: unix.SYS_PREAD64, Arguments: []prober.Argument{
			prober.ResultOf(file), prober.Output(forkserver.MaxOutput), prober.Value(forkserver.MaxOutput), prober.Value(i * forkserver.MaxOutput)}})
	}
	m.prober.Submit(prober.Check{Key: "mountstat fstab", Group: "fstab", Trusted: true, Independent: true, Plan: p}, m.parseFstab)
}

// parseFstab is called by the prober.
func (m *Mountstat) parseFstab(r prober.Report) {
	content, err := contentOf(&r)
	if err != nil {
		m.takeFstab(&fstab{err: fmt.Errorf("reading %s: %w", m.fstab, err)})
		return
	}
	read := &fstab{}
	if read.entries, err = mounts.ParseFstab(content); err != nil {
		read.err = fmt.Errorf("%s: %w", m.fstab, err)
	}
	m.findDevices(read)
}

func contentOf(r *prober.Report) ([]byte, error) {
	if failed := r.Failed(); failed != nil {
		return nil, failed.Errno
	}
	if r.Outcome != prober.Done {
		return nil, errors.Join(errors.New("it was not answered"), r.Err)
	}
	var content []byte
	for i := range r.Steps {
		if step := &r.Steps[i]; step.Name == "pread64" {
			content = append(content, step.Output...)
		}
	}
	if len(content) == fstabBlocks*forkserver.MaxOutput {
		return nil, unix.EFBIG
	}
	return content, nil
}

// findDevices looks for the devices of nofail entries: without its device such
// a mount is not expected.
func (m *Mountstat) findDevices(read *fstab) {
	p := &prober.Plan{Timeout: m.timeout}
	if m.namespace != "" {
		p.EnterMountNS(m.namespace)
	}
	var devices []string
	for i := range read.entries {
		entry := &read.entries[i]
		path := entry.Device()
		if !entry.NoFail() || path == "" || len(p.Steps) == forkserver.MaxSteps {
			continue
		}
		devices = append(devices, path)
		p.Add(prober.Step{Name: path, Number: unix.SYS_FACCESSAT, Optional: true, Arguments: []prober.Argument{
			prober.Value(unix.AT_FDCWD), prober.Path(path), prober.Value(0)}})
	}
	if len(devices) == 0 {
		m.takeFstab(read)
		return
	}
	m.prober.Submit(prober.Check{Key: "mountstat fstab devices", Group: "fstab", Trusted: true, Independent: true, Plan: p}, func(r prober.Report) {
		read.absent = make(map[string]bool)
		for i := range r.Steps {
			if r.Steps[i].Errno == unix.ENOENT {
				read.absent[r.Steps[i].Name] = true
			}
		}
		m.takeFstab(read)
	})
}

func (m *Mountstat) takeFstab(read *fstab) {
	m.mu.Lock()
	m.expectations.reading, m.expectations.read = false, read
	m.mu.Unlock()
	m.signal()
}

// expect brings the expectations up to date.
func (m *Mountstat) expect(tableChanged bool) {
	e := &m.expectations
	m.mu.Lock()
	read := e.read
	e.read = nil
	m.mu.Unlock()
	if read != nil {
		err := read.err
		if errors.Is(err, unix.ENOENT) && m.Fstab == defaultFstab {
			err = nil // containers have none
		}
		m.sayOnce(&m.fstabErr, err)
		if read.err == nil || read.entries != nil {
			e.wanted = m.wantedBy(read)
		}
	}
	if read != nil || tableChanged || e.missing == nil {
		m.compare()
	}
}

func (m *Mountstat) configured() []expectation {
	var all []expectation
	for _, path := range m.Expected {
		all = append(all, expectation{path: path, by: "the configuration"})
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
		case mounts.Pseudo(entry.FSType) || !m.points.Match(entry.Mountpoint) || !m.types.Match(entry.FSType) || !m.devices.Match(entry.Source):
			continue
		}
		all = append(all, expectation{
			path: entry.Mountpoint, source: entry.Source, fstype: entry.FSType, readOnly: entry.ReadOnly(),
			automount: entry.Automount(), by: fmt.Sprintf("%s, line %d,", m.fstab, entry.Line),
		})
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
	at := make(map[string]*mounts.Mount, len(m.table))
	automounts := make(map[string]bool)
	for i := range m.table {
		mount := &m.table[i]
		switch {
		case mount.FSType == "autofs":
			automounts[mount.Mountpoint] = true
		case !mount.Hidden:
			at[mount.Mountpoint] = mount
		}
	}
	missing, readOnly := make(map[string]*shortfall), make(map[string]*shortfall)
	e.untouched = nil
	for _, w := range e.wanted {
		mount := at[w.path]
		switch {
		case mount == nil && automounts[w.path]:
			e.untouched = append(e.untouched, w)
		case mount == nil:
			missing[w.path] = &shortfall{expectation: w}
		case w.source != "" && !w.readOnly && mount.ReadOnly() && !alwaysReadOnly(mount.FSType):
			readOnly[w.path] = &shortfall{expectation: w}
		}
	}
	for path, mount := range at {
		if readOnly[path] == nil && turnedReadOnly(mount) && !m.ignored(mount) {
			readOnly[path] = &shortfall{expectation: expectation{path: path}}
		}
	}
	e.missing = m.follow(e.missing, missing,
		func(s *shortfall) {
			m.Log.Warnf("%s is not mounted, though %s wants it", mounts.Printable(s.path), s.by)
		},
		func(s *shortfall) {
			if at[s.path] != nil {
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
			if at[s.path] != nil {
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

// alwaysReadOnly reports whether the type can't be written to by nature.
func alwaysReadOnly(fstype string) bool {
	switch fstype {
	case "iso9660", "squashfs", "erofs", "cramfs", "romfs", "udf":
		return true
	}
	return false
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
		mode := "rw"
		if e.readOnly {
			mode = "ro"
		}
		t := map[string]string{"path": mounts.Printable(e.path), "mode": mode}
		if e.source != "" {
			t["device"], t["fstype"] = mounts.Printable(device(e.source)), mounts.Printable(e.fstype)
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

// sayOnce logs an error when it is another than before.
func (m *Mountstat) sayOnce(before *string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != *before && err != nil {
		m.Log.Errorf("%v", err)
	}
	*before = text
}
