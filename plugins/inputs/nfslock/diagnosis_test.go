package nfslock

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

var (
	up      = serverpool.Answer{Known: true, Reached: true, Elapsed: time.Millisecond}
	silent  = serverpool.Answer{Known: true, Errno: "ETIMEDOUT"}
	hanging = serverpool.Answer{Known: true, Errno: "ETIMEDOUT", Reached: true} // the connection is taken
	refused = serverpool.Answer{Known: true, Errno: "ECONNREFUSED", Reached: true}
	missing = serverpool.Answer{Known: true, Errno: "ENOTREGISTERED", Reached: true}
)

// v3 is the evidence on a mount whose chain is healthy.
func v3(end ending, at stage, errno syscall.Errno, change ...func(*evidence)) evidence {
	e := evidence{end: end, stage: at, errno: errno, nlm: true,
		local: services{rpcbind: up, nsm: up}, server: services{rpcbind: up, nfs: up, nlm: up, nsm: up}}
	for _, c := range change {
		c(&e)
	}
	return e
}

func v4(end ending, at stage, errno syscall.Errno, change ...func(*evidence)) evidence {
	e := evidence{end: end, stage: at, errno: errno, server: services{nfs: up}}
	for _, c := range change {
		c(&e)
	}
	return e
}

func dead(e *evidence)        { e.server = services{rpcbind: silent, nfs: silent} }
func nfsdStopped(e *evidence) { e.server.nfs = refused; e.server.nlm = missing }
func nfsHangs(e *evidence)    { e.server.nfs = hanging }
func noNLM(e *evidence)       { e.server.nlm = missing }
func nlmDropped(e *evidence)  { e.server.nlm = silent }
func nlmRejected(e *evidence) { e.server.nlm = refused }
func rpcbindCut(e *evidence) {
	e.server.rpcbind = silent
	e.server.nlm = serverpool.Answer{}
	e.server.nsm = serverpool.Answer{}
}
func nsmDropped(e *evidence)    { e.server.nsm = silent }
func nlmHangs(e *evidence)      { e.server.nlm = hanging }
func nsmHangs(e *evidence)      { e.server.nsm = hanging }
func statdStopped(e *evidence)  { e.local.nsm = missing }
func statdKilled(e *evidence)   { e.local.nsm = refused }
func statdFrozen(e *evidence)   { e.local.nsm = silent }
func noLocalBind(e *evidence)   { e.local = services{rpcbind: refused} }
func inGrace(e *evidence)       { e.waits = waitGrace }
func later(e *evidence)         { e.waits = waitDelay }
func recovering(e *evidence)    { e.waits = waitRecovery }
func forLong(e *evidence)       { e.recoveryLasts = true }
func saysGrace(e *evidence)     { e.inGrace = true }
func reconnected(e *evidence)   { e.restart = restarted }
func stayed(e *evidence)        { e.restart = notRestarted }
func leaseDenied(e *evidence)   { e.refused = true }
func sameID(e *evidence)        { e.inUse = true }
func sameName(e *evidence)      { e.flaps = true }
func expired(e *evidence)       { e.leaseExpired = true }
func unproven(e *evidence)      { e.unproven = true }
func withoutCanary(e *evidence) { e.absent = true }
func nothingAsked(e *evidence)  { e.local, e.server = services{}, services{} }

