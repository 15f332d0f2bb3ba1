package prober_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/leaks"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// timeout is short for the sake of the tests: it is for what hangs. What answers is [patient], or has
// several of it. VFSPROBE_TEST_TIMEOUT is for a machine that is emulated, and for the race detector.
var timeout = func() time.Duration {
	if given, err := time.ParseDuration(os.Getenv("VFSPROBE_TEST_TIMEOUT")); err == nil {
		return given
	}
	return 500 * time.Millisecond
}()

// ample is for what hangs in a test that counts what hangs: in it a helper has come there on a busy machine.
const ample = 4 * time.Second

func statfs(path string) *prober.Plan {
	return &prober.Plan{Steps: []prober.Step{prober.Statfs(path)}, Timeout: timeout}
}

func check(path string) prober.Check {
	return prober.Check{Key: path, Group: "faultfs", Plan: statfs(path)}
}

// patient gives a check more time than any machine takes.
func patient(c prober.Check) prober.Check {
	c.Plan.Timeout = time.Minute
	return c
}

// hangs runs a check that fs does not answer. Its time is up once fs has the request: until then it
// may take long on a busy machine.
func hangs(t testing.TB, p *prober.Prober, fs *faultfs.FS, c prober.Check) prober.Report {
	t.Helper()
	reports := make(chan prober.Report, 1)
	before := fs.Unanswered()
	ticket := p.Submit(patient(c), func(r prober.Report) { reports <- r })
	eventually(t, "a helper that hangs", func() bool { return fs.Unanswered() > before })
	require.True(t, p.SetDeadline(ticket, time.Now()))
	return <-reports
}

// start makes a prober whose helpers get SIGKILL at their deadline wherever they wait:
// so FUSE makes them stuck.
func start(t testing.TB, options prober.Options) *prober.Prober {
	options.KillAsleep = true
	return startGentle(t, options)
}

// startGentle makes a prober which leaves helpers asleep.
func startGentle(t testing.TB, options prober.Options) *prober.Prober {
	options.Warnf = func(format string, args ...any) { t.Logf("W! "+format, args...) }
	p := prober.New(options)
	t.Cleanup(func() {
		p.Close()
		eventually(t, "the server ends", func() bool {
			for _, pid := range children(t, os.Getpid()) {
				if comms(t)[pid] == "vfsprobe-server" {
					return false
				}
			}
			return true
		})
	})
	return p
}

// eventually waits for what is going to happen, but not within a given time.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 5*time.Millisecond, what)
}

func TestProber_AHealthyFileSystemAnswers(t *testing.T) {
	p := start(t, prober.Options{})
	report := p.Run(patient(check("/")))
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	require.Nil(t, report.Failed())
	require.Len(t, report.Steps, 1)

	var want unix.Statfs_t
	require.NoError(t, unix.Statfs("/", &want))
	got := *(*unix.Statfs_t)(unsafe.Pointer(unsafe.SliceData(report.Steps[0].Output)))
	assert.Equal(t, want.Type, got.Type)
	assert.Equal(t, want.Blocks, got.Blocks)
	assert.Equal(t, want.Fsid, got.Fsid)
	assert.Positive(t, report.Steps[0].Elapsed)
	assert.Positive(t, report.PID)
	assert.EqualValues(t, 1, p.Stats().Forked)
	assert.Zero(t, p.Stats().Running)
}

func TestPlan_StepsUseEarlierResultsAndEndAtTheFirstFailure(t *testing.T) {
	p := start(t, prober.Options{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("content"), 0o600))
	report := p.Run(patient(prober.Check{Key: file, Plan: &prober.Plan{Steps: []prober.Step{
		prober.Unlink(prober.CWD(), file+".missing").Named("unlink").Optional(),
		prober.Open(prober.CWD(), file, unix.O_RDONLY, 0),
		prober.Read(prober.ResultOf(1), 16),
		prober.Pwrite(prober.ResultOf(1), []byte("x"), 0),
		prober.Close(prober.ResultOf(1)),
	}}}))
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	require.Len(t, report.Steps, 4, "the plan ends with the write, which fails")
	assert.Equal(t, unix.ENOENT, report.Steps[0].Errno)
	assert.EqualValues(t, 7, report.Steps[2].Result)
	assert.Equal(t, "content", string(report.Steps[2].Output))
	assert.Equal(t, unix.EBADF, report.Steps[3].Errno)
	assert.Equal(t, "unlink", report.Failed().Name)
}

// A memory that a former helper has used tells nothing about what is no file.
func TestPlan_OpensOnlyARegularFile(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	for name, put := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("content"), 0o600) },
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("file", path) },
		"missing":   func(string) error { return nil },
	} {
		require.NoError(t, put(filepath.Join(dir, name)))
	}
	for _, name := range []string{"file", "FIFO", "file", "directory", "file", "link", "file", "missing"} {
		plan := &prober.Plan{Timeout: time.Minute}
		open := func(flags int) prober.Step {
			return prober.Open(prober.CWD(), filepath.Join(dir, name), unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0).Optional()
		}
		plan.OpenRegular(open(unix.O_PATH), open(unix.O_RDONLY))
		report := p.Run(prober.Check{Key: name, Plan: plan})
		require.Equal(t, prober.Done, report.Outcome, "%v", &report)
		want := []unix.Errno{unix.EBADF}
		switch name {
		case "file":
			want = []unix.Errno{0}
		case "missing":
			want = []unix.Errno{unix.ENOENT, unix.EBADF, unix.EBADF} // neither found, nor looked at, nor opened
		}
		var got []unix.Errno
		for _, step := range report.Steps {
			got = append(got, step.Errno)
		}
		assert.Equal(t, want, got, name)
	}
}

