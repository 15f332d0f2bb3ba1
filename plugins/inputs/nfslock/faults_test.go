package nfslock

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// daemon is a file system whose locks its daemon takes.
func daemon(t testing.TB) *faultfs.FS {
	t.Helper()
	faultfs.Require(t)
	return faultfs.NewWith(t, t.TempDir(), faultfs.Options{Locks: true, Name: ".nfslock-probe"})
}

// The seed of it all: everything works but the locks.
func TestProbe_ALockThatHangs(t *testing.T) {
	for _, c := range []struct {
		op    faultfs.Op
		call  string
		stage stage
	}{
		{faultfs.Statfs, "fstatfs", reaching},
		{faultfs.Open, "openat", opening},
		{faultfs.Getlk, "getlk", asking},
		{faultfs.Setlk, "setlk", locking},
	} {
		t.Run(c.call, func(t *testing.T) {
			hung, healthy := daemon(t), daemon(t)
			n, log := newInput(t, on(hung.Dir, healthy.Dir), within(slow, hung.Dir))
			gatherAllUntil(t, n, map[string]string{hung.Dir: "ok ok", healthy.Dir: "ok ok"})

			hung.Silence(c.op)
			// Of a FUSE daemon that has read the request; one who waits for it can't be killed.
			m := at(gatherAllUntil(t, n, map[string]string{hung.Dir: "stuck unknown", healthy.Dir: "ok ok"}), hung.Dir)
			assert.Equal(t, c.call, text(t, m, "hangs_in"))
			assert.NotEmpty(t, text(t, m, "waits_in"))
			assert.GreaterOrEqual(t, field(t, m, "hung_seconds"), timeout.Seconds()/2, "a check begins with its turn")
			assert.GreaterOrEqual(t, field(t, m, "fault_seconds"), timeout.Seconds()/2)
			pid := field(t, m, "stuck_pid")
			assert.Equal(t, c.stage >= locking, m.HasField("leftover"), "a lock may stay at the server")

			killed := n.host.Prober.Stats().Killed
			began := time.Now()
			m = at(gatherAllUntil(t, n, map[string]string{hung.Dir: "stuck unknown", healthy.Dir: "ok ok"}), hung.Dir)
			assert.Less(t, time.Since(began), 20*timeout, "it does not wait for the answer")
			assert.Equal(t, c.call, text(t, m, "hangs_in"))
			assert.Equal(t, pid, field(t, m, "stuck_pid"))
			assert.Equal(t, killed, n.host.Prober.Stats().Killed, "never a second one for a superblock")
			assert.Len(t, log.About("a lock hangs in "+c.call), 1, "said once")

			hung.Heal()
			m = gatherUntil(t, n, hung.Dir, "ok ok")
			assert.Equal(t, int64(1), field(t, m, "recoveries"))
			assert.Equal(t, 0.0, field(t, m, "hung_seconds"))
			assert.False(t, m.HasField("leftover"))
			assert.Len(t, log.About("locks work again"), 1)
		})
	}
}

// asNFS has the file system taken for NFS, whose helpers can be killed.
func asNFS(t *testing.T, n *NFSLock) {
	t.Helper()
	require.Eventually(t, func() bool { n.round++; n.refresh(); return len(n.targets) > 0 }, 30*time.Second, time.Millisecond, "a busy kernel is late with its table of mounts")
	for _, target := range n.targets {
		target.Probed.FSType = "nfs"
	}
}

// slow is a time in which mostly also a busy machine looks at helpers that hang before it is over.
const slow = 3 * timeout

// gatherUntilPatient gathers until the helpers of so many mounts are left waiting, which are those
// that were looked at in time, and all mounts have a verdict.
func gatherUntilPatient(t *testing.T, n *NFSLock, want string, helpers int) {
	t.Helper()
	verdicts := make(map[string]string)
	for _, target := range n.targets {
		verdicts[target.Probed.Mountpoint] = want
	}
	for began := time.Now(); ; {
		gatherAllUntil(t, n, verdicts)
		if n.patientProbes() >= helpers {
			return
		}
		require.Less(t, time.Since(began), time.Minute, "%d are left waiting", n.patientProbes())
	}
}

