package mountstat

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/watches"
)

// guards are the programs that the kernel asks for permission before files are opened.
type guards struct {
	pids     []int
	asked    uint64 // the last round in which they were looked for
	underWay bool
	late     bool // it takes so long that reports are held back no longer
}

// waitsForGuard reports whether a helper waits for a program's permission.
func waitsForGuard(t *target) bool {
	return t.report != nil && strings.HasPrefix(t.report.Function, "fanotify_")
}

// awaitsGuards reports whether such programs are being looked for; the reason will name them.
func (m *Mountstat) awaitsGuards(t *target, f *finding) bool {
	g := &m.guards
	if !f.hangs() || !waitsForGuard(t) || g.late {
		return false
	}
	if g.asked == m.round || g.underWay {
		return g.underWay
	}
	g.asked, g.underWay = m.round, true
	timer := time.AfterFunc(daemonsTimeout, func() {
		m.mail.Post(func() {
			g.late = g.underWay
			m.reconsider()
		})
	})
	go func() {
		pids, err := watches.Guards(m.host.Files)
		timer.Stop()
		m.mail.Post(func() {
			g.pids, g.underWay, g.late = pids, false, false
			m.said.Error("fanotify", err)
			m.reconsider()
		})
	}()
	return true
}

// describeGuards names the programs that may be the ones that do not answer.
func (m *Mountstat) describeGuards() string {
	var all []string
	for _, pid := range m.guards.pids {
		comm, _ := procfs.ReadText(m.fileOf(pid, "comm"))
		says := fmt.Sprintf("%s (process %d)", mounts.Printable(comm), pid)
		if status, _ := procfs.ReadText(m.fileOf(pid, "status")); strings.Contains(status, "\nState:\tT") {
			says += fmt.Sprintf(", which is stopped: kill -CONT %d", pid)
		}
		all = append(all, says)
	}
	if len(all) == 0 {
		return "the program that is asked for permission could not be seen"
	}
	return "asked for permission: " + strings.Join(all, "; ")
}

// guardFields says which program it is, if there is only one.
func (m *Mountstat) guardFields(fields map[string]any) {
	if len(m.guards.pids) != 1 {
		return
	}
	pid := m.guards.pids[0]
	fields["guard_pid"] = int64(pid)
	if restart := cgroups.Restart(m.fileOf(pid, "cgroup")); restart != "" {
		fields["restart_command"] = restart
	}
}

func (m *Mountstat) fileOf(pid int, name string) string {
	return filepath.Join(m.host.Proc, strconv.Itoa(pid), name)
}