// The kernel overwrites what it was asked about.
func TestPlan_ACallCanChangeItsInput(t *testing.T) {
	p := start(t, prober.Options{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 7, Len: 1}
	question := slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&lock)), unsafe.Sizeof(lock)))
	report := p.Run(patient(prober.Check{Key: file, Plan: &prober.Plan{Steps: []prober.Step{
		prober.Open(prober.CWD(), file, unix.O_RDWR, 0),
		prober.Call("getlk", unix.SYS_FCNTL, prober.ResultOf(0), prober.Value(unix.F_GETLK), prober.InOut(question)),
	}}}))
	require.Nil(t, report.Failed(), "%v", &report)
	answer := *(*unix.Flock_t)(unsafe.Pointer(unsafe.SliceData(report.Steps[1].Output)))
	assert.EqualValues(t, unix.F_UNLCK, answer.Type, "nobody holds it")
	assert.EqualValues(t, 7, answer.Start)
	assert.EqualValues(t, unix.F_WRLCK, (*unix.Flock_t)(unsafe.Pointer(unsafe.SliceData(question))).Type, "the plan stays as it was")
}

func TestProber_KnowsTheProgressOfAHelper(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	plan := &prober.Plan{Timeout: time.Minute}
	plan.Add(prober.Call("getpid", unix.SYS_GETPID))
	plan.Steps = append(plan.Steps, statfs(fs.Dir).Steps...)
	ticket := p.Submit(prober.Check{Key: fs.Dir, Plan: plan}, func(prober.Report) {})
	var report prober.Report
	eventually(t, "a helper in statfs", func() bool {
		var found bool
		report, found = p.Progress(ticket)
		return found && report.HangsIn == "statfs"
	})
	assert.Contains(t, children(t, serverOf(t, os.Getpid())), report.PID)
	require.Len(t, report.Steps, 1)
	assert.Equal(t, int64(report.PID), report.Steps[0].Result)
	assert.WithinDuration(t, time.Now(), report.Since, report.Elapsed+20*time.Second)
	fs.Heal()
	eventually(t, "no helper", func() bool { _, found := p.Progress(ticket); return !found })
	_, found := p.Progress(prober.Ticket{})
	assert.False(t, found)
}

func TestProber_GivesAHelperMoreTimeAndLess(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	assert.False(t, p.SetDeadline(prober.Ticket{}, time.Now()))
	reports := make(chan prober.Report, 1)
	var ticket prober.Ticket
	const its = 4 // timeouts
	submit := func() {
		fs.Pause()
		c := check(fs.Dir)
		c.Plan.Timeout = its * timeout
		ticket = p.Submit(c, func(r prober.Report) { reports <- r })
		eventually(t, "a helper", func() bool { return p.SetDeadline(ticket, time.Now().Add(time.Hour)) })
	}

	submit()
	time.Sleep((its + 1) * timeout)
	require.Empty(t, reports)
	fs.Heal()
	r := <-reports
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	assert.Greater(t, r.Elapsed, its*timeout)

	submit()
	assert.True(t, p.SetDeadline(ticket, time.Now()))
	r = <-reports
	assert.Equal(t, prober.Expired, r.Outcome, "%v", &r)
	assert.False(t, p.SetDeadline(ticket, time.Now()))
}

func TestProber_AHelperThatCannotBeKilledIsStuckUntilItsEnd(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	require.Equal(t, prober.Done, p.Run(patient(check(fs.Dir))).Outcome)

	fs.Silence()
	c := check(fs.Dir)
	c.Plan.Timeout = 4 * timeout
	report := p.Run(c)
	require.Equal(t, prober.Stuck, report.Outcome, "%v", &report)
	assert.Equal(t, "statfs", report.HangsIn)
	assert.GreaterOrEqual(t, report.Elapsed, 2*timeout, "a helper that is started late has half of the time at least")
	assert.EqualValues(t, 1, p.Stats().Stuck)

	forked := p.Stats().Forked
	busy := p.Run(check(fs.Dir))
	assert.Equal(t, prober.Busy, busy.Outcome)
	assert.Equal(t, report.PID, busy.PID)
	assert.Equal(t, report.Since, busy.Since)
	assert.Equal(t, forked, p.Stats().Forked, "nothing is forked for a key whose helper is stuck")
	assert.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)

	fs.Abort()
	eventually(t, "the end of a stuck helper is noticed without a check", func() bool { return p.Stats().Stuck == 0 })
	gone := p.Run(patient(check(fs.Dir)))
	require.Equal(t, prober.Done, gone.Outcome)
	assert.Equal(t, unix.ENOTCONN, gone.Failed().Errno)
}

func TestProber_AHelperThatCanBeKilledExpires(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	c := check(fs.Dir)
	c.Plan.Timeout = 4 * timeout
	report := p.Run(c)
	require.Equal(t, prober.Expired, report.Outcome, "%v", &report)
	assert.Equal(t, "statfs", report.HangsIn)
	eventually(t, "its end", func() bool { return p.Stats().Stuck == 0 })

	fs.Heal()
	assert.Equal(t, prober.Done, p.Run(patient(check(fs.Dir))).Outcome)
}

func TestProber_ASlowAnswerInTimeIsAnAnswer(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Delay(timeout/2, faultfs.Statfs)
	report := p.Run(patient(check(fs.Dir)))
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	assert.GreaterOrEqual(t, report.Steps[0].Elapsed, timeout/2)
}

func TestProber_TheSecondCheckOfAKeyWaitsForTheFirst(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Delay(timeout/5, faultfs.Statfs)
	reports := make(chan prober.Report, 2)
	for range 2 {
		c := check(fs.Dir)
		c.Plan.Timeout = 10 * timeout // half of which the second one waits at most
		p.Submit(c, func(r prober.Report) { reports <- r })
	}
	assert.LessOrEqual(t, p.Stats().Running, int64(1))
	for range 2 {
		report := <-reports
		assert.Equal(t, prober.Done, report.Outcome, "%v", &report)
	}
}

// submitTwice submits a check of each file system, and then one more of each: as two
// inputs do which check the same mounts.
func submitTwice(p *prober.Prober, all []*faultfs.FS, change func(second bool, c *prober.Check)) (first, second map[string]prober.Report) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	results := [2]map[string]prober.Report{make(map[string]prober.Report), make(map[string]prober.Report)}
	for i := range results {
		for _, fs := range all {
			c := check(fs.Dir)
			c.Plan.Timeout = max(timeout, time.Second)
			change(i == 1, &c)
			wait.Add(1)
			p.Submit(c, func(r prober.Report) {
				mu.Lock()
				defer mu.Unlock()
				results[i][fs.Dir] = r
				wait.Done()
			})
		}
	}
	wait.Wait()
	return results[0], results[1]
}

