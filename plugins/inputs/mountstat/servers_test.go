package mountstat

import (
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

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
	"github.com/vfsprobe/vfsprobe/internal/testing/blackhole"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

func silence(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// nfsMount makes the table say that a FUSE file system is an NFS mount of the
// server. This machine has no NFS client; the real one is met in the VM.
func nfsMount(t *testing.T, fs *faultfs.FS, server netip.AddrPort, options string) func(*Mountstat) {
	t.Helper()
	super := fmt.Sprintf("rw,vers=4.2,proto=tcp,port=%d,sec=sys,addr=%s%s", server.Port(), server.Addr(), options)
	if strings.Contains(options, "sec=") {
		super = strings.Replace(super, "sec=sys,", "", 1)
	}
	dir := tableOf(t, fs.Dir, "/", "rw", "nfs4", "nas:/export", super)
	return func(m *Mountstat) { withTable(m, dir) }
}

func TestCause_OfAHungNFSMount(t *testing.T) {
	faultfs.Require(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refusing := netip.MustParseAddrPort(closed.Addr().String())
	closed.Close()
	unreachable := blackhole.Listen(t)
	for _, c := range []struct {
		name   string
		server netip.AddrPort
		cause  cause
		errno  string
	}{
		{"its server answers", rpchost.Serve(t, "127.0.0.1:0", rpchost.AnswerNull), exportHangs, ""},
		{"its server takes connections and says nothing", rpchost.Serve(t, "127.0.0.1:0", silence), serverRPCDead, "ETIMEDOUT"},
		{"its server refuses connections", refusing, serverRPCDead, "ECONNREFUSED"},
		{"its server does not answer at all", unreachable, serverUnreachable, "ETIMEDOUT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := faultfs.New(t)
			m, log := newPretendedNFS(t, within(slow))
			nfsMount(t, fs, c.server, "")(m)
			g := gatherUntil(t, m, fs.Dir, "ok") // a mount that answers is fine, whatever its server says to us
			server, _ := at(g, fs.Dir).GetTag("server")
			assert.Equal(t, "127.0.0.1", server)

			fs.Pause()
			began := time.Now()
			g = gatherUntil(t, m, fs.Dir, "timeout "+string(c.cause))
			assert.Less(t, time.Since(began), 20*timeout)
			metric := at(g, fs.Dir)
			assert.Equal(t, c.errno, text(metric, "server_rpc_errno"))
			assert.Equal(t, c.errno == "", metric.HasField("server_rpc_seconds"))
			assert.Len(t, log.about(string(c.cause)), 1)

			all := g.Named("mountstat_server")
			require.Len(t, all, 1)
			assert.Equal(t, int64(1), field(t, all[0], "faults"))
			assert.Equal(t, int64(1), field(t, all[0], "hung"))
			assert.Equal(t, c.errno, text(all[0], "rpc_errno"))

			// A soft mount gives up with EIO.
			fs.Heal()
			fs.Fail(unix.EIO, faultfs.Statfs)
			want := c.cause
			if want == exportHangs {
				want = ioError
			}
			gatherUntil(t, m, fs.Dir, "error "+string(want))
			fs.Fail(unix.ESTALE, faultfs.Statfs)
			gatherUntil(t, m, fs.Dir, "stale stale_export")
		})
	}
}

// The owner of an export's root may be root, whom the server squashes.
func TestMountstat_ARefusalToSquashedRootIsNoFault(t *testing.T) {
	faultfs.Require(t)
	server := rpchost.Serve(t, "127.0.0.1:0", rpchost.AnswerNull)
	for _, c := range []struct {
		options string
		mode    uint32
		result  string
	}{
		{"", 0o711, "ok"},
		{"", 0o755, "denied"},
	} {
		fs := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Mode: c.mode})
		m, _ := newPretendedNFS(t)
		nfsMount(t, fs, server, c.options)(m)
		collect.Gather(t, m)
		var st unix.Stat_t
		require.NoError(t, unix.Stat(fs.Dir, &st)) // the kernel knows the attributes now
		fs.Fail(unix.EACCES, faultfs.Opendir)
		metric := at(collect.Gather(t, m), fs.Dir)
		assert.Equal(t, c.result, text(metric, "result"), "%o: %v", c.mode, metric)
		assert.Contains(t, text(metric, "reason"), fmt.Sprintf("mode %04o", c.mode))
	}
}

