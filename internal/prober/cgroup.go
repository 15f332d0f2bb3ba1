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

// rootCgroups moves helpers that may outlive this process out of its cgroups.
type rootCgroups struct {
	files   []string // Options.RootCgroups
	waiting []int    // helpers, by pid
	moving  int      // plans under way
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

// moveHelpersLocked has as many helpers moved as the steps of a plan are for, or one by several
// plans.
func (p *Prober) moveHelpersLocked() {
	c := &p.cgroups
	if c.moving > 0 || len(c.waiting) == 0 {
		return
	}
	plans, pids := movePlans(c.files, c.waiting, os.Geteuid() != 0 && CanBecome())
	c.waiting = slices.Clone(c.waiting[pids:])
	c.moving = len(plans)
	for i, plan := range plans {
		check := Check{Key: "root cgroups " + strconv.Itoa(i), Group: "root cgroups", Trusted: true, Independent: true, Essential: true, Plan: plan}
		p.completed = append(p.completed, callback{other: func() { p.Submit(check, p.moved) }})
	}
}

// movePlans returns plans that write the first of the processes to each of the files, which are
// root's, and the number of those processes. One that has ended fails with ESRCH.
func movePlans(files []string, pids []int, becomeRoot bool) (plans []*Plan, moved int) {
	newPlan := func() *Plan {
		plan := &Plan{Timeout: rootCgroupTimeout}
		if becomeRoot {
			plan.Become(0, 0)
		}
		return plan
	}
	steps := forkserver.MaxSteps - len(newPlan().Steps) // for each file one, and one for each process
	moved = min(len(pids), max(1, steps/len(files)-1))
	for files := range slices.Chunk(files, steps/(1+moved)) {
		plan := newPlan()
		for _, file := range files {
			procs := ResultOf(plan.Add(Open(CWD(), file, unix.O_WRONLY, 0)))
			for _, pid := range pids[:moved] {
				plan.Add(Pwrite(procs, []byte(strconv.Itoa(pid)), 0).Optional())
			}
		}
		plans = append(plans, plan)
	}
	return plans, moved
}

func (p *Prober) moved(r Report) {
	p.mu.Lock()
	defer p.unlock()
	c := &p.cgroups
	c.moving--
	for i := range r.Steps {
		if s := &r.Steps[i]; s.Errno != 0 && s.Errno != unix.ESRCH && len(c.files) > 0 {
			p.warnLocked("helpers that hang stay in this process's cgroups: %s: %v", s.Name, s.Errno)
			c.files, c.waiting = nil, nil
			return
		}
	}
	p.moveHelpersLocked()
}
