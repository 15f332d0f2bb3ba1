package nfslock

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// A FIFO stands in for the kernel's log, to which no program can write as the
// kernel.
func TestTheKernelsWord(t *testing.T) {
	log := filepath.Join(t.TempDir(), "kmsg")
	require.NoError(t, unix.Mkfifo(log, 0o600))
	kernel, err := os.OpenFile(log, os.O_RDWR, 0)
	require.NoError(t, err)
	defer kernel.Close()
	say := func(lines ...string) {
		for _, line := range lines {
			_, err := kernel.WriteString(line)
			require.NoError(t, err)
		}
	}
	dir := tmpfs(t, "")
	n, _ := newInput(t, func(n *Nfslock) { n.KernelLog = log })
	pretend(t, n, map[string]string{dir: nfs4})
	say("4,1,1,-;NFS: nas: lost 3 locks")
	g := collect.Gather(t, n)
	host, server := g.Named("nfslock_host")[0], g.Named("nfslock_server")[0]
	assert.Equal(t, int64(3), field(t, host, "kernel_lost_locks"))
	assert.Equal(t, int64(3), field(t, server, "kernel_lost_locks"))
	assert.Equal(t, int64(0), field(t, server, "kernel_not_responding"))
	for i, line := range []string{
		"5,2,1,-;lockd: server 127.0.0.1 not responding, still trying",
		"5,3,1,-;statd: server rpc.statd not responding, timed out",
		"12,4,1,-;lockd: cannot monitor nas", // a program's
		"5,6,1,-;lockd: cannot monitor nas",
	} {
		say(line)
		g = collect.Gather(t, n)
		assert.Equal(t, int64(1), field(t, g.Named("nfslock_host")[0], "kernel_not_responding"), i)
	}
	host, server = g.Named("nfslock_host")[0], g.Named("nfslock_server")[0]
	assert.Equal(t, int64(1), field(t, server, "kernel_not_responding"), "by its address")
	assert.Equal(t, int64(1), field(t, server, "kernel_cannot_monitor"), "by its name")
	assert.Equal(t, int64(0), field(t, server, "kernel_timed_out"), "statd is this host's")
	assert.Equal(t, int64(1), field(t, host, "kernel_timed_out"))
	assert.Equal(t, int64(1), field(t, host, "kernel_log_lost"))
}

func TestWithoutTheKernelsLog(t *testing.T) {
	dir := tmpfs(t, "")
	n, log := newInput(t, func(n *Nfslock) {
		on(dir)(n)
		n.KernelLog = filepath.Join(t.TempDir(), "kmsg")
	})
	for range 2 {
		g := collect.Gather(t, n)
		assert.False(t, g.Named("nfslock_host")[0].HasField("kernel_timed_out"))
	}
	assert.Len(t, log.About("are not counted"), 1)
}