// The rows of the table "NFS" in FACTS.md as the project measured them, and
// their combinations.
func TestDiagnose(t *testing.T) {
	for _, c := range []struct {
		name string
		evidence
		want diagnosis
		code result.Code
	}{
		{"healthy v3", v3(passed, 0, 0), healthy, result.OK},
		{"healthy v4", v4(passed, 0, 0), healthy, result.OK},
		{"network cut, v3", v3(hung, reaching, 0, dead), serverUnreachable, result.Timeout},
		{"network cut, v4", v4(hung, reaching, 0, dead), serverUnreachable, result.Timeout},
		{"soft mount, cut", v3(failed, reaching, unix.EIO, dead), serverUnreachable, result.Error},
		{"export removed", v3(failed, reaching, unix.ESTALE), staleExport, result.Stale},
		{"directory removed", v4(failed, opening, unix.ESTALE), staleExport, result.Stale},
		{"re-exported after locks were held, v3", v3(hung, asking, 0), unknown, result.Timeout},
		{"nfsd stopped", v3(hung, reaching, 0, nfsdStopped), serverUnreachable, result.Timeout},
		{"the export hangs, the server answers", v3(hung, reaching, 0), unknown, result.Timeout},
		{"NLM dropped", v3(hung, asking, 0, nlmDropped), nlmUnreachable, result.Timeout},
		{"NLM rejected", v3(hung, asking, 0, nlmRejected), nlmUnreachable, result.Timeout},
		{"NLM not registered", v3(hung, asking, 0, noNLM), nlmUnregistered, result.Timeout},
		{"NLM and statd", v3(hung, asking, 0, nlmDropped, statdStopped), nlmUnreachable, result.Timeout},
		{"rpcbind dropped, fresh client", v3(hung, asking, 0, rpcbindCut), serverRPCBindUnreachable, result.Timeout},
		{"rpcbind dropped, bound client", v3(passed, 0, 0, rpcbindCut), healthy, result.OK},
		{"statd stopped before the first lock", v3(hung, locking, 0, statdStopped), statdDown, result.Timeout},
		{"statd stopped, and rpcbind", v3(hung, locking, 0, noLocalBind), statdDown, result.Timeout},
		{"statd killed with -9", v3(failed, locking, unix.ENOLCK, statdKilled), statdDeadRegistered, result.Error},
		{"statd SIGSTOPped", v3(hung, locking, 0, statdFrozen), statdHung, result.Timeout},
		{"statd SIGSTOPped, the errno after 65 s", v3(failed, locking, unix.ENOLCK, statdFrozen), statdHung, result.Error},
		{"statd stopped after the server is monitored", v3(passed, 0, 0, statdStopped), statdDownLatent, result.Error},
		{"the same, killed", v3(passed, 0, 0, statdKilled), statdDownLatent, result.Error},
		{"statd is nothing to v4", v4(passed, 0, 0, statdStopped), healthy, result.OK},
		{"grace, v3", v3(hung, asking, 0, inGrace), gracePeriod, result.Unchecked},
		{"grace, v4", v4(hung, locking, 0, later, reconnected), gracePeriod, result.Unchecked},
		{"grace, v4, which opens no file either", v4(hung, opening, 0, later, reconnected), gracePeriod, result.Unchecked},
		{"grace, v4, and the client reclaims", v4(hung, opening, 0, recovering, reconnected), gracePeriod, result.Unchecked},
		{"grace by the server's word, v3", v3(hung, asking, 0, saysGrace), gracePeriod, result.Unchecked},
		{"grace, and statd is down, too", v3(hung, locking, 0, saysGrace, statdStopped), gracePeriod, result.Unchecked},
		{"grace is nothing to an open of v3", v3(hung, opening, 0, saysGrace), unknown, result.Timeout},
		{"grace by the server's word, v4, before the first lock", v4(hung, opening, 0, saysGrace, later), gracePeriod, result.Unchecked},
		{"the same, where nobody may see what it waits for", v4(hung, locking, 0, saysGrace), gracePeriod, result.Unchecked},
		{"grace is nothing to fstatfs", v4(hung, reaching, 0, saysGrace), unknown, result.Timeout},
		{"a delegation is recalled", v4(hung, opening, 0, later, stayed), delegationRecall, result.Timeout},
		{"a server says later, since nobody knows when", v4(hung, opening, 0, later), unknown, result.Timeout},
		{"the state manager is stuck", v4(hung, opening, 0, recovering, stayed), stateManagerStuck, result.Timeout},
		{"the lease is refused, at fstatfs", v4(failed, reaching, unix.EACCES, leaseDenied), leaseRefused, result.Denied},
		{"the lease is refused, at open", v4(failed, opening, unix.EPERM, leaseDenied), leaseRefused, result.Denied},
		{"the lease is refused, and all wait", v4(hung, opening, 0, leaseDenied, recovering, stayed), leaseRefused, result.Timeout},
		{"EACCES without a word of the kernel's", v4(failed, reaching, unix.EACCES), denied, result.Denied},
		{"the lease is refused, and the server is slow to answer", v4(hung, opening, 0, leaseDenied, nfsHangs), leaseRefused, result.Timeout},
		{"the lease is refused, and the server is cut off", v4(hung, opening, 0, leaseDenied, dead), serverUnreachable, result.Timeout},
		{"the lease was refused, and works again", v4(passed, 0, 0, leaseDenied), healthy, result.OK},
		{"the state manager is stuck until the lease has expired", v4(hung, opening, 0, recovering, forLong, stayed, expired), stateManagerStuck, result.Timeout},
		{"the lease has expired, and the client just gets it back", v4(hung, locking, 0, recovering, stayed, expired), leaseExpired, result.Timeout},
		{"client id in use", v4(hung, opening, 0, sameID), clientIDInUse, result.Timeout},
		{"client id in use, which the state manager fails with", v4(failed, reaching, unix.EPERM, sameID, leaseDenied), clientIDInUse, result.Error},
		{"another host of this name", v4(passed, 0, 0, sameName), clientNameShared, result.Error},
		{"another host of this name, and locks hang", v4(hung, opening, 0, sameName, recovering, stayed), clientNameShared, result.Timeout},
		{"the lease has expired", v4(failed, opening, unix.EIO, expired), leaseExpired, result.Error},
		{"the lease has expired, nobody needs it", v4(passed, 0, 0, expired), healthy, result.OK},
		{"a lease of v3 there is none", v3(hung, locking, 0, expired), unknown, result.Timeout},
		{"a dead server, and the lease with it", v4(hung, reaching, 0, dead, expired, recovering), serverUnreachable, result.Timeout},
		{"the limit of locks", v4(failed, locking, unix.EDQUOT), lockLimit, result.Error},
		{"the limit of flocks", v4(failed, flocking, unix.EDQUOT), lockLimit, result.Error},
		{"a quota of bytes is none of locks", v4(failed, opening, unix.EDQUOT), unknown, result.Error},
		{"held by another client", v3(failed, locking, unix.EAGAIN), heldElsewhere, result.Error},
		{"held, as System V says it", v3(failed, locking, unix.EACCES), heldElsewhere, result.Error},
		{"flock held", v4(failed, flocking, unix.EAGAIN), heldElsewhere, result.Error},
		{"EAGAIN of open is none", v4(failed, opening, unix.EAGAIN), unknown, result.Error},
		{"root_squash", v3(failed, opening, unix.EACCES), denied, result.Denied},
		{"EPERM", v4(failed, locking, unix.EPERM), denied, result.Denied},
		{"nolock", v3(passed, 0, 0, unproven, statdStopped), localOnly, result.Unchecked},
		{"nolock, server dead", v3(hung, reaching, 0, unproven, dead), serverUnreachable, result.Timeout},
		{"nolock, no canary", v3(notTried, 0, 0, unproven, withoutCanary), localOnly, result.Unchecked},
		{"server's statd stopped", v3(failed, locking, unix.ENOLCK, nsmDropped), nsmUnreachable, result.Error},
		{"server's statd stopped, locks work", v3(passed, 0, 0, nsmDropped), nsmUnreachable, result.OK},
		{"server's statd hangs, and its lock service waits for it", v3(hung, locking, 0, nlmHangs, nsmHangs), nsmUnreachable, result.Timeout},
		{"server's lock service hangs", v3(hung, locking, 0, nlmHangs), nlmUnreachable, result.Timeout},
		{"NLM and server's statd dropped", v3(hung, asking, 0, nlmDropped, nsmDropped), nlmUnreachable, result.Timeout},
		{"ENOLCK for no visible reason", v3(failed, locking, unix.ENOLCK), unknown, result.Error},
		{"no canary", v3(notTried, 0, 0, withoutCanary), noCanary, result.Unchecked},
		{"no canary, statd down", v3(notTried, 0, 0, withoutCanary, statdStopped), statdDown, result.Error},
		{"no canary, NLM dropped", v3(notTried, 0, 0, withoutCanary, nlmDropped), nlmUnreachable, result.Error},
		{"no canary, server's statd", v3(notTried, 0, 0, withoutCanary, nsmDropped), nsmUnreachable, result.Unchecked},
		{"no canary, v4", v4(notTried, 0, 0, withoutCanary), noCanary, result.Unchecked},
		{"no canary, v4, server dead", v4(notTried, 0, 0, withoutCanary, dead), serverUnreachable, result.Error},
		{"nothing could be asked", v3(hung, locking, 0, nothingAsked), unknown, result.Timeout},
		{"nothing could be tried or asked", v3(notTried, 0, 0, nothingAsked), unknown, result.Unchecked},
		{"the server died after the lock", v3(hung, unlocking, 0, dead), serverUnreachable, result.Timeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.diagnose()
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.code, c.evidence.code(got, false, time.Second, time.Minute))
			assert.NotEmpty(t, got.Meaning())
			if c.end == hung {
				assert.Equal(t, result.Stuck, c.evidence.code(got, true, time.Second, time.Minute))
			}
		})
	}
	late := v3(hung, asking, 0, inGrace)
	assert.Equal(t, result.Timeout, late.code(gracePeriod, false, 2*time.Minute, time.Minute), "a grace period does not last for ever")
}

