package mountstat

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

func TestMain(m *testing.M) {
	if os.Getenv(asMountProgram) != "" {
		mountBySSH()
	}
	rpchost.Main(m)
}

const (
	// timeout is for checks that are to hang.
	timeout = 500 * time.Millisecond
	// slow is for those of which it is told in the same gather why they hang.
	slow = 3 * timeout
	// unhurried is for all others: it is more than they take on a machine whose CPUs others have.
	unhurried = 20 * time.Second
)

// journal is the log of the input under test.
type journal struct {
	telegraf.Logger
	t     testing.TB
	mu    sync.Mutex
	lines []string
	quiet bool // the test's own log
}

func (j *journal) note(level, format string, a []any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, level+" "+fmt.Sprintf(format, a...))
	if !j.quiet {
		j.t.Log(j.lines[len(j.lines)-1])
	}
}
func (j *journal) Errorf(format string, a ...any) { j.note("E!", format, a) }
func (j *journal) Warnf(format string, a ...any)  { j.note("W!", format, a) }
func (j *journal) Infof(format string, a ...any)  { j.note("I!", format, a) }
func (j *journal) Info(a ...any)                  { j.note("I!", "%s", []any{fmt.Sprint(a...)}) }
func (j *journal) Error(a ...any)                 { j.note("E!", "%s", []any{fmt.Sprint(a...)}) }
func (j *journal) Debugf(string, ...any)          {}

// about returns the lines that contain text.
func (j *journal) about(text string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []string
	for _, line := range j.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// newInput makes an input that gives checks up when within says so, and calls none slow.
func newInput(t testing.TB, changes ...func(*Mountstat)) (*Mountstat, *journal) {
	return newInputWith(t, prober.Options{}, changes)
}

// newPretendedNFS makes an input for FUSE file systems that pretend to be NFS, whose
// helpers never sleep so that they are left.
func newPretendedNFS(t testing.TB, changes ...func(*Mountstat)) (*Mountstat, *journal) {
	return newInputWith(t, prober.Options{KillAsleep: true}, changes)
}

func newInputWith(t testing.TB, o prober.Options, changes []func(*Mountstat)) (*Mountstat, *journal) {
	m := inputs.Inputs["mountstat"]().(*Mountstat)
	log := &journal{t: t}
	m.Log = log
	m.Timeout, m.SlowThreshold = config.Duration(unhurried), config.Duration(unhurried)
	m.Fstab, m.Units = "", false
	o.Warnf = log.Warnf
	p := prober.New(o)
	t.Cleanup(p.Close)
	m.UseHost(host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p, Log: log, MountsPatience: collect.MountsPatience}))
	for _, change := range changes {
		if change != nil {
			change(m)
		}
	}
	require.NoError(t, m.Init())
	return m, log
}

// within limits the time of checks of these mount points and of their servers, or of all that takes
// time.
func within(limit time.Duration, paths ...string) func(*Mountstat) {
	duration := config.Duration(limit)
	return func(m *Mountstat) {
		if len(paths) == 0 {
			m.Timeout = duration
			return
		}
		m.Override = append(m.Override, Override{MountPoints: paths, Timeout: &duration})
	}
}

// gatherUntil gathers until a mount has a verdict, which is a result and mostly a cause: a busy machine
// may not come to a check, or to why it hangs, in time.
func gatherUntil(t testing.TB, m *Mountstat, path, want string) *collect.Metrics {
	t.Helper()
	return gatherAllUntil(t, m, map[string]string{path: want})
}

// gatherAllUntil gathers until mounts have their verdicts, all in one gather.
func gatherAllUntil(t testing.TB, m *Mountstat, want map[string]string) *collect.Metrics {
	t.Helper()
	return collect.GatherUntil(t, m, want, func(g *collect.Metrics, path string) string {
		metric := at(g, path)
		got := text(metric, "result")
		if strings.HasPrefix(want[path], "timeout") && hangs(metric) {
			got = "timeout"
		}
		if strings.Contains(want[path], " ") {
			got += " " + text(metric, "cause")
		}
		return got
	})
}

