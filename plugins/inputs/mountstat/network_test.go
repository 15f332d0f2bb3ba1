package mountstat

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cephclient"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// answers reads a request of that length, and answers it.
func answers(request int, answer string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.ReadFull(conn, make([]byte, request))
		_, _ = io.WriteString(conn, answer)
	}
}

var (
	answerSMB   = answers(112, "\x00\x00\x00\x40\xfeSMB"+string(make([]byte, 60)))
	answerNineP = answers(21, "\x15\x00\x00\x00\x65\xff\xff\x00\x20\x00\x00\x08\x009P2000.L")
	answerCeph  = answers(0, "ceph v027"+string(make([]byte, 272)))
	answerHTTP  = answers(0, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
)

// networkMount makes the table say that a FUSE file system is a mount of a server of another
// family. Servers of SMB have their port in the options here, as they have on no real host.
func networkMount(t *testing.T, fs *faultfs.FS, fstype string, server netip.AddrPort) func(*Mountstat) {
	t.Helper()
	source, options := "//nas/data", fmt.Sprintf("rw,vers=3.1.1,port=%d,addr=%s", server.Port(), server.Addr())
	switch fstype {
	case "9p":
		source, options = server.Addr().String(), fmt.Sprintf("rw,trans=tcp,port=%d", server.Port())
	case "ceph":
		source, options = server.String()+":/", "rw,name=admin"
	}
	dir := tableOf(t, fs.Dir, "/", "rw", fstype, source, options)
	return func(m *Mountstat) { withTable(m, dir); m.debugData = filepath.Join(dir, "DebugData") }
}

// refusing is where nothing listens.
func refusing(t *testing.T) netip.AddrPort {
	t.Helper()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer closed.Close()
	return netip.MustParseAddrPort(closed.Addr().String())
}

// debugData puts a fixture of package smbclient where the input looks.
func debugData(t *testing.T, m *Mountstat, name string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../../../internal/smbclient/testdata", name+".txt"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(m.debugData, content, 0o600))
}

func TestCause_OfAHungNetworkMount(t *testing.T) {
	faultfs.Require(t)
	for _, c := range []struct {
		fstype, name string
		server       netip.AddrPort
		cause        cause
		errno        string
	}{
		{"cifs", "answers", rpchost.Serve(t, "127.0.0.1:0", answerSMB), exportHangs, ""},
		{"cifs", "is silent", rpchost.Serve(t, "127.0.0.1:0", silence), result.ServerServiceDead, "ETIMEDOUT"},
		{"cifs", "is another one", rpchost.Serve(t, "127.0.0.1:0", answerHTTP), result.ServerServiceDead, "EPROTO"},
		{"smb3", "refuses", refusing(t), result.ServerServiceDead, "ECONNREFUSED"},
		{"9p", "answers", rpchost.Serve(t, "127.0.0.1:0", answerNineP), exportHangs, ""},
		{"9p", "is silent", rpchost.Serve(t, "127.0.0.1:0", silence), result.ServerServiceDead, "ETIMEDOUT"},
		{"9p", "refuses", refusing(t), result.ServerServiceDead, "ECONNREFUSED"},
		{"ceph", "answers", rpchost.Serve(t, "127.0.0.1:0", answerCeph), result.CephMonitorsDead, ""},
		{"ceph", "is silent", rpchost.Serve(t, "127.0.0.1:0", silence), result.CephMonitorsDead, "ETIMEDOUT"},
		{"ceph", "refuses", refusing(t), result.CephMonitorsDead, "ECONNREFUSED"},
	} {
		t.Run(c.fstype+" "+c.name, func(t *testing.T) {
			fs := faultfs.New(t)
			m, log := newPretendedNFS(t, within(slow))
			networkMount(t, fs, c.fstype, c.server)(m)
			// Where an SMB server refuses while the mount is well, it listens elsewhere.
			if c.fstype != "smb3" && c.fstype != "cifs" || c.errno == "" || c.errno == "ETIMEDOUT" {
				g := gatherUntil(t, m, fs.Dir, "ok")
				server, _ := at(g, fs.Dir).GetTag("server")
				assert.Equal(t, "127.0.0.1", server)
			}
			fs.Pause()
			g := gatherUntil(t, m, fs.Dir, "timeout "+string(c.cause))
			metric := at(g, fs.Dir)
			assert.Equal(t, c.errno, text(metric, "server_rpc_errno"))
			assert.Contains(t, text(metric, "reason"), c.server.String())
			assert.Len(t, log.about(string(c.cause)), 1)
			all := g.Named("mountstat_server")
			require.Len(t, all, 1)
			assert.Equal(t, int64(1), field(t, all[0], "hung"))
			assert.Equal(t, c.errno, text(all[0], "rpc_errno"))
			service, _ := all[0].GetTag("service")
			assert.Contains(t, map[string]string{"cifs": "smb", "smb3": "smb", "9p": "9p", "ceph": "ceph"}[c.fstype], service)
		})
	}
}

// What the client knows tells faults apart that have the same errno.
func TestCause_OfAnSMBMountWhoseServerAnswers(t *testing.T) {
	faultfs.Require(t)
	server := rpchost.Serve(t, "127.0.0.1:0", answerSMB)
	for _, c := range []struct {
		says  string
		errno unix.Errno
		cause cause
	}{
		{"6.1-no-session", unix.EHOSTDOWN, result.LoginRefused},
		{"6.1-logging-in", unix.EACCES, result.LoginRefused},
		{"5.4-no-session", unix.EACCES, result.LoginRefused},
		{"3.10-no-session", unix.EIO, result.LoginRefused},
		{"6.1-good", unix.EACCES, permission},
		{"6.1-no-tree", unix.EAGAIN, result.ShareGone},
		{"5.4-good", unix.EREMCHG, result.ShareGone},
		{"6.1-good", unix.EKEYREJECTED, result.LoginRefused},
		{"6.1-good", unix.EIO, ioError},
		{"", unix.EACCES, permission},
		{"", unix.EHOSTDOWN, ioError},
		{"", unix.EREMCHG, result.ShareGone},
	} {
		fs := faultfs.New(t)
		m, _ := newPretendedNFS(t)
		networkMount(t, fs, "cifs", server)(m)
		assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
		if c.says != "" {
			debugData(t, m, c.says)
		}
		fs.Fail(c.errno, faultfs.Statfs)
		metric := at(collect.Gather(t, m), fs.Dir)
		assert.Equal(t, string(c.cause), text(metric, "cause"), "%s %v", c.says, c.errno)
		assert.NotContains(t, text(metric, "reason"), "its root has mode", "which is not why")
	}
}

// Directories lock accounts after some logins that were refused, and each check can be one.
func TestMountstat_LeavesAloneAnSMBMountWhoseLoginIsRefused(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t)
	networkMount(t, fs, "cifs", rpchost.Serve(t, "127.0.0.1:0", answerSMB))(m)
	require.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	debugData(t, m, "6.1-no-session")
	fs.Fail(unix.EACCES, faultfs.Statfs)
	require.Equal(t, "denied login_refused", text(at(collect.Gather(t, m), fs.Dir), "result")+" "+text(at(collect.Gather(t, m), fs.Dir), "cause"))
	fs.Heal() // a check would find that
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "denied login_refused", text(metric, "result")+" "+text(metric, "cause"))
	assert.Contains(t, text(metric, "reason"), "left alone")
	assert.Positive(t, field(t, metric, "fault_seconds"))
	debugData(t, m, "6.1-good")
	gatherUntil(t, m, fs.Dir, "ok") // the client has logged in
	debugData(t, m, "6.1-no-session")
	fs.Fail(unix.EACCES, faultfs.Statfs)
	require.Equal(t, "denied", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Heal()
	for _, of := range m.targets {
		of.submitted = of.submitted.Add(-loginInterval)
	}
	require.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"), "a minute has passed")
}

