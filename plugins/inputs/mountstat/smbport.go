package mountstat

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

const (
	// maxSMBPorts is how many ports of a host are tried for its SMB server.
	maxSMBPorts = 4
	// earlySMBSearches is in how many gathers the server of a mount is looked for at first.
	earlySMBSearches = 5
)

// smbSearch is how the server of an SMB mount was looked for so far.
type smbSearch struct {
	ended       bool // it is known where the servers at its address listen
	count       int
	first, last time.Time
}

// due reports whether it is to be looked for: in some gathers, since a connection may be made anew
// just then, and for as long as a busy host has not told, whenever twice the time has passed.
func (s *smbSearch) due(now time.Time) bool {
	return !s.ended && (s.count < earlySMBSearches || now.Sub(s.first) >= 2*s.last.Sub(s.first))
}

func (s *smbSearch) begin(now time.Time) {
	if s.count == 0 {
		s.first = now
	}
	s.count, s.last = s.count+1, now
}

// smbLocations tells where SMB servers listen, for addresses that have some which are not at the
// usual port.
type smbLocations struct {
	ports    map[netip.Addr][]uint16
	underWay bool // they are looked for
}

// locateSMB finds out, for each mount that is well, where the SMB servers at its server's
// address listen. Neither the mount table nor the client tells the port (cifs_show_options,
// fs/smb/client/cifsfs.c; DebugData of Linux 3.10 to 7.0 does not have it). The client's own
// connections do: they are the connections to the address that belong to no process. The server
// itself tells whether one of them is of SMB.
func (all *servers) locateSMB(in *inventory) {
	unlocated := all.unlocated(in.targets)
	if len(unlocated) == 0 {
		return
	}
	all.smbAt.underWay = true
	known, usual := make(map[*server][]uint16), make(map[*server]uint16)
	for _, s := range unlocated {
		known[s], usual[s] = all.portsAt(s.Address.Addr()), s.Address.Port()
	}
	go func() {
		found, _ := all.host.Servers.Sockets.Search(0, func(c *sockdiag.TCP) bool {
			return c.State == sockdiag.Established && slices.ContainsFunc(unlocated, func(s *server) bool { return s.hasPeer(c) })
		}, searchTimeout)
		here, ports, told := make(map[*server]bool), make(map[*server][]uint16), make(map[*server]bool)
		for _, s := range unlocated {
			own := slices.DeleteFunc(slices.Clone(found), func(c sockdiag.TCP) bool { return !s.hasPeer(&c) })
			here[s] = slices.ContainsFunc(own, func(c sockdiag.TCP) bool { return c.Peer.Port() == usual[s] })
			ports[s], told[s] = all.portsOfTheKernel(own, known[s])
		}
		all.mail.Post(func() {
			all.smbAt.underWay = false
			for _, s := range unlocated {
				s.proven = s.proven || here[s]
				if here[s] && told[s] && len(ports[s]) == 0 {
					in.endSearch(s.Address.Addr())
				}
				for _, port := range ports[s] {
					all.trySMB(in, s, port, here[s])
				}
			}
		})
	}()
}

// endSearch notes that it is known where the SMB servers at an address listen.
func (in *inventory) endSearch(address netip.Addr) {
	for _, t := range in.targets {
		if t.hasSMBServerAt(address) {
			t.search.ended = true
		}
	}
}

