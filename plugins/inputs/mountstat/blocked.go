package mountstat

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	// longWait is a wait that the load average is sure to show, on a quiet host.
	longWait = time.Minute
	// scanShare is the part of a CPU that scans may take while nothing hangs.
	scanShare = 0.01
	// maxInspected is how many blocked tasks are asked for their files.
	maxInspected = 200
	others       = "other"
)

// waiters are the tasks that wait for file systems.
type waiters struct {
	scanner *blocked.Scanner
	helpers *prober.Recogniser
	tasks   []blocked.Task // of the last scan
	due     time.Time      // for the next one, while nothing hangs
}

// scanBlocked looks for blocked tasks, if there is reason to: something hangs or
// is blocked, or the load average does not rule it out.
func (m *Mountstat) scanBlocked(now time.Time) error {
	w := &m.waiters
	var waits []string
	reason := len(w.tasks) > 0
	for _, sb := range m.superblocks {
		if sb.hung() {
			reason = true
			if isFUSE(sb.checked) {
				waits = blocked.FUSEWaits()
			}
		}
	}
	if !reason {
		w.tasks = nil
		if now.Before(w.due) {
			return nil
		}
		if excluded, err := blocked.LoadExcludes(m.proc, longWait); err != nil || excluded {
			return err
		}
	}
	if w.scanner == nil {
		scanner, err := blocked.NewScanner(m.proc)
		if err != nil {
			return err
		}
		if w.helpers, err = prober.NewRecogniser(m.proc); err != nil {
			scanner.Close()
			return err
		}
		w.scanner = scanner
	}
	var err error
	w.scanner.SetWaits(waits...)
	w.tasks, err = w.scanner.Scan(now)
	took := time.Since(now)
	w.due = now.Add(time.Duration(float64(took) / scanShare))
	return err
}

// place is where tasks wait.
type place struct{ wchan, comm, path string }

// crowd is the tasks of one place.
type crowd struct {
	place
	count  int64
	since  time.Time // of the one that waits longest
	sample int       // its pid
}

// emitBlocked reports the tasks that have waited since the last gather or
// longer, by place. Helpers of vfsprobe's own are only counted.
func (m *Mountstat) emitBlocked(acc telegraf.Accumulator, summary map[string]any) {
	now := time.Now()
	m.sayOnce(&m.blockedErr, m.scanBlocked(now))
	crowds := make(map[place]*crowd)
	var total, helpers int64
	var finder *finder // costs a look at every superblock
	for _, task := range m.waiters.tasks {
		switch {
		case strings.HasPrefix(task.Comm, prober.HelperPrefix) && m.waiters.helpers.Helper(task.PID):
			helpers++
			continue
		case !task.Caught.Before(now):
			continue
		}
		total++
		at := place{wchan: task.Wchan, comm: commonName(&task)}
		if finder == nil {
			finder = m.newFinder()
		}
		if total <= maxInspected {
			at.path = finder.mountOf(task)
		}
		c := crowds[at]
		if c == nil {
			c = &crowd{place: at, since: now}
			crowds[at] = c
		}
		c.add(1, task.Caught, task.PID)
	}
	summary["blocked"], summary["blocked_helpers"] = total, helpers

	sorted := slices.SortedFunc(maps.Values(crowds), func(a, b *crowd) int {
		return cmp.Or(cmp.Compare(b.count, a.count), a.since.Compare(b.since), strings.Compare(a.comm, b.comm))
	})
	rest := &crowd{place: place{wchan: others, comm: others}, since: now}
	for i, c := range sorted {
		if i < m.BlockedTop {
			m.emitCrowd(acc, c, now)
		} else {
			rest.add(c.count, c.since, c.sample)
		}
	}
	if rest.count > 0 {
		m.emitCrowd(acc, rest, now)
	}
}

func (c *crowd) add(count int64, since time.Time, pid int) {
	c.count += count
	if since.Before(c.since) {
		c.since, c.sample = since, pid
	}
}