// A soft mount gives up with EHOSTDOWN or EAGAIN, whatever its server's fault is.
func TestCause_OfASoftSMBMountWhoseServerIsDead(t *testing.T) {
	faultfs.Require(t)
	var dead atomic.Bool
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		if !dead.Load() {
			answerSMB(conn)
		}
		silence(conn)
	})
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, within(slow))
	networkMount(t, fs, "cifs", server)(m)
	require.Eventually(t, func() bool { // until it was seen to be there
		return text(at(collect.Gather(t, m), fs.Dir), "result") == "ok" && m.targets[0].servers[0].proven
	}, 30*time.Second, 10*time.Millisecond)
	dead.Store(true)
	for _, errno := range []unix.Errno{unix.EHOSTDOWN, unix.EAGAIN, unix.EIO} {
		fs.Fail(errno, faultfs.Statfs)
		gatherUntil(t, m, fs.Dir, "error server_service_dead")
	}
	for _, c := range []struct {
		says string
		want cause
	}{{"6.1-good", result.ServerServiceDead}, {"6.1-no-tree", result.ShareGone}, {"6.1-no-session", result.LoginRefused}} {
		debugData(t, m, c.says)
		gatherUntil(t, m, fs.Dir, "error "+string(c.want))
	}
}

// What the client itself knows counts for more than that the server was too slow to answer. It does
// not if the server refuses, or can't be reached.
func TestCauses_InNetwork(t *testing.T) {
	const answers, late, refuses, lost = "it answers", "it is late", "it refuses", "it can't be reached"
	lease := &kernelLog{leases: map[string]leaseLog{"nas": {refused: message{text: "refused", at: time.Now()}}}}
	for _, c := range []struct {
		fstype string
		f      finding
		known  evidence
		asked  string
		want   cause
	}{
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.NoSession}, answers, result.LoginRefused},
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.NoSession}, late, result.LoginRefused},
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.LoggingIn}, answers, ""},
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.LoggingIn}, late, result.ServerServiceDead},
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.NoSession}, refuses, result.ServerServiceDead},
		{"cifs", finding{code: result.Error, errno: "EHOSTDOWN"}, evidence{share: smbclient.NoSession}, lost, serverUnreachable},
		{"cifs", finding{code: result.Timeout}, evidence{share: smbclient.NoTree}, late, result.ShareGone},
		{"cifs", finding{code: result.Error, errno: "EAGAIN"}, evidence{failing: smbclient.NoTree}, late, result.ShareGone},
		{"cifs", finding{code: result.Error, errno: "EIO"}, evidence{failing: smbclient.NoTree}, late, result.ServerServiceDead},
		{"cifs", finding{code: result.Timeout}, evidence{share: smbclient.Disconnected}, late, result.ServerServiceDead},
		{"cifs", finding{code: result.Timeout}, evidence{share: smbclient.Good}, late, result.ServerServiceDead},
		{"9p", finding{code: result.Error, errno: "ENOENT"}, evidence{}, late, staleExport},
		{"9p", finding{code: result.Error, errno: "EIO"}, evidence{answer: serverpool.Answer{Connections: sockdiag.Connections{Known: true, CloseWait: 1}}}, late, result.ServerServiceDead}, // it can't be mounted anew
		{"9p", finding{code: result.Error, errno: "EIO"}, evidence{answer: serverpool.Answer{Connections: sockdiag.Connections{Known: true, CloseWait: 1}}}, answers, result.MountNeedsRemount},
		{"9p", finding{code: result.Timeout}, evidence{answer: serverpool.Answer{Connections: sockdiag.Connections{Known: true}}}, late, result.ServerServiceDead},
		{"ceph", finding{code: result.Timeout}, evidence{ceph: cephclient.Client{Evicted: true}}, late, result.ClientEvicted},
		{"ceph", finding{code: result.Timeout, check: checkStatfs}, evidence{}, late, result.CephMonitorsDead},
		{"nfs4", finding{code: result.Timeout}, evidence{}, late, result.LeaseRefused},
		{"nfs4", finding{code: result.Timeout}, evidence{}, refuses, serverRPCDead},
	} {
		of := &target{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: c.fstype, Source: "nas:/home"}}}, evidence: c.known}
		service := map[string]serverpool.Service{"cifs": serverpool.SMB, "9p": serverpool.NineP, "ceph": serverpool.CephMon, "nfs4": serverpool.NFS}[c.fstype]
		of.servers = []*server{{Server: mounts.Server{Question: serverpool.Question{Service: service}}}}
		of.answer.Known, of.answer.Reached = true, c.asked != lost
		of.answer.Errno = map[string]string{late: "ETIMEDOUT", lost: "ETIMEDOUT", refuses: "ECONNREFUSED"}[c.asked]
		found := causes{kernelLog: lease, inventory: &inventory{targets: []*target{of}}}
		assert.Equal(t, c.want, found.causeInNetwork(of, &c.f), "%s: %s, %+v", c.fstype, c.asked, c.f)
	}
}

