package attribution_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// What a virtual machine, which has no mkfs, tells its tests.
const (
	ext4Variable  = "VFSPROBE_TEST_EXT4"  // a directory of an ext4
	modesVariable = "VFSPROBE_TEST_MODES" // that must work here
	walkVariable  = "VFSPROBE_TEST_WALK"  // yes or no
)

func TestMain(m *testing.M) { namespace.MainOfHost(m) }

func newProber(t testing.TB) *prober.Prober {
	p := prober.New(prober.Options{Warnf: func(f string, a ...any) { t.Logf("W! "+f, a...) }})
	t.Cleanup(p.Close)
	return p
}

// ext4 returns a new directory of a real file system, two levels down.
func ext4(t testing.TB) string {
	t.Helper()
	return ext4Of(t, loopfs.DefaultSize)
}

// ext4Of is the same in a file system of the size in bytes, if it is made here.
func ext4Of(t testing.TB, size int64) string {
	t.Helper()
	root := os.Getenv(ext4Variable)
	if root == "" {
		root = loopfs.New(t, "ext4", size, "").Dir
	}
	top, err := os.MkdirTemp(root, "test")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := filepath.Join(top, "sub dir")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

// inMode starts a tracer in the mode, and skips the test where there is none
// (but not in a machine that must have it).
func inMode(t testing.TB, mode attribution.Mode) *attribution.Tracer {
	t.Helper()
	options := attribution.Options{Prober: newProber(t), Modes: []attribution.Mode{mode}, Timeout: 20 * time.Second}
	tracer, err := attribution.Start(options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, tracer.Close()) })
	status := tracer.Status()
	if status.Mode != mode {
		if strings.Contains(os.Getenv(modesVariable), mode.String()) {
			t.Fatal(status.Refused[0].Err)
		}
		t.Skip(status.Refused[0].Err)
	}
	assert.LessOrEqual(t, status.MapBytes, int64(8<<20))
	require.NoError(t, tracer.Watch(true))
	return tracer
}

// unsampled starts a tracer that counts each event, also while other work of the host misses more
// names than the mode ENOENT counts exactly.
func unsampled(t testing.TB, mode attribution.Mode) *attribution.Tracer {
	t.Helper()
	tracer := inMode(t, mode)
	require.NoError(t, tracer.CountAll())
	return tracer
}

// eachMode runs the test in every mode that works here.
func eachMode(t *testing.T, test func(t *testing.T, mode attribution.Mode)) {
	for _, mode := range []attribution.Mode{attribution.Fentry, attribution.Kprobe, attribution.ENOENT} {
		t.Run(mode.String(), func(t *testing.T) { test(t, mode) })
	}
}

// miss looks for names that don't exist, as seen from the directory.
func miss(t testing.TB, dir string, from, to int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for i := from; i < to; i++ {
		if err := missing(fd, i); err != unix.ENOENT {
			t.Fatal(err)
		}
	}
}

func missing(fd, i int) error {
	return unix.Faccessat(fd, fmt.Sprintf("missing-%08d", i), 0, 0)
}

func inodeOf(t testing.TB, path string) (uint64, attribution.Device) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Ino, attribution.Device{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}
}

// in sums up the rows of a directory.
func in(t testing.TB, tracer *attribution.Tracer, dir string) (sum attribution.Source) {
	t.Helper()
	inode, device := inodeOf(t, dir)
	sources, _, err := tracer.Read()
	require.NoError(t, err)
	for _, s := range sources {
		if s.Place.Inode != inode || s.Place.Device != device || s.Place.Relative != "" {
			continue
		}
		s.Created += sum.Created
		s.Converted += sum.Converted
		s.Unlinked += sum.Unlinked
		sum = s
	}
	return sum
}

// astray is how many events of a test the mode ENOENT may take for others', or theirs for the
// test's: such as what a kernel thread did on that CPU since the last look, or another task while
// a program was preempted.
func astray(mode attribution.Mode) float64 {
	if mode != attribution.ENOENT {
		return 0
	}
	return 10
}

// withoutDirectory sums up what this program has created in directories that are not known.
func withoutDirectory(t testing.TB, tracer *attribution.Tracer) (sum int64) {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	sources, _, err := tracer.Read()
	require.NoError(t, err)
	for _, s := range sources {
		if s.Place.Nowhere() && s.Comm == strings.TrimSuffix(string(comm), "\n") {
			sum += s.Created
		}
	}
	return sum
}

