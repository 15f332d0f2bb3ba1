// Package blackhole makes addresses at which nothing answers.
package blackhole

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Listen returns an address of a listener that accepts nothing and whose queue is full, until
// the test ends: it loses what asks for a connection, as a cut network or a firewall that drops
// does.
func Listen(t testing.TB) netip.AddrPort {
	t.Helper()
	full, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(full) })
	if err := unix.Bind(full, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(full, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(full)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	filler, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { filler.Close() })
	return address
}
