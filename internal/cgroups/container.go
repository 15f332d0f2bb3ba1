// Package cgroups knows what the names of control groups tell about containers, pods and units,
// what memory they hold, and how it is had back.
package cgroups

import (
	"bytes"
	"cmp"
	"iter"
	"os"
	"slices"
	"strings"
)

// IDLength is that of the ids which runtimes give containers, in hexadecimal digits.
const IDLength = 64

const (
	shortLength = 12 // as docker ps shows it
	allocLength = 8  // as nomad status shows it
	buildLength = 25 // of buildkit's ids
)

// An Identity is what the path of a cgroup tells about whose it is.
type Identity struct {
	// Name is the container's short id (12 digits) or name, and the unit's for a systemd
	// service. It is empty where neither is known.
	Name string
	// IDs are the full ones, of 64 digits: of the innermost container first, and of those in
	// which that is nested.
	IDs []string
	// PodUID is that of the innermost pod, with dashes where Kubernetes has made it; the 32
	// digits of a static pod have none.
	PodUID string
	// Task is the name that Nomad gives what it runs itself.
	Task string
}

// Identify is [IdentityOf] the cgroup that a file such as /proc/PID/cgroup names (cgroups(7)),
// in the first hierarchy that tells.
func Identify(file string) Identity {
	content, err := os.ReadFile(file)
	if err != nil {
		return Identity{}
	}
	return parseIdentity(content)
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

func parseIdentity(content []byte) Identity {
	for path := range paths(content) {
		if id := IdentityOf(path); id.Name != "" {
			return id
		}
	}
	return Identity{}
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

// IdentityOf reads the path of a cgroup. The runtimes write 64 hexadecimal digits into it:
// docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope,
// /docker/ID, /ecs/TASK/ID; kubelet the pod's uid: /kubepods/…/podUID/ID,
// kubepods-…-podUID.slice; others a name of their own.
func IdentityOf(path string) Identity {
	parts := strings.Split(path, "/")
	id := Identity{Name: containerIn(parts), PodUID: podOf(parts)}
	for _, part := range slices.Backward(parts) {
		if full := idIn(part); full != "" {
			id.IDs = append(id.IDs, full)
		}
		if _, task := nomadIn(part); task != "" && id.Task == "" {
			id.Task = task
		}
	}
	for i := len(parts) - 1; i >= 0 && id.Name == ""; i-- {
		if service, found := strings.CutSuffix(parts[i], ".service"); found {
			id.Name = cmp.Or(containerBelow(service, parts[i+1:]), service)
		}
	}
	return id
}

// containerBelow returns the name of the container in the cgroup of a runtime's own service,
// where it has names and not ids: containerd.service/NAMESPACE/NAME, garden.service/garden/NAME.
func containerBelow(service string, parts []string) string {
	if len(parts) < 2 || service != "containerd" && service != "garden" {
		return ""
	}
	return parts[1]
}

// containerIn returns the name of the container of the innermost cgroup that is one's.
func containerIn(parts []string) string {
	for i := len(parts) - 1; i >= 0; i-- { // the innermost first
		part := parts[i]
		if id := idIn(part); id != "" {
			return id[:shortLength]
		}
		if alloc, _ := nomadIn(part); alloc != "" {
			return alloc[:allocLength]
		}
		if name, found := strings.CutPrefix(part, "lxc.payload."); found {
			return name
		}
		if name, found := strings.CutPrefix(part, "machine-"); found && strings.HasSuffix(name, ".scope") {
			return strings.TrimSuffix(name, ".scope") // systemd-nspawn
		}
		if name, found := strings.CutPrefix(part, "docker-"); found && isBuild(strings.TrimSuffix(name, ".scope")) {
			return strings.TrimSuffix(name, ".scope") // docker build
		}
		if i == 0 || part == "" {
			continue
		}
		switch above := parts[i-1]; {
		case above == "lxc", above == "buildkit" && isBuild(part),
			above == "garden" && part != "good" && part != "bad",
			i > 1 && parts[i-2] == "garden" && (above == "good" || above == "bad"): // Cloud Foundry
			return part
		}
	}
	return ""
}

// idIn returns the id of 64 digits in the name of a cgroup; empty if there is none, and for
// a container's monitor, conmon, which is not in it.
func idIn(part string) string {
	if strings.Contains(part, "-conmon-") {
		return ""
	}
	id := strings.TrimSuffix(part, ".scope")
	if id = id[strings.LastIndexAny(id, "-:")+1:]; len(id) == IDLength && strings.Trim(id, "0123456789abcdef") == "" {
		return id
	}
	return ""
}

// isBuild reports whether it is an id of buildkit's.
func isBuild(id string) bool {
	return len(id) == buildLength && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

// podOf returns the uid of the pod of the innermost cgroup that is one's.
func podOf(parts []string) string {
	for _, part := range slices.Backward(parts) {
		if uid := podIn(part); uid != "" {
			return uid
		}
	}
	return ""
}

// podIn returns the uid of the pod in the name of a cgroup; empty if there is none. systemd's
// drivers write underscores for dashes, and containerd's name of a scope has the slice in
// front.
func podIn(part string) string {
	part, _, _ = strings.Cut(part, ":")
	part = strings.TrimSuffix(part, ".slice")
	part = part[strings.LastIndex(part, "-pod")+1:]
	uid, found := strings.CutPrefix(part, "pod")
	if uid = strings.ReplaceAll(uid, "_", "-"); !found || !isUID(uid) {
		return ""
	}
	return uid
}

// isUID reports whether it is a UUID, or the 32 digits of a static pod.
func isUID(uid string) bool {
	digits := strings.ReplaceAll(uid, "-", "")
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return false
	}
	return len(uid) == 32 || len(uid) == 36 && uid[8] == '-' && uid[13] == '-' && uid[18] == '-' && uid[23] == '-'
}

// nomadIn returns the allocation and the task in the name of a cgroup, which is
// ALLOCATION.TASK.scope; both are empty for others.
func nomadIn(part string) (alloc, task string) {
	name, found := strings.CutSuffix(part, ".scope")
	alloc, task, dotted := strings.Cut(name, ".")
	if !found || !dotted || task == "" || len(alloc) != 36 || !isUID(alloc) {
		return "", ""
	}
	return alloc, task
}
