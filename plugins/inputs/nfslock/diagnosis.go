package nfslock

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// diagnosis says which link of the lock chain is broken. The README lists the
// evidence for each. Values never change their meaning.
type diagnosis string

const (
	healthy                  diagnosis = "ok"
	statdDown                diagnosis = "statd_down"
	statdDeadRegistered      diagnosis = "statd_dead_registered"
	statdHung                diagnosis = "statd_hung"
	statdDownLatent          diagnosis = "statd_down_latent"
	serverRPCBindUnreachable diagnosis = "server_rpcbind_unreachable"
	nlmUnregistered          diagnosis = "nlm_unregistered"
	nlmUnreachable           diagnosis = "nlm_unreachable"
	nsmUnreachable           diagnosis = "nsm_unreachable"
	serverUnreachable        diagnosis = "server_unreachable"
	gracePeriod              diagnosis = "grace_period"
	heldElsewhere            diagnosis = "held_elsewhere"
	staleExport              diagnosis = "stale_export"
	denied                   diagnosis = "denied"
	localOnly                diagnosis = "local_only"
	noCanary                 diagnosis = "no_canary"
	unknown                  diagnosis = "unknown"
)

// stage is a part of the probe, in the order they are made.
type stage int

const (
	reaching  stage = iota // the root of the mount
	opening                // the canary
	asking                 // F_GETLK
	locking                // F_OFD_SETLK
	unlocking              // the same, and close
	flocking               // the host's own file
)

// ending is how the probe ended.
type ending int

const (
	notTried ending = iota // no lock was tried
	passed
	hung
	failed
)

// evidence is all that a diagnosis is made from.
type evidence struct {
	end   ending
	stage stage         // where it hung or failed
	errno syscall.Errno // of what failed
	// unproven: the locks that were taken never leave this host.
	unproven bool
	// grace: the helper was seen waiting for the server's grace period to end.
	grace bool
	// absent: there is no canary, or nothing that could be one.
	absent bool

	nlm    bool  // locks go by NLM, as those of NFS versions 2 and 3 do
	local  links // of this host: rpcbind, nsm
	server links
}

// diagnose names the link that is broken. What the probe itself met comes
// first; what only a question to a service has shown explains a hang or a
// failure, and is a fault of its own only where it threatens locks.
func (e *evidence) diagnose() diagnosis {
	switch {
	case e.end == failed && e.errno == unix.ESTALE:
		return staleExport
	case e.end == failed && (e.errno == unix.EACCES && e.stage != locking || e.errno == unix.EPERM):
		return denied
	case e.held():
		return heldElsewhere
	case e.end == hung, e.end == failed:
		if d := e.broken(); d != "" {
			return d
		}
		return unknown
	case e.unproven:
		return localOnly
	case e.end == passed && e.nlm && e.statd() != "":
		return statdDownLatent
	case e.end == passed && e.nlm && e.server.nsm.broken():
		return nsmUnreachable
	case e.end == passed:
		return healthy
	}
	// Nothing was tried: what a lock would meet is all there is.
	e.stage = flocking
	if d := e.broken(); d != "" {
		return d
	}
	if e.absent {
		return noCanary
	}
	return unknown
}

// held reports whether somebody else has the lock: fcntl(2) allows for both.
func (e *evidence) held() bool {
	return e.end == failed && e.stage >= locking && (e.errno == unix.EAGAIN || e.errno == unix.EACCES)
}

// broken is the first broken link that the stage depends on, in the order in
// which a lock meets them.
func (e *evidence) broken() diagnosis {
	switch {
	case e.server.nfs.broken():
		return serverUnreachable
	case e.grace:
		return gracePeriod
	case e.stage <= opening, !e.nlm:
		return ""
	}
	if e.stage > asking {
		if d := e.statd(); d != "" {
			return d
		}
	}
	switch {
	case e.server.rpcbind.broken():
		return serverRPCBindUnreachable
	case e.server.nlm.unregistered():
		return nlmUnregistered
	case e.server.nlm.broken():
		return nlmUnreachable
	case e.stage > asking && e.server.nsm.broken():
		return nsmUnreachable
	}
	return ""
}

// statd is what is wrong with the rpc.statd of this host, if so.
func (e *evidence) statd() diagnosis {
	nsm := e.local.nsm
	switch {
	case e.local.rpcbind.broken(), nsm.unregistered():
		return statdDown
	case !nsm.broken():
		return ""
	case nsm.errno == "ETIMEDOUT":
		return statdHung
	}
	return statdDeadRegistered
}

// code is the result that goes with a diagnosis. hung is for how long the probe
// has, and limit for how long it may in a grace period. stuck means that a
// helper survives SIGKILL.
func (e *evidence) code(d diagnosis, stuck bool, hungFor, limit time.Duration) result.Code {
	switch e.end {
	case hung:
		switch {
		case stuck:
			return result.Stuck
		case d == gracePeriod && hungFor < limit:
			return result.Unchecked
		}
		return result.Timeout
	case failed:
		switch d {
		case denied:
			return result.Denied
		case staleExport:
			return result.Stale
		}
		return result.Error
	case passed:
		switch d {
		case statdDownLatent:
			return result.Error
		case localOnly:
			return result.Unchecked
		}
		return result.OK
	}
	switch d {
	case localOnly, noCanary, unknown, nsmUnreachable:
		return result.Unchecked
	}
	return result.Error
}

// explain says in a sentence what a diagnosis means, for the log.
func (d diagnosis) explain() string {
	switch d {
	case statdDown:
		return "the rpc.statd of this host is not registered with rpcbind"
	case statdDeadRegistered:
		return "the rpc.statd of this host is dead, though still registered with rpcbind"
	case statdHung:
		return "the rpc.statd of this host does not answer"
	case statdDownLatent:
		return "locks still work, but the rpc.statd of this host is down: the next restart of the server loses them, and locks on other servers fail"
	case serverRPCBindUnreachable:
		return "the server's rpcbind, port 111, can't be reached"
	case nlmUnregistered:
		return "the server has no lock service (NLM) registered with its rpcbind"
	case nlmUnreachable:
		return "the server's lock service (NLM) can't be reached"
	case nsmUnreachable:
		return "the server's status monitor (NSM, its rpc.statd) can't be reached"
	case serverUnreachable:
		return "the server's NFS service can't be reached"
	case gracePeriod:
		return "the server was restarted, and grants no new locks until its grace period ends"
	case heldElsewhere:
		return "somebody else holds a lock on the canary"
	case staleExport:
		return "the export was removed or changed"
	case denied:
		return "the canary may not be opened"
	case unknown:
		return "all links of the chain that could be asked answer"
	}
	return string(d)
}
