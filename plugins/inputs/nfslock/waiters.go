package nfslock

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/filelocks"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	// scanShare is the part of a CPU that looking for blocked tasks may take.
	scanShare = 0.01
	// maxStacks is how many blocked tasks' stacks are read.
	maxStacks = 200
)

// waiters are the processes that wait for locks.
type waiters struct {
	since   map[waiter]time.Time // first seen in /proc/locks
	scanner *blocked.Scanner
	helpers *prober.Recogniser
	due     time.Time // for the next scan
	blocked []blockedTask
}

// waiter is a process that waits for a lock which another one of this host holds.
type waiter struct {
	pid        int
	superblock string
}

// blockedTask is one that waits for the lock service of a server.
type blockedTask struct {
	blocked.Task
	superblock *superblock // nil: unknown
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
func (n *Nfslock) readLocks(now time.Time) *lockTable {
	t := &lockTable{held: make(map[string]int64), waiting: make(map[string]int64), oldest: make(map[string]waiter)}
	nfs := make(map[string]bool)
	for i := range n.all {
		if mount := &n.all[i]; mount.NFS() {
			nfs[mount.Superblock()] = true
			if mount.RemoteLocking() {
				t.remote++
			} else {
				t.localLocking++
			}
		}
	}
	locks, err := filelocks.Read(n.proc)
	n.sayOnce(&n.locksErr, err)
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

// waiterFields adds who has waited longest.
func (n *Nfslock) waiterFields(w waiter, fields map[string]any) {
	if w == (waiter{}) {
		return
	}
	fields["waiter_pid"] = int64(w.pid)
	fields["waiter_seconds"] = secondsSince(n.waiters.since[w])
	if comm, err := os.ReadFile(filepath.Join(n.proc, strconv.Itoa(w.pid), "comm")); err == nil {
		fields["waiter_comm"] = strings.TrimSpace(string(comm))
	}
}

// lockWaits are the functions of lockd and nfs in which tasks wait interruptibly,
// in state S: fs/lockd/clntlock.c, fs/lockd/clntproc.c, fs/nfs/nfs4proc.c.
func lockWaits() []string {
	return []string{"nlmclnt_block", "nlmclnt_wait", "nlm_wait_on_grace", "nlmclnt_lock", "nfs4_retry_setlk", "nfs4_retry_setlk_simple", "nfs4_proc_lock"}
}

// lockCalls are parts of the names of functions that show in the stack of a task
// which waits for a server's answer about a lock.
func lockCalls() []string {
	return []string{"nlmclnt_", "nlm_wait_on_grace", "nsm_mon_unmon", "nfs4_proc_lock", "nfs4_proc_setlk", "nfs4_proc_getlk", "nfs4_proc_unlck", "nfs3_proc_lock", " nfs_lock+", " nfs_flock+"}
}

// scanBlocked looks for tasks that wait for a server's locks. It takes at most
// scanShare of a CPU.
func (n *Nfslock) scanBlocked(now time.Time) error {
	w := &n.waiters
	if len(n.superblocks) == 0 {
		w.blocked = nil
		return nil
	}
	if now.Before(w.due) {
		return nil
	}
	if w.scanner == nil {
		scanner, err := blocked.NewScanner(n.proc, lockWaits()...)
		if err != nil {
			return err
		}
		if w.helpers, err = prober.NewRecogniser(n.proc); err != nil {
			scanner.Close()
			return err
		}
		w.scanner = scanner
	}
	began := time.Now()
	tasks, err := w.scanner.Scan(now)
	w.blocked = nil
	stacks := 0
	for _, task := range tasks {
		if task.Kernel || strings.HasPrefix(task.Comm, prober.HelperPrefix) && w.helpers.Helper(task.PID) {
			continue
		}
		if !slices.Contains(lockWaits(), task.Wchan) {
			if stacks++; stacks > maxStacks || !waitsForLock(stackOf(n.proc, task.PID, task.TID)) {
				continue
			}
		}
		found := blockedTask{Task: task}
		for _, id := range w.scanner.Files(task).MountIDs {
			if sb := n.byMountID[id]; sb != nil {
				found.superblock = sb
			}
		}
		w.blocked = append(w.blocked, found)
	}
	w.due = now.Add(time.Duration(float64(time.Since(began)) / scanShare))
	return err
}

func waitsForLock(stack string) bool {
	return slices.ContainsFunc(lockCalls(), func(call string) bool { return strings.Contains(stack, call) })
}

// stackOf is where in the kernel a task is; empty without CAP_SYS_ADMIN.
func stackOf(proc string, pid, tid int) string {
	stack, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "task", strconv.Itoa(tid), "stack"))
	return string(stack)
}

// waitsOf is where in the kernel a helper waits: its stack where that may be
// read, since some architectures have no other, and otherwise the function.
func waitsOf(proc string, pid int) string {
	if stack := stackOf(proc, pid, pid); stack != "" {
		return stack
	}
	wchan, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "wchan"))
	return string(wchan)
}

// blockedFields adds how many tasks wait for the locks of a superblock, or of
// any, and the one that has waited longest.
func (n *Nfslock) blockedFields(sb *superblock, fields map[string]any) {
	var count int64
	var longest *blockedTask
	for i := range n.waiters.blocked {
		task := &n.waiters.blocked[i]
		if sb != nil && task.superblock != sb {
			continue
		}
		count++
		if longest == nil || task.Caught.Before(longest.Caught) {
			longest = task
		}
	}
	fields["tasks_blocked"] = count
	if longest == nil {
		return
	}
	fields["blocked_pid"] = int64(longest.PID)
	fields["blocked_comm"] = longest.Comm
	fields["blocked_seconds"] = secondsSince(longest.Caught)
	if longest.Wchan != "" {
		fields["blocked_wchan"] = longest.Wchan
	}
	if container := cgroups.Container(filepath.Join(n.proc, strconv.Itoa(longest.PID), "cgroup")); container != "" {
		fields["blocked_container"] = container
	}
}