// unlocated are the SMB servers, one of each address, of mounts that are well and for which they
// are to be looked for.
func (all *servers) unlocated(targets []*target) (found []*server) {
	if all.smbAt.underWay {
		return nil
	}
	now := time.Now()
	for _, t := range targets {
		if !t.search.due(now) || t.namespace != nil || t.skipReason != "" || t.underWay || t.found.code != result.OK || tellsPort(t.Probed) {
			continue
		}
		t.search.begin(now)
		for _, s := range t.servers {
			if s.Service == serverpool.SMB && !slices.ContainsFunc(found, func(other *server) bool { return other.Address.Addr() == s.Address.Addr() }) {
				found = append(found, s)
			}
		}
	}
	return found
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

// portsAt are the ports at an address on which services of other mounts listen.
func (all *servers) portsAt(address netip.Addr) (ports []uint16) {
	for q := range all.byQuestion {
		if q.Address.Addr() == address {
			ports = append(ports, q.Address.Port())
		}
	}
	return ports
}

// portsOfTheKernel are the ports to which the kernel itself has connections, except those that
// are known to belong to other services. told is false if a busy host did not tell in time. There
// are none where processes don't show.
func (all *servers) portsOfTheKernel(connections []sockdiag.TCP, known []uint16) (ports []uint16, told bool) {
	port := make(map[uint32]uint16)
	var inodes []uint32
	for i := range connections {
		if c := &connections[i]; !slices.Contains(known, c.Peer.Port()) {
			port[c.Inode] = c.Peer.Port()
			inodes = append(inodes, c.Inode)
		}
	}
	if len(inodes) == 0 || !all.allProcesses {
		return nil, true
	}
	own, err := all.host.Daemons.OfTheKernel(inodes)
	for _, inode := range own {
		if !slices.Contains(ports, port[inode]) {
			ports = append(ports, port[inode])
		}
	}
	return ports[:min(len(ports), maxSMBPorts)], err == nil
}

// trySMB asks whether an SMB server is at another port of a server's address. If one answers, the
// mounts of that address belong to one of the servers that are known there. If here is set, the
// port that was asked so far counts as one of them.
func (all *servers) trySMB(in *inventory, s *server, port uint16, here bool) {
	there, address := s.Server, s.Address.Addr()
	there.Address = netip.AddrPortFrom(address, port)
	other := &server{Server: there, timeout: s.timeout}
	// No check waits for the answer, so it may take longer than others.
	all.host.Servers.Ask(all.round, there.Question, serverpool.Wanted{Evidence: true, Ask: other.asker(), Timeout: 2 * s.timeout}, func(a serverpool.Answer) {
		all.mail.Post(func() {
			ports := all.smbAt.ports[address]
			if !here {
				ports = slices.DeleteFunc(slices.Clone(ports), func(p uint16) bool { return p == s.Address.Port() })
			}
			if !a.Answered() || slices.Contains(ports, port) || all.byQuestion[s.Question] != s && len(ports) == 0 {
				return
			}
			if here && len(ports) == 0 {
				ports = append(ports, s.Address.Port())
			}
			all.smbAt.ports[address] = append(ports, port)
			other.proven, other.answer = true, a
			all.byQuestion[there.Question] = other
			if !here {
				delete(all.byQuestion, s.Question)
			}
			all.relink(in.targets, address)
			in.endSearch(address)
		})
	})
}

// hasSMBServerAt reports whether the server of some SMB mount is at an address.
func (in *inventory) hasSMBServerAt(address netip.Addr) bool {
	return slices.ContainsFunc(in.targets, func(t *target) bool { return t.hasSMBServerAt(address) })
}

func (t *target) hasSMBServerAt(address netip.Addr) bool {
	return slices.ContainsFunc(t.servers, func(s *server) bool { return s.Service == serverpool.SMB && s.Address.Addr() == address })
}

// relink links the mounts of SMB servers at an address to the servers that are known to be there.
func (all *servers) relink(targets []*target, address netip.Addr) {
	for _, t := range targets {
		if t.hasSMBServerAt(address) {
			all.link(t, nil)
		}
	}
}

// placesOf are the places where a mount's server can be if the table has it at the usual port.
func (all *servers) placesOf(t *target, found mounts.Server) []mounts.Server {
	ports := all.smbAt.ports[found.Address.Addr()]
	if len(ports) == 0 || found.Service != serverpool.SMB || tellsPort(t.Probed) {
		return []mounts.Server{found}
	}
	var places []mounts.Server
	for _, port := range ports {
		at := found
		at.Address = netip.AddrPortFrom(found.Address.Addr(), port)
		if !slices.Contains(t.notAt, at.Question) {
			places = append(places, at)
		}
	}
	return places
}

// ruleOut notes that a server is not the mount's: the mount has answered while this host had no
// connection to that server.
func (t *target) ruleOut(s *server) {
	a := s.answer
	if len(t.servers) < 2 || s.Service != serverpool.SMB || t.underWay || t.skipReason != "" || t.found.code != result.OK {
		return
	}
	if a.Broken() && a.Connections.Known && a.Connections.Established == 0 && t.submitted.After(a.Since) {
		t.notAt = append(t.notAt, s.Question)
		t.servers = slices.DeleteFunc(slices.Clone(t.servers), func(other *server) bool { return other == s })
	}
}