func TestWait_IsReadFromStacks(t *testing.T) {
	for waits, want := range map[string]wait{
		"":                  waitOther,
		"nlm_wait_on_grace": waitGrace,
		"[<0>] schedule_timeout_killable+0x2\n[<0>] nfs4_delay_killable+0x4\n[<0>] nfs4_handle_exception+0x1\n": waitDelay,
		"[<0>] nfs_wait_bit_killable+0x2\n[<0>] nfs4_wait_clnt_recover+0x4\n[<0>] nfs4_handle_exception+0x1\n":  waitRecovery,
		"[<0>] rpc_wait_bit_killable+0x2\n[<0>] __rpc_execute+0x4\n[<0>] nlmclnt_call+0x1\n":                    waitOther,
		"request_wait_answer": waitOther,
	} {
		assert.Equal(t, want, waitOf(waits), waits)
	}
}

func TestLeaseState_KnowsARestartFromNone(t *testing.T) {
	began := time.Now().Add(-time.Hour)
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	sample := func(l *leaseState, seconds int, connects, identities int64) {
		l.add(leaseSample{at: at(seconds), path: "/mnt", connects: connects, NFS4State: mounts.NFS4State{Identities: identities}})
	}
	var l leaseState
	assert.Equal(t, restartUnknown, l.restarted(time.Minute, time.Now()))
	sample(&l, 0, 1, 1)
	assert.Equal(t, restartUnknown, l.restarted(time.Minute, time.Now()), "no lock was taken yet")
	l.lastOK = at(10)
	assert.Equal(t, restartUnknown, l.restarted(time.Minute, time.Now()), "nobody looked since")
	assert.Equal(t, notRestarted, l.restarted(time.Minute, at(5)), "it gave the lock to another mount, while this one hung")
	sample(&l, 20, 1, 1)
	assert.Equal(t, notRestarted, l.restarted(time.Minute, time.Now()))
	sample(&l, 30, 2, 1)
	assert.Equal(t, restarted, l.restarted(time.Minute, time.Now()), "it connected anew")
	l.lastOK = at(40)
	sample(&l, 50, 2, 1)
	assert.Equal(t, notRestarted, l.restarted(time.Minute, time.Now()), "that was before the last lock")
	sample(&l, 60, 2, 1)
	l.lastOK = at(55)
	assert.Equal(t, notRestarted, l.restarted(time.Minute, time.Now()))
	l.silent = at(58)
	assert.Equal(t, restarted, l.restarted(time.Minute, time.Now()), "it did not answer")
	l.silent = time.Time{}
	sample(&l, 70, 3, 1)
	assert.Equal(t, restarted, l.restarted(time.Minute, time.Now()))
	sample(&l, 120, 3, 1)
	assert.Equal(t, restarted, l.restarted(time.Minute, time.Now()))
	sample(&l, 140, 3, 1)
	assert.Equal(t, notRestarted, l.restarted(time.Minute, time.Now()), "no grace period lasts as long")
}

