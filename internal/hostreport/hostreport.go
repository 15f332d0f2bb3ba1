// Package hostreport writes what a ticket about a fault should have: the faults and their
// evidence, stacks, who is blocked, sockets, the kernel's messages, versions. What can wait for
// a file system is read by helper processes.
package hostreport

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mountusers"
	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

// What a report holds at most.
const (
	maxFaults      = 50
	maxStacks      = 30 // of tasks
	maxThreads     = 16 // of a process
	maxBlocked     = 100
	maxUsed        = 3 // mounts whose users are reported; 1 if the report is brief
	maxSockets     = 200
	maxMessages    = 200
	maxLine        = 1000 // bytes
	usersTimeout   = 5 * time.Second
	releaseTimeout = time.Second
	maxRelease     = 64 << 10 // bytes of os-release
	minBlockedTime = time.Second
)

// report is one that is being written.
type report struct {
	bytes.Buffer
	Options
	host   *host.Host
	stacks int
}

// Options of a report.
type Options struct {
	Version string // of vfsprobe
	// Mask gets to know the names in the report, and is applied to it; nil: it has all names.
	Mask *Mask
	// Brief leaves out what takes much CPU on a host with thousands of processes.
	Brief bool
}

// Text is the report of a host with these faults. It takes seconds.
func Text(h *host.Host, faults []*fault.Report, o Options) []byte {
	r := &report{host: h, Options: o}
	r.Mask = cmp.Or(o.Mask, newMask())
	r.versions()
	r.section("Faults")
	for i, f := range faults {
		if i == maxFaults {
			r.line("and %d more", len(faults)-i)
			break
		}
		r.fault(f)
	}
	r.users(faults)
	r.blocked()
	r.sockets(faults)
	r.messages()
	if o.Mask == nil {
		return r.Bytes()
	}
	return o.Mask.Apply(r.Bytes())
}

// line writes one, which has no line breaks or control characters of its own.
func (r *report) line(format string, arguments ...any) {
	text := printable.Terminal(fmt.Sprintf(format, arguments...))
	r.WriteString(text[:min(len(text), maxLine)] + "\n")
}

// lines writes a text of several, indented.
func (r *report) lines(indent, text string) {
	for line := range strings.Lines(text) {
		r.line("%s%s", indent, strings.TrimRight(line, "\n"))
	}
}

func (r *report) section(title string) { r.WriteString("\n== " + title + "\n") }

func (r *report) versions() {
	var name unix.Utsname
	_ = unix.Uname(&name) // it can't fail
	release, _ := r.host.ReadFile("/etc/os-release", maxRelease, releaseTimeout)
	distribution := ""
	for line := range strings.Lines(string(release)) {
		if value, found := strings.CutPrefix(line, "PRETTY_NAME="); found {
			distribution = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info) // nor can this
	load, _ := procfs.ReadText(filepath.Join(r.host.Proc, "loadavg"))
	r.line("vfsprobe %s: report of %s", r.Version, time.Now().UTC().Format(time.RFC3339))
	r.line("host %s, Linux %s %s, %s", unix.ByteSliceToString(name.Nodename[:]), unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:]), cmp.Or(distribution, "distribution unknown"))
	r.line("up for %v, load %s", time.Duration(info.Uptime)*time.Second, load)
}

func (r *report) fault(f *fault.Report) {
	r.line("")
	r.line("%s: %s: %v (%s), since %s", f.Input, f.Subject, f.Fields["result"], f.Cause, f.Began.UTC().Format(time.RFC3339))
	for _, name := range slices.Sorted(maps.Keys(f.Fields)) {
		r.line("  %s=%v", name, f.Fields[name])
	}
	for _, fact := range f.Facts {
		if text := strings.TrimRight(fact.Text, "\n"); strings.Contains(text, "\n") {
			r.line("  %s:", fact.Name)
			r.lines("    ", text)
		} else {
			r.line("  %s: %s", fact.Name, text)
		}
	}
	if f.Helper != 0 {
		r.line("  the helper, process %d, waits in", f.Helper)
		r.lines("    ", r.host.WaitOf(f.Helper))
	}
	for _, pid := range f.Processes {
		r.process(pid)
	}
}

