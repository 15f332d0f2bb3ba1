package mountstat

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/leaks"
)

// TestMountstat_MemoryDoesNotGrow lets 50 mounts fail, hang, come and go. Nor do goroutines,
// descriptors, threads and children. It gathers 200
// times, or as often as GATHERS says: "make bench" does it 10000 times.
func TestMountstat_MemoryDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes ten seconds")
	}
	faultfs.Require(t)
	gathers := 200
	if text := os.Getenv("GATHERS"); text != "" {
		var err error
		gathers, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	root := t.TempDir()
	var all []*faultfs.FS
	mount := func(i int) *faultfs.FS {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		fs, err := faultfs.Mount(dir, faultfs.Options{})
		require.NoError(t, err)
		return fs
	}
	for i := range 50 {
		all = append(all, mount(i))
	}
	t.Cleanup(func() {
		for _, fs := range all {
			fs.Close()
		}
	})
	m, log := newInput(t, func(m *Mountstat) {
		m.FS = []string{"fuse.faultfs"}
		m.Timeout = config.Duration(30 * time.Millisecond)
	})
	log.quiet = true
	random := rand.New(rand.NewPCG(1, 2))
	flap := func() {
		for range 5 {
			i := random.IntN(len(all))
			switch fs := all[i]; random.IntN(6) {
			case 0:
				fs.Fail(unix.EIO, faultfs.Statfs)
			case 1:
				if random.IntN(8) == 0 {
					fs.Silence(faultfs.Readdir)
				}
			case 2:
				fs.Close()
				all[i] = mount(i)
			default:
				fs.Heal()
			}
		}
	}
	var at []uint64 // the heap after each quarter
	var held leaks.Held
	for round := range gathers {
		flap()
		collect.Gather(t, m)
		log.lines = nil
		if (round+1)%(gathers/4) == 0 {
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			at = append(at, stats.HeapAlloc)
			for _, fs := range all {
				fs.Heal()
			}
			require.Eventually(t, func() bool { s := m.host.Prober.Stats(); return s.Stuck+s.Asleep+s.Running == 0 }, 20*time.Second, time.Millisecond)
			if len(at) == 1 {
				held = leaks.Now(t)
			}
			held.Check(t)
		}
	}
	t.Logf("heap in kB after each quarter of %d gathers: %d %d %d %d", gathers, at[0]>>10, at[1]>>10, at[2]>>10, at[3]>>10)
	assert.Less(t, at[3], at[0]+at[0]/4+1<<20, "the last quarter against the first")
	assert.LessOrEqual(t, len(m.targets), len(all))
}
