package nfslock

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

const (
	// stateInterval is how often the counters of NFSv4 mounts are read.
	stateInterval = 30 * time.Second
	// stateWindow is how long a message of the kernel's about a server's lease is evidence, and
	// samplesWindow how long samples of its counters are.
	stateWindow   = 10 * time.Minute
	samplesWindow = 5 * time.Minute
	// manyIdentities is how often a client may make itself known to a server in that time.
	manyIdentities = 3
	// silence is for how long a server has not answered that may have been restarted. One call
	// without an answer can be the fault of this host, which has no CPU to read it.
	silence = 5 * time.Second
)

// leaseState is what is known of an NFSv4 client's state at a server. The kernel has one
// client for each server.
type leaseState struct {
	samples []leaseSample // of the last samplesWindow, the oldest first
	lastOK  time.Time     // when a lock was last taken
	silent  time.Time     // when the server was last found not to answer

	refused, inUse, failed time.Time // when the kernel last said so
	failure                int64     // the error that it named
	managing               time.Time // since when the state manager's thread waits; zero: it does not
}

// leaseSample is what the counters of one mount said at a time.
type leaseSample struct {
	at                    time.Time
	path                  string
	connects, connections int64 // how often the connections that there are were made
	mounts.NFS4State
}

// restart tells whether the server was restarted since it gave a lock.
type restart int

const (
	restartUnknown restart = iota
	notRestarted
	restarted
)

// readState has the counters of NFSv4 mounts read, if there are any and it is due. It does not
// wait.
func (n *NFSLock) readState(due time.Time) {
	wanted := false
	for _, t := range n.targets {
		wanted = wanted || t.v4()
	}
	if !wanted || n.stateReading || n.stateRead.After(due) {
		return
	}
	n.stateReading = true
	n.asking++
	round := n.round
	go func() {
		counters := n.host.NFSStats(round, due)
		n.mail.Post(func() {
			n.stateReading = false
			if counters.Err == nil || len(counters.All) > 0 {
				n.stateRead = counters.At // else the next gather tries again
			}
			n.asking--
			n.said.Error("mountstats", counters.Err)
			n.noteCounters(counters.At, counters.All)
		})
	}()
}

// v4 reports whether locks of the target are those of NFSv4.
func (t *target) v4() bool { return t.Probed.FSType == "nfs4" && t.server != nil }

// noteCounters notes the counters of the mount that stands for each server's client: the oldest
// mount that is probed.
func (n *NFSLock) noteCounters(at time.Time, all []mounts.NFSStats) {
	of := make(map[string]*mounts.NFSStats, len(all))
	for i := range all {
		of[all[i].Mountpoint] = &all[i]
	}
	seen := make(map[*lockServer]bool)
	for _, t := range n.targets {
		stats := of[t.Probed.Mountpoint]
		if stats == nil || !t.v4() {
			continue
		}
		t.lease = stats.State
		if !seen[t.server] {
			seen[t.server] = true
			t.server.lease.add(leaseSample{at: at, path: t.Probed.Mountpoint, connects: stats.Transport.Connects, connections: stats.Transport.Connections, NFS4State: stats.State})
		}
	}
}

// add keeps a sample. Samples of another mount, or of one that was made again, can't be compared.
func (l *leaseState) add(s leaseSample) {
	if n := len(l.samples); n > 0 && (l.samples[n-1].path != s.path || s.connects < l.samples[n-1].connects || s.Identities < l.samples[n-1].Identities) {
		l.samples = nil
	}
	for len(l.samples) > 0 && s.at.Sub(l.samples[0].at) > samplesWindow {
		l.samples = l.samples[1:]
	}
	l.samples = append(l.samples, s)
}

// noteSilence notes that the server does not answer: at once where it refuses, which is no doubt
// its own doing, or where two calls were without an answer.
func (l *leaseState) noteSilence(nfs serverpool.Answer) {
	if !nfs.TimedOut() || nfs.At.Sub(nfs.Since) >= silence {
		l.silent = nfs.At
	}
}

