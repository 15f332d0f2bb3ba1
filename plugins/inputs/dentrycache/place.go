package dentrycache

import (
	"path"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// place is a directory as it is reported.
type place struct {
	path string
	// real: the path leads to the directory in the host's mount namespace.
	real   bool
	device string
	fstype string
}

// locate finds the path of a directory that the kernel has named by its
// superblock and the way from its root.
func locate(all []mounts.Mount, p *attribution.Place) place {
	inside := "/" + strings.Join(p.Path, "/")
	found := place{path: inside, device: p.Device.String(), fstype: p.FSType}
	if p.Truncated {
		found.path = "…" + strings.TrimSuffix(inside, "/")
	} else if m := showing(all, p.Device, inside); m != nil {
		found.path, found.real = path.Join(m.Mountpoint, strings.TrimPrefix(inside, m.Root)), true
		if m.Root == "/" {
			found.path = path.Join(m.Mountpoint, inside)
		}
		found.device, found.fstype = device(m.Source), m.FSType
	} else if m := mountedFrom(all, p.Device); m != nil {
		found.device, found.fstype = device(m.Source), m.FSType
	}
	if p.Relative == "" || p.Relative == "." {
		return found
	}
	// A path with .. is left as it is: what a link before it leads to is unknown.
	if strings.Contains("/"+p.Relative+"/", "/../") {
		found.path, found.real = strings.TrimSuffix(found.path, "/")+"/"+p.Relative, false
		return found
	}
	found.path = path.Join(found.path, p.Relative)
	if m := mountOf(all, found.path); found.real && m != nil { // mount points may have been crossed
		found.device, found.fstype = device(m.Source), m.FSType
	}
	return found
}

// showing is the mount that shows the directory of a file system: of several the
// one with the shortest mount point.
func showing(all []mounts.Mount, device attribution.Device, inside string) *mounts.Mount {
	var best *mounts.Mount
	for i := range all {
		m := &all[i]
		if m.Hidden || uint32(m.Major) != device.Major || uint32(m.Minor) != device.Minor || !below(inside, m.Root) {
			continue
		}
		if best == nil || len(m.Mountpoint) < len(best.Mountpoint) {
			best = m
		}
	}
	return best
}

// mountedFrom is any mount of the superblock.
func mountedFrom(all []mounts.Mount, device attribution.Device) *mounts.Mount {
	for i := range all {
		if uint32(all[i].Major) == device.Major && uint32(all[i].Minor) == device.Minor {
			return &all[i]
		}
	}
	return nil
}