// As with an rpc.statd that does not answer: ENOLCK comes after 65 s.
func TestProbe_ALockThatHangsAndFailsInTheEnd(t *testing.T) {
	fs := daemon(t)
	n, log := newInput(t, on(fs.Dir), within(slow), func(n *NFSLock) {
		n.ExpectNFS = new(bool) // this host's own rpc.statd is not what it is about
	})
	asNFS(t, n)
	gatherUntil(t, n, fs.Dir, "ok ok")

	const late = slow * 7 / 2 // after both of the gathers that follow
	fs.FailLate(late, unix.ENOLCK, faultfs.Setlk)
	gatherUntilPatient(t, n, "timeout unknown", 1) // at its time
	before, found := n.host.Prober.Progress(n.targets[0].ticket)
	require.True(t, found)
	assert.Equal(t, "setlk", before.HangsIn)
	m := at(collect.Gather(t, n), fs.Dir)
	assert.Equal(t, "timeout unknown", verdict(t, m), "told again")
	assert.Equal(t, "setlk", text(t, m, "hangs_in"))
	assert.GreaterOrEqual(t, field(t, m, "hung_seconds"), timeout.Seconds()/2)
	now, found := n.host.Prober.Progress(n.targets[0].ticket)
	require.True(t, found)
	assert.Equal(t, before.PID, now.PID, "by the same helper")
	assert.Len(t, log.About("a lock hangs, setlk"), 1)

	require.Eventually(t, func() bool { return n.host.Prober.Stats().Running == 0 }, 30*time.Second, 5*time.Millisecond)
	m = at(collect.Gather(t, n), fs.Dir)
	assert.Equal(t, "error unknown", verdict(t, m), "refined")
	assert.Equal(t, "ENOLCK", text(t, m, "errno"))
	assert.GreaterOrEqual(t, field(t, m, "setlk_seconds"), late.Seconds())
	assert.Len(t, log.About("ENOLCK"), 1)

	m = at(collect.Gather(t, n), fs.Dir)
	assert.Equal(t, "error unknown", verdict(t, m), "the next one hangs as the last one did")
	assert.Equal(t, "ENOLCK", text(t, m, "errno"))
	assert.Len(t, log.About("W!"), 2)

	fs.Heal()
	n.host.Prober.SetDeadline(n.targets[0].ticket, time.Now()) // the daemon answers a request late for which it was told so
	gatherUntil(t, n, fs.Dir, "ok ok")
}

// What an interval shorter than the timeout makes of it.
func TestProbe_AnInterruptedGatherSaysNothingOfALockThatIsWaitedFor(t *testing.T) {
	fs := daemon(t)
	n, _ := newInput(t, on(fs.Dir), within(2*slow))
	asNFS(t, n)
	for _, before := range []string{"", "ok ok"} {
		fs.FailLate(time.Hour, unix.EIO, faultfs.Getlk)
		g, done := &collect.Metrics{}, make(chan error)
		go func() { done <- n.Gather(g) }()
		require.Eventually(t, func() bool {
			hangsIn := make(chan string, 1)
			n.mail.Post(func() {
				r, _ := n.host.Prober.Progress(n.targets[0].ticket)
				hangsIn <- r.HangsIn
			})
			return <-hangsIn == steps[askingForLock].name
		}, 10*time.Second, time.Millisecond)
		n.Interrupt()
		require.NoError(t, <-done)
		assert.Nil(t, at(g, fs.Dir), "it was %q", before)
		assert.Equal(t, "timeout unknown", verdictOfHang(t, at(collect.Gather(t, n), fs.Dir)))
		fs.Heal()
		n.host.Prober.SetDeadline(n.targets[0].ticket, time.Now())
		gatherUntil(t, n, fs.Dir, "ok ok")
	}
}

