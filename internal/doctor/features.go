package doctor

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// Feature is something that the plugin can do only where it has the privileges.
type Feature struct {
	ID string // stable
	// Capabilities that it takes, all of them. Root, which has them, needs no more.
	Capabilities Capabilities
	// Buys names the metrics, and what they are without the capabilities.
	Buys string
	// Needed reports whether this host asks for the capabilities at all. nil: it
	// does.
	Needed func(Host) bool
}

// Host is where features look.
type Host struct{ Proc, Sys, Dev string }

// Features are what capabilities buy, the most useful first. docs/PRIVILEGES.md
// shows them as a test has seen them.
func Features() []Feature {
	return []Feature{
		{ID: "owner", Capabilities: SetUID | SetGID | Kill,
			Buys: "mountstat checks, and nfslock locks, as the owner of each file system (run_as): without them, private FUSE mounts are \"unchecked\", and of directories closed to others the readdir is left out"},
		{ID: "closed_directories", Capabilities: DACReadSearch,
			Buys: "mounts below directories that Telegraf's user may not search are checked, FUSE mounts have fuse_waiting, and dentrycache has dentry_slab_bytes: without it, such mounts are \"unchecked\", and the fields are missing"},
		{ID: "dentry_attribution", Capabilities: BPF | Perfmon,
			Buys: "dentrycache_dir has children, negative_children and predicted_stall_seconds, and dentrycache_source says which process creates negative dentries in which directory: without them, dentrycache_status has the mode \"none\""},
		{ID: "who_waits", Capabilities: SysPtrace,
			Buys: "mountstat_blocked has processes of other users that wait for a FUSE daemon, with the tags path and wchan, and mountstat stuck_wchan of helpers that run as others, and what the FUSE daemons of other users wait for: without it, processes in state D are counted, with wchan \"unknown\""},
		{ID: "watches", Capabilities: SysPtrace | DACReadSearch,
			Buys: "dentrycache_dir has watched and watches, of the inotify and fanotify watches of all users' processes: without them, only if Telegraf's user has a watch there"},
		{ID: "kernel_log", Capabilities: Syslog,
			Buys: "nfslock_host and nfslock_server have the fields kernel_*, counts of the kernel's messages, and mountstat has kernel_errors, and quotes what the kernel says of a disk: without it, they are missing, and mountstat says \"io_error\" of more", Needed: restrictsLog},
		{ID: "other_namespaces", Capabilities: SysAdmin | SysChroot | SysPtrace,
			Buys: "mount_namespaces = \"all\" checks network file systems of containers: without them, these are not seen, or \"unchecked\""},
		{ID: "kernel_stacks", Capabilities: SysAdmin | SysPtrace | DACReadSearch,
			Buys: "nfslock counts in tasks_blocked the tasks of other users that wait for a server's answer about a lock, by their stacks: without them, only those whose wchan tells"},
	}
}

// grant adds to a finding how to grant capabilities to what runs the plugin: a unit, or a
// container.
func (p *examination) grant(f Finding, s *subject, c Capabilities) {
	if p.contained {
		f.Cure = grantContainer(c)
		p.add(f)
		return
	}
	if p.own {
		p.mend(f, ownUnit, "CapabilityBoundingSet="+c.String()) // as root
		return
	}
	lines := []string{"AmbientCapabilities=" + c.String()}
	if s.bound != 0 && !s.bound.has(c) {
		lines = append(lines, "CapabilityBoundingSet="+c.String())
	}
	p.mend(f, telegrafUnit, lines...)
}

// restrictsLog reads kernel.dmesg_restrict, sysctl/kernel.rst of the kernel's
// documentation.
func restrictsLog(h Host) bool {
	content, err := os.ReadFile(filepath.Join(h.Proc, "sys/kernel/dmesg_restrict"))
	return err != nil || strings.TrimSpace(string(content)) != "0"
}

