// Package mountusers finds out who uses a mount, without touching it: lsof(8) and fuser(1)
// ask about the files that they list, and hang where the mount does. Here, links of procfs are
// read and not followed. What a descriptor is of, its fdinfo tells by the number of the mount;
// working directories, roots, programs and mapped files are told by their paths, in the mount
// table of the process's namespace. All that can wait is read by helper processes.
package mountusers

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

const (
	batch         = 100     // processes that are looked at between two looks at the clock
	maxLinks      = 1 << 16 // of a process
	maxNamespaces = 1024
	// minBlockedTime is how long a task has to wait at least to be called blocked.
	minBlockedTime = 200 * time.Millisecond
)

// A User is a process that uses the mount.
type User struct {
	PID       int    `json:"pid"`
	Command   string `json:"command"` // raw bytes
	UID       uint32 `json:"uid"`
	User      string `json:"user,omitempty"`
	Unit      string `json:"unit,omitempty"` // of systemd
	Container string `json:"container,omitempty"`
	Pod       string `json:"pod,omitempty"` // its UID
	// Helper means that it is one of vfsprobe's own, which is not to be killed: it ends when the
	// mount answers, or is gone.
	Helper bool `json:"helper,omitempty"`
	Uses
	// Blocked is a task of it that waits; nil: none does.
	Blocked *Wait `json:"blocked,omitempty"`
}

// Uses are what a process has of the mount.
type Uses struct {
	Files   int  `json:"files"` // descriptors
	Cwd     bool `json:"cwd"`
	Root    bool `json:"root"`
	Program bool `json:"program"`
	Mapped  int  `json:"mapped"` // files, other than the program
	// Named means that it is blocked, and an argument that it was started with is a path there.
	Named bool `json:"named"`
	// Path is one of what it uses, raw bytes.
	Path string `json:"path"`
	// Elsewhere is another mount point of the file system, by which alone it uses it.
	Elsewhere string `json:"elsewhere,omitempty"`
	// Foreign means that this is one of another mount namespace.
	Foreign bool `json:"other_namespace,omitempty"`
}

// Wait is what a task waits in.
type Wait struct {
	TID   int     `json:"tid"`
	State string  `json:"state"`
	Wchan string  `json:"wchan,omitempty"`
	For   float64 `json:"seconds"` // at least
}

// Report is who uses a mount.
type Report struct {
	Mount *mounts.Mount `json:"-"`
	Path  string        `json:"path"` // mount point
	Users []User        `json:"users"`
	// Others are further mount points of the same file system, and Below those on it.
	Others []string `json:"other_mounts"`
	Below  []string `json:"mounts_below"`
	// Devices are loop devices and swap files whose content lies on it.
	Devices []string `json:"devices"`
	// Unseen says what could not be looked at.
	Unseen []string `json:"unseen"`
}

// finder is a search for users.
type finder struct {
	*Report
	host    *host.Host
	ends    time.Time
	scanner *blocked.Scanner
	table   *mounts.Snapshot
	tables  map[string]*mounts.Snapshot // by namespace; nil: it can't be read
	ids     map[int]string              // of the file system's mounts, and their mount points
	found   map[int]*User
}

// Options of a search.
type Options struct {
	// Timeout is for how long it may take.
	Timeout time.Duration
	// Brief leaves out mapped files, since who reads them takes a lock of each process, and most
	// of the time. It leaves out the mount tables of other namespaces where a file system of the
	// host's would be asked for its options: one that hangs would keep all others from mounting.
	Brief bool
}

// Find looks for the users of the mount that an absolute path is on.
func Find(h *host.Host, path string, o Options) (*Report, error) {
	ends := time.Now().Add(o.Timeout)
	view := tableOf(h, o.Timeout/2)
	if view.Snapshot == nil {
		return nil, errors.Join(errors.New("the mount table can't be read"), view.Hindrance)
	}
	mount := view.Snapshot.Holding(filepath.Clean(path))
	if mount == nil {
		return nil, fmt.Errorf("nothing is mounted at %s", path)
	}
	scanner, err := blocked.NewScanner(h.Proc)
	if err != nil {
		return nil, err
	}
	defer scanner.Close()
	scanner.SetWaits(blocked.FUSEWaits()...)
	f := &finder{
		Report: &Report{Mount: mount, Path: mount.Mountpoint, Users: []User{}, Others: []string{}, Below: []string{}, Devices: []string{}, Unseen: []string{}}, host: h, ends: ends, scanner: scanner, table: view.Snapshot,
		tables: make(map[string]*mounts.Snapshot), ids: make(map[int]string), found: make(map[int]*User),
	}
	if view.Hindrance != nil {
		f.unseen("the mount table is %v old", view.Age.Round(time.Second))
	}
	f.find(o.Brief)
	return f.Report, nil
}

