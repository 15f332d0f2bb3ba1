// Package sockdiag asks the kernel about sockets of this process's network namespace,
// sock_diag(7). It sends no packet, and asks no other host. Where the kernel must load its
// module tcp_diag first, the call waits for that, but SIGKILL ends it.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// State is the state of a TCP connection, net/tcp_states.h.
type State uint8

// The states.
const (
	Established State = 1
	SynSent     State = 2
	FinWait1    State = 4
	FinWait2    State = 5
	CloseWait   State = 8
	LastAck     State = 9
	Listen      State = 10
	Closing     State = 11
)

// asked are the states that are asked for, as bits: those in which a program has the socket.
const asked = 1<<Established | 1<<SynSent | 1<<FinWait1 | 1<<FinWait2 | 1<<CloseWait | 1<<LastAck | 1<<Listen | 1<<Closing

// Timer is what a connection waits to do by itself, idiag_timer of sock_diag(7).
type Timer uint8

// The timers.
const (
	Retransmit Timer = 1
	KeepAlive  Timer = 2
	ZeroWindow Timer = 4
)

// TCP is a socket.
type TCP struct {
	Inode       uint32
	State       State
	Local, Peer netip.AddrPort
	Unread      uint32 // bytes that came and were not read
	Unsent      uint32 // bytes that were written and not acknowledged
	Timer       Timer  // 0: none runs
	// Retries counts how often in a row what the timer repeats has had no answer.
	Retries uint8
	// Sent and Received are how long ago data was last sent and received. They are zero unless
	// the state is established. Where nothing was sent, Sent is at least as long as Received.
	Sent, Received time.Duration
	// NeverAnswered says that nothing has ever come on a connection. Kernels before 4.1 do not
	// tell this.
	NeverAnswered bool
	// Waited is for how long, at least, what was sent last has had no answer or acknowledgment;
	// zero: nothing waits for one.
	Waited time.Duration
}

const (
	timeout     = time.Second // of a call
	maxMessages = 1 << 18     // of an answer; more sockets are not looked at
	showName    = 1           // UDIAG_SHOW_NAME, linux/unix_diag.h
	showPeer    = 4           // UDIAG_SHOW_PEER
	infoWanted  = 1 << 1      // the bit of INET_DIAG_INFO, linux/inet_diag.h
)

// Attributes of answers, linux/inet_diag.h and linux/unix_diag.h.
const (
	tcpInfoAttribute  = 2
	unixNameAttribute = 0
	unixPeerAttribute = 2
)

// inetRequest is struct inet_diag_req_v2, linux/inet_diag.h.
type inetRequest struct {
	Family, Protocol, Extensions, _ uint8
	States                          uint32
	ID                              [48]byte
}

// unixRequest is struct unix_diag_req, linux/unix_diag.h.
type unixRequest struct {
	Family, Protocol uint8
	_                uint16
	States           uint32
	Inode            uint32
	Show             uint32
	Cookie           [2]uint32
}

// Sockets returns the TCP sockets whose inodes are wanted, of IPv4 and IPv6: connections and
// listening sockets.
func Sockets(wanted func(inode uint32) bool) ([]TCP, error) {
	var found []TCP
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := inetRequest{Family: family, Protocol: unix.IPPROTO_TCP, Extensions: infoWanted, States: asked}
		err := ask(unix.NLM_F_DUMP, bytesOf(&request), func(payload []byte) error {
			socket, err := parseTCP(payload)
			if err == nil && wanted(socket.Inode) {
				found = append(found, socket)
			}
			return err
		})
		if err != nil {
			return found, fmt.Errorf("asking for TCP sockets: %w", err)
		}
	}
	return found, nil
}

// Unix is a UNIX domain socket.
type Unix struct {
	Peer  uint32 // inode of the socket that it is connected to; 0: there is none
	Named bool   // as those are on the side of a server, and none of a socketpair(2)
}

// UnixSocket returns the UNIX socket with that inode; the zero one if there is none.
func UnixSocket(inode uint32) (socket Unix, err error) {
	const any = ^uint32(0)
	request := unixRequest{Family: unix.AF_UNIX, States: any, Inode: inode, Show: showName | showPeer, Cookie: [2]uint32{any, any}}
	err = ask(0, bytesOf(&request), func(payload []byte) error {
		socket, err = parseUnix(payload)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return Unix{}, nil
	}
	if err != nil {
		return Unix{}, fmt.Errorf("asking for a UNIX socket: %w", err)
	}
	return socket, nil
}

// ask sends a request of sock_diag, and hands each answer to take.
func ask(flags uint16, request []byte, take func(payload []byte) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(timeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	header := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + len(request)), Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST | flags}
	if err := unix.Sendto(fd, append(bytesOf(&header), request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sendto: %w", err)
	}
	buffer := make([]byte, 64<<10)
	for count := 0; count < maxMessages; {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("recvfrom: %w", err)
		case n == 0:
			return nil
		}
		last, err := eachMessage(buffer[:n], func(payload []byte) error {
			count++
			return take(payload)
		})
		if err != nil || last || flags&unix.NLM_F_DUMP == 0 {
			return err
		}
	}
	return fmt.Errorf("there are more than %d sockets", maxMessages)
}

