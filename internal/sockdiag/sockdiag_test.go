package sockdiag

import (
	"net"
	"os"
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
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(raw.Fd()), &st))
	return uint32(st.Ino)
}

func of(inode uint32) func(uint32) bool { return func(other uint32) bool { return other == inode } }

func TestConnections(t *testing.T) {
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
			found, err := Connections(of(inode))
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
				found, err = Connections(of(inode))
				return err == nil && len(found) == 1 && found[0].State == CloseWait || len(found) == 0
			}, 10*time.Second, 10*time.Millisecond)
		})
	}
	found, err := Connections(of(0))
	require.NoError(t, err)
	for _, socket := range found {
		assert.NotEqual(t, Established, socket.State, "one that nobody has open is about to end")
	}
}

func TestUnixPeer(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var inodes [2]uint32
	for i, fd := range pair {
		defer unix.Close(fd)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		inodes[i] = uint32(st.Ino)
	}
	for i := range pair {
		peer, err := UnixPeer(inodes[i])
		if err != nil {
			t.Skip("the kernel tells nothing of UNIX sockets: ", err)
		}
		assert.Equal(t, inodes[1-i], peer)
	}
	client, _ := connected(t, "tcp4", "127.0.0.1:0")
	peer, err := UnixPeer(inodeOf(t, client))
	require.NoError(t, err)
	assert.Zero(t, peer)
}

func TestEachMessage_RefusesNonsense(t *testing.T) {
	for _, content := range []string{"x", "\xff\xff\xff\xff0123456789abcdef", "\x00\x00\x00\x000123456789abcdef"} {
		_, err := eachMessage([]byte(content), func([]byte) error { return nil })
		assert.Error(t, err, "%q", content)
	}
}

func FuzzMessages(f *testing.F) {
	request := inetRequest{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Extensions: infoWanted, States: connections}
	header := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + 72 + 8), Type: unix.SOCK_DIAG_BY_FAMILY}
	f.Add(append(append(bytesOf(&header), bytesOf(&request)...), make([]byte, 24)...))
	done := unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: unix.NLMSG_DONE}
	f.Add(bytesOf(&done))
	f.Fuzz(func(t *testing.T, content []byte) {
		_, _ = eachMessage(content, func(payload []byte) error {
			_, err := parseUnixPeer(payload)
			if err != nil && len(payload) >= 72 {
				t.Log(err)
			}
			socket, err := parseTCP(payload)
			if err == nil && (socket.Sent < 0 || socket.Received < 0) {
				t.Errorf("%+v", socket)
			}
			return nil
		})
	})
}
