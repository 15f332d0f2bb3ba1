package blocked

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

const (
	// scanShare is the part of a CPU that scans may take while nobody waits.
	scanShare = 0.01
	// firstScanDelay is how long after the first request the first scan is made, if nothing is urgent.
	firstScanDelay = 100 * time.Millisecond
	// longWait is a wait that the load average is sure to show on a quiet host.
	longWait = time.Minute
	// maxInspected is how many tasks of a scan are asked for their files, and again for
	// their stacks.
	maxInspected = 200
	// maxFiles is how many of a task's open files are looked at.
	maxFiles = 256
	// maxUnasked is the number of rounds for which functions count that nobody asks for any
	// more. An input may miss some rounds, for example while it is still gathering.
	maxUnasked = 3
)

// Monitor looks for blocked tasks on behalf of several inputs: once in a round, and
// with one budget. The plugin's own tasks prove nothing and are left out. Its
// methods may be called from several goroutines.
type Monitor struct {
	proc  string
	files *openfiles.Reader

	mu      sync.Mutex
	waits   map[any]waits // by who asks
	scanner *Scanner
	helpers *prober.HelperMatcher
	own     int       // this process, as procfs knows it; 0: it does not
	asked   bool      // somebody has
	first   uint64    // the round in which that was
	round   uint64    // of the last scan that somebody waited for
	due     time.Time // for the next scan, while nobody waits
	last    Scan
	err     error

	inspected map[identity]Files // of this round
	stacks    map[identity]string
}

// waits are functions that somebody asks for, see [Request].
type waits struct {
	functions []string
	programs  bool
	round     uint64 // the last in which they were asked for
}

// Scan is what a look at all tasks has found.
type Scan struct {
	At      time.Time // zero: nobody has looked
	Tasks   []Task    // that have waited since an earlier scan
	Helpers int64     // helpers of vfsprobe's that wait
	// Mounting are programs that have been mounting something since an earlier scan, or for a
	// second, if they were asked for.
	Mounting []Task
}

// Request tells who asks for blocked tasks, and why.
type Request struct {
	Round uint64
	Asker any // who asks; the same in each round
	// Urgent says that something hangs: the budget does not matter.
	Urgent bool
	// Waits are functions in which tasks in state S count, too; see [Scanner.SetWaits].
	Waits []string
	// Programs asks for programs that mount something; see [Scanner.setPrograms].
	Programs bool
}

// NewMonitor returns a Monitor of all processes below the directory where procfs is
// mounted.
func NewMonitor(proc string, files *openfiles.Reader) *Monitor {
	return &Monitor{proc: proc, files: files, waits: make(map[any]waits),
		inspected: make(map[identity]Files), stacks: make(map[identity]string)}
}

// Scan returns the tasks that are blocked. The first request in a round has them looked for.
// It does not if nothing is urgent, and the budget is used up or the load average rules out
// that any task waits: then the tasks of the last scan are returned, or none. In the first round
// there can be none that has waited since an earlier scan: if nothing is urgent and no programs are
// asked for, the first scan is made a moment later, and nobody waits for it. An error that comes
// with tasks says that some could not be looked at.
func (m *Monitor) Scan(r Request) (Scan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	news := m.remember(r)
	if m.round == r.Round && !m.last.At.IsZero() && !news {
		return m.last, m.err
	}
	now := time.Now()
	if !r.Urgent && len(m.last.Tasks)+len(m.last.Mounting) == 0 && m.rests(now) {
		return m.last, nil
	}
	if !m.asked {
		m.asked, m.first = true, r.Round
		time.AfterFunc(firstScanDelay, m.scanFirst)
	}
	if !r.Urgent && !r.Programs && m.first == r.Round {
		return m.last, nil
	}
	m.round = r.Round
	m.scan(now)
	return m.last, m.err
}

// scanFirst makes the first scan, if it was not made meanwhile.
func (m *Monitor) scanFirst() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.At.IsZero() {
		m.scan(time.Now())
	}
}

// scan looks for tasks, and notes when it may be done again.
func (m *Monitor) scan(now time.Time) {
	m.err = m.look(now)
	m.due = now.Add(time.Duration(float64(time.Since(now)) / scanShare))
}

// remember keeps the functions that a request asks for, and forgets those that nobody has
// asked for lately. It reports whether the request asks for new ones.
func (m *Monitor) remember(r Request) (news bool) {
	maps.DeleteFunc(m.waits, func(_ any, w waits) bool { return w.round+maxUnasked < r.Round })
	before := m.waits[r.Asker]
	news = !slices.Equal(before.functions, r.Waits) || r.Programs && !before.programs
	if len(r.Waits) == 0 && !r.Programs {
		delete(m.waits, r.Asker)
	} else {
		m.waits[r.Asker] = waits{functions: r.Waits, programs: r.Programs, round: r.Round}
	}
	return news
}

