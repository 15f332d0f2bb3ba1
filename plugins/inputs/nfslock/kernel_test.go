package nfslock

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/kernellog"
)

func TestKernel_CountsItsMessages(t *testing.T) {
	log, say := kernellog.New(t)
	dir := tmpfs(t, "")
	n, _ := newInput(t, func(n *NFSLock) { n.KernelLog = log })
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

func TestKernel_WithoutItsLog(t *testing.T) {
	dir := tmpfs(t, "")
	n, log := newInput(t, func(n *NFSLock) {
		on(dir)(n)
		n.KernelLog = filepath.Join(t.TempDir(), "kmsg")
	})
	for range 2 {
		g := collect.Gather(t, n)
		assert.False(t, g.Named("nfslock_host")[0].HasField("kernel_timed_out"))
	}
	assert.Len(t, log.About("are not counted"), 1)
}

// Tunnels to several servers begin at ports of this host, and the kernel's messages name the
// address alone.
func TestKernel_CountsEachMessageForOneServer(t *testing.T) {
	n, _ := newInput(t)
	k := &kernel{readable: true, total: make(map[kmsg.Kind]int64), of: make(map[mounts.NFSServer]map[kmsg.Kind]int64), unclaimed: make(map[string]map[kmsg.Kind]int64)}
	server := func(port uint16, answer serverpool.Answer) *lockServer {
		s := &lockServer{NFSServer: mounts.NFSServer{Address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Network: "tcp", Version: 4}, names: map[string]bool{"127.0.0.1": true}}
		s.nfs = answer
		return s
	}
	say := func(text string) { k.note(n, kmsg.Record{Text: text, At: time.Now()}) }
	of := func(s *lockServer) int64 {
		fields := make(map[string]any)
		k.serverFields(s, fields)
		return fields["kernel_not_responding"].(int64)
	}
	const message = "nfs: server 127.0.0.1 not responding, still trying"
	say(message)
	well, dead, alsoDead := server(20049, up), server(20050, silent), server(20051, silent)
	n.servers = map[mounts.NFSServer]*lockServer{well.key(): well, dead.key(): dead}
	say(message)
	assert.Equal(t, []int64{0, 1}, []int64{of(well), of(dead)}, "that of the server which does not answer")
	n.servers[alsoDead.key()] = alsoDead
	say(message)
	assert.Equal(t, []int64{0, 1, 0}, []int64{of(well), of(dead), of(alsoDead)}, "it may be either's")
	assert.Equal(t, int64(3), k.total[kmsg.NotResponding])

	alsoDead.nfs, dead.nfs = up, up
	again := k.doubtful[0]
	k.doubtful = nil
	k.claim(n, again.Message, again.at)
	require.Len(t, k.doubtful, 1, "none is at fault yet")
	dead.nfs = silent
	k.claim(n, again.Message, again.at)
	assert.Equal(t, []int64{0, 2, 0}, []int64{of(well), of(dead), of(alsoDead)}, "now one is")
	assert.Equal(t, int64(3), k.total[kmsg.NotResponding], "each is counted once")
}
