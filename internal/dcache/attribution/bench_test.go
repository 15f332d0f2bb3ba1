package attribution_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
)

// threadCPU is the time this thread was on a CPU.
func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// rounds is how often something is measured with and without: less often where it is
// instructions that are counted, in an emulated machine.
func rounds(b *testing.B, most int) int {
	b.Helper()
	text := os.Getenv("VFSPROBE_TEST_ROUNDS")
	if text == "" {
		return most
	}
	n, err := strconv.Atoi(text)
	require.NoError(b, err)
	return n
}

// dropDentries frees what a benchmark has made, in its directory only.
func dropDentries(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, os.Remove(dir))
	require.NoError(t, os.Mkdir(dir, 0o755))
}

// BenchmarkMiss is the cost of a name that was never asked for, with nothing
// attached and in each mode, by turns, and beside it with bpftrace, where it works,
// counting at the same place by the same key. The names take long enough that
// those which the mode ENOENT counts exactly in each second weigh little.
func BenchmarkMiss(b *testing.B) {
	const names = 100_000
	dir := ext4(b)
	paths := make([]string, names)
	for i := range paths {
		paths[i] = fmt.Sprintf("missing-%08d", i)
	}
	measure := func() float64 {
		dropDentries(b, dir)
		b.Chdir(dir)
		start := threadCPU()
		for _, path := range paths {
			_ = unix.Faccessat(unix.AT_FDCWD, path, 0, 0)
		}
		return float64(threadCPU()-start) / names
	}
	for _, mode := range []attribution.Mode{attribution.Fentry, attribution.Kprobe, attribution.ENOENT} {
		b.Run(mode.String(), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var off, on []float64
			for range rounds(b, 15) {
				off = append(off, measure())
				tracer := inMode(b, mode)
				on = append(on, measure())
				require.NoError(b, tracer.Close())
			}
			report(b, off, on)
		})
	}
	// What [Fentry] and [Kprobe] count for such a name, and by what.
	for name, probe := range map[string]string{
		"bpftrace-kfunc":  `kfunc:vmlinux:d_splice_alias /args->inode == 0/ { $d = args->dentry;`,
		"bpftrace-kprobe": `kprobe:d_splice_alias /arg0 == 0/ { $d = (struct dentry *)arg1;`,
	} {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			script := probe + ` @[comm, cgroup, $d->d_parent->d_inode->i_ino, $d->d_sb->s_dev] = count(); }`
			var off, on []float64
			for range rounds(b, 3) {
				off = append(off, measure())
				stop := startBpftrace(b, script)
				on = append(on, measure())
				counted := stop()
				require.Contains(b, counted, fmt.Sprintf("]: %d\n", names))
			}
			report(b, off, on)
		})
	}
}

// startBpftrace runs a script until stop is called, which returns what it prints.
func startBpftrace(b *testing.B, script string) (stop func() string) {
	b.Helper()
	bpftrace, err := exec.LookPath("bpftrace")
	if err != nil {
		b.Skip(err)
	}
	command := exec.Command(bpftrace, "-e", `BEGIN { printf("ready\n"); } `+script)
	var complaints strings.Builder
	command.Stderr = &complaints
	stdout, err := command.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, command.Start())
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			_ = command.Wait()
			b.Skipf("bpftrace can't attach here: %s", &complaints)
		}
		if line == "ready\n" {
			break
		}
	}
	time.Sleep(3 * time.Second) // other probes may be attached after BEGIN
	return func() string {
		_ = command.Process.Signal(os.Interrupt)
		counted, _ := io.ReadAll(lines)
		require.NoError(b, command.Wait(), &complaints)
		return string(counted)
	}
}