// tableOf makes a directory for withTable, with a mountinfo which says of what is mounted on
// a path that it is another kind.
func tableOf(t *testing.T, path, root, options, fstype, source, superOptions string) (directory string) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	directory = t.TempDir()
	line := fmt.Sprintf("90 1 %d:%d %s %s %s shared:1 - %s %s %s\n", unix.Major(st.Dev), unix.Minor(st.Dev), root, path, options, fstype, source, superOptions)
	require.NoError(t, os.WriteFile(filepath.Join(directory, "mountinfo"), []byte(line), 0o600))
	return directory
}

// withTable has the input take the files of a directory for the host's mountinfo and
// mountstats.
func withTable(m *Mountstat, directory string) {
	roots := m.host.Roots
	roots.PID = filepath.Join("..", directory) // below /proc
	m.UseHost(host.New(host.Options{Roots: roots, Prober: m.host.Prober, Log: m.Log, MountsPatience: collect.MountsPatience}))
}

// noneLeft waits until no helper is stuck or asleep any more.
func noneLeft(t testing.TB, m *Mountstat) {
	t.Helper()
	require.Eventually(t, func() bool { s := m.host.Prober.Stats(); return s.Stuck+s.Asleep == 0 }, 30*time.Second, 10*time.Millisecond)
}

func field(t testing.TB, m telegraf.Metric, name string) any {
	t.Helper()
	require.NotNil(t, m, "no metric")
	value, ok := m.GetField(name)
	require.True(t, ok, "no field %s in %v", name, m)
	return value
}

func at(g *collect.Metrics, path string) telegraf.Metric {
	return g.Tagged("mountstat", "path", mounts.Printable(path))
}

// hangs reports whether a mount does, be it that its helper could be ended within the time that the
// machine takes for that, or not.
func hangs(m telegraf.Metric) bool {
	return slices.Contains([]string{"stuck", "timeout"}, text(m, "result"))
}

func summary(t testing.TB, g *collect.Metrics, name string) int64 {
	t.Helper()
	require.Len(t, g.Named("mountstat_summary"), 1)
	return field(t, g.Named("mountstat_summary")[0], name).(int64)
}

func TestMountstat_AHealthyMount(t *testing.T) {
	faultfs.Require(t)
	m, log := newInput(t)
	fs := faultfs.New(t)
	g := collect.Gather(t, m)

	metric := at(g, fs.Dir)
	assert.Equal(t, map[string]string{"path": fs.Dir, "device": "faultfs", "fstype": "fuse.faultfs", "mode": "rw"}, metric.Tags())
	assert.Equal(t, "ok", field(t, metric, "result"))
	assert.Equal(t, int64(0), field(t, metric, "result_code"))
	assert.Equal(t, 0.0, field(t, metric, "hung_seconds"))
	assert.Equal(t, int64(1000*4096), field(t, metric, "total"))
	assert.Equal(t, int64(500*4096), field(t, metric, "free"))
	assert.Equal(t, int64(400*4096), field(t, metric, "used"))
	assert.InDelta(t, 400.0/900*100, field(t, metric, "used_percent"), 1e-9)
	assert.Equal(t, int64(100), field(t, metric, "inodes_total"))
	assert.Equal(t, int64(90), field(t, metric, "inodes_free"))
	assert.Equal(t, int64(10), field(t, metric, "inodes_used"))
	assert.InDelta(t, 10.0, field(t, metric, "inodes_used_percent"), 1e-9)
	assert.Positive(t, field(t, metric, "statfs_seconds"))
	for _, name := range []string{"errno", "reason", "hangs_in", "shared_with"} {
		assert.False(t, metric.HasField(name), name)
	}
	assert.Zero(t, summary(t, g, "faults"))
	assert.Empty(t, log.lines, "nothing is said about a healthy host")
	for _, metric := range g.Named("mountstat") {
		fstype, _ := metric.GetTag("fstype")
		assert.False(t, mounts.Pseudo(fstype) || fstype == "tmpfs", fstype)
	}
}

