package nfslock

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// services are those of one host that locks depend on, with what they said when they
// were last asked.
type services struct{ rpcbind, nfs, nlm, nsm sunrpc.Answer }

// lockServer is what is known of a host whose services locks depend on.
type lockServer struct {
	mounts.NFSServer                 // Version 0: it is not asked for NFS
	byNLM            bool            // mounts lock by NLM
	names            map[string]bool // under which the kernel's messages may name it
	asking           int             // answers to come
	known            bool            // all were answered once
	services
}

// Versions of the programs.
const (
	nlmVersion        = 4 // for NFS 3
	nlmVersionOld     = 1 // for NFS 2, with 32-bit ranges
	nsmVersion        = 1
	portmapperVersion = 2 // of rpcbind, which knows IPv4 only
	rpcbindVersion    = 4
)

// thisHost is the host itself as the kernel asks it: over TCP on the loopback
// interface (nsm_create, fs/lockd/mon.c).
func thisHost() lockServer {
	return lockServer{NFSServer: mounts.NFSServer{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), Network: "tcp"}}
}

// serverOf returns where a mount's calls go; nil for what has no address.
func serverOf(mount *mounts.Mount) *mounts.NFSServer {
	if s := mount.NFSServer(); s != nil {
		return s
	}
	// NFS over RDMA: the lock service is asked over TCP (nlmclnt_init, fs/lockd/clntlock.c).
	if name, found := mount.Option("addr"); found && mount.NFS() {
		if address, err := netip.ParseAddr(name); err == nil {
			return &mounts.NFSServer{Address: netip.AddrPortFrom(address, 0), Network: "tcp"}
		}
	}
	return nil
}

// nameOf is the server's name in a mount's source.
func nameOf(mount *mounts.Mount) string {
	host, _, _ := strings.Cut(mount.Source, ":/")
	return strings.Trim(host, "[]")
}

// linkServers finds the server of each target.
func (n *Nfslock) linkServers() {
	before := n.servers
	n.servers = make(map[mounts.NFSServer]*lockServer)
	for _, t := range n.targets {
		t.server = nil
		found := serverOf(t.Probed)
		if found == nil {
			continue
		}
		key := *found
		key.Version = 0
		s := n.servers[key]
		if s == nil {
			if s = before[key]; s == nil {
				s = &lockServer{}
			}
			s.NFSServer, s.byNLM, s.names = *found, false, map[string]bool{found.Address.Addr().String(): true}
			n.servers[key] = s
		}
		s.byNLM = s.byNLM || t.nlm
		s.names[nameOf(t.Probed)] = true
		t.server = s
	}
}

// askAll puts the questions to all servers and to this host, and does not wait for the
// answers.
func (n *Nfslock) askAll(round uint64) {
	limit := sunrpc.AnswerLimit(n.shortestTimeout())
	for _, s := range n.servers {
		n.ask(round, s, limit)
	}
	if slices.ContainsFunc(n.targets, func(t *target) bool { return t.nlm }) {
		n.ask(round, &n.local, limit)
	} else {
		n.local.known, n.local.services = false, services{}
	}
}

// ask asks a server for all that its mounts' locks depend on, at once; of this host, for
// what all others' depend on. While an answer is to come it is not asked again.
func (n *Nfslock) ask(round uint64, s *lockServer, limit time.Duration) {
	if s.asking > 0 {
		return
	}
	found := new(services)
	put := func(answer *sunrpc.Answer, port uint16, program uint32, versions ...uint32) {
		s.asking++
		n.asking++
		q := sunrpc.Question{Network: s.Network, Address: netip.AddrPortFrom(s.Address.Addr(), port), Program: program}
		n.host.Servers.Ask(round, q, limit, versions, func(a sunrpc.Answer) {
			n.mail.Post(func() {
				*answer = a
				n.asking--
				if s.asking--; s.asking == 0 {
					s.services, s.known = *found, true
				}
			})
		})
	}
	if s.Version != 0 {
		put(&found.nfs, s.Address.Port(), sunrpc.ProgramNFS, s.Version)
	}
	if s.byNLM {
		put(&found.nlm, 0, sunrpc.ProgramNLM, nlmVersion, nlmVersionOld)
	}
	if s.byNLM || s == &n.local {
		version := uint32(portmapperVersion)
		if !s.Address.Addr().Unmap().Is4() {
			version = rpcbindVersion
		}
		put(&found.rpcbind, sunrpc.PortRPCBind, sunrpc.ProgramRPCBind, version)
		put(&found.nsm, 0, sunrpc.ProgramNSM, nsmVersion)
	}
}