// inPath sums up the rows of a directory, as it was written by those who asked for it.
func inPath(t testing.TB, tracer *attribution.Tracer, dir string) (sum attribution.Source) {
	t.Helper()
	sources, _, err := tracer.Read()
	require.NoError(t, err)
	for _, s := range sources {
		if s.Place.FromRoot && s.Place.Relative == dir+"/" {
			sum.Created += s.Created
			sum.Converted += s.Converted
			sum.Unlinked += s.Unlinked
		}
	}
	return sum
}

// TestTracer_CountsWhatTheKernelKept: in the mode ENOENT only what is one negative dentry more
// counts, where the kernel tells how many it has.
func TestTracer_CountsWhatTheKernelKept(t *testing.T) {
	const names = 300
	tracer := unsampled(t, attribution.ENOENT)
	if !tracer.Status().Counted {
		t.Skip("this kernel's count can't be read")
	}
	dir, memory := ext4(t), t.TempDir()
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Unmount(memory, unix.MNT_DETACH) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range names {
		name := fmt.Sprintf("/x-%d", i)
		for _, missing := range []string{memory + name, dir + "/none/below" + name, dir + "/none" + name} {
			_, err := os.Lstat(missing)
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		file := dir + name
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Remove(file))
		require.NoError(t, os.Mkdir(file, 0o700)) // which takes what the file has left
		require.NoError(t, os.Rename(file, file+"-moved"))
		require.NoError(t, os.Remove(file+"-moved"))
	}
	assert.Zero(t, inPath(t, tracer, memory).Created, "tmpfs keeps none")
	// "none" itself is one, made by whoever came first.
	assert.LessOrEqual(t, inPath(t, tracer, dir+"/none/below").Created, int64(1))
	assert.Zero(t, inPath(t, tracer, dir+"/none").Created)
	made := inPath(t, tracer, dir)
	assert.InDelta(t, 2*names, made.Unlinked, astray(attribution.ENOENT), "files and directories that were removed")
	assert.InDelta(t, names, made.Created, astray(attribution.ENOENT), "os.Rename looks whether the new name is there")
	assert.InDelta(t, 2*names, made.Converted, astray(attribution.ENOENT), "and each that was there has become a directory")
}

// TestTracer_WithoutTheKernelsCount: failed calls are counted where that can't be read.
func TestTracer_WithoutTheKernelsCount(t *testing.T) {
	const names = 300
	options := attribution.Options{Prober: newProber(t), Modes: []attribution.Mode{attribution.ENOENT}, Timeout: 20 * time.Second}
	options.WithoutCount()
	tracer, err := attribution.Start(options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, tracer.Close()) })
	status := tracer.Status()
	if status.Mode != attribution.ENOENT {
		t.Skip(status.Refused[0].Err)
	}
	assert.False(t, status.Counted)
	require.NoError(t, tracer.CountAll())
	require.NoError(t, tracer.Watch(true))
	dir := ext4(t)
	for range 3 {
		miss(t, dir, 0, names)
	}
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Remove(file))
	s := in(t, tracer, dir)
	assert.EqualValues(t, names, s.Created, "each once")
	assert.Zero(t, inPath(t, tracer, dir).Unlinked)
}

// noneLost returns how many events were lost. A program that other tasks make a
// kernel preempt may miss theirs, but no one else's, except by bad luck.
func noneLost(t testing.TB, tracer *attribution.Tracer) int64 {
	t.Helper()
	status := tracer.Status()
	if status.Mode == attribution.Kprobe {
		assert.Zero(t, status.EventsLost)
	}
	_, totals, err := tracer.Read()
	require.NoError(t, err)
	assert.Zero(t, totals.Lost)
	if status.EventsLost > 0 {
		t.Logf("%d events lost", status.EventsLost)
	}
	return status.EventsLost
}

// spread is how far off the count of so many misses may be: not at all, but for
// where the mode ENOENT samples. Each of n is chosen or not, one in SampleWeight,
// which gives the estimate a standard deviation of sqrt(n*(SampleWeight-1)). These
// are five of them, which chance exceeds once in two million runs.
func spread(mode attribution.Mode, n int) float64 {
	if mode != attribution.ENOENT || n <= attribution.SampledAbove {
		return 0
	}
	return 5 * math.Sqrt(float64(n)*(attribution.SampleWeight-1))
}

