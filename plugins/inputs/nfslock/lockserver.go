package nfslock

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// services are the services of one host that locks depend on, with what they answered when last
// asked, and whether those that give locks said that they do not give any yet.
type services struct {
	rpcbind, nfs, nlm, nsm serverpool.Answer
	nfsGrace, nlmGrace     saidGrace // of servers on which a lock takes long
}

// saidGrace is when a service that gives locks last said that its grace period lasts, and when it
// first answered otherwise after that. An answer that is lost changes nothing.
type saidGrace struct{ lasts, ended time.Time }

func (s *saidGrace) note(a serverpool.Answer) {
	switch {
	case a.Errno == sunrpc.InGrace:
		*s = saidGrace{lasts: a.At}
	case a.Known && !a.TimedOut() && s.ended.IsZero():
		s.ended = a.At
	}
}

// retryAfterGrace is how long a client that a server has told of its grace period waits at most
// until it asks again, and so how long a lock may still take when the period has ended: that of
// NFSv4 (NFS4_POLL_RETRY_MAX, fs/nfs/nfs4proc.c). One of NFS 3 waits for 5 s
// (NLMCLNT_GRACE_WAIT, fs/lockd/clntproc.c).
const retryAfterGrace = 15 * time.Second

// holdsUp reports whether a lock that has been tried since then, and is not given at that time,
// waits for the grace period, or for the client to see that it has ended. limit is how long such a
// period lasts.
func (s *saidGrace) holdsUp(since, at time.Time, limit time.Duration) bool {
	switch {
	case at.Sub(s.lasts) >= limit:
		return false
	case s.ended.IsZero():
		return s.lasts.After(since)
	}
	return s.ended.After(since) && at.Sub(s.ended) < retryAfterGrace
}

func (s *saidGrace) String() string {
	if s.ended.IsZero() {
		return "has said that its grace period lasts"
	}
	return fmt.Sprintf("has ended its grace period; the client asks again within %v", retryAfterGrace)
}

// saidGrace is what the service that gives the locks of a target with a server has said.
func (t *target) saidGrace() *saidGrace {
	if t.nlm {
		return &t.server.nlmGrace
	}
	return &t.server.nfsGrace
}

// inGrace reports whether a grace period holds up the target's lock, by what the service that gives
// it has said: in this gather, or since the lock hangs.
func (n *NFSLock) inGrace(t *target) bool {
	if t.server == nil {
		return false
	}
	since := n.began
	if t.Hung() && t.HungSince.Before(since) {
		since = t.HungSince
	}
	return t.saidGrace().holdsUp(since, n.began, n.grace)
}

// lockServer is what is known about a host whose services locks depend on.
type lockServer struct {
	mounts.NFSServer                 // Version 0: it is not asked for NFS
	byNLM, byNFS4    bool            // mounts lock by NLM, or by NFSv4
	names            map[string]bool // under which the kernel's messages may name it
	asked            uint64          // the last round in which the answers were evidence
	graceAsked       uint64          // the last round in which a lock took long
	asking           int             // answers to come
	answered         time.Time       // when the last of them came; zero: they are not known yet
	services
	lease leaseState // of NFSv4
}

// keyOf tells servers apart: all versions of one are one.
func keyOf(s mounts.NFSServer) mounts.NFSServer {
	s.Version = 0
	return s
}

func (s *lockServer) key() mounts.NFSServer { return keyOf(s.NFSServer) }

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

// serverOf returns the server that a mount's calls go to; nil if it has no address.
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
func (n *NFSLock) linkServers() {
	before := n.servers
	n.servers = make(map[mounts.NFSServer]*lockServer)
	for _, t := range n.targets {
		t.server = nil
		found := serverOf(t.Probed)
		if found == nil {
			continue
		}
		key := keyOf(*found)
		s := n.servers[key]
		if s == nil {
			if s = before[key]; s == nil {
				s = &lockServer{}
			}
			s.NFSServer, s.byNLM, s.byNFS4, s.names = *found, false, false, map[string]bool{found.Address.Addr().String(): true}
			n.servers[key] = s
		}
		s.byNLM, s.byNFS4 = s.byNLM || t.nlm, s.byNFS4 || t.Probed.FSType == "nfs4"
		s.names[nameOf(t.Probed)] = true
		t.server = s
	}
}

