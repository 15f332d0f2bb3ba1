package prober

import (
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// rootCgroupTimeout is for writes to cgroup.procs, which wait for the kernel's own
// locks alone.
const rootCgroupTimeout = 5 * time.Second

// becomeSteps is how many [Plan.Become] adds.
const becomeSteps = 4

// rootCgroups moves helpers that may outlive this process out of its cgroups.
type rootCgroups struct {
	files   []string // Options.RootCgroups
	waiting []int    // helpers, by pid
	under   bool     // some are being moved
}

// leaveCgroupsLocked moves a helper to the root cgroups. Whoever stops this process may
// kill all that is left in its cgroups, and wait for its end.
func (p *Prober) leaveCgroupsLocked(h *helper) {
	if h.leftCgroups || len(p.cgroups.files) == 0 {
		return
	}
	h.leftCgroups = true
	p.cgroups.waiting = append(p.cgroups.waiting, h.pid)
	p.moveHelpersLocked()
}

// moveHelpersLocked has a helper move as many as its plan has steps for.
func (p *Prober) moveHelpersLocked() {
	c := &p.cgroups
	if c.under || len(c.waiting) == 0 {
		return
	}
	c.under = true
	most := min(max(1, (forkserver.MaxSteps-becomeSteps)/len(c.files)-1), len(c.waiting))
	plan := moveTo(c.files, c.waiting[:most])
	c.waiting = slices.Clone(c.waiting[most:])
	check := Check{Key: "root cgroups", Group: "root cgroups", Trusted: true, Independent: true, Essential: true, Plan: plan}
	p.completed = append(p.completed, func() { p.Submit(check, p.moved) })
}

// moveTo is a plan that writes the processes to each of the files, which are root's. One that
// has ended fails with ESRCH.
func moveTo(files []string, pids []int) *Plan {
	plan := &Plan{Timeout: rootCgroupTimeout}
	if os.Geteuid() != 0 && CanBecome() {
		plan.Become(0, 0)
	}
	for _, file := range files {
		procs := ResultOf(plan.Add(Open(CWD(), file, unix.O_WRONLY, 0)))
		for _, pid := range pids {
			plan.Add(Pwrite(procs, []byte(strconv.Itoa(pid)), 0).Optional())
		}
	}
	return plan
}

func (p *Prober) moved(r Report) {
	p.mu.Lock()
	defer p.unlock()
	c := &p.cgroups
	c.under = false
	for i := range r.Steps {
		if s := &r.Steps[i]; s.Errno != 0 && s.Errno != unix.ESRCH {
			p.warnLocked("helpers that hang stay in this process's cgroups: %s: %v", s.Name, s.Errno)
			c.files, c.waiting = nil, nil
			return
		}
	}
	p.moveHelpersLocked()
}
