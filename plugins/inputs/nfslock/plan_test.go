package nfslock

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// planOf is the plan of the locks, with all of its steps.
func planOf(t *testing.T) *plan {
	n, _ := newInput(t)
	withTable(t, n, "50 1 0:47 / /srv rw - nfs nas:/export rw,vers=3,addr=192.0.2.1\n")
	n.refresh()
	target := n.targets[0]
	target.deadline, target.canary.create = time.Now().Add(time.Minute), true
	n.becomes = true
	return n.newLockPlan(target)
}

// The names are in users' databases: they are values of hangs_in and failed_call.
func TestPlan_NamesItsSteps(t *testing.T) {
	p := planOf(t)
	assert.Len(t, p.steps, len(p.Steps))
	var names []string
	for i, s := range p.Steps {
		if p.steps[i] != preparing {
			assert.Equal(t, steps[p.steps[i]].name, s.Name)
			names = append(names, s.Name)
		}
	}
	assert.Equal(t, []string{"open", "statx", "fstatfs", "openat", "fchmod", "readahead", "getlk", "setlk", "unlock", "close",
		"openat own", "flock_sh", "flock_un", "flock_ex", "flock_un ex", "close"}, slices.Compact(names), "steps that are one have one name")
}

func TestPlan_KnowsTheStageOfAHang(t *testing.T) {
	p := planOf(t)
	for i, what := range p.steps {
		assert.Equal(t, steps[what].stage, p.hangsAt(&prober.Report{HangsAt: i, HangsIn: "any"}))
	}
	assert.Equal(t, reaching, p.hangsAt(&prober.Report{HangsAt: len(p.Steps), HangsIn: "exit"}))
	for name, want := range map[string]stage{"statx": reaching, "examine": opening, "getlk": asking, "setlk": locking, "close": unlocking,
		"flock_ex": flocking, "getdents64": reaching, "": reaching} {
		assert.Equal(t, want, p.hangsAt(&prober.Report{HangsAt: -1, HangsIn: name}), "another plan's %q", name)
	}
}

func TestPlan_GoesOnAfterAModeThatCannotBeChanged(t *testing.T) {
	p := planOf(t)
	result := func(what step, errno unix.Errno) prober.StepResult {
		for i := range p.steps {
			if p.steps[i] == what {
				return prober.StepResult{Index: i, Errno: errno}
			}
		}
		panic(what)
	}
	r := &prober.Report{Steps: []prober.StepResult{result(changingMode, unix.EPERM), result(askingForLock, 0)}}
	assert.Nil(t, p.failed(r))
	r.Steps = append(r.Steps, result(settingLock, unix.ENOLCK))
	assert.Equal(t, unix.ENOLCK, p.failed(r).Errno)
}