// examineFeatures judges what the subject can do, and what the kernel has.
func (p *examination) examineFeatures(s *subject) {
	h := Host{p.Proc, p.Sys, p.Dev}
	for _, f := range Features() {
		missing := f.Capabilities &^ s.caps.implied()
		id := "feature." + f.ID
		switch {
		case f.Needed != nil && !f.Needed(h):
			p.fine(id, f.Capabilities.String(), "not needed on this host")
		case missing == 0:
			p.fine(id, f.Capabilities.String(), "granted")
		default:
			p.grant(Finding{ID: id, Status: checkup.Warning, Object: missing.String(), Says: "not granted to " + s.user, Symptom: f.Buys}, s, f.Capabilities)
		}
	}
	p.examineKernel(h, s)
}

// examineKernel looks for files that only some kernels or hosts show.
func (p *examination) examineKernel(h Host, s *subject) {
	lacks := func(id, object, says, symptom, cure string) {
		p.add(Finding{ID: "kernel." + id, Status: checkup.Warning, Object: object, Says: says, Symptom: symptom, Cure: cure})
	}
	kernel, err := dcache.ReadVersion(h.Proc)
	if err != nil {
		p.add(Finding{ID: "kernel.dentry_state", Status: checkup.Critical, Object: h.Proc, Says: err.Error(),
			Symptom: "vfsprobe ends at start, where dentrycache is among its inputs", Cure: "/proc must be mounted in full: ProcSubset=all"})
	} else if state, err := dcache.ReadDentryState(h.Proc, kernel); err != nil {
		lacks("dentry_state", "/proc/sys/fs/dentry-state", err.Error(), "dentrycache has no metrics", "")
	} else if !state.HasNegative {
		lacks("dentry_state", "/proc/sys/fs/dentry-state", "this kernel does not count negative dentries", "dentrycache has no field negative", "Linux 5.0 and the kernels of RHEL 8 do")
	} else {
		p.fine("kernel.dentry_state", "/proc/sys/fs/dentry-state", "counts negative dentries")
	}

	if _, err := os.Stat(filepath.Join(h.Proc, "sys/kernel/hung_task_detect_count")); err != nil {
		lacks("hung_tasks", "/proc/sys/kernel/hung_task_detect_count", "this kernel has none", "mountstat_summary has no hung_task_detect_count", "Linux 6.13 has it, with CONFIG_DETECT_HUNG_TASK")
	} else {
		p.fine("kernel.hung_tasks", "/proc/sys/kernel/hung_task_detect_count", "there")
	}

	p.examineHungTaskPanic(h)

	connections := filepath.Join(h.Sys, "fs/fuse/connections")
	var st unix.Statfs_t
	const fuseCtlMagic = 0x65735543 // fs/fuse/control.c
	if err := unix.Statfs(connections, &st); err == nil && st.Type != fuseCtlMagic {
		lacks("fusectl", connections, "no fusectl is mounted there", "mountstat has no fuse_waiting for FUSE mounts", "mount -t fusectl fusectl "+connections)
	} else {
		p.fine("kernel.fusectl", connections, "mounted, or no FUSE here")
	}

	if _, err := os.Stat(filepath.Join(h.Dev, "kmsg")); err != nil {
		lacks("kmsg", filepath.Join(h.Dev, "kmsg"), err.Error(), "nfslock_host and nfslock_server have no fields kernel_*, mountstat has no kernel_errors, and less evidence for causes", cmp.Or(p.inContainer("privileged: true, in the securityContext; with docker or podman: --device=/dev/kmsg"), "show the host's /dev/kmsg in the container, or PrivateDevices=no"))
	} else {
		p.fine("kernel.kmsg", filepath.Join(h.Dev, "kmsg"), "there")
	}
	p.examineBPF(h, s, kernel)
	p.examineMountTable(h, s)
	p.examineHostTable(h, s, kernel)
}

