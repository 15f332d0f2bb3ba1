package sockdiag

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// connected returns both ends of a connection over the loopback device.
func connected(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("listen on %s: %v", address, err)
	}
	defer listener.Close()
	client, err = net.Dial(network, listener.Addr().String())
	require.NoError(t, err)
	server, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}

func inodeOf(t *testing.T, conn net.Conn) uint32 {
	t.Helper()
	raw, err := conn.(interface{ File() (*os.File, error) }).File()
	require.NoError(t, err)
	defer raw.Close()
	return inodeOfFD(t, int(raw.Fd()))
}

func of(inode uint32) func(uint32) bool { return func(other uint32) bool { return other == inode } }

// socketAs is a socket as the kernel tells of it.
func socketAs(state State, retries byte, unsent uint32, info unix.TCPInfo) []byte {
	const size, header = 72, 4
	content := bytesOf(&info)
	payload := make([]byte, size+header, size+header+len(content))
	payload[0], payload[1], payload[3] = unix.AF_INET, byte(state), retries
	binary.NativeEndian.PutUint32(payload[60:], unsent)
	binary.NativeEndian.PutUint16(payload[size:], uint16(header+len(content)))
	binary.NativeEndian.PutUint16(payload[size+2:], tcpInfoAttribute)
	return append(payload, content...)
}

// How long something has waited for an answer: by the times of the last packets, or by the timeout
// that is doubled with each repetition.
func TestParseTCP_Waited(t *testing.T) {
	for _, c := range []struct {
		what    string
		state   State
		retries byte
		unsent  uint32
		info    unix.TCPInfo // its timeout in microseconds
		want    time.Duration
	}{
		{"it was answered", Established, 0, 0, unix.TCPInfo{Data_segs_out: 1, Last_data_sent: 9000, Last_data_recv: 8000, Rto: 200_000}, 0},
		{"it was not", Established, 0, 0, unix.TCPInfo{Data_segs_out: 1, Last_data_sent: 7000, Last_data_recv: 8000, Rto: 200_000}, 7 * time.Second},
		{"it is on its way", Established, 0, 9, unix.TCPInfo{Data_segs_out: 1, Last_data_sent: 3, Last_data_recv: 8000, Rto: 200_000}, 3 * time.Millisecond},
		{"it was repeated after 0.2, 0.4, 0.8 and 1.6 s", Established, 4, 9, unix.TCPInfo{Data_segs_out: 5, Last_data_sent: 100, Last_data_recv: 8000, Rto: 3_200_000}, 3 * time.Second},
		{"a connection is asked for", SynSent, 0, 1, unix.TCPInfo{Rto: 1_000_000}, 0},
		{"again, after 1 and 2 s", SynSent, 2, 1, unix.TCPInfo{Rto: 4_000_000}, 3 * time.Second},
		{"the server has closed it", CloseWait, 0, 0, unix.TCPInfo{Data_segs_out: 1, Last_data_recv: 8000, Rto: 200_000}, 0},
	} {
		s, err := parseTCP(socketAs(c.state, c.retries, c.unsent, c.info))
		require.NoError(t, err)
		assert.Equal(t, c.want, s.Waited, c.what)
	}
}

// A connection on which nothing was sent waits for no answer, though the kernel's clock went on
// between the two times that it takes at its beginning.
func TestParseTCP_NothingWasSent(t *testing.T) {
	for segments, want := range map[uint32]time.Duration{0: 4 * time.Millisecond, 1: 0} {
		info := unix.TCPInfo{Last_data_recv: 4, Data_segs_out: segments}
		s, err := parseTCP(socketAs(Established, 0, 0, info))
		require.NoError(t, err)
		assert.Equal(t, 4*time.Millisecond, s.Received)
		assert.Equal(t, want, s.Sent, "%d segments", segments)
	}
}

func TestTable_Sockets(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			client, server := connected(t, network, address)
			inode := inodeOf(t, client)
			_, err := server.Write([]byte("unread"))
			require.NoError(t, err)
			time.Sleep(50 * time.Millisecond)
			_, err = client.Write([]byte("newer"))
			require.NoError(t, err)
			time.Sleep(50 * time.Millisecond)
			found, err := Sockets(of(inode))
			require.NoError(t, err)
			require.Len(t, found, 1)
			assert.Equal(t, client.LocalAddr().String(), found[0].Local.String())
			assert.Equal(t, server.LocalAddr().String(), found[0].Peer.String())
			assert.Equal(t, Established, found[0].State)
			assert.EqualValues(t, len("unread"), found[0].Unread)
			assert.Zero(t, found[0].Unsent)
			assert.Zero(t, found[0].Retries)
			assert.Greater(t, found[0].Received, found[0].Sent)
			assert.Greater(t, found[0].Sent, 20*time.Millisecond)

			require.NoError(t, server.Close())
			require.Eventually(t, func() bool { // its end has come
				found, err = Sockets(of(inode))
				return err == nil && len(found) == 1 && found[0].State == CloseWait || len(found) == 0
			}, 20*time.Second, 10*time.Millisecond)
		})
	}
	found, err := Sockets(of(0))
	require.NoError(t, err)
	for _, socket := range found {
		assert.NotContains(t, []State{Established, Listen}, socket.State, "one that nobody has open is about to end")
	}
}

func inodeOfFD(t *testing.T, fd int) uint32 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	return uint32(st.Ino)
}

func TestTable_UnixSocket(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	for i, fd := range pair {
		defer unix.Close(fd)
		socket, err := UnixSocket(inodeOfFD(t, fd))
		if err != nil {
			t.Skip("the kernel tells nothing of UNIX sockets: ", err)
		}
		assert.Equal(t, Unix{Peer: inodeOfFD(t, pair[1-i])}, socket)
	}
	client, server := connected(t, "unix", filepath.Join(t.TempDir(), "socket"))
	socket, err := UnixSocket(inodeOf(t, client))
	require.NoError(t, err)
	assert.Equal(t, Unix{Peer: inodeOf(t, server)}, socket)
	socket, err = UnixSocket(inodeOf(t, server))
	require.NoError(t, err)
	assert.Equal(t, Unix{Peer: inodeOf(t, client), Named: true}, socket)
	client, _ = connected(t, "tcp4", "127.0.0.1:0")
	socket, err = UnixSocket(inodeOf(t, client))
	require.NoError(t, err)
	assert.Zero(t, socket)
}

func TestEachMessage_RefusesNonsense(t *testing.T) {
	for _, content := range []string{"x", "\xff\xff\xff\xff0123456789abcdef", "\x00\x00\x00\x000123456789abcdef"} {
		_, err := eachMessage([]byte(content), func([]byte) error { return nil })
		assert.Error(t, err, "%q", content)
	}
}

func FuzzMessages(f *testing.F) {
	request := inetRequest{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Extensions: infoWanted, States: asked}
	header := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + 72 + 8), Type: unix.SOCK_DIAG_BY_FAMILY}
	f.Add(append(append(bytesOf(&header), bytesOf(&request)...), make([]byte, 24)...))
	done := unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: unix.NLMSG_DONE}
	f.Add(bytesOf(&done))
	f.Fuzz(func(t *testing.T, content []byte) {
		_, _ = eachMessage(content, func(payload []byte) error {
			_, _ = parseUnix(payload)
			socket, err := parseTCP(payload)
			if err == nil && (socket.Sent < 0 || socket.Received < 0 || socket.Waited < 0) {
				t.Errorf("%+v", socket)
			}
			return nil
		})
	})
}
