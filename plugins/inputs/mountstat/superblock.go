package mountstat

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// superblock is one file system instance with the mounts that show it. One
// check answers for all of them.
type superblock struct {
	id        string
	checked   *mounts.Mount   // whose path is checked
	mounts    []*mounts.Mount // in the table's order; checked is one of them
	namespace *namespace      // where the mounts are; nil: in the table
	policy    policy
	plan      *prober.Plan      // of its check; nil: to be made
	exempt    string            // why it is not checked
	remote    *mounts.NFSServer // nil: unknown, or not NFS

	known     bool // a check has ended
	found     finding
	answered  bool      // the last check that was made
	rootOwned bool      // the last check saw that its root belongs to uid 0
	hungSince time.Time // start of the first check without an answer; zero: it answers
	badSince  time.Time // start of the first check that found a fault; zero: there is none
	lastOK    time.Time
	recovered int64 // how often
	traffic   traffic

	// Under Mountstat.mu:
	underWay bool
	report   *prober.Report // came, and was not yet turned into metrics
}

// group names what mounts share a fate with: their server, daemon or device.
func group(mount *mounts.Mount) string {
	if server, ok := mount.Option("addr"); ok {
		return mount.FSType + " " + server
	}
	return mount.FSType + " " + mount.Source
}

// networked reports whether the file system is a server's.
func networked(mount *mounts.Mount) bool {
	switch mount.FSType {
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "lustre", "afs", "9p", "virtiofs", "beegfs", "gpfs", "fuse.sshfs":
		return true
	}
	return false
}

// independent reports whether the file system is the root, which all else depends
// on, or one that is in memory alone.
func independent(mount *mounts.Mount) bool {
	switch mount.FSType {
	case "tmpfs", "ramfs", "devtmpfs":
		return true
	}
	return mount.Mountpoint == "/"
}

// onDevice reports whether the file system is a local block device's.
func onDevice(mount *mounts.Mount) bool {
	return strings.HasPrefix(mount.Source, "/dev/") && !isFUSE(mount)
}

func isFUSE(mount *mounts.Mount) bool {
	return mount.FSType == "fuse" || mount.FSType == "fuseblk" || strings.HasPrefix(mount.FSType, "fuse.")
}

// regroup sorts the mounts to be checked by superblock, and keeps what is known
// about those that were there before.
func (m *Mountstat) regroup() {
	before := make(map[string]*superblock, len(m.superblocks))
	for _, sb := range m.superblocks {
		before[sb.id] = sb
	}
	found := make(map[string]*superblock, len(m.table))
	m.superblocks, m.hidden = nil, 0
	m.above = make(map[int]placed, len(m.table))
	for i := range m.table {
		m.above[m.table[i].ID] = placed{mount: &m.table[i]}
	}
	add := func(mount *mounts.Mount, ns *namespace) {
		id := mount.Superblock()
		if m.PerMount {
			id += " " + mount.Mountpoint
		}
		sb := found[id]
		if sb == nil {
			if sb = before[id]; sb == nil || sb.checked.Source != mount.Source || sb.checked.FSType != mount.FSType {
				sb = &superblock{id: id}
			}
			sb.mounts, sb.checked, sb.namespace = nil, mount, ns
			found[id] = sb
			m.superblocks = append(m.superblocks, sb)
		}
		if sb.namespace != ns {
			return // it is checked where it was seen first
		}
		sb.mounts = append(sb.mounts, mount)
		if m.reluctance(mount) < m.reluctance(sb.checked) {
			sb.checked = mount
		}
	}
	for i := range m.table {
		mount := &m.table[i]
		switch {
		case m.ignored(mount):
		case mount.Hidden:
			m.hidden++
		default:
			add(mount, nil)
		}
	}
	for _, ns := range m.namespaces.found {
		for i := range ns.mounts {
			if !m.ignored(&ns.mounts[i]) {
				add(&ns.mounts[i], ns)
			}
		}
	}
	for _, sb := range m.superblocks {
		sb.policy, sb.plan = m.policyFor(sb.checked), nil
		sb.remote = sb.checked.NFSServer()
		if sb.namespace == nil {
			for _, mount := range sb.mounts {
				m.above[mount.ID] = placed{mount: mount, superblock: sb}
			}
		} else if !sb.namespace.network {
			sb.remote = nil // the server's address means another network
		}
		sb.exempt = m.exemption(sb)
	}
}

func (m *Mountstat) ignored(mount *mounts.Mount) bool {
	if mounts.Pseudo(mount.FSType) || !m.fits(mount) {
		return true
	}
	return slices.ContainsFunc(m.IgnoreMountOpts, func(option string) bool {
		return mount.HasOption(option) || option == "bind" && mount.Bind()
	})
}

// reluctance orders mounts of one superblock: what autofs has mounted is checked
// last, and the whole file system rather than a part of it.
func (m *Mountstat) reluctance(mount *mounts.Mount) int {
	reluctance := 0
	if mount.OnDemand {
		reluctance = 2
	}
	if mount.Bind() {
		reluctance++
	}
	return reluctance
}

// exemption says why a superblock must not be checked, if so.
func (m *Mountstat) exemption(sb *superblock) string {
	mount := sb.checked
	if sb.namespace == nil && !m.ProbeAutomounted && mount.OnDemand {
		return "mounted on demand: a check would keep it mounted; see probe_automounted"
	}
	if uid, _, private := privateFUSE(mount); private && !m.becomes && !m.isUser(uid) {
		return "only the user who mounted it, " + strconv.FormatUint(uint64(uid), 10) + ", may look at it"
	}
	return ""
}

func (sb *superblock) hung() bool { return !sb.hungSince.IsZero() }

// risk orders superblocks: those that answered come first, so that they don't
// wait behind others which hang; local ones before those that depend on a
// server or daemon.
func (sb *superblock) risk() int {
	risk := 0
	switch {
	case sb.hung():
		risk = 4
	case !sb.answered:
		risk = 2
	}
	if !onDevice(sb.checked) {
		risk++
	}
	return risk
}

// onlyEvidenceChanged reports whether a fault is what it was, and only its cause is
// told in another way: a firewall that rejects, say, does not answer every call.
func (sb *superblock) onlyEvidenceChanged(before *finding) bool {
	return before.cause != "" && before.cause != unknown && before.code == sb.found.code && before.errno == sb.found.errno
}

// settle notes a finding, and reports whether it is another than before, and
// how long the file system had been at fault.
func (sb *superblock) settle(found finding, now time.Time) (changed bool, before finding, lasted time.Duration) {
	if !sb.badSince.IsZero() {
		lasted = now.Sub(sb.badSince)
	}
	switch {
	case found.code == result.Unchecked: // tells nothing about the file system
	case found.hangs():
		sb.answered = false
		if !sb.hung() {
			sb.hungSince = sb.report.Since
		}
		if sb.badSince.IsZero() {
			sb.badSince = sb.report.Since
		}
	case found.code.Fault():
		sb.answered = true
		sb.hungSince = time.Time{}
		if sb.badSince.IsZero() {
			sb.badSince = now
		}
	default:
		sb.answered = true
		if !sb.badSince.IsZero() {
			sb.recovered++
		}
		sb.hungSince, sb.badSince, sb.lastOK = time.Time{}, time.Time{}, now
	}
	before = sb.found
	changed = !sb.known || found.code != before.code || found.errno != before.errno || found.cause != before.cause
	sb.found = found
	sb.known = true
	return changed, before, lasted
}
