package prober_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// kindsOfChecks are plans for each way to a helper and back: answers in memory that is shared,
// in a slot alone, in parts by messages, and a request that is a message.
func kindsOfChecks() []*prober.Plan {
	parts := new(prober.Plan)
	parts.Add(prober.ReadAll(prober.ResultOf(parts.Add(prober.Open(prober.CWD(), "/proc/self/status", unix.O_RDONLY, 0))), 1<<16))
	large := statfs("/")
	large.Steps[0] = large.Steps[0].With(prober.Scratch(32 << 10))
	all := []*prober.Plan{statfs("/"), statfs("/"), parts, large}
	if prober.CanBecome() {
		all = append(all, statfsAs(4711, "/"), statfsAs(4712, "/"))
	}
	for _, plan := range all {
		plan.Timeout = time.Minute
	}
	return all
}

// checkAll makes n checks, some at once, and gives each report to look.
func checkAll(p *prober.Prober, n, atOnce int, look func(r prober.Report)) {
	var all sync.WaitGroup
	var begun atomic.Int64
	for worker := range atOnce {
		plans := kindsOfChecks() // a plan is compiled once
		all.Go(func() {
			for begun.Add(1) <= int64(n) {
				name := strconv.Itoa(worker)
				look(p.Run(prober.Check{Key: name, Group: name, Plan: plans[rand.IntN(len(plans))]}))
			}
		})
	}
	all.Wait()
}

// A wake-up that is lost costs a check its whole time, unless another one wakes the same end:
// one at a time shows each.
func TestProber_NoWakeUpIsLost(t *testing.T) {
	p := start(t, prober.Options{})
	for _, atOnce := range []int{1, 2, 8} {
		began := time.Now()
		checkAll(p, 3000, atOnce, func(r prober.Report) {
			if r.Outcome != prober.Done || r.Failed() != nil || r.Elapsed > 30*time.Second {
				assert.Fail(t, "a check was lost", "%v", &r)
			}
		})
		t.Logf("%d at once: %v", atOnce, time.Since(began))
	}
	assert.Zero(t, p.Stats().Running)
}

// Each check is reported once, whenever its server ends, and the next server has none of its
// slots left over.
func TestProber_NoCheckIsLostWithItsServer(t *testing.T) {
	p := start(t, prober.Options{})
	const kills = 4 // the pause before each further start is longer
	killed := make(chan bool)
	go func() {
		defer close(killed)
		for range kills {
			for forked := p.Stats().Forked; p.Stats().Forked == forked; {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			for _, pid := range children(t, os.Getpid()) {
				if comms(t)[pid] == "vfsprobe-server" {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
	}()
	var lost atomic.Int64
	for over := false; !over; {
		select {
		case <-killed:
			over = true
		default:
		}
		checkAll(p, 300, 8, func(r prober.Report) {
			switch r.Outcome {
			case prober.Done:
				assert.Nil(t, r.Failed(), "%v", &r)
			case prober.Unavailable:
				lost.Add(1)
				time.Sleep(time.Millisecond)
			default:
				assert.Fail(t, "a check was lost", "%v", &r)
			}
		})
	}
	eventually(t, "the last restart", func() bool { return p.Run(patient(check("/"))).Outcome == prober.Done })
	assert.Positive(t, p.Stats().ServerRestarts)
	t.Logf("%d checks were lost with their server", lost.Load())
	checkAll(p, 300, 8, func(r prober.Report) {
		assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	})
	assert.Zero(t, p.Stats().Running)
}
