package units

import (
	"path"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/host"
)

// State is what systemd does with a unit, as systemctl(1) is-enabled has it.
type State string

// The states. Unknown is that of all units where systemd does not run.
const (
	Unknown  State = ""
	Absent   State = "absent"
	Masked   State = "masked"   // systemd starts it for nobody
	Disabled State = "disabled" // it is started if somebody asks for it; also one that can't be enabled
	Enabled  State = "enabled"  // some unit wants it
)

// Startable reports whether somebody can have systemd start the unit.
func (s State) Startable() bool { return s == Disabled || s == Enabled }

// States returns the states of services and sockets by their names. An error beside a result
// says what could not be read.
func States(files *host.Files, names []string) (map[string]State, error) {
	l := &loader{files: files}
	runs, _, err := l.begin()
	if err != nil {
		return nil, err
	}
	if !runs {
		return map[string]State{}, nil
	}
	wanted, err := l.wantedByAny(names)
	if err != nil {
		return nil, err
	}
	states := make(map[string]State, len(names))
	var found, first []string
	for _, name := range names {
		states[name] = Absent
		if paths := l.inPlaces(name); len(paths) > 0 {
			found, first = append(found, name), append(first, paths[0])
		}
	}
	links, err := files.Links(first)
	if err != nil {
		return nil, err
	}
	for i, name := range found {
		switch {
		case links[i].Target == mask:
			states[name] = Masked
		case wanted[name]:
			states[name] = Enabled
		default:
			states[name] = Disabled
		}
	}
	return states, nil
}

// wantedByAny finds which of the units have a link in the directory of a unit that wants or
// requires them.
func (l *loader) wantedByAny(names []string) (map[string]bool, error) {
	var folders []string
	for i, place := range l.places {
		for name := range l.names[i] {
			if strings.HasSuffix(name, ".wants") || strings.HasSuffix(name, ".requires") {
				folders = append(folders, path.Join(place, name))
			}
		}
	}
	slices.Sort(folders)
	folders = folders[:min(len(folders), maxTargets)]
	listings, err := l.list(folders)
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool)
	for _, in := range listings {
		for _, name := range in {
			if slices.Contains(names, name) {
				wanted[name] = true
			}
		}
	}
	return wanted, nil
}
