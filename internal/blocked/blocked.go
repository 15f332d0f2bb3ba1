// Package blocked finds the tasks that wait uninterruptibly: since when, where
// in the kernel, and what they have open.
//
// A [Scanner] reads only stat, comm, status and wchan of other processes. These take no
// lock that a stuck process holds, unlike cmdline, environ and maps, which wait for its
// memory. Helper processes look at what a task has open, at its working directory and at its
// stack, since that can wait for a file system. They read fdinfo only of files with a path
// outside of /dev: an epoll instance, for example, is locked while a FUSE server is asked
// about a file in it.
package blocked

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Task is a thread that waits.
type Task struct {
	PID int // of the process
	TID int // of the thread; equal to PID for the first one
	// Parent is the parent of the process. It is set only by [Scanner.Threads].
	Parent int
	Comm   string // the thread's name, raw bytes
	// State is D, or S with [Scanner.SetWaits].
	State byte
	// Wchan is the kernel function in which the task sleeps. It is empty without
	// the right to trace the task, and may be on exotic kernels.
	Wchan string
	// Kernel marks a thread of the kernel.
	Kernel bool
	// Since is the time of the first scan that saw the task in this very wait. Since then the
	// task has run only to begin the same wait again, as a call to an NFS server does that
	// is sent again. The wait itself may have begun earlier.
	Since time.Time
	Start uint64 // ticks after boot: with the TID, the task's identity
}

// Scanner looks for waiting tasks, again and again. It is not safe for
// concurrent use.
type Scanner struct {
	proc     int // the open directory
	waits    []string
	programs bool                   // that mount are noted
	waiting  map[identity]sleep     // of the last scan
	living   map[identity]time.Time // programs that mount, and the first scan that saw them
	path     []byte
	content  [4 << 10]byte
	// Mounting are the programs that mount something, as seen by the last scan with
	// [Scanner.setPrograms]. Since is the time of the first scan that saw them.
	Mounting []Task
	entries  [2][8 << 10]byte // of the processes, and of a process's threads
}

type identity struct {
	tid   int
	start uint64
}

type sleep struct {
	wchan    string
	switches uint64
	counted  bool
	since    time.Time
	seen     time.Time
}

// retryInterval is the shortest time between two beginnings of a wait that has no answer.
// The shortest timeout of NFS is 0.1 s, and each retry leaves the CPU at most twice.
const retryInterval = 50 * time.Millisecond

// retries reports whether tasks that wait in a function wake up now and then to begin the same
// wait again: net/sunrpc/sched.c, fs/lockd/clntproc.c, fs/nfs/nfs4proc.c.
func retries(wchan string) bool {
	switch wchan {
	case "rpc_wait_bit_killable", "nlm_wait_on_grace", "nlmclnt_block", "nlmclnt_wait", "nfs4_delay", "nfs4_delay_killable",
		"nfs4_delay_interruptible", "nfs4_retry_setlk", "nfs4_retry_setlk_simple":
		return true
	}
	return false
}

// continues reports whether a task that was seen in one sleep is still in it. Being in the
// same function at two looks is no proof: a busy task is there by chance.
func (before sleep) continues(now sleep) bool {
	if before.wchan != now.wchan || !before.counted || !now.counted || now.switches < before.switches {
		return false
	}
	switches := now.switches - before.switches
	return switches == 0 || retries(now.wchan) && switches <= 2+uint64(now.seen.Sub(before.seen)/retryInterval)
}

// NewScanner makes a scanner of all processes below the directory where procfs
// is mounted. For waits see [Scanner.SetWaits].
func NewScanner(proc string, waits ...string) (*Scanner, error) {
	fd, err := unix.Open(proc, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: proc, Err: err}
	}
	return &Scanner{proc: fd, waits: waits}, nil
}

// SetWaits names kernel functions. A task in state S, waiting interruptibly,
// counts too if it waits in one of them: [FUSEWaits] for example. This takes another
// look at every sleeping task, so with any function a scan costs about twice as much.
func (s *Scanner) SetWaits(waits ...string) { s.waits = waits }

// setPrograms sets whether programs that mount something are noted, whatever they wait in: a
// program that connects to a server sleeps interruptibly.
func (s *Scanner) setPrograms(noted bool) { s.programs = noted }

// mounts reports whether a stat file, proc_pid_stat(5), is that of mount(8), or of a program
// such as mount.nfs that mount(8) runs. A FUSE daemon that such a program has become, as
// mount.fuse.sshfs does, leads a session of its own (daemon(3)): it has mounted.
func mounts(pid int, stat []byte, session int) bool {
	_, rest, _ := bytes.Cut(stat, []byte("("))
	name, is := bytes.CutPrefix(rest, []byte("mount"))
	return is && len(name) > 0 && (name[0] == ')' || name[0] == '.' && session != pid)
}

// FUSEWaits are the functions in which tasks wait for a FUSE server. They show
// S, not D, until they get a signal (fs/fuse/dev.c). The compiler decides which
// of them appears.
func FUSEWaits() []string {
	return []string{"request_wait_answer", "__fuse_simple_request", "__fuse_request_send", "fuse_simple_request", "fuse_get_req"}
}

// Close closes the scanner's directory.
func (s *Scanner) Close() error { return unix.Close(s.proc) }

