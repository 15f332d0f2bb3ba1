package prober

import (
	"encoding/base32"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// A helper is named after its key, so that a later run of the plugin which
// finds it stuck knows what it was forked for.
const (
	HelperPrefix = "vfsp:" // see [HelperMatcher]
	serverName   = "vfsprobe-server"
)

// HelperName is the process name (comm) of the helpers for a key of no group.
func HelperName(key string) string { return commOf(key, "") }

// groupLength is the part of a helper's name that tells its group.
const groupLength = 2

// commOf is the name of the helpers for a key: the prefix, 40 bits of the key's
// hash and 10 of the group's, together the 15 bytes the kernel keeps
// (TASK_COMM_LEN).
func commOf(key, group string) string {
	of, like := hashed(key), hashed(group)
	name := append(make([]byte, 0, len(HelperPrefix)+8+groupLength), HelperPrefix...)
	return string(append(append(name, of[:8]...), like[:groupLength]...))
}

// hashed is the key's hash in base 32. It is made for each check.
func hashed(key string) (text [16]byte) {
	h := uint64(14695981039346656037) // FNV-1a, as hash/fnv has it
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	// FNV hardly mixes the last bytes into the upper bits, which are used:
	// finish as MurmurHash3 does.
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], h^h>>33)
	base32.StdEncoding.Encode(text[:], sum[:])
	for i, c := range text {
		if c >= 'A' && c <= 'Z' {
			text[i] = c + 'a' - 'A'
		}
	}
	return text
}

// An orphan is a stuck helper whose fork server has ended.
type orphan struct {
	pid       int
	startTick string // tells it from a later process with the same pid
	started   time.Time
}

// orphans holds helpers of earlier fork servers, by their comm. A helper whose
// server still lives is a candidate: it is another plugin's, or its server is
// about to end.
type orphans struct {
	byComm  map[string][]orphan
	found   time.Time
	counted leftBehind
	groups  map[string]leftBehind // of those that were counted
	asOf    time.Time
}

// leftBehind counts orphans by how they wait.
type leftBehind struct{ asleep, stuck int }

func (l *leftBehind) add(w Wait) {
	if w == Asleep {
		l.asleep++
	} else {
		l.stuck++
	}
}

// recountInterval is how long a count of orphans is good for, and shortRecountInterval while those
// whose server has just ended may be about to end, too.
const (
	recountInterval      = time.Second
	shortRecountInterval = 20 * time.Millisecond
)

// mayEndLocked reports whether orphans may be helpers that the kernel is still killing,
// with their server, and not stuck ones: those are given the time that a helper has to
// disappear after SIGKILL.
func (o *orphans) mayEndLocked(grace time.Duration) bool {
	return len(o.byComm) > 0 && time.Since(o.found) < grace
}

// queueBehindOrphansLocked queues a check again when some of the orphans may have ended.
func (p *Prober) queueBehindOrphansLocked(w *pending) {
	if p.behindOrphans = append(p.behindOrphans, w); len(p.behindOrphans) > 1 {
		return
	}
	time.AfterFunc(shortRecountInterval, func() {
		p.mu.Lock()
		defer p.unlock()
		waiting := p.behindOrphans
		p.behindOrphans = nil
		for _, w := range waiting {
			if !w.decided {
				p.admission.enqueueLocked(w)
			}
		}
		p.pumpLocked()
	})
}

// findOrphans looks for helpers among all processes. It is called while this
// process has no fork server, so that none of them is its own.
func findOrphans(proc string) orphans {
	found := orphans{byComm: make(map[string][]orphan), found: time.Now()}
	dir, err := os.Open(proc)
	if err != nil {
		return found
	}
	defer dir.Close()
	matcher, err := NewHelperMatcher(proc)
	if err != nil {
		return found
	}
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		comm := readComm(proc, pid)
		if !strings.HasPrefix(comm, HelperPrefix) {
			continue
		}
		fields, err := statFields(proc, pid)
		if err != nil || !matcher.hasHelpersRights(pid) {
			continue
		}
		start := string(fields[procfs.StatStarttime])
		found.byComm[comm] = append(found.byComm[comm], orphan{pid: pid, startTick: start, started: sinceBoot(start)})
	}
	return found
}

// findLocked returns an orphan of that name which is still there.
func (o *orphans) findLocked(proc, comm string) (orphan, Wait, bool) {
	for i, candidate := range o.byComm[comm] {
		alive, orphaned, wait := candidate.inspect(proc)
		if !alive {
			o.byComm[comm] = append(o.byComm[comm][:i:i], o.byComm[comm][i+1:]...)
			o.asOf = time.Time{}
			return o.findLocked(proc, comm)
		}
		if orphaned {
			return candidate, wait, true
		}
	}
	return orphan{}, Unkillable, false
}

// countLocked returns how many orphans there are, as of at most a second ago.
func (o *orphans) countLocked(proc string) leftBehind {
	good := recountInterval
	if o.mayEndLocked(maxGrace) {
		good = shortRecountInterval
	}
	if len(o.byComm) == 0 || time.Since(o.asOf) < good {
		return o.counted
	}
	o.counted, o.groups, o.asOf = leftBehind{}, make(map[string]leftBehind), time.Now()
	for comm, candidates := range o.byComm {
		there := candidates[:0]
		for _, c := range candidates {
			alive, orphaned, wait := c.inspect(proc)
			if alive {
				there = append(there, c)
			}
			if orphaned {
				o.counted.add(wait)
				here := o.groups[groupOf(comm)]
				here.add(wait)
				o.groups[groupOf(comm)] = here
			}
		}
		if o.byComm[comm] = there; len(there) == 0 {
			delete(o.byComm, comm)
		}
	}
	return o.counted
}

// countLikeLocked returns how many of them are of the group that a helper's name tells.
func (o *orphans) countLikeLocked(proc, comm string) leftBehind {
	o.countLocked(proc)
	return o.groups[groupOf(comm)]
}

func groupOf(comm string) string { return comm[max(0, len(comm)-groupLength):] }

// inspect reports whether the process is still there, whether its server is not, and how
// it waits.
func (c orphan) inspect(proc string) (alive, orphaned bool, wait Wait) {
	fields, err := statFields(proc, c.pid)
	if err != nil || string(fields[procfs.StatStarttime]) != c.startTick {
		return false, false, Unkillable
	}
	state := fields[statState][0]
	if state == 'Z' || state == 'X' {
		return false, false, Unkillable
	}
	ppid, _ := strconv.Atoi(string(fields[statPPID]))
	// One that sleeps was left so: all others are killed with their server.
	return true, readComm(proc, ppid) != serverName, waitOf(&Plan{OutlivesServer: true}, state, FunctionOf(proc, c.pid))
}

func readComm(proc string, pid int) string {
	comm, _ := procfs.ReadLine(filepath.Join(proc, strconv.Itoa(pid), "comm"))
	return comm
}

// sinceBoot turns a process's starttime into the wall clock's terms.
func sinceBoot(ticks string) time.Time {
	started, err := procfs.StartedAt(ticks)
	if err != nil {
		return time.Now()
	}
	return started
}