// A hung mount through its whole life: silent, still silent, aborted, healthy.
func TestMountstat_TheLifeOfAHungMount(t *testing.T) {
	faultfs.Require(t)
	fs, healthy := faultfs.New(t), faultfs.New(t)
	m, log := newInput(t, within(timeout, fs.Dir))
	fs.Silence()

	g := gatherAllUntil(t, m, map[string]string{fs.Dir: "stuck", healthy.Dir: "ok"})
	assert.Equal(t, "fstatfs", field(t, at(g, fs.Dir), "hangs_in"))
	assert.Equal(t, "statfs", field(t, at(g, fs.Dir), "failed_check"))
	assert.Equal(t, "fuse_daemon_silent", field(t, at(g, fs.Dir), "cause"))
	assert.GreaterOrEqual(t, field(t, at(g, fs.Dir), "hung_seconds"), timeout.Seconds()/2, "a check begins with its turn")
	assert.False(t, at(g, fs.Dir).HasField("total"))
	assert.EqualValues(t, 1, summary(t, g, "stuck"))
	assert.EqualValues(t, 1, summary(t, g, "faults"))
	pid := field(t, at(g, fs.Dir), "stuck_pid")
	hung := field(t, at(g, fs.Dir), "hung_seconds").(float64)

	began := time.Now()
	g = collect.Gather(t, m)
	assert.Less(t, time.Since(began), 20*timeout)
	assert.Equal(t, "stuck", field(t, at(g, fs.Dir), "result"))
	assert.Equal(t, "ok", field(t, at(g, healthy.Dir), "result"))
	assert.Equal(t, pid, field(t, at(g, fs.Dir), "stuck_pid"), "the same helper still")
	assert.Greater(t, field(t, at(g, fs.Dir), "hung_seconds"), hung)
	assert.EqualValues(t, 1, m.host.Prober.Stats().Asleep, "none was forked for the hung mount")
	assert.Len(t, log.about("hangs: helper process"), 1, "it is said once")

	fs.Abort()
	g = gatherUntil(t, m, fs.Dir, "error")
	assert.Equal(t, "ENOTCONN", field(t, at(g, fs.Dir), "errno"))
	assert.Equal(t, 0.0, field(t, at(g, fs.Dir), "hung_seconds"))
	assert.Len(t, log.about("fstatfs: ENOTCONN: fuse_daemon_dead"), 1)

	fs.Close()
	again := faultfs.NewAt(t, fs.Dir, "faultfs")
	g = gatherUntil(t, m, again.Dir, "ok")
	assert.Len(t, g.Named("mountstat"), len(m.targets))
}

func TestMountstat_AMountThatRecoversSaysSo(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newInput(t, within(timeout, fs.Dir))
	gatherUntil(t, m, fs.Dir, "ok")
	fs.Pause()
	g := gatherUntil(t, m, fs.Dir, "stuck")
	assert.Equal(t, "asleep", field(t, at(g, fs.Dir), "stuck_state"))
	assert.Equal(t, int64(7), field(t, at(g, fs.Dir), "result_code"))
	hung := field(t, at(g, fs.Dir), "hung_seconds").(float64)
	g = collect.Gather(t, m)
	assert.Greater(t, field(t, at(g, fs.Dir), "hung_seconds"), hung, "since the first check without an answer")
	fs.Heal()
	noneLeft(t, m)
	gatherUntil(t, m, fs.Dir, "ok")
	assert.Len(t, log.about("asleep and to nobody's harm: fuse_daemon_silent"), 1)
	assert.Len(t, log.about("answers again; it was stuck for"), 1)
}

func TestMountstat_ErrnoDecidesTheResult(t *testing.T) {
	faultfs.Require(t)
	m, _ := newInput(t)
	fs := faultfs.New(t)
	for errno, want := range map[unix.Errno]string{
		unix.EACCES: "denied", unix.EPERM: "denied", unix.ESTALE: "stale", unix.EIO: "error", unix.ETIMEDOUT: "error",
	} {
		fs.Fail(errno, faultfs.Statfs)
		g := collect.Gather(t, m)
		assert.Equal(t, want, field(t, at(g, fs.Dir), "result"), errno)
		assert.Equal(t, unix.ErrnoName(errno), field(t, at(g, fs.Dir), "errno"))
		assert.EqualValues(t, 1, summary(t, g, "faults"))
	}
	fs.Heal()
	m, _ = newInput(t, func(m *Mountstat) { m.SlowThreshold = config.Duration(timeout / 10) })
	fs.Delay(timeout/5, faultfs.Statfs)
	g := collect.Gather(t, m)
	assert.Equal(t, "slow", field(t, at(g, fs.Dir), "result"))
	assert.True(t, at(g, fs.Dir).HasField("total"), "a slow answer is an answer")
	assert.Zero(t, summary(t, g, "faults"))
}