func TestTracer_NamesWhoCreates(t *testing.T) {
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		dir := ext4(t)
		tracer := unsampled(t, mode)
		_, before, err := tracer.Read()
		require.NoError(t, err)
		const names = 5000
		miss(t, dir, 0, names)

		s := in(t, tracer, dir)
		comm, err := os.ReadFile("/proc/self/comm")
		require.NoError(t, err)
		assert.InDelta(t, names, s.Created, astray(mode))
		assert.Equal(t, strings.TrimSuffix(string(comm), "\n"), s.Comm)
		assert.EqualValues(t, os.Getpid(), s.PID)
		assert.EqualValues(t, os.Getuid(), s.UID)
		assert.Equal(t, "ext4", s.Place.FSType)
		assert.Equal(t, []string{filepath.Base(filepath.Dir(dir)), "sub dir"}, s.Place.Path)
		assert.False(t, s.Place.Truncated)
		assert.NotZero(t, s.CgroupID)
		_, after, err := tracer.Read()
		require.NoError(t, err)
		assert.GreaterOrEqual(t, after.Created-before.Created, int64(names))
		noneLost(t, tracer)

		// Again, they are found in the cache.
		miss(t, dir, 0, names)
		again := in(t, tracer, dir).Created
		if mode == attribution.ENOENT { // which does not know the cache, but what it has seen
			assert.InDelta(t, s.Created, again, 5)
		} else {
			assert.EqualValues(t, names, again)
		}
	})
}

// TestTracer_Samples: what comes fast is estimated, and what comes slowly is exact.
func TestTracer_Samples(t *testing.T) {
	const few, many = attribution.SampledAbove / 4, 100_000
	tracer := inMode(t, attribution.ENOENT)
	dir := ext4(t)
	next := 0
	slowly := func() { // until other work leaves them a second in which few names are missed
		for began := time.Now(); ; next += few {
			before := in(t, tracer, dir).Created
			miss(t, dir, next, next+few)
			created := in(t, tracer, dir).Created - before
			if math.Abs(float64(created-few)) <= astray(attribution.ENOENT) {
				next += few
				return
			}
			require.Less(t, time.Since(began), 30*time.Second, "%d of %d counted", created, few)
			time.Sleep(1100 * time.Millisecond)
		}
	}
	slowly()
	counted := in(t, tracer, dir).Created
	_, before, err := tracer.Read()
	require.NoError(t, err)

	miss(t, dir, next, next+many)
	next += many
	estimate := in(t, tracer, dir).Created - counted
	_, after, err := tracer.Read()
	require.NoError(t, err)
	sampled := after.Sampled - before.Sampled
	t.Logf("%d of %d, by %d samples", estimate, many, sampled)
	assert.InDelta(t, many, estimate, spread(attribution.ENOENT, many))
	assert.Positive(t, sampled)
	assert.Less(t, sampled, int64(many/attribution.SampleWeight*2))
	assert.GreaterOrEqual(t, after.Created-before.Created, sampled*attribution.SampleWeight)
	assert.GreaterOrEqual(t, after.Created-before.Created, estimate)

	time.Sleep(1100 * time.Millisecond)
	slowly()
	assert.Zero(t, tracer.Status().EventsLost)
}

// The rows are not read anew while nothing is counted.
func TestTracer_ReadUnless(t *testing.T) {
	tracer := unsampled(t, attribution.ENOENT)
	dir := ext4(t)
	miss(t, dir, 0, 100)
	require.NoError(t, tracer.Watch(false))
	sources, totals, err := tracer.Read()
	require.NoError(t, err)
	require.NotEmpty(t, sources)
	miss(t, dir, 100, 200)
	sources, again, err := tracer.ReadUnless(totals)
	require.NoError(t, err)
	assert.Equal(t, totals, again)
	assert.Nil(t, sources)
	require.NoError(t, tracer.Watch(true))
	miss(t, dir, 200, 300)
	sources, again, err = tracer.ReadUnless(totals)
	require.NoError(t, err)
	assert.NotEqual(t, totals, again)
	assert.NotEmpty(t, sources)
	assert.Greater(t, in(t, tracer, dir).Created, int64(100), "those of before as well")
}

// TestTracer_SamplesRepeatedNames: names that are looked up over and over seem to be new
// until one of their look-ups was counted, and no longer.
func TestTracer_SamplesRepeatedNames(t *testing.T) {
	const names, rounds = 5000, 60
	tracer := inMode(t, attribution.ENOENT)
	dir := ext4(t)
	for range rounds {
		miss(t, dir, 0, names)
	}
	created := in(t, tracer, dir).Created
	// Of each name 64(1-(63/64)^rounds), but for those that were known by then.
	most := names * attribution.SampleWeight * (1 - math.Pow(1-1.0/attribution.SampleWeight, rounds))
	t.Logf("%d names, counted as %d, at most %.0f", names, created, most)
	assert.GreaterOrEqual(t, float64(created), names-spread(attribution.ENOENT, names))
	assert.LessOrEqual(t, float64(created), most+spread(attribution.ENOENT, int(most)))
}

