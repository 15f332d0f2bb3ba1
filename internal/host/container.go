package host

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

// Numbers of the namespaces that the host begins with, linux/proc_ns.h.
const (
	firstPIDNamespace    = "pid:[4026531836]"
	firstCgroupNamespace = "cgroup:[4026531835]"
)

// Container is what a process is in.
type Container uint8

// What there is.
const (
	// NoContainer: on a host, as far as the kernel tells.
	NoContainer Container = iota
	// ApplicationContainer: what runs in it mounts nothing at its start.
	ApplicationContainer
	// SystemContainer: systemd is process 1 in it, as in LXC's and systemd-nspawn's.
	SystemContainer
)

// SeesAllProcesses reports whether all processes of the host show, and not those of a container
// alone. It is false where that may not be seen.
func (h *Host) SeesAllProcesses() bool {
	namespace, _ := os.Readlink(filepath.Join(h.Proc, h.PID, "ns/pid"))
	return namespace == firstPIDNamespace
}

// Container tells what this process is in, by its namespaces and by its cgroup, which a
// runtime has named.
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
