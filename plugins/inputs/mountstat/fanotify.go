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
	*kit
	pids     []int
	asked    uint64 // the last round in which they were looked for
	underWay bool
	late     bool // it takes so long that reports are held back no longer
}

// waitsForGuard reports whether a helper waits for a program's permission.
func waitsForGuard(t *target) bool {
	return t.report != nil && strings.HasPrefix(t.report.Function, "fanotify_")
}

// await reports whether such programs are being looked for; the reason will name them.
func (g *guards) await(t *target, f *finding) bool {
	if !f.hangs() || !waitsForGuard(t) || g.late {
		return false
	}
	if g.asked == g.round || g.underWay {
		return g.underWay
	}
	g.asked, g.underWay = g.round, true
	timer := time.AfterFunc(daemonsTimeout, func() {
		g.mail.Post(func() {
			g.late = g.underWay
			g.reconsider()
		})
	})
	go func() {
		pids, err := watches.Guards(g.host.Files)
		timer.Stop()
		g.mail.Post(func() {
			g.pids, g.underWay, g.late = pids, false, false
			g.said.Error("fanotify", err)
			g.reconsider()
		})
	}()
	return true
}

// describe names the programs that may be the ones that do not answer.
func (g *guards) describe() string {
	var all []string
	for _, pid := range g.pids {
		comm, _ := procfs.ReadText(g.fileOf(pid, "comm"))
		says := fmt.Sprintf("%s (process %d)", mounts.Printable(comm), pid)
		if status, _ := procfs.ReadText(g.fileOf(pid, "status")); strings.Contains(status, "\nState:\tT") {
			says += fmt.Sprintf(", which is stopped: kill -CONT %d", pid)
		}
		all = append(all, says)
	}
	if len(all) == 0 {
		return "the program that is asked for permission could not be seen"
	}
	return "asked for permission: " + strings.Join(all, "; ")
}

// addTo says in the fields which program it is, if there is only one.
func (g *guards) addTo(fields map[string]any) {
	if len(g.pids) != 1 {
		return
	}
	pid := g.pids[0]
	fields["guard_pid"] = int64(pid)
	if restart := cgroups.Restart(g.fileOf(pid, "cgroup")); restart != "" {
		fields["restart_command"] = restart
	}
}

func (g *guards) fileOf(pid int, name string) string {
	return filepath.Join(g.host.Proc, strconv.Itoa(pid), name)
}
