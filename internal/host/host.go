// Package host is the host as this process may look at it: where its files show, what is
// mounted, which servers answer, which tasks wait, which processes serve FUSE file systems, and
// what the kernel logs. All inputs of a process share one Host, so that each thing is looked at
// once in a round. Helper processes look at whatever can wait for a file system.
package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/oncelog"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// ownProc is where this process and its helpers show. HOST_PROC, which has the host's
// processes, may not show them.
const ownProc = "/proc"

// Where the host's configuration and devices are, on the host.
const ownEtc, ownDev = "/etc", "/dev"

// Roots are the directories where the host's files show. In a container these are not where
// they are on the host.
type Roots struct {
	Proc        string // HOST_PROC; /proc
	Sys         string // HOST_SYS; /sys
	Etc         string // HOST_ETC; /etc
	Dev         string // HOST_DEV; /dev
	MountPrefix string // HOST_MOUNT_PREFIX: what the host's paths begin with here
	// PID is the process whose mount table is the host's: "self", or in a container
	// "1", which sees the host's mounts where this process may not.
	PID string
}

// FindRoots reads the environment variables that Telegraf's inputs know.
func FindRoots(lookup func(string) string) Roots {
	orElse := func(name, usual string) string {
		if value := lookup(name); value != "" {
			return filepath.Clean(value)
		}
		return usual
	}
	r := Roots{
		Proc: orElse("HOST_PROC", ownProc), Sys: orElse("HOST_SYS", "/sys"), Etc: orElse("HOST_ETC", ownEtc), Dev: orElse("HOST_DEV", ownDev),
		MountPrefix: strings.TrimRight(lookup("HOST_MOUNT_PREFIX"), "/"), PID: "self",
	}
	if r.OtherProc() {
		r.PID = "1"
	}
	return r
}

// OtherProc reports whether the host's processes show in another place than this process.
func (r *Roots) OtherProc() bool { return r.Proc != ownProc }

// Where returns where a path of the host shows here.
func (r *Roots) Where(path string) string {
	for _, moved := range [][2]string{{ownEtc, r.Etc}, {ownDev, r.Dev}} {
		if moved[1] != moved[0] && mounts.Below(path, moved[0]) {
			return moved[1] + path[len(moved[0]):]
		}
	}
	return r.MountPrefix + path
}

// utab is where libmount's notes about the host's mounts show, if that is known.
func (r *Roots) utab() string {
	if r.OtherProc() && r.MountPrefix == "" {
		return ""
	}
	return r.Where(mounts.Utab)
}

// Options of a Host.
type Options struct {
	Roots  Roots
	Prober *prober.Prober
	Log    telegraf.Logger // or set it by [Host.SetLog] before the first gather
	// MountsPatience is how long a gather waits for the mount table; 0: as [mounts.WatcherOptions] has it.
	MountsPatience time.Duration
}

// Host is what the inputs together know about the host. Its methods may be called from
// several goroutines.
type Host struct {
	Roots
	Prober  *prober.Prober
	Servers *serverpool.Pool
	Tasks   *blocked.Monitor
	Files   *openfiles.Reader // of the host's processes
	Daemons *fusedaemon.Finder
	// Recorder takes the faults that begin; nil: they are only reported.
	Recorder fault.Recorder

	own    *openfiles.Reader // of our own
	table  *mounts.Watcher
	log    telegraf.Logger
	said   *oncelog.Log
	owners owners

	reading sync.Mutex // guards nfs, also while it is read
	nfs     NFSCounters

	mu     sync.Mutex
	last   *mounts.Snapshot // that [Host.Mounts] has returned; nil: none yet
	round  uint64
	joined map[any]uint64 // the last round, by member
	behind bool           // the mount table is older than the kernel's, which was said
	feeds  map[string]*kmsg.Feed
}

// Alone returns a Host with a prober of its own, for an input that was given none.
func Alone(log telegraf.Logger) *Host {
	return New(Options{Roots: FindRoots(os.Getenv), Prober: prober.New(prober.Options{Warnf: log.Warnf}), Log: log})
}