// BenchmarkOtherCalls is what a mode costs system calls that it does not count.
func BenchmarkOtherCalls(b *testing.B) {
	const calls = 100_000
	measure := func() float64 {
		start := threadCPU()
		for range calls {
			_ = unix.Faccessat(unix.AT_FDCWD, "/proc", 0, 0)
		}
		return float64(threadCPU()-start) / calls
	}
	for _, mode := range []attribution.Mode{attribution.Fentry, attribution.Kprobe, attribution.ENOENT} {
		b.Run(mode.String(), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var off, on []float64
			for range rounds(b, 15) {
				off = append(off, measure())
				tracer := inMode(b, mode)
				on = append(on, measure())
				require.NoError(b, tracer.Close())
			}
			report(b, off, on)
		})
	}
}

// BenchmarkOrdinaryWork is what programs take that hardly ever ask for missing
// names, with nothing attached and in each mode, by turns. "idle" is the mode
// ENOENT while negative dentries do not grow.
func BenchmarkOrdinaryWork(b *testing.B) {
	here, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	root := string(bytes.TrimSpace(here))
	if err != nil {
		root = "" // a machine that has no sources
	}
	tree, repository := treeOfFiles(b), ""
	if git, err := exec.LookPath("git"); err == nil {
		repository = tree
		for _, command := range []string{"init", "add"} {
			command := exec.Command(git, command, ".")
			command.Dir = tree
			out, err := command.CombinedOutput()
			require.NoError(b, err, "%s", out)
		}
	}
	for _, work := range []struct {
		name, dir string
		command   []string
	}{
		{"tree", tree, []string{"find", "."}},
		{"status", repository, []string{"git", "status"}},
		{"find", "/", []string{"find", "/usr", "-xdev"}},
		{"git", root, []string{"sh", "-c", "for i in 0 1 2 3 4 5 6 7 8 9; do git status; git log -100; done"}},
		{"build", root, []string{"go", "build", "./..."}}, // what is cached is looked up only
	} {
		if work.dir == "" {
			continue
		}
		measure := func() float64 {
			command := exec.Command(work.command[0], work.command[1:]...)
			command.Dir = work.dir
			require.NoError(b, command.Run())
			return float64(command.ProcessState.UserTime() + command.ProcessState.SystemTime())
		}
		for _, mode := range []struct {
			attribution.Mode
			idle bool
		}{{attribution.Fentry, false}, {attribution.Kprobe, false}, {attribution.ENOENT, false}, {attribution.ENOENT, true}} {
			name := work.name + "/" + mode.String()
			if mode.idle {
				name += "-idle"
			}
			b.Run(name, func(b *testing.B) {
				measure() // so that the caches are warm
				var off, on []float64
				for range rounds(b, 9) {
					off = append(off, measure())
					tracer := inMode(b, mode.Mode)
					if mode.idle {
						require.NoError(b, tracer.Watch(false))
					}
					on = append(on, measure())
					require.NoError(b, tracer.Close())
				}
				report(b, off, on)
			})
		}
	}
}

// treeOfFiles makes one of 10,000 files in 100 directories.
func treeOfFiles(b *testing.B) string {
	b.Helper()
	root := ext4Of(b, 256<<20) // 32 MiB have 8,192 inodes
	for i := range 10_000 {
		dir := filepath.Join(root, fmt.Sprintf("directory-%02d", i%100))
		_ = os.Mkdir(dir, 0o755)
		require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%04d", i)), nil, 0o600))
	}
	return root
}