// A server that takes connections, and is too slow to answer in time, is not dead while another mount
// of it is answered.
func TestCauses_OfABusyServer(t *testing.T) {
	late := serverpool.Answer{Known: true, Reached: true, Errno: "ETIMEDOUT", Elapsed: time.Second, Since: time.Now().Add(-10 * time.Second)}
	mount := &mounts.Mount{Info: &mountinfo.Info{FSType: "cifs", Source: "//nas/home"}}
	s := &server{Server: mounts.Server{Question: serverpool.Question{Service: serverpool.SMB}}}
	hangs := finding{code: result.Timeout, check: checkStatfs, call: "fstatfs"}
	for name, c := range map[string]struct {
		change func(other *target, of *target)
		want   cause
	}{
		"another one is answered": {func(*target, *target) {}, exportHangs},
		"slowly":                  {func(other, _ *target) { other.found.code = result.Slow }, exportHangs},
		"not yet":                 {func(other, _ *target) { other.underWay = true }, result.ServerServiceDead},
		"not judged":              {func(other, _ *target) { other.report = &prober.Report{} }, result.ServerServiceDead},
		"not since":               {func(other, _ *target) { other.LastOK = late.Since.Add(-2 * time.Second) }, result.ServerServiceDead},
		"it hangs, too":           {func(other, _ *target) { other.found.code = result.Timeout }, result.ServerServiceDead},
		"it is not checked":       {func(other, _ *target) { other.skipReason = "on demand" }, result.ServerServiceDead},
		"of another server":       {func(other, _ *target) { other.servers = []*server{{}} }, result.ServerServiceDead},
		"of one of two":           {func(other, _ *target) { other.servers = append(other.servers, &server{}) }, result.ServerServiceDead},
		"the server refuses":      {func(_, of *target) { of.answer.Errno = "ECONNREFUSED" }, result.ServerServiceDead},
	} {
		of := &target{Unit: &mounts.Unit{Probed: mount}, servers: []*server{s}, evidence: evidence{answer: late}}
		other := &target{Unit: &mounts.Unit{Probed: mount}, servers: []*server{s}}
		other.LastOK = time.Now()
		c.change(other, of)
		found := causes{kernelLog: &kernelLog{}, inventory: &inventory{targets: []*target{of, other}}}
		assert.Equal(t, c.want, found.causeOfHang(of, &hangs), name)
	}
}

