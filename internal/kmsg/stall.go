package kmsg

import (
	"strings"
	"time"
)

// Stall is a report of the kernel that a CPU or a task did not get on, in a walk over the
// children of a directory in the dentry cache.
type Stall struct {
	Function string // in which it was
	Comm     string // name of the process; empty where the report has none
	At       time.Time
}

// Stalls finds such reports in the kernel's log, each of which is of many records. It is to be
// given all of them, in their order.
type Stalls struct {
	comm  string
	left  int // records that may still be of the report; 0: there is none
	began time.Duration
}

// A report is a line about what it is, and lines with registers and calls, which come at once.
const (
	maxReport     = 100 // records
	maxReportTime = 2 * time.Second
)

// walks are the functions that go through the children of a directory, or through dentries
// that are to be freed, with a lock held (fs/dcache.c, fs/notify/fsnotify.c). What comes after
// such a beginning varies with the kernel.
var walks = []string{
	"d_walk", "shrink_dcache_", "shrink_dentry_list", "__dentry_kill", "prune_dcache_sb",
	"__fsnotify_update_child_dentry_flags", "fsnotify_update_child_dentry_flags", "fsnotify_set_children_dentry_flags", "fsnotify_update_children_dentry_flags",
}

// Next takes a record. It returns a report when its first such function is met.
func (s *Stalls) Next(r Record) (Stall, bool) {
	if comm, found := stallOf(r.Text); found {
		s.comm, s.left, s.began = comm, maxReport, r.Uptime
		return Stall{}, false
	}
	if s.left == 0 || r.Uptime-s.began > maxReportTime {
		s.left = 0
		return Stall{}, false
	}
	s.left--
	if comm, found := commOf(r.Text); found && s.comm == "" {
		s.comm = comm
	}
	function := functionIn(r.Text)
	for _, walk := range walks {
		if strings.HasPrefix(function, walk) {
			s.left = 0
			return Stall{Function: function, Comm: s.comm, At: r.At}, true
		}
	}
	return Stall{}, false
}

// stallOf recognizes the first line of a report (kernel/watchdog.c, kernel/hung_task.c,
// kernel/rcu/tree_stall.h):
//
//	watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [telegraf:1234]
//	rcu: INFO: rcu_preempt self-detected stall on CPU
//	INFO: task systemd:1 blocked for more than 122 seconds.
func stallOf(text string) (comm string, found bool) {
	if comm, found := ParseHungTask(text); found {
		return comm, true
	}
	if strings.Contains(text, "BUG: soft lockup - CPU#") {
		start, end := strings.LastIndexByte(text, '['), strings.LastIndexByte(text, ':')
		if start >= 0 && end > start {
			comm = text[start+1 : end]
		}
		return comm, true
	}
	return "", strings.Contains(text, "detected stall") && strings.Contains(text, "rcu") || strings.Contains(text, "Watchdog detected hard LOCKUP")
}

// commOf reads "CPU: 3 PID: 1234 Comm: telegraf Not tainted …" (dump_stack_print_info).
func commOf(text string) (comm string, found bool) {
	_, rest, found := strings.Cut(text, " Comm: ")
	if !found || !strings.HasPrefix(text, "CPU: ") {
		return "", false
	}
	for _, after := range []string{" Not tainted", " Tainted:", " Kdump:"} {
		if i := strings.Index(rest, after); i >= 0 {
			rest = rest[:i]
		}
	}
	return rest, true
}

// functionIn returns the function of a line of a stack: " d_walk+0x9d/0x2a0", of x86 also
// "RIP: 0010:d_walk+0x9d/0x2a0" (under Xen with another segment), and of arm64
// "pc : d_walk+0x9c/0x2a0". Before 4.10 the address is in front. Lines with a question
// mark are what was left on the stack, and no call.
func functionIn(text string) string {
	name, _, found := strings.Cut(strings.TrimSpace(text), "+0x")
	if !found {
		return ""
	}
	if pointer, found := strings.CutPrefix(name, "RIP: "); found {
		_, name, _ = strings.Cut(pointer, ":")
	}
	for _, before := range []string{"pc : ", "lr : "} {
		name = strings.TrimPrefix(name, before)
	}
	if strings.HasPrefix(name, "[<") {
		name = name[strings.LastIndex(name, ">] ")+len(">] "):]
	}
	if strings.ContainsAny(name, " ?") {
		return ""
	}
	return name
}
