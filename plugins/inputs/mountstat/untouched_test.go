package mountstat

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
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
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
)

// onAutofs makes the table say that what it has lies on an automount that expires.
func onAutofs(t *testing.T, m *Mountstat, path string) {
	t.Helper()
	file := filepath.Join(m.host.Proc, m.host.PID, "mountinfo")
	table, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append([]byte("1 0 0:1 / "+filepath.Dir(path)+" rw - autofs auto rw,timeout=300\n"), table...), 0o600))
}

// A server that answers neither us nor those who use an automounted mount is known, and the
// mount is not touched.
func TestUntouched_AMountWhoseServerIsDead(t *testing.T) {
	faultfs.Require(t)
	for _, c := range []struct {
		fstype string
		answer func(net.Conn)
		errno  string
		cause  string
	}{
		{"cifs", answerSMB, "ETIMEDOUT", "server_service_dead"},
		{"9p", answerNineP, "ETIMEDOUT", "server_service_dead"},
		{"ceph", answerCeph, "ETIMEDOUT", "ceph_monitors_dead"},
	} {
		t.Run(c.fstype, func(t *testing.T) {
			var well atomic.Bool
			server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
				if well.Load() {
					c.answer(conn)
				}
				silence(conn)
			})
			m, log, fs, own := newOnDemand(t, c.fstype, server)
			fs.Silence()
			for range 3 {
				assert.Equal(t, "unchecked", text(at(collect.Gather(t, m), fs.Dir), "result"), "nobody waits for it")
				for _, s := range m.servers.byQuestion {
					s.proven = true // it has answered before
				}
			}
			time.Sleep(10 * time.Millisecond)
			_, err := own.Write([]byte("a request of somebody's"))
			require.NoError(t, err)
			time.Sleep(10 * time.Millisecond)
			var metric telegraf.Metric
			require.Eventually(t, func() bool { // a busy host may not tell of its connections in time
				metric = at(collect.Gather(t, m), fs.Dir)
				return text(metric, "result")+" "+text(metric, "errno")+" "+text(metric, "cause") == "error "+c.errno+" "+c.cause
			}, 30*time.Second, time.Millisecond)
			assert.Contains(t, text(metric, "reason"), "mounted on demand")
			assert.Contains(t, text(metric, "reason"), server.String())
			well.Store(true)
			metric = at(gatherUntil(t, m, fs.Dir, "unchecked"), fs.Dir)
			assert.Equal(t, int64(1), field(t, metric, "recoveries"))
			assert.Zero(t, fs.Unanswered(), "it was never touched")
			assert.Len(t, log.lines, 2, "%q", log.lines)
		})
	}
}

// newOnDemand makes an input with one mount, as made on demand of a server, its log, and the mount's
// own connection.
func newOnDemand(t *testing.T, fstype string, server netip.AddrPort) (*Mountstat, *journal, *faultfs.FS, net.Conn) {
	t.Helper()
	own, err := net.Dial("tcp", server.String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = own.Close() })
	fs := faultfs.New(t)
	m, log := newPretendedNFS(t, within(timeout))
	networkMount(t, fs, fstype, server)(m)
	onAutofs(t, m, fs.Dir)
	return m, log, fs, own
}

// A server is asked at once when something that was sent has had no answer, and not only in its
// moment of the minute: it was well when it was last asked. Of a Ceph cluster somebody has to wait.
func TestUntouched_AMountWhoseServerDiesIsFoundWhileSomebodyWaits(t *testing.T) {
	faultfs.Require(t)
	for fstype, answer := range map[string]func(net.Conn){"cifs": answerSMB, "9p": answerNineP, "ceph": answerCeph} {
		t.Run(fstype, func(t *testing.T) {
			var dead atomic.Bool
			var taken atomic.Int64
			server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
				if taken.Add(1) > 1 && !dead.Load() {
					answer(conn)
				}
				silence(conn)
			})
			m, _, fs, own := newOnDemand(t, fstype, server)
			require.Eventually(t, func() bool { // a busy host may not ask in time
				g := collect.Gather(t, m)
				return text(at(g, fs.Dir), "result") == "unchecked" && m.targets[0].servers[0].answer.Answered()
			}, 30*time.Second, 10*time.Millisecond)
			dead.Store(true)
			asked := taken.Load()
			for range 3 {
				require.Equal(t, "unchecked", text(at(collect.Gather(t, m), fs.Dir), "result"), "nobody waits")
			}
			assert.LessOrEqual(t, taken.Load(), asked+1, "once, if it was its moment of the minute")
			_, err := own.Write([]byte("a request of somebody's"))
			require.NoError(t, err)
			if fstype == "ceph" {
				waitUninterruptibly(t)
			}
			require.Eventually(t, func() bool { // a busy host may have asked twice until somebody looks
				metric, s := at(collect.Gather(t, m), fs.Dir), m.targets[0].servers[0]
				once := s.answer.Broken() && s.answer.At.Equal(s.answer.Since)
				if once && (fstype == "ceph" || s.waited < m.policy.timeout) { // on a busy host it was longer
					require.Equal(t, "unchecked", text(metric, "result"), "one question without an answer is no proof")
				}
				return text(metric, "result") == "error" && text(metric, "errno") == "ETIMEDOUT"
			}, 30*time.Second, 10*time.Millisecond)
			if fstype == "ceph" {
				assert.GreaterOrEqual(t, taken.Load(), asked+2, "both questions were asked")
			}
			assert.Zero(t, fs.Unanswered(), "it was never touched")
		})
	}
}