// eachMessage hands the content of each message of an answer to take, netlink(7). last reports
// whether the answer ends there.
func eachMessage(messages []byte, take func(payload []byte) error) (last bool, err error) {
	for len(messages) > 0 {
		if len(messages) < unix.SizeofNlMsghdr {
			return false, fmt.Errorf("a netlink message of %d bytes", len(messages))
		}
		size := binary.NativeEndian.Uint32(messages)
		if size < unix.SizeofNlMsghdr || uint64(size) > uint64(len(messages)) {
			return false, fmt.Errorf("a netlink message of %d bytes in %d", size, len(messages))
		}
		payload := messages[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(messages[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(payload) < 4 {
				return false, fmt.Errorf("an error of %d bytes", len(payload))
			}
			if errno := int32(binary.NativeEndian.Uint32(payload)); errno < 0 {
				return true, unix.Errno(-errno)
			}
			return true, nil
		case unix.SOCK_DIAG_BY_FAMILY:
			if err := take(payload); err != nil {
				return false, err
			}
		}
		messages = messages[min(aligned(size), uint64(len(messages))):]
	}
	return false, nil
}

// parseTCP reads a struct inet_diag_msg and its attributes, linux/inet_diag.h.
func parseTCP(payload []byte) (TCP, error) {
	const (
		idOffset     = 4
		localOffset  = idOffset + 4
		peerOffset   = localOffset + 16
		queuesOffset = idOffset + 48 + 4 // behind expires
		size         = 72
	)
	if len(payload) < size {
		return TCP{}, fmt.Errorf("a TCP socket of %d bytes", len(payload))
	}
	long := payload[0] == unix.AF_INET6
	number := func(offset int) uint32 { return binary.NativeEndian.Uint32(payload[offset:]) }
	port := func(offset int) uint16 { return binary.BigEndian.Uint16(payload[offset:]) }
	s := TCP{
		State: State(payload[1]), Timer: Timer(payload[2]), Retries: payload[3],
		Local:  netip.AddrPortFrom(address(payload[localOffset:], long), port(idOffset)),
		Peer:   netip.AddrPortFrom(address(payload[peerOffset:], long), port(idOffset+2)),
		Unread: number(queuesOffset), Unsent: number(queuesOffset + 4), Inode: number(queuesOffset + 12),
	}
	info, err := attribute(payload[size:], tcpInfoAttribute)
	if err == nil && s.State == Established {
		s.Sent = milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Last_data_sent))
		s.Received = milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Last_data_recv))
		const received = unsafe.Offsetof(unix.TCPInfo{}.Bytes_received)
		s.NeverAnswered = uintptr(len(info)) >= received+8 && binary.NativeEndian.Uint64(info[received:]) == 0
		// Both begin with the connection, and the kernel takes the time twice.
		const sent = unsafe.Offsetof(unix.TCPInfo{}.Data_segs_out) // Linux 4.6
		if uintptr(len(info)) >= sent+4 && binary.NativeEndian.Uint32(info[sent:]) == 0 {
			s.Sent = max(s.Sent, s.Received)
		}
	}
	s.Waited = s.waited(info)
	return s, err
}

// waited is TCP.Waited of a socket whose other fields are known. What is sent again counts as sent
// last. But the timeout is doubled each time, up to a bound (tcp_retransmit_timer,
// net/ipv4/tcp_timer.c), so it tells for how long that has gone on.
func (s *TCP) waited(info []byte) (since time.Duration) {
	if s.State == Established && s.Sent < s.Received {
		since = s.Sent
	}
	if s.State == SynSent || s.State == Established && s.Unsent > 0 {
		timeout := milliseconds(info, unsafe.Offsetof(unix.TCPInfo{}.Rto)) / 1000 // it is in microseconds
		since = max(since, timeout-timeout>>min(s.Retries, 63))
	}
	return since
}

// address reads an address of a struct inet_diag_sockid, which has room for 16 bytes.
func address(content []byte, long bool) netip.Addr {
	if long {
		return netip.AddrFrom16([16]byte(content)).Unmap()
	}
	return netip.AddrFrom4([4]byte(content))
}

// milliseconds reads a number of a struct tcp_info, which is shorter on older kernels.
func milliseconds(info []byte, offset uintptr) time.Duration {
	if uintptr(len(info)) < offset+4 {
		return 0
	}
	return time.Duration(binary.NativeEndian.Uint32(info[offset:])) * time.Millisecond
}

// parseUnix reads a struct unix_diag_msg and its attributes, linux/unix_diag.h.
func parseUnix(payload []byte) (Unix, error) {
	const size = 16
	if len(payload) < size {
		return Unix{}, fmt.Errorf("a UNIX socket of %d bytes", len(payload))
	}
	name, err := attribute(payload[size:], unixNameAttribute)
	if err != nil {
		return Unix{}, err
	}
	socket := Unix{Named: len(name) > 0}
	if peer, _ := attribute(payload[size:], unixPeerAttribute); len(peer) >= 4 {
		socket.Peer = binary.NativeEndian.Uint32(peer)
	}
	return socket, nil
}

// attribute finds an attribute among those that follow a message, struct nlattr of
// linux/netlink.h; nil if it is not there.
func attribute(attributes []byte, kind uint16) ([]byte, error) {
	for len(attributes) >= unix.SizeofNlAttr {
		size := binary.NativeEndian.Uint16(attributes)
		if size < unix.SizeofNlAttr || int(size) > len(attributes) {
			return nil, fmt.Errorf("a netlink attribute of %d bytes in %d", size, len(attributes))
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == kind {
			return attributes[unix.SizeofNlAttr:size], nil
		}
		attributes = attributes[min(aligned(uint32(size)), uint64(len(attributes))):]
	}
	return nil, nil
}

func aligned(size uint32) uint64 { return (uint64(size) + 3) &^ 3 }

func bytesOf[T any](structure *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(structure)), unsafe.Sizeof(*structure))...)
}
