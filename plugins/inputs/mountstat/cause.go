package mountstat

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// cause is why a file system is at fault. The README lists the evidence for
// each. Values never change their meaning.
type cause string

const (
	serverUnreachable cause = "server_unreachable"
	serverRPCDead     cause = "server_rpc_dead"
	exportHangs       cause = "export_hangs"
	staleExport       cause = "stale_export"
	fuseDaemonSilent  cause = "fuse_daemon_silent"
	fuseDaemonDead    cause = "fuse_daemon_dead"
	frozen            cause = "frozen"
	deviceHangs       cause = "device_hangs"
	noSpace           cause = "no_space"
	readOnly          cause = "read_only"
	permission        cause = "permission"
	ioError           cause = "io_error"
	notMounted        cause = "not_mounted"
	unknown           cause = "unknown"
)

// causeOf derives the cause of a fault from its kind, and from what can be
// learned without touching the mount.
func (m *Mountstat) causeOf(sb *superblock, f *finding) cause {
	switch f.code {
	case result.Denied:
		return permission
	case result.Stale:
		if networked(sb.checked) {
			return staleExport
		}
		return ioError
	case result.Error:
		return m.causeOfError(sb, f)
	case result.Timeout, result.Stuck:
		if f.call == stepOpen {
			return m.causeAbove(sb)
		}
		return m.causeOfHang(sb, f)
	}
	return ""
}

func (m *Mountstat) causeOfError(sb *superblock, f *finding) cause {
	switch f.errno {
	case "EROFS":
		return readOnly
	case "ENOSPC", "EDQUOT":
		return noSpace
	case "ENOTCONN", "ECONNABORTED":
		if isFUSE(sb.checked) {
			return fuseDaemonDead
		}
	}
	// A soft mount gives up with EIO or ETIMEDOUT, nfs(5).
	if c := m.causeAtServer(sb); c != "" {
		return c
	}
	switch f.errno {
	case "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT", "ENOTCONN", "ECONNREFUSED", "ECONNRESET":
		if networked(sb.checked) {
			return serverUnreachable
		}
	}
	return ioError
}

func (m *Mountstat) causeOfHang(sb *superblock, f *finding) cause {
	switch {
	case isFUSE(sb.checked):
		return fuseDaemonSilent
	case sb.remote != nil:
		if c := m.causeAtServer(sb); c != "" {
			return c
		}
		if m.answerOf(sb.remote).answered() {
			return exportHangs
		}
	case onDevice(sb.checked):
		// A frozen file system answers everything but writes.
		waits := m.waitsIn(sb)
		if strings.Contains(waits, "percpu_rwsem_wait") || strings.Contains(waits, "sb_start_write") {
			return frozen
		}
		if f.check != checkWrite || waits != "" {
			return deviceHangs
		}
	}
	if sb.found.hangs() && sb.found.cause != "" {
		return sb.found.cause // the evidence has gone, as it does before the end
	}
	return unknown
}

// causeAtServer is the fault of the server, if one was seen. A mount takes a
// while to notice that its server is back, v3 half a minute: the cause stays what
// it was until a reply has come on its own connection, and for checks that began
// before the server was back.
func (m *Mountstat) causeAtServer(sb *superblock) cause {
	if sb.remote == nil {
		return ""
	}
	a := m.answerOf(sb.remote)
	switch {
	case !a.known:
		return ""
	case !a.answered() && a.reached:
		return serverRPCDead
	case !a.answered():
		return serverUnreachable
	}
	before := sb.found.cause
	if before != serverRPCDead && before != serverUnreachable {
		return ""
	}
	beganBefore := sb.report != nil && sb.report.Since.Before(a.since)
	unheard := sb.traffic.stats != nil && sb.traffic.lastReply.Before(sb.badSince)
	if beganBefore || unheard {
		return before
	}
	return ""
}

// causeAbove is why the way to a mount hangs: a file system that its path leads
// through does.
func (m *Mountstat) causeAbove(sb *superblock) cause {
	if sb.namespace != nil {
		return unknown
	}
	id := sb.checked.Parent
	for range m.above { // a table that lies may be a ring
		above, mount := m.above[id].superblock, m.above[id].mount
		if mount == nil || mount.Parent == id {
			break
		}
		if above != nil && above != sb && m.hangsNow(above) {
			f := above.found
			if f.cause != "" {
				return f.cause
			}
			f.check = above.policy.checks[0]
			return m.causeOfHang(above, &f)
		}
		id = mount.Parent
	}
	return unknown
}

// hangsNow reports whether no answer has come in this gather, or the last.
func (m *Mountstat) hangsNow(sb *superblock) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sb.underWay || sb.hung()
}

// waitsIn is where in the kernel the stuck helper waits; empty if unknown.
func (m *Mountstat) waitsIn(sb *superblock) string {
	if sb.report == nil || sb.report.PID == 0 {
		return ""
	}
	content, err := os.ReadFile(filepath.Join(ownProc, strconv.Itoa(sb.report.PID), "wchan"))
	if err != nil || string(content) == "0" {
		return ""
	}
	return string(content)
}

// fuseWaiting is the number of requests the daemon has not answered; false
// where fusectl is not mounted.
func (m *Mountstat) fuseWaiting(sb *superblock) (int64, bool) {
	if !isFUSE(sb.checked) || sb.namespace != nil {
		return 0, false
	}
	// Named by the device number as the kernel keeps it, MINORBITS being 20.
	connection := strconv.Itoa(sb.checked.Major<<20 | sb.checked.Minor)
	return readNumber(filepath.Join(m.sys, "fs/fuse/connections", connection, "waiting"))
}

// hungTasks is how many tasks the kernel has found hung, since Linux 6.13.
func (m *Mountstat) hungTasks() (int64, bool) {
	return readNumber(filepath.Join(m.proc, "sys/kernel/hung_task_detect_count"))
}

func readNumber(name string) (int64, bool) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var content [32]byte
	n, err := unix.Read(fd, content[:])
	if err != nil {
		return 0, false
	}
	return parseNumber(content[:n])
}

func parseNumber(content []byte) (int64, bool) {
	number, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	return number, err == nil
}
