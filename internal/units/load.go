package units

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

const (
	mountSuffix     = ".mount"
	automountSuffix = ".automount"
	targetSuffix    = ".target"

	// maxDirectory bounds a directory's entries, in bytes: some 40 for each.
	maxDirectory = 1 << 20
	// maxFile bounds a unit file or drop-in, in bytes.
	maxFile = 64 << 10
	// maxTargets, maxUnits and maxFiles bound how many are looked at. Of a unit's file there
	// are two for an automount, and the drop-ins.
	maxTargets = 200
	maxUnits   = 1000
	maxFiles   = 4000

	mask = "/dev/null"
	// running is there while systemd is process 1, sd_booted(3).
	running = "/run/systemd/system"
)

// directories are where unit files lie; those of the first hide others of their names. What
// systemd makes of fstab lies behind the first of them that are the administrator's.
// The last is another one on old distributions only.
func directories() (all []string, administrators int) {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}, 2
}

// bootTargets are those that every boot reaches, beside the default one, bootup(7).
func bootTargets() []string {
	return []string{"sysinit.target", "basic.target", "local-fs.target", "remote-fs.target", "multi-user.target"}
}

// Mount is a mount that systemd makes at boot, or at its first use, with what fstab would say
// of it.
type Mount struct {
	mounts.FstabEntry
	File string // of the unit that is started: the automount's where the mount's is not
}

// Wanted is what units say.
type Wanted struct {
	Mounts []Mount
	// Overridden are mount points of fstab for which the administrator has put a unit in
	// the place of what systemd would make of fstab: it is among Mounts, unless it is
	// masked.
	Overridden map[string]bool
}

// loader looks at unit files.
type loader struct {
	files    *host.Files
	places   []string          // directories
	names    []map[string]bool // what is in each
	started  map[string]bool   // what is reached at boot: mounts, automounts and targets
	paths    map[string]string // of the files of units that are not masked
	dropIns  map[string][]string
	contents map[string][]byte // by path
	exists   map[string]bool   // what conditions ask for, as far as that is known
	problems []error
}

// Load finds the mount units that are started at boot, since a target that every boot
// reaches wants or requires them. The mount points of fstab are those that systemd mounts
// for its sake. An error beside a result says what was left out. Without systemd nothing is
// wanted. A unit is left out if systemd would refuse it, and if it has conditions that do not
// hold, or are of another kind than ConditionPathExists=, or about what comes and goes or lies
// on a mount.
func Load(files *host.Files, fstab []string) (*Wanted, error) {
	l := &loader{files: files, started: make(map[string]bool),
		paths: make(map[string]string), dropIns: make(map[string][]string), contents: make(map[string][]byte)}
	runs, target, err := l.begin()
	if err != nil {
		return nil, err
	}
	if !runs {
		return &Wanted{}, nil
	}
	if err := l.reach(append(bootTargets(), target)); err != nil {
		return nil, err
	}
	overridden := l.override(fstab)
	if err := l.find(); err != nil {
		return nil, err
	}
	if err := l.read(); err != nil {
		return nil, err
	}
	if err := l.checkConditions(); err != nil {
		return nil, err
	}
	return &Wanted{Mounts: l.mounts(), Overridden: overridden}, errors.Join(l.problems...)
}

// begin reports whether systemd runs, finds the default target, and lists the directories.
func (l *loader) begin() (runs bool, target string, err error) {
	const defaultTarget = "default.target"
	l.places, _ = directories()
	asked := []string{running, "/lib"}
	for _, place := range l.places {
		asked = append(asked, path.Join(place, defaultTarget))
	}
	links, err := l.files.Links(asked)
	if err != nil || !links[0].Exists() {
		return false, "", err
	}
	if links[1].Errno == 0 {
		l.places = l.places[:len(l.places)-1] // /lib is /usr/lib
	}
	target = defaultTarget
	if i := slices.IndexFunc(links[2:], host.Link.Exists); i >= 0 && links[2+i].Errno == 0 {
		target = path.Base(links[2+i].Target)
	}
	listings, err := l.list(l.places)
	for _, names := range listings {
		set := make(map[string]bool, len(names))
		for _, name := range names {
			set[name] = true
		}
		l.names = append(l.names, set)
	}
	return true, target, err
}