// EHOSTDOWN says that a soft mount gave up, and not why.
func TestCause_OfAnSMBMountWhosePortIsNotKnown(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t)
	networkMount(t, fs, "cifs", refusing(t))(m)
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"), "so its server listens elsewhere")
	fs.Fail(unix.EHOSTDOWN, faultfs.Statfs)
	assert.Equal(t, "unknown", text(at(collect.Gather(t, m), fs.Dir), "cause"))
}

// ofTheKernel connects to a server by a socket that no process has, as clients of the kernel's
// do: it is on its way to one that never takes it.
func ofTheKernel(t *testing.T, server netip.AddrPort) {
	t.Helper()
	conn, err := net.Dial("tcp", server.String())
	require.NoError(t, err)
	file, err := conn.(*net.TCPConn).File()
	require.NoError(t, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(pair[0]); _ = unix.Close(pair[1]) })
	require.NoError(t, unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(file.Fd())), nil, 0))
	require.NoError(t, file.Close())
	require.NoError(t, conn.Close())
}

// The addresses of mounts in another network namespace mean other hosts, or none.
func TestMountstat_MountsOfAnotherNetworkHaveNoServers(t *testing.T) {
	m, _ := newPretendedNFS(t)
	m.servers.byQuestion = make(map[serverpool.Question]*server)
	mount := &mounts.Mount{Info: &mountinfo.Info{FSType: "cifs", Source: "//nas/data", VFSOptions: "rw,addr=10.0.0.2"}}
	for _, c := range []struct {
		namespace *namespace
		servers   int
	}{{nil, 1}, {&namespace{network: true}, 1}, {&namespace{}, 0}} {
		of := &target{Unit: &mounts.Unit{Probed: mount}, policy: m.policy, namespace: c.namespace}
		m.servers.link(of, nil)
		assert.Len(t, of.servers, c.servers)
	}
}

