package nfslock

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// link is what a service said when it was last asked.
type link struct {
	asked   bool
	errno   string        // empty: it answered
	elapsed time.Duration // of a NULL call that was answered
}

func (l link) broken() bool       { return l.asked && l.errno != "" }
func (l link) unregistered() bool { return l.asked && l.errno == "ENOTREGISTERED" }

// links are the services of one host that locks depend on.
type links struct{ rpcbind, nfs, nlm, nsm link }

// endpoint is a server as the kernel's NFS client sees it.
type endpoint struct {
	address netip.Addr
	port    uint16
	network string // tcp or udp
}

// chain is what is known of a server.
type chain struct {
	endpoint
	question
	names  map[string]bool // under which the kernel's messages may name it
	asking bool            // a question is under way
	known  bool            // one was answered
	links  links
}

// question is what to ask a server.
type question struct {
	nfs uint32 // version of the NFS program; 0: don't ask, it is not over IP
	nlm bool   // whether mounts lock by NLM
}

// Versions of the programs.
const (
	nlmVersion    = 4 // for NFS 3
	nlmVersionOld = 1 // for NFS 2, with 32-bit ranges
	nsmVersion    = 1
)

// The shares of the timeout within which an answer must come, so that all are
// here before a probe that hangs is given up.
const (
	lookUpShare = 0.4
	callShare   = 0.4
)

// endpointOf returns where a mount's calls go, and what to ask there; nil for
// what has no address.
func endpointOf(mount *mounts.Mount) (*endpoint, question) {
	q := question{nlm: locksByNLM(mount)}
	if s := mount.NFSServer(); s != nil {
		q.nfs = s.Version
		return &endpoint{address: s.Address.Addr(), port: s.Address.Port(), network: s.Network}, q
	}
	// NFS over RDMA: the lock service is asked over TCP (nlmclnt_init, fs/lockd/clntlock.c).
	if name, found := mount.Option("addr"); found && mount.NFS() {
		if address, err := netip.ParseAddr(name); err == nil {
			return &endpoint{address: address, network: "tcp"}, q
		}
	}
	return nil, q
}

// askServer asks a server for all that its mounts' locks depend on, at once.
func askServer(e endpoint, q question, timeout time.Duration) (found links) {
	var wait sync.WaitGroup
	if q.nfs != 0 {
		wait.Go(func() {
			found.nfs = call(e.network, netip.AddrPortFrom(e.address, e.port), sunrpc.ProgramNFS, q.nfs, share(timeout, lookUpShare+callShare))
		})
	}
	if q.nlm {
		wait.Go(func() { found.rpcbind = callRPCBind(e.network, e.address, timeout) })
		wait.Go(func() {
			found.nlm = callService(e.network, e.address, sunrpc.ProgramNLM, timeout, nlmVersion, nlmVersionOld)
		})
		wait.Go(func() { found.nsm = callService(e.network, e.address, sunrpc.ProgramNSM, timeout, nsmVersion) })
	}
	wait.Wait()
	return found
}

// askThisHost asks rpcbind and rpc.statd as the kernel does: over TCP on the
// loopback interface (nsm_create, fs/lockd/mon.c).
func askThisHost(timeout time.Duration) (found links) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	var wait sync.WaitGroup
	wait.Go(func() { found.rpcbind = callRPCBind("tcp", loopback, timeout) })
	wait.Go(func() { found.nsm = callService("tcp", loopback, sunrpc.ProgramNSM, timeout, nsmVersion) })
	wait.Wait()
	return found
}

func share(timeout time.Duration, part float64) time.Duration {
	return time.Duration(float64(timeout) * part)
}

func callRPCBind(network string, host netip.Addr, timeout time.Duration) link {
	version := uint32(2) // the portmapper, which knows IPv4 only
	if !host.Unmap().Is4() {
		version = 4
	}
	return call(network, netip.AddrPortFrom(host, sunrpc.PortRPCBind), sunrpc.ProgramRPCBind, version, share(timeout, lookUpShare+callShare))
}

// callService finds a service with rpcbind, and calls it. Of the versions the
// first that is registered counts. A service that rpcbind did not tell of
// because rpcbind itself is broken counts as not asked.
func callService(network string, host netip.Addr, program uint32, timeout time.Duration, versions ...uint32) link {
	ctx, cancel := context.WithTimeout(context.Background(), share(timeout, lookUpShare))
	defer cancel()
	for _, version := range versions {
		port, err := sunrpc.LookUp(ctx, network, netip.AddrPortFrom(host, sunrpc.PortRPCBind), sunrpc.Service{Program: program, Version: version, Network: network})
		if err == nil {
			return call(network, netip.AddrPortFrom(host, port), program, version, share(timeout, callShare))
		}
		if answer, ok := errors.AsType[*sunrpc.AnswerError](err); !ok || answer.Status != sunrpc.NotRegistered {
			return link{}
		}
	}
	return link{asked: true, errno: "ENOTREGISTERED"}
}

// call makes a NULL call. A host that is not able to make it has not asked.
func call(network string, service netip.AddrPort, program, version uint32, limit time.Duration) link {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	elapsed, err := sunrpc.Null(ctx, network, service, program, version)
	if sunrpc.Local(err) {
		return link{}
	}
	if err == nil {
		return link{asked: true, elapsed: elapsed}
	}
	answer, answered := errors.AsType[*sunrpc.AnswerError](err)
	if answered && answer.Status != sunrpc.ProgramUnavailable {
		return link{asked: true, elapsed: time.Since(began)}
	}
	// Another program at the port is no better than none.
	return link{asked: true, errno: sunrpc.ErrorName(err)}
}
