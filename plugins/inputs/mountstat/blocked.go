package mountstat

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

const others = "other"

// blockedTasks looks for tasks that wait for file systems.
type blockedTasks struct {
	*kit
	programs map[programID]mountProgram // that wait
}

// scan looks for tasks that wait for file systems. automounts says that there are automounters,
// whose programs are to be looked for.
func (b *blockedTasks) scan(targets []*target, automounts bool) (blocked.Scan, error) {
	request := blocked.Request{Round: b.round, Asker: b, Programs: automounts}
	for _, t := range targets {
		if t.Hung() {
			request.Urgent = true
			if t.Probed.FUSE() {
				request.Waits = blocked.FUSEWaits()
			}
		}
	}
	return b.host.Tasks.Scan(request)
}

// waitSite is where tasks wait.
type waitSite struct{ wchan, comm, path string }

// taskGroup is the group of tasks that wait at one site.
type taskGroup struct {
	waitSite
	source string // of a mount program: what it mounts
	count  int64
	since  time.Time // of the one that waits longest
	sample int       // its pid
}

// emit reports the tasks that have waited since the last gather or longer, by site, at most top
// of them, and all others as one. vfsprobe's own helpers are only counted. It reports whether what
// some of them have open may not be seen, so that their mounts may not be known.
func (b *blockedTasks) emit(acc telegraf.Accumulator, scan *blocked.Scan, in *inventory, top int) (hidden bool) {
	now := time.Now()
	groups := make(map[waitSite]*taskGroup)
	programs := b.mountPrograms(slices.Concat(scan.Tasks, scan.Mounting))
	resolver := mountResolver{host: b.host, inventory: in, namespace: b.host.MountNamespace(), foreign: make(map[string]*mounts.Snapshot)}
	for _, task := range scan.Tasks {
		site, source := waitSite{wchan: task.Wchan, comm: commonName(&task)}, ""
		if program := programs[task.PID]; program != nil {
			site.path, source = program.Mountpoint, program.Source
		} else {
			site.path = resolver.mountOf(task)
		}
		g := groups[site]
		if g == nil {
			g = &taskGroup{waitSite: site, source: source, since: now}
			groups[site] = g
		}
		g.add(1, task.Since, task.PID)
	}
	sorted := slices.SortedFunc(maps.Values(groups), func(a, other *taskGroup) int {
		return cmp.Or(cmp.Compare(other.count, a.count), a.since.Compare(other.since), strings.Compare(a.comm, other.comm))
	})
	rest := &taskGroup{waitSite: waitSite{wchan: others, comm: others}, since: now}
	for i, g := range sorted {
		if i < top {
			b.emitTasks(acc, g, now)
		} else {
			rest.add(g.count, g.since, g.sample)
		}
	}
	if rest.count > 0 {
		b.emitTasks(acc, rest, now)
	}
	return resolver.hidden
}

// maxMountPrograms is the number of mount programs whose arguments are read in a gather.
const maxMountPrograms = 64

// maxArgumentReads is how often the arguments of a mount program are read that were not got
// before: a busy host may have no helper in time, and a program that is just being started has
// none yet.
const maxArgumentReads = 3

// mountProgram is a program that mounts something.
type mountProgram struct {
	mount *mounts.Mount // nil: its arguments are not known, or none of a mount
	reads int           // of its arguments that may follow
}

// programID identifies a process by its number and its start, in ticks after boot.
type programID struct {
	pid   int
	start uint64
}

// mountPrograms returns the mount programs among tasks, by their pids: those of an automounter,
// for instance, whose server does not answer, so that nothing is mounted yet. The arguments of
// each are read once, or a few times if they could not be read: waiting for a process's memory
// keeps the gather waiting.
func (b *blockedTasks) mountPrograms(tasks []blocked.Task) map[int]*mounts.Mount {
	before := b.programs
	b.programs = make(map[programID]mountProgram)
	var news []programID
	var pids []int
	for _, task := range tasks {
		id := programID{task.PID, task.Start}
		program, known := before[id]
		if !known {
			program.reads = maxArgumentReads
		}
		switch {
		case task.Comm != "mount" && !strings.HasPrefix(task.Comm, "mount."), slices.Contains(pids, task.PID):
		case program.reads == 0:
			b.programs[id] = program
		case len(pids) < maxMountPrograms:
			program.reads--
			b.programs[id] = program
			news, pids = append(news, id), append(pids, task.PID)
		}
	}
	if len(pids) > 0 {
		lines, err := b.host.Files.CommandLines(pids)
		b.said.Error("arguments of mount programs", err)
		for i, line := range lines {
			if len(line) > 0 {
				b.programs[news[i]] = mountProgram{mount: mounts.ParseProgram(line)}
			}
		}
	}
	programs := make(map[int]*mounts.Mount, len(b.programs))
	for id, program := range b.programs {
		programs[id.pid] = program.mount
	}
	return programs
}