// What the Ceph client shows in debugfs names the daemons that it waits for, and tells that it was
// evicted.
func TestCause_OfACephMountByWhatItsClientShows(t *testing.T) {
	faultfs.Require(t)
	server := rpchost.Serve(t, "127.0.0.1:0", answerCeph)
	for _, c := range []struct {
		name, mdsc, osdc, status string
		fault                    func(*faultfs.FS)
		want, reason             string
	}{
		{"its OSDs", "", "REQUESTS 1 homeless 0\n17\tosd3\t2.1\t2.1\t[3]/3\t[3]/3\te13\tx\t0x1\t1\tread\n", "blocklisted: false\n",
			func(fs *faultfs.FS) { fs.Silence(faultfs.Opendir) }, "timeout ceph_osds_dead", "the client waits for osd3"},
		{"its MDS", "4711\tmds0\treaddir\t #1\n", "REQUESTS 0 homeless 0\n", "",
			func(fs *faultfs.FS) { fs.Silence(faultfs.Opendir) }, "timeout ceph_mds_dead", "the client waits for mds0"},
		{"evicted", "", "", "instance: client.7 (1)127.0.0.1:0/1\nblocklisted: true\n",
			func(fs *faultfs.FS) { fs.Fail(unix.EACCES, faultfs.Opendir) }, "denied client_evicted", ""},
		{"evicted, and it says EIO", "", "", "blocklisted: true\n",
			func(fs *faultfs.FS) { fs.Fail(unix.EIO, faultfs.Opendir) }, "error client_evicted", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := faultfs.New(t)
			m := newCeph(t, fs, server)
			m.show(map[string]string{"mdsc": c.mdsc, "osdc": c.osdc, "status": c.status})
			c.fault(fs)
			m.until(c.want, c.reason)
		})
	}

	t.Run("another daemon while it hangs", func(t *testing.T) {
		fs := faultfs.New(t)
		m := newCeph(t, fs, server)
		m.show(map[string]string{"mdsc": "4711\tmds0\treaddir\t #1\n"})
		fs.Silence(faultfs.Opendir)
		m.until("timeout ceph_mds_dead", "the client waits for mds0")
		m.show(map[string]string{"mdsc": "", "osdc": "REQUESTS 1 homeless 0\n17\tosd3\t2.1\t2.1\t[3]/3\t[3]/3\te13\tx\t0x1\t1\tread\n"})
		m.until("timeout ceph_osds_dead", "the client waits for osd3")
	})
}

// cephMount is a mount that pretends to be of Ceph's kernel client.
type cephMount struct {
	*Mountstat
	t      *testing.T
	path   string
	client string // its directory in debugfs
}

func newCeph(t *testing.T, fs *faultfs.FS, monitor netip.AddrPort) *cephMount {
	t.Helper()
	m, _ := newPretendedNFS(t, within(timeout))
	networkMount(t, fs, "ceph", monitor)(m)
	m.host.Sys = t.TempDir()
	c := &cephMount{m, t, fs.Dir, filepath.Join(cephclient.Directory(m.host.Sys), "11111111-2222-3333-4444-555555555555.client7")}
	require.NoError(t, os.MkdirAll(c.client, 0o700))
	c.show(map[string]string{"monmap": fmt.Sprintf("epoch 1\n\tmon0\t(1)%v\n", monitor)})
	return c
}

// show has the client show contents in its files.
func (c *cephMount) show(files map[string]string) {
	c.t.Helper()
	for file, content := range files {
		require.NoError(c.t, os.WriteFile(filepath.Join(c.client, file), []byte(content), 0o600))
	}
}

