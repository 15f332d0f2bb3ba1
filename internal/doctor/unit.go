package doctor

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
)

// unitDirs are where systemd looks for units, the first wins; systemd.unit(5).
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// assignment is one line of a unit, such as User=telegraf.
type assignment struct{ section, key, value, file string }

// parseUnit reads a unit file or drop-in, systemd.syntax(7).
func parseUnit(file string, content []byte) []assignment {
	var all []assignment
	var section, pending string
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
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
	settings []assignment // in the order in which they take effect
}

// value returns the last assignment to a key of [Service]; false if there is
// none, or an empty one.
func (u *unit) value(key string) (assignment, bool) {
	for _, a := range slices.Backward(u.settings) {
		if a.section == "Service" && a.key == key {
			return a, a.value != ""
		}
	}
	return assignment{}, false
}

// list returns the words of all assignments since the last empty one.
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

// readUnit finds a unit and its drop-ins. It is nil where there is none.
func (p *patient) readUnit(name string) *unit {
	var u *unit
	dropIns := make(map[string]string)
	for _, dir := range unitDirs() {
		file := p.host(filepath.Join(dir, name))
		if content, err := os.ReadFile(file); err == nil && u == nil {
			u = &unit{file: file, settings: parseUnit(file, content)}
		}
		found, _ := filepath.Glob(filepath.Join(file+".d", "*.conf"))
		for _, dropIn := range found {
			if _, shadowed := dropIns[filepath.Base(dropIn)]; !shadowed {
				dropIns[filepath.Base(dropIn)] = dropIn
			}
		}
	}
	if u == nil {
		return nil
	}
	var names []string
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if content, err := os.ReadFile(dropIns[name]); err == nil {
			u.settings = append(u.settings, parseUnit(dropIns[name], content)...)
		}
	}
	return u
}

// restriction is a setting of a unit that takes something from the plugin.
type restriction struct {
	key     string
	harmful func(value string) bool
	status  checkup.Status
	symptom string
	cure    string // the line that undoes it
}

func yes(value string) bool {
	return slices.Contains([]string{"1", "yes", "true", "on"}, strings.ToLower(value))
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
		{"RootDirectory", anything, checkup.Critical, "the host's mounts do not show", "RootDirectory="},
		{"RestrictNamespaces", anything, checkup.Warning, "helpers can't enter other mount namespaces: mount_namespaces = \"all\" and enter_host_namespace find nothing", "RestrictNamespaces=no"},
		{"SystemCallFilter", anything, checkup.Warning, "a helper that makes a system call outside of the filter dies: its mounts are unchecked", "SystemCallFilter="},
		{"TasksMax", func(value string) bool { return len(value) < 3 && value != "" && value[len(value)-1] != '%' }, checkup.Warning, "helpers can't be forked when mounts hang: they are unchecked", "TasksMax=256"},
	}
}

// The units that can run the plugin.
const (
	telegrafUnit = "telegraf.service"
	ownUnit      = "vfsprobe.service"
)

// How their settings are changed.
const (
	editTelegraf = "systemctl edit telegraf, add, and restart it:\n[Service]\n"
	editOwn      = "systemctl edit vfsprobe, add, and restart it:\n[Service]\n"
)

// killModeCure has systemd leave helpers alone, systemd.kill(5).
const killModeCure = "KillMode=process"

// runsAsRoot reports whether the unit's processes may leave its cgroup.
func (u *unit) runsAsRoot() bool {
	user, found := u.value("User")
	return !found || set("root", "0")(user.value)
}

// examineUnit reports settings that cost something, of the unit that runs the plugin: its
// own, or Telegraf's.
func (p *patient) examineUnit() *unit {
	name, id, restart := telegrafUnit, "telegraf.unit", editTelegraf
	if p.own {
		name, id, restart = ownUnit, "vfsprobe.unit", editOwn
	}
	if p.contained {
		p.fine(id, "this container", "it runs Telegraf; no unit does")
		return nil
	}
	u := p.readUnit(name)
	if u == nil && p.own {
		p.add(Finding{ID: id, Status: checkup.Critical, Object: name, Says: "there is none, and Telegraf is to connect to it",
			Symptom: "no metrics of vfsprobe's", Cure: "install vfsprobe's package; or have Telegraf run vfsprobe itself:\n" + Stanza})
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
		harmless = false
		p.add(Finding{ID: id + "." + r.key, Status: r.status, Object: a.file, Says: a.key + "=" + a.value, Symptom: r.symptom, Cure: restart + r.cure})
	}
	if mode, _ := u.value("KillMode"); !u.runsAsRoot() && !set("process", "none")(mode.value) {
		harmless = false
		p.add(Finding{ID: id + ".KillMode", Status: checkup.Warning, Object: u.file, Says: "KillMode=" + cmp.Or(mode.value, "control-group"),
			Symptom: "while a helper hangs in a file system, systemctl stop and restart take TimeoutStopSec, 90 s, and the unit has failed then",
			Cure:    restart + killModeCure})
	}
	if harmless {
		p.fine(id, u.file, "nothing in it hides mounts, processes or the network (PrivateMounts= does not either)")
	}
	return u
}