// A check whose key is under way keeps no other one waiting, and tells the same hang.
func TestProber_TwoInputsCheckTheSameMounts(t *testing.T) {
	faultfs.Require(t)
	stat := prober.Statx(prober.CWD(), "/", 0, unix.STATX_TYPE).WithoutOutput()
	for name, c := range map[string]struct {
		hang   func(*faultfs.FS)
		change func(second bool, c *prober.Check)
		stuck  bool
		more   int // that hang
	}{
		"unkillable": {
			hang:   func(fs *faultfs.FS) { fs.Silence() },
			change: func(bool, *prober.Check) {},
			stuck:  true,
		},
		"unkillable, and half of what the group may have": {
			hang:   func(fs *faultfs.FS) { fs.Silence() },
			change: func(bool, *prober.Check) {},
			stuck:  true,
			more:   2,
		},
		"killable": {
			hang:   (*faultfs.FS).Pause,
			change: func(bool, *prober.Check) {},
		},
		"killable, and a plan that says so": {
			hang:   (*faultfs.FS).Pause,
			change: func(_ bool, c *prober.Check) { c.Plan.Killable = true },
		},
		"plans that differ": {
			hang: (*faultfs.FS).Pause,
			change: func(second bool, c *prober.Check) {
				if second {
					c.Plan.Steps = append([]prober.Step{stat}, c.Plan.Steps...)
				}
			},
		},
		"the second is more patient": {
			hang: (*faultfs.FS).Pause,
			change: func(second bool, c *prober.Check) {
				if second {
					c.Plan.Timeout *= 3
				}
			},
		},
		"the first is more patient": {
			hang: (*faultfs.FS).Pause,
			change: func(second bool, c *prober.Check) {
				if !second {
					c.Plan.Timeout *= 3
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, prober.Options{})
			var all []*faultfs.FS
			for range 5 + c.more {
				all = append(all, faultfs.New(t))
			}
			hung := all[:1+c.more]
			for _, fs := range hung {
				c.hang(fs)
			}
			// On a busy machine it takes a killed helper a while to end.
			hangs := []prober.Outcome{prober.Expired, prober.Stuck, prober.Busy}
			if c.stuck {
				hangs = hangs[1:]
			}
			for range 2 {
				first, second := submitTwice(p, all, c.change)
				for _, fs := range all[len(hung):] {
					a, b := first[fs.Dir], second[fs.Dir]
					assert.Equal(t, prober.Done, a.Outcome, "%v", &a)
					assert.Equal(t, prober.Done, b.Outcome, "%v", &b)
				}
				for _, fs := range hung {
					for _, r := range []prober.Report{first[fs.Dir], second[fs.Dir]} {
						assert.Contains(t, hangs, r.Outcome, "%v", &r)
						assert.Equal(t, "statfs", r.HangsIn)
						assert.Positive(t, r.PID)
						assert.False(t, r.Since.IsZero())
					}
				}
			}
			for _, fs := range hung {
				fs.Heal()
			}
			eventually(t, "it answers both again", func() bool {
				a, b := submitTwice(p, all[:1], c.change)
				return a[all[0].Dir].Outcome == prober.Done && b[all[0].Dir].Outcome == prober.Done
			})
		})
	}
}

// One that answers late does so to all who ask the same, and no more is known of what
// another asks.
func TestProber_SharesASlowAnswer(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	const share = 0.6
	fs.Delay(time.Duration(share*float64(ample)), faultfs.Statfs)
	same := func(_ bool, c *prober.Check) { c.Plan.Timeout = ample }
	forked := p.Stats().Forked
	first, second := submitTwice(p, []*faultfs.FS{fs}, same)
	assert.Equal(t, prober.Done, first[fs.Dir].Outcome)
	assert.Equal(t, first[fs.Dir], second[fs.Dir])
	assert.EqualValues(t, 1, p.Stats().Forked-forked)

	first, second = submitTwice(p, []*faultfs.FS{fs}, func(second bool, c *prober.Check) {
		c.Plan.Timeout = ample
		if second {
			c.Plan.Steps[0] = c.Plan.Steps[0].Named("another").Optional()
		}
	})
	assert.Equal(t, prober.Done, first[fs.Dir].Outcome)
	r := second[fs.Dir]
	assert.Equal(t, prober.Capped, r.Outcome, "%v", &r)
	assert.ErrorContains(t, r.Err, "another check of it")
}

// Who hangs where another does not even look is not known to hang.
func TestProber_SharesNoHangOfAnotherPlan(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	_, second := submitTwice(p, []*faultfs.FS{fs}, func(second bool, c *prober.Check) {
		if second {
			c.Plan = &prober.Plan{Timeout: timeout, Steps: []prober.Step{getuid()}}
		}
	})
	r := second[fs.Dir]
	assert.Equal(t, prober.Capped, r.Outcome, "%v", &r)
	assert.ErrorContains(t, r.Err, "statfs")
}

func TestProber_TheDeadlineOfAnotherCheckStays(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	reports := make(chan prober.Report, 2)
	first := p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	eventually(t, "a helper", func() bool { r, _ := p.Progress(first); return r.PID != 0 })
	second := p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	ahead, found := p.Progress(second)
	require.True(t, found, "where its key's helper is")
	own, _ := p.Progress(first)
	assert.Equal(t, own.PID, ahead.PID)
	assert.False(t, p.SetDeadline(second, time.Now()))
	assert.True(t, p.SetDeadline(first, time.Now().Add(time.Hour)))
	fs.Heal()
	for range 2 {
		r := <-reports
		assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	}
	_, found = p.Progress(second)
	assert.False(t, found)
}

// The plugin's first metrics don't wait for a server that they don't need.
func TestProber_StartsItsServerWhenItIsNeeded(t *testing.T) {
	servers := func() (n int) {
		for _, pid := range children(t, os.Getpid()) {
			if comms(t)[pid] == "vfsprobe-server" {
				n++
			}
		}
		return n
	}
	p := start(t, prober.Options{})
	before := servers()
	p.Start()
	p.Start()
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	assert.Equal(t, 1, servers()-before, "one for both, and for the check")
	p.Start()
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	assert.Equal(t, 1, servers()-before)
}

