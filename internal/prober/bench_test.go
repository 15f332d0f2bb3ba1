package prober_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// What it takes to read the table of so many mounts, here and in a helper. The CPU time
// is that of this process and of the fork server with its helpers.
func BenchmarkMountTable(b *testing.B) {
	faultfs.Require(b)
	const n = 5000
	root := b.TempDir()
	require.NoError(b, unix.Mount("root", root, "tmpfs", 0, ""))
	b.Cleanup(func() { require.NoError(b, unix.Unmount(root, unix.MNT_DETACH)) })
	for i := range n {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(b, os.Mkdir(dir, 0o700))
		require.NoError(b, unix.Mount("server.example.com:/export/"+strconv.Itoa(i), dir, "tmpfs", 0, "size=4096k"))
	}
	p := start(b, prober.Options{})
	plan := func(add func(*prober.Plan)) func(*testing.B) {
		return func(b *testing.B) {
			plan := &prober.Plan{Timeout: time.Minute}
			add(plan)
			for b.Loop() {
				r := p.Run(prober.Check{Key: "host mounts", Essential: true, Plan: plan})
				require.Equal(b, prober.Done, r.Outcome, "%v", &r)
				require.Nil(b, r.Failed(), "%v", &r)
			}
		}
	}
	for _, tt := range []struct {
		name string
		read func(*testing.B)
	}{
		{"in-process", func(b *testing.B) {
			for b.Loop() {
				_, err := os.ReadFile("/proc/self/mountinfo")
				require.NoError(b, err)
			}
		}},
		{"ReadFile", plan(func(plan *prober.Plan) { plan.ReadFile("/proc/self/mountinfo", tableLimit) })},
		{"StatMounts", plan(func(plan *prober.Plan) {
			plan.Add(prober.StatMounts(maskBasic|maskOptions, maskBasic, &prober.KnownMounts{Magics: [128]uint64{0x4711}}, tableLimit))
		})},
		{"StatMounts, known", plan(func(plan *prober.Plan) {
			plan.Add(prober.StatMounts(maskBasic|maskOptions, maskBasic, &prober.KnownMounts{Last: 1 << 60}, tableLimit))
		})},
	} {
		b.Run(tt.name, func(b *testing.B) {
			before, helpers := cpuTime(b), p.Stats().CPUSeconds
			tt.read(b)
			own := (cpuTime(b) - before).Seconds()
			b.ReportMetric(1e3*own/float64(b.N), "own-ms/op")
			b.ReportMetric(1e3*(p.Stats().CPUSeconds-helpers)/float64(b.N), "helper-ms/op")
		})
	}
}

// cpuTime is that of this process.
func cpuTime(b *testing.B) time.Duration {
	var used unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
