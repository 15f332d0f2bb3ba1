package fusedaemon_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
)

func TestMain(m *testing.M) { rpchost.Main(m) }

func newFinder(t *testing.T) *fusedaemon.Finder {
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	files := &openfiles.Reader{Prober: p, Proc: "/proc"}
	return fusedaemon.NewFinder("/proc", files, blocked.NewMonitor("/proc", files))
}

// connection is that of a mount, which must answer.
func connection(t *testing.T, dir, kind string) fusedaemon.Connection {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dir, &st))
	return fusedaemon.Connection{Number: int64(unix.Minor(st.Dev)), MountID: 1, Kind: kind, Mountpoint: dir}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 20*time.Millisecond, what)
}

// find returns the daemon of a connection; nil: it was not found.
func find(t *testing.T, f *fusedaemon.Finder, c fusedaemon.Connection) *fusedaemon.Daemon {
	t.Helper()
	found, err := f.Find([]fusedaemon.Connection{c})
	require.NoError(t, err)
	return found[c]
}

func TestFinder_FollowsADaemonToItsServer(t *testing.T) {
	host := sshhost.New(t)
	fs := host.Mount(t)
	c := connection(t, fs.Dir, "sshfs")
	f := newFinder(t)
	var d *fusedaemon.Daemon
	eventually(t, "its threads wait again", func() bool { // they have answered a moment ago
		d = find(t, f, c)
		return d != nil && d.TakesRequests() && d.Lives()
	})
	if d.Guessed {
		t.Log("this kernel does not say who holds a connection")
	}
	assert.Equal(t, fusedaemon.Process{PID: fs.Daemon.Pid, Comm: "sshfs"}, d.Process)
	assert.Contains(t, d.Arguments, fs.Dir)
	require.NotNil(t, d.Worker)
	assert.Equal(t, "ssh", d.Worker.Comm)
	require.Len(t, d.Sockets, 1)
	assert.Equal(t, host.Address, d.ServerAddress().String())
	assert.True(t, d.TakesRequests() && d.Lives() && d.Seen() && !d.Stopped(), "%+v", d.Threads)
	assert.Nil(t, d.ForFUSE())

	fs.Pause(t)
	eventually(t, "it is stopped", func() bool { return find(t, f, c).Stopped() })
	assert.False(t, find(t, f, c).Lives())
	fs.Resume()

	fs.Kill()
	assert.Nil(t, find(t, f, c))
	fs.Mount(t)
	c = connection(t, fs.Dir, "sshfs")
	c.MountID = 2
	d = find(t, f, c)
	require.NotNil(t, d)
	assert.Equal(t, fs.Daemon.Pid, d.PID, "another one with the same number")
}

// A process that serves several connections may have lost one.
func TestFinder_SeesThatAConnectionWasClosed(t *testing.T) {
	faultfs.Require(t)
	lost, kept := faultfs.New(t), faultfs.New(t)
	a, b := connection(t, lost.Dir, "faultfs"), connection(t, kept.Dir, "faultfs")
	f := newFinder(t)
	found, err := f.Find([]fusedaemon.Connection{a, b})
	require.NoError(t, err)
	if found[a] == nil || found[a].Guessed {
		t.Skip("this kernel does not say who holds a connection")
	}
	require.NotNil(t, found[b])
	assert.Equal(t, os.Getpid(), found[b].PID)
	lost.Abort()
	eventually(t, "its end is seen", func() bool {
		found, err = f.Find([]fusedaemon.Connection{a, b})
		require.NoError(t, err)
		return found[a] == nil
	})
	assert.NotNil(t, found[b])
}

// A socket of some process is none of the kernel's.
func TestFinder_OfTheKernel(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer func() { _ = unix.Close(pair[0]); _ = unix.Close(pair[1]) }()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(pair[0], &st))
	own := uint32(st.Ino)
	require.NoError(t, unix.Fstat(pair[1], &st))
	const nobodys = 0xfffffff0
	left, err := newFinder(t).OfTheKernel([]uint32{own, nobodys, uint32(st.Ino)})
	if err != nil {
		t.Skip(err) // another user's processes can't be seen
	}
	assert.Equal(t, []uint32{nobodys}, left)
}

const asNobody = "VFSPROBE_TEST_CONNECTION"

