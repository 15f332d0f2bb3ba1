package mountstat

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// namespacesEvery is how often the mount namespaces of all processes are looked
// at: it costs a few microseconds per process.
const namespacesEvery = 30 * time.Second

// namespace is a mount namespace beside the table's, with its network file
// systems.
type namespace struct {
	path      string // of a process that is in it
	container string // whose it is, if that is known
	network   bool   // it has the plugin's own network namespace
	mounts    []mounts.Mount
}

type namespaces struct {
	found []*namespace
	due   time.Time
}

// findNamespaces looks for network file systems which the table does not show.
// It reports whether it has looked.
func (m *Mountstat) findNamespaces(now time.Time) bool {
	if m.MountNamespaces != "all" || now.Before(m.namespaces.due) {
		return false
	}
	m.namespaces.due = now.Add(namespacesEvery)
	m.namespaces.found = nil
	processes, err := os.ReadDir(m.proc)
	m.sayOnce(&m.namespacesErr, err)
	own := make(map[string]bool, len(m.table))
	for i := range m.table {
		own[m.table[i].Superblock()] = true
	}
	link := func(process, name string) string {
		target, _ := os.Readlink(filepath.Join(m.proc, process, "ns", name))
		return target
	}
	network, _ := os.Readlink(filepath.Join(ownProc, "self/ns/net"))
	seen := map[string]bool{"": true, link(filepath.Base(filepath.Dir(m.mountinfo)), "mnt"): true}
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil {
			continue
		}
		id := link(process.Name(), "mnt")
		if seen[id] {
			continue
		}
		seen[id] = true
		content, err := os.ReadFile(filepath.Join(m.proc, process.Name(), "mountinfo"))
		if err != nil {
			delete(seen, id) // the process has ended; another may be there
			continue
		}
		all, _ := mounts.Parse(content)
		all = slices.DeleteFunc(all, func(mount mounts.Mount) bool {
			return mount.Hidden || !networked(&mount) || own[mount.Superblock()]
		})
		if len(all) > 0 {
			m.namespaces.found = append(m.namespaces.found, &namespace{
				path:      filepath.Join(m.proc, process.Name(), "ns", "mnt"),
				container: cgroups.Container(filepath.Join(m.proc, process.Name(), "cgroup")),
				network:   network != "" && network == link(process.Name(), "net"),
				mounts:    all,
			})
		}
	}
	return true
}

// namespaceOf is the mount namespace that a helper must enter for a check.
func (m *Mountstat) namespaceOf(sb *superblock) string {
	if sb.namespace != nil {
		return sb.namespace.path
	}
	return m.namespace
}