// Neither a helper that its server takes along, nor the restart, makes a fault of it.
func TestProber_ChecksThatWaitForAHelperGoOnAfterTheServersEnd(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	reports := make(chan prober.Report, 1)
	first := p.Submit(patient(check(fs.Dir)), func(prober.Report) {})
	eventually(t, "a helper", func() bool { r, _ := p.Progress(first); return r.PID != 0 })
	p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	require.NoError(t, unix.Kill(serverOf(t, os.Getpid()), unix.SIGKILL))
	eventually(t, "another server", func() bool { return p.Stats().ServerRestarts == 1 && p.Run(patient(check("/"))).Outcome == prober.Done })
	fs.Heal()
	r := <-reports
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
}

// hungMounts makes n mounts of one silent daemon and a healthy one of the same
// kind and another source.
func hungMounts(t *testing.T, n int) (hung []*faultfs.FS, healthy *faultfs.FS) {
	root := t.TempDir()
	for i := range n {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(dir, 0o700))
		fs := faultfs.NewAt(t, dir, "dead")
		fs.Silence()
		hung = append(hung, fs)
	}
	return hung, faultfs.NewAt(t, t.TempDir(), "alive")
}

func TestProber_TheCapHoldsAndLeavesRoomForOthers(t *testing.T) {
	faultfs.Require(t)
	const n, limit = 200, 16
	p := start(t, prober.Options{MaxStuck: limit})
	hung, healthy := hungMounts(t, n)
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)

	for round := range 6 {
		var all sync.WaitGroup
		outcomes := make([]prober.Report, n+2)
		began := time.Now()
		for i, fs := range hung {
			all.Add(1)
			c := check(fs.Dir)
			c.Group = "dead"
			p.Submit(c, func(r prober.Report) { outcomes[i] = r; all.Done() })
		}
		for i, dir := range []string{healthy.Dir, "/"} {
			all.Add(1)
			c := check(dir)
			c.Group, c.Trusted = dir, round > 0
			c.Plan.Timeout = 4 * timeout // a busy machine may take long to fork so many
			p.Submit(c, func(r prober.Report) { outcomes[n+i] = r; all.Done() })
		}
		all.Wait()
		elapsed := time.Since(began)
		counts := map[prober.Outcome]int{}
		for _, r := range outcomes {
			counts[r.Outcome]++
		}
		t.Logf("round %d: %v in %v, %d stuck", round, counts, elapsed, p.Stats().Stuck)
		require.Equal(t, 2, counts[prober.Done], "healthy file systems answer whatever the others do")
		assert.Less(t, outcomes[n].Steps[0].Elapsed, 4*timeout)
		assert.LessOrEqual(t, p.Stats().Stuck, int64(limit))
		assert.LessOrEqual(t, len(children(t, serverOf(t, os.Getpid()))), limit)
	}
	for _, fs := range hung {
		fs.Abort()
	}
	eventually(t, "all helpers end", func() bool { return p.Stats().Stuck == 0 })
	for _, fs := range hung {
		report := p.Run(patient(check(fs.Dir)))
		require.Equal(t, prober.Done, report.Outcome, "%v", &report)
		require.Equal(t, unix.ENOTCONN, report.Failed().Errno)
	}
}

// round checks all paths side by side, each trusted, as of the group.
func round(p *prober.Prober, groups map[string][]string) map[string]map[prober.Outcome]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	outcomes := make(map[string]map[prober.Outcome]int)
	for group := range groups {
		outcomes[group] = make(map[prober.Outcome]int)
	}
	for group, paths := range groups {
		for _, path := range paths {
			all.Add(1)
			c := check(path)
			c.Group, c.Trusted = group, true
			c.Plan.Timeout = 3 * timeout
			p.Submit(c, func(r prober.Report) {
				mu.Lock()
				defer mu.Unlock()
				outcomes[group][r.Outcome]++
				all.Done()
			})
		}
	}
	all.Wait()
	return outcomes
}

func directories(all []*faultfs.FS) (paths []string) {
	for _, fs := range all {
		paths = append(paths, fs.Dir)
	}
	return paths
}

func TestProber_TwoDeadDaemonsLeaveRoomForAThird(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	first, alive := hungMounts(t, 20)
	second, _ := hungMounts(t, 20)
	groups := map[string][]string{"first": directories(first), "second": directories(second), "third": {alive.Dir}}
	for range 4 {
		round(p, groups)
	}
	last := round(p, groups)
	assert.Equal(t, map[prober.Outcome]int{prober.Done: 1}, last["third"])
	assert.Equal(t, 12, last["first"][prober.Busy]+last["second"][prober.Busy], "%v", last)
}

func TestProber_ChecksTheHealthyMountsOfADaemonWhileSomeHang(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	all, _ := hungMounts(t, 30)
	for _, fs := range all[5:] {
		fs.Heal()
	}
	groups := map[string][]string{"one": directories(all)}
	round(p, groups)
	assert.Equal(t, map[prober.Outcome]int{prober.Busy: 5, prober.Done: 25}, round(p, groups)["one"])
}

// Forty daemons fall silent at one time, each alone and all of them trusted.
func TestProber_ManyDeadDaemonsLeaveRoomForIndependentKeys(t *testing.T) {
	faultfs.Require(t)
	for _, limit := range []int{8, 16} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) { outnumber(t, 40, limit) })
	}
}

// outnumber has n daemons fall silent where fewer helpers may hang. One is kept.
func outnumber(t *testing.T, n, limit int) {
	p := start(t, prober.Options{MaxStuck: limit})
	hung, _ := hungMounts(t, n)
	for range 4 {
		var all sync.WaitGroup
		for _, fs := range hung {
			all.Add(1)
			c := check(fs.Dir)
			c.Group, c.Trusted = fs.Dir, true
			p.Submit(c, func(prober.Report) { all.Done() })
		}
		all.Add(20)
		for i := range 20 {
			c := check("/")
			c.Key, c.Group, c.Trusted, c.Independent = strconv.Itoa(i), "/", true, true
			c.Plan.Timeout *= 4 // a busy machine may take long to fork so many
			p.Submit(c, func(r prober.Report) {
				assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
				all.Done()
			})
		}
		all.Wait()
		assert.LessOrEqual(t, p.Stats().Stuck, int64(limit-1))
	}
	assert.EqualValues(t, limit-1, p.Stats().Stuck, "the others use up what is theirs")
}

