package nfslock

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// pretend has the input take directories for NFS mounts with these options: the
// locks are those of what is there, and the servers are asked.
func pretend(t testing.TB, n *NFSLock, options map[string]string) {
	t.Helper()
	var table strings.Builder
	id := 1000
	for dir, o := range options {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Dir(dir), &st), "the mount point may hang")
		var sx unix.Statx_t
		require.NoError(t, unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, 0, &sx))
		id++
		fmt.Fprintf(&table, "%d 1 %d:%d / %s rw - nfs nas:/export%d rw,%s\n", id, sx.Dev_major, sx.Dev_minor, dir, id, o)
	}
	withTable(t, n, table.String())
}

const (
	nfs3 = "vers=3,proto=tcp,addr=127.0.0.1"
	nfs4 = "vers=4.2,proto=tcp,addr=127.0.0.1"
)

// serveNFS answers NULL calls at the NFS port.
func serveNFS(t testing.TB) {
	t.Helper()
	rpchost.Serve(t, "127.0.0.1:2049", rpchost.AnswerNull)
}

// askNow asks a server, or this host, and waits for the answers. A service that is silent on this
// host is given up after two seconds: one that is not may be late on a busy machine.
func askNow(t testing.TB, of func(*NFSLock) *lockServer) services {
	t.Helper()
	n, _ := newInput(t, within(10*timeout))
	s := of(n)
	n.round = n.host.Join(n)
	n.ask(s, true)
	for s.asking > 0 {
		<-n.mail.Wake()
		n.mail.Drain()
	}
	assert.Zero(t, n.asking)
	return s.services
}

func local(n *NFSLock) *lockServer { return &n.local }

func nfs3Server(address string) func(*NFSLock) *lockServer {
	return func(*NFSLock) *lockServer {
		return &lockServer{NFSServer: mounts.NFSServer{Address: netip.MustParseAddrPort(address), Network: "tcp", Version: 3}, byNLM: true}
	}
}

// A real rpcbind and a real rpc.statd, in all the states that matter.
func TestLockServer_ThisHostsStatd(t *testing.T) {
	diagnose := func() diagnosis {
		e := evidence{end: hung, stage: locking, nlm: true, local: askNow(t, local)}
		return e.diagnose()
	}
	if os.Geteuid() == 0 {
		assert.Equal(t, statdDown, diagnose(), "there is not even an rpcbind")
	}
	rpchost.StartRPCBind(t)
	assert.Equal(t, statdDown, diagnose())
	statd := rpchost.StartStatd(t)
	found := askNow(t, local)
	assert.Positive(t, found.rpcbind.Elapsed)
	assert.Positive(t, found.nsm.Elapsed)
	assert.Equal(t, unknown, diagnose())
	for _, address := range []string{"127.0.0.1:2049", "[::1]:2049"} {
		found = askNow(t, nfs3Server(address))
		assert.Equal(t, "ECONNREFUSED", found.nfs.Errno)
		assert.Equal(t, "ENOTREGISTERED", found.nlm.Errno)
		assert.Empty(t, found.rpcbind.Errno)
		assert.True(t, found.nsm.Known)
		assert.Empty(t, found.nsm.Errno)
	}

	require.NoError(t, statd.Signal(unix.SIGSTOP))
	assert.Equal(t, statdHung, diagnose())
	require.NoError(t, statd.Signal(unix.SIGCONT))
	assert.Equal(t, unknown, diagnose())
	require.NoError(t, statd.Kill())
	require.Eventually(t, func() bool { return diagnose() == statdDeadRegistered }, 30*time.Second, 10*time.Millisecond)
}

// The story that it all began with.
func TestLockServer_StatdStoppedBeforeTheFirstLock(t *testing.T) {
	serveNFS(t)
	rpchost.StartRPCBind(t)
	fs, other := daemon(t), daemon(t)
	n, log := newInput(t, within(slow, fs.Dir))
	pretend(t, n, map[string]string{fs.Dir: nfs3, other.Dir: nfs4})
	fs.Silence(faultfs.Setlk)
	// NFSv4 needs no statd. NFS helpers are called stuck by the next probe.
	var g *collect.Metrics
	require.Eventually(t, func() bool { // until rpcbind has told it, which may be late on a busy machine
		g = gatherAllUntil(t, n, map[string]string{fs.Dir: "timeout statd_down", other.Dir: "ok ok"})
		return text(t, g.Named("nfslock_host")[0], "statd_errno") == "ENOTREGISTERED"
	}, 30*time.Second, time.Millisecond)
	m := at(g, fs.Dir)
	assert.Equal(t, "setlk", text(t, m, "hangs_in"))
	assert.Equal(t, "server", text(t, m, "lock_scope"))
	assert.Equal(t, map[string]string{"path": fs.Dir, "fstype": "nfs", "server": "127.0.0.1", "version": "3"}, m.Tags())
	assert.Len(t, log.About("statd_down: the rpc.statd of this host is not registered"), 1)
	host := g.Named("nfslock_host")[0]
	assert.Positive(t, field(t, host, "rpcbind_seconds"))

	// Locks go on where the server is monitored already.
	fs.Heal()
	gatherUntil(t, n, fs.Dir, "error statd_down_latent")
	assert.Len(t, log.About("locks still work, but"), 1)

	rpchost.StartStatd(t)
	m = gatherUntil(t, n, fs.Dir, "ok ok")
	assert.Equal(t, int64(1), field(t, m, "recoveries"))
}

