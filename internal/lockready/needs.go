package lockready

import (
	"path"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// locksByNLM reports whether the locks of a mount may be those of version 2 or 3 by its type
// and options, nfs(5).
func locksByNLM(fstype, options string) bool {
	if fstype != "nfs" {
		return false
	}
	needs := true
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch {
		case name == "nolock", name == "local_lock" && value == "all", option == "v4", strings.HasPrefix(option, "v4."),
			(name == "vers" || name == "nfsvers") && strings.HasPrefix(value, "4"):
			needs = false
		}
	}
	return needs
}

// ofMounts are the mounts that lock by NLM, and the automount maps that autofs serves, which
// are the sources of its mounts.
func ofMounts(table *mounts.Snapshot) (needs []Need, maps []string) {
	for i := range table.Mounts {
		m := &table.Mounts[i]
		version, _ := m.Option("vers")
		switch {
		case m.FSType == "nfs" && !strings.HasPrefix(version, "4") && m.RemoteLocking():
			needs = append(needs, Need{By: "mount", What: m.Mountpoint, Running: true})
		case m.FSType == "autofs" && m.Source != "systemd-1":
			maps = append(maps, m.Source)
		}
	}
	return needs, maps
}

// ofEntries are those of fstab, or of mount units. What is mounted shows its version itself.
func ofEntries(by string, entries []mounts.FstabEntry, table *mounts.Snapshot) (needs []Need) {
	for i := range entries {
		e := &entries[i]
		if m := table.At(e.Mountpoint); m != nil && m.NFS() {
			continue
		}
		if e.HasMountpoint() && locksByNLM(e.FSType, e.Options) {
			needs = append(needs, Need{By: by, What: e.Mountpoint})
		}
	}
	return needs
}

// ofMap are the NFS mounts of an automount map, autofs(5), of which one is enough.
func ofMap(name, content string) []Need {
	for line := range strings.Lines(strings.ReplaceAll(content, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "+") {
			continue
		}
		fields := strings.Fields(line)
		fstype, options := "nfs", ""
		for i, field := range fields {
			switch {
			case i == 0: // the key
			case field[0] == '-':
				options = field[1:]
				for option := range strings.SplitSeq(options, ",") {
					if value, found := strings.CutPrefix(option, "fstype="); found {
						fstype = value
					}
				}
			default:
				if host, directory, found := strings.Cut(field, ":"); found && host != "" && strings.HasPrefix(directory, "/") && locksByNLM(fstype, options) {
					return []Need{{By: "autofs", What: name}}
				}
			}
		}
	}
	return nil
}

// exported returns the first directory of exports(5), or of an etab.
func exported(content string) string {
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") || strings.HasPrefix(line, `"/`) {
			if quoted, found := strings.CutPrefix(line, `"`); found {
				directory, _, _ := strings.Cut(quoted, `"`)
				return directory
			}
			return strings.Fields(line)[0]
		}
	}
	return ""
}

// serves3 reports whether nfsd serves version 3 by its file versions ("+2 +3 -4 ..."), nfsd(7),
// or, where it does not run, by nfs.conf(5).
func serves3(versions, conf string) bool {
	if versions = strings.TrimSpace(versions); versions != "" {
		return strings.Contains(" "+versions+" ", " +3 ")
	}
	section := ""
	serves := true
	for line := range strings.Lines(conf) {
		line = strings.TrimSpace(line)
		if name, found := strings.CutPrefix(line, "["); found {
			section, _, _ = strings.Cut(name, "]")
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if found && strings.TrimSpace(section) == "nfsd" && strings.EqualFold(strings.TrimSpace(key), "vers3") {
			value = strings.ToLower(strings.TrimSpace(value))
			serves = value != "n" && value != "no" && value != "0" && value != "false" && value != "off" && value != "f"
		}
	}
	return serves
}

// kubelet is where it keeps volumes and knows its drivers.
const kubelet = "/var/lib/kubelet"

// ofDrivers are the drivers of NFS volumes that are registered with the kubelet by sockets of
// these names. They mount in containers, where nobody starts rpc.statd. Where all volumes
// are of version 4 so far, nothing says that there will be others.
func ofDrivers(sockets []string, table *mounts.Snapshot) (needs []Need) {
	for i := range table.Mounts {
		if m := &table.Mounts[i]; m.NFS() && mounts.Below(m.Mountpoint, kubelet) {
			return nil
		}
	}
	for _, socket := range sockets {
		if driver, found := strings.CutSuffix(socket, "-reg.sock"); found && (strings.HasPrefix(driver, "nfs.") || strings.Contains(driver, ".nfs.") || strings.Contains(driver, "-nfs.")) {
			needs = append(needs, Need{By: "kubelet", What: driver, Running: true})
		}
	}
	return needs
}

// ofPod is an NFS volume of a pod that is not mounted yet, by the names of the plugins whose
// volumes it has.
func ofPod(pod string, plugins []string, table *mounts.Snapshot) []Need {
	for _, plugin := range plugins {
		volumes := path.Join(pod, "volumes", plugin)
		if plugin != "kubernetes.io~nfs" {
			continue
		}
		for i := range table.Mounts {
			if mounts.Below(table.Mounts[i].Mountpoint, volumes) {
				return nil
			}
		}
		return []Need{{By: "kubelet", What: volumes}}
	}
	return nil
}
