package sockdiag

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// portOfHolder tells a copy of this program to connect to itself at a port, and to wait.
const portOfHolder = "VFSPROBE_TEST_PORT"

// eachHolds is of how many connections each holder has both ends, within the usual limit of
// 20,000 files.
const eachHolds = 5_000

// allHolders are so many that there are 100,000 sockets.
const allHolders = 10

func TestHolder(t *testing.T) {
	port, err := strconv.Atoi(os.Getenv(portOfHolder))
	if err != nil {
		t.Skip("it is run by the benchmarks")
	}
	connectTo(t, port, eachHolds)
	_, _ = os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// enterBusyHost brings this goroutine into a network namespace of its own, in which holders have
// 10,000 sockets each.
func enterBusyHost(b testing.TB, holders int) {
	b.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Skipf("a network namespace: %v", err)
	}
	up, err := unix.NewIfreq("lo")
	require.NoError(b, err)
	up.SetUint16(unix.IFF_UP)
	require.NoError(b, unix.IoctlIfreq(newSocket(b), unix.SIOCSIFFLAGS, up))
	for i := range holders {
		holder := exec.Command("/proc/self/exe", "-test.run", "^TestHolder$")
		holder.Env = append(os.Environ(), portOfHolder+"="+strconv.Itoa(4000+i))
		holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		stdin, err := holder.StdinPipe()
		require.NoError(b, err)
		stdout, err := holder.StdoutPipe()
		require.NoError(b, err)
		require.NoError(b, holder.Start())
		b.Cleanup(func() {
			_ = stdin.Close()
			_ = holder.Wait()
		})
		line, err := bufio.NewReader(stdout).ReadString('\n')
		require.NoError(b, err)
		require.Equal(b, "ready\n", line)
	}
}

func newSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// connectTo makes a server at a port, and so many connections to it.
func connectTo(t testing.TB, port, clients int) netip.AddrPort {
	t.Helper()
	at := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
	listener := newSocket(t)
	require.NoError(t, unix.Bind(listener, at))
	require.NoError(t, unix.Listen(listener, 16))
	for range clients {
		require.NoError(t, unix.Connect(newSocket(t), at))
		server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		require.NoError(t, err)
		t.Cleanup(func() { _ = unix.Close(server) })
	}
	return netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(port))
}

// spend reports the CPU time that work takes of this thread, in the kernel, too.
func spend(b *testing.B, work func()) {
	b.Helper()
	var before, after unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_THREAD, &before))
	for b.Loop() {
		work()
	}
	require.NoError(b, unix.Getrusage(unix.RUSAGE_THREAD, &after))
	spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(spent)/float64(b.N)/float64(time.Millisecond), "cpu-ms/op")
}

// A host with very many connections has those to a server told apart: 10,000 sockets, or as many
// as VFSPROBE_SOCKETS says.
func TestTable_AmongManySockets(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes many sockets")
	}
	sockets, _ := strconv.Atoi(os.Getenv("VFSPROBE_SOCKETS"))
	holders := max(1, sockets/(2*eachHolds))
	enterBusyHost(t, holders)
	server := connectTo(t, 445, 4)
	var found Connections // by this thread, which alone is in the namespace
	began := time.Now()
	require.NoError(t, eachConnection(unix.AF_INET, server.Port(), func(s *TCP) { found.add(s, server) }))
	t.Logf("%v among %d sockets", time.Since(began), 2*holders*eachHolds)
	require.Equal(t, Connections{Established: 4}, found)
	all, own := 0, 0
	require.NoError(t, eachConnection(unix.AF_INET, 0, func(s *TCP) {
		all++
		if s.Peer == server {
			own++
		}
	}))
	require.GreaterOrEqual(t, all, 2*holders*eachHolds)
	require.Equal(t, 4, own)
}

// What is asked about a server with few connections, among 100,000 sockets.
func BenchmarkTable_To(b *testing.B) {
	enterBusyHost(b, allHolders)
	server := connectTo(b, 445, 4)
	spend(b, func() {
		var found Connections
		require.NoError(b, eachConnection(unix.AF_INET, server.Port(), func(s *TCP) { found.add(s, server) }))
		require.Equal(b, 4, found.Established)
	})
}

// What is asked to find the sockets of a process among 100,000.
func BenchmarkSockets(b *testing.B) {
	enterBusyHost(b, allHolders)
	spend(b, func() {
		seen := 0
		_, err := Sockets(func(uint32) bool {
			seen++
			return false
		})
		require.NoError(b, err)
		require.GreaterOrEqual(b, seen, 2*allHolders*eachHolds)
	})
}