// What a mount's transport says decides where a check must not be made.
func TestUntouched_AnNFSMountWhoseServerIsDead(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, log := newPretendedNFS(t, within(timeout))
	nfsMount(t, fs, rpchost.Serve(t, "127.0.0.1:0", silence), "")(m)
	dir := filepath.Join(m.host.Proc, m.host.PID)
	table, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mountinfo"), append([]byte("1 0 0:1 / "+filepath.Dir(fs.Dir)+" rw - autofs auto rw\n"), table...), 0o600))
	stats := func(sends, receives int) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "mountstats"), fmt.Appendf(nil, "device nas:/export mounted on %s with fstype nfs4 statvers=1.1\n"+
			"\tage:\t100\n\txprt:\ttcp 900 1 1 0 0 %d %d 0 0 0 2 0 0\n\n", fs.Dir, sends, receives), 0o600))
	}
	fs.Silence()
	stats(10, 10)
	g := collect.Gather(t, m)
	assert.Equal(t, "unchecked", text(at(g, fs.Dir), "result"), "nobody waits for it")
	assert.Equal(t, int64(0), field(t, at(g, fs.Dir), "nfs_unanswered"))
	stats(12, 10)
	metric := at(gatherUntil(t, m, fs.Dir, "error server_rpc_dead"), fs.Dir)
	assert.Equal(t, "ETIMEDOUT", text(metric, "errno"))
	assert.Equal(t, int64(2), field(t, metric, "nfs_unanswered"))
	assert.Positive(t, field(t, metric, "nfs_last_reply_seconds_ago"))
	stats(12, 12)
	g = gatherUntil(t, m, fs.Dir, "unchecked")
	assert.Equal(t, int64(1), field(t, at(g, fs.Dir), "recoveries"))
	assert.Zero(t, fs.Unanswered(), "it was never touched")
	assert.Len(t, log.lines, 2, "%q", log.lines)
}

// A file system of the server's that the kernel has mounted below another one goes if nobody
// uses it, and a check is a use.
func TestMountstat_LeavesSubmountsAlone(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	parent, name := filepath.Split(fs.Dir)
	fstab := filepath.Join(t.TempDir(), "fstab")
	require.NoError(t, os.WriteFile(fstab, fmt.Appendf(nil, "nas:/export/%s %s nfs4 defaults 0 0\n", name, fs.Dir), 0o600))
	server := rpchost.Serve(t, "127.0.0.1:0", silence)
	options := fmt.Sprintf("rw,vers=4.2,proto=tcp,port=%d,sec=sys,addr=%s", server.Port(), server.Addr())
	dir := tableOf(t, fs.Dir, "/", "rw", "nfs4", "nas:/export/"+name, options)
	file := filepath.Join(dir, "mountinfo")
	table, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append(fmt.Appendf(nil, "1 0 0:1 / %s rw - nfs4 nas:/export %s\n", filepath.Clean(parent), options), table...), 0o600))
	gather := func(change func(*Mountstat)) (*collect.Metrics, *Mountstat) {
		m, _ := newPretendedNFS(t, within(slow), func(m *Mountstat) {
			m.MountPoints = []string{fs.Dir}
			change(m)
		})
		withTable(m, dir)
		collect.Gather(t, m) // reads fstab
		return collect.Gather(t, m), m
	}
	fs.Silence()
	g, m := gather(func(*Mountstat) {})
	assert.Equal(t, "unchecked", text(at(g, fs.Dir), "result"))
	assert.Contains(t, text(at(g, fs.Dir), "reason"), "on demand")
	assert.Zero(t, fs.Unanswered(), "it was not touched")

	// It expires.
	require.NoError(t, os.WriteFile(file, table[:0], 0o600))
	m.host.RereadMounts()
	assert.Nil(t, at(collect.Gather(t, m), fs.Dir), "nobody misses it")
	assert.Nil(t, m.Keep())
	require.NoError(t, os.WriteFile(file, append(fmt.Appendf(nil, "1 0 0:1 / %s rw - nfs4 nas:/export %s\n", filepath.Clean(parent), options), table...), 0o600))

	fs.Heal()
	for name, change := range map[string]func(*Mountstat){
		"fstab":         func(m *Mountstat) { m.Fstab = fstab },
		"expected":      func(m *Mountstat) { m.Expected = []string{fs.Dir} },
		"told to do so": func(m *Mountstat) { m.ProbeAutomounted = true },
	} {
		t.Log(name)
		_, m := gather(change)
		gatherUntil(t, m, fs.Dir, "ok")
	}
}