func comms(t testing.TB) map[int]string {
	found := make(map[int]string)
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
			found[pid] = strings.TrimSpace(string(comm))
		}
	}
	return found
}

// alive says whether a process is there and not a zombie.
func alive(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, found := strings.Cut(string(stat), ") ")
	return found && rest[0] != 'Z'
}

func children(t testing.TB, ppid int) []int {
	var pids []int
	for pid := range comms(t) {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(ppid) && fields[0] != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func serverOf(t testing.TB, ppid int) int {
	var server int
	eventually(t, "a fork server", func() bool {
		for _, pid := range children(t, ppid) {
			if comms(t)[pid] == "vfsprobe-server" {
				server = pid
				return true
			}
		}
		return false
	})
	return server
}

func TestProber_RestartsTheServerAndNothingBlocks(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	paused := faultfs.New(t)
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	fs.Silence()
	paused.Pause()
	reports := make(chan prober.Report, 2)
	for _, dir := range []string{fs.Dir, paused.Dir} {
		p.Submit(patient(check(dir)), func(r prober.Report) { reports <- r })
	}
	eventually(t, "two helpers hang", func() bool {
		return fs.Unanswered() == 1 && len(children(t, serverOf(t, os.Getpid()))) == 2
	})
	require.NoError(t, unix.Kill(serverOf(t, os.Getpid()), unix.SIGKILL))
	for range 2 {
		report := <-reports
		assert.Equal(t, prober.Unavailable, report.Outcome, "%v", &report)
	}
	again := p.Run(patient(check("/")))
	assert.Equal(t, prober.Done, again.Outcome, "%v", &again)
	assert.EqualValues(t, 1, p.Stats().ServerRestarts)

	// The helper that survived its server is known to the next one.
	report := p.Run(patient(check(fs.Dir)))
	assert.Equal(t, prober.Busy, report.Outcome, "%v", &report)
	eventually(t, "the one that could be killed is gone", func() bool { return p.Stats().Stuck == 1 })
	fs.Heal()
	eventually(t, "the key is free", func() bool { return p.Run(check(fs.Dir)).Outcome == prober.Done })
}

func TestProber_ReplacesAStoppedServer(t *testing.T) {
	p := start(t, prober.Options{})
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	require.NoError(t, unix.Kill(serverOf(t, os.Getpid()), unix.SIGSTOP))
	report := p.Run(check("/"))
	assert.Equal(t, prober.Unavailable, report.Outcome, "%v", &report)
	eventually(t, "another server", func() bool { return p.Run(check("/")).Outcome == prober.Done })
	assert.EqualValues(t, 1, p.Stats().ServerRestarts)
}

// One that is thawed, or scheduled at last, goes on with the helpers it has.
func TestProber_KeepsAServerThatAnswersLate(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence()
	reports := make(chan prober.Report, 1)
	hanging := check(fs.Dir)
	hanging.Plan.Timeout = time.Minute
	p.Submit(hanging, func(r prober.Report) { reports <- r })
	eventually(t, "a helper", func() bool { return fs.Unanswered() > 0 })

	server := serverOf(t, os.Getpid())
	require.NoError(t, unix.Kill(server, unix.SIGSTOP))
	late := p.Run(check("/"))
	assert.Equal(t, prober.Unavailable, late.Outcome, "%v", &late)
	assert.ErrorContains(t, late.Err, "has not confirmed a helper")
	require.NoError(t, unix.Kill(server, unix.SIGCONT))
	eventually(t, "checks again", func() bool { return p.Run(check("/")).Outcome == prober.Done })
	assert.Zero(t, p.Stats().ServerRestarts)
	fs.Heal()
	r := <-reports
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
}

func TestProber_AHelperKilledByAnotherDied(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	reports := make(chan prober.Report, 1)
	p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	server := serverOf(t, os.Getpid())
	eventually(t, "a helper", func() bool { return len(children(t, server)) == 1 })
	require.NoError(t, unix.Kill(children(t, server)[0], unix.SIGKILL))
	report := <-reports
	assert.Equal(t, prober.Died, report.Outcome, "%v", &report)
	assert.Equal(t, syscall.SIGKILL, report.Signal)
}

func owner(path string) *prober.Plan {
	plan := &prober.Plan{Timeout: timeout}
	plan.BecomeOwner(plan.Add(prober.Statx(prober.CWD(), path, 0, unix.STATX_UID|unix.STATX_GID)))
	return plan
}

func user(uid, gid uint32, groups ...uint32) *prober.Plan {
	plan := &prober.Plan{Timeout: timeout}
	plan.Become(uid, gid, groups...)
	return plan
}

func getuid() prober.Step { return prober.Call("getuid", unix.SYS_GETUID) }

func TestProber_IdentityOfHelpers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing the user takes root")
	}
	p := start(t, prober.Options{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Chown(file, 4711, 4712))
	shadow := prober.Open(prober.CWD(), "/etc/shadow", unix.O_RDONLY, 0)

	for name, plan := range map[string]*prober.Plan{
		"the owner of a path": owner(file),
		"a given user":        user(4711, 4712, 4713),
	} {
		t.Run(name, func(t *testing.T) {
			plan.Add(getuid())
			plan.Add(prober.Call("getgid", unix.SYS_GETGID))
			plan.Add(shadow)
			report := p.Run(patient(prober.Check{Key: name, Plan: plan}))
			require.Equal(t, prober.Done, report.Outcome, "%v", &report)
			require.NoError(t, report.Err)
			steps := report.Steps[len(report.Steps)-3:]
			assert.EqualValues(t, 4711, steps[0].Result)
			assert.EqualValues(t, 4712, steps[1].Result)
			assert.Equal(t, unix.EACCES, steps[2].Errno, "capabilities are dropped")
			for _, step := range report.Steps {
				assert.NotContains(t, step.Name, "set", "silent steps are not reported")
			}
		})
	}

	report := p.Run(patient(prober.Check{Key: "missing", Plan: owner(file + ".missing")}))
	require.Len(t, report.Steps, 1)
	assert.Equal(t, unix.ENOENT, report.Steps[0].Errno)

	twice := user(4711, 4711)
	twice.Become(0, 0)
	report = p.Run(patient(prober.Check{Key: "twice", Plan: twice}))
	require.Len(t, report.Steps, 1, "a silent step is reported if it fails")
	assert.Equal(t, "setgroups", report.Steps[0].Name)
	assert.Equal(t, unix.EPERM, report.Failed().Errno)
}

func TestProber_LookingUpAnOwnerCanHang(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Silence(faultfs.Getattr)
	report := hangs(t, p, fs, prober.Check{Key: fs.Dir, Plan: owner(fs.Dir)})
	assert.Equal(t, prober.Stuck, report.Outcome, "%v", &report)
	assert.Equal(t, "statx", report.HangsIn)
}

// forEverybody mounts where other users can go: t.TempDir is below a directory for
// root alone.
func forEverybody(t *testing.T) *faultfs.FS {
	dir, err := os.MkdirTemp("", "faultfs")
	require.NoError(t, err)
	t.Cleanup(func() { os.Remove(dir) })
	return faultfs.NewAt(t, dir, "faultfs")
}

func TestProber_AHelperOfAnotherUserDiesWithItsServer(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	p := start(t, prober.Options{})
	fs := forEverybody(t)
	fs.Pause()
	plan := user(4711, 4711)
	plan.Steps = append(plan.Steps, statfs(fs.Dir).Steps...)
	reports := make(chan prober.Report, 1)
	p.Submit(patient(prober.Check{Key: fs.Dir, Plan: plan}), func(r prober.Report) { reports <- r })
	server := serverOf(t, os.Getpid())
	var helper int
	eventually(t, "a helper under its identity", func() bool {
		for _, pid := range children(t, server) {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if strings.Contains(string(status), "Uid:\t4711\t4711\t4711\t4711") {
				helper = pid
			}
		}
		return helper != 0
	})
	require.NoError(t, unix.Kill(server, unix.SIGKILL))
	<-reports
	eventually(t, "the helper's end", func() bool { return !alive(helper) })
}

func TestProber_EntersAMountNamespace(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	other := exec.Command("sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	require.NoError(t, other.Start())
	t.Cleanup(func() { _, _ = other.Process.Kill(), other.Wait() })
	fs := faultfs.New(t) // a mount of this test's own namespace
	stat := prober.Statx(prober.CWD(), filepath.Join(fs.Dir, faultfs.FileName), 0, unix.STATX_TYPE).WithoutOutput()
	here := p.Run(patient(prober.Check{Key: "here", Plan: &prober.Plan{Steps: []prober.Step{stat}}}))
	require.Equal(t, prober.Done, here.Outcome, "%v", &here)
	require.Nil(t, here.Failed())

	there := &prober.Plan{Timeout: time.Minute}
	there.EnterMountNS(fmt.Sprintf("/proc/%d/ns/mnt", other.Process.Pid))
	there.Add(stat)
	report := p.Run(prober.Check{Key: "there", Plan: there})
	require.NoError(t, report.Err)
	require.NotNil(t, report.Failed(), "%v", &report)
	assert.Equal(t, unix.ENOENT, report.Failed().Errno)
}

func TestProber_HelpersInheritNothing(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	reports := make(chan prober.Report, 1)
	p.Submit(patient(check(fs.Dir)), func(r prober.Report) { reports <- r })
	var server int // one of an earlier prober may be about to end
	eventually(t, "a helper", func() bool { server = serverOf(t, os.Getpid()); return len(children(t, server)) == 1 })
	helper := children(t, server)[0]
	dir := fmt.Sprintf("/proc/%d/", helper)
	kept := 5
	if target, err := os.Readlink(dir + "fd/4"); err == nil && target == "/proc/sys/fs/suid_dumpable" {
		kept++
	}
	eventually(t, "it has what the server keeps", func() bool {
		fds, err := os.ReadDir(dir + "fd")
		return err == nil && len(fds) == kept
	})
	for fd := range 3 {
		target, err := os.Readlink(dir + "fd/" + strconv.Itoa(fd))
		require.NoError(t, err)
		assert.Equal(t, "/dev/null", target)
	}
	cwd, err := os.Readlink(dir + "cwd")
	require.NoError(t, err)
	assert.Equal(t, "/", cwd)
	status, err := os.ReadFile(dir + "status")
	require.NoError(t, err)
	assert.Contains(t, string(status), "NoNewPrivs:\t1")
	assert.Contains(t, string(status), "Seccomp:\t2")
	assert.Contains(t, string(status), "Threads:\t1")
	limits, err := os.ReadFile(dir + "limits")
	require.NoError(t, err)
	assert.Regexp(t, `Max core file size\s+0`, string(limits))
	fs.Heal()
	<-reports
}

// sharesMemory asks the kernel (kcmp(2)) whether two processes have the same
// memory.
func sharesMemory(t *testing.T, a, b int) bool {
	t.Helper()
	const kcmpVM = 1 // linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	if errno == unix.ENOSYS {
		t.Skip("a kernel without kcmp")
	}
	require.Zero(t, errno)
	return order == 0
}

// writableByOthers returns how many bytes a process can write to that others can see.
func writableByOthers(t *testing.T, pid int) (shared uintptr) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(maps)) {
		var start, end uintptr
		var mode string
		_, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &mode)
		require.NoError(t, err)
		if mode == "rw-s" {
			shared += end - start
		}
	}
	return shared
}

