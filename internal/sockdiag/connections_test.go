package sockdiag

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/blackhole"
)

const limit = 20 * time.Second

func listen(t *testing.T, address string) (net.Listener, netip.AddrPort) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("this host has no such address: %v", err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener, netip.MustParseAddrPort(listener.Addr().String())
}

func TestTable_To(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			listener, server := listen(t, address)
			table := NewTable()
			none := table.To(server, limit)
			if !none.Known {
				t.Skip("this kernel has no sock_diag")
			}
			assert.Equal(t, Connections{Known: true}, none)

			conn, err := net.Dial("tcp", server.String())
			require.NoError(t, err)
			defer conn.Close()
			assert.Equal(t, Connections{Known: true, Established: 1}, table.To(server, limit))
			other := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), server.Port())
			assert.Equal(t, Connections{Known: true}, table.To(other, limit), "it is another server")

			accepted, err := listener.Accept()
			require.NoError(t, err)
			require.NoError(t, accepted.Close())
			assert.Eventually(t, func() bool { return table.To(server, limit) == Connections{Known: true, CloseWait: 1} }, limit, 10*time.Millisecond)
		})
	}
}

func TestTable_Search(t *testing.T) {
	listener, server := listen(t, "127.0.0.1:0")
	conn, err := net.Dial("tcp", server.String())
	require.NoError(t, err)
	defer conn.Close()
	accepted, err := listener.Accept()
	require.NoError(t, err)
	defer accepted.Close()
	table := NewTable()
	here := func(s *TCP) bool { return s.Peer == server }
	for _, port := range []uint16{0, server.Port()} {
		found, known := table.Search(port, here, limit)
		if !known {
			t.Skip("this kernel has no sock_diag")
		}
		require.Len(t, found, 1, "port %d", port)
		assert.Equal(t, Established, found[0].State)
		assert.NotZero(t, found[0].Inode)
		assert.True(t, found[0].NeverAnswered)
	}
	_, err = accepted.Write([]byte("hello"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool {
		found, _ := table.Search(server.Port(), here, limit)
		return len(found) == 1 && !found[0].NeverAnswered
	}, limit, 10*time.Millisecond)
	found, _ := table.Search(server.Port(), func(*TCP) bool { return false }, limit)
	assert.Empty(t, found)
}

func TestTable_SeesWhoConnects(t *testing.T) {
	server := blackhole.Listen(t)
	go func() {
		if conn, err := net.DialTimeout("tcp", server.String(), limit); err == nil {
			_ = conn.Close()
		}
	}()
	table := NewTable()
	if !table.To(server, limit).Known {
		t.Skip("this kernel has no sock_diag")
	}
	assert.Eventually(t, func() bool { return table.To(server, limit).Connecting == 1 }, limit, 10*time.Millisecond)
}

func TestTable_AsksOnceAtATime(t *testing.T) {
	table, server := NewTable(), netip.MustParseAddrPort("192.0.2.1:445")
	if !table.To(server, limit).Known {
		t.Skip("this kernel has no sock_diag")
	}
	table.turn <- struct{}{} // as somebody does whose answer is still to come
	assert.Equal(t, Connections{}, table.To(server, time.Millisecond))
	time.AfterFunc(50*time.Millisecond, func() { <-table.turn })
	assert.True(t, table.To(server, limit).Known, "it waits for its turn")
}

func TestConnections_Add(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.1:445")
	var c Connections
	for _, socket := range []TCP{
		{State: Established, Peer: server}, {State: Established, Retries: 5, Unsent: 100, Peer: server}, {State: SynSent, Retries: 3, Unsent: 1, Peer: server},
		{State: 7, Retries: 9, Peer: server}, {State: Established, Peer: netip.MustParseAddrPort("192.0.2.2:445")},
		{State: CloseWait, Peer: netip.MustParseAddrPort("192.0.2.1:446")}, {State: CloseWait, Peer: netip.MustParseAddrPort("[::ffff:192.0.2.1]:445")},
		{State: Established, Peer: server, Sent: time.Second, Received: time.Minute}, {State: Established, Peer: server, Sent: time.Minute, Received: time.Second},
		{State: Established, Unsent: 7, Peer: server},
	} {
		c.add(&socket, server)
	}
	assert.Equal(t, Connections{Established: 5, Unacknowledged: 1, Unconfirmed: 1, Unanswered: 1, Connecting: 1, CloseWait: 1, Retransmits: 5}, c)
}