func TestMountstat_AsksServersAtOnce(t *testing.T) {
	const limit = 4 * timeout
	m, _ := newPretendedNFS(t, within(limit))
	m.targets, m.servers.byQuestion = nil, make(map[serverpool.Question]*server)
	silent := rpchost.Serve(t, "127.0.0.1:0", silence)
	for i := range 300 {
		address := netip.AddrFrom4([4]byte{127, 0, byte(i / 250), byte(1 + i%250)})
		mount := &mounts.Mount{Info: &mountinfo.Info{FSType: "nfs", VFSOptions: fmt.Sprintf("vers=3,proto=tcp,port=%d,addr=%v", silent.Port(), address)}}
		of := &target{Unit: &mounts.Unit{Probed: mount}, policy: m.policy}
		m.servers.link(of, nil)
		m.targets = append(m.targets, of)
	}
	require.Len(t, m.servers.byQuestion, 300)
	began := time.Now()
	m.round = 1
	m.servers.askAll(m.targets, m.suspects)
	require.Less(t, time.Since(began), 4*limit, "without waiting")
	for m.await() {
	}
	assert.Less(t, time.Since(began), 8*limit, "side by side")
	for _, target := range m.targets {
		m.causes.collect(target)
		assert.True(t, target.answer.Broken())
	}
}

// A fleet asks its servers in one breath, if each host asks at each gather.
func TestMountstat_LeavesTheServersOfHealthyMountsAlone(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	var calls atomic.Int64
	m, _ := newPretendedNFS(t)
	nfsMount(t, fs, rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		calls.Add(1)
		rpchost.AnswerNull(conn)
	}), "")(m)
	// A healthy mount's metric does not wait for its server.
	require.Eventually(t, func() bool {
		return at(collect.Gather(t, m), fs.Dir).HasField("server_rpc_seconds")
	}, 30*time.Second, time.Millisecond)
	before := calls.Load()
	for range 10 {
		metric := at(collect.Gather(t, m), fs.Dir)
		assert.Equal(t, "ok", text(metric, "result"))
		assert.Positive(t, field(t, metric, "server_rpc_seconds"), "the last one")
	}
	assert.Less(t, calls.Load(), before+5, "if this is the host's turn in the minute, and where the machine is late with a check")
	before = calls.Load()
	fs.Fail(unix.EIO, faultfs.Statfs)
	assert.Equal(t, "error", text(at(collect.Gather(t, m), fs.Dir), "result"))
	assert.Greater(t, calls.Load(), before, "now it is evidence")
}

// A call of a Kerberos mount that hangs and was not sent waits for rpc.gssd.
func TestTarget_AwaitsTicket(t *testing.T) {
	counters := func(sends, receives int64) *mounts.NFSStats {
		return &mounts.NFSStats{Mountpoint: "/mnt", Transport: mounts.NFSTransport{Sends: sends, Receives: receives}}
	}
	well := serverpool.Answer{Known: true, Connections: sockdiag.Connections{Known: true, Established: 1}}
	busy := well
	busy.Connections.Unanswered = 1
	dead := well
	dead.Errno = "ETIMEDOUT"
	for name, c := range map[string]struct {
		answer  serverpool.Answer
		now     *mounts.NFSStats
		never   bool // it was well
		awaited bool
	}{
		"nothing was sent":                          {well, counters(20, 17), false, true},
		"its call was sent":                         {well, counters(21, 17), false, false},
		"the connection has something unanswered":   {busy, counters(20, 17), false, false},
		"its server does not answer":                {dead, counters(20, 17), false, false},
		"it hangs since before it was first seen":   {well, counters(20, 17), true, false},
		"another mount has no counters of this one": {well, &mounts.NFSStats{Mountpoint: "/other"}, false, false},
	} {
		of := &target{evidence: evidence{answers: []serverpool.Answer{c.answer}, answer: c.answer}}
		for _, before := range []*mounts.NFSStats{counters(12, 8), counters(18, 15)} { // one was under way
			of.traffic.update(before, time.Now())
			if !c.never {
				of.traffic.noteLost()
			}
		}
		of.outstanding = of.traffic.outstanding([]mounts.NFSStats{*c.now}, "/mnt")
		assert.Equal(t, c.awaited, of.awaitsTicket(&finding{code: result.Timeout}), name)
	}
	assert.False(t, new(target).awaitsTicket(&finding{code: result.Timeout}))
}
