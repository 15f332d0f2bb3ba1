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

// smbLocations are where SMB servers listen that are not at the usual port.
type smbLocations struct {
	ports    map[netip.Addr]uint16
	sockets  sockdiag.Table
	underWay bool // they are looked for
}

// locateSMB finds out, once for each, where the SMB servers listen that mounts which are well
// belong to: neither the mount table nor the client tell the port (cifs_show_options,
// fs/smb/client/cifsfs.c; DebugData of Linux 3.10 to 7.0 has none). The client's own connection
// does: it is one to the server's address that no process has. Whether it is of SMB, the server
// itself tells.
func (m *Mountstat) locateSMB() {
	all := m.unlocated()
	if len(all) == 0 || m.smbAt.underWay {
		return
	}
	m.smbAt.underWay = true
	known := make(map[*server][]uint16)
	for _, s := range all {
		s.located, known[s] = true, m.portsAt(s.Address.Addr())
	}
	go func() {
		found, _ := m.smbAt.sockets.Search(0, func(c *sockdiag.TCP) bool {
			return c.State == sockdiag.Established && slices.ContainsFunc(all, func(s *server) bool { return s.hasPeer(c) })
		}, searchLimit)
		here, ports := make(map[*server]bool), make(map[*server][]uint16)
		for _, s := range all {
			own := slices.DeleteFunc(slices.Clone(found), func(c sockdiag.TCP) bool { return !s.hasPeer(&c) })
			here[s] = slices.ContainsFunc(own, func(c sockdiag.TCP) bool { return c.Peer.Port() == s.Address.Port() })
			if !here[s] {
				ports[s] = m.portsOfTheKernel(own, known[s])
			}
		}
		m.mail.Post(func() {
			m.smbAt.underWay = false
			for _, s := range all {
				s.proven = s.proven || here[s]
				for _, port := range ports[s] {
					m.trySMB(s, port)
				}
			}
		})
	}()
}

// unlocated are the SMB servers of mounts that are well which were not looked for.
func (m *Mountstat) unlocated() (all []*server) {
	for _, t := range m.targets {
		if t.namespace != nil || t.skipReason != "" || t.underWay || t.found.code != result.OK || tellsPort(t.Probed) {
			continue
		}
		for _, s := range t.servers {
			if s.Service == serverpool.SMB && !s.located && !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// hasPeer reports whether a connection is to the server's host.
func (s *server) hasPeer(c *sockdiag.TCP) bool {
	return c.Peer.Addr() == s.Address.Addr().Unmap().WithZone("")
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
			m.smbAt.ports[s.Address.Addr()] = port
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
