package prober_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// outliving is a check of a FUSE file system as the product makes it, with a step more
// that a helper must not come to once its time is up.
func outliving(fs *faultfs.FS) prober.Check {
	c := check(fs.Dir)
	c.Plan.OutlivesServer = true
	c.Plan.Add(prober.Open(prober.CWD(), filepath.Join(fs.Dir, "later"), unix.O_RDONLY, 0))
	return c
}

// stateOf is the letter of proc_pid_stat(5), or 0 of a process that is gone.
func stateOf(pid int) byte {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, found := strings.Cut(string(content), ") ")
	if !found {
		return 0
	}
	return rest[0]
}

func TestProber_LeavesAHelperAsleepThatWaitsForFUSE(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	c := outliving(fs)
	c.Plan.Timeout = 4 * timeout
	report := p.Run(c)
	require.Equal(t, prober.Stuck, report.Outcome, "%v", &report)
	assert.Equal(t, prober.Asleep, report.Wait)
	assert.Equal(t, "statfs", report.HangsIn)
	assert.GreaterOrEqual(t, report.Elapsed, 2*timeout, "a helper that is started late has half of the time at least")
	assert.Equal(t, "S", string(stateOf(report.PID)), "it adds nothing to the load")
	stats := p.Stats()
	assert.Equal(t, []int64{0, 0, 1}, []int64{stats.Killed, stats.Stuck, stats.Asleep})

	busy := p.Run(patient(outliving(fs)))
	assert.Equal(t, prober.Busy, busy.Outcome)
	assert.Equal(t, prober.Asleep, busy.Wait)
	assert.Equal(t, report.PID, busy.PID)

	fs.Heal()
	fs.Silence(faultfs.Open, faultfs.Lookup)
	eventually(t, "it ends when it is answered, and makes no further step", func() bool { return p.Stats().Asleep == 0 })
	assert.Zero(t, fs.Unanswered())
	fs.Heal()
	eventually(t, "the key is free", func() bool { r := p.Run(check(fs.Dir)); return r.Outcome == prober.Done })
}

func TestProber_SaysHowAHelperWaitsThatSomeoneElseHasKilled(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	report := hangs(t, p, fs, outliving(fs))
	require.Equal(t, prober.Asleep, report.Wait, "%v", &report)
	require.NoError(t, unix.Kill(report.PID, unix.SIGKILL))
	eventually(t, "it waits for the daemon's answer", func() bool { return stateOf(report.PID) == 'D' })
	busy := p.Run(patient(outliving(fs)))
	assert.Equal(t, prober.Busy, busy.Outcome)
	assert.Equal(t, prober.Unkillable, busy.Wait)
	stats := p.Stats()
	assert.Equal(t, []int64{1, 0}, []int64{stats.Stuck, stats.Asleep})
}

func TestProber_LeavesNoHelperOfAnotherFileSystemAsleep(t *testing.T) {
	p := startGentle(t, prober.Options{})
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	plan := &prober.Plan{Timeout: 4 * timeout}
	plan.Add(prober.Open(prober.CWD(), fifo, unix.O_RDONLY, 0)) // sleeps until somebody writes
	report := p.Run(prober.Check{Key: fifo, Plan: plan})
	assert.Equal(t, prober.Expired, report.Outcome, "%v", &report)
	assert.Zero(t, p.Stats().Asleep)
}

// On a busy host the server may not be scheduled for a while when it is to kill a helper.
func TestProber_AHelperThatHasNotGotItsSignalIsNotStuck(t *testing.T) {
	p := startGentle(t, prober.Options{})
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	plan := &prober.Plan{}
	plan.Add(prober.Open(prober.CWD(), fifo, unix.O_RDONLY, 0)) // sleeps until somebody writes
	reports := make(chan prober.Report, 1)
	ticket := p.Submit(patient(prober.Check{Key: fifo, Plan: plan}), func(r prober.Report) { reports <- r })
	var helper int
	eventually(t, "a helper that sleeps", func() bool {
		r, _ := p.Progress(ticket)
		helper = r.PID
		return helper != 0 && stateOf(helper) == 'S' && prober.FunctionOf("/proc", helper) != ""
	})
	server := serverOf(t, os.Getpid())
	require.NoError(t, unix.Kill(server, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(server, unix.SIGCONT) })
	require.True(t, p.SetDeadline(ticket, time.Now()))
	report := <-reports
	assert.Equal(t, prober.Expired, report.Outcome, "%v", &report)
	assert.Equal(t, "S", string(stateOf(helper)), "the signal has not come")
	require.NoError(t, unix.Kill(server, unix.SIGCONT))
	eventually(t, "it ends", func() bool { return stateOf(helper) == 0 && p.Stats().Stuck == 0 })
}