// Two tables of the input lock the same mount. The one whose helper is not left waiting
// leaves it alone, and tells the same hang.
func TestProbe_TwoInputsShareAHelperThatIsLeftWaiting(t *testing.T) {
	fs := daemon(t)
	first, _ := newInput(t, on(fs.Dir), within(slow))
	second, _ := newInput(t, on(fs.Dir), within(slow), func(n *NFSLock) {
		n.UseHost(host.New(host.Options{Roots: first.host.Roots, Prober: first.host.Prober, Log: n.Log, MountsPatience: collect.MountsPatience}))
		n.GraceTimeout = config.Duration(slow)
	})
	inputs := []*NFSLock{first, second}
	for _, n := range inputs {
		asNFS(t, n)
		gatherUntil(t, n, fs.Dir, "ok ok")
	}
	fs.FailLate(time.Hour, unix.EIO, faultfs.Getlk)
	gatherUntilPatient(t, first, "timeout unknown", 1)
	killed := first.host.Prober.Stats().Killed
	for range 2 {
		var all sync.WaitGroup
		for i, n := range inputs {
			all.Go(func() {
				m := at(collect.Gather(t, n), fs.Dir)
				assert.Equal(t, "timeout unknown", verdictOfHang(t, m), "input %d", i)
				assert.Equal(t, steps[askingForLock].name, text(t, m, "hangs_in"))
			})
		}
		all.Wait()
	}
	assert.Equal(t, killed, first.host.Prober.Stats().Killed, "it is left waiting still")
	assert.True(t, first.targets[0].patient)
	fs.Heal()
	assert.True(t, first.host.Prober.SetDeadline(first.targets[0].ticket, time.Now()))
	for _, n := range inputs {
		gatherUntil(t, n, fs.Dir, "ok ok")
	}
}

// A helper that waits for what can no longer be learned from it makes way.
func TestProbe_ALockThatHangsIsTriedAgainWhenTheChainIsMended(t *testing.T) {
	fs := daemon(t)
	n, _ := newInput(t, on(fs.Dir), within(slow))
	asNFS(t, n)
	n.targets[0].server = &lockServer{services: services{nfs: refused}}
	fs.FailLate(time.Hour, unix.EIO, faultfs.Getlk)
	gatherUntilPatient(t, n, "timeout server_unreachable", 1)
	killed := n.host.Prober.Stats().Killed

	n.targets[0].server.nfs = up
	fs.Fail(unix.EIO, faultfs.Getlk)
	gatherUntil(t, n, fs.Dir, "error unknown")
	assert.Equal(t, killed+1, n.host.Prober.Stats().Killed)
}

// Each helper that waits adds to the load.
func TestProbe_FewHelpersAreLeftWaiting(t *testing.T) {
	var paths []string
	for range maxPatient + 2 {
		fs := daemon(t)
		fs.FailLate(time.Hour, unix.ENOLCK, faultfs.Getlk)
		paths = append(paths, fs.Dir)
	}
	n, _ := newInput(t, on(paths...), within(slow))
	asNFS(t, n)
	gatherUntilPatient(t, n, "timeout unknown", maxPatient)
	for range 2 {
		killed := n.host.Prober.Stats().Killed
		gatherUntilPatient(t, n, "timeout unknown", maxPatient)
		assert.Equal(t, maxPatient, n.patientProbes())
		assert.GreaterOrEqual(t, n.host.Prober.Stats().Killed-killed, int64(2), "the others make way")
	}
}

