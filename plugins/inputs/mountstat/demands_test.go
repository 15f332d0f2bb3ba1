package mountstat

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
	"github.com/vfsprobe/vfsprobe/internal/testing/blackhole"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// demanding is an input whose table has an automount, for which a program waits.
func demanding(t *testing.T, program ...string) (m *Mountstat, path string, log *journal) {
	t.Helper()
	auto := t.TempDir()
	m, log = newPretendedNFS(t, within(timeout))
	withTable(m, tableOf(t, auto, "/", "rw", "autofs", "auto.home", "rw,fd=6,pgrp=0,timeout=300,indirect"))
	path = filepath.Join(auto, "dead")
	assert.Nil(t, at(collect.Gather(t, m), path))
	mount := mounts.ParseProgram(append([]string{program[0], program[1], path}, program[2:]...))
	require.NotNil(t, mount)
	m.automounts.noteDemands([]blocked.Task{{PID: 7, Comm: program[0]}, {PID: 8, Comm: "cat"}}, map[int]*mounts.Mount{7: mount})
	return m, path, log
}

// An entry of an automounter's map whose server is dead is mounted nowhere.
func TestDemands_AnAutomountThatCanNotBeMadeSinceItsServerIsDead(t *testing.T) {
	var well atomic.Bool
	silent := func(answer func(net.Conn)) netip.AddrPort {
		return rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
			if well.Load() {
				answer(conn)
			}
			silence(conn)
		})
	}
	unreachable := blackhole.Listen(t)
	for _, c := range []struct {
		program, source string
		server          netip.AddrPort
		fstype, cause   string
	}{
		{"mount.cifs", "//127.0.0.1/data", silent(answerSMB), "cifs", "server_service_dead"},
		{"mount.nfs", "127.0.0.1:/home", silent(rpchost.AnswerNull), "nfs", "server_rpc_dead"},
		{"mount.nfs4", "127.0.0.1:/home", unreachable, "nfs4", "server_unreachable"},
	} {
		t.Run(c.program, func(t *testing.T) {
			well.Store(false)
			m, path, log := demanding(t, c.program, c.source, "-o", fmt.Sprintf("pass=secret,port=%d", c.server.Port()))
			var g *collect.Metrics
			require.Eventually(t, func() bool { // a busy host may not ask in time
				g = collect.Gather(t, m)
				return at(g, path) != nil
			}, 30*time.Second, 10*time.Millisecond)
			metric := at(g, path)
			assert.Equal(t, "error "+c.cause, text(metric, "result")+" "+text(metric, "cause"))
			assert.Contains(t, text(metric, "reason"), c.program+" waits for its server "+c.server.String())
			assert.NotEmpty(t, text(metric, "server_rpc_errno"))
			for tag, want := range map[string]string{"fstype": c.fstype, "device": c.source, "server": "127.0.0.1"} {
				value, _ := metric.GetTag(tag)
				assert.Equal(t, want, value)
			}
			require.Len(t, g.Named("mountstat_server"), 1)
			assert.Equal(t, int64(1), field(t, g.Named("mountstat_server")[0], "faults"))
			collect.Gather(t, m)
			assert.Len(t, log.about("nothing can be mounted at"), 1)
			if c.server == unreachable {
				m.automounts.demands[path].seen = time.Now().Add(-maxDemandAge)
				assert.Nil(t, at(collect.Gather(t, m), path), "nobody asks for it any more")
				return
			}
			well.Store(true)
			require.Eventually(t, func() bool { return at(collect.Gather(t, m), path) == nil }, 30*time.Second, 10*time.Millisecond)
			assert.Len(t, log.about("the server of "+path+" answers"), 1)
			assert.Empty(t, m.automounts.demands)
		})
	}
}

// Names are not resolved: the connection that the client tries to make, or on which it has no
// answer, says where its server is.
func TestDemands_AnAutomountWhoseServerHasAName(t *testing.T) {
	if _, known := sockdiag.NewTable().Search(1, func(*sockdiag.TCP) bool { return false }, searchTimeout); !known {
		t.Skip("this kernel has no sock_diag")
	}
	for _, c := range []struct {
		server netip.AddrPort
		cause  string
	}{{blackhole.Listen(t), "server_unreachable"}, {rpchost.Serve(t, "127.0.0.1:0", silence), "server_rpc_dead"}} {
		t.Run(c.cause, func(t *testing.T) {
			connect(t, c.server)
			m, path, _ := demanding(t, "mount.nfs", "nas.example.com:/home", "-o", fmt.Sprintf("port=%d", c.server.Port()))
			require.Eventually(t, func() bool {
				metric := at(collect.Gather(t, m), path)
				return metric != nil && text(metric, "cause") == c.cause
			}, 30*time.Second, 10*time.Millisecond)
		})
	}
}

