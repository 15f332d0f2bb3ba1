package mountstat

import (
	"net/netip"
	"slices"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

// maxSMBPorts is how many ports of a host are tried as that of its SMB server.
const maxSMBPorts = 4

// locateSMB finds out, once, where an SMB server listens that a mount which is well belongs to:
// neither the mount table nor the client tell the port (cifs_show_options, fs/smb/client/cifsfs.c;
// DebugData of Linux 3.10 to 7.0 has none). The client's own connection does: it is one to the
// server's address that no process has. Whether it is of SMB, the server itself tells.
func (m *Mountstat) locateSMB(t *target, s *server) {
	if s.Service != serverpool.SMB || s.located || t.namespace != nil || t.skipReason != "" || t.underWay || t.found.code != result.OK || tellsPort(t.Probed) {
		return
	}
	s.located = true
	address := s.Address.Addr()
	known := m.portsAt(address)
	go func() {
		found, _ := m.sockets.Search(0, func(c *sockdiag.TCP) bool {
			return c.State == sockdiag.Established && c.Peer.Addr() == address.Unmap().WithZone("")
		}, searchLimit)
		here := slices.ContainsFunc(found, func(c sockdiag.TCP) bool { return c.Peer.Port() == s.Address.Port() })
		var ports []uint16
		if !here {
			ports = m.portsOfTheKernel(found, known)
		}
		m.mail.Post(func() {
			s.proven = s.proven || here
			for _, port := range ports {
				m.trySMB(s, port)
			}
		})
	}()
}

// tellsPort reports whether the mount table has the port of an SMB mount's server.
func tellsPort(mount *mounts.Mount) bool {
	_, found := mount.Option("port")
	return found
}

// portsAt are the ports at an address where services of other mounts listen.
func (m *Mountstat) portsAt(address netip.Addr) (ports []uint16) {
	for q := range m.servers {
		if q.Address.Addr() == address {
			ports = append(ports, q.Address.Port())
		}
	}
	return ports
}

// portsOfTheKernel are the ports to which the kernel itself has connections, but for those which
// are known to be of other services. There are none where that can't be told.
func (m *Mountstat) portsOfTheKernel(connections []sockdiag.TCP, known []uint16) (ports []uint16) {
	port := make(map[uint32]uint16)
	var inodes []uint32
	for i := range connections {
		if c := &connections[i]; !slices.Contains(known, c.Peer.Port()) {
			port[c.Inode] = c.Peer.Port()
			inodes = append(inodes, c.Inode)
		}
	}
	if len(inodes) == 0 || !m.allProcesses {
		return nil
	}
	own, _ := m.host.Daemons.OfTheKernel(inodes)
	for _, inode := range own {
		if !slices.Contains(ports, port[inode]) {
			ports = append(ports, port[inode])
		}
	}
	return ports[:min(len(ports), maxSMBPorts)]
}

// trySMB asks whether a server is at another port of its host, and has its mounts be of that
// one if it says so.
func (m *Mountstat) trySMB(s *server, port uint16) {
	there := s.Server
	there.Address = netip.AddrPortFrom(s.Address.Addr(), port)
	other := &server{Server: there, timeout: s.timeout}
	m.host.Servers.Ask(m.round, there.Question, serverpool.Wanted{Evidence: true, Ask: other.asker(), Timeout: s.timeout}, func(a serverpool.Answer) {
		m.mail.Post(func() {
			if !a.Answered() || m.servers[s.Question] != s {
				return
			}
			other.proven, other.located, other.answer = true, true, a
			m.smbPorts[s.Address.Addr()] = port
			m.servers[there.Question] = other
			delete(m.servers, s.Question)
			for _, t := range m.targets {
				if slices.Contains(t.servers, s) {
					m.linkServers(t, nil)
				}
			}
		})
	})
}