func (g *taskGroup) add(count int64, since time.Time, pid int) {
	g.count += count
	if since.Before(g.since) {
		g.since, g.sample = since, pid
	}
}

func (b *blockedTasks) emitTasks(acc telegraf.Accumulator, g *taskGroup, now time.Time) {
	tags := map[string]string{"wchan": cmp.Or(g.wchan, "unknown"), "comm": mounts.Printable(g.comm)}
	if g.path != "" {
		tags["path"] = mounts.Printable(g.path)
	}
	fields := map[string]any{
		"count":           g.count,
		"longest_seconds": now.Sub(g.since).Seconds(),
		"pid":             int64(g.sample),
	}
	if g.source != "" {
		fields["source"] = mounts.Printable(g.source)
	}
	if id := cgroups.Identify(filepath.Join(b.host.Proc, strconv.Itoa(g.sample), "cgroup")); id.Name != "" {
		fields["container"] = id.Name
		b.host.OwnerOf(id).AddTo(fields, "")
	}
	acc.AddGauge("mountstat_blocked", fields, tags)
}

// commonName is the task's name without the part that tells kernel workers apart.
func commonName(task *blocked.Task) string {
	if task.Kernel {
		name, _, _ := strings.Cut(task.Comm, "/")
		return name
	}
	return task.Comm
}

// mountResolver finds the mount that a task waits for.
type mountResolver struct {
	*inventory
	host      *host.Host
	namespace string                      // of the table
	foreign   map[string]*mounts.Snapshot // tables of other namespaces
	hidden    bool                        // what some tasks have open may not be seen
}

// mountOf returns the mount point of a file system that the task has open, or works in, and that
// hangs. If none of them hangs, it returns the only one that a server or daemon stands behind. If
// there are several such, or none, the result is empty.
func (r *mountResolver) mountOf(task blocked.Task) string {
	files := r.host.Tasks.Files(task)
	r.hidden = r.hidden || files.Hidden
	table := r.tableOf(task.PID, files.MountNS)
	if table == nil {
		return ""
	}
	var candidates []*target
	for _, id := range files.MountIDs {
		candidates = append(candidates, r.targetOf(table, table.ByID(id)))
	}
	if files.Cwd != "" {
		candidates = append(candidates, r.targetOf(table, table.Holding(files.Cwd)))
	}
	for _, t := range candidates {
		if t != nil && t.Hung() {
			return t.Probed.Mountpoint
		}
	}
	candidates = slices.DeleteFunc(candidates, func(t *target) bool { return t == nil || !t.Probed.Network() && !t.Probed.FUSE() })
	slices.SortFunc(candidates, func(a, b *target) int { return strings.Compare(a.ID, b.ID) })
	if candidates = slices.Compact(candidates); len(candidates) == 1 {
		return candidates[0].Probed.Mountpoint
	}
	return ""
}

// targetOf is the target that judges a mount; nil if none does.
func (r *mountResolver) targetOf(table *mounts.Snapshot, mount *mounts.Mount) *target {
	switch {
	case mount == nil:
		return nil
	case table == r.table:
		return r.byMount[mount.ID]
	}
	id := mounts.UnitID(mount)
	for _, t := range r.targets {
		if mounts.UnitID(t.Probed) == id {
			return t
		}
	}
	return nil
}

// tableOf is the mount table of a task's namespace. It is read once.
func (r *mountResolver) tableOf(pid int, namespace string) *mounts.Snapshot {
	if namespace == "" || namespace == r.namespace {
		return r.table
	}
	table, known := r.foreign[namespace]
	if !known {
		table, _ = r.host.MountsOf(strconv.Itoa(pid))
		r.foreign[namespace] = table
	}
	return table
}