// list returns what is in directories; nothing is in those that are not there.
func (l *loader) list(directories []string) ([][]string, error) {
	found, err := l.files.List(directories, maxDirectory)
	if err != nil {
		return nil, err
	}
	names := make([][]string, len(found))
	for i := range found {
		names[i] = found[i].Names()
		l.note(directories[i], found[i].Errno)
	}
	return names, nil
}

// note keeps what could not be read, of what is there.
func (l *loader) note(name string, errno syscall.Errno) {
	if errno != 0 && errno != unix.ENOENT && errno != unix.ENOTDIR {
		l.problems = append(l.problems, fmt.Errorf("reading %s: %w", name, errno))
	}
}

// reach finds what the targets have started, and the targets which these want.
func (l *loader) reach(targets []string) error {
	for reached := 0; len(targets) > 0 && reached < maxTargets; {
		for _, target := range targets {
			l.started[target] = true
		}
		reached += len(targets)
		wanted, err := l.wantedBy(targets)
		if err != nil {
			return err
		}
		targets = nil
		for _, name := range wanted {
			switch {
			case l.started[name]:
			case strings.HasSuffix(name, targetSuffix):
				targets = append(targets, name)
			case len(l.started) < maxUnits:
				l.started[name] = true
			}
		}
	}
	return nil
}

// wantedBy returns the mounts, automounts and targets that have a link in a target's
// directory. A link of the same name in an earlier place hides others; one to /dev/null
// stands for none.
func (l *loader) wantedBy(targets []string) ([]string, error) {
	var folders []string // in the order of places, for each target
	for _, target := range targets {
		for _, suffix := range []string{".wants", ".requires"} {
			folders = append(folders, l.inPlaces(target+suffix)...)
		}
	}
	listings, err := l.list(folders)
	if err != nil {
		return nil, err
	}
	var links []string
	seen := make(map[string]bool)
	for i, names := range listings {
		for _, name := range names {
			id := path.Join(path.Base(folders[i]), name)
			if suffix := path.Ext(name); (suffix == mountSuffix || suffix == automountSuffix || suffix == targetSuffix) && !seen[id] {
				seen[id] = true
				links = append(links, path.Join(folders[i], name))
			}
		}
	}
	found, err := l.files.Links(links)
	if err != nil {
		return nil, err
	}
	var wanted []string
	for i, link := range found {
		if link.Errno == 0 && link.Target != mask {
			wanted = append(wanted, path.Base(links[i]))
		}
	}
	slices.Sort(wanted)
	return slices.Compact(wanted), nil
}

// inPlaces returns the paths of that name, the first of which hides the others.
func (l *loader) inPlaces(name string) (paths []string) {
	for i, place := range l.places {
		if l.names[i][name] {
			paths = append(paths, path.Join(place, name))
		}
	}
	return paths
}

// override finds the mount points of fstab for which the administrator has a unit. It is
// started because fstab says so.
func (l *loader) override(fstab []string) map[string]bool {
	_, administrators := directories()
	overridden := make(map[string]bool)
	for _, point := range fstab {
		name := nameOf(point)
		overridden[point] = slices.ContainsFunc(l.names[:administrators], func(names map[string]bool) bool { return names[name] })
		l.started[name] = overridden[point] // else what fstab says stands before what a package has
	}
	return overridden
}

// find finds the files and drop-ins of what is started. An automount needs its mount.
func (l *loader) find() error {
	var names, paths []string
	add := func(name string) {
		if all := l.inPlaces(name); len(all) > 0 && !slices.Contains(names, name) {
			names, paths = append(names, name), append(paths, all[0])
		}
	}
	for name, started := range l.started {
		if stem, automount := strings.CutSuffix(name, automountSuffix); started && automount {
			add(stem + mountSuffix)
		}
		if started && !strings.HasSuffix(name, targetSuffix) {
			add(name)
		}
	}
	links, err := l.files.Links(paths)
	if err != nil {
		return err
	}
	for i, name := range names {
		if links[i].Target != mask {
			l.paths[name] = paths[i]
		}
	}
	return l.findDropIns()
}