// tableOf is the mount table: where inputs gather, the one that they have, so that none of them
// waits for this.
func tableOf(h *host.Host, timeout time.Duration) mounts.View {
	if known := h.LastMounts(); known != nil {
		return mounts.View{Snapshot: known}
	}
	h.AwaitMounts(timeout)
	return h.Mounts(h.Join(&Report{}))
}

func (f *finder) unseen(format string, arguments ...any) {
	f.Unseen = append(f.Unseen, fmt.Sprintf(format, arguments...))
}

// late reports whether there is no time left.
func (f *finder) late() bool { return time.Now().After(f.ends) }

func (f *finder) find(brief bool) {
	began := time.Now()
	if _, err := f.scanner.Scan(began); err != nil {
		f.unseen("who waits: %v", err)
	}
	processes := f.processes()
	f.readTables(processes, brief && f.table.AskForOptions())
	f.findMounts()
	f.findDevices()
	f.readFiles(processes)
	f.readPlaces(processes)
	time.Sleep(time.Until(began.Add(minBlockedTime)))
	now := time.Now()
	tasks, _ := f.scanner.Scan(now)
	tasks = slices.DeleteFunc(tasks, func(t blocked.Task) bool { return t.Kernel || !t.Since.Before(now) })
	if brief {
		f.unseen("mapped files")
	} else {
		f.readMaps(processes, tasks)
	}
	f.readArguments(tasks)
	f.describe(tasks, now)
	for _, u := range f.found {
		f.Users = append(f.Users, *u)
	}
	slices.SortFunc(f.Users, func(a, b User) int {
		return cmp.Or(cmp.Compare(b.waits(), a.waits()), cmp.Compare(a.PID, b.PID))
	})
}

// waits is for how long the process has.
func (u *User) waits() float64 {
	if u.Blocked == nil {
		return -1
	}
	return u.Blocked.For
}

// process is one of the host's, other than this one.
type process struct {
	pid     int
	table   *mounts.Snapshot // of its mount namespace; nil: unknown
	ns      string
	program string // path
}

func (f *finder) processes() []*process {
	dir, err := os.Open(f.host.Proc)
	if err != nil {
		f.unseen("the processes: %v", err)
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		f.unseen("some processes: %v", err)
	}
	self, _ := os.Readlink(filepath.Join(f.host.Proc, "self"))
	var all []*process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && name != self && !f.ofKernel(pid) {
			ns, _ := os.Readlink(filepath.Join(f.host.Proc, name, "ns/mnt"))
			all = append(all, &process{pid: pid, ns: ns})
		}
	}
	slices.SortFunc(all, func(a, b *process) int { return cmp.Compare(a.pid, b.pid) })
	return all
}

// ofKernel reports whether a process is the kernel's, which has no files.
func (f *finder) ofKernel(pid int) bool {
	threads, err := f.scanner.Threads(pid, 1)
	return err != nil || threads[0].Kernel
}

// readTables reads the mount table of each namespace once; but for the known one, it may do harm.
func (f *finder) readTables(processes []*process, harmful bool) {
	f.tables[""], f.tables[f.host.MountNamespace()] = f.table, f.table
	if harmful {
		f.unseen("the mounts of other namespaces")
	}
	var failed error
	for _, p := range processes {
		if _, known := f.tables[p.ns]; !known && !harmful {
			if len(f.tables) > maxNamespaces || f.late() {
				f.unseen("the mounts of some namespaces: there are too many of these")
				break
			}
			table, err := f.host.MountsOf(strconv.Itoa(p.pid))
			if err != nil && !ended(err) {
				failed = err
				f.tables[p.ns] = nil
			} else if err == nil {
				f.tables[p.ns] = table
			}
		}
		p.table = f.tables[p.ns]
	}
	if failed != nil {
		f.unseen("the mounts of a namespace: %v", failed)
	}
}

// ended reports whether an error is that a process has.
func ended(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, errSearch) || errors.Is(err, errInvalid)
}

// findMounts finds all mounts of the file system, and those below the one that was asked for.
func (f *finder) findMounts() {
	for _, table := range f.tables {
		if table == nil {
			continue
		}
		for _, mount := range table.ByDevice(f.Mount.Major, f.Mount.Minor) {
			f.ids[mount.ID] = mount.Mountpoint
		}
	}
	for i := range f.table.Mounts {
		mount := &f.table.Mounts[i]
		switch {
		case mount.ID == f.Mount.ID:
		case f.ids[mount.ID] != "":
			f.Others = append(f.Others, mount.Mountpoint)
		case mounts.Below(mount.Mountpoint, f.Path):
			f.Below = append(f.Below, mount.Mountpoint)
		}
	}
	slices.Sort(f.Others)
	slices.Sort(f.Below)
}

