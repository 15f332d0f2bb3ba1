package nfslock

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// diagnosis says which link of the lock chain is broken: package result has the
// evidence for each, its meaning and its cure.
type diagnosis = result.Cause

const (
	healthy                  = result.Healthy
	statdDown                = result.StatdDown
	statdDeadRegistered      = result.StatdDeadRegistered
	statdHung                = result.StatdHung
	statdDownLatent          = result.StatdDownLatent
	serverRPCBindUnreachable = result.ServerRPCBindUnreachable
	nlmUnregistered          = result.NLMUnregistered
	nlmUnreachable           = result.NLMUnreachable
	nsmUnreachable           = result.NSMUnreachable
	serverUnreachable        = result.ServerUnreachable
	gracePeriod              = result.GracePeriod
	heldElsewhere            = result.HeldElsewhere
	staleExport              = result.StaleExport
	denied                   = result.CanaryDenied
	localOnly                = result.LocalOnly
	noCanary                 = result.NoCanary
	unknown                  = result.Unknown
	leaseRefused             = result.LeaseRefused
	leaseExpired             = result.LeaseExpired
	clientIDInUse            = result.ClientIDInUse
	clientNameShared         = result.ClientNameShared
	delegationRecall         = result.DelegationRecall
	stateManagerStuck        = result.StateManagerStuck
	lockLimit                = result.LockLimit
)

// stage is a part of the probe. The stages are made in this order.
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

// evidence is everything that a diagnosis is made from.
type evidence struct {
	end   ending
	stage stage         // where it hung or failed
	errno syscall.Errno // of what failed
	// unproven: the locks that were taken never leave this host.
	unproven bool
	waits    wait // what the helper was seen waiting for
	// absent: there is no canary, or nothing that could be one.
	absent bool

	nlm    bool     // locks go by NLM, as those of NFS versions 2 and 3 do
	local  services // of this host: rpcbind, nsm
	server services
	// inGrace: by what the server's lock service has said, a grace period holds the lock up.
	inGrace bool

	// Of NFSv4: what is known of this client's state at the server.
	restart      restart
	refused      bool // the kernel said that the server gave no lease
	inUse        bool // and that the identity is another one's
	leaseExpired bool
	flaps        bool // it was made known again and again
	// recoveryLasts: what it waits for, waitRecovery, was so before the probe.
	recoveryLasts bool
}

// diagnose names the broken link. What the probe itself met comes first. What only a question
// to a service has shown explains a hang or a failure; it is a fault of its own only where it
// threatens locks.
func (e *evidence) diagnose() diagnosis {
	switch {
	case e.end == failed && e.errno == unix.ESTALE:
		return staleExport
	case e.end == failed && e.inUse && e.errno == unix.EPERM:
		return clientIDInUse // and the state manager has failed with that error
	case e.end == failed && e.refused && (e.errno == unix.EACCES || e.errno == unix.EPERM):
		return leaseRefused
	case e.end == failed && e.errno == unix.EDQUOT && e.stage >= locking:
		return lockLimit
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
	case e.end == passed && e.flaps:
		return clientNameShared
	case e.end == passed && e.nlm && e.statd() != "":
		return statdDownLatent
	case e.end == passed && e.nlm && e.server.nsm.Broken():
		return nsmUnreachable
	case e.end == passed:
		return healthy
	}
	// Nothing was tried: only what a lock would meet is known.
	e.stage = flocking
	if d := e.broken(); d != "" {
		return d
	}
	if e.absent {
		return noCanary
	}
	return unknown
}

// held reports whether another process has the lock: fcntl(2) allows both errnos.
func (e *evidence) held() bool {
	return e.end == failed && e.stage >= locking && (e.errno == unix.EAGAIN || e.errno == unix.EACCES)
}

// broken is the first broken link that the stage depends on, in the order in
// which a lock meets them.
func (e *evidence) broken() diagnosis {
	switch {
	case e.server.nfs.Late() && !e.nlm && (e.inUse || e.refused):
		return e.state() // what the kernel says of this client counts for more than that the server is slow
	case e.server.nfs.Broken():
		return serverUnreachable
	case e.waits == waitGrace, e.inGrace && (e.stage > opening || !e.nlm && e.stage == opening):
		return gracePeriod
	case !e.nlm:
		return e.state()
	case e.stage <= opening:
		return ""
	}
	if e.stage > asking {
		if d := e.statd(); d != "" {
			return d
		}
	}
	switch {
	case e.server.rpcbind.Broken():
		return serverRPCBindUnreachable
	case e.server.nlm.Unregistered():
		return nlmUnregistered
	case e.server.nlm.Late() && e.server.nsm.Late():
		return nsmUnreachable // the lock service waits for it, with one thread (nsm_mon_unmon, fs/lockd/mon.c)
	case e.server.nlm.Broken():
		return nlmUnreachable
	case e.stage > asking && e.server.nsm.Broken():
		return nsmUnreachable
	}
	return ""
}

// state is what is wrong with this client's state at an NFSv4 server, if anything is. What the
// kernel said comes first. Its waiting alone tells nothing: a server says "later" in a grace
// period, and also while it recalls a delegation.
func (e *evidence) state() diagnosis {
	switch {
	case e.inUse:
		return clientIDInUse
	case e.refused:
		return leaseRefused
	case e.flaps:
		return clientNameShared
	case e.waits != waitOther && e.restart == restarted:
		return gracePeriod
	case e.waits == waitRecovery && e.restart == notRestarted && (e.recoveryLasts || !e.leaseExpired):
		return stateManagerStuck // for which the lease expires, too; after that a recovery takes a second
	case e.leaseExpired:
		return leaseExpired
	case e.waits == waitDelay && e.restart == notRestarted:
		return delegationRecall
	}
	return ""
}

// statd is what is wrong with the rpc.statd of this host, if anything is.
func (e *evidence) statd() diagnosis {
	nsm := e.local.nsm
	switch {
	case e.local.rpcbind.Broken(), nsm.Unregistered():
		return statdDown
	case !nsm.Broken():
		return ""
	case nsm.TimedOut():
		return statdHung
	}
	return statdDeadRegistered
}

// code is the result that goes with a diagnosis. hungFor is how long the probe has hung, and
// limit how long it may hang in a grace period. stuck means that a helper survives SIGKILL.
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
		case leaseRefused:
			return result.Denied // EACCES or EPERM
		case staleExport:
			return result.Stale
		}
		return result.Error
	case passed:
		switch d {
		case statdDownLatent, clientNameShared:
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
