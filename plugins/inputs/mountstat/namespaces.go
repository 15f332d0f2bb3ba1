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

// namespaces are the other mount namespaces, as they were last looked at.
type namespaces struct {
	*kit
	found []*namespace
	due   time.Time
}

// find looks for network file systems that the table does not show, when that is due. It reports
// whether it has looked.
func (n *namespaces) find(table *mounts.Snapshot, now time.Time) bool {
	if !n.foreign || now.Before(n.due) {
		return false
	}
	n.due = now.Add(namespacesInterval)
	n.found = nil
	processes, err := os.ReadDir(n.host.Proc)
	n.said.Error("namespaces", err)
	own := make(map[string]bool, len(table.Mounts))
	for i := range table.Mounts {
		own[mounts.UnitID(&table.Mounts[i])] = true
	}
	network, _ := os.Readlink("/proc/self/ns/net")
	seen := map[string]bool{"": true, n.host.MountNamespace(): true}
	for _, process := range processes {
		if _, err := strconv.Atoi(process.Name()); err != nil {
			continue
		}
		id := n.link(process.Name(), "mnt")
		if seen[id] {
			continue
		}
		seen[id] = true
		other, err := n.host.MountsOf(process.Name())
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
			delete(seen, id) // the process has ended; another may be there
			continue
		case err != nil:
			n.said.Error("namespace", err)
			return true
		}
		all := other.Visible(func(mount *mounts.Mount) bool { return mount.Network() && !own[mounts.UnitID(mount)] })
		if len(all) > 0 {
			n.found = append(n.found, &namespace{
				path:      filepath.Join(n.host.Proc, process.Name(), "ns", "mnt"),
				container: cgroups.Identify(filepath.Join(n.host.Proc, process.Name(), "cgroup")).Name,
				network:   network != "" && network == n.link(process.Name(), "net"),
				mounts:    all,
			})
		}
	}
	n.said.Error("namespace", nil)
	return true
}

// link tells which namespace of a kind a process is in; it is empty if that can't be read.
func (n *namespaces) link(process, kind string) string {
	namespace, _ := os.Readlink(filepath.Join(n.host.Proc, process, "ns", kind))
	return namespace
}

// namespaceOf is the mount namespace that a helper must enter for a check.
func (s *settings) namespaceOf(t *target) string {
	if t.namespace != nil {
		return t.namespace.path
	}
	return s.namespace
}