// until gathers until a result, a cause and a reason are told: a busy host may not ask in time.
func (c *cephMount) until(want, reason string) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		metric := at(collect.Gather(c.t, c.Mountstat), c.path)
		return strings.Replace(text(metric, "result"), "stuck", "timeout", 1)+" "+text(metric, "cause") == want &&
			strings.Contains(text(metric, "reason"), reason)
	}, 30*time.Second, 10*time.Millisecond, "%s: %s", want, reason)
}

// Which file systems ask their servers for attributes that were not asked for: what hangs then is
// the mount, and not the way to it.
func TestTarget_AHangInTheStatxBeforeTheChecks(t *testing.T) {
	for fstype, call := range map[string]string{"cifs": "statx", "smb3": "statx", "9p": "statx", "nfs": "open", "ceph": "open"} {
		of := &target{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: fstype}}}, policy: policy{checks: []check{checkStatfs}},
			reportOf: &plan{steps: []step{examineRoot}}, report: &prober.Report{HangsIn: "statx"}}
		var f finding
		of.judgeHang(&f, fault.Verdict{Code: result.Stuck, Call: "statx"})
		assert.Equal(t, call, f.call, fstype)
	}
}

// A host that is busy for long has the search go on, ever more seldom.
func TestSMBSearch_GoesOnEverMoreSeldom(t *testing.T) {
	var s smbSearch
	began := time.Now()
	var at []int
	for second := 0; second < 3600; second += 10 {
		if now := began.Add(time.Duration(second) * time.Second); s.due(now) {
			s.begin(now)
			at = append(at, second)
		}
	}
	assert.Equal(t, []int{0, 10, 20, 30, 40, 80, 160, 320, 640, 1280, 2560}, at)
	s.ended = true
	assert.False(t, s.due(began.Add(time.Hour)))
}

// The client's own connection says where a server listens that is not at the usual port.
func TestCause_OfAnSMBMountOfAServerAtAnotherPort(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, within(slow))
	m.allProcesses = true // as where this process is in no PID namespace of its own
	var silent atomic.Bool
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		if !silent.Load() {
			answerSMB(conn)
		}
		silence(conn)
	})
	others, err := net.Dial("tcp", rpchost.Serve(t, "127.0.0.1:0", silence).String())
	require.NoError(t, err)
	defer others.Close()
	table := tableOf(t, fs.Dir, "/", "rw", "cifs", "//nas/data", "rw,vers=3.1.1,addr=127.0.0.1")
	withTable(m, table)
	collect.Gather(t, m)
	require.Equal(t, 1, m.targets[0].search.count, "the client is about to connect anew")
	ofTheKernel(t, server)
	require.Eventually(t, func() bool {
		g := collect.Gather(t, m)
		port, _ := g.Named("mountstat_server")[0].GetTag("port")
		return port == fmt.Sprint(server.Port())
	}, 30*time.Second, 10*time.Millisecond, "it is asked there")
	assert.Len(t, m.servers.smbAt.ports, 1)
	kept, err := json.Marshal(m.Keep())
	require.NoError(t, err)
	silent.Store(true)
	fs.Pause()
	metric := at(gatherUntil(t, m, fs.Dir, "timeout server_service_dead"), fs.Dir)
	assert.Contains(t, text(metric, "reason"), server.String())
	m.regroup()
	assert.Equal(t, server, m.targets[0].servers[0].Address, "also by another table")

	after, _ := newPretendedNFS(t, within(slow)) // which never saw the server to be well
	require.NoError(t, after.Restore(kept))
	withTable(after, table)
	metric = at(gatherUntil(t, after, fs.Dir, "timeout server_service_dead"), fs.Dir)
	assert.Contains(t, text(metric, "reason"), server.String())
}

// Where a server listened before a restart is no longer held for true once a connection of the
// mount goes to another port.
func TestMountstat_FindsAnSMBServerThatHasMoved(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t)
	m.allProcesses = true // as where this process is in no PID namespace of its own
	gone := refusing(t)
	require.NoError(t, m.Restore(fmt.Appendf(nil, `{"smb_ports":{"127.0.0.1":[%d]}}`, gone.Port())))
	server := rpchost.Serve(t, "127.0.0.1:0", answerSMB)
	ofTheKernel(t, server)
	withTable(m, tableOf(t, fs.Dir, "/", "rw", "cifs", "//nas/data", "rw,vers=3.1.1,addr=127.0.0.1"))
	require.Eventually(t, func() bool {
		assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
		return slices.Equal(m.servers.smbAt.ports[server.Addr()], []uint16{server.Port()})
	}, 30*time.Second, 10*time.Millisecond)
	assert.Equal(t, server, m.targets[0].servers[0].Address)
	assert.Len(t, m.targets[0].servers, 1)
}