// rests reports whether there is no need to scan.
func (m *Monitor) rests(now time.Time) bool {
	if now.Before(m.due) {
		return true
	}
	if len(m.waits) > 0 {
		return false // the load average does not show these
	}
	excluded, err := LoadExcludes(m.proc, longWait)
	if excluded {
		m.last = Scan{}
	}
	return err == nil && excluded
}

func (m *Monitor) look(now time.Time) error {
	if m.scanner == nil {
		scanner, err := NewScanner(m.proc)
		if err != nil {
			return err
		}
		if m.helpers, err = prober.NewHelperMatcher(m.proc); err != nil {
			return errors.Join(err, scanner.Close())
		}
		self, _ := os.Readlink(filepath.Join(m.proc, "self"))
		m.own, _ = strconv.Atoi(self)
		m.scanner = scanner
	}
	var functions []string
	programs := false
	for _, some := range m.waits {
		functions = append(functions, some.functions...)
		programs = programs || some.programs
	}
	m.scanner.SetWaits(functions...)
	m.scanner.setPrograms(programs)
	tasks, err := m.scanner.Scan(now)
	m.last = Scan{At: now}
	m.inspected, m.stacks = make(map[identity]Files), make(map[identity]string)
	for _, task := range tasks {
		switch {
		case strings.HasPrefix(task.Comm, prober.HelperPrefix) && m.helpers.IsHelper(task.PID):
			m.last.Helpers++
		case !task.Since.Before(now), task.PID == m.own, m.helpers.IsServer(task.PID):
		default:
			m.last.Tasks = append(m.last.Tasks, task)
		}
	}
	long := m.startOfLongMounts()
	for _, task := range m.scanner.Mounting {
		if task.Since.Before(now) || task.Start < long {
			m.last.Mounting = append(m.last.Mounting, task)
		}
	}
	return err
}

// longMount is for how long a program lives that waits when it mounts something.
const longMount = time.Second

// startOfLongMounts is when programs had to start, in ticks after boot, to have lived for longMount
// by now; 0 if that can't be told, or there are none.
func (m *Monitor) startOfLongMounts() uint64 {
	if len(m.scanner.Mounting) == 0 {
		return 0
	}
	const ticks = 100 // in a second, USER_HZ
	text, _ := procfs.ReadText(filepath.Join(m.proc, "uptime"))
	uptime, _, _ := strings.Cut(text, " ")
	seconds, err := strconv.ParseFloat(uptime, 64)
	if err != nil || seconds < longMount.Seconds() {
		return 0
	}
	return uint64((seconds - longMount.Seconds()) * ticks)
}

// Files tells what a task has to do with mounts.
type Files struct {
	// MountIDs are those of its open files, as in mountinfo, in ascending order.
	// Pipes, sockets and devices are left out. Only the first 256 files count.
	MountIDs []int
	Cwd      string // its working directory, raw bytes
	MountNS  string // its mount namespace, such as mnt:[4026531841]
	Hidden   bool   // its open files may not be seen: openfiles.Hindrance tells why
}

// Files tells what a task has open. A helper looks, once in a round. What may not be
// seen, or no longer exists, is empty; for the tasks beyond the first 200 everything is.
func (m *Monitor) Files(task Task) Files {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := identity{task.TID, task.Start}
	if files, known := m.inspected[id]; known || len(m.inspected) >= maxInspected {
		return files
	}
	files := m.inspect(task)
	m.inspected[id] = files
	return files
}

func (m *Monitor) inspect(task Task) Files {
	dir := filepath.Join(strconv.Itoa(task.PID), "task", strconv.Itoa(task.TID))
	var files Files
	files.MountNS, _ = os.Readlink(filepath.Join(m.proc, dir, "ns/mnt"))
	seen, err := m.files.Task(task.PID, task.TID)
	if err != nil {
		return files
	}
	files.Cwd = seen.Cwd
	m.stacks[identity{task.TID, task.Start}] = seen.Stack
	all, err := m.files.Links([]string{filepath.Join(dir, "fd")}, "/", maxFiles)
	if err != nil {
		return files
	}
	files.Hidden = all[0].MayNot()
	var names []string
	for _, link := range all[0].Links {
		if !strings.HasPrefix(link.Target, "/dev/") {
			names = append(names, filepath.Join(dir, "fdinfo", link.Name))
		}
	}
	infos, _ := m.files.Infos(names)
	for _, info := range infos {
		if id, found := openfiles.MountID(info); found {
			files.MountIDs = append(files.MountIDs, id)
		}
	}
	slices.Sort(files.MountIDs)
	files.MountIDs = slices.Compact(files.MountIDs)
	return files
}

// Stack is where in the kernel a task is. A helper looks, once in a round. It is empty
// without CAP_SYS_ADMIN, and for the tasks beyond the first 200.
func (m *Monitor) Stack(task Task) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := identity{task.TID, task.Start}
	if stack, known := m.stacks[id]; known || len(m.stacks) >= maxInspected {
		return stack
	}
	seen, _ := m.files.Task(task.PID, task.TID)
	m.stacks[id] = seen.Stack
	return seen.Stack
}
