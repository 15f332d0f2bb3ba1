package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// A reader that hung, or was stopped, brings a table that may be older than a change
// which was announced since.
func TestWatcher_AReaderThatWasOvertaken(t *testing.T) {
	faultfs.Require(t)
	for _, plain := range []bool{true, false} {
		w := watcher(t)
		w.plainText, w.anyAsks = plain, always
		require.NoError(t, w.View(1).Hindrance)
		r := w.startReading(w.plan())
		require.True(t, r.wait(10*time.Second))
		w.reading, w.stale = r, true
		dir := filepath.Join(t.TempDir(), "new")
		mount(t, "new", dir, "tmpfs", 0, "")
		view := w.View(2)
		require.NoError(t, view.Hindrance)
		assert.NotNil(t, view.At(dir), "what the first has read is too old")
		assert.Zero(t, view.Age)
	}
}

// changing is a watcher of a table in a file, whose kernel says each time that it has
// changed until it is told not to: poll says that something happened to a FIFO which
// has lost its writer.
func changing(t *testing.T, file string) (w *Watcher, p *prober.Prober, calm func()) {
	t.Helper()
	p = prober.New(prober.Options{})
	t.Cleanup(p.Close)
	w = NewWatcher(WatcherOptions{Prober: p, Proc: filepath.Dir(filepath.Dir(file)), PID: "1", Patience: 10 * time.Second})
	t.Cleanup(func() { assert.NoError(t, w.Close()) })
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	reader, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	open := func() int {
		writer, err := unix.Open(fifo, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		return writer
	}
	require.NoError(t, unix.Close(open()))
	w.file = os.NewFile(uintptr(reader), fifo)
	return w, p, func() {
		writer := open()
		t.Cleanup(func() { unix.Close(writer) })
	}
}

func table(points ...string) []byte {
	var b strings.Builder
	b.WriteString("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	for _, point := range points {
		fmt.Fprintf(&b, "%d 20 0:%d / /%s rw - tmpfs %s rw\n", 30+point[0], point[0], point, point)
	}
	return []byte(b.String())
}

func points(s *Snapshot) (all []string) {
	for i := range s.Mounts {
		all = append(all, s.Mounts[i].Mountpoint)
	}
	return all
}

// Before Linux 5.8 a reading during which somebody unmounts skips lines.
func TestWatcher_AChangingTableWithoutACursorLosesNoMount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "1", "mountinfo")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	write := func(points ...string) { require.NoError(t, os.WriteFile(file, table(points...), 0o600)) }
	write("a", "b", "c")
	w, p, calm := changing(t, file)
	w.cursor = false
	view := w.View(1)
	require.NoError(t, view.Hindrance)
	assert.Equal(t, []string{"/", "/a", "/b", "/c"}, points(view.Snapshot))
	assert.EqualValues(t, maxRereads, p.Stats().Forked)

	write("a", "c", "d")
	view = w.View(2)
	require.NoError(t, view.Hindrance)
	assert.ElementsMatch(t, []string{"/", "/a", "/b", "/c", "/d"}, points(view.Snapshot), "b may be there still")
	assert.NotNil(t, view.At("/b"))

	calm()
	view = w.View(3)
	require.NoError(t, view.Hindrance)
	assert.Zero(t, view.Age)
	assert.Equal(t, []string{"/", "/a", "/c", "/d"}, points(view.Snapshot), "b is gone")
	before := p.Stats().Forked
	assert.Same(t, view.Snapshot, w.View(4).Snapshot)
	assert.Equal(t, before, p.Stats().Forked)
}

func TestWatcher_AChangingTableWithACursorIsReadOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "1", "mountinfo")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, table("a"), 0o600))
	w, p, _ := changing(t, file)
	w.cursor = true
	for round := range uint64(3) {
		require.NoError(t, w.View(round).Hindrance)
		assert.EqualValues(t, round+1, p.Stats().Forked)
	}
}