// restarted tells whether the server was restarted since it gave a lock, and no longer ago than
// a grace period lasts: the client has connected again, or had no answer. A server that has given
// a lock on another mount since this one began to hang was not restarted.
func (l *leaseState) restarted(grace time.Duration, hangs time.Time) restart {
	if l.lastOK.IsZero() || len(l.samples) == 0 {
		return restartUnknown
	}
	newest := l.samples[len(l.samples)-1]
	switch {
	case l.silent.After(l.lastOK) && newest.at.Sub(l.silent) < grace:
		return restarted
	case !newest.at.After(l.lastOK) && l.lastOK.After(hangs):
		return notRestarted
	case !newest.at.After(l.lastOK):
		return restartUnknown
	case newest.connects > 0 && newest.connects == newest.connections:
		return notRestarted // there was none but the first connection
	}
	connected := newest.at // when the connection of today was first seen
	for i := len(l.samples) - 1; i >= 0; i-- {
		switch s := l.samples[i]; {
		case s.connects != newest.connects && newest.at.Sub(connected) < grace:
			return restarted
		case s.connects != newest.connects, s.at.Before(l.lastOK):
			return notRestarted
		default:
			connected = s.at
		}
	}
	return restartUnknown
}

// flaps reports whether the client had to make itself known again and again to a server that
// it had not lost: somebody else took its identity.
func (l *leaseState) flaps() bool {
	if len(l.samples) < 2 {
		return false
	}
	newest := l.samples[len(l.samples)-1]
	for _, s := range l.samples {
		if s.connects == newest.connects {
			return newest.Identities-s.Identities >= manyIdentities
		}
	}
	return false
}

// said notes what the kernel's log says about the state at a server.
func (l *leaseState) said(m kmsg.Message, at time.Time) {
	switch {
	case m.Kind == kmsg.ClientIDInUse:
		l.inUse = at
	case m.RefusesLease():
		l.refused = at
	case m.Kind == kmsg.StateManager:
		l.failed, l.failure = at, m.Number
	}
}

// holds reports whether what the kernel said is still evidence: no lock has worked since.
func (l *leaseState) holds(said time.Time) bool {
	return !said.IsZero() && time.Since(said) < stateWindow && said.After(l.lastOK)
}

// isManager reports whether a task is the kernel thread that recovers the state at a server. Its
// name has 15 bytes before Linux 5.17 (nfs4_schedule_state_manager, fs/nfs/nfs4state.c).
func isManager(comm string, server netip.Addr) bool {
	const most = 15
	name := server.String() + "-manager"
	return comm == name || len(comm) == most && strings.HasPrefix(name, comm)
}

// noteManagers notes which servers' state managers wait.
func (n *NFSLock) noteManagers(tasks []blocked.Task) {
	for _, s := range n.servers {
		s.lease.managing = time.Time{}
		for i := range tasks {
			if tasks[i].Kernel && isManager(tasks[i].Comm, s.Address.Addr()) {
				s.lease.managing = tasks[i].Since
			}
		}
	}
}

// wait is what a process waits for according to its stack or wchan.
type wait int

const (
	waitOther wait = iota
	waitGrace      // the server's lock manager said that it is in its grace period
	waitDelay      // an NFSv4 server said "later": in a grace period, or while it recalls a delegation
	waitRecovery
)

// waitOf reads a stack or wchan: fs/lockd/clntproc.c, fs/nfs/nfs4proc.c.
func waitOf(waits string) wait {
	switch {
	case strings.Contains(waits, "nlm_wait_on_grace"):
		return waitGrace
	case strings.Contains(waits, "nfs4_wait_clnt_recover"):
		return waitRecovery
	case strings.Contains(waits, "nfs4_delay"), strings.Contains(waits, "nfs4_handle_exception"):
		return waitDelay
	}
	return waitOther
}

// stateReason tells what else is known about the state of a target that is at fault because of it.
func (n *NFSLock) stateReason(t *target, d diagnosis) string {
	l := &t.server.lease
	switch d {
	case leaseExpired:
		return fmt.Sprintf("the lease of %d s has expired %d s ago", t.lease.LeaseTime, t.lease.LeaseExpired)
	case stateManagerStuck:
		if l.holds(l.failed) {
			return fmt.Sprintf("the kernel's state manager failed with error %d", l.failure)
		}
	}
	return ""
}

// leaseFields adds what the counters say about the lease.
func (t *target) leaseFields(fields map[string]any) {
	if !t.lease.HasLease {
		return
	}
	fields["lease_seconds"], fields["lease_expired_seconds"] = float64(t.lease.LeaseTime), float64(t.lease.LeaseExpired)
	fields["renewals"], fields["identities"] = t.lease.Renewals, t.lease.Identities
}