// One question without an answer is proof if something has waited for an answer for longer than a
// check may take.
func TestUntouched_AMountWhoseUsersHaveWaitedForLong(t *testing.T) {
	faultfs.Require(t)
	var taken atomic.Int64
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		if taken.Add(1) == 2 {
			answerNineP(conn)
		}
		silence(conn)
	})
	m, _, fs, own := newOnDemand(t, "9p", server)
	require.Eventually(t, func() bool {
		collect.Gather(t, m)
		return m.targets[0].servers[0].answer.Answered()
	}, 30*time.Second, 10*time.Millisecond)
	_, err := own.Write([]byte("a request of somebody's"))
	require.NoError(t, err)
	time.Sleep(m.policy.timeout + 100*time.Millisecond)
	var once bool
	require.Eventually(t, func() bool { // a busy host may not tell of its connections in time
		metric, s := at(collect.Gather(t, m), fs.Dir), m.targets[0].servers[0]
		if s.waited > m.policy.timeout && s.answer.Broken() && s.answer.At.Equal(s.answer.Since) && s.answer.Connections.Known {
			once = true
			require.Equal(t, "error", text(metric, "result"), "one question is proof")
		}
		return text(metric, "result")+" "+text(metric, "cause") == "error server_service_dead"
	}, 30*time.Second, 10*time.Millisecond)
	assert.Zero(t, fs.Unanswered(), "it was never touched")
	if !once {
		t.Skip("this host did not tell of its connections in time")
	}
}

// A 9P mount that loses its connection is of no use, though nobody waits, and though the server was
// well when it was last asked, and is.
func TestUntouched_A9PMountThatLosesItsConnection(t *testing.T) {
	faultfs.Require(t)
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		answerNineP(conn)
		silence(conn)
	})
	m, _, fs, own := newOnDemand(t, "9p", server)
	require.Eventually(t, func() bool {
		metric, s := at(collect.Gather(t, m), fs.Dir), m.targets[0].servers[0]
		require.Equal(t, "unchecked", text(metric, "result"))
		return s.answer.Answered() && s.most > 0
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, own.Close())
	require.Eventually(t, func() bool {
		metric := at(collect.Gather(t, m), fs.Dir)
		return text(metric, "result")+" "+text(metric, "cause") == "error mount_needs_remount"
	}, 30*time.Second, 10*time.Millisecond)
	assert.Zero(t, fs.Unanswered(), "it was never touched")
}

// A 9P mount has lost its connection if the server has closed it, or if it is missing at two looks: at
// one its mount may just be being unmounted. One that a mount has left behind proves nothing.
func TestServer_NoteLost(t *testing.T) {
	s := &server{Server: mounts.Server{Question: serverpool.Question{Service: serverpool.NineP}}}
	targets := []*target{{Unit: &mounts.Unit{Probed: &mounts.Mount{Info: &mountinfo.Info{FSType: "9p"}}}, servers: []*server{s}}}
	for _, look := range []struct {
		what      string
		connected int
		closed    bool
		want      bool
	}{
		{"it was never connected, as far as this host shows", 0, false, false},
		{"nor now", 0, false, false},
		{"it is connected", 1, false, false},
		{"another connection is left of one that was unmounted", 1, true, false},
		{"it is missing", 0, false, false},
		{"it is missing again", 0, false, true},
		{"it was mounted anew", 1, false, false},
		{"the server has closed it", 0, true, true},
	} {
		s.connected, s.closed = look.connected, look.closed
		s.most = max(s.most, s.connected)
		s.noteLost(targets)
		assert.Equal(t, look.want, s.lost, look.what)
	}
}