func report(b *testing.B, off, on []float64) {
	b.ReportMetric(0, "ns/op") // of no meaning
	b.ReportMetric(median(off), "ns/call-off")
	b.ReportMetric(median(on), "ns/call-on")
	b.ReportMetric(100*(median(on)/median(off)-1), "%more")
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// BenchmarkWalk is a walk of a million children. Meanwhile another thread wakes
// every millisecond on the same CPU, and notes how late: once as an ordinary task,
// which other ordinary ones on a busy machine delay as well, and once with real-time
// priority, when only what can't be preempted does.
func BenchmarkWalk(b *testing.B) {
	const children = 1_000_000
	w := newWalker(b)
	dir := ext4(b)
	miss(b, dir, 0, children)
	defer func() { _ = os.Remove(dir) }()
	b.ReportMetric(0, "ns/op")

	onCPU0 := func() func() {
		runtime.LockOSThread()
		var old, one unix.CPUSet
		require.NoError(b, unix.SchedGetaffinity(0, &old))
		one.Set(0)
		require.NoError(b, unix.SchedSetaffinity(0, &one))
		return func() {
			_ = unix.SchedSetaffinity(0, &old)
			runtime.UnlockOSThread()
		}
	}
	lateness := func(policy uint32, during func()) (late []float64) {
		var stop atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer onCPU0()()
			attributes := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}
			if policy == unix.SCHED_FIFO {
				attributes.Priority = 1
			}
			if err := unix.SchedSetAttr(0, &attributes, 0); err != nil {
				b.Log(err)
			}
			interval := unix.NsecToTimespec(int64(time.Millisecond))
			for !stop.Load() {
				start := time.Now()
				_ = unix.Nanosleep(&interval, nil)
				late = append(late, float64(time.Since(start)-time.Millisecond)/1e6)
			}
			_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
		}()
		during()
		stop.Store(true)
		<-done
		slices.Sort(late)
		return late
	}
	for _, policy := range []struct {
		name string
		id   uint32
	}{{"", unix.SCHED_NORMAL}, {"-fifo", unix.SCHED_FIFO}} {
		idle := lateness(policy.id, func() { time.Sleep(time.Second) })
		var perChild []float64
		late := lateness(policy.id, func() {
			defer onCPU0()()
			for range 5 {
				d, err := w.Walk(request(dir))
				require.NoError(b, err)
				require.True(b, d.Complete)
				require.EqualValues(b, children, d.Children)
				perChild = append(perChild, float64(d.Elapsed)/children)
			}
		})
		if policy.name == "" {
			b.ReportMetric(slices.Min(perChild), "ns/child-least")
			b.ReportMetric(median(perChild), "ns/child")
		}
		b.ReportMetric(late[len(late)-1], "ms-late"+policy.name)
		b.ReportMetric(late[len(late)*99/100], "ms-late-p99"+policy.name)
		b.ReportMetric(idle[len(idle)-1], "ms-late-without"+policy.name)
	}
}

// BenchmarkRead is the CPU time of reading full maps.
func BenchmarkRead(b *testing.B) {
	for _, mode := range []attribution.Mode{attribution.Fentry, attribution.Kprobe, attribution.ENOENT} {
		b.Run(mode.String(), func(b *testing.B) {
			dir := ext4(b)
			tracer := inMode(b, mode)
			// As many directories as rows.
			for i := range 10_000 {
				sub := filepath.Join(dir, fmt.Sprintf("directory-%05d", i%3000))
				_ = os.Mkdir(sub, 0o700)
				for k := range 3 {
					_, _ = os.Lstat(filepath.Join(sub, fmt.Sprintf("missing-%d", k)))
				}
			}
			fillRows(b, dir)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var cpu []float64
			var rows int
			for range 20 {
				start := threadCPU()
				sources, _, err := tracer.Read()
				require.NoError(b, err)
				cpu = append(cpu, float64(threadCPU()-start)/1e6)
				rows = len(sources)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(cpu), "ms-cpu")
			b.ReportMetric(float64(rows), "rows")
		})
	}
}

// fillRows makes more rows than there is room for.
func fillRows(t testing.TB, dir string) {
	t.Helper()
	for i := range 20_000 {
		_, _ = os.Lstat(filepath.Join(dir, fmt.Sprintf("directory-%05d", i), "missing"))
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer setComm(t, "attribution.tes")
	for i := range 20_000 {
		setComm(t, fmt.Sprintf("cold-%d", i))
		_ = missing(fd, i)
	}
}
