package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Connections sums up the TCP connections to an address. Connections that this host has closed
// do not count.
type Connections struct {
	Known       bool // the kernel has told
	Connecting  int  // without an answer so far, SYN-SENT
	Established int
	// Unacknowledged counts the established connections that have sent something again, since
	// it was not acknowledged.
	Unacknowledged int
	// Unconfirmed counts those that have sent something, once so far, which is not acknowledged.
	Unconfirmed int
	// Unanswered counts the established connections on which something was sent after the last
	// data came.
	Unanswered  int
	Retransmits int // in a row, the most of a connection
	CloseWait   int // closed by the server, and not by this host
}

// Table asks the kernel. Asking can make the kernel load a module, for which a program is read
// from a file system. So a goroutine that can be left alone asks, and there is at most one. Other
// callers wait for their turn, within their limit.
type Table struct{ turn chan struct{} }

// NewTable returns a Table.
func NewTable() *Table { return &Table{turn: make(chan struct{}, 1)} }

// To returns the connections to an address and port, within a limit. They are not Known if the
// kernel refuses, or takes longer.
func (t *Table) To(server netip.AddrPort, limit time.Duration) Connections {
	var found Connections
	family := uint8(unix.AF_INET6)
	if server.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	if !t.within(limit, func() error {
		return eachConnection(family, server.Port(), func(s *TCP) { found.add(s, server) })
	}) {
		return Connections{}
	}
	found.Known = true
	return found
}

// Search returns the connections that fit, within a limit: to one port of any server, or to all
// ports if port is 0. known reports whether the kernel has answered.
func (t *Table) Search(port uint16, fits func(*TCP) bool, limit time.Duration) (found []TCP, known bool) {
	var all []TCP // not found: it is written to after the limit, too
	if !t.within(limit, func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := eachConnection(family, port, func(s *TCP) {
				if fits(s) {
					all = append(all, *s)
				}
			}); err != nil {
				return err
			}
		}
		return nil
	}) {
		return nil, false
	}
	return all, true
}

// within has the kernel asked, and reports whether it has answered in time.
func (t *Table) within(limit time.Duration, ask func() error) bool {
	late := time.After(limit)
	select {
	case t.turn <- struct{}{}:
	case <-late:
		return false
	}
	answer := make(chan error, 1)
	go func() {
		err := ask()
		<-t.turn
		answer <- err
	}()
	select {
	case err := <-answer:
		return err == nil
	case <-late:
		return false
	}
}

// eachConnection has the kernel list the connections to a port; 0 means any port. The kernel
// itself leaves the others out (inet_diag_dump_icsk, net/ipv4/inet_diag.c).
func eachConnection(family uint8, port uint16, take func(*TCP)) error {
	request := inetRequest{Family: family, Protocol: unix.IPPROTO_TCP, Extensions: infoWanted, States: 1<<Established | 1<<SynSent | 1<<CloseWait}
	binary.BigEndian.PutUint16(request.ID[2:], port) // idiag_dport
	return ask(unix.NLM_F_DUMP, bytesOf(&request), func(payload []byte) error {
		socket, err := parseTCP(payload)
		if err == nil {
			take(&socket)
		}
		return err
	})
}

// add counts a socket, if it is connected to the server.
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
		switch {
		case s.Unsent > 0 && s.Retries > 0:
			c.Unacknowledged++
		case s.Unsent > 0:
			c.Unconfirmed++
		}
		if s.Sent < s.Received {
			c.Unanswered++
		}
	default:
		return
	}
	c.Retransmits = max(c.Retransmits, int(s.Retries))
}