// smbServer answers until it is silent, or closed.
type smbServer struct {
	net.Listener
	at     netip.AddrPort
	silent atomic.Bool
	mu     sync.Mutex
	taken  []net.Conn
}

func newSMBServer(t *testing.T) *smbServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &smbServer{Listener: listener, at: netip.MustParseAddrPort(listener.Addr().String())}
	t.Cleanup(s.close)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.taken = append(s.taken, conn)
			s.mu.Unlock()
			go func() {
				defer conn.Close()
				if !s.silent.Load() {
					answerSMB(conn)
				}
				silence(conn)
			}()
		}
	}()
	return s
}

func (s *smbServer) close() {
	_ = s.Listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.taken {
		_ = conn.Close()
	}
}

// Two SMB servers at the ports of one address are told apart as far as that can be told.
func TestCause_OfSMBMountsOfTwoServersAtOneAddress(t *testing.T) {
	faultfs.Require(t)
	one, other := faultfs.New(t), faultfs.New(t)
	first, second := newSMBServer(t), newSMBServer(t)
	ofTheKernel(t, first.at)
	ofTheKernel(t, second.at)
	m, _ := newPretendedNFS(t, within(slow, other.Dir))
	m.allProcesses = true
	const options = "rw,vers=3.1.1,addr=127.0.0.1"
	dir := tableOf(t, one.Dir, "/", "rw", "cifs", "//nas/one", options)
	line, err := os.ReadFile(filepath.Join(tableOf(t, other.Dir, "/", "rw", "cifs", "//nas/other", options), "mountinfo"))
	require.NoError(t, err)
	before, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mountinfo"), append(before, strings.Replace(string(line), "90 ", "91 ", 1)...), 0o600))
	withTable(m, dir)
	require.Eventually(t, func() bool {
		g := collect.Gather(t, m)
		return len(g.Named("mountstat_server")) == 2 && len(m.targets[0].servers) == 2 && len(m.targets[1].servers) == 2
	}, 30*time.Second, 10*time.Millisecond, "both are asked")

	second.silent.Store(true)
	other.Pause()
	metric := at(gatherAllUntil(t, m, map[string]string{other.Dir: "timeout server_service_dead", one.Dir: "ok "}), other.Dir)
	assert.Contains(t, text(metric, "reason"), second.at.String())
	assert.Contains(t, text(metric, "reason"), "can't be told")

	second.close()
	require.Eventually(t, func() bool {
		collect.Gather(t, m)
		of := m.targets[slices.IndexFunc(m.targets, func(t *target) bool { return t.Probed.Mountpoint == one.Dir })]
		return len(of.servers) == 1 && of.servers[0].Address == first.at
	}, 30*time.Second, 10*time.Millisecond, "it answers without a connection to the other")
	m.regroup()
	metric = at(gatherUntil(t, m, other.Dir, "timeout server_service_dead"), other.Dir)
	assert.Equal(t, "ECONNREFUSED", text(metric, "server_rpc_errno"))
	for _, s := range collect.Gather(t, m).Named("mountstat_server") {
		port, _ := s.GetTag("port")
		want := map[string]int64{fmt.Sprint(first.at.Port()): 2, fmt.Sprint(second.at.Port()): 1}
		assert.Equal(t, want[port], field(t, s, "mounts"), port)
	}
}

// A client takes a while to notice that its server is back.
func TestCause_OfAnSMBMountThatHasNotConnectedAgain(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, within(slow))
	networkMount(t, fs, "cifs", rpchost.Serve(t, "127.0.0.1:0", answerSMB))(m)
	debugData(t, m, "6.1-disconnected")
	fs.Pause()
	gatherUntil(t, m, fs.Dir, "timeout unknown") // nothing says that it is the export
	debugData(t, m, "6.1-good")
	gatherUntil(t, m, fs.Dir, "timeout export_hangs")
}

