package cgroups

import (
	"os"
	"strings"
)

// Restart returns the command that restarts what a process is a part of, whose cgroup a file
// such as /proc/PID/cgroup names: a unit of systemd or a container. It is empty where neither
// is known, as for a process of somebody's session. The command is fit for a shell as it is.
func Restart(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for path := range paths(content) {
		if command := restartOf(path); command != "" {
			return command
		}
	}
	return ""
}

// restartOf is [Restart] for a cgroup's path.
func restartOf(path string) string {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- { // the innermost first
		part := parts[i]
		if machine, found := machineIn(part); found {
			return inMachine(machine, parts[i+1:])
		}
		if runtime, id, found := runtimeIn(parts[:i+1]); found {
			return restartContainer(runtime, id, userIn(parts[:i]))
		}
	}
	unit, user := innermostUnit(parts), userIn(parts)
	switch {
	case containerIn(parts) != "":
		return "" // its units are not this host's
	case unit == "" || strings.HasPrefix(unit, "user@"):
		return "" // it is of a session, or the user's manager itself
	case user != "":
		return "systemctl --user -M " + user + "@ restart " + unit
	}
	return "systemctl restart " + unit
}

// machineIn is the machine of systemd-nspawn that a cgroup is of.
func machineIn(part string) (name string, found bool) {
	name, found = strings.CutPrefix(strings.TrimSuffix(part, ".service"), "systemd-nspawn@")
	if !found {
		name, found = strings.CutPrefix(strings.TrimSuffix(part, ".scope"), "machine-")
	}
	if !found || strings.HasSuffix(name, ".slice") {
		return "", false
	}
	name = strings.ReplaceAll(name, `\x2d`, "-")
	return name, name != "" && plain(name) && !strings.Contains(name, `\`)
}

// inMachine restarts a unit of a machine, or all of it.
func inMachine(machine string, below []string) string {
	if unit := innermostUnit(below); unit != "" {
		return "systemctl -M " + machine + " restart " + unit
	}
	return "machinectl reboot " + machine
}

// runtimeIn returns the container of the last of a path's parts, if it is one's, and who runs
// it, as the part says: docker-ID.scope, or ID below docker.
func runtimeIn(parts []string) (runtime, id string, found bool) {
	last := parts[len(parts)-1]
	if id = idIn(last); id == "" {
		return "", "", false
	}
	runtime, _, _ = strings.Cut(last, id)
	runtime = strings.TrimRight(runtime, "-:")
	runtime = runtime[strings.LastIndexByte(runtime, ':')+1:]
	if runtime == "" && len(parts) > 1 {
		runtime = parts[len(parts)-2]
	}
	for _, part := range parts {
		if strings.HasPrefix(part, "kubepods") && runtime != "docker" {
			runtime = "cri"
		}
	}
	return runtime, id[:shortLength], true
}

// restartContainer is the command of a container's runtime. What the kubelet runs it starts
// again when it was stopped.
func restartContainer(runtime, id, user string) string {
	switch {
	case runtime == "docker" && user == "":
		return "docker restart " + id
	case (runtime == "libpod" || runtime == "libpod_parent") && user == "":
		return "podman restart " + id
	case runtime == "libpod" || runtime == "libpod_parent":
		return "sudo -i -u '#" + user + "' podman restart " + id
	case runtime == "cri":
		return "crictl stop " + id
	}
	return ""
}

// userIn is the number of the user whose manager a cgroup is below, user@UID.service.
func userIn(parts []string) string {
	for _, part := range parts {
		uid, found := strings.CutPrefix(part, "user@")
		if uid, ofService := strings.CutSuffix(uid, ".service"); found && ofService && uid != "" && strings.Trim(uid, "0123456789") == "" {
			return uid
		}
	}
	return ""
}

// innermostUnit is the last of the parts that is a unit which can be restarted, quoted for a
// shell if need be. A scope ends with what is in it.
func innermostUnit(parts []string) string {
	for i := len(parts) - 1; i >= 0; i-- {
		unit := strings.TrimPrefix(parts[i], "_") // cg_escape, src/basic/cgroup-util.c
		switch suffix := unit[strings.LastIndexByte(unit, '.')+1:]; {
		case suffix == "scope":
			return ""
		case suffix != "service" && suffix != "mount":
		case !plain(unit):
			return "" // no name that systemd would give
		default:
			return Quoted(unit)
		}
	}
	return ""
}

// Quoted is a unit's name for a shell.
func Quoted(unit string) string {
	if strings.Contains(unit, `\`) {
		return "'" + unit + "'"
	}
	return unit
}

// plain reports whether a name has only those characters that systemd's units may have, and
// does not look like an option (VALID_CHARS, src/basic/unit-name.c).
func plain(name string) bool {
	return !strings.HasPrefix(name, "-") && strings.Trim(name, `ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.\@`) == ""
}
