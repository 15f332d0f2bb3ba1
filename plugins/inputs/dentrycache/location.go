package dentrycache

import (
	"path"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// location is where a directory is, as it is reported.
type location struct {
	path string
	// real: the path leads to the directory in the host's mount namespace.
	real   bool
	device string
	fstype string
}

func (l *location) on(m *mounts.Mount) { l.device, l.fstype = m.Device, m.FSType }

// locate finds the path of a directory that the kernel has named by its
// superblock and the path from its root.
func locate(table *mounts.Snapshot, p *attribution.Place) location {
	if p.Nowhere() {
		return location{}
	}
	inside := "/" + strings.Join(p.Path, "/")
	found := location{path: inside, device: p.Device.String(), fstype: p.FSType}
	mounted := table.ByDevice(int(p.Device.Major), int(p.Device.Minor))
	if p.Truncated {
		found.path = "…" + strings.TrimSuffix(inside, "/")
	} else if m := showing(mounted, inside); m != nil {
		found.path, found.real = path.Join(m.Mountpoint, strings.TrimPrefix(inside, m.Root)), true
		found.on(m)
	} else if len(mounted) > 0 {
		found.on(mounted[0])
	}
	if p.Relative == "" || p.Relative == "." {
		return found
	}
	// A path with .. is left as it is: where a link before the .. leads is unknown.
	if strings.Contains("/"+p.Relative+"/", "/../") {
		found.path, found.real = strings.TrimSuffix(found.path, "/")+"/"+p.Relative, false
		return found
	}
	found.path = path.Join(found.path, p.Relative)
	if m := table.Holding(found.path); found.real && m != nil { // mount points may have been crossed
		found.on(m)
	}
	return found
}

// showing is the mount of the file system that shows the directory; if there are several, the
// one with the shortest mount point.
func showing(all []*mounts.Mount, inside string) (best *mounts.Mount) {
	for _, m := range all {
		if !m.Hidden && mounts.Below(inside, m.Root) && (best == nil || len(m.Mountpoint) < len(best.Mountpoint)) {
			best = m
		}
	}
	return best
}
