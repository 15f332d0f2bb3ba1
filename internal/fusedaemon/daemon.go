// Package fusedaemon finds the processes that serve FUSE file systems, and tells what they
// wait for. It asks neither the daemons nor their servers: it looks at threads and sockets.
// Helpers look at what could hang; see package openfiles.
package fusedaemon

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

// Process is a process of the host.
type Process struct {
	PID  int
	Comm string // raw bytes
}

// Daemon is the process that serves a connection, as it was at one time.
type Daemon struct {
	Process
	// Guessed means that the process is named after the file system and has the mount point
	// among its arguments, but that it could not be seen whether it holds the connection.
	Guessed bool
	Threads []blocked.Task
	// Restart is the command that restarts the unit or container of the daemon, see
	// [cgroups.Restart].
	Restart string
	// Arguments are those that the daemon was started with, the program's name first.
	Arguments []string
	Files     blocked.Files
	// Sockets are the daemon's own TCP sockets, or those of Worker where it has none.
	// SocketsKnown is false where they could not be seen, as in another network namespace.
	Sockets      []sockdiag.TCP
	SocketsKnown bool
	// Worker is another process, connected to the daemon, that has the connection to the
	// server, such as the ssh of sshfs; or nil.
	Worker *Process
}

// Stopped reports whether the daemon was stopped by a signal, or by a debugger.
func (d *Daemon) Stopped() bool {
	return len(d.Threads) > 0 && !slices.ContainsFunc(d.Threads, func(t blocked.Task) bool { return t.State != 'T' && t.State != 't' })
}

// Seen reports whether this process may see in which functions the daemon's threads wait.
func (d *Daemon) Seen() bool {
	return slices.ContainsFunc(d.Threads, func(t blocked.Task) bool { return t.Wchan != "" })
}

// TakesRequests reports whether a thread waits for the kernel's next request. Then other
// threads, or another host, have the requests that were taken (fuse_dev_do_read,
// fs/fuse/dev.c).
func (d *Daemon) TakesRequests() bool {
	return slices.ContainsFunc(d.Threads, func(t blocked.Task) bool { return strings.HasPrefix(t.Wchan, "fuse_dev_do_read") })
}

// Lives reports whether the daemon takes requests, may be told of them by poll(2), or runs. If
// its connection had been aborted, the kernel would wake it, and most daemons end then.
func (d *Daemon) Lives() bool {
	runs := func(t blocked.Task) bool { return t.State == 'R' }
	return !d.Stopped() && (!d.Seen() || d.TakesRequests() || slices.ContainsFunc(d.Threads, polls) || slices.ContainsFunc(d.Threads, runs))
}

// polls reports whether a task waits in poll(2), select(2) or epoll_wait(2).
func polls(t blocked.Task) bool {
	return slices.ContainsFunc([]string{"ep_poll", "do_epoll_wait", "poll_schedule_timeout", "do_sys_poll", "do_poll", "do_select"},
		func(function string) bool { return strings.HasPrefix(t.Wchan, function) })
}

// ForFUSE returns a thread that waits for a FUSE file system, or nil.
func (d *Daemon) ForFUSE() *blocked.Task {
	return d.thread(func(t *blocked.Task) bool { return slices.Contains(blocked.FUSEWaits(), t.Wchan) })
}

// Uninterruptible returns a thread that waits for a disk, or for a file system that is not
// FUSE's, or nil.
func (d *Daemon) Uninterruptible() *blocked.Task {
	return d.thread(func(t *blocked.Task) bool { return t.State == 'D' && !slices.Contains(blocked.FUSEWaits(), t.Wchan) })
}

func (d *Daemon) thread(fits func(*blocked.Task) bool) *blocked.Task {
	for i := range d.Threads {
		if fits(&d.Threads[i]) {
			return &d.Threads[i]
		}
	}
	return nil
}

// ServerState is what the connections to a server tell about it.
type ServerState uint8

const (
	// Unseen: the connections can't be seen.
	Unseen ServerState = iota
	// Unconnected: there is no connection.
	Unconnected
	// Unreachable: nothing comes back for what is sent.
	Unreachable
	// Silent: the server's kernel has confirmed what was sent, and the last thing that
	// came is older.
	Silent
	// Answered: the server has sent something after the last thing that was sent to it.
	Answered
	// Unread: the daemon does not read what the server has sent.
	Unread
)

// Server returns the state of the connections to the server, and the connection that tells it:
// nil if none does.
func (d *Daemon) Server() (ServerState, *sockdiag.TCP) {
	if !d.SocketsKnown {
		return Unseen, nil
	}
	state, telling := Unconnected, (*sockdiag.TCP)(nil)
	for i := range d.Sockets {
		socket := &d.Sockets[i]
		if d.serves(socket) {
			continue
		}
		s := stateOf(socket)
		if s != Unconnected && (telling == nil || weight(s) > weight(state) || s == state && socket.Received > telling.Received) {
			state, telling = s, socket
		}
	}
	return state, telling
}

// ServerAddress is the address that the daemon is connected to, or tries to connect to; the zero
// address if that can't be seen, or it has no connection.
func (d *Daemon) ServerAddress() netip.AddrPort {
	_, socket := d.Server()
	if socket == nil {
		return netip.AddrPort{}
	}
	return socket.Peer
}

// ConnectedTo reports whether one of the daemon's connections goes, or should go, to an address.
func (d *Daemon) ConnectedTo(at netip.AddrPort) bool {
	return slices.ContainsFunc(d.Sockets, func(s sockdiag.TCP) bool { return s.Peer == at })
}

// weight orders the states of connections by how much they explain.
func weight(s ServerState) int {
	return slices.Index([]ServerState{Unconnected, Answered, Unread, Silent, Unreachable}, s)
}

// serves reports whether the daemon is the server of a connection: it listens at its port.
func (d *Daemon) serves(socket *sockdiag.TCP) bool {
	return socket.State == sockdiag.Listen || slices.ContainsFunc(d.Sockets, func(other sockdiag.TCP) bool {
		return other.State == sockdiag.Listen && other.Local.Port() == socket.Local.Port()
	})
}

// stateOf is what one connection tells. A single probe without an answer proves nothing: it may
// still be on its way.
func stateOf(s *sockdiag.TCP) ServerState {
	lost := s.Timer == sockdiag.Retransmit && s.Retries > 0 ||
		(s.Timer == sockdiag.KeepAlive || s.Timer == sockdiag.ZeroWindow) && s.Retries > 1
	switch {
	case s.State == sockdiag.SynSent, lost:
		return Unreachable
	case s.State != sockdiag.Established:
		return Unconnected // one end has closed it
	case s.Unread > 0:
		return Unread
	case s.Sent < s.Received, s.Unsent > 0, s.NeverAnswered:
		return Silent
	}
	return Answered
}
