package dentrycache

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// cpu is what the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	return time.Duration(own.Utime.Nano() + own.Stime.Nano())
}

// What is read of the whole host in each gather: at most 200 µs of CPU.
func BenchmarkPassive(b *testing.B) {
	d, _ := newInput(b, func(d *DentryCache) { d.TopCgroups = 0 })
	acc := &collect.Metrics{}
	before := cpu(b)
	for b.Loop() {
		if err := d.gatherHost(acc, time.Now()); err != nil {
			b.Fatal(err)
		}
		acc = &collect.Metrics{}
	}
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/gather")
}

// A whole gather of one directory, with the CPU time of its helpers.
func BenchmarkGather(b *testing.B) {
	d, _ := newInput(b, func(d *DentryCache) {
		d.Directories, d.Attribution, d.CountChildren = []string{"/"}, "auto", true
	})
	collect.Gather(b, d)
	helpers := d.host.Prober.Stats().CPUSeconds
	before := cpu(b)
	for b.Loop() {
		collect.Gather(b, d)
	}
	used := cpu(b) - before + time.Duration((d.host.Prober.Stats().CPUSeconds-helpers)*float64(time.Second))
	b.ReportMetric(float64(used.Nanoseconds())/1000/float64(b.N), "cpu-µs/gather")
}