// Who may not see what a daemon holds guesses, and says so.
func TestFinder_WithoutRightsGuesses(t *testing.T) {
	if text := os.Getenv(asNobody); text != "" {
		var c fusedaemon.Connection
		require.NoError(t, json.Unmarshal([]byte(text), &c))
		d := find(t, newFinder(t), c)
		require.NotNil(t, d)
		assert.True(t, d.Guessed && d.Stopped() && !d.Seen() && !d.SocketsKnown, "%+v", d)
		c.Mountpoint += "/other"
		c.MountID++
		assert.Nil(t, find(t, newFinder(t), c))
		return
	}
	fs := sshhost.New(t).Mount(t)
	c := connection(t, fs.Dir, "sshfs")
	fs.Pause(t)
	f := newFinder(t)
	eventually(t, "it is stopped", func() bool { d := find(t, f, c); return d != nil && d.Stopped() })
	text, err := json.Marshal(c)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "fusedaemon")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	content, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	self := filepath.Join(dir, "self")
	require.NoError(t, os.WriteFile(self, content, 0o755))
	child := exec.Command(self, "-test.run", "^"+t.Name()+"$", "-test.v")
	child.Env, child.Dir = append(os.Environ(), asNobody+"="+string(text)), dir
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.True(t, strings.Contains(string(out), "PASS"), "%s", out)
}

func TestDaemon_Server(t *testing.T) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port) }
	established := func(change func(*sockdiag.TCP)) sockdiag.TCP {
		s := sockdiag.TCP{State: sockdiag.Established, Local: at(40000), Peer: at(22), Sent: 2 * time.Second, Received: time.Second}
		if change != nil {
			change(&s)
		}
		return s
	}
	asked := established(func(s *sockdiag.TCP) { s.Sent, s.Received = time.Second, 5*time.Second })
	lost := established(func(s *sockdiag.TCP) { s.Timer, s.Retries, s.Unsent = sockdiag.Retransmit, 1, 100 })
	for name, c := range map[string]struct {
		sockets []sockdiag.TCP
		want    fusedaemon.ServerState
		telling int // index
	}{
		"none":                         {want: fusedaemon.Unconnected, telling: -1},
		"it was answered":              {sockets: []sockdiag.TCP{established(nil)}, want: fusedaemon.Answered},
		"it was not":                   {sockets: []sockdiag.TCP{established(nil), asked}, want: fusedaemon.Silent, telling: 1},
		"it never was":                 {sockets: []sockdiag.TCP{established(func(s *sockdiag.TCP) { s.Received, s.NeverAnswered = s.Sent, true })}, want: fusedaemon.Silent},
		"the one that waits longest":   {sockets: []sockdiag.TCP{asked, established(func(s *sockdiag.TCP) { s.Sent, s.Received = time.Second, time.Hour })}, want: fusedaemon.Silent, telling: 1},
		"packets get lost":             {sockets: []sockdiag.TCP{asked, lost}, want: fusedaemon.Unreachable, telling: 1},
		"no answer to the first":       {sockets: []sockdiag.TCP{{State: sockdiag.SynSent, Peer: at(22)}, asked}, want: fusedaemon.Unreachable},
		"a probe is under way":         {sockets: []sockdiag.TCP{established(func(s *sockdiag.TCP) { s.Timer, s.Retries = sockdiag.KeepAlive, 1 })}, want: fusedaemon.Answered},
		"probes are not answered":      {sockets: []sockdiag.TCP{established(func(s *sockdiag.TCP) { s.Timer, s.Retries = sockdiag.KeepAlive, 2 })}, want: fusedaemon.Unreachable},
		"the server takes no more":     {sockets: []sockdiag.TCP{established(func(s *sockdiag.TCP) { s.Timer, s.Unsent = sockdiag.ZeroWindow, 9 })}, want: fusedaemon.Silent},
		"it does not read":             {sockets: []sockdiag.TCP{established(func(s *sockdiag.TCP) { s.Unread = 9 })}, want: fusedaemon.Unread},
		"the server has hung up":       {sockets: []sockdiag.TCP{{State: sockdiag.CloseWait, Peer: at(22)}}, want: fusedaemon.Unconnected, telling: -1},
		"a client of the daemon's own": {sockets: []sockdiag.TCP{{State: sockdiag.Listen, Local: at(40000)}, asked}, want: fusedaemon.Unconnected, telling: -1},
	} {
		t.Run(name, func(t *testing.T) {
			d := &fusedaemon.Daemon{Sockets: c.sockets}
			state, _ := d.Server()
			assert.Equal(t, fusedaemon.Unseen, state)
			d.SocketsKnown = true
			state, socket := d.Server()
			assert.Equal(t, c.want, state)
			if c.telling < 0 {
				assert.Nil(t, socket)
				assert.False(t, d.ServerAddress().IsValid())
			} else {
				assert.Same(t, &d.Sockets[c.telling], socket)
			}
		})
	}
}