// findDropIns finds the drop-ins of the files, in the order in which systemd reads them: by
// their names, of which the first hides others.
func (l *loader) findDropIns() error {
	var folders []string
	of := make(map[string][]string) // unit's name: folders
	for name := range l.paths {
		for _, folder := range DropInFolders(name) {
			of[name] = append(of[name], l.inPlaces(folder)...)
		}
		folders = append(folders, of[name]...)
	}
	slices.Sort(folders)
	folders = slices.Compact(folders)
	listings, err := l.list(folders)
	if err != nil {
		return err
	}
	in := make(map[string][]string, len(folders))
	for i, folder := range folders {
		in[folder] = listings[i]
	}
	for name := range l.paths {
		first := make(map[string]string) // by file name
		for _, folder := range of[name] {
			for _, file := range in[folder] {
				if path.Ext(file) == ".conf" && first[file] == "" {
					first[file] = path.Join(folder, file)
				}
			}
		}
		for _, file := range slices.Sorted(maps.Keys(first)) {
			l.dropIns[name] = append(l.dropIns[name], first[file])
		}
	}
	return nil
}

// DropInFolders are the names of folders with drop-ins of a unit: of itself, of those whose
// names begin as its does, up to a dash, and of its type.
func DropInFolders(name string) []string {
	stem, suffix := strings.TrimSuffix(name, path.Ext(name)), path.Ext(name)
	folders := []string{name + ".d"}
	for i := len(stem) - 2; i > 0; i-- {
		if stem[i] == '-' {
			folders = append(folders, stem[:i+1]+suffix+".d")
		}
	}
	return append(folders, suffix[1:]+".d")
}

// read reads all that was found.
func (l *loader) read() error {
	var paths []string
	for name, file := range l.paths {
		paths = append(append(paths, file), l.dropIns[name]...)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	paths = paths[:min(len(paths), maxFiles)]
	contents, err := l.files.Read(paths, maxFile)
	if err != nil {
		return err
	}
	for i, content := range contents {
		if l.note(paths[i], content.Errno); content.Errno == 0 {
			l.contents[paths[i]] = content.Output
		}
	}
	return nil
}

// checkConditions finds out which of the paths exist that conditions ask for. Where a symbolic link leads
// is not known.
func (l *loader) checkConditions() error {
	var paths []string
	for name := range l.paths {
		u, _ := l.unit(name, "/")
		for _, c := range append(u.conditions, u.asserts...) {
			if l.mayAsk(&c) {
				paths = append(paths, c.path)
			}
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	links, err := l.files.Links(paths)
	l.exists = make(map[string]bool, len(paths))
	for i, link := range links {
		switch {
		case link.Errno == unix.EINVAL:
			l.exists[paths[i]] = true
		case link.Errno == unix.ENOENT:
			l.exists[paths[i]] = false
		}
	}
	return err
}

// mayAsk reports whether it is found out if a condition holds: not where a mount could hang that
// nothing else here is read from.
func (l *loader) mayAsk(c *condition) bool {
	if c.path == "" {
		return false
	}
	on := l.files.Table.Holding(c.path)
	return on == nil || on.Independent()
}

// mounts returns what is mounted in the end.
func (l *loader) mounts() []Mount {
	stems := make(map[string]bool)
	for name, started := range l.started {
		if started && !strings.HasSuffix(name, targetSuffix) {
			stems[strings.TrimSuffix(name, path.Ext(name))] = true
		}
	}
	var all []Mount
	for _, stem := range slices.Sorted(maps.Keys(stems)) {
		if m, wanted := l.mount(stem); wanted {
			all = append(all, m)
		}
	}
	return all
}

// mount returns what the mount unit and the automount unit of a name do together.
func (l *loader) mount(stem string) (Mount, bool) {
	point := pointOf(stem)
	what, valid := l.unit(stem+mountSuffix, point)
	if !valid || what.what == "" {
		return Mount{}, false
	}
	m := Mount{FstabEntry: mounts.FstabEntry{Source: what.what, Mountpoint: point, FSType: cmp.Or(what.fstype, "auto"), Options: what.options}}
	trigger, valid := l.unit(stem+automountSuffix, point)
	switch {
	case l.started[stem+mountSuffix] && what.starts(l.exists):
		m.File = l.paths[stem+mountSuffix]
	case l.started[stem+automountSuffix] && valid && trigger.starts(l.exists):
		m.File = l.paths[stem+automountSuffix]
	}
	return m, m.File != ""
}

// unit puts a unit together. It reports false for one that systemd does not load.
func (l *loader) unit(name, point string) (u unit, valid bool) {
	file := l.paths[name]
	if len(l.contents[file]) == 0 || point == "" {
		return unit{}, false // an empty file masks as well
	}
	u.apply(l.contents[file])
	for _, dropIn := range l.dropIns[name] {
		u.apply(l.contents[dropIn])
	}
	return u, u.fits(point)
}
