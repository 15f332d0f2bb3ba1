package mountstat

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

const (
	defaultFstab = "/etc/fstab"
	maxFstab     = 1 << 20 // bytes
	// sourcesInterval is how often fstab and the units are read: people edit them by hand.
	sourcesInterval = time.Minute
)

// sources are what says which mounts are expected, besides the configuration: fstab and
// systemd's units. What can't be read again stays as it was. All of them lie on monitored
// file systems, so helpers read them. While they do, the sources belong to another goroutine.
type sources struct {
	host     *host.Host
	settings *settings
	own      []expectation // of the configuration
	fstab    []mounts.FstabEntry
	units    *units.Wanted
	resolved map[string]string // paths with symbolic links, and where they lead
}

// reading is what the sources say, and what hindered reading them.
type reading struct {
	wanted       []expectation
	fstab, units error
}

// ask has the sources read when that is due.
func (e *expectations) ask(now time.Time, table *mounts.Snapshot) {
	if now.Before(e.due) || e.reading || e.fstab == "" && !e.units && len(e.own) == 0 {
		return
	}
	if e.sources == nil {
		e.sources = &sources{host: e.host, settings: &e.settings, own: e.own, units: &units.Wanted{}, resolved: make(map[string]string)}
	}
	e.reading, e.due = true, now.Add(sourcesInterval)
	go func() {
		read := e.sources.read(table)
		e.mail.Post(func() { e.reading, e.read = false, read })
	}()
}

func (s *sources) read(table *mounts.Snapshot) *reading {
	r := &reading{}
	container := host.NoContainer
	if s.settings.ofImage {
		container = s.container(table)
	}
	r.fstab = s.readFstab(container, table)
	var points []string
	for i := range s.fstab {
		if atBoot(&s.fstab[i]) {
			points = append(points, s.fstab[i].Mountpoint)
		}
	}
	r.units = s.readUnits(container, table, points)
	r.wanted = slices.Concat(s.entries(s.devices(table)), s.own)
	s.resolve(table, r.wanted)
	r.wanted = firstOfEach(r.wanted)
	return r
}

// files are the host's files, as helpers with that key see them.
func (s *sources) files(key string, table *mounts.Snapshot) *host.Files {
	return &host.Files{Host: s.host, Key: "mountstat " + key, Timeout: s.settings.timeout, Namespace: s.settings.namespace, Table: table}
}

// container tells whether this is a container, also by what runtimes leave in it.
func (s *sources) container(table *mounts.Snapshot) host.Container {
	found := s.host.Container()
	if found == host.NoContainer {
		marks, _ := s.files("container", table).Links([]string{"/.dockerenv", "/run/.containerenv"})
		if slices.ContainsFunc(marks, host.Link.Exists) {
			return host.ApplicationContainer
		}
	}
	return found
}

// readFstab reads fstab. The fstab of an image means nothing, and the devices in one of a
// container that systemd has started mean nothing, either.
func (s *sources) readFstab(container host.Container, table *mounts.Snapshot) error {
	ofImage := s.settings.ofImage && s.settings.usualFstab
	if s.settings.fstab == "" || ofImage && container == host.ApplicationContainer {
		s.fstab = nil
		return nil
	}
	name, files := s.settings.fstab, s.files("fstab", table)
	if files.Own = !s.settings.usualFstab; s.settings.usualFstab {
		name = defaultFstab
	}
	found, err := files.Read([]string{name}, maxFstab)
	if err == nil && found[0].Errno != 0 {
		err = found[0].Errno
	}
	switch {
	case errors.Is(err, unix.ENOENT) && s.settings.usualFstab:
		s.fstab = nil // many hosts have none
		return nil
	case err != nil:
		return fmt.Errorf("reading %s: %w", s.settings.fstab, err)
	}
	entries, err := mounts.ParseFstab(found[0].Output)
	if ofImage && container == host.SystemContainer {
		entries = slices.DeleteFunc(entries, func(e mounts.FstabEntry) bool { return e.Device() != "" })
	}
	s.fstab = entries
	if err != nil {
		return fmt.Errorf("%s: %w", s.settings.fstab, err)
	}
	return nil
}

// readUnits finds the mount units that are started at boot.
func (s *sources) readUnits(container host.Container, table *mounts.Snapshot, fstab []string) error {
	if !s.settings.units || container == host.ApplicationContainer {
		s.units = &units.Wanted{}
		return nil
	}
	found, err := units.Load(s.files("units", table), fstab)
	if found != nil {
		s.units = found
	}
	if err != nil {
		return fmt.Errorf("systemd's mount units: %w", err)
	}
	return nil
}

// atBoot reports whether an entry of fstab is mounted without anybody asking for it, or when
// somebody uses it.
func atBoot(e *mounts.FstabEntry) bool { return e.HasMountpoint() && (!e.NoAuto() || e.Automount()) }

// devices returns what is known about the devices that are named: where their links lead, and
// which do not exist.
func (s *sources) devices(table *mounts.Snapshot) map[string]host.Link {
	var paths []string
	add := func(e *mounts.FstabEntry) {
		if path := e.Device(); path != "" {
			paths = append(paths, path)
		}
	}
	for i := range s.fstab {
		add(&s.fstab[i])
	}
	for i := range s.units.Mounts {
		add(&s.units.Mounts[i].FstabEntry)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	links, _ := s.files("devices", table).Links(paths)
	found := make(map[string]host.Link, len(paths))
	for i := range links {
		found[paths[i]] = links[i]
	}
	return found
}

// entries are what fstab and the units want. An administrator's unit replaces the
// line of fstab.
func (s *sources) entries(devices map[string]host.Link) (all []expectation) {
	add := func(e *mounts.FstabEntry, by string) {
		device := devices[e.Device()]
		switch {
		case e.NoFail() && device.Errno == unix.ENOENT: // without it the host boots as well
			return
		case mounts.Pseudo(e.FSType) || !s.settings.selection.FitsEntry(e.Mountpoint, e.FSType, e.Source):
			return
		}
		source := e.Source
		if device.Target != "" {
			source = filepath.Base(device.Target)
		}
		all = append(all, expectation{path: e.Mountpoint, source: source, fstype: e.MountedType(), readOnly: e.ReadOnly(), by: by})
	}
	for i := range s.units.Mounts {
		add(&s.units.Mounts[i].FstabEntry, s.units.Mounts[i].File)
	}
	for i := range s.fstab {
		if e := &s.fstab[i]; atBoot(e) && !s.units.Overridden[e.Mountpoint] {
			add(e, fmt.Sprintf("%s, line %d,", s.settings.fstab, e.Line))
		}
	}
	return all
}

// resolve follows symbolic links in the paths of what is expected, as mount(8) and systemd
// do. A path where something is mounted has no links, and nothing is asked.
func (s *sources) resolve(table *mounts.Snapshot, wanted []expectation) {
	var paths []string
	for _, w := range wanted {
		if table.At(w.path) == nil {
			paths = append(paths, w.path)
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	before := s.resolved
	s.resolved = make(map[string]string, len(paths))
	for i, to := range s.files("paths", table).Resolve(paths) {
		s.resolved[paths[i]] = cmp.Or(to, before[paths[i]], paths[i])
	}
	for i := range wanted {
		wanted[i].path = cmp.Or(s.resolved[wanted[i].path], wanted[i].path)
	}
}

// firstOfEach keeps only the first of several expectations of one mount.
func firstOfEach(all []expectation) []expectation {
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(e expectation) bool {
		before := seen[e.path]
		seen[e.path] = true
		return before
	})
}
