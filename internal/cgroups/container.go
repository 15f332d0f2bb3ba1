// Package cgroups knows what the names of control groups tell about containers.
package cgroups

import (
	"bytes"
	"iter"
	"os"
	"strings"
)

const (
	idLength    = 64
	shortLength = 12 // as docker ps shows it
)

// Container returns the short id (12 digits) or the name of the container whose
// cgroup a file such as /proc/PID/cgroup names (cgroups(7)), and the unit's name
// for a systemd service. It is empty where neither is known.
func Container(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return parseContainer(content)
}

// InContainer reports whether the cgroup that a file such as /proc/PID/cgroup names is a
// container's.
func InContainer(file string) bool {
	content, _ := os.ReadFile(file)
	for path := range paths(content) {
		if containerIn(strings.Split(path, "/")) != "" {
			return true
		}
	}
	return false
}

func parseContainer(content []byte) string {
	for path := range paths(content) {
		if name := ContainerOf(path); name != "" {
			return name
		}
	}
	return ""
}

// paths are those of a /proc/PID/cgroup, one for each hierarchy.
func paths(content []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(content) {
			// hierarchy:controllers:path; the path may hold colons.
			fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
			if len(fields) == 3 && !yield(fields[2]) {
				return
			}
		}
	}
}

// ContainerOf is [Container] for a cgroup's path. The runtimes write 64
// hexadecimal digits into it: docker-ID.scope, cri-containerd-ID.scope,
// crio-ID.scope, libpod-ID.scope, /docker/ID, /kubepods/…/ID.
func ContainerOf(path string) string {
	parts := strings.Split(path, "/")
	if name := containerIn(parts); name != "" {
		return name
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if strings.HasSuffix(parts[i], ".service") {
			return strings.TrimSuffix(parts[i], ".service")
		}
	}
	return ""
}

// containerIn returns the name of the container of the innermost cgroup that is one's.
func containerIn(parts []string) string {
	for i := len(parts) - 1; i >= 0; i-- { // the innermost first
		part := parts[i]
		id := strings.TrimSuffix(part, ".scope")
		if id, found := containerID(id[strings.LastIndexAny(id, "-:")+1:]); found {
			return id
		}
		if name, found := strings.CutPrefix(part, "lxc.payload."); found {
			return name
		}
		if i > 0 && parts[i-1] == "lxc" && part != "" {
			return part
		}
		if name, found := strings.CutPrefix(part, "machine-"); found && strings.HasSuffix(name, ".scope") {
			return strings.TrimSuffix(name, ".scope") // systemd-nspawn
		}
	}
	return ""
}

// containerID returns the short form of what a runtime calls a container by.
func containerID(id string) (short string, found bool) {
	if len(id) != idLength || strings.Trim(id, "0123456789abcdef") != "" {
		return "", false
	}
	return id[:shortLength], true
}
