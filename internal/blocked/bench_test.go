package blocked_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
)

// sleepers is how many processes a benchmark adds to those of the host.
const sleepers = 3000

// crowd runs sleeping processes in a PID namespace of their own, which end with
// its first one.
func crowd(b *testing.B) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("a PID namespace takes root")
	}
	shell := exec.Command("sh", "-c", "i=0; while [ $i -lt "+strconv.Itoa(sleepers)+" ]; do sleep 600 & i=$((i+1)); done; echo; wait")
	shell.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	out, err := shell.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, shell.Start())
	b.Cleanup(func() {
		_ = shell.Process.Kill()
		_ = shell.Wait()
	})
	_, err = out.Read(make([]byte, 1)) // all are started
	require.NoError(b, err)
	time.Sleep(time.Second) // and asleep
}

func processes(b *testing.B) (count int) {
	b.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(b, err)
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err == nil {
			count++
		}
	}
	return count
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func BenchmarkScan(b *testing.B) {
	crowd(b)
	for name, waits := range map[string][]string{"D": nil, "D and FUSE": blocked.FUSEWaits()} {
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			scanner := newScanner(b, "/proc", waits...)
			count := processes(b)
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				_, err := scanner.Scan(time.Now())
				require.NoError(b, err)
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N)/float64(count), "cpu-µs/process")
			b.ReportMetric(float64(count), "processes")
		})
	}
}
