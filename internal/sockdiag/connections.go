package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Connections sums up the TCP connections to an address. What has been closed by this host
// does not count.
type Connections struct {
	Known       bool // the kernel has told
	Connecting  int  // without an answer so far, SYN-SENT
	Established int
	// Unacknowledged are the established ones which have sent something again: it was not
	// acknowledged.
	Unacknowledged int
	// Unanswered are the established ones on which something was sent since the last thing came.
	Unanswered  int
	Retransmits int // in a row, the most of a connection
	CloseWait   int // closed by the server, and not by this host
}

// Table asks the kernel. To ask can have it load a module, which takes a program from a file
// system: so it is asked by a goroutine that can be left alone, of which there is one at most.
type Table struct{ busy atomic.Bool }

// To returns the connections to an address and port, within a limit. They are not Known where
// the kernel refuses, or takes longer.
func (t *Table) To(server netip.AddrPort, limit time.Duration) Connections {
	if !t.busy.CompareAndSwap(false, true) {
		return Connections{}
	}
	answer := make(chan Connections, 1)
	go func() {
		found, err := connectionsTo(server)
		found.Known = err == nil
		t.busy.Store(false) // first: who has the answer may ask again
		answer <- found
	}()
	select {
	case found := <-answer:
		if found.Known {
			return found
		}
	case <-time.After(limit):
	}
	return Connections{}
}

// connectionsTo has the kernel list the sockets with the server's port. It leaves the others
// out itself (inet_diag_dump_icsk, net/ipv4/inet_diag.c).
func connectionsTo(server netip.AddrPort) (found Connections, err error) {
	request := inetRequest{Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP, Extensions: infoWanted, States: 1<<Established | 1<<SynSent | 1<<CloseWait}
	if server.Addr().Unmap().Is4() {
		request.Family = unix.AF_INET
	}
	binary.BigEndian.PutUint16(request.ID[2:], server.Port()) // idiag_dport
	err = ask(unix.NLM_F_DUMP, bytesOf(&request), func(payload []byte) error {
		socket, err := parseTCP(payload)
		if err == nil {
			found.add(&socket, server)
		}
		return err
	})
	return found, err
}

// add takes a socket, if it is connected to the server.
func (c *Connections) add(s *TCP, server netip.AddrPort) {
	if s.Peer.Port() != server.Port() || s.Peer.Addr().Unmap() != server.Addr().Unmap().WithZone("") {
		return
	}
	switch s.State {
	case SynSent:
		c.Connecting++
	case CloseWait:
		c.CloseWait++
	case Established:
		c.Established++
		if s.Unsent > 0 && s.Retries > 0 {
			c.Unacknowledged++
		}
		if s.Sent < s.Received {
			c.Unanswered++
		}
	default:
		return
	}
	c.Retransmits = max(c.Retransmits, int(s.Retries))
}