// findDevices finds loop devices and swap files that lie on the mount.
func (f *finder) findDevices() {
	loops, _ := filepath.Glob(filepath.Join(f.host.Sys, "block/loop*"))
	for _, name := range loops {
		device := blockdev.Tree(f.host.Sys).BySource("/dev/" + filepath.Base(name))
		if device != nil && f.holds(f.table, device.BackingFile()) != nil {
			f.Devices = append(f.Devices, "/dev/"+device.Name)
		}
	}
	contents, err := f.host.Files.Infos([]string{"swaps"}) // proc_swaps(5): a line of titles, then files
	if err != nil {
		f.unseen("swap files: %v", err)
		return
	}
	for line := range strings.Lines(string(contents[0])) {
		if path := mounts.UnescapeOctal(strings.SplitN(line, " ", 2)[0]); f.holds(f.table, path) != nil && !strings.HasPrefix(path, "/dev/") {
			f.Devices = append(f.Devices, "swap "+path)
		}
	}
}

// holds returns the mount of the file system that a path is on, or nil.
func (f *finder) holds(table *mounts.Snapshot, path string) *mounts.Mount {
	if table == nil || !filepath.IsAbs(path) {
		return nil
	}
	mount := table.Holding(path)
	if mount == nil || f.ids[mount.ID] == "" {
		return nil
	}
	return mount
}

// use notes one use, by the mount with that number.
func (f *finder) use(pid, mountID int, path string, note func(*Uses)) {
	u := f.found[pid]
	elsewhere := f.ids[mountID]
	if mountID == f.Mount.ID {
		elsewhere = ""
	}
	switch {
	case u == nil:
		u = &User{PID: pid, Uses: Uses{Path: path, Elsewhere: elsewhere}}
		f.found[pid] = u
	case elsewhere == "" && u.Elsewhere != "":
		u.Path, u.Elsewhere = path, ""
	}
	u.Foreign = u.Elsewhere != "" && f.table.ByID(mountID) == nil
	note(&u.Uses)
}

// readFiles finds the open files. The paths of descriptors say which may be on the mount; of
// these the fdinfo does.
func (f *finder) readFiles(processes []*process) {
	type file struct {
		pid  int
		path string
	}
	var hidden int
	for some := range slices.Chunk(processes, batch) {
		if f.late() {
			f.unseen("the open files of some processes: there was no time")
			return
		}
		directories := make([]string, len(some))
		for i, p := range some {
			directories[i] = filepath.Join(strconv.Itoa(p.pid), "fd")
		}
		all, err := f.host.Files.Links(directories, "/", maxLinks)
		var files []file
		var infos []string
		for i, links := range all {
			if links.MayNot() {
				hidden++
			}
			for _, link := range links.Links {
				if f.mayHold(link.Target) {
					files = append(files, file{some[i].pid, link.Target})
					infos = append(infos, filepath.Join(strconv.Itoa(some[i].pid), "fdinfo", link.Name))
				}
			}
		}
		contents, err2 := f.host.Files.Infos(infos)
		for i, content := range contents {
			if id, told := openfiles.MountID(content); told && f.ids[id] != "" {
				f.use(files[i].pid, id, files[i].path, func(u *Uses) { u.Files++ })
			}
		}
		if err := errors.Join(err, err2); err != nil {
			f.unseen("the open files of some processes: %v", err)
			return
		}
	}
	if hidden > 0 {
		f.unseen("the open files of %s: %s", processesIn(hidden), openfiles.Hindrance())
	}
}

// mayHold reports whether a path is below a mount point of the file system, in any namespace.
func (f *finder) mayHold(path string) bool {
	for _, point := range f.ids {
		if mounts.Below(path, point) {
			return true
		}
	}
	return false
}

// readPlaces finds working directories, roots and programs.
func (f *finder) readPlaces(processes []*process) {
	places := []struct {
		link string
		note func(*Uses)
	}{
		{"cwd", func(u *Uses) { u.Cwd = true }}, {"root", func(u *Uses) { u.Root = true }}, {"exe", func(u *Uses) { u.Program = true }},
	}
	for some := range slices.Chunk(processes, batch) {
		if f.late() {
			f.unseen("the working directories of some processes: there was no time")
			return
		}
		var links []string
		for _, p := range some {
			for _, place := range places {
				links = append(links, filepath.Join(strconv.Itoa(p.pid), place.link))
			}
		}
		targets, err := f.host.Files.Targets(links)
		for i, target := range targets {
			p := some[i/len(places)]
			target = strings.TrimSuffix(target, deleted)
			if place := places[i%len(places)]; place.link == "exe" {
				p.program = target
			}
			if mount := f.holds(p.table, target); mount != nil {
				f.use(p.pid, mount.ID, target, places[i%len(places)].note)
			}
		}
		if err != nil {
			f.unseen("the working directories of some processes: %v", err)
			return
		}
	}
}