// Where the counters could not be read before it hung, as on a very busy host, they tell as long as
// there was but one connection.
func TestLeaseState_TheFirstConnectionIsNoRestart(t *testing.T) {
	now := time.Now()
	of := func(connects, connections int64) restart {
		l := leaseState{lastOK: now.Add(-time.Minute)}
		for at := now.Add(-10 * time.Second); at.Before(now); at = at.Add(time.Second) {
			l.add(leaseSample{at: at, path: "/mnt", connects: connects, connections: connections})
		}
		return l.restarted(time.Minute, now)
	}
	assert.Equal(t, notRestarted, of(1, 1))
	assert.Equal(t, notRestarted, of(4, 4), "nconnect=4")
	assert.Equal(t, restartUnknown, of(2, 1), "it may have been then or before")
	assert.Equal(t, restartUnknown, of(0, 1), "the kernel does not say")
}

func TestLeaseState_OneCallWithoutAnAnswerIsNoRestart(t *testing.T) {
	now := time.Now()
	lost := func(errno string, since time.Duration) restart {
		l := leaseState{lastOK: now.Add(-time.Minute), samples: []leaseSample{{at: now.Add(-2 * time.Minute)}, {at: now.Add(-time.Second)}}}
		l.noteSilence(serverpool.Answer{Known: true, Errno: errno, At: now.Add(-2 * time.Second), Since: now.Add(-2*time.Second - since)})
		return l.restarted(time.Minute, now)
	}
	assert.Equal(t, notRestarted, lost("ETIMEDOUT", 0), "this host may have been too busy")
	assert.Equal(t, notRestarted, lost("ETIMEDOUT", time.Second), "both may be of one moment")
	assert.Equal(t, restarted, lost("ETIMEDOUT", 10*time.Second))
	assert.Equal(t, restarted, lost("ECONNREFUSED", 0), "it is there, and nfsd is not")
}