func TestProber_HelpersShareTheServersMemoryButThoseOfMuch(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	p := start(t, prober.Options{})
	fs := forEverybody(t)
	large := statfs(fs.Dir)
	large.Steps[0] = large.Steps[0].With(prober.Scratch(32 << 10))
	for name, c := range map[string]struct {
		plan   *prober.Plan
		shares bool
	}{
		"itself":           {statfs(fs.Dir), true},
		"another user":     {statfsAs(4711, fs.Dir), true},
		"its own user too": {statfsAs(0, fs.Dir), true},
		"much memory":      {large, false},
	} {
		t.Run(name, func(t *testing.T) {
			fs.Pause()
			reports := make(chan prober.Report, 1)
			p.Submit(patient(prober.Check{Key: name, Plan: c.plan}), func(r prober.Report) { reports <- r })
			server := serverOf(t, os.Getpid())
			eventually(t, "a helper", func() bool { return len(children(t, server)) == 1 })
			helper := children(t, server)[0]
			shares := forkserver.Sharing && c.shares
			assert.Equal(t, shares, sharesMemory(t, server, helper))
			if shared := writableByOthers(t, helper); shares {
				assert.GreaterOrEqual(t, shared, uintptr(forkserver.SharedSlots*16<<10), "what the prober has, too")
			} else {
				assert.Zero(t, shared)
			}
			fs.Heal()
			r := <-reports
			assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
			eventually(t, "its end", func() bool { return len(children(t, server)) == 0 })
		})
	}
}