// Scan looks at all tasks, and returns those that wait, in no special order.
// now is the time of the scan. Tasks that may not be looked at are left out. An
// error that comes with tasks says that some others could not be looked at.
func (s *Scanner) Scan(now time.Time) ([]Task, error) {
	scan := scan{Scanner: s, now: now, waiting: make(map[identity]sleep), living: make(map[identity]time.Time)}
	if _, err := unix.Seek(s.proc, 0, unix.SEEK_SET); err != nil {
		return nil, fmt.Errorf("rewind the directory of processes: %w", err)
	}
	err := eachNumber(s.proc, s.entries[0][:], func(pid int) bool {
		scan.process(pid)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	s.waiting, s.living, s.Mounting = scan.waiting, scan.living, scan.mounting
	return scan.tasks, errors.Join(scan.problems...)
}

// Threads returns at most limit tasks of a process, whatever they do. The first is the process's
// first thread. Their Since is not set.
func (s *Scanner) Threads(pid, limit int) ([]Task, error) {
	first, err := s.task(pid, pid)
	if err != nil {
		return nil, err
	}
	all := []Task{first}
	dir, err := s.open(s.name(pid, "task"), unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	err = eachNumber(dir, s.entries[1][:], func(tid int) bool {
		if task, err := s.task(pid, tid); err == nil && tid != pid {
			all = append(all, task)
		}
		return len(all) < limit
	})
	return all, err
}

// task looks at one task.
func (s *Scanner) task(pid, tid int) (Task, error) {
	content, err := s.read(s.taskFile(pid, tid, "stat"))
	if err != nil {
		return Task{}, err
	}
	st, err := parseStat(content)
	if err != nil {
		return Task{}, err
	}
	task := Task{PID: pid, TID: tid, Parent: st.parent, State: st.state, Kernel: st.kernel, Start: st.start, Wchan: string(s.wchan(pid, tid))}
	task.Comm = s.comm(pid, tid)
	return task, nil
}

// comm is the name of a task; empty if it has ended.
func (s *Scanner) comm(pid, tid int) string {
	comm, err := s.read(s.taskFile(pid, tid, "comm"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(comm, []byte("\n")))
}

// scan is the state of one scan.
type scan struct {
	*Scanner
	now      time.Time
	waiting  map[identity]sleep
	living   map[identity]time.Time
	tasks    []Task
	mounting []Task
	problems []error
}

func (s *scan) process(pid int) {
	first, ok := s.inspect(pid, pid, s.name(pid, "stat"))
	if !ok || first.threads < 2 {
		return
	}
	dir, err := s.open(s.name(pid, "task"), unix.O_DIRECTORY)
	if err != nil {
		s.note(err)
		return
	}
	defer unix.Close(dir)
	err = eachNumber(dir, s.entries[1][:], func(tid int) bool {
		if tid != pid {
			s.inspect(pid, tid, s.taskFile(pid, tid, "stat"))
		}
		return true
	})
	s.note(err)
}

// inspect reads a task's stat file, and notes the task if it waits.
func (s *scan) inspect(pid, tid int, file []byte) (stat, bool) {
	content, err := s.read(file)
	if err != nil {
		s.note(err)
		return stat{}, false
	}
	st, err := parseStat(content)
	if err != nil {
		s.note(err)
		return stat{}, false
	}
	if s.programs && tid == pid && mounts(pid, content, st.session) {
		s.noteProgram(pid, st)
	}
	switch st.state {
	case 'D':
		s.add(pid, tid, st, s.wchan(pid, tid))
	case 'S':
		if len(s.waits) == 0 {
			break
		}
		wchan := s.wchan(pid, tid)
		if slices.Contains(s.waits, string(wchan)) {
			s.add(pid, tid, st, wchan)
		}
	}
	return st, true
}

// noteProgram notes a program that mounts something.
func (s *scan) noteProgram(pid int, st stat) {
	id, since := identity{pid, st.start}, s.now
	if first, known := s.Scanner.living[id]; known {
		since = first
	}
	s.living[id] = since
	s.mounting = append(s.mounting, Task{PID: pid, TID: pid, State: st.state, Start: st.start, Since: since, Comm: s.comm(pid, pid)})
}

func (s *scan) add(pid, tid int, st stat, function []byte) {
	current := sleep{wchan: string(function), since: s.now, seen: s.now} // before the buffer is read into again
	status, err := s.read(s.taskFile(pid, tid, "status"))
	if err != nil {
		return // it has ended
	}
	current.switches, current.counted = contextSwitches(status)
	id := identity{tid, st.start}
	if before, known := s.Scanner.waiting[id]; known && before.continues(current) {
		current.since = before.since
	}
	task := Task{PID: pid, TID: tid, State: st.state, Wchan: current.wchan, Kernel: st.kernel, Start: st.start, Since: current.since}
	task.Comm = s.comm(pid, tid)
	s.waiting[id] = current
	s.tasks = append(s.tasks, task)
}

// note keeps the first problem that is neither the end of a task nor a missing
// right.
func (s *scan) note(err error) {
	if err != nil && len(s.problems) == 0 && !gone(err) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		s.problems = append(s.problems, err)
	}
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// wchan is the function in which a task sleeps, or empty.
func (s *Scanner) wchan(pid, tid int) []byte {
	function, err := s.read(s.taskFile(pid, tid, "wchan"))
	if err != nil || string(function) == "0" {
		return nil
	}
	return bytes.TrimSpace(function)
}