// automount(8) itself asks a server of NFS, and mounts nothing if it has no answer.
func TestDemands_AnAutomounterThatWaitsItself(t *testing.T) {
	if _, known := sockdiag.NewTable().Search(1, func(*sockdiag.TCP) bool { return false }, searchTimeout); !known {
		t.Skip("this kernel has no sock_diag")
	}
	listener, err := net.Listen("tcp", "127.0.77.1:2049")
	if err != nil {
		t.Skip("another server of NFS is here: ", err)
	}
	require.NoError(t, listener.Close())
	var well atomic.Bool
	server := rpchost.Serve(t, "127.0.77.1:2049", func(conn net.Conn) {
		if well.Load() {
			rpchost.AnswerNull(conn)
		}
		silence(conn)
	})
	for also, says := range map[string]string{
		"": " waits for its server 127.0.77.1:2049; what was sent to 127.0.77.1:2049 is acknowledged, and not answered",
		"91 1 0:99 / /more rw - autofs auto.more rw,fd=6,pgrp=%d,timeout=300,direct\n": ", of 2 mounts one of which is wanted, waits",
	} {
		well.Store(false)
		auto := t.TempDir()
		m, log := newPretendedNFS(t, within(slow))
		table := tableOf(t, auto, "/", "rw", "autofs", "auto.home", fmt.Sprintf("rw,fd=6,pgrp=%d,timeout=300,indirect", os.Getpid()))
		if also != "" {
			file, err := os.OpenFile(filepath.Join(table, "mountinfo"), os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = fmt.Fprintf(file, also, os.Getpid())
			require.NoError(t, err)
			require.NoError(t, file.Close())
		}
		withTable(m, table)
		conn, err := net.Dial("tcp", server.String())
		require.NoError(t, err)
		for range 3 {
			assert.Nil(t, at(collect.Gather(t, m), auto), "it has asked nothing yet")
		}
		_, err = conn.Write([]byte("a call"))
		require.NoError(t, err)
		var g *collect.Metrics
		require.Eventually(t, func() bool { // a busy host may not tell of its connections in time
			g = collect.Gather(t, m)
			return at(g, auto) != nil
		}, 30*time.Second, 10*time.Millisecond)
		metric := at(g, auto)
		assert.Equal(t, "error server_rpc_dead", text(metric, "result")+" "+text(metric, "cause"))
		assert.Contains(t, text(metric, "reason"), says)
		for tag, want := range map[string]string{"fstype": "autofs", "device": "auto.home", "server": "127.0.77.1"} {
			value, _ := metric.GetTag(tag)
			assert.Equal(t, want, value)
		}
		require.Len(t, g.Named("mountstat_server"), 1)
		assert.Equal(t, int64(1), field(t, g.Named("mountstat_server")[0], "faults"))
		require.NoError(t, conn.Close())
		assert.NotNil(t, at(collect.Gather(t, m), auto), "it has given up, and the server is dead still")
		well.Store(true)
		require.Eventually(t, func() bool { return at(collect.Gather(t, m), auto) == nil }, 30*time.Second, 10*time.Millisecond)
		assert.Len(t, log.about("not everything can be mounted at"), 1)
	}
}

// A connection without an answer may be of a mount that is there, and whose server has another
// name.
func TestDemands_AnAutomountWhoseServerHasANameAmongOthers(t *testing.T) {
	server := blackhole.Listen(t)
	connect(t, server)
	m, path, _ := demanding(t, "mount.nfs", "nas.example.com:/home", "-o", fmt.Sprintf("port=%d", server.Port()))
	other := &mounts.Mount{Info: &mountinfo.Info{FSType: "nfs", Source: "other:/home", VFSOptions: "addr=127.0.0.1"}}
	of := &target{Unit: &mounts.Unit{Probed: other}, policy: m.policy}
	m.servers.link(of, nil)
	m.targets = append(m.targets, of)
	m.automounts.demands[path].found = nil
	m.automounts.askDemands()
	require.Eventually(t, func() bool { m.mail.Drain(); return !m.automounts.demands[path].searching }, 30*time.Second, 10*time.Millisecond)
	assert.Empty(t, m.automounts.demands[path].found)
}

// connect connects to a server until the test ends, whether or not it answers.
func connect(t *testing.T, server netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done }) // other tests take this process for a FUSE daemon
	go func() {
		defer close(done)
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.String()); err == nil {
			<-ctx.Done()
			_ = conn.Close()
		}
	}()
}