// With as many helpers as can share memory, further ones get their own.
func TestProber_AThousandHelpersWait(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	fs.Pause()
	const n = 1024
	outcomes := make(chan prober.Outcome, n+1)
	for i := range n {
		plan := statfs(fs.Dir)
		plan.Timeout, plan.Killable = time.Hour, true
		p.Submit(prober.Check{Key: strconv.Itoa(i), Plan: plan}, func(r prober.Report) { outcomes <- r.Outcome })
	}
	eventually(t, "all are there", func() bool { return p.Stats().Running == n })
	server := serverOf(t, os.Getpid())
	eventually(t, "all are forked", func() bool { return len(children(t, server)) == n })
	plan := statfs(fs.Dir)
	plan.Timeout = time.Hour
	more := p.Submit(prober.Check{Key: "one more", Plan: plan}, func(r prober.Report) { outcomes <- r.Outcome })
	var last prober.Report
	eventually(t, "and one more", func() bool { last, _ = p.Progress(more); return last.PID != 0 })
	assert.False(t, sharesMemory(t, server, last.PID))
	report := p.Run(patient(check("/")))
	assert.Equal(t, prober.Done, report.Outcome, "%v", &report)
	fs.Heal()
	for range n + 1 {
		assert.Equal(t, prober.Done, <-outcomes)
	}
	report = p.Run(patient(check("/")))
	assert.Equal(t, prober.Done, report.Outcome, "%v", &report)
	assert.Zero(t, p.Stats().ServerRestarts)
}

// statfsAs asks as another user, who need not be able to reach the path.
func statfsAs(uid uint32, path string) *prober.Plan {
	plan := &prober.Plan{Timeout: timeout}
	reach(plan, path, func() { plan.Become(uid, uid) })
	return plan
}

// reach opens the path by O_PATH, and asks fstatfs after what is between.
func reach(plan *prober.Plan, path string, between ...func()) {
	root := plan.Add(prober.OpenPath(prober.CWD(), path, 0))
	for _, do := range between {
		do()
	}
	plan.Add(prober.Fstatfs(prober.ResultOf(root)))
}

// The plugin which is killed with five stuck helpers is this test again, in a
// process of its own.
func TestProber_TheSuccessorCountsStuckHelpers(t *testing.T) {
	faultfs.Require(t)
	const n = 5
	if dirs := os.Getenv("PROBER_TEST_STUCK"); dirs != "" {
		p := prober.New(prober.Options{KillAsleep: true})
		var all sync.WaitGroup
		for i, dir := range strings.Split(dirs, ":") {
			all.Add(1)
			c := check(dir)
			if i%2 == 1 {
				c.Plan = statfsAs(4711, dir)
			}
			c.Plan.Timeout = ample
			p.Submit(c, func(prober.Report) { all.Done() })
		}
		all.Wait()
		fmt.Println("stuck:", p.Stats().Stuck)
		select {} // until the test kills us
	}

	var dirs []string
	var mounts []*faultfs.FS
	for range n {
		fs := faultfs.New(t)
		fs.Silence()
		mounts, dirs = append(mounts, fs), append(dirs, fs.Dir)
	}
	output, input, err := os.Pipe()
	require.NoError(t, err)
	first, err := os.StartProcess("/proc/self/exe", []string{"prober.test", "-test.run=^" + t.Name() + "$"}, &os.ProcAttr{
		Env: append(os.Environ(), "PROBER_TEST_STUCK="+strings.Join(dirs, ":")), Files: []*os.File{nil, input, os.Stderr}})
	require.NoError(t, err)
	input.Close()
	said := make([]byte, 64)
	k, err := output.Read(said)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("stuck: %d\n", n), string(said[:k]))

	server := serverOf(t, first.Pid)
	require.NoError(t, first.Kill())
	_, err = output.Read(said)
	require.Error(t, err, "its stdout is closed although helpers are stuck")
	_, err = first.Wait()
	require.NoError(t, err)
	eventually(t, "the end of its server", func() bool { return !alive(server) })

	p := start(t, prober.Options{})
	for _, dir := range dirs {
		report := p.Run(patient(check(dir)))
		assert.Equal(t, prober.Busy, report.Outcome, "%v", &report)
		assert.WithinDuration(t, time.Now(), report.Since, time.Minute)
	}
	assert.EqualValues(t, n, p.Stats().Stuck, "those of another user as well")
	assert.Zero(t, p.Stats().Forked)
	for _, fs := range mounts {
		fs.Heal()
	}
	for _, dir := range dirs {
		eventually(t, "the key is free", func() bool { return p.Run(check(dir)).Outcome == prober.Done })
	}
	eventually(t, "none is counted any more", func() bool { return p.Stats().Stuck == 0 })
}