// examineHungTaskPanic looks whether the kernel panics over tasks that wait unkillably:
// sysctl/kernel.rst of the kernel's documentation.
func (p *examination) examineHungTaskPanic(h Host) {
	sysctl := func(name string) string {
		content, _ := os.ReadFile(filepath.Join(h.Proc, "sys/kernel", name))
		return strings.TrimSpace(string(content))
	}
	const object = "/proc/sys/kernel/hung_task_panic"
	panics, timeout := sysctl("hung_task_panic"), sysctl("hung_task_timeout_secs")
	if panics == "" || panics == "0" || timeout == "0" {
		p.fine("kernel.hung_task_panic", object, "the kernel does not panic over hung tasks")
		return
	}
	p.add(Finding{ID: "kernel.hung_task_panic", Status: checkup.Warning, Object: object,
		Says:    fmt.Sprintf("the kernel panics when a task waits unkillably for %s s, as any program does that needs a dead disk", timeout),
		Symptom: "mountstat leaves out the checks that could cause it: readdir, device and read on disks, and write except on FUSE",
		Cure:    "sysctl -w kernel.hung_task_panic=0, unless cluster software needs it"})
}

// readMountTable reads the table as the plugin does.
func (p *examination) readMountTable() {
	watcher := mounts.NewWatcher(mounts.WatcherOptions{Prober: p.prober, Proc: p.Proc, PID: "self", Devices: mounts.Devices{Sys: p.Sys}})
	defer watcher.Close()
	p.table = watcher.View(1)
}

// examineMountTable looks at the table, and at the options of /proc itself, proc(5).
func (p *examination) examineMountTable(h Host, s *subject) {
	table := filepath.Join(h.Proc, "self/mountinfo")
	view := p.table
	if view.Snapshot == nil {
		p.add(Finding{ID: "kernel.mount_table", Status: checkup.Warning, Object: table, Says: fmt.Sprint(view.Hindrance),
			Symptom: "mountstat checks the root and what its configuration names, and nfslock nothing; a running vfsprobe goes on with the table that it has read last",
			Cure:    "mend the file system that does not answer, if one is named; the table is read again by itself"})
		return
	}
	p.fine("kernel.mount_table", table, "can be read, %d mounts", len(view.Mounts))
	hides, group := false, int64(-1)
	if m := view.At(h.Proc); m != nil {
		hides, group = hidepid(m.VFSOptions)
	}
	exempt := s.uid == 0 || s.caps.has(SysPtrace) || group >= 0 && slices.Contains(s.groups, uint32(group))
	if !hides || exempt {
		p.fine("kernel.hidepid", h.Proc, "shows the processes of others")
		return
	}
	p.grant(Finding{ID: "kernel.hidepid", Status: checkup.Warning, Object: h.Proc, Says: "it is mounted with hidepid=, which hides processes of other users",
		Symptom: "mountstat_blocked, and nfslock's waiters and blocked tasks, miss them"}, s, SysPtrace)
}

// examineHostTable looks whether a container's vfsprobe may read the host's mount table, which takes
// entering the host's mount namespace where a reader of the text could keep everybody from mounting.
func (p *examination) examineHostTable(h Host, s *subject, kernel dcache.Version) {
	if !p.contained || h.Proc == "/proc" {
		return
	}
	const needed = SysAdmin | SysChroot | SysPtrace
	table := filepath.Join(h.Proc, "1/mountinfo")
	if kernel.AtLeast(6, 13) && mounts.SomeAskForOptions(h.Proc, h.Sys) && !s.caps.has(needed) {
		p.grant(Finding{ID: "kernel.host_mount_table", Status: checkup.Warning, Object: table,
			Says:    "a btrfs, bcachefs or ZFS may be mounted on the host: while one does not answer, a reader of this text keeps everybody from mounting; reading it otherwise is not granted to " + s.user,
			Symptom: "the log says that the mount table is read as text"}, s, needed)
		return
	}
	p.fine("kernel.host_mount_table", table, "is read in a way that keeps nobody from mounting, or no file system there could")
}

// hidepid reads the options of a procfs. The group is -1 if none is exempt.
func hidepid(options string) (hides bool, group int64) {
	group = -1
	for option := range strings.SplitSeq(options, ",") {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "hidepid":
			hides = value != "0" && value != "off"
		case "gid":
			if gid, err := strconv.ParseUint(value, 10, 32); err == nil {
				group = int64(gid)
			}
		}
	}
	return hides, group
}