func TestLeaseState_KnowsHostsOfOneName(t *testing.T) {
	add := func(l *leaseState, minute int, connects, identities int64) {
		l.add(leaseSample{at: time.Now().Add(time.Duration(minute-60) * time.Minute), path: "/mnt", connects: connects, NFS4State: mounts.NFS4State{Identities: identities}})
	}
	var l leaseState
	add(&l, 0, 1, 1)
	add(&l, 1, 1, 2)
	assert.False(t, l.flaps(), "a lease may get lost once")
	add(&l, 2, 1, 4)
	assert.True(t, l.flaps())
	add(&l, 3, 2, 5)
	assert.False(t, l.flaps(), "the server was restarted")
	add(&l, 4, 2, 1)
	assert.Len(t, l.samples, 1, "mounted anew")
	add(&l, 20, 2, 9)
	assert.Len(t, l.samples, 1, "what is old tells nothing")
}

func TestNFSLock_InGraceIsWhatTheLockServiceHasSaid(t *testing.T) {
	began := time.Now()
	n, server := &NFSLock{began: began, settings: settings{grace: time.Hour}}, &lockServer{}
	nlm, v4 := &target{nlm: true, server: server}, &target{server: server}
	says := serverpool.Answer{Known: true, Errno: sunrpc.InGrace, At: began.Add(-time.Second)}
	server.nlmGrace.note(says)
	assert.False(t, n.inGrace(nlm), "that was before the lock")
	assert.False(t, n.inGrace(&target{nlm: true}), "nobody could say it")
	nlm.HungSince = began.Add(-time.Minute)
	assert.True(t, n.inGrace(nlm))
	assert.False(t, n.inGrace(v4), "NFSv4 says nothing of the kind")
	for _, lost := range []serverpool.Answer{{}, {Known: true, Errno: "ETIMEDOUT"}} {
		server.nlmGrace.note(lost)
		assert.True(t, n.inGrace(nlm), "it has not said otherwise")
	}
	n.grace = time.Second / 2
	assert.False(t, n.inGrace(nlm), "no grace period lasts so long")
	says.At = began.Add(time.Second)
	server.nlmGrace.note(says)
	assert.True(t, n.inGrace(nlm))
	assert.Equal(t, "has said that its grace period lasts", nlm.saidGrace().String())
	server.nlmGrace.note(serverpool.Answer{Known: true, At: began.Add(2 * time.Second)})
	n.began = began.Add(3 * time.Second)
	n.grace = time.Hour
	assert.True(t, n.inGrace(nlm), "the client has not asked again yet")
	assert.Equal(t, "has ended its grace period; the client asks again within 15s", nlm.saidGrace().String())
	nlm.HungSince = began.Add(2500 * time.Millisecond)
	assert.False(t, n.inGrace(nlm), "a lock tried since was never refused")
	nlm.HungSince = began.Add(-time.Minute)
	n.began = began.Add(2*time.Second + retryAfterGrace)
	server.nlmGrace.note(serverpool.Answer{Known: true, At: n.began})
	assert.False(t, n.inGrace(nlm), "it gives locks")
}