// Where something is sent again and again, it shows for how long nothing has come by looking twice.
func TestConnections_Note(t *testing.T) {
	began := time.Now()
	of := func(port uint16, state sockdiag.State, sent, received time.Duration) sockdiag.TCP {
		c := sockdiag.TCP{State: state, Local: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), port), Sent: sent, Received: received}
		if sent < received {
			c.Waited = sent
		}
		return c
	}
	var c connections
	for _, look := range []struct {
		after     time.Duration
		found     []sockdiag.TCP
		connected int
		waited    time.Duration
		what      string
		closed    bool
	}{
		{0, []sockdiag.TCP{of(1, sockdiag.Established, time.Minute, time.Second)}, 1, 0, "it was answered", false},
		{10 * time.Second, []sockdiag.TCP{of(1, sockdiag.Established, time.Second, 11*time.Second)}, 1, time.Second, "something was sent", false},
		{20 * time.Second, []sockdiag.TCP{of(1, sockdiag.Established, 2*time.Second, 21*time.Second)}, 1, 11 * time.Second, "something else was", false},
		{30 * time.Second, []sockdiag.TCP{of(1, sockdiag.Established, time.Second, 3*time.Second)}, 1, time.Second, "an answer has come, and something was sent", false},
		{40 * time.Second, []sockdiag.TCP{of(2, sockdiag.Established, time.Second, 90*time.Second)}, 1, time.Second, "it is another connection", false},
		{50 * time.Second, []sockdiag.TCP{of(2, sockdiag.CloseWait, 0, 0)}, 0, 0, "the server has closed it", true},
		{60 * time.Second, nil, 0, 0, "there is none", false},
	} {
		c.note(look.found, began.Add(look.after))
		assert.Equal(t, look.connected, c.connected, look.what)
		assert.Equal(t, look.waited, c.waited, look.what)
		assert.Equal(t, look.closed, c.closed, look.what)
		assert.Equal(t, 1, c.most)
	}
}

// waitUninterruptibly has a process in state D until the test ends: one that was killed while it
// waits for a FUSE daemon which has read its request.
func waitUninterruptibly(t *testing.T) {
	t.Helper()
	fs := faultfs.New(t)
	fs.Silence(faultfs.Read)
	victim := exec.Command("cat", filepath.Join(fs.Dir, faultfs.FileName))
	require.NoError(t, victim.Start())
	t.Cleanup(func() { fs.Heal(); _ = victim.Wait() })
	require.Eventually(t, func() bool { return fs.Unanswered() > 0 }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, victim.Process.Kill())
}

// The table does not tell where an SMB server listens, so that one which refuses proves
// nothing; its client knows.
func TestUntouched_AnSMBMountByWhatItsClientKnows(t *testing.T) {
	faultfs.Require(t)
	for says, want := range map[string]string{"": "unchecked ", "6.1-good": "unchecked ", "6.1-no-session": "unchecked ", "6.1-disconnected": "error server_service_dead"} {
		fs := faultfs.New(t)
		m, _ := newPretendedNFS(t)
		networkMount(t, fs, "cifs", refusing(t))(m)
		onAutofs(t, m, fs.Dir)
		if says != "" {
			debugData(t, m, says)
		}
		fs.Silence()
		collect.Gather(t, m)
		metric := at(collect.Gather(t, m), fs.Dir)
		assert.Equal(t, want, text(metric, "result")+" "+text(metric, "cause"), says)
		assert.Zero(t, fs.Unanswered(), "it was never touched")
	}
}

// A 9P mount that has lost its connection is of no use to those who come, also if its server
// is back.
func TestUntouched_A9PMountThatNeedsARemount(t *testing.T) {
	faultfs.Require(t)
	var well atomic.Bool
	server := rpchost.Serve(t, "127.0.0.1:0", func(conn net.Conn) {
		if well.Load() {
			answerNineP(conn)
		}
		silence(conn)
	})
	fs := faultfs.New(t)
	m, _ := newPretendedNFS(t, within(timeout))
	networkMount(t, fs, "9p", server)(m)
	onAutofs(t, m, fs.Dir)
	comes := func(cause string) { // a busy host may not tell of its connections in time
		require.Eventually(t, func() bool {
			metric := at(collect.Gather(t, m), fs.Dir)
			return text(metric, "result")+" "+text(metric, "cause") == "error "+cause
		}, 30*time.Second, time.Millisecond)
	}
	own, err := net.Dial("tcp", server.String()) // of the mount
	require.NoError(t, err)
	require.Eventually(t, func() bool { collect.Gather(t, m); return m.targets[0].servers[0].most > 0 }, 30*time.Second, time.Millisecond)
	require.NoError(t, own.Close())
	comes("server_service_dead")
	well.Store(true)
	comes("mount_needs_remount")
	assert.Zero(t, m.targets[0].Recoveries, "it never was well")
}

