package mountstat

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// namespacesInterval is how often vfsprobe looks at the mount namespaces of all
// processes. That costs a few microseconds per process.
const namespacesInterval = 30 * time.Second

// namespace is a mount namespace other than the table's, with its network file
// systems.
type namespace struct {
	path      string // of a process that is in it
	container string // whose it is, if that is known
	network   bool   // it has the plugin's own network namespace
	mounts    []*mounts.Mount
}

type namespaces struct {
	found []*namespace
	due   time.Time
}

// findNamespaces looks for network file systems that the table does not show.
// It reports whether it has looked.
func (m *Mountstat) findNamespaces(now time.Time) bool {
	if m.MountNamespaces != "all" || now.Before(m.namespaces.due) {
		return false
	}
	m.namespaces.due = now.Add(namespacesInterval)
	m.namespaces.found = nil
	processes, err := os.ReadDir(m.host.Proc)
	m.said.Error("namespaces", err)
	own := make(map[string]bool, len(m.table.Mounts))
	for i := range m.table.Mounts {
		own[mounts.UnitID(&m.table.Mounts[i])] = true
	}
	link := func(process, name string) string {
		target, _ := os.Readlink(filepath.Join(m.host.Proc, process, "ns", name))
		return target
	}
	network, _ := os.Readlink("/proc/self/ns/net")
	seen := map[string]bool{"": true, m.host.MountNamespace(): true}
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil {
			continue
		}
		id := link(process.Name(), "mnt")
		if seen[id] {
			continue
		}
		seen[id] = true
		table, err := m.host.MountsOf(process.Name())
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
			delete(seen, id) // the process has ended; another may be there
			continue
		case err != nil:
			m.said.Error("namespace", err)
			return true
		}
		all := table.Visible(func(mount *mounts.Mount) bool { return mount.Network() && !own[mounts.UnitID(mount)] })
		if len(all) > 0 {
			m.namespaces.found = append(m.namespaces.found, &namespace{
				path:      filepath.Join(m.host.Proc, process.Name(), "ns", "mnt"),
				container: cgroups.Identify(filepath.Join(m.host.Proc, process.Name(), "cgroup")).Name,
				network:   network != "" && network == link(process.Name(), "net"),
				mounts:    all,
			})
		}
	}
	m.said.Error("namespace", nil)
	return true
}

// namespaceOf is the mount namespace that a helper must enter for a check.
func (m *Mountstat) namespaceOf(t *target) string {
	if t.namespace != nil {
		return t.namespace.path
	}
	return m.namespace
}