// New returns a Host that has looked at nothing yet.
func New(o Options) *Host {
	files := &openfiles.Reader{Prober: o.Prober, Proc: o.Roots.Proc}
	tasks := blocked.NewMonitor(o.Roots.Proc, files)
	return &Host{
		Roots: o.Roots, Prober: o.Prober, Servers: serverpool.NewPool(), Files: files, Tasks: tasks,
		Daemons: fusedaemon.NewFinder(o.Roots.Proc, files, tasks),
		own:     &openfiles.Reader{Prober: o.Prober, Proc: ownProc},
		table: mounts.NewWatcher(mounts.WatcherOptions{
			Prober: o.Prober, Proc: o.Roots.Proc, PID: o.Roots.PID, Devices: mounts.Devices{Sys: o.Roots.Sys}, Utab: o.Roots.utab(), Patience: o.MountsPatience}),
		log: o.Log, said: oncelog.New(o.Log), owners: owners{known: make(map[ownerKey]*ownership)}, joined: make(map[any]uint64), feeds: make(map[string]*kmsg.Feed),
	}
}

// SetLog sets where the host's state is logged, once per change.
func (h *Host) SetLog(log telegraf.Logger) { h.log, h.said = log, oncelog.New(log) }

// Join returns the round that a member, an input, gathers for: the round under way, or
// a new one if the member has joined that one before.
func (h *Host) Join(member any) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.joined[member] == h.round {
		h.round++
	}
	h.joined[member] = h.round
	return h.round
}

// AwaitMounts waits for the mount table before the first gather, if it can be read in time.
func (h *Host) AwaitMounts(timeout time.Duration) { h.table.Await(timeout) }

// Mounts returns the mount table in a round. If the table is older than the kernel's, this is
// logged once.
func (h *Host) Mounts(round uint64) mounts.View {
	view := h.table.View(round)
	h.mu.Lock()
	defer h.mu.Unlock()
	if behind := view.Hindrance != nil; behind != h.behind {
		h.behind = behind
		switch {
		case !behind:
			h.log.Info("the mount table can be read again")
		case view.Snapshot == nil:
			h.log.Errorf("there is no mount table, so only the root and what the configuration names are checked: %v", view.Hindrance)
		default:
			h.log.Errorf("the mount table is %v old: %v", view.Age.Round(time.Second), view.Hindrance)
		}
	}
	if view.Risk != nil && h.said.Changed("risk", view.Risk.Error()) {
		h.log.Warnf("the mount table is read as text: %v", view.Risk)
	}
	if view.Snapshot != nil {
		h.last = view.Snapshot
		h.said.Error("table", view.Err)
	}
	return view
}

// LastMounts is the mount table that [Host.Mounts] has returned last; nil if there was none
// yet. It is for callers that belong to no round, and must not have the table read.
func (h *Host) LastMounts() *mounts.Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// RereadMounts has the mount table read again in the next round, see
// [mounts.Watcher.Invalidate].
func (h *Host) RereadMounts() { h.table.Invalidate() }

// MountsOf reads the mount table of another process of the host.
func (h *Host) MountsOf(process string) (*mounts.Snapshot, error) { return h.table.ReadOther(process) }

// NFSCounters are the counters of the host's NFS mounts, see [mounts.NFSStats].
type NFSCounters struct {
	At  time.Time // when their reading began
	All []mounts.NFSStats
	Err error // why there are none, or some can't be understood

	round uint64
}

// NFSStats returns the counters as they were read in a round, or at some time after since. The
// first caller has them read, and the others wait for that.
func (h *Host) NFSStats(round uint64, since time.Time) NFSCounters {
	h.reading.Lock()
	defer h.reading.Unlock()
	if h.nfs.At.IsZero() || h.nfs.round != round || h.nfs.At.Before(since) {
		h.nfs = NFSCounters{At: time.Now(), round: round}
		h.nfs.All, h.nfs.Err = h.table.ReadNFSStats()
	}
	return h.nfs
}

