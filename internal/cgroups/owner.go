package cgroups

import (
	"cmp"
	"slices"
	"strings"
)

// Owner is whom a process belongs to, as its control groups are named.
type Owner struct {
	Unit      string // of systemd: a service or a scope, by a name that systemd would give
	Container string // see [Identity]
	Pod       string // the UID that Kubernetes has given it
}

// OwnerOf reads a file as /proc/PID/cgroup is, cgroups(7).
func OwnerOf(content []byte) Owner {
	var o Owner
	for path := range paths(content) {
		parts := strings.Split(path, "/")
		o.Container = cmp.Or(o.Container, containerIn(parts))
		o.Pod = cmp.Or(o.Pod, podOf(parts))
		for _, part := range slices.Backward(parts) { // the innermost first
			isUnit := strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope")
			if isUnit && plain(part) && o.Unit == "" && (o.Container == "" || !strings.Contains(part, o.Container)) {
				o.Unit = part
			}
		}
	}
	return o
}
