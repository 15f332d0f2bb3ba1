package nfslock

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// A gather of 100 healthy mounts of 5 servers, with the CPU time of the plugin,
// its fork server and all helpers.
func BenchmarkGather(b *testing.B) {
	serveNFS(b)
	rpchost.StartRPCBind(b)
	rpchost.StartStatd(b)
	n, _ := newInput(b)
	options := make(map[string]string)
	for i := range 100 {
		options[tmpfs(b, "")] = fmt.Sprintf("vers=3,proto=tcp,addr=127.0.0.%d", i%5+1)
	}
	pretend(b, n, options)
	ok := func() {
		for _, m := range collect.Gather(b, n).Named("nfslock") {
			if verdict(b, m) != "ok ok" {
				b.Fatal(m)
			}
		}
	}
	ok()
	cpu := func() time.Duration {
		var own unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
			b.Fatal(err)
		}
		return time.Duration(own.Utime.Nano()+own.Stime.Nano()) + time.Duration(n.host.Prober.Stats().CPUSeconds*float64(time.Second))
	}
	before := cpu()
	for b.Loop() {
		ok()
	}
	b.ReportMetric(float64((cpu()-before).Microseconds())/1000/float64(b.N), "cpu-ms/gather")
}