func (m *Mountstat) emitCrowd(acc telegraf.Accumulator, c *crowd, now time.Time) {
	tags := map[string]string{"wchan": cmp.Or(c.wchan, "unknown"), "comm": mounts.Printable(c.comm)}
	if c.path != "" {
		tags["path"] = mounts.Printable(c.path)
	}
	fields := map[string]any{
		"count":           c.count,
		"longest_seconds": now.Sub(c.since).Seconds(),
		"pid":             int64(c.sample),
	}
	if container := cgroups.Container(filepath.Join(m.proc, strconv.Itoa(c.sample), "cgroup")); container != "" {
		fields["container"] = container
	}
	acc.AddGauge("mountstat_blocked", fields, tags)
}

// commonName is the task's name without what tells kernel workers apart.
func commonName(task *blocked.Task) string {
	if task.Kernel {
		name, _, _ := strings.Cut(task.Comm, "/")
		return name
	}
	return task.Comm
}

// finder finds the mount that a task waits for.
type finder struct {
	m         *Mountstat
	namespace string                           // of the table
	foreign   map[string]map[int]*mounts.Mount // mounts of other namespaces, by id
	byID      map[string]*superblock
}

func (m *Mountstat) newFinder() *finder {
	f := &finder{m: m, foreign: make(map[string]map[int]*mounts.Mount), byID: make(map[string]*superblock, len(m.superblocks))}
	f.namespace, _ = os.Readlink(filepath.Join(filepath.Dir(m.mountinfo), "ns/mnt"))
	for _, sb := range m.superblocks {
		f.byID[sb.checked.Superblock()] = sb
	}
	return f
}

// mountOf returns the mount point of a file system that the task has open, or
// works in, and that hangs. Where none does, it must be the only one that a
// server or daemon stands behind. Otherwise the answer is empty.
func (f *finder) mountOf(task blocked.Task) string {
	files := f.m.waiters.scanner.Files(task)
	var candidates []*superblock
	for _, id := range files.MountIDs {
		if sb := f.superblockOf(task.PID, files.MountNS, id); sb != nil {
			candidates = append(candidates, sb)
		}
	}
	if sb := f.at(task.PID, &files); sb != nil {
		candidates = append(candidates, sb)
	}
	for _, sb := range candidates {
		if sb.hung() {
			return sb.checked.Mountpoint
		}
	}
	candidates = slices.DeleteFunc(candidates, func(sb *superblock) bool { return !networked(sb.checked) && !isFUSE(sb.checked) })
	slices.SortFunc(candidates, func(a, b *superblock) int { return strings.Compare(a.id, b.id) })
	if candidates = slices.Compact(candidates); len(candidates) == 1 {
		return candidates[0].checked.Mountpoint
	}
	return ""
}

func (f *finder) own(namespace string) bool { return namespace == "" || namespace == f.namespace }

func (f *finder) superblockOf(pid int, namespace string, id int) *superblock {
	if f.own(namespace) {
		return f.m.above[id].superblock
	}
	if mount := f.table(pid, namespace)[id]; mount != nil {
		return f.byID[mount.Superblock()]
	}
	return nil
}

// at is the superblock that the working directory is on.
func (f *finder) at(pid int, files *blocked.Files) *superblock {
	var best *mounts.Mount
	consider := func(mount *mounts.Mount) {
		below := mount.Mountpoint == "/" || files.Cwd == mount.Mountpoint || strings.HasPrefix(files.Cwd, mount.Mountpoint+"/")
		if below && !mount.Hidden && (best == nil || len(mount.Mountpoint) > len(best.Mountpoint)) {
			best = mount
		}
	}
	if files.Cwd == "" {
		return nil
	}
	if f.own(files.MountNS) {
		for i := range f.m.table {
			consider(&f.m.table[i])
		}
	} else {
		for _, mount := range f.table(pid, files.MountNS) {
			consider(mount)
		}
	}
	if best == nil {
		return nil
	}
	return f.byID[best.Superblock()]
}

// table reads the mount table of a process in another namespace, once for each.
func (f *finder) table(pid int, namespace string) map[int]*mounts.Mount {
	if table, known := f.foreign[namespace]; known {
		return table
	}
	table := make(map[int]*mounts.Mount)
	f.foreign[namespace] = table
	content, err := os.ReadFile(filepath.Join(f.m.proc, fmt.Sprint(pid), "mountinfo"))
	if err != nil {
		return table
	}
	all, _ := mounts.Parse(content)
	for i := range all {
		table[all[i].ID] = &all[i]
	}
	return table
}
