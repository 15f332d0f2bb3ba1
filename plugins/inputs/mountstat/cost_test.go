package mountstat

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// gatherOf returns an input that watches n file systems, made for the test, and
// makes their first gather.
func gatherOf(t testing.TB, n int) (m *Mountstat, root string) {
	t.Helper()
	faultfs.Require(t)
	root = t.TempDir()
	for i := range n {
		mountTmpfs(t, filepath.Join(root, strconv.Itoa(i)))
	}
	m, log := newInput(t, func(m *Mountstat) {
		m.MountPoints, m.IgnoreFS = []string{root + "/*"}, nil
	})
	log.quiet = true
	g := &collect.Metrics{}
	require.NoError(t, m.Gather(g))
	require.Len(t, g.Named("mountstat"), n)
	return m, root
}

func mountTmpfs(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func TestMountstat_ParsesTheTableOncePerChange(t *testing.T) {
	m, root := gatherOf(t, 3)
	parses := func(gathers int) (n int) {
		for range gathers {
			before := m.table
			collect.Gather(t, m)
			if m.table != before { // a parse makes a table of its own
				n++
			}
		}
		return n
	}
	assert.Zero(t, parses(5), "nothing was mounted")
	mountTmpfs(t, filepath.Join(root, "new"))
	assert.Equal(t, 1, parses(1), "a mount came")
	assert.Zero(t, parses(5), "and nothing else")
	require.NoError(t, unix.Unmount(filepath.Join(root, "new"), 0))
	assert.Equal(t, 1, parses(6), "it went")
}

// The first bound is a promise; the second is some twice of what is needed.
func TestMountstat_AllocationsOfAGather(t *testing.T) {
	const n = 100
	m, _ := gatherOf(t, n)
	collect.AssertAllocations(t, m, n, 95, 2600)
}

// BenchmarkGather reports what a whole gather allocates, the metrics included.
func BenchmarkGather(b *testing.B) {
	for _, n := range []int{20, 200, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			m, _ := gatherOf(b, n)
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, m.Gather(&collect.Metrics{}))
			}
		})
	}
}