// automountedFUSE is a directory of an automount, where fusectl tells who waits.
func automountedFUSE(t *testing.T) string {
	t.Helper()
	const connections = "/sys/fs/fuse/connections"
	faultfs.Require(t)
	if err := unix.Mount("fusectl", connections, "fusectl", 0, ""); err != nil && err != unix.EBUSY {
		t.Skipf("no fusectl here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(connections, unix.MNT_DETACH) })
	child := filepath.Join(automount(t, 300), "child")
	require.NoError(t, os.Mkdir(child, 0o755))
	return child
}

// Who waits for an automounted FUSE mount shows in fusectl, and its daemon tells why.
func TestUntouched_AFUSEMountWhoseServerIsDead(t *testing.T) {
	child := automountedFUSE(t)
	server := sshhost.New(t)
	fs := server.MountAt(t, child)
	m, log := newInput(t, only(child), within(timeout))
	gather := func() string {
		metric := at(collect.Gather(t, m), child)
		return text(metric, "result") + " " + text(metric, "cause")
	}
	require.Equal(t, "unchecked ", gather())
	require.NoError(t, exec.Command("stat", "-f", child).Run(), "the session is there")
	server.Pause()
	for range 3 {
		require.Equal(t, "unchecked ", gather(), "nobody waits for it")
	}
	time.Sleep(50 * time.Millisecond) // what is sent must be later than the last answer, by the kernel's clock
	user := exec.Command("stat", "-f", child)
	require.NoError(t, user.Start())
	defer func() { _ = user.Wait() }()
	defer server.Resume()
	require.Eventually(t, func() bool { return gather() == "error fuse_server_silent" }, 30*time.Second, 100*time.Millisecond)
	metric := at(collect.Gather(t, m), child)
	assert.Contains(t, text(metric, "reason"), fmt.Sprintf("its daemon sshfs (process %d) waits for its server", fs.Daemon.Pid))
	server.Resume()
	require.Eventually(t, func() bool { return gather() == "unchecked " }, 30*time.Second, 100*time.Millisecond)
	fs.Pause(t)
	defer fs.Resume()
	second := exec.Command("stat", "-f", child)
	require.NoError(t, second.Start())
	defer func() { _ = second.Wait() }()
	defer fs.Resume()
	target := m.targets[0]
	require.Eventually(t, func() bool { return m.causes.fuseWaiting(target).n > 0 }, 30*time.Second, time.Millisecond)
	target.examined = time.Time{}
	gatherUntil(t, m, child, "error fuse_daemon_silent") // in the first gather, as a check would find it
	m.daemons.begin()
	m.causes.collect(target)
	assert.Equal(t, result.Error, m.causes.judgeUntouched(target).code, "a daemon that was not examined in time is no recovery")
	assert.NotEmpty(t, log.about("is stopped: kill -CONT"))
}

// sshfs mounts before it has connected: the kernel's first request waits for that, and tells it.
func TestUntouched_AFUSEMountWhoseServerWasDeadWhenItWasMade(t *testing.T) {
	if _, err := exec.LookPath("sshfs"); err != nil {
		t.Skip(err)
	}
	child := automountedFUSE(t)
	server := blackhole.Listen(t)
	sshfs := exec.Command("sshfs", "-f", "-p", strconv.Itoa(int(server.Port())), "root@127.0.0.1:/", child,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60")
	sshfs.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, sshfs.Start())
	t.Cleanup(func() {
		_ = unix.Kill(-sshfs.Process.Pid, unix.SIGKILL) // and its ssh
		_ = sshfs.Wait()
		_ = unix.Unmount(child, unix.MNT_DETACH)
	})
	m, _ := newInput(t, only(child), within(slow))
	var metric telegraf.Metric
	require.Eventually(t, func() bool {
		metric = at(collect.Gather(t, m), child)
		return metric != nil && text(metric, "result") != "unchecked"
	}, 30*time.Second, 100*time.Millisecond)
	assert.Equal(t, "error fuse_server_unreachable", text(metric, "result")+" "+text(metric, "cause"))
	assert.Contains(t, text(metric, "reason"), "its server "+server.String()+" of root@127.0.0.1:/, by ssh")

	// The first gather in which it is there tells.
	m, _ = newInput(t, only(child), within(2*slow))
	metric = at(collect.Gather(t, m), child)
	assert.Equal(t, "error fuse_server_unreachable", text(metric, "result")+" "+text(metric, "cause"))
}