// TestTracer_StartsInAFlood: the self-test counts its look-ups though others are more than
// is counted exactly.
func TestTracer_StartsInAFlood(t *testing.T) {
	dir := ext4(t)
	var stop atomic.Bool
	var wait sync.WaitGroup
	defer wait.Wait()
	defer stop.Store(true)
	for i := range runtime.NumCPU() {
		wait.Go(func() {
			for n := 0; !stop.Load(); n++ {
				_, _ = os.Lstat(filepath.Join(dir, fmt.Sprintf("missing-%d-%d", i, n)))
			}
		})
	}
	for range 3 {
		tracer := inMode(t, attribution.ENOENT)
		assert.EqualValues(t, tracer.Status().SelfTest.Lookups, tracer.Status().SelfTest.Counted)
		sampled := func() bool {
			_, totals, err := tracer.Read()
			return err == nil && totals.Sampled > 0
		}
		for began := time.Now(); !sampled(); time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > 20*time.Second {
				t.Skipf("this machine can't make %d look-ups in a second", attribution.SampledAbove)
			}
		}
	}
}

// TestTracer_AccountsToTheRightDirectory follows negative dentries through all that can become of them.
func TestTracer_AccountsToTheRightDirectory(t *testing.T) {
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		tracer := unsampled(t, mode)
		counted := mode == attribution.ENOENT // by the kernel, which says how many more there are
		if counted && !tracer.Status().Counted {
			t.Skip("sees failed look-ups only")
		}
		dir := ext4(t)
		miss(t, dir, 0, 1000)
		for i := range 100 { // of those
			require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("missing-%08d", i)), nil, 0o600))
		}
		for i := range 100 { // new ones
			require.NoError(t, os.Mkdir(filepath.Join(dir, fmt.Sprintf("new-%d", i)), 0o700))
		}
		for i := range 40 {
			require.NoError(t, os.Rename(filepath.Join(dir, fmt.Sprintf("new-%d", i)), filepath.Join(dir, fmt.Sprintf("renamed-%d", i))))
		}
		for i := range 30 {
			require.NoError(t, os.Remove(filepath.Join(dir, fmt.Sprintf("missing-%08d", i))))
		}
		s := in(t, tracer, dir)
		if counted {
			written := inPath(t, tracer, dir) // the others were asked for by the whole path
			assert.InDelta(t, 1000, s.Created, astray(mode))
			assert.InDelta(t, 40, written.Created, astray(mode), "os.Rename looks whether the new name is there")
			assert.InDelta(t, 100+40, written.Converted, astray(mode), "what was new became a directory at once")
			assert.InDelta(t, 30, written.Unlinked, astray(mode))
			return
		}
		assert.EqualValues(t, 1000+100+40, s.Created)
		assert.EqualValues(t, 100+100+40, s.Converted)
		assert.EqualValues(t, 30, s.Unlinked)
		assert.Zero(t, s.KilledInDir)

		// Unused ones go with their directory.
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, entry := range entries {
			require.NoError(t, os.Remove(filepath.Join(dir, entry.Name())))
		}
		inode, device := inodeOf(t, dir)
		require.NoError(t, os.Remove(dir))
		sources, _, err := tracer.Read()
		require.NoError(t, err)
		for _, s := range sources {
			if s.Place.Inode == inode && s.Place.Device == device {
				assert.Equal(t, s.Created-s.Converted+s.Unlinked, s.KilledInDir)
			}
		}
	})
}

// TestTracer_TransientProcesses: tmpfs frees a negative dentry as soon as it is made.
func TestTracer_TransientProcesses(t *testing.T) {
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		tracer := inMode(t, mode)
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Skip(err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		miss(t, dir, 0, 1000)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
		require.NoError(t, os.Remove(filepath.Join(dir, "file")))
		assert.Zero(t, in(t, tracer, dir))
	})
}

func setComm(t testing.TB, comm string) {
	b := append([]byte(comm), 0)
	require.NoError(t, unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0))
}