func TestSnapshot_With(t *testing.T) {
	before := Parse([]byte("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 0:5 / /a rw - tmpfs x rw\n22 21 0:6 / /a/b rw - tmpfs y rw\n"))
	before.Mounts[1].Device = "kept"
	now := Parse([]byte("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:6 / /a/b rw - tmpfs z rw\nnonsense\n"))
	both := now.with(before)
	assert.Equal(t, []string{"/", "/a/b", "/a"}, points(both))
	assert.Equal(t, "z", both.At("/a/b").Source, "the later one")
	assert.Equal(t, "kept", both.At("/a").Device)
	assert.Equal(t, 1, both.Malformed)
	assert.Error(t, both.Err)
	assert.Same(t, both.At("/a"), both.Above(both.At("/a/b")))
	assert.Same(t, now, now.with(nil))
}

// A reader that reads for too long, and does not wait, has more time at its next try: one that
// hangs has not. What takes long is read seldom where the kernel has announced nothing.
func TestWatcher_GivesALargeTableMoreTime(t *testing.T) {
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	w := NewWatcher(WatcherOptions{Prober: p, Proc: "/proc", PID: "self"})
	t.Cleanup(func() { _ = w.Close() })
	require.NoError(t, w.open())
	try := func(before, after int) time.Duration {
		w.reading = &reading{done: make(chan struct{}), seen: before,
			report: prober.Report{Outcome: prober.Expired, PID: 1, Partial: make([]byte, after)}}
		close(w.reading.done)
		require.Error(t, w.read(0))
		return w.timeout
	}
	assert.Equal(t, readerTimeout, try(0, 0), "it read nothing")
	assert.Equal(t, readerTimeout, try(100, 100), "it waits")
	assert.Equal(t, 2*readerTimeout, try(100, 200))
	for range 10 {
		try(100, 200)
	}
	assert.Equal(t, maxReaderTimeout, w.timeout)
	require.NoError(t, w.read(time.Minute))

	w.Invalidate()
	assert.True(t, w.stale)
	require.NoError(t, w.read(time.Minute))
	w.stale, w.took = false, 2*time.Second
	w.Invalidate()
	assert.False(t, w.stale, "it would take a fifth of the time")
	w.asOf = time.Now().Add(-201 * time.Second)
	w.Invalidate()
	assert.True(t, w.stale)
}

// stacked is a table of n mounts on one directory, each on the last.
func stacked(n int, reversed bool) *Snapshot {
	var b strings.Builder
	for i := range n {
		if reversed {
			i = n - 1 - i
		}
		fmt.Fprintf(&b, "%d %d 0:%d / /srv rw - tmpfs tmpfs rw\n", 100+i, 99+i, i)
	}
	return Parse([]byte(b.String()))
}

// rings is a table of n mounts that lies: two each are one another's parents.
func rings(n int) *Snapshot {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d %d 0:%d / /srv/%d rw - tmpfs tmpfs rw\n", 100+i, 100+i^1, i, i)
	}
	return Parse([]byte(b.String()))
}

// threadCPU is the CPU time of this thread, which other processes hardly change. The clock is
// exact, where getrusage(2) says what was at the last tick.
func threadCPU(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used))
	return time.Duration(used.Nano())
}

func TestSnapshot_TimeIsLinear(t *testing.T) {
	for name, shape := range map[string]func(n int) *Snapshot{
		"stacked":  func(n int) *Snapshot { return stacked(n, false) },
		"reversed": func(n int) *Snapshot { return stacked(n, true) },
		"rings":    rings,
	} {
		t.Run(name, func(t *testing.T) {
			const n = 32_767
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			took := func(s *Snapshot) time.Duration {
				before := threadCPU(t)
				markReach(s.Mounts, s.byID, &notes{})
				return threadCPU(t) - before
			}
			eighth, whole := shape(n/8), shape(n)
			require.Len(t, whole.Mounts, n)
			if name != "rings" {
				assert.Len(t, whole.Visible(func(*Mount) bool { return true }), 1)
			}
			single, all := took(eighth), took(whole)
			for range 9 { // by turns: the machine may slow down
				single, all = min(single, took(eighth)), min(all, took(whole))
			}
			assert.Less(t, all, 24*single+50*time.Millisecond, "%v for %d, %v for eight times as many", single, n/8, all)
		})
	}
}