// A 9P mount does not connect again.
func TestCause_OfA9PMountThatFails(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t)
	var own []net.Conn // of the mount
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		answerNineP(conn)
		_, _ = io.Copy(io.Discard, conn)
	})
	networkMount(t, fs, "9p", server)(m)
	conn, err := net.Dial("tcp", server.String())
	require.NoError(t, err)
	own = append(own, conn)
	fs.Fail(unix.ENOENT, faultfs.Statfs)
	assert.Equal(t, "stale_export", text(at(collect.Gather(t, m), fs.Dir), "cause"), "the exported directory was removed")
	fs.Fail(unix.EIO, faultfs.Statfs)
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "io_error", text(metric, "cause"), "its connection is well")
	for _, conn := range own {
		require.NoError(t, conn.Close())
	}
	gatherUntil(t, m, fs.Dir, "error mount_needs_remount")
}

func TestCause_OfACephMount(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t)
	networkMount(t, fs, "ceph", rpchost.Serve(t, "127.0.0.1:0", answerCeph))(m)
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Fail(unix.EACCES, faultfs.Opendir)
	assert.Equal(t, "denied client_evicted", text(at(collect.Gather(t, m), fs.Dir), "result")+" "+text(at(collect.Gather(t, m), fs.Dir), "cause"))
	fs.Fail(unix.ESHUTDOWN, faultfs.Opendir)
	assert.Equal(t, "client_evicted", text(at(collect.Gather(t, m), fs.Dir), "cause"))
	fs.Heal()
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
	fs.Unlink()
	metric := at(collect.Gather(t, m), fs.Dir)
	assert.Equal(t, "stale stale_export", text(metric, "result")+" "+text(metric, "cause"))
	assert.Contains(t, text(metric, "reason"), "its directory was removed")
}

// FUSE file systems say what they like of links.
func TestMountstat_ARootWithoutAName(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	fs.Unlink()
	m, _ := newInput(t, func(m *Mountstat) { m.Checks, m.MountPoints = []string{"stat", "readdir"}, []string{fs.Dir} })
	assert.Equal(t, "ok", text(at(collect.Gather(t, m), fs.Dir), "result"))
}

// A server is asked once, however many mounts it has, and not again while all is well.
func TestMountstat_AsksAServerOfManyMountsOnce(t *testing.T) { askServersOfManyMounts(t) }

// It reports the CPU time of a gather that asks, and of the servers.
func BenchmarkMountstat_AsksServersOfManyMounts(b *testing.B) {
	least := time.Hour
	for b.Loop() {
		least = min(least, askServersOfManyMounts(b))
	}
	b.ReportMetric(least.Seconds()*1e3, "cpu-ms/gather")
}

// askServersOfManyMounts has servers asked in some rounds, and returns the CPU time of that in which
// they are.
func askServersOfManyMounts(t testing.TB) (most time.Duration) {
	t.Helper()
	m, _ := newPretendedNFS(t)
	m.targets, m.servers.byQuestion = nil, make(map[serverpool.Question]*server)
	var asked atomic.Int64
	at := rpchost.Serve(t, "0.0.0.0:0", func(conn net.Conn) {
		asked.Add(1)
		answerSMB(conn)
	})
	for i := range 100 {
		address := netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i%5)})
		mount := &mounts.Mount{Info: &mountinfo.Info{FSType: "cifs", Source: fmt.Sprintf("//nas%d/%d", i%5, i), VFSOptions: fmt.Sprintf("port=%d,addr=%v", at.Port(), address)}}
		of := &target{Unit: &mounts.Unit{Probed: mount}, policy: m.policy}
		m.servers.link(of, nil)
		m.targets = append(m.targets, of)
	}
	require.Len(t, m.servers.byQuestion, 5)
	for m.round = 1; m.round <= 10; m.round++ {
		before := processTime(t)
		m.servers.askAll(m.targets, m.suspects)
		for m.await() {
		}
		most = max(most, processTime(t)-before)
	}
	assert.LessOrEqual(t, asked.Load(), int64(2*5), "once, and once more if it was the host's turn in the minute")
	assert.GreaterOrEqual(t, asked.Load(), int64(5))
	return most
}