// process tells what the threads of a process do.
func (r *report) process(pid int) {
	scanner, err := blocked.NewScanner(r.host.Proc)
	if err != nil {
		return
	}
	defer scanner.Close()
	threads, err := scanner.Threads(pid, maxThreads)
	if err != nil {
		r.line("  process %d: %v", pid, err)
	}
	for i := range threads {
		r.task("  ", &threads[i])
	}
}

// task tells what a task does, with its stack while there are not too many.
func (r *report) task(indent string, t *blocked.Task) {
	r.line("%sprocess %d, task %d, %s: %c in %s", indent, t.PID, t.TID, t.Comm, t.State, cmp.Or(t.Wchan, "an unknown function"))
	if r.stacks++; r.stacks > maxStacks {
		return
	}
	if seen, err := r.host.Files.Task(t.PID, t.TID); err == nil {
		r.lines(indent+"  ", seen.Stack)
	}
}

// users tells who uses the first of the mounts at fault.
func (r *report) users(faults []*fault.Report) {
	var paths []string
	most := maxUsed
	if r.Brief {
		most = 1
	}
	for _, f := range faults {
		if len(paths) < most && filepath.IsAbs(f.Subject) && f.Subject != "/" && !slices.Contains(paths, f.Subject) {
			paths = append(paths, f.Subject)
		}
	}
	for _, path := range paths {
		r.section("Users of " + printable.Terminal(path))
		found, err := mountusers.Find(r.host, path, mountusers.Options{Timeout: usersTimeout, Brief: r.Brief})
		if err == nil {
			r.nameUsers(found)
			err = found.Text(&r.Buffer, false)
		}
		if err != nil {
			r.line("%v", err)
		}
	}
}

// nameUsers has the mask know what is named of users.
func (r *report) nameUsers(found *mountusers.Report) {
	for i := range found.Users {
		u := &found.Users[i]
		r.Mask.Name("file", u.Path)
		r.Mask.Name("container", u.Container)
		r.Mask.Name("pod", u.Pod)
		if u.UID != 0 {
			r.Mask.Name("user", u.User)
		}
	}
	for _, path := range append(found.Others, found.Below...) {
		r.Mask.Name("mount", path)
	}
}

// blocked tells who waits.
func (r *report) blocked() {
	r.section("Tasks that wait")
	scanner, err := blocked.NewScanner(r.host.Proc)
	if err != nil {
		r.line("%v", err)
		return
	}
	defer scanner.Close()
	scanner.SetWaits(blocked.FUSEWaits()...)
	if _, err := scanner.Scan(time.Now()); err != nil {
		r.line("%v", err)
	}
	time.Sleep(minBlockedTime)
	now := time.Now()
	tasks, _ := scanner.Scan(now)
	tasks = slices.DeleteFunc(tasks, func(t blocked.Task) bool { return !t.Since.Before(now) })
	for i := range tasks[:min(len(tasks), maxBlocked)] {
		r.task("", &tasks[i])
	}
	r.line("%d in all", len(tasks))
}

// sockets tells of the TCP connections with servers of the faults.
func (r *report) sockets(faults []*fault.Report) {
	servers := make(map[string]bool)
	for _, f := range faults {
		for _, address := range f.Servers {
			servers[address.Unmap().WithZone("").String()] = true
		}
	}
	if len(servers) == 0 {
		return
	}
	r.section("TCP connections with these servers")
	sockets, err := sockdiag.Sockets(func(uint32) bool { return true })
	if err != nil {
		r.line("%v", err)
	}
	shown := 0
	for _, s := range sockets {
		if !servers[s.Peer.Addr().Unmap().WithZone("").String()] {
			continue
		}
		if shown++; shown > maxSockets {
			continue
		}
		r.line("%s to %s: state %d, unread %d, unsent %d, timer %d, retries %d, sent %v ago, received %v ago", s.Local, s.Peer, s.State, s.Unread, s.Unsent, s.Timer, s.Retries, s.Sent, s.Received)
	}
	r.line("%d in all", shown)
}

// messages are the last of the kernel's.
func (r *report) messages() {
	r.section("The kernel's last messages")
	records, err := r.host.RecentKernelLog(kmsg.Device)
	if err != nil {
		r.line("%v", err)
	}
	for _, record := range records[max(0, len(records)-maxMessages):] {
		if about, found := kmsg.Parse(record.Text); found {
			r.Mask.Name("server", about.Server)
		}
		r.line("%s <%d> %s", strconv.FormatFloat(record.Uptime.Seconds(), 'f', 3, 64), record.Level, record.Text)
	}
}
