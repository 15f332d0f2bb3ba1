package cgroups

import "strings"

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
		if o.Container == "" {
			o.Container = containerIn(parts)
		}
		for i := len(parts) - 1; i >= 0; i-- { // the innermost first
			part := parts[i]
			isUnit := strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope")
			if isUnit && plain(part) && o.Unit == "" && (o.Container == "" || !strings.Contains(part, o.Container)) {
				o.Unit = part
			}
			if o.Pod == "" {
				o.Pod = podIn(part)
			}
		}
	}
	return o
}