func TestMountstat_ManyHungMountsHarmNoOther(t *testing.T) {
	faultfs.Require(t)
	const n = 200
	root := t.TempDir()
	m, log := newInput(t, within(timeout, root+"/*"))
	var hung []*faultfs.FS
	for i := range n {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		fs := faultfs.NewAt(t, dir, "dead")
		fs.Silence()
		hung = append(hung, fs)
	}
	healthy := faultfs.NewAt(t, t.TempDir(), "alive") // last in the table
	for range 4 {
		began := time.Now()
		g := collect.Gather(t, m)
		assert.Less(t, time.Since(began), 20*timeout)
		assert.Equal(t, "ok", field(t, at(g, healthy.Dir), "result"))
		assert.Equal(t, "ok", field(t, at(g, "/"), "result"))
		// A busy machine may end a helper before it waits.
		assert.EqualValues(t, n, summary(t, g, "stuck")+summary(t, g, "timeout")+summary(t, g, "unchecked"))
		assert.LessOrEqual(t, m.host.Prober.Stats().Stuck, int64(16))
	}
	assert.Len(t, log.about("are not checked; the field reason says why"), 1)
	for _, fs := range hung {
		fs.Abort()
	}
	noneLeft(t, m)
	fail := make(map[string]bool)
	require.Eventually(t, func() bool { // a busy machine may not do 200 within half the short timeout
		for _, metric := range collect.Gather(t, m).Named("mountstat") {
			if text(metric, "result") == "error" {
				fail[metric.Tags()["path"]] = true
			}
		}
		return len(fail) == n
	}, 30*time.Second, 10*time.Millisecond)
}

// Each daemon has a fate of its own, and a disk's is none of theirs.
func TestMountstat_TwentyHungDaemonsCostADiskNothing(t *testing.T) {
	faultfs.Require(t)
	disk := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	var hung []*faultfs.FS
	var paths []string
	want := map[string]string{disk.Dir: "ok"}
	for i := range 20 {
		fs := faultfs.NewAt(t, t.TempDir(), "daemon-"+strconv.Itoa(i))
		fs.Silence()
		hung, paths = append(hung, fs), append(paths, fs.Dir)
		want[fs.Dir] = "timeout"
	}
	m, _ := newInput(t, within(timeout, paths...))
	gatherAllUntil(t, m, want)
	for range 6 {
		g := collect.Gather(t, m)
		metric := at(g, disk.Dir)
		assert.Equal(t, "ok", text(metric, "result"))
		assert.Positive(t, field(t, metric, "total"))
		for _, fs := range hung {
			assert.True(t, hangs(at(g, fs.Dir)), fs.Dir)
		}
	}
	for _, fs := range hung {
		fs.Heal()
	}
	noneLeft(t, m)
}

// A host without a place for a helper says nothing new of a fault that is known, and its
// own line sums up what is not checked.
func TestTarget_SaysAFaultOnceWhateverHelpersItGets(t *testing.T) {
	m, log := newInput(t)
	table := mounts.Parse([]byte("50 1 0:47 / /srv rw - nfs nas:/export rw\n"))
	target := &target{Unit: &mounts.Unit{Probed: &table.Mounts[0]}, report: &prober.Report{Since: time.Now()}}
	hangs := finding{code: result.Timeout, call: "fstatfs"}
	refused := finding{code: result.Unchecked, reason: "no place"}
	for _, f := range []finding{hangs, refused, hangs, refused, {code: result.OK}, refused, {code: result.OK}} {
		m.settle(target, f)
	}
	assert.Len(t, log.about("hangs"), 1)
	assert.Len(t, log.about("answers again"), 1)
}