// readMaps finds mapped files. Who reads which a process has waits for its memory, that a task
// of it may hold which is blocked: so those of processes that are come one by one, the last.
func (f *finder) readMaps(processes []*process, tasks []blocked.Task) {
	waits := make(map[int]bool)
	for _, t := range tasks {
		waits[t.PID] = true
	}
	var calm, risky []*process
	for _, p := range processes {
		if waits[p.pid] {
			risky = append(risky, p)
		} else {
			calm = append(calm, p)
		}
	}
	if failed := f.readMapsOf(calm, batch) + f.readMapsOf(risky, 1); failed > 0 {
		f.unseen("the mapped files of %s: their memory can't be looked at now", processesIn(failed))
	}
}

// readMapsOf looks at so many processes at a time, and one by one from the first that hangs on.
// It returns how many could not be looked at.
func (f *finder) readMapsOf(processes []*process, size int) (failed int) {
	for len(processes) > 0 && !f.late() {
		n := min(size, len(processes))
		pids := make([]int, n)
		for i, p := range processes[:n] {
			pids[i] = p.pid
		}
		contents, _ := f.host.Files.Maps(pids)
		for i, content := range contents {
			f.noteMappings(processes[i], content)
		}
		processes = processes[len(contents):]
		switch {
		case len(contents) == n:
		case n == 1:
			failed, processes = failed+1, processes[1:]
		default:
			size = 1
		}
	}
	return failed + len(processes)
}

// noteMappings takes what a process has mapped. The device's number is not that of the mount for
// some file systems, the path is.
func (f *finder) noteMappings(p *process, content []byte) {
	seen := make(map[string]bool)
	for m := range mappings(content) {
		mount := f.holds(p.table, m.path)
		if seen[m.path] || m.path == p.program || mount == nil && !(m.major == f.Mount.Major && m.minor == f.Mount.Minor) {
			continue
		}
		seen[m.path] = true
		id := f.Mount.ID
		if mount != nil {
			id = mount.ID
		}
		f.use(p.pid, id, m.path, func(u *Uses) { u.Mapped++ })
	}
}

// readArguments finds tasks that wait, as on the way to a file, and whose arguments name one on
// the mount.
func (f *finder) readArguments(tasks []blocked.Task) {
	var pids []int
	for _, t := range tasks {
		if f.found[t.PID] == nil && !slices.Contains(pids, t.PID) {
			pids = append(pids, t.PID)
		}
	}
	for _, pid := range pids {
		if f.late() {
			f.unseen("the arguments of some processes that wait: there was no time")
			return
		}
		lines, err := f.host.Files.CommandLines([]int{pid})
		if err != nil {
			f.unseen("the arguments of process %d, which waits: %v", pid, err)
			continue
		}
		table := f.tables[f.namespaceOf(pid)]
		for _, argument := range lines[0] {
			if mount := f.holds(table, filepath.Clean(argument)); mount != nil {
				f.use(pid, mount.ID, argument, func(u *Uses) { u.Named = true })
				break
			}
		}
	}
}

func (f *finder) namespaceOf(pid int) string {
	ns, _ := os.Readlink(filepath.Join(f.host.Proc, strconv.Itoa(pid), "ns/mnt"))
	return ns
}

// describe fills in who the users are, and which wait.
func (f *finder) describe(tasks []blocked.Task, now time.Time) {
	for _, t := range tasks {
		u := f.found[t.PID]
		if waited := now.Sub(t.Since).Seconds(); u != nil && waited > u.waits() {
			u.Blocked = &Wait{TID: t.TID, State: string(t.State), Wchan: t.Wchan, For: waited}
		}
	}
	helpers, err := prober.NewHelperMatcher(f.host.Proc)
	if err != nil {
		f.unseen("who is a helper of vfsprobe's: %v", err)
	}
	names, err := f.host.UserNames()
	if err != nil {
		f.unseen("the names of users: %v", err)
	}
	for pid, u := range f.found {
		dir := filepath.Join(f.host.Proc, strconv.Itoa(pid))
		u.Command, _ = procfs.ReadText(filepath.Join(dir, "comm"))
		status, _ := procfs.Read(filepath.Join(dir, "status"))
		u.UID = uidOf(status)
		u.User = names[u.UID]
		u.Helper = helpers != nil && helpers.IsHelper(pid)
		cgroup, _ := procfs.Read(filepath.Join(dir, "cgroup"))
		o := cgroups.OwnerOf(cgroup)
		u.Unit, u.Container, u.Pod = o.Unit, o.Container, o.Pod
	}
}
