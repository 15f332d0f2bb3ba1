// Package rpchost runs the real RPC services of a host for tests, in a network
// of the tests' own.
package rpchost

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// Main runs a package's tests in network, mount and PID namespaces of their own: they
// may bind port 111, and nothing they start sees the host's /run. Use it as
// TestMain.
func Main(m *testing.M) { namespace.Main(m, syscall.CLONE_NEWNET, setUp) }

// setUp brings the loopback interface up, with a link-local address, and hides
// the host's /run.
func setUp() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return setLoopback(true)
}

// CutNetwork takes the loopback interface down until the end of the test, or MendNetwork:
// what is sent over it gets lost, and connections stay. It is for programs that run by [Main].
func CutNetwork(t testing.TB) {
	t.Helper()
	if err := setLoopback(false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { MendNetwork(t) })
}

// MendNetwork ends CutNetwork.
func MendNetwork(t testing.TB) {
	t.Helper()
	if err := setLoopback(true); err != nil {
		t.Fatal(err)
	}
}

// setLoopback brings the loopback interface up, with a link-local address, or takes it down.
func setLoopback(up bool) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if up {
		lo.SetUint16(unix.IFF_UP)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up or down: %w", err)
	}
	if !up {
		return nil
	}
	// struct in6_ifreq, linux/ipv6.h; the loopback interface has the index 1.
	address := struct {
		address [16]byte
		prefix  uint32
		index   int32
	}{[16]byte{0: 0xfe, 1: 0x80, 15: 1}, 64, 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&address))); errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("add fe80::1 to lo: %w", errno)
	}
	return nil
}

// StartRPCBind runs rpcbind until the end of the test, and returns once it
// answers on all addresses. The test is skipped where there is none.
func StartRPCBind(t testing.TB) *os.Process {
	t.Helper()
	process := start(t, "rpcbind", "-f")
	eventually(t, "rpcbind", func(ctx context.Context) bool {
		for _, host := range []string{"127.0.0.1:111", "[::1]:111"} {
			for _, network := range []string{"tcp", "udp"} {
				if _, err := sunrpc.Null(ctx, network, netip.MustParseAddrPort(host), sunrpc.ProgramRPCBind, 4); err != nil {
					return false
				}
			}
		}
		return true
	})
	return process
}

// StartStatd runs rpc.statd, which needs rpcbind, until the end of the test, and
// returns once it is registered. The test is skipped where there is none.
func StartStatd(t testing.TB) *os.Process {
	t.Helper()
	state := t.TempDir()
	for _, name := range []string{"sm", "sm.bak"} {
		if err := os.Mkdir(filepath.Join(state, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	process := start(t, "rpc.statd", "--foreground", "--no-notify", "--state-directory-path", state)
	eventually(t, "rpc.statd", func(ctx context.Context) bool {
		_, err := sunrpc.LookUp(ctx, "tcp", netip.MustParseAddrPort("127.0.0.1:111"),
			sunrpc.Service{Program: sunrpc.ProgramNSM, Version: 1, Network: "tcp"})
		return err == nil
	})
	return process
}

// Serve serves TCP connections at the address until the end of the test, and
// returns where it does. The test is skipped where the port is taken.
func Serve(t testing.TB, address string, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return netip.MustParseAddrPort(listener.Addr().String())
}

// AnswerNull is an RPC server which accepts every call, RFC 5531.
func AnswerNull(conn net.Conn) { Answer(func([]byte) []byte { return nil })(conn) }

// Answer is an RPC server which accepts every call, and answers with the results that it has for
// it, in XDR.
func Answer(results func(call []byte) []byte) func(net.Conn) {
	return func(conn net.Conn) {
		record := make([]byte, 4096)
		for {
			n, err := conn.Read(record)
			if err != nil || n < 28 {
				return
			}
			call := record[4:n]
			content := results(call)
			reply := binary.BigEndian.AppendUint32(nil, 1<<31|uint32(24+len(content)))
			reply = append(reply, call[:4]...) // xid
			for _, word := range []uint32{1, 0, 0, 0, 0} {
				reply = binary.BigEndian.AppendUint32(reply, word)
			}
			if _, err := conn.Write(append(reply, content...)); err != nil {
				return
			}
		}
	}
}

func start(t testing.TB, name string, arguments ...string) *os.Process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here", name)
	}
	command := exec.Command(path, arguments...)
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return command.Process
}

func eventually(t testing.TB, what string, ready func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ready(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not start", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
