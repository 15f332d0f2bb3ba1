package mounts_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// BenchmarkWatcher_Change reports the CPU time, helpers included, of a view after a
// change in a table of 5,000 mounts.
func BenchmarkWatcher_Change(b *testing.B) {
	faultfs.Require(b)
	root := b.TempDir()
	require.NoError(b, unix.Mount("root", root, "tmpfs", 0, ""))
	b.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for i := range 5000 {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(b, os.Mkdir(dir, 0o700))
		require.NoError(b, unix.Mount("server.example.com:/export/"+strconv.Itoa(i), dir, "tmpfs", 0, "size=4096k"))
	}
	turn := uintptr(1)
	for name, pid := range map[string]string{"by statmount": "self", "by text": strconv.Itoa(os.Getpid())} {
		b.Run(name, func(b *testing.B) {
			p := prober.New(prober.Options{})
			defer p.Close()
			w := mounts.NewWatcher(mounts.WatcherOptions{Prober: p, Proc: "/proc", PID: pid})
			defer w.Close()
			require.NotNil(b, w.View(1).Snapshot)
			var before, after unix.Rusage
			helpers := p.Stats().CPUSeconds
			require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &before))
			for i := range b.N {
				last := w.View(uint64(i + 1)).Snapshot
				require.NoError(b, unix.Mount("", filepath.Join(root, "0"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID*(turn%2), ""))
				turn++
				require.NotSame(b, last, w.View(uint64(i+2)).Snapshot)
			}
			require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &after))
			own := float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano()) / 1e6
			b.ReportMetric((own+1e3*(p.Stats().CPUSeconds-helpers))/float64(b.N), "cpu-ms/op")
		})
	}
}