func TestProbe_ALockThatFails(t *testing.T) {
	fs := daemon(t)
	n, log := newInput(t, on(fs.Dir))
	for errno, want := range map[unix.Errno]string{
		unix.ENOLCK: "error unknown", unix.EIO: "error unknown", unix.ESTALE: "stale stale_export", unix.EPERM: "denied denied",
		unix.EAGAIN: "error held_elsewhere", unix.EDQUOT: "error lock_limit",
	} {
		fs.Fail(errno, faultfs.Setlk)
		for range 2 {
			m := at(collect.Gather(t, n), fs.Dir)
			assert.Equal(t, want, verdict(t, m))
			assert.Equal(t, unix.ErrnoName(errno), text(t, m, "errno"))
			assert.Equal(t, 0.0, field(t, m, "hung_seconds"))
		}
		assert.Len(t, log.About("setlk: "+unix.ErrnoName(errno)), 1)
		fs.Heal()
		gatherUntil(t, n, fs.Dir, "ok ok")
	}
}

func TestProbe_ASlowLock(t *testing.T) {
	fs := daemon(t)
	n, _ := newInput(t, on(fs.Dir), func(n *NFSLock) { n.SlowThreshold = config.Duration(timeout / 5) })
	fs.Delay(time.Duration(n.SlowThreshold)*2, faultfs.Setlk)
	m := at(collect.Gather(t, n), fs.Dir)
	assert.Equal(t, "slow ok", verdict(t, m))
	assert.Greater(t, field(t, m, "setlk_seconds"), 2*time.Duration(n.SlowThreshold).Seconds())
}

// With the whole cap stuck the others are not probed, and that is said once.
func TestProbe_ManyHang(t *testing.T) {
	faultfs.Require(t)
	var all []*faultfs.FS
	var paths []string
	for range 20 {
		fs := daemon(t)
		all, paths = append(all, fs), append(paths, fs.Dir)
	}
	healthy := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Locks: true, Name: ".nfslock-probe", Source: "another"})
	n, log := newInput(t, on(append(paths, healthy.Dir)...), within(slow, paths...))
	assert.Equal(t, "ok ok", verdict(t, gather(t, n, healthy.Dir)))
	for _, fs := range all {
		fs.Silence(faultfs.Setlk)
	}
	began := time.Now()
	for hang := 0; hang < 2; {
		require.Less(t, time.Since(began), 30*time.Second)
		g := collect.Gather(t, n)
		verdicts := make(map[string]int)
		for _, m := range g.Named("nfslock") {
			verdicts[strings.Fields(verdict(t, m))[0]]++
		}
		assert.Equal(t, 1, verdicts["ok"])
		// A busy machine may end a helper before it waits.
		assert.Equal(t, 20, verdicts["stuck"]+verdicts["timeout"]+verdicts["unchecked"], verdicts)
		assert.LessOrEqual(t, verdicts["stuck"], 16)
		if verdicts["stuck"] > 0 {
			hang++
		}
	}
	assert.Len(t, log.About("are not probed"), 1)
}

func TestNFSLock_InterruptEndsAGather(t *testing.T) {
	hung, healthy := daemon(t), daemon(t)
	n, _ := newInput(t, on(hung.Dir, healthy.Dir), within(2*slow, hung.Dir))
	hung.Silence(faultfs.Setlk)
	g, done := &collect.Metrics{}, make(chan error)
	began := time.Now()
	go func() { done <- n.Gather(g) }()
	require.Eventually(t, func() bool { return hung.Unanswered() > 0 && at(g, healthy.Dir) != nil }, 10*time.Second, time.Millisecond)
	n.Interrupt()
	require.NoError(t, <-done)
	assert.Less(t, time.Since(began), 2*slow)
	assert.Nil(t, at(g, hung.Dir), "nothing is known yet")
	require.Eventually(t, func() bool { return n.host.Prober.Stats().Stuck > 0 }, 30*time.Second, 5*time.Millisecond)
	m := at(collect.Gather(t, n), hung.Dir)
	assert.Equal(t, "stuck unknown", verdict(t, m), "by the next one")
	assert.NotEmpty(t, text(t, m, "waits_in"), "where it waited was looked at in time")
}