func TestLockServer_Servers(t *testing.T) {
	serveNFS(t)
	rpchost.StartRPCBind(t)
	rpchost.StartStatd(t)
	first, second, third := tmpfs(t, ""), tmpfs(t, ""), tmpfs(t, "")
	require.NoError(t, os.Remove(filepath.Join(second, ".nfslock-probe")))
	n, _ := newInput(t)
	pretend(t, n, map[string]string{first: nfs3, second: nfs3, third: nfs3 + ",local_lock=all"})
	g := collect.Gather(t, n)
	assert.Equal(t, "ok ok", verdict(t, at(g, first)))
	assert.Equal(t, "error nlm_unregistered", verdict(t, at(g, second)), "no canary, but the chain says enough")
	assert.Equal(t, "unchecked local_only", verdict(t, at(g, third)))
	assert.Equal(t, "local", text(t, at(g, third), "lock_scope"))
	servers := g.Named("nfslock_server")
	require.Len(t, servers, 1)
	assert.Equal(t, map[string]string{"server": "127.0.0.1"}, servers[0].Tags())
	fields := servers[0].Fields()
	for _, name := range []string{"nfs_seconds", "rpcbind_seconds", "nsm_seconds"} {
		assert.Positive(t, fields[name], name)
	}
	assert.Equal(t, "ENOTREGISTERED", fields["nlm_errno"])
	assert.Equal(t, int64(3), fields["mounts"])
	assert.Equal(t, int64(1), fields["faults"])
}

func TestLockServer_NFS4AsksNoLockManager(t *testing.T) {
	serveNFS(t)
	dir := tmpfs(t, "")
	n, _ := newInput(t)
	pretend(t, n, map[string]string{dir: nfs4})
	g := collect.Gather(t, n)
	assert.Equal(t, "ok ok", verdict(t, at(g, dir)))
	fields := g.Named("nfslock_server")[0].Fields()
	assert.Contains(t, fields, "nfs_seconds")
	for _, name := range []string{"rpcbind_seconds", "rpcbind_errno", "nlm_seconds", "nlm_errno", "nsm_seconds", "nsm_errno"} {
		assert.NotContains(t, fields, name)
	}
	assert.NotContains(t, g.Named("nfslock_host")[0].Fields(), "statd_errno")
}

// A hundred mounts of five dead servers: one question to each, one helper for
// each mount, and the time is kept. A healthy mount does not wait.
func TestLockServer_AllDead(t *testing.T) {
	faultfs.Require(t)
	// A hundred helpers are begun within 0.35 s at best, in seven turns, and within half of the
	// timeout they have to be.
	const limit = 4 * timeout
	options := make(map[string]string)
	var paths []string
	for i := range 100 {
		fs := daemon(t)
		fs.Pause() // killable, as NFS is
		options[fs.Dir] = fmt.Sprintf("vers=3,proto=tcp,addr=192.0.2.%d", i%5+1)
		paths = append(paths, fs.Dir)
	}
	n, log := newInput(t, within(limit, paths...))
	healthy := tmpfs(t, "")
	options[healthy] = nfs4
	serveNFS(t)
	pretend(t, n, options)
	gathers := 0
	for explained := 0; explained < 2; gathers++ {
		require.Less(t, gathers, 10)
		began := time.Now()
		g := collect.Gather(t, n)
		took := time.Since(began)
		t.Logf("timeout %v, gather %v", limit, took)
		assert.Less(t, took, 3*limit)
		assert.Equal(t, "ok ok", verdict(t, at(g, healthy)))
		dead := make(map[string]int)
		for _, m := range g.Named("nfslock") {
			dead[verdictOfHang(t, m)]++
		}
		assert.Equal(t, 1, dead["ok ok"], dead)
		assert.Len(t, g.Named("nfslock_server"), 6)
		// A busy host has no place for some of the helpers in time: then the server's silence
		// is all that there is to say. A very busy one has no time to ask a server.
		if dead["timeout server_unreachable"]+dead["error server_unreachable"] == 100 && dead["timeout server_unreachable"] >= 50 {
			explained++
		} else {
			t.Log(dead)
		}
	}
	said := log.About("server_unreachable")
	assert.GreaterOrEqual(t, len(said), 100)
	// That a helper which was killed is slow to end is news, and so is each diagnosis.
	assert.LessOrEqual(t, len(said), 100*(gathers-1)+len(log.About("where helper process")), "each said once")
	require.Eventually(t, func() bool { return n.host.Prober.Stats().Stuck == 0 }, 30*time.Second, 5*time.Millisecond)
}