// askAll puts the questions to this host and to the servers whose answers are evidence, has
// the others asked by turns, and does not wait for the answers.
func (n *NFSLock) askAll() {
	evidence := make(map[*lockServer]bool, len(n.servers))
	for _, t := range n.targets {
		if t.server != nil && t.found.code.Fault() {
			evidence[t.server] = true
		}
	}
	for _, s := range n.servers {
		n.ask(s, evidence[s])
	}
	n.askLocal()
}

// needsLocal reports whether some lock needs the services of this host: the lock of a mount, or
// of a mount to come.
func (n *NFSLock) needsLocal() bool {
	ready := n.readiness.facts
	return slices.ContainsFunc(n.targets, func(t *target) bool { return t.nlm }) || ready != nil && ready.Asks()
}

// askAboutLate asks the servers of targets whose probes take long, once they do. stop
// must be called.
func (n *NFSLock) askAboutLate(pending map[*target]struct{}) (stop func() bool) {
	return time.AfterFunc(serverpool.EvidenceAfter(n.shortestTimeout()), func() {
		n.mail.Post(func() {
			for t := range pending {
				if t.server != nil && t.underWay {
					n.ask(t.server, true)
					n.askGrace(t.server)
				}
			}
		})
	}).Stop
}

// ask asks a server for everything that its mounts' locks depend on, or this host for what the
// locks of all mounts depend on. It does not ask again in the same round, nor while an answer is
// still to come.
func (n *NFSLock) ask(s *lockServer, evidence bool) {
	if s.asking > 0 || s.asked == n.round {
		return
	}
	put := func(answer *serverpool.Answer, port uint16, program uint32, versions ...uint32) {
		note := func(a serverpool.Answer) { *answer = a }
		if n.put(s, note, port, sunrpc.ServiceOf(program), sunrpc.Asker(program, versions...), evidence) {
			s.asked = n.round
		}
	}
	if s.Version != 0 {
		put(&s.nfs, s.Address.Port(), sunrpc.ProgramNFS, s.Version)
	}
	if s.byNLM || s == &n.local {
		version := uint32(portmapperVersion)
		if !s.Address.Addr().Unmap().Is4() {
			version = rpcbindVersion
		}
		put(&s.rpcbind, sunrpc.PortRPCBind, sunrpc.ProgramRPCBind, version)
	}
	if s.byNLM {
		put(&s.nlm, 0, sunrpc.ProgramNLM, nlmVersion, nlmVersionOld)
	}
	if s.byNLM || s == &n.local {
		put(&s.nsm, 0, sunrpc.ProgramNSM, nsmVersion)
	}
}

// askGrace asks a server on which a lock is slow whether it is in its grace period, once in a
// round.
func (n *NFSLock) askGrace(s *lockServer) {
	if s.graceAsked == n.round {
		return
	}
	s.graceAsked = n.round
	put := func(said *saidGrace, port uint16, program uint32) {
		n.put(s, said.note, port, sunrpc.GraceServiceOf(program), sunrpc.GraceAsker(program), true)
	}
	if s.byNLM {
		put(&s.nlmGrace, 0, sunrpc.ProgramNLM)
	}
	if s.byNFS4 && s.Version != 0 {
		put(&s.nfsGrace, s.Address.Port(), sunrpc.ProgramNFS)
	}
}

// put puts one question to a server. It reports whether the answer is still to come; if not,
// there is only that of an earlier round, which is noted at once.
func (n *NFSLock) put(s *lockServer, note func(serverpool.Answer), port uint16, service serverpool.Service, ask serverpool.Asker, evidence bool) bool {
	q := serverpool.Question{Network: s.Network, Address: netip.AddrPortFrom(s.Address.Addr(), port), Service: service}
	note(n.host.Servers.Last(q))
	if !n.host.Servers.Ask(n.round, q, serverpool.Wanted{Evidence: evidence, Ask: ask, Timeout: n.shortestTimeout()}, func(a serverpool.Answer) {
		n.mail.Post(func() {
			note(a)
			n.asking--
			if s.asking--; s.asking == 0 {
				s.answered = time.Now()
			}
		})
	}) {
		return false
	}
	s.asking++
	n.asking++
	return true
}
