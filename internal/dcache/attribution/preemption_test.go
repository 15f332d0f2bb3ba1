package attribution_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
)

// TestTracer_ScratchInUse: while one program uses what the others on its CPU share, they count
// without it, and say nothing rather than what is another's.
func TestTracer_ScratchInUse(t *testing.T) {
	const names = 300
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		tracer := unsampled(t, mode)
		dir := ext4(t)
		require.NoError(t, tracer.Use(1, 0))
		miss(t, dir, 0, names)
		s := in(t, tracer, dir)
		assert.InDelta(t, names, s.Created, astray(mode))
		assert.Empty(t, s.Place.Path)
		assert.Empty(t, s.Place.FSType)
		assert.True(t, s.Place.Truncated, "it is not known how long")

		require.NoError(t, tracer.Use(0, 0))
		miss(t, dir, names, 2*names)
		s = in(t, tracer, dir)
		assert.InDelta(t, 2*names, s.Created, 2*astray(mode))
		assert.Equal(t, []string{filepath.Base(filepath.Dir(dir)), "sub dir"}, s.Place.Path)
		assert.False(t, s.Place.Truncated)
	})
}

// TestTracer_RowOfAnother: no row has the pid and uid of another one's process.
func TestTracer_RowOfAnother(t *testing.T) {
	const names = 100
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		tracer := unsampled(t, mode)
		dir := ext4(t)
		miss(t, dir, 0, names)
		s := in(t, tracer, dir)
		assert.EqualValues(t, os.Getpid(), s.PID)

		require.NoError(t, tracer.WriteAstray(s.Comm, 1, 4711))
		s = in(t, tracer, dir)
		assert.Zero(t, s.PID)
		assert.Zero(t, s.UID)
		assert.InDelta(t, names, s.Created, astray(mode))

		miss(t, dir, names, 2*names)
		s = in(t, tracer, dir)
		assert.EqualValues(t, os.Getpid(), s.PID)
		assert.EqualValues(t, os.Getuid(), s.UID)
	})
}

// TestTracer_ExplanationInUse: what grows while another program on that CPU reads the path of a
// system call has a command, and no directory.
func TestTracer_ExplanationInUse(t *testing.T) {
	const names = 300
	tracer := unsampled(t, attribution.ENOENT)
	if !tracer.Status().Counted {
		t.Skip("one program only, which runs once at a time")
	}
	dir := ext4(t)
	before := withoutDirectory(t, tracer)
	require.NoError(t, tracer.Use(0, 1))
	miss(t, dir, 0, names)
	assert.Zero(t, in(t, tracer, dir).Created)
	assert.InDelta(t, names, withoutDirectory(t, tracer)-before, astray(attribution.ENOENT))

	require.NoError(t, tracer.Use(0, 0))
	miss(t, dir, names, 2*names)
	assert.InDelta(t, names, in(t, tracer, dir).Created, astray(attribution.ENOENT))
}

// TestTracer_NamesWhilePreempted: no directory gets the path of another one, though threads of
// one CPU take it from each other while programs read what their directories are called. That
// shows a fault only where the kernel preempts programs.
func TestTracer_NamesWhilePreempted(t *testing.T) {
	const threads, each, levels = 6, 400, 12
	eachMode(t, func(t *testing.T, mode attribution.Mode) {
		top := ext4(t)
		paths := make(map[uint64]string) // by inode
		dirs := make([][]int, threads)
		var device attribution.Device
		for i := range threads {
			deep := top
			for level := range levels {
				deep = filepath.Join(deep, fmt.Sprintf("thread-%d-level-%d", i, level))
			}
			require.NoError(t, os.MkdirAll(deep, 0o700))
			for n := range each {
				dir := filepath.Join(deep, fmt.Sprintf("dir-%d-%d", i, n))
				require.NoError(t, os.Mkdir(dir, 0o700))
				inode, of := inodeOf(t, dir)
				paths[inode], device = dir, of
				fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				require.NoError(t, err)
				defer unix.Close(fd)
				dirs[i] = append(dirs[i], fd)
			}
		}
		tracer := inMode(t, mode)
		var cpus unix.CPUSet
		require.NoError(t, unix.SchedGetaffinity(0, &cpus))
		var one unix.CPUSet
		for cpu := 0; one.Count() == 0; cpu++ {
			if cpus.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		var wait sync.WaitGroup
		for i := range threads {
			wait.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				assert.NoError(t, unix.SchedSetaffinity(0, &one))
				defer func() { assert.NoError(t, unix.SchedSetaffinity(0, &cpus)) }()
				for _, fd := range dirs[i] {
					assert.Equal(t, unix.ENOENT, missing(fd, 0))
					file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
					assert.NoError(t, err)
					assert.NoError(t, unix.Close(file))
					assert.NoError(t, unix.Unlinkat(fd, "file", 0))
				}
			})
		}
		wait.Wait()
		sources, _, err := tracer.Read()
		require.NoError(t, err)
		named, wrong := 0, []string(nil)
		for _, s := range sources {
			path, ours := paths[s.Place.Inode]
			if !ours || s.Place.Device != device || len(s.Place.Path) == 0 {
				continue
			}
			named++
			if got := strings.Join(s.Place.Path, "/"); !strings.HasSuffix(path, "/"+got) {
				wrong = append(wrong, fmt.Sprintf("%s is called %q", path, got))
			}
		}
		t.Logf("%d of %d directories have a name; %d events lost", named, len(paths), tracer.Status().EventsLost)
		assert.Positive(t, named)
		assert.Eventually(t, func() bool {
			inUse, err := tracer.InUse()
			return err == nil && !inUse
		}, 20*time.Second, 10*time.Millisecond, "whoever enters leaves")
		assert.Empty(t, wrong)
	})
}