// Neither the end of the fork server nor that of the plugin kills a helper that sleeps,
// and the next prober knows it.
func TestProber_KnowsHelpersThatAnEarlierOneHasLeftAsleep(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	report := hangs(t, p, fs, outliving(fs))
	require.Equal(t, prober.Asleep, report.Wait, "%v", &report)

	require.NoError(t, unix.Kill(serverOf(t, os.Getpid()), unix.SIGKILL))
	eventually(t, "another server", func() bool { return p.Stats().ServerRestarts == 1 && p.Run(patient(check("/"))).Outcome == prober.Done })
	busy := p.Run(patient(outliving(fs)))
	assert.Equal(t, prober.Busy, busy.Outcome, "%v", &busy)
	assert.Equal(t, prober.Asleep, busy.Wait)
	assert.Equal(t, report.PID, busy.PID)
	stats := p.Stats()
	assert.Equal(t, []int64{0, 1}, []int64{stats.Stuck, stats.Asleep})

	fs.Heal()
	fs.Silence(faultfs.Open, faultfs.Lookup)
	eventually(t, "it ends when it is answered", func() bool { return stateOf(report.PID) == 0 })
	assert.Zero(t, fs.Unanswered())
	fs.Heal()
	eventually(t, "the key is free", func() bool { return p.Run(check(fs.Dir)).Outcome == prober.Done })
	assert.Zero(t, p.Stats().Asleep)
}

// Twenty daemons fall silent at once, more than there are places for stuck helpers.
func TestProber_SilentDaemonsLeaveRoomForEverybody(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	const daemons = 20
	var all []*faultfs.FS
	for range daemons {
		all = append(all, faultfs.New(t))
	}
	of := func(fs *faultfs.FS) prober.Check {
		c := outliving(fs)
		c.Group, c.Plan.Timeout = fs.Dir, ample
		return c
	}
	gather := func() map[prober.Outcome]int {
		var wait sync.WaitGroup
		var mu sync.Mutex
		counts := make(map[prober.Outcome]int)
		for _, fs := range all {
			wait.Add(1)
			p.Submit(of(fs), func(r prober.Report) {
				mu.Lock()
				counts[r.Outcome]++
				mu.Unlock()
				wait.Done()
			})
		}
		wait.Wait()
		return counts
	}
	for _, fs := range all {
		fs.Silence()
	}
	assert.Equal(t, map[prober.Outcome]int{prober.Stuck: daemons}, gather())
	assert.Equal(t, map[prober.Outcome]int{prober.Busy: daemons}, gather())
	stats := p.Stats()
	assert.Equal(t, []int64{0, daemons}, []int64{stats.Stuck, stats.Asleep})
	for _, untrusted := range []string{"/", "/proc", "/dev"} {
		r := p.Run(patient(check(untrusted)))
		assert.Equal(t, prober.Done, r.Outcome, "%s: %v", untrusted, &r)
	}
	for _, fs := range all {
		fs.Heal()
	}
	eventually(t, "all end", func() bool { return p.Stats().Asleep == 0 })
}

func TestProber_HelpersAsleepBeyondTheirCapCountAsStuck(t *testing.T) {
	faultfs.Require(t)
	const maxAsleep, maxStuck = 4, 4
	p := startGentle(t, prober.Options{MaxAsleep: maxAsleep, MaxStuck: maxStuck})
	outcomes := make(map[prober.Outcome]int)
	var all []*faultfs.FS
	for range 2 * (maxAsleep + maxStuck) {
		fs := faultfs.New(t)
		fs.Silence()
		all = append(all, fs)
		c := outliving(fs)
		c.Group = fs.Dir
		outcomes[p.Run(c).Outcome]++
	}
	assert.LessOrEqual(t, outcomes[prober.Stuck], maxAsleep+maxStuck)
	assert.Greater(t, outcomes[prober.Stuck], maxAsleep)
	assert.EqualValues(t, outcomes[prober.Stuck], p.Stats().Asleep)
	assert.Positive(t, outcomes[prober.Capped])
	for _, fs := range all {
		fs.Heal()
	}
	eventually(t, "all end", func() bool { return p.Stats().Asleep == 0 })
}

// A helper that is answered may wait in another way in its next step: it is looked at
// again.
func TestProber_LooksAgainAtAHelperThatGoesOn(t *testing.T) {
	faultfs.Require(t)
	p := startGentle(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Delay(timeout/8, faultfs.Statfs)
	c := check(fs.Dir)
	c.Plan.Steps = append(c.Plan.Steps, c.Plan.Steps[0].Named("second"))
	c.Plan.Timeout = ample
	r := p.Run(c)
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	fs.Delay(time.Hour, faultfs.Statfs)
	r = p.Run(c)
	assert.Equal(t, prober.Asleep, r.Wait, "%v", &r)
	fs.Heal()
}
