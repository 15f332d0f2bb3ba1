package mountstat

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// stack mounts n tmpfs on one directory, each on the root of the last: by descriptors, since the
// kernel would walk up the stack for each path. Their sources are numbers, from 0 on.
func stack(t *testing.T, dir string, n int) {
	t.Helper()
	below, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for i := range n {
		fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		require.NoError(t, err)
		require.NoError(t, unix.FsconfigSetString(fs, "source", strconv.Itoa(i)))
		require.NoError(t, unix.FsconfigCreate(fs))
		mounted, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.MoveMount(mounted, "", below, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
		require.NoError(t, unix.Close(fs))
		require.NoError(t, unix.Close(below))
		below = mounted
	}
	require.NoError(t, unix.Close(below))
}

// processTime is the CPU time of this process.
func processTime(t testing.TB) time.Duration {
	t.Helper()
	var usage unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// beside mounts n tmpfs side by side in a directory.
func beside(t *testing.T, dir string, n int) {
	t.Helper()
	for i := range n {
		at := filepath.Join(dir, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(at, 0o755))
		require.NoError(t, unix.Mount(strconv.Itoa(i), at, "tmpfs", 0, "size=4k"))
	}
}

// Of mounts that lie on one another a path leads to one. The kernel's time for their table is
// quadratic, and no call is free of that: when it is over the table is there, and a gather takes
// no more than beside as many that lie side by side. VFSPROBE_STACKED says how many there are;
// 32,767 take the kernel some seconds.
func TestMountstat_ManyMountsOnOneDirectory(t *testing.T) {
	faultfs.Require(t)
	n := 4096
	if text := os.Getenv("VFSPROBE_STACKED"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	sideBySide := gatherBeside(t, n, func(dir string) { beside(t, dir, n) })
	stacked := gatherBeside(t, n, func(dir string) { stack(t, dir, n) })
	assert.Less(t, stacked, 2*sideBySide+20*time.Millisecond)
}

// gatherBeside is the CPU time of a gather of a directory in which n mounts were made in some
// way, and what it says of the directory when the last of them is gone.
func gatherBeside(t *testing.T, n int, fill func(dir string)) time.Duration {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base")
	mountTmpfs(t, base) // all go with it
	dir := filepath.Join(base, "directory")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, unix.Mount("below", dir, "tmpfs", 0, "size=16m"))
	fill(dir)

	m, log := newInput(t, func(m *Mountstat) { m.MountPoints, m.IgnoreFS = []string{dir}, nil })
	log.quiet = true
	began := time.Now()
	await := func(source string) {
		t.Helper()
		require.Eventually(t, func() bool {
			p := at(collect.Gather(t, m), dir)
			return p != nil && p.Tags()["device"] == source && text(p, "result") == "ok"
		}, 3*time.Minute, 100*time.Millisecond, "no verdict of "+source)
	}
	top, next := "below", "" // of those that lie side by side none is on the directory
	if mounted, err := os.ReadDir(dir); err == nil && len(mounted) == 0 {
		top, next = strconv.Itoa(n-1), strconv.Itoa(n-2)
	}
	await(top)
	t.Logf("the table was there after %v", time.Since(began).Round(time.Millisecond))

	const gathers = 20
	before := processTime(t)
	for range gathers {
		points := collect.Gather(t, m).Named("mountstat")
		require.Len(t, points, 1)
		require.Equal(t, "ok", text(points[0], "result"))
	}
	each := (processTime(t) - before) / gathers
	t.Logf("a gather takes %v of CPU", each)
	if next != "" {
		require.NoError(t, unix.Unmount(dir, 0))
		await(next)
	}
	require.NoError(t, unix.Unmount(base, unix.MNT_DETACH))
	return each
}