// asMountProgram has this program be one that mounts something by sshfs: it is the port.
const asMountProgram = "VFSPROBE_TEST_MOUNT"

// mountBySSH calls sshfs for a mount point, which the arguments name second, as mount.fuse(8) does.
func mountBySSH() {
	command := exec.Command("sshfs", "-f", "-p", os.Getenv(asMountProgram), "root@127.0.0.1:/", os.Args[2],
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	_ = command.Run()
	os.Exit(1)
}

// The table will not tell the server of a mount by FUSE: it is where what the program has called
// is connected to.
func TestDemands_AnAutomountByFUSEThatCanNotBeMade(t *testing.T) {
	faultfs.Require(t)
	for _, name := range []string{"sshfs", "ssh"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	own, err := os.Executable()
	require.NoError(t, err)
	for _, c := range []struct {
		server      netip.AddrPort
		cause, says string
	}{
		{blackhole.Listen(t), "fuse_server_unreachable", "nothing comes back for what is sent"},
		{rpchost.Serve(t, "127.0.0.1:0", silence), "fuse_server_silent", "it has sent nothing for"},
	} {
		t.Run(c.cause, func(t *testing.T) {
			auto := t.TempDir()
			m, log := newPretendedNFS(t, within(timeout))
			withTable(m, tableOf(t, auto, "/", "rw", "autofs", "auto.home", "rw,fd=6,pgrp=0,timeout=300,indirect"))
			path := filepath.Join(auto, "dead")
			require.NoError(t, os.Mkdir(path, 0o755))
			program := filepath.Join(t.TempDir(), "mount.fuse")
			require.NoError(t, os.Symlink(own, program))
			end := func() {}
			t.Cleanup(func() { end() })
			mount := func() {
				command := exec.Command(program, "sshfs#root@127.0.0.1:/", path)
				command.Env = append(os.Environ(), fmt.Sprintf("%s=%d", asMountProgram, c.server.Port()))
				command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				require.NoError(t, command.Start())
				end = sync.OnceFunc(func() {
					if d := m.automounts.demands[path]; d != nil && d.daemon != nil && d.daemon.Worker != nil {
						_ = unix.Kill(d.daemon.Worker.PID, unix.SIGKILL) // which is an orphan
					}
					_ = command.Process.Kill()
					t.Log("the program of the mount: ", command.Wait())
					_ = unix.Unmount(path, unix.MNT_DETACH) // sshfs mounts first, since 3.0
				})
			}
			mount()
			var g *collect.Metrics
			require.Eventually(t, func() bool {
				g = collect.Gather(t, m)
				return at(g, path) != nil
			}, 30*time.Second, 100*time.Millisecond)
			metric := at(g, path)
			assert.Equal(t, "error "+c.cause, text(metric, "result")+" "+text(metric, "cause"))
			assert.Contains(t, text(metric, "reason"), "sshfs")
			assert.Contains(t, text(metric, "reason"), "its server "+c.server.String()+" of root@127.0.0.1:/, by ssh")
			assert.Contains(t, text(metric, "reason"), c.says)
			fstype, _ := metric.GetTag("fstype")
			assert.Equal(t, "fuse.sshfs", fstype)
			require.Len(t, g.Named("mountstat_server"), 1)
			service, _ := g.Named("mountstat_server")[0].GetTag("service")
			assert.Equal(t, "sshfs", service)
			assert.Len(t, log.about("nothing can be mounted at"), 1)
			end()
			require.Eventually(t, func() bool { return at(collect.Gather(t, m), path) == nil }, 30*time.Second, 10*time.Millisecond, "nobody waits for it")
		})
	}
}

func TestOnlyPeer(t *testing.T) {
	connection := func(address string) sockdiag.TCP { return sockdiag.TCP{Peer: netip.MustParseAddrPort(address)} }
	a, b := connection("10.0.0.1:445"), connection("10.0.0.2:445")
	for _, c := range []struct {
		all  []sockdiag.TCP
		want bool
	}{{nil, false}, {[]sockdiag.TCP{a}, true}, {[]sockdiag.TCP{a, a}, true}, {[]sockdiag.TCP{a, b}, false}} {
		_, one := onlyPeer(c.all)
		assert.Equal(t, c.want, one)
	}
}