// KernelLog returns those messages of the kernel that are new to a member, an input; the first
// time, all that the kernel's log still has. It is read whenever it is asked for, since messages
// that were read before cost nothing. name is usually [kmsg.Device]; an empty name reads no log.
// If the log can't be read, this is logged once.
func (h *Host) KernelLog(name string, member any) (news kmsg.News, readable bool) {
	feed := h.feed(name)
	if feed == nil {
		return kmsg.News{}, false
	}
	news, err := feed.Read(member)
	h.said.Error(name, err)
	return news, true
}

// ExpectKernelLog announces a member that is going to ask for the kernel's log, so that the log
// is read once for all of them.
func (h *Host) ExpectKernelLog(name string, member any) {
	if feed := h.feed(name); feed != nil {
		feed.Expect(member)
	}
}

// RecentKernelLog returns all messages of the kernel itself that its log still has.
func (h *Host) RecentKernelLog(name string) ([]kmsg.Record, error) {
	feed := h.feed(name)
	if feed == nil {
		return nil, fmt.Errorf("%s can't be read", name)
	}
	return feed.Recent()
}

// FaultBegan hands a fault to the Recorder. It returns the name of the file that will describe it.
func (h *Host) FaultBegan(r *fault.Report) (file string) {
	if h.Recorder == nil {
		return ""
	}
	return h.Recorder.Began(r)
}

// feed returns the feed of a log, which all inputs share; nil if the log can't be opened.
func (h *Host) feed(name string) *kmsg.Feed {
	h.mu.Lock()
	defer h.mu.Unlock()
	feed, tried := h.feeds[name]
	if tried || name == "" {
		return feed
	}
	feed, err := kmsg.OpenFeed(name)
	if err != nil {
		why := ""
		if errors.Is(err, os.ErrPermission) {
			why = "; it takes CAP_SYSLOG"
		}
		h.log.Infof("the kernel's messages are not counted, and are no evidence: %v%s", err, why)
	}
	h.feeds[name] = feed
	return feed
}

// MountNamespace is the link that names the mount namespace of the table.
func (h *Host) MountNamespace() string {
	link, _ := os.Readlink(filepath.Join(h.Proc, h.PID, "ns/mnt"))
	return link
}

// WaitOf is where in the kernel a helper of ours waits: its stack where that may be read, since
// some architectures have nothing else, and otherwise the function. It is empty where neither
// is known.
func (h *Host) WaitOf(helper int) string {
	if seen, err := h.own.Task(helper, helper); err == nil && seen.Stack != "" {
		return seen.Stack
	}
	return h.FunctionOf(helper)
}

// FunctionOf is the kernel function in which a helper of ours waits; empty if unknown.
func (h *Host) FunctionOf(helper int) string { return prober.FunctionOf(ownProc, helper) }

// ReadFile has a helper read a file, of at most limit bytes, that may lie on any file
// system. The error wraps the errno where the kernel has refused.
func (h *Host) ReadFile(name string, limit int, timeout time.Duration) ([]byte, error) {
	p := &prober.Plan{Timeout: timeout}
	p.SearchBelow(name)
	content := p.ReadFile(name, limit)
	r := h.Prober.Run(prober.Check{Key: "host file " + name, Group: "host files", Trusted: true, Independent: true, Plan: p})
	if failed := r.Failed(); failed != nil {
		return nil, &os.PathError{Op: failed.Name, Path: name, Err: failed.Errno}
	}
	if r.Outcome != prober.Done {
		why := fmt.Errorf("it was not read within %v", timeout)
		if r.Outcome == prober.Unavailable || r.Outcome == prober.Died {
			why = errors.New("there is no helper process to read it")
		}
		return nil, fmt.Errorf("reading %s: %w", name, errors.Join(why, r.Err))
	}
	return r.Step(content).Output, nil
}
