package doctor

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

// unitDirs are where systemd looks for units, the first wins; systemd.unit(5).
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// assignment is one line of a unit, such as User=telegraf.
type assignment struct{ section, key, value, file string }

// parseUnit reads a unit file or drop-in, systemd.syntax(7). A byte order mark does not count.
func parseUnit(file string, content []byte) []assignment {
	var all []assignment
	var section, pending string
	// A last line that is continued counts, too.
	for line := range strings.Lines(string(content) + "\n\n") {
		line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue // also between continued lines
		}
		if joined, continued := strings.CutSuffix(line, `\`); continued {
			pending += joined + " "
			continue
		}
		line, pending = pending+line, ""
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
			continue
		}
		if key, value, found := strings.Cut(line, "="); found {
			all = append(all, assignment{section, strings.TrimSpace(key), strings.TrimSpace(value), file})
		}
	}
	return all
}

// unit is telegraf.service or vfsprobe.service, with its drop-ins.
type unit struct {
	file     string
	settings []assignment      // in the order in which they take effect
	shown    map[string]string // what systemd itself says of it; nil where that can't be asked
}

// value returns what a key of [Service] is set to, or false if it is not set. What systemd itself
// says includes the defaults.
func (u *unit) value(key string) (assignment, bool) {
	last := assignment{"Service", key, "", u.file}
	for _, a := range slices.Backward(u.settings) {
		if a.section == "Service" && a.key == key {
			last = a
			break
		}
	}
	if shown, told := u.shown[key]; told {
		last.value = shown
	}
	return last, last.value != ""
}

// sets reports whether one of the unit's files sets a key.
func (u *unit) sets(key string) bool {
	return slices.ContainsFunc(u.settings, func(a assignment) bool { return a.section == "Service" && a.key == key })
}

// list returns all assignments since the last empty one.
func (u *unit) list(key string) []assignment {
	var all []assignment
	for _, a := range u.settings {
		switch {
		case a.section != "Service" || a.key != key:
		case a.value == "":
			all = nil
		default:
			all = append(all, a)
		}
	}
	return all
}

// capabilities merges all assignments of a set as systemd does (config_parse_capability_set
// in its load-fragment.c): the first one, an empty one and "~" replace what was, further
// ones add to it or take away.
func (u *unit) capabilities(key string, initial Capabilities) Capabilities {
	if shown, told := u.shown[key]; told {
		return parseCapabilities(shown)
	}
	set := initial
	for _, a := range u.settings {
		if a.section != "Service" || a.key != key {
			continue
		}
		list, inverted := strings.CutPrefix(a.value, "~")
		switch sum := parseCapabilities(list); {
		case (sum == 0 || set == initial) && inverted:
			set = ^sum
		case sum == 0 || set == initial:
			set = sum
		case inverted:
			set &^= sum
		default:
			set |= sum
		}
	}
	return set
}

// yes reports whether a boolean is true.
func (u *unit) yes(key string) bool {
	a, _ := u.value(key)
	return yes(a.value)
}

// readUnit finds a unit and its drop-ins. It returns nil if there is no such unit.
func (p *examination) readUnit(name string) *unit {
	u, files := p.askSystemd(name)
	if u == nil {
		u, files = p.findUnit(name)
	}
	if u == nil {
		return nil
	}
	if p.masked(u.file) {
		p.add(Finding{ID: "systemd.masked", Status: checkup.Warning, Object: u.file, Says: name + " is masked",
			Symptom: "systemd does not start it", Cure: "systemctl unmask " + strings.TrimSuffix(name, ".service")})
		return nil
	}
	for _, file := range files {
		if content, err := os.ReadFile(p.follow(file)); err == nil {
			u.settings = append(u.settings, parseUnit(file, content)...)
		}
	}
	return u
}

// masked reports whether a unit's file masks it: a link to /dev/null, or an empty file.
func (p *examination) masked(file string) bool {
	target, _ := os.Readlink(file)
	info, err := os.Stat(p.follow(file))
	return target == os.DevNull || err == nil && info.Size() == 0
}

// findUnit finds a unit's file, and the files that set it, in the order in which systemd
// reads them: of drop-ins with one name the first counts, where those of the unit stand
// before those of all services.
func (p *examination) findUnit(name string) (u *unit, files []string) {
	dropIns := make(map[string]string)
	for _, folder := range units.DropInFolders(name) {
		for _, dir := range unitDirs() {
			found, _ := filepath.Glob(filepath.Join(p.host(filepath.Join(dir, folder)), "*.conf"))
			for _, dropIn := range found {
				if _, shadowed := dropIns[filepath.Base(dropIn)]; !shadowed {
					dropIns[filepath.Base(dropIn)] = dropIn
				}
			}
		}
	}
	for _, dir := range unitDirs() {
		file := filepath.Join(p.host(dir), name)
		if _, err := os.Lstat(file); err == nil {
			u, files = &unit{file: file}, []string{file}
			break
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropIns)) {
		files = append(files, dropIns[name])
	}
	return u, files
}

// askSystemd asks systemd about a unit, and from which files it is made. The result is nil if
// systemd can't be asked, or knows no such unit.
func (p *examination) askSystemd(name string) (u *unit, files []string) {
	if p.ShowUnit == nil {
		return nil, nil
	}
	content, err := p.ShowUnit(name)
	if err != nil {
		return nil, nil
	}
	shown := parseShown(content)
	if shown["LoadState"] != "loaded" || shown["FragmentPath"] == "" {
		return nil, nil
	}
	if shown["NeedDaemonReload"] == "yes" {
		p.add(Finding{ID: "systemd.reload", Status: checkup.Warning, Object: name, Says: "its files were changed after systemd has read them",
			Symptom: "changes of these files have no effect yet", Cure: "systemctl daemon-reload && systemctl restart " + strings.TrimSuffix(name, ".service")})
	}
	u = &unit{file: shown["FragmentPath"], shown: shown}
	return u, append([]string{u.file}, strings.Fields(shown["DropInPaths"])...)
}

// parseShown reads what systemctl show prints: a property on each line.
func parseShown(content []byte) map[string]string {
	all := make(map[string]string)
	for line := range strings.Lines(string(content)) {
		if key, value, found := strings.Cut(strings.TrimSuffix(line, "\n"), "="); found {
			all[key] = value
		}
	}
	return all
}

// restriction is a setting of a unit that takes something from the plugin.
type restriction struct {
	key     string
	harmful func(value string) bool
	status  checkup.Status
	symptom string
	cure    string // the line that undoes it
}

// yes reads a boolean as systemd does (parse_boolean in its parse-util.c).
func yes(value string) bool {
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(value))
}

// outside reports whether one of the words is not among those that a list allows. A list
// that begins with "~" forbids its words.
func outside(words ...string) func(string) bool {
	return func(value string) bool {
		list, inverted := strings.CutPrefix(value, "~")
		listed := strings.Fields(list)
		return slices.ContainsFunc(words, func(word string) bool { return slices.Contains(listed, word) == inverted })
	}
}

// namespacesRestricted reports whether RestrictNamespaces= keeps helpers out of mount
// namespaces.
func namespacesRestricted(value string) bool {
	switch strings.ToLower(value) {
	case "0", "no", "n", "false", "f", "off":
		return false
	}
	return yes(value) || outside("mnt")(value)
}

// callsFiltered reports whether SystemCallFilter= refuses something that is needed. One that
// forbids is harmless if it names only groups that have nothing to do with it.
func callsFiltered(value string) bool {
	list, forbids := strings.CutPrefix(value, "~")
	if !forbids {
		return true
	}
	harmless := []string{"@aio", "@chown", "@clock", "@cpu-emulation", "@ipc", "@keyring", "@module", "@mount", "@obsolete", "@pkey", "@raw-io", "@reboot", "@swap"}
	return slices.ContainsFunc(strings.Fields(list), func(word string) bool {
		name, _, _ := strings.Cut(word, ":") // an error to return
		return strings.HasPrefix(name, "@") && !slices.Contains(harmless, name) || slices.Contains(neededCalls(), name)
	})
}

// neededCalls are those that a unit might forbid by name, and that vfsprobe makes.
func neededCalls() []string {
	return []string{"bpf", "capset", "clone", "getdents64", "kill", "listmount", "openat", "perf_event_open", "pidfd_open", "pidfd_send_signal", "seccomp", "setns", "setresgid", "setresuid", "setgroups", "socket", "statfs", "statmount", "statx"}
}

// noTasks reports whether TasksMax= allows for less than 100.
func noTasks(value string) bool {
	n, err := strconv.Atoi(value)
	return err == nil && n < 100
}

func anything(string) bool { return true }

func set(values ...string) func(string) bool {
	return func(value string) bool { return slices.Contains(values, strings.ToLower(value)) }
}

func either(a, b func(string) bool) func(string) bool {
	return func(value string) bool { return a(value) || b(value) }
}

// restrictions are those of systemd.exec(5) that matter.
func restrictions() []restriction {
	return []restriction{
		{"ProcSubset", set("pid"), checkup.Critical, "/proc/sys, /proc/locks and /proc/loadavg are hidden: dentrycache fails at start, nfslock counts no locks", "ProcSubset=all"},
		{"ProtectProc", set("noaccess", "invisible", "ptraceable"), checkup.Warning, "processes of other users are hidden: mountstat_blocked and nfslock's waiters and blocked tasks miss them", "ProtectProc=default"},
		{"PrivateUsers", either(yes, set("self", "identity", "full")), checkup.Warning, "capabilities count for nothing: what takes one is missing", "PrivateUsers=no"},
		{"PrivateNetwork", yes, checkup.Critical, "no server can be asked: every NFS fault has the cause server_unreachable", "PrivateNetwork=no"},
		{"PrivateDevices", yes, checkup.Warning, "/dev/kmsg is hidden: nfslock_host has no kernel_* fields, mountstat no kernel_errors; block devices of fstab entries with nofail seem absent", "PrivateDevices=no"},
		{"ProtectKernelLogs", yes, checkup.Warning, "/dev/kmsg is hidden: nfslock_host has no kernel_* fields, mountstat no kernel_errors", "ProtectKernelLogs=no"},
		{"ProtectHome", either(yes, set("read-only", "tmpfs")), checkup.Warning, "mounts below /home, /root and /run/user are hidden or seem read-only: not checked, or reported with cause=\"read_only\"", "ProtectHome=no"},
		{"ProtectSystem", either(yes, set("full", "strict")), checkup.Warning, "mounts seem read-only: fstab's are reported with cause=\"read_only\", and the check \"write\" is left out", "ProtectSystem=no"},
		{"ReadOnlyPaths", anything, checkup.Warning, "mounts there seem read-only, as for ProtectSystem=", "ReadOnlyPaths="},
		{"InaccessiblePaths", anything, checkup.Warning, "mounts there are not checked", "InaccessiblePaths="},
		{"TemporaryFileSystem", anything, checkup.Warning, "mounts there are hidden", "TemporaryFileSystem="},
		{"DynamicUser", yes, checkup.Warning, "mounts seem read-only and those below /home are hidden, since it stands for ProtectSystem=strict and ProtectHome=read-only; the user may look at little", "DynamicUser=no"},
		{"RootImage", anything, checkup.Critical, "the host's mounts do not show", "RootImage="},
		{"RestrictAddressFamilies", outside("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"), checkup.Warning, "servers can't be asked (AF_INET, AF_INET6), connections not be seen (AF_NETLINK), or files of others not be told of (AF_UNIX): NFS faults have fewer causes", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"},
		{"RootDirectory", anything, checkup.Critical, "the host's mounts do not show", "RootDirectory="},
		{"RestrictNamespaces", namespacesRestricted, checkup.Warning, "helpers can't enter other mount namespaces: mount_namespaces = \"all\" and enter_host_namespace find nothing", "RestrictNamespaces=no"},
		{"SystemCallFilter", callsFiltered, checkup.Warning, "what the filter refuses is left out, and a helper that dies of it leaves its mounts unchecked; bpf takes dentrycache's attribution, seccomp the helpers' own filter", "SystemCallFilter="},
		{"TasksMax", noTasks, checkup.Warning, "helpers can't be forked when mounts hang: they are unchecked", "TasksMax=256"},
	}
}

// The units that can run the plugin.
const (
	telegrafUnit = "telegraf.service"
	ownUnit      = "vfsprobe.service"
)

// Setting is lines of [Service] that mend a unit.
type Setting struct {
	Unit  string   `json:"unit"`
	Lines []string `json:"lines"`
}

// cure says how a person makes the setting.
func (s *Setting) cure() string {
	return "systemctl edit " + strings.TrimSuffix(s.Unit, ".service") + ", add, and restart it:\n[Service]\n" + strings.Join(s.Lines, "\n")
}

// mend adds to a finding the setting that cures it.
func (p *examination) mend(f Finding, unit string, lines ...string) {
	f.Setting = &Setting{unit, lines}
	f.Cure = f.Setting.cure()
	p.add(f)
}

// killModeCure has systemd leave helpers alone, systemd.kill(5).
const killModeCure = "KillMode=process"

// runsAsRoot reports whether the unit's processes may leave its cgroup.
func (u *unit) runsAsRoot() bool {
	user, found := u.value("User")
	return (!found || set("root", "0")(user.value)) && !u.yes("DynamicUser")
}

// examineUnit reports settings that take something away, of the unit that runs the plugin: its
// own, or Telegraf's.
func (p *examination) examineUnit() *unit {
	name, id := telegrafUnit, "telegraf.unit"
	u := p.telegrafUnit
	if p.own {
		name, id = ownUnit, "vfsprobe.unit"
		u = p.readUnit(name)
	}
	if p.contained {
		p.fine(id, "this container", "it runs Telegraf; no unit does")
		return nil
	}
	if u == nil && p.own {
		p.add(Finding{ID: id, Status: checkup.Critical, Object: name, Says: "there is none, and Telegraf is to connect to it",
			Symptom: "no metrics of vfsprobe", Cure: "install vfsprobe's package; or have Telegraf run vfsprobe itself:\n" + Stanza})
		return nil
	}
	if u == nil {
		p.fine(id, name, "there is none; Telegraf is started in another way")
		return nil
	}
	harmless := true
	for _, r := range restrictions() {
		a, found := u.value(r.key)
		if !found || !r.harmful(a.value) {
			continue
		}
		if strings.HasPrefix(r.key, "Protect") && u.yes("DynamicUser") && !u.sets(r.key) {
			continue // DynamicUser= stands for it, and is told
		}
		harmless = false
		p.mend(Finding{ID: id + "." + r.key, Status: r.status, Object: a.file, Says: a.key + "=" + a.value, Symptom: r.symptom}, name, r.cure)
	}
	if mode, _ := u.value("KillMode"); !u.runsAsRoot() && !set("process", "none")(mode.value) {
		harmless = false
		p.mend(Finding{ID: id + ".KillMode", Status: checkup.Warning, Object: mode.file, Says: "KillMode=" + cmp.Or(mode.value, "control-group"),
			Symptom: "while a helper hangs in a file system, systemctl stop and restart take TimeoutStopSec, 90 s, and the unit has failed then"}, name, killModeCure)
	}
	if harmless {
		p.fine(id, u.file, "nothing in it hides mounts, processes or the network (PrivateMounts= does not either)")
	}
	return u
}
