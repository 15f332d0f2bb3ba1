package mountstat

import (
	"slices"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// judgeUntouched is what is known about a target that must not be checked. The target is found at
// fault where its server, or its daemon, answers neither vfsprobe nor the target's users.
func (c *causes) judgeUntouched(t *target) finding {
	f := finding{code: result.Unchecked, reason: t.skipReason}
	switch server := t.causeAtServer(); {
	case t.Probed.FUSE():
		c.judgeDaemon(t, &f)
	case c.needsRemount(t):
		f.code, f.cause = result.Error, result.MountNeedsRemount
	case server != "" && t.missesAnswers() && t.provesFault():
		f.code, f.errno, f.cause = result.Error, t.answer.Errno, server
	}
	switch {
	case t.Probed.FUSE():
		if _, looked := c.daemons.found[connectionTo(t)]; !looked && t.found.code.Fault() && t.hasWaited(time.Now()) {
			return t.found // a busy host does not find the daemon in time
		}
	case f.code.Fault():
		f.addReason(t.connections())
	case t.unseen():
		return t.found
	}
	return f
}

// needsRemount reports whether the target is of 9P, and has lost its connection: there are fewer
// than file systems of the server.
func (c *causes) needsRemount(t *target) bool {
	known := &t.answer.Connections
	if !t.Probed.NineP() || len(t.servers) == 0 || !t.answer.Answered() || !known.Known {
		return false
	}
	s := t.servers[0]
	lost := s.lostForGood(known.CloseWait > 0) || t.found.code.Fault() && s.most > 0
	return lost && known.Established < superblocksAt(s, c.targets)
}

// provesFault reports whether the server's answer is proof of a fault that was not known: a busy
// server, or a busy host, may leave one question without an answer in time. It is proof if the
// client has waited for longer than a check may take, or if two questions in succession had no
// answer. What the client itself knows is proof at once.
func (t *target) provesFault() bool {
	a, s := &t.answer, t.servers[t.telling]
	waited := s.waited > t.policy.timeout && !t.Probed.Ceph() // see waitsForServer
	return t.found.code.Fault() || t.Probed.NFS() || t.share == smbclient.Disconnected || !a.TimedOut() || waited || a.At.After(a.Since)
}

// unseen reports whether the evidence for the target's fault could not be had this time: a busy
// host does not list its connections in time.
func (t *target) unseen() bool {
	a := &t.answer
	return t.found.code.Fault() && !t.Probed.NFS() && !a.Connections.Known && t.share == smbclient.Unknown &&
		(!a.Answered() || t.Probed.NineP())
}

// suspects reports whether a server of a target that must not be checked should be asked, since
// the target's users may have no answer.
func (m *Mountstat) suspects(t *target, s *server) bool {
	if t.Probed.NFS() {
		return t.traffic.unanswered() > 0
	}
	return s.answer.Broken() && m.mayAsk(t, s)
}

// mayAsk reports whether a server is known to be that of a target. An SMB server that never answered
// may listen elsewhere: then only the client is asked.
func (m *Mountstat) mayAsk(t *target, s *server) bool {
	if t.Probed.SMB() {
		m.smb.read()
		return s.proven
	}
	return true
}

// askWaitedFor has this host's connections to the servers of targets that must not be checked looked
// at, and asks those servers for which a target's users seem to wait.
func (m *Mountstat) askWaitedFor() {
	m.servers.lookAtConnections(m.targets, func() {
		somebodyWaits := sync.OnceValue(m.somebodyWaits)
		for _, t := range m.targets {
			if !t.connectionsLooked() || !t.waitsForServer(somebodyWaits) {
				continue
			}
			for _, s := range t.servers {
				if m.mayAsk(t, s) {
					m.servers.ask(s, true)
				}
			}
		}
	})
}

// connectionsLooked reports whether the connections to the target's servers are looked at.
func (t *target) connectionsLooked() bool {
	return t.skipReason != "" && !t.Probed.NFS() && len(t.servers) > 0
}

// waitsForServer reports whether the target has lost a connection, or something that was sent to its
// server has had no answer for a while. What Ceph's client sends last may be a receipt, so that
// programs have to tell.
func (t *target) waitsForServer(somebodyWaits func() bool) bool {
	return slices.ContainsFunc(t.servers, func(s *server) bool {
		return s.lost || s.waited > serverpool.EvidenceAfter(t.policy.timeout) && (!t.Probed.Ceph() || somebodyWaits())
	})
}

// somebodyWaits reports whether a program has waited uninterruptibly since an earlier scan, as
// those do whose Ceph server does not answer. What it waits for is not asked here.
func (m *Mountstat) somebodyWaits() bool {
	scan, _ := m.blocked.scan(m.targets, m.automounts.there) // summarize says what hinders it
	return slices.ContainsFunc(scan.Tasks, func(task blocked.Task) bool { return !task.Kernel })
}

// missesAnswers reports whether the target's users get no answer from its server. NFS tells by
// the counters of the mount, others by this host's connections to the server, or by what the
// SMB client knows.
func (t *target) missesAnswers() bool {
	if t.Probed.NFS() {
		return t.traffic.unanswered() > 0
	}
	if t.share == smbclient.Disconnected {
		return true
	}
	known, established, lost, proven := false, 0, 0, true
	for i, s := range t.servers {
		c := &t.answers[i].Connections
		known = known || c.Known
		established += c.Established
		proven = proven && (s.proven || !t.Probed.SMB())
		lost += c.Connecting + c.CloseWait + c.Unacknowledged + c.Unanswered
	}
	return known && (lost > 0 || established == 0 && proven && t.share != smbclient.Good)
}

// askDaemons has the daemons of some targets examined: of those that must not be checked, and
// whose requests have been without an answer for longer than a check may take; and of those for which
// somebody has begun to wait, at most once in an examineInterval, see [daemons.lookAgain].
func (c *causes) askDaemons(now time.Time) {
	for _, t := range c.targets {
		if t.skipReason == "" || !t.Probed.FUSE() {
			continue
		}
		if c.collect(t); t.requests.n == 0 {
			t.waitedSince = time.Time{}
		} else if t.waitedSince.IsZero() {
			t.waitedSince = now
		}
		begins := t.waitedSince.Equal(now) && now.Sub(t.examined) >= examineInterval
		if begins {
			t.examined = now
		}
		if t.hasWaited(now) || begins {
			c.daemons.ask(connectionTo(t))
		}
	}
	c.daemons.find()
}

// hasWaited reports whether somebody has waited for the target's daemon for longer than a check
// may take.
func (t *target) hasWaited(now time.Time) bool {
	return !t.waitedSince.IsZero() && now.Sub(t.waitedSince) > t.policy.timeout
}

// judgeDaemon finds the fault of a target whose daemon does not answer those that wait for it.
// Waiting requests alone prove nothing, since one may be for a lock that another host has. The
// daemon must be stopped, or its server must not answer it, or it must wait for another target
// that is at fault.
func (c *causes) judgeDaemon(t *target, f *finding) {
	d := t.daemon
	if d == nil || !t.hasWaited(time.Now()) || t.requests.n == 0 {
		return
	}
	hangs := finding{code: result.Timeout}
	why := c.causeOfSilentFUSE(t, &hangs)
	state, socket := d.Server()
	silent := state == fusedaemon.Silent && socket.Received > t.policy.timeout
	if d.Stopped() || state == fusedaemon.Unreachable || silent || hangs.culprit != nil {
		f.code, f.cause, f.culprit = result.Error, why, hangs.culprit
		f.addReason(hangs.reason)
	}
}