// TestTracer_Churn has 20,000 cold keys push one another out, beside a heavy hitter.
func TestTracer_Churn(t *testing.T) {
	const cold, heavyPerCold = 20_000, 3
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		dir := ext4(t)
		tracer := inMode(t, mode)
		_, before, err := tracer.Read()
		require.NoError(t, err)
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		var wait sync.WaitGroup
		wait.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			comm, err := os.ReadFile("/proc/thread-self/comm")
			assert.NoError(t, err)
			defer setComm(t, strings.TrimSuffix(string(comm), "\n"))
			n := 0
			for i := range cold {
				setComm(t, fmt.Sprintf("cold\xff\x01%d", i))
				assert.Equal(t, unix.ENOENT, missing(fd, n))
				n++
				setComm(t, "heavy hitter")
				for range heavyPerCold {
					assert.Equal(t, unix.ENOENT, missing(fd, n))
					n++
				}
			}
		})
		wait.Wait()
		sources, after, err := tracer.Read()
		require.NoError(t, err)
		assert.LessOrEqual(t, len(sources), 8192)
		heavy, odd := int64(0), false
		for _, s := range sources {
			if s.Comm == "heavy hitter" {
				heavy += s.Created
			}
			odd = odd || strings.HasPrefix(s.Comm, "cold\xff\x01")
		}
		lost := noneLost(t, tracer)
		off := int64(spread(mode, cold*heavyPerCold))
		assert.LessOrEqual(t, heavy, cold*heavyPerCold+off)
		assert.GreaterOrEqual(t, heavy, cold*heavyPerCold-off-lost)
		assert.True(t, odd)
		off = int64(spread(mode, cold*(1+heavyPerCold)))
		assert.GreaterOrEqual(t, after.Created-before.Created, cold*(1+heavyPerCold)-off-lost)
	})
}

// TestTracer_ManyThreads takes into account that a kernel which preempts programs does
// not run them for others meanwhile, and says how often: Status tells.
func TestTracer_ManyThreads(t *testing.T) {
	const threads, each = 8, 4000
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		dir := ext4(t)
		tracer := inMode(t, mode)
		var wait sync.WaitGroup
		for i := range threads {
			wait.Go(func() { miss(t, dir, i*each, (i+1)*each) })
		}
		wait.Wait()
		lost := tracer.Status().EventsLost
		created := in(t, tracer, dir).Created
		nowhere := withoutDirectory(t, tracer) // where the kernel preempts programs of tracepoints
		t.Logf("%d counted of %d, %d more without a directory, %d lost", created, threads*each, nowhere, lost)
		off := int64(spread(mode, threads*each))
		assert.LessOrEqual(t, created, threads*each+off)
		assert.GreaterOrEqual(t, created+nowhere+lost, threads*each-off)
		if mode == attribution.Kprobe {
			assert.Zero(t, lost)
		}
	})
}

// TestTracer_FallsBack has the kernel preempt the programs until the tracer has enough of
// it, which needs a kernel that does so.
func TestTracer_FallsBack(t *testing.T) {
	tracer, err := attribution.Start(attribution.Options{Prober: newProber(t)})
	require.NoError(t, err)
	defer tracer.Close()
	if status := tracer.Status(); status.Mode != attribution.Fentry {
		t.Skipf("the mode is %v: %v", status.Mode, status.Refused)
	}
	dir := ext4(t)
	var counted int64
	for round := range 20 {
		var wait sync.WaitGroup
		for i := range 8 {
			wait.Go(func() { miss(t, dir, (round*8+i)*1000, (round*8+i+1)*1000) })
		}
		wait.Wait()
		now := in(t, tracer, dir).Created
		assert.GreaterOrEqual(t, now, counted, "the rows are kept")
		counted = now
		if tracer.Status().Mode == attribution.Kprobe {
			break
		}
	}
	status := tracer.Status()
	if status.Mode == attribution.Fentry {
		assert.Less(t, status.EventsLost, int64(1000))
		t.Skipf("only %d events were lost", status.EventsLost)
	}
	t.Log(status.Refused[0].Err)
	require.Len(t, status.Refused, 1)
	lost := status.EventsLost
	assert.Positive(t, lost)
	counted = in(t, tracer, dir).Created
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() { miss(t, dir, 500_000+i*1000, 500_000+(i+1)*1000) })
	}
	wait.Wait()
	assert.EqualValues(t, counted+8000, in(t, tracer, dir).Created)
	assert.Equal(t, lost, tracer.Status().EventsLost)
}