// Answers may take longer than an interval: what fails is reported nevertheless.
func TestNFSLock_ReportsWhileAnswersTakeLongerThanAnInterval(t *testing.T) {
	faultfs.Require(t)
	fs := daemon(t)
	fs.Fail(unix.ENOLCK, faultfs.Setlk)
	n, _ := newInput(t, within(2*timeout))
	pretend(t, n, map[string]string{fs.Dir: "vers=4.2,proto=tcp,addr=192.0.2.1"})
	reports := 0
	for gathers := 0; gathers < 12 || reports < 2 && gathers < 100; gathers++ { // a busy machine may have no time for some
		hurry := time.AfterFunc(timeout/2, n.Interrupt)
		m := at(collect.Gather(t, n), fs.Dir)
		hurry.Stop()
		if m != nil && verdict(t, m) != "error unknown" { // a very busy machine has not asked the server
			assert.Equal(t, "error server_unreachable", verdict(t, m))
			reports++
		}
	}
	assert.GreaterOrEqual(t, reports, 2)
}

// Whoever answers garbage does not answer.
func TestLockServer_AnswersGarbage(t *testing.T) {
	rpchost.Serve(t, "127.0.0.1:111", func(conn net.Conn) {
		_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		_, _ = io.Copy(io.Discard, conn)
	})
	found := askNow(t, nfs3Server("127.0.0.1:2049"))
	assert.Equal(t, "EBADRPC", found.rpcbind.Errno)
	assert.False(t, found.nlm.Known, "nobody said where it is")
	assert.False(t, found.nsm.Known)
}

func TestLockServer_IsWhereAMountsCallsGo(t *testing.T) {
	dir := t.TempDir()
	for options, want := range map[string]string{
		"vers=3,proto=tcp,addr=10.0.0.1":                      "10.0.0.1 2049 tcp 3 true",
		"vers=3,proto=udp6,addr=fe80::1%eth0,mountport=20048": "fe80::1%eth0 2049 udp 3 true",
		"vers=3,proto=tcp,port=12049,addr=10.0.0.1":           "10.0.0.1 12049 tcp 3 true",
		"vers=4.1,proto=tcp6,addr=fd00::1":                    "fd00::1 2049 tcp 4 false",
		"vers=3,nolock,proto=tcp,addr=10.0.0.1":               "10.0.0.1 2049 tcp 3 false",
		"vers=3,proto=tcp,local_lock=all,addr=10.0.0.1":       "10.0.0.1 2049 tcp 3 false",
		"vers=3,proto=tcp,local_lock=flock,addr=10.0.0.1":     "10.0.0.1 2049 tcp 3 true",
		"vers=3,proto=rdma,port=20049,addr=10.0.0.1":          "10.0.0.1 0 tcp 0 true",
		"vers=3,proto=tcp,addr=nas.example.org":               "-",
		"vers=3,proto=tcp":                                    "-",
	} {
		n, _ := newInput(t)
		pretend(t, n, map[string]string{dir: options})
		n.refresh()
		got := "-"
		if s := n.targets[0].server; s != nil {
			got = fmt.Sprintf("%v %d %s %d %v", s.Address.Addr(), s.Address.Port(), s.Network, s.Version, s.byNLM)
		}
		assert.Equal(t, want, got, options)
	}
}

// A server that was started before this host's first lock on it: nobody but the server itself
// knows that it gives none yet.
func TestLockServer_SaysThatItsGracePeriodLasts(t *testing.T) {
	fs := daemon(t)
	var status atomic.Uint32
	status.Store(10013) // NFS4ERR_GRACE
	rpchost.Serve(t, "127.0.0.1:2049", rpchost.Answer(func([]byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, status.Load()), make([]byte, 8)...)
	}))
	n, _ := newInput(t, on(fs.Dir), within(2*slow))
	var sx unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, fs.Dir, unix.AT_STATX_DONT_SYNC, 0, &sx))
	withTable(t, n, fmt.Sprintf("1001 1 %d:%d / %s rw - nfs4 nas:/export rw,%s\n", sx.Dev_major, sx.Dev_minor, fs.Dir, nfs4))
	fs.Delay(timeout, faultfs.Getattr) // so that the server has said it before a lock is tried
	fs.FailLate(time.Hour, unix.EIO, faultfs.Getlk)
	assert.Equal(t, "unchecked grace_period", verdict(t, gather(t, n, fs.Dir)))
	status.Store(10022) // NFS4ERR_STALE_CLIENTID: it says so no more
	assert.Equal(t, "unchecked grace_period", verdict(t, gather(t, n, fs.Dir)), "the client asks again within 15 s")
}
