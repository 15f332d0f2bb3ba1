package host

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

// Numbers of the host's initial namespaces, linux/proc_ns.h.
const (
	firstPIDNamespace    = "pid:[4026531836]"
	firstCgroupNamespace = "cgroup:[4026531835]"
)

// Container is the kind of container that a process is in.
type Container uint8

// The kinds of containers.
const (
	// NoContainer: on a host, as far as the kernel tells.
	NoContainer Container = iota
	// ApplicationContainer: what runs in it mounts nothing at its start.
	ApplicationContainer
	// SystemContainer: systemd is process 1 in it, as in LXC's and systemd-nspawn's.
	SystemContainer
)

// SeesAllProcesses reports whether all processes of the host show, and not only those of a
// container. It is false where that can't be found out.
func (h *Host) SeesAllProcesses() bool {
	namespace, _ := os.Readlink(filepath.Join(h.Proc, h.PID, "ns/pid"))
	return namespace == firstPIDNamespace
}

// Container tells what kind of container this process is in, by its namespaces and by its
// cgroup, which a runtime has named.
func (*Host) Container() Container {
	namespace := func(name string) string {
		link, _ := os.Readlink(filepath.Join(ownProc, "self/ns", name))
		return link
	}
	comm, _ := os.ReadFile(filepath.Join(ownProc, "1/comm"))
	pid, cgroup := namespace("pid"), namespace("cgroup")
	switch {
	case pid != "" && pid != firstPIDNamespace && strings.TrimSpace(string(comm)) == "systemd":
		return SystemContainer
	case pid != "" && pid != firstPIDNamespace, cgroup != "" && cgroup != firstCgroupNamespace,
		cgroups.InContainer(filepath.Join(ownProc, "self/cgroup")):
		return ApplicationContainer
	}
	return NoContainer
}