func TestProber_ThreadsDoNotGrowWithStuckHelpers(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{MaxStuck: 200})
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	threads := func() int {
		tasks, err := os.ReadDir("/proc/self/task")
		require.NoError(t, err)
		return len(tasks)
	}
	before := threads()
	hung, _ := hungMounts(t, 50)
	var all sync.WaitGroup
	for _, fs := range hung {
		all.Add(1)
		c := check(fs.Dir)
		c.Plan.Timeout = ample
		p.Submit(c, func(prober.Report) { all.Done() })
	}
	all.Wait()
	eventually(t, "all are stuck", func() bool { return p.Stats().Stuck == 50 })
	assert.Less(t, threads()-before, 10, "50 helpers are stuck")
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", serverOf(t, os.Getpid())))
	require.NoError(t, err)
	assert.Len(t, tasks, 1)
}

// A prober that is closed leaves nothing, whatever became of its fork server.
func TestProber_LeavesNothingWhenClosed(t *testing.T) {
	faultfs.Require(t)
	const quarter = 10
	fs := faultfs.New(t)
	var held leaks.Held
	for i := range 4 {
		for range quarter {
			p := prober.New(prober.Options{KillAsleep: true})
			require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
			require.NoError(t, unix.Kill(serverOf(t, os.Getpid()), unix.SIGKILL))
			eventually(t, "another server", func() bool {
				return p.Run(check("/")).Outcome == prober.Done && p.Stats().ServerRestarts == 1
			})
			fs.Pause()
			ticket := p.Submit(patient(check(fs.Dir)), func(prober.Report) {})
			var helper prober.Report
			eventually(t, "a helper", func() bool { helper, _ = p.Progress(ticket); return helper.PID != 0 })
			p.Close()
			eventually(t, "its end", func() bool { return !alive(helper.PID) })
			fs.Heal()
		}
		if i == 0 {
			held = leaks.Now(t)
		}
		held.Check(t)
	}
	eventually(t, "no child is left, nor one that nobody has waited for", func() bool { return leaks.Now(t).Children == 0 })
}

// However large the plugin is, its server is not.
func TestProber_TheServerInheritsNoHeap(t *testing.T) {
	heap := make([]byte, 50<<20)
	for i := range heap {
		heap[i] = 1
	}
	p := start(t, prober.Options{})
	require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", serverOf(t, os.Getpid())))
	require.NoError(t, err)
	var own int
	_, rest, found := strings.Cut(string(status), "RssAnon:")
	require.True(t, found)
	_, err = fmt.Sscan(rest, &own)
	require.NoError(t, err)
	if runtime.GOARCH == "amd64" {
		assert.Less(t, own, 200, "kB, in every build mode")
	}
	runtime.KeepAlive(heap)
}

func TestProber_Untrimmed(t *testing.T) {
	p := start(t, prober.Options{Untrimmed: true})
	report := p.Run(patient(check("/")))
	assert.Equal(t, prober.Done, report.Outcome, "%v", &report)
}

// The memory that a server has in common with one prober is nobody else's.
func TestUntrimmed_AServerHasNoSlotsOfAnother(t *testing.T) {
	if !forkserver.Sharing {
		t.Skip("helpers have memory of their own in this build")
	}
	first := prober.New(prober.Options{Untrimmed: true})
	defer first.Close()
	for _, p := range []*prober.Prober{first, start(t, prober.Options{Untrimmed: true})} {
		require.Equal(t, prober.Done, p.Run(patient(check("/"))).Outcome)
	}
	servers := 0
	for _, pid := range children(t, os.Getpid()) {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		require.NoError(t, err)
		if comms(t)[pid] == "vfsprobe-server" {
			servers++
			assert.Equal(t, 1, strings.Count(string(maps), " rw-s "), "%s", maps)
		}
	}
	assert.Equal(t, 2, servers)
}

func TestProber_RefusesAnImpossiblePlan(t *testing.T) {
	p := start(t, prober.Options{})
	for name, steps := range map[string][]prober.Step{
		"too many steps":         make([]prober.Step, 40),
		"too much memory":        {prober.Call("", unix.SYS_GETPID, prober.Scratch(1<<20))},
		"too much output":        {prober.Call("", unix.SYS_GETPID, prober.Output(1<<13))},
		"too many arguments":     {prober.Call("", unix.SYS_GETPID, make([]prober.Argument, 7)...)},
		"a forbidden call":       {prober.Call("", unix.SYS_EXECVE)},
		"a result not yet known": {prober.Close(prober.ResultOf(0))},
	} {
		report := p.Run(prober.Check{Key: name, Plan: &prober.Plan{Steps: steps, Timeout: timeout}})
		assert.Equal(t, prober.Unavailable, report.Outcome, name)
		assert.Error(t, report.Err, name)
	}
}

func TestProber_PathsOfEveryKind(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	for _, name := range []string{"a b", "tab\t", "new\nline", `back\slash`, "#", `"`, "\xff\xfe", strings.Repeat("x", 255)} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(path, 0o700))
		report := p.Run(patient(check(path)))
		assert.Equal(t, prober.Done, report.Outcome, "%q: %v", name, &report)
		assert.Nil(t, report.Failed(), "%q", name)
	}
	long := dir
	for len(long) < 4095-256 {
		long += "/" + strings.Repeat("y", 200)
	}
	long += "/" + strings.Repeat("z", 4095-len(long)-1)
	report := p.Run(patient(check(long)))
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	assert.Equal(t, unix.ENOENT, report.Failed().Errno, "4,095 bytes arrive whole; one more would be ENAMETOOLONG")
}

// The time per check must not grow with how many wait.
func BenchmarkManyWaitingChecks(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			p := start(b, prober.Options{})
			p.Run(check("/"))
			for b.Loop() {
				var all sync.WaitGroup
				all.Add(n)
				for i := range n {
					plan := statfs("/")
					plan.Timeout = time.Minute
					p.Submit(prober.Check{Key: strconv.Itoa(i), Group: "one", Plan: plan}, func(prober.Report) { all.Done() })
				}
				all.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/check")
		})
	}
}

func TestProber_ACheckAfterCloseIsUnavailable(t *testing.T) {
	p := start(t, prober.Options{})
	check := prober.Check{Key: "/", Group: "/", Plan: statfs("/")}
	require.Equal(t, prober.Done, p.Run(patient(check)).Outcome)
	p.Close()
	r := p.Run(check)
	require.Equal(t, prober.Unavailable, r.Outcome)
	require.ErrorContains(t, r.Err, "closed")
}