func TestNFSLock_WhatLastsWasSoBeforeTheLockOrThisGather(t *testing.T) {
	n, began := &NFSLock{}, time.Now()
	after := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		since, tried, gather int
		want                 bool
	}{{1, 2, 2, true}, {2, 1, 1, false}, {2, 1, 3, true}, {3, 2, 1, false}} {
		n.began = after(c.gather)
		assert.Equal(t, c.want, n.lasts(after(c.since), after(c.tried)), c)
	}
	assert.False(t, n.lasts(time.Time{}, after(1)), "it is not so")
}

func TestTarget_RecoveryBeginsAtTheFirstLookThatSeesIt(t *testing.T) {
	var target target
	const recovers, asks = "[<0>] nfs4_wait_clnt_recover+0x4\n", "[<0>] rpc_wait_bit_killable+0x11\n"
	target.noteWait(recovers)
	first := target.recovers
	require.False(t, first.IsZero())
	target.noteWait(recovers)
	assert.Equal(t, first, target.recovers)
	target.noteWait(asks)
	assert.Zero(t, target.recovers)
}

func TestNFSLock_AnAttemptThatEndsWaitsForNoRecoveryAnyMore(t *testing.T) {
	n, target := new(NFSLock), &target{server: new(lockServer)}
	for _, end := range []ending{hung, failed, passed} {
		target.noteWait("[<0>] nfs4_wait_clnt_recover+0x4\n")
		n.noteState(target, &finding{attempt: attempt{end: end, reason: "known"}})
		assert.Equal(t, end == hung, !target.recovers.IsZero(), end)
	}
}

func TestLeaseState_WhatWasSaidBeforeTheLastLockIsNoEvidence(t *testing.T) {
	l := leaseState{inUse: time.Now().Add(-time.Minute)}
	assert.True(t, l.holds(l.inUse))
	assert.False(t, l.holds(l.refused), "it was not said")
	l.lastOK = time.Now()
	assert.False(t, l.holds(l.inUse))
	l.inUse = time.Now().Add(time.Second)
	assert.True(t, l.holds(l.inUse))
	l = leaseState{inUse: time.Now().Add(-time.Hour)}
	assert.False(t, l.holds(l.inUse))
}

func TestIsManager(t *testing.T) {
	for comm, want := range map[string]bool{
		"192.0.2.1-manager": true, "192.0.2.1-manag": true, "192.0.2.1-mana": false, "192.0.2.11-mana": false, "192.0.2.1": false, "nfsd": false,
	} {
		assert.Equal(t, want, isManager(comm, netip.MustParseAddr("192.0.2.1")), comm)
	}
	assert.True(t, isManager("192.168.100.100", netip.MustParseAddr("192.168.100.100")), "all that fits")
}

// A busy host may not read the counters in time.
func TestNFSLock_ReadsCountersAgainThatCouldNotBeRead(t *testing.T) {
	n, _ := newInput(t)
	dir := tmpfs(t, "")
	withTable(t, n, fmt.Sprintf("1001 1 0:1 / %s rw - nfs4 nas:/export rw,%s\n", dir, nfs4))
	n.round = n.host.Join(n)
	n.refresh()
	read := func() {
		n.round++
		n.readState(time.Now().Add(-stateInterval))
		for n.asking > 0 {
			<-n.mail.Wake()
			n.mail.Drain()
		}
	}
	read()
	assert.Zero(t, n.stateRead)
	assert.Empty(t, n.targets[0].server.lease.samples)
	file := filepath.Join(n.host.Proc, n.host.PID, "mountstats")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "device nas:/export mounted on %s with fstype nfs4 statvers=1.1\n"+
		"\tage:\t100\n\txprt:\ttcp 900 1 1 0 0 9 9 0 0 0 2 0 0\n\n", dir), 0o600))
	read()
	assert.NotZero(t, n.stateRead)
	require.Len(t, n.targets[0].server.lease.samples, 1)
	assert.EqualValues(t, 1, n.targets[0].server.lease.samples[0].connects)
}