// Two tables of the input check the same mounts of one daemon, of which one hangs.
func TestMountstat_TwoInputsShareTheProber(t *testing.T) {
	faultfs.Require(t)
	for name, c := range map[string]struct {
		hang   func(*faultfs.FS)
		second func(*Mountstat)
		limit  time.Duration // of the second; that of the first by default
	}{
		"unkillable":     {hang: func(fs *faultfs.FS) { fs.Silence() }},
		"killable":       {hang: (*faultfs.FS).Pause},
		"other checks":   {hang: (*faultfs.FS).Pause, second: func(m *Mountstat) { m.Checks = []string{"statfs", "stat"} }},
		"other timeouts": {hang: (*faultfs.FS).Pause, limit: 2 * timeout},
	} {
		t.Run(name, func(t *testing.T) {
			var paths []string
			hung := faultfs.New(t)
			for range 10 {
				paths = append(paths, faultfs.New(t).Dir)
			}
			these := only(append(paths, hung.Dir)...)
			first, _ := newInput(t, these, within(timeout, hung.Dir))
			second, _ := newInput(t, these, within(cmp.Or(c.limit, timeout), hung.Dir), func(m *Mountstat) { m.UseHost(first.host) }, c.second)
			both := func() (gathers [2]*collect.Metrics) {
				var all sync.WaitGroup
				for i, m := range []*Mountstat{first, second} {
					all.Go(func() { gathers[i] = collect.Gather(t, m) })
				}
				all.Wait()
				return gathers
			}
			until := func(want func(telegraf.Metric) bool) {
				require.Eventually(t, func() bool {
					g := both()
					return want(at(g[0], hung.Dir)) && want(at(g[1], hung.Dir))
				}, 30*time.Second, time.Millisecond)
			}
			well := func(m telegraf.Metric) bool { return text(m, "result") == "ok" }
			until(well)
			c.hang(hung)
			until(hangs)
			for round := range 3 {
				for i, g := range both() {
					// On a busy machine it takes a killed helper a while to end.
					assert.Contains(t, []string{"timeout", "stuck"}, field(t, at(g, hung.Dir), "result"), "round %d, input %d: %v", round, i, at(g, hung.Dir))
					assert.Equal(t, "fstatfs", field(t, at(g, hung.Dir), "hangs_in"))
					assert.Equal(t, "statfs", field(t, at(g, hung.Dir), "failed_check"))
					for _, path := range paths {
						assert.Equal(t, "ok", field(t, at(g, path), "result"), "round %d, input %d: %v", round, i, at(g, path))
					}
				}
			}
			hung.Heal()
			until(well)
		})
	}
}

