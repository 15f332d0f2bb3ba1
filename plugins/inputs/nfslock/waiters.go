package nfslock

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/filelocks"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// waiters are the processes that wait for locks.
type waiters struct {
	since   map[waiter]time.Time // first seen in /proc/locks
	blocked []blockedTask
}

// waiter is a process that waits for a lock that another process of this host holds.
type waiter struct {
	pid        int
	superblock string
}

// blockedTask is a task that waits for the lock service of a server.
type blockedTask struct {
	blocked.Task
	target *target // nil: unknown
}

// lockTable sums up /proc/locks.
type lockTable struct {
	known                 bool
	hostHeld, hostWaiting int64
	held, waiting         map[string]int64 // by superblock
	oldest                map[string]waiter
	oldestOfAll           waiter
	nfsHeld, nfsWaiting   int64
	remote, localLocking  int64 // NFS mounts by where they lock
}

// readLocks reads /proc/locks, which shows the locks of this PID namespace.
func (n *NFSLock) readLocks(now time.Time) *lockTable {
	t := &lockTable{held: make(map[string]int64), waiting: make(map[string]int64), oldest: make(map[string]waiter)}
	nfs := make(map[string]bool)
	for _, mount := range n.nfsMounts() {
		nfs[mount.Superblock()] = true
		if mount.RemoteLocking() {
			t.remote++
		} else {
			t.localLocking++
		}
	}
	locks, err := filelocks.Read(n.host.Proc)
	n.said.Error("locks", err)
	t.known = locks != nil || err == nil
	since := make(map[waiter]time.Time)
	for _, lock := range locks {
		if !lock.Waiting {
			t.hostHeld++
			t.held[lock.Superblock]++
			if nfs[lock.Superblock] {
				t.nfsHeld++
			}
			continue
		}
		t.hostWaiting++
		t.waiting[lock.Superblock]++
		if nfs[lock.Superblock] {
			t.nfsWaiting++
		}
		w := waiter{lock.PID, lock.Superblock}
		since[w] = now
		if before, known := n.waiters.since[w]; known {
			since[w] = before
		}
		if oldest, found := t.oldest[w.superblock]; !found || since[w].Before(since[oldest]) {
			t.oldest[w.superblock] = w
		}
		if nfs[lock.Superblock] && (t.oldestOfAll == waiter{} || since[w].Before(since[t.oldestOfAll])) {
			t.oldestOfAll = w
		}
	}
	n.waiters.since = since
	return t
}

// nfsMounts returns all NFS mounts of the table, also those that are not probed.
func (n *NFSLock) nfsMounts() (all []*mounts.Mount) {
	if n.table == nil {
		return nil
	}
	for i := range n.table.Mounts {
		if m := &n.table.Mounts[i]; m.NFS() {
			all = append(all, m)
		}
	}
	return all
}

// waiterFields adds the process that has waited longest.
func (n *NFSLock) waiterFields(w waiter, fields map[string]any) {
	if w == (waiter{}) {
		return
	}
	fields["waiter_pid"] = int64(w.pid)
	fields["waiter_seconds"] = fault.SecondsSince(n.waiters.since[w])
	if comm, err := procfs.ReadText(filepath.Join(n.host.Proc, strconv.Itoa(w.pid), "comm")); err == nil {
		fields["waiter_comm"] = comm
	}
}

// lockWaits are the functions of lockd and nfs in which tasks wait interruptibly,
// in state S: fs/lockd/clntlock.c, fs/lockd/clntproc.c, fs/nfs/nfs4proc.c.
func lockWaits() []string {
	return []string{"nlmclnt_block", "nlmclnt_wait", "nlm_wait_on_grace", "nlmclnt_lock", "nfs4_retry_setlk", "nfs4_retry_setlk_simple", "nfs4_proc_lock"}
}

// lockCalls are parts of the names of functions in the stack of a task that waits for a
// server's answer about a lock.
func lockCalls() []string {
	return []string{"nlmclnt_", "nlm_wait_on_grace", "nsm_mon_unmon", "nfs4_proc_lock", "nfs4_proc_setlk", "nfs4_proc_getlk", "nfs4_proc_unlck", "nfs3_proc_lock", " nfs_lock+", " nfs_flock+"}
}

// findBlocked looks for tasks that wait for a server's locks.
func (n *NFSLock) findBlocked() {
	n.waiters.blocked = nil
	if len(n.targets) == 0 {
		return
	}
	hangs := slices.ContainsFunc(n.targets, func(t *target) bool { return t.Hung() })
	scan, err := n.host.Tasks.Scan(blocked.Request{Round: n.round, Asker: n, Urgent: hangs, Waits: lockWaits()})
	n.said.Error("blocked tasks", err)
	n.noteManagers(scan.Tasks)
	for _, task := range scan.Tasks {
		if task.Kernel || !n.waitsForLock(task) {
			continue
		}
		found := blockedTask{Task: task}
		for _, id := range n.host.Tasks.Files(task).MountIDs {
			if t := n.byMount[id]; t != nil {
				found.target = t
			}
		}
		n.waiters.blocked = append(n.waiters.blocked, found)
	}
}

// waitsForLock reports whether a task waits for the lock service of a server. For tasks
// in state D only the stack tells.
func (n *NFSLock) waitsForLock(task blocked.Task) bool {
	return slices.Contains(lockWaits(), task.Wchan) || task.State == 'D' && isLockCall(n.host.Tasks.Stack(task))
}

func isLockCall(stack string) bool {
	return slices.ContainsFunc(lockCalls(), func(call string) bool { return strings.Contains(stack, call) })
}

// blockedFields adds how many tasks wait for the locks of a target, or of any target, and which has
// waited longest.
func (n *NFSLock) blockedFields(t *target, fields map[string]any) {
	var count int64
	var longest *blockedTask
	for i := range n.waiters.blocked {
		task := &n.waiters.blocked[i]
		if t != nil && task.target != t {
			continue
		}
		count++
		if longest == nil || task.Since.Before(longest.Since) {
			longest = task
		}
	}
	fields["tasks_blocked"] = count
	if longest == nil {
		return
	}
	fields["blocked_pid"] = int64(longest.PID)
	fields["blocked_comm"] = longest.Comm
	fields["blocked_seconds"] = fault.SecondsSince(longest.Since)
	if longest.Wchan != "" {
		fields["blocked_wchan"] = longest.Wchan
	}
	if id := cgroups.Identify(filepath.Join(n.host.Proc, strconv.Itoa(longest.PID), "cgroup")); id.Name != "" {
		fields["blocked_container"] = id.Name
		n.host.OwnerOf(id).AddTo(fields, "blocked_")
	}
}