// TestTracer_PathsAsAsked: in the mode ENOENT a path is all there is.
func TestTracer_PathsAsAsked(t *testing.T) {
	tracer := unsampled(t, attribution.ENOENT)
	dir := ext4(t)
	for i := range 10 {
		_, err := os.Lstat(filepath.Join(dir, fmt.Sprintf("absolute-%d", i)))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(parent)
	for i := range 20 {
		require.Equal(t, unix.ENOENT, unix.Faccessat(parent, fmt.Sprintf("sub dir/relative-%d", i), 0, 0))
	}
	sources, _, err := tracer.Read()
	require.NoError(t, err)
	inode, device := inodeOf(t, filepath.Dir(dir))
	absolute, relative := false, false
	for _, s := range sources {
		if s.Place.Relative == dir+"/" {
			absolute = true
			assert.InDelta(t, 10, s.Created, 2)
			assert.True(t, s.Place.FromRoot)
		}
		if s.Place.Inode == inode && s.Place.Device == device && s.Place.Relative == "sub dir/" {
			relative = true
			assert.InDelta(t, 20, s.Created, 2)
			assert.False(t, s.Place.FromRoot)
			assert.Equal(t, []string{filepath.Base(filepath.Dir(dir))}, s.Place.Path)
		}
	}
	assert.True(t, absolute)
	assert.True(t, relative)

	require.NoError(t, tracer.Watch(false))
	assert.False(t, tracer.Status().Watching)
	miss(t, dir, 0, 100)
	assert.Zero(t, in(t, tracer, dir).Created)
	require.NoError(t, tracer.Watch(true))
	miss(t, dir, 100, 200)
	assert.InDelta(t, 100, in(t, tracer, dir).Created, astray(attribution.ENOENT))
}

func TestTracer_DeepPaths(t *testing.T) {
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		tracer := unsampled(t, mode)
		dir := ext4(t)
		for range 40 {
			dir = filepath.Join(dir, "level")
		}
		require.NoError(t, os.MkdirAll(dir, 0o700))
		miss(t, dir, 0, 20)
		s := in(t, tracer, dir)
		assert.InDelta(t, 20, s.Created, astray(mode))
		assert.True(t, s.Place.Truncated)
		assert.Equal(t, slices.Repeat([]string{"level"}, 32), s.Place.Path)
	})
}

// TestTracer_SaysWhyItIsRefused says why, in a process that may do nothing.
func TestTracer_SaysWhyItIsRefused(t *testing.T) {
	const variable = "VFSPROBE_TEST_REFUSED"
	if os.Getenv(variable) != "" {
		tracer, err := attribution.Start(attribution.Options{Prober: newProber(t)})
		require.NoError(t, err)
		status := tracer.Status()
		fmt.Printf("STATUS %v %v\n", status.Mode, status.Refused)
		require.NoError(t, tracer.Watch(true))
		sources, _, err := tracer.Read()
		require.NoError(t, err)
		assert.Empty(t, sources)
		assert.Len(t, status.Refused, 3)
		require.NoError(t, tracer.Close())
		_, err = attribution.OpenWalker(newProber(t))
		fmt.Printf("STATUS walk: %v\n", err)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs to give privileges up")
	}
	// Where nobody can reach it.
	binary, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "refused")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "test")
	require.NoError(t, os.WriteFile(program, binary, 0o755))
	for _, test := range []struct {
		name string
		caps []uintptr
	}{
		{"nothing", nil},
		{"CAP_BPF and CAP_PERFMON", []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}},
	} {
		t.Run(test.name, func(t *testing.T) {
			command := exec.Command(program, "-test.run", "^TestTracer_SaysWhyItIsRefused$")
			command.Dir = "/"
			command.Env = append(os.Environ(), variable+"=1")
			command.SysProcAttr = &syscall.SysProcAttr{
				Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: test.caps,
			}
			out, err := command.CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if text, ok := strings.CutPrefix(line, "STATUS "); ok {
					t.Log(strings.TrimSpace(text))
				}
			}
			if test.caps == nil {
				require.NoError(t, err, string(out))
				assert.Contains(t, string(out), "STATUS none")
				assert.Contains(t, string(out), "it takes CAP_BPF and CAP_PERFMON")
			} else {
				assert.NotContains(t, string(out), "STATUS none")
			}
		})
	}
}

func TestWalker_WithoutProber(t *testing.T) {
	tracer, err := attribution.Start(attribution.Options{})
	require.NoError(t, err)
	assert.Equal(t, attribution.None, tracer.Status().Mode)
	assert.NoError(t, tracer.Close())
	assert.True(t, errors.Is(tracer.Watch(true), nil))
}