func TestMountstat_BindMountsShareOneCheck(t *testing.T) {
	faultfs.Require(t)
	m, _ := newInput(t)
	bind := t.TempDir()
	fs := faultfs.New(t)
	require.NoError(t, unix.Mount(fs.Dir, bind, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(bind, unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("", bind, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	collect.Gather(t, m)          // the fork server's start is over
	least := int64(math.MaxInt64) // helpers of a gather: now and then another one reads the table
	var g *collect.Metrics
	for range 3 {
		forked := m.host.Prober.Stats().Forked
		g = collect.Gather(t, m)
		least = min(least, m.host.Prober.Stats().Forked-forked)
	}
	assert.EqualValues(t, len(m.targets), least)
	assert.Equal(t, fs.Dir, field(t, at(g, bind), "shared_with"))
	mode, _ := at(g, bind).GetTag("mode")
	assert.Equal(t, "ro", mode)
	assert.False(t, at(g, fs.Dir).HasField("shared_with"))
}

func TestMountstat_AMountOnTopHidesTheOneBelow(t *testing.T) {
	faultfs.Require(t)
	m, _ := newInput(t)
	below := faultfs.NewAt(t, t.TempDir(), "below")
	below.Silence()
	faultfs.NewAt(t, below.Dir, "above")
	g := collect.Gather(t, m)
	require.Len(t, g.Named("mountstat"), len(m.targets))
	assert.Equal(t, "ok", field(t, at(g, below.Dir), "result"), "a healthy mount on top of a hung one is healthy")
	device, _ := at(g, below.Dir).GetTag("device")
	assert.Equal(t, "above", device)
	assert.EqualValues(t, 1, summary(t, g, "hidden"))
}

func TestMountstat_AMountOverAHungParentHangsToo(t *testing.T) {
	faultfs.Require(t)
	parent := faultfs.NewAt(t, t.TempDir(), "parent")
	child := filepath.Join(parent.Dir, faultfs.FileName)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	other := faultfs.NewAt(t, t.TempDir(), "other")
	require.NoError(t, unix.Mount(filepath.Join(other.Dir, faultfs.FileName), child, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(child, unix.MNT_DETACH) })
	m, _ := newInput(t, within(timeout), func(m *Mountstat) { m.MountPoints = []string{parent.Dir, child} })
	parent.Silence()
	gatherAllUntil(t, m, map[string]string{parent.Dir: "stuck", child: "stuck"}) // the way to it leads through the hung one
	parent.Heal()
	noneLeft(t, m)
	gatherUntil(t, m, child, "ok")
}

func TestMountstat_MountPointsOfEveryName(t *testing.T) {
	faultfs.Require(t)
	m, _ := newInput(t)
	root := t.TempDir()
	for _, name := range []string{"a b", "tab\tx", "new\nline", `back\slash`, `trailing\`, "hash#", `quo"te`, "comma,equals=", "\xff\xfe invalid", "ünï"} {
		dir := filepath.Join(root, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		faultfs.NewAt(t, dir, "named "+name)
		g := collect.Gather(t, m)
		assert.Equal(t, "ok", field(t, at(g, dir), "result"), "%q", name)
		device, _ := at(g, dir).GetTag("device")
		assert.Equal(t, mounts.Printable("named "+name), device)
	}
}

// The longest path a mount point can have: PATH_MAX less the NUL.
func TestMountstat_AMountPointOf4095Bytes(t *testing.T) {
	faultfs.Require(t)
	m, _ := newInput(t)
	root := t.TempDir()
	path := root
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for len(path) < 4095 {
		left := 4095 - len(path) - 1
		length := min(left, 250)
		if left-length == 1 {
			length-- // leave room for a slash and a byte
		}
		name := strings.Repeat("d", length)
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		unix.Close(fd)
		fd, path = next, path+"/"+name
	}
	unix.Close(fd)
	require.Len(t, path, 4095)
	fs, err := faultfs.Mount(path, faultfs.Options{Source: "deep"})
	require.NoError(t, err)
	t.Cleanup(fs.Close)
	g := collect.Gather(t, m)
	assert.Equal(t, "ok", field(t, at(g, path), "result"))
}

// A gather may end by itself while it is interrupted.
func TestMountstat_InterruptIsNotOfTheNextGather(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newInput(t, only(fs.Dir))
	collect.Gather(t, m)
	fs.Delay(50*time.Millisecond, faultfs.Statfs)
	m.Interrupt()
	assert.Equal(t, "ok", field(t, at(collect.Gather(t, m), fs.Dir), "result"))
}

func TestMountstat_InterruptEndsAGatherThatWaits(t *testing.T) {
	faultfs.Require(t)
	const limit = 2 * slow
	fs := faultfs.New(t)
	m, _ := newInput(t, within(limit, fs.Dir))
	gatherUntil(t, m, fs.Dir, "ok")
	fs.Pause()

	interrupted := func() *collect.Metrics {
		g, done := &collect.Metrics{}, make(chan error)
		go func() { done <- m.Gather(g) }()
		require.Eventually(t, func() bool { return at(g, "/") != nil }, unhurried, 100*time.Millisecond)
		interrupted := time.Now()
		m.Interrupt()
		require.NoError(t, <-done)
		require.Less(t, time.Since(interrupted), limit)
		assert.Equal(t, "ok", field(t, at(g, "/"), "result"))
		return g
	}
	g := interrupted()
	assert.Equal(t, "unchecked", field(t, at(g, fs.Dir), "result"), "nothing is known yet")
	assert.Equal(t, "the check was under way when the next gather was due", field(t, at(g, fs.Dir), "reason"))
	require.Eventually(t, func() bool { return field(t, at(interrupted(), fs.Dir), "result") != "unchecked" }, 30*time.Second, time.Millisecond)
	g = interrupted()
	assert.Equal(t, "stuck", field(t, at(g, fs.Dir), "result"))
	assert.Greater(t, field(t, at(g, fs.Dir), "hung_seconds"), limit.Seconds()/2, "a check begins with its turn")
}

func TestSettings_Select(t *testing.T) {
	faultfs.Require(t)
	fs, bind := faultfs.New(t), t.TempDir()
	require.NoError(t, unix.Mount("/etc", bind, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(bind, unix.MNT_DETACH) })
	paths := func(change func(*Mountstat)) []string {
		m, _ := newInput(t, change)
		var found []string
		for _, metric := range collect.Gather(t, m).Named("mountstat") {
			path, _ := metric.GetTag("path")
			found = append(found, path)
		}
		return found
	}
	assert.Subset(t, paths(nil), []string{"/", fs.Dir, bind})
	assert.Equal(t, []string{fs.Dir}, paths(func(m *Mountstat) { m.MountPoints = []string{fs.Dir} }))
	assert.NotContains(t, paths(func(m *Mountstat) { m.IgnoreFS = []string{"fuse.faultfs"} }), fs.Dir)
	assert.NotContains(t, paths(func(m *Mountstat) { m.IgnoreMountOpts = []string{"nosuid"} }), fs.Dir)
	assert.NotContains(t, paths(func(m *Mountstat) { m.IgnoreMountOpts = []string{"bind"} }), bind)
}

func TestSettings_Bad(t *testing.T) {
	shared, _ := newInput(t)
	nothing := config.Duration(0)
	for want, change := range map[string]func(*Mountstat){
		`timeout = "0s": at least 10ms are needed`:                 func(m *Mountstat) { m.Timeout = 0 },
		`slow_threshold = "0s": it must be more than 0`:            func(m *Mountstat) { m.SlowThreshold = 0 },
		`mount_points: "srv" is not an absolute path`:              func(m *Mountstat) { m.MountPoints = []string{"srv"} },
		`mount_points: "" is not an absolute path`:                 func(m *Mountstat) { m.IgnoreMountPoints = []string{""} },
		`mount_points: a pattern of ["/srv/[a"] is not a glob`:     func(m *Mountstat) { m.MountPoints = []string{"/srv/[a"} },
		`fs: a pattern of ["nfs" "[x"] is not a glob`:              func(m *Mountstat) { m.FS, m.IgnoreFS = []string{"nfs"}, []string{"[x"} },
		`devices: a pattern of ["[x"] is not a glob`:               func(m *Mountstat) { m.Devices = []string{"[x"} },
		`checks: unknown check "touch"; there are ["statfs"`:       func(m *Mountstat) { m.Checks = []string{"touch"} },
		`checks: there must be one`:                                func(m *Mountstat) { m.Checks = nil },
		`run_as: "nosuchuser" is neither "owner" nor "self" nor`:   func(m *Mountstat) { m.RunAs = "nosuchuser" },
		`canary = "a/b": it must be the name of a file`:            func(m *Mountstat) { m.Canary = "a/b" },
		`expected: "srv" is not an absolute path`:                  func(m *Mountstat) { m.Expected = []string{"srv"} },
		`fstab = "fstab" is not an absolute path`:                  func(m *Mountstat) { m.Fstab = "fstab" },
		`mount_namespaces = "some": it must be "own" or "all"`:     func(m *Mountstat) { m.MountNamespaces = "some" },
		`enter_host_namespace: the environment variable HOST_PROC`: func(m *Mountstat) { m.EnterHostNamespace = true },
		`blocked_top = -1: it can't be negative`:                   func(m *Mountstat) { m.BlockedTop = -1 },
		`override 1: timeout = "0s"`:                               func(m *Mountstat) { m.Override = []Override{{Timeout: &nothing}} },
		`override 1: checks: unknown check "x"`:                    func(m *Mountstat) { m.Override = []Override{{Checks: []string{"x"}}} },
		`override 2: mount_points: "x" is not`:                     func(m *Mountstat) { m.Override = []Override{{}, {MountPoints: []string{"x"}}} },
	} {
		m := inputs.Inputs["mountstat"]().(*Mountstat)
		m.UseHost(shared.host)
		m.Log = shared.Log
		change(m)
		assert.ErrorContains(t, m.Init(), want)
	}
}
