package mountstat

import (
	"slices"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/fileserver"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// server is a server of some targets.
type server struct {
	mounts.Server
	timeout time.Duration     // of its mounts, the shortest
	asked   uint64            // the last round in which its answer was evidence
	pending bool              // the answer is to come
	answer  serverpool.Answer // the last one, as of this gather
	// proven and elsewhere say whether the server is at the address that is asked: the mount
	// table does not tell the port of SMB servers, see locateSMB.
	proven, elsewhere bool
	connections
}

// servers are the servers of all targets, and of mounts that are to be made.
type servers struct {
	*kit
	byQuestion map[serverpool.Question]*server
	asking     int // answers to come
	smbAt      smbLocations
	looking    bool   // at connections
	looks      budget // of CPU time
}

// asker is how the server is asked.
func (s *server) asker() serverpool.Asker {
	if s.Service == serverpool.NFS {
		return sunrpc.Asker(sunrpc.ProgramNFS, s.Version)
	}
	return fileserver.Asker(s.Service)
}

// link finds the servers of a target, if its mounts are in the table's network.
func (all *servers) link(t *target, before map[serverpool.Question]*server) {
	t.servers = nil
	if t.namespace != nil && !t.namespace.network {
		return // their addresses mean another network
	}
	for _, found := range t.Probed.Servers() {
		for _, place := range all.placesOf(t, found) {
			s := all.at(place, t.policy.timeout, before)
			s.proven = s.proven || slices.Contains(all.smbAt.ports[place.Address.Addr()], place.Address.Port())
			if !slices.Contains(t.servers, s) {
				t.servers = append(t.servers, s)
			}
		}
	}
}

// at is what is known about a server whose mounts have a timeout.
func (all *servers) at(found mounts.Server, timeout time.Duration, before map[serverpool.Question]*server) *server {
	s := all.byQuestion[found.Question]
	if s == nil {
		if s = before[found.Question]; s == nil {
			s = &server{}
		}
		s.Server, s.timeout = found, timeout
		all.byQuestion[found.Question] = s
	}
	s.timeout = min(s.timeout, timeout)
	return s
}

// askAll asks the servers whose answers are evidence, has the others asked by turns, and does not
// wait for the answers. suspects tells whether one of a target that must not be checked is asked.
func (all *servers) askAll(targets []*target, suspects func(*target, *server) bool) {
	all.takeAnswers()
	evidence := make(map[*server]bool, len(all.byQuestion))
	for _, t := range targets {
		for _, s := range t.servers {
			evidence[s] = evidence[s] || t.found.code.Fault() || t.skipReason != "" && suspects(t, s)
		}
	}
	for _, s := range all.byQuestion {
		all.ask(s, evidence[s])
	}
}

// takeAnswers collects the servers' last answers, whoever has asked.
func (all *servers) takeAnswers() {
	for _, s := range all.byQuestion {
		s.answer = all.host.Servers.Last(s.Question)
	}
}

// askAboutLate asks the servers of targets whose checks take long, once they do. stop
// must be called.
func (all *servers) askAboutLate(targets []*target) (stop func() bool) {
	if len(all.byQuestion) == 0 {
		return func() bool { return true }
	}
	shortest := all.longestTimeout()
	for _, s := range all.byQuestion {
		shortest = min(shortest, s.timeout)
	}
	return time.AfterFunc(serverpool.EvidenceAfter(shortest), func() {
		all.mail.Post(func() {
			for _, t := range targets {
				if !t.awaited || !t.underWay {
					continue
				}
				for _, s := range t.servers {
					all.ask(s, true)
				}
			}
		})
	}).Stop
}

// ask puts the question to a server, at most once in each round.
func (all *servers) ask(s *server, evidence bool) {
	if s.pending || s.asked == all.round {
		return // a gather may have been cut short
	}
	wanted := serverpool.Wanted{Evidence: evidence, Ask: s.asker(), Timeout: s.timeout}
	if !all.host.Servers.Ask(all.round, s.Question, wanted, func(serverpool.Answer) {
		all.mail.Post(func() {
			s.pending, s.answer = false, all.host.Servers.Last(s.Question)
			all.asking--
			all.reconsider()
		})
	}) {
		return
	}
	s.asked, s.pending = all.round, true
	all.asking++
}

// await reports whether an answer of the target's servers is still to come: they have not yet
// answered a call that was made since the check began, nor failed to answer in time (a soft mount
// fails before that). It has them asked.
func (all *servers) await(t *target) (waits bool) {
	for _, s := range t.servers {
		if !s.answer.At.After(t.report.Since) {
			all.ask(s, true)
			waits = waits || s.pending
		}
	}
	return waits
}

// noteElsewhere notes whether the SMB server of a target is at the address that is asked. It is once it has
// answered there. It is not if a mount of it answers and the address never did.
func (s *server) noteElsewhere(t *target) {
	switch a := s.answer; {
	case s.Service != serverpool.SMB:
	case a.Answered():
		s.proven, s.elsewhere = true, false
	case a.Late():
	case a.Broken() && !s.proven && t.skipReason == "" && !t.underWay && t.found.code == result.OK:
		s.elsewhere = true
	}
}

// traffic is what the transport of an NFS mount has done.
type traffic struct {
	stats     *mounts.NFSStats // of this gather, or nil
	received  int64            // replies, when they last grew,
	sent      int64            // calls at that time,
	lastReply time.Time        // and that time
	lost      count            // the least of calls without a reply while the mount was well
}

// readTraffic reads the statistics of the transports, if there are NFS mounts.
func (all *servers) readTraffic(targets []*target, now time.Time) {
	if !slices.ContainsFunc(targets, func(t *target) bool { return t.Probed.NFS() }) {
		return
	}
	counters := all.host.NFSStats(all.round, time.Time{})
	all.said.Error("mountstats", counters.Err)
	at := make(map[string]*mounts.NFSStats, len(counters.All))
	for i := range counters.All {
		at[counters.All[i].Mountpoint] = &counters.All[i]
	}
	for _, t := range targets {
		t.traffic.stats = nil
		if !t.Probed.NFS() || t.namespace != nil {
			continue
		}
		if stats := at[t.Probed.Mountpoint]; stats != nil {
			t.traffic.update(stats, now)
			if t.FaultSince.IsZero() && !t.LastOK.IsZero() {
				t.traffic.noteLost()
			}
		}
	}
}

func (t *traffic) update(stats *mounts.NFSStats, now time.Time) {
	if t.lastReply.IsZero() || stats.Transport.Receives != t.received {
		t.received, t.sent, t.lastReply = stats.Transport.Receives, stats.Transport.Sends, now
	}
	t.stats = stats
}

// unanswered is the number of calls since the last reply.
func (t *traffic) unanswered() int64 {
	if t.stats == nil {
		return 0
	}
	return max(0, t.stats.Transport.Sends-t.sent)
}

// noteLost notes how many calls have no reply while the mount is well: others are under way, or
// were sent again after the connection was lost.
func (t *traffic) noteLost() {
	without := t.stats.Transport.Sends - t.stats.Transport.Receives
	if !t.lost.known || without < t.lost.n {
		t.lost = count{without, true}
	}
}

// outstanding is how many calls of a mount have been sent and have no reply, by counters that were
// read since its check began. It is unknown if the mount never was well.
func (t *traffic) outstanding(all []mounts.NFSStats, mountpoint string) count {
	for i := range all {
		if s := &all[i]; s.Mountpoint == mountpoint && t.lost.known {
			return count{s.Transport.Sends - s.Transport.Receives - t.lost.n, true}
		}
	}
	return count{}
}

func (t *target) serverFields(fields map[string]any) {
	t.answer.AddTo(fields, "server_rpc")
	traffic := &t.traffic
	if traffic.stats == nil {
		return
	}
	fields["nfs_age_seconds"] = traffic.stats.Age
	fields["nfs_read_bytes"] = traffic.stats.Bytes.ServerRead
	fields["nfs_written_bytes"] = traffic.stats.Bytes.ServerWritten
	fields["nfs_retransmissions"] = traffic.stats.Operations.Retransmissions()
	fields["nfs_timeouts"] = traffic.stats.Operations.MajorTimeouts
	fields["nfs_backlog"] = traffic.stats.Transport.Backlog
	fields["nfs_unanswered"] = traffic.unanswered()
	fields["nfs_last_reply_seconds_ago"] = time.Since(traffic.lastReply).Seconds()
}

// emit makes one metric per server: it shows at once what 300 mounts have in
// common.
func (all *servers) emit(acc telegraf.Accumulator, targets []*target, demands map[string]*demand) {
	sums := make(map[mounts.Server]*fault.Sums, len(all.byQuestion))
	add := func(s mounts.Server, mounts int, superblock string, code result.Code, h *fault.History) {
		if sums[s] == nil {
			sums[s] = &fault.Sums{}
		}
		sums[s].Add(mounts, superblock, code, h)
	}
	addTarget := func(s mounts.Server, t *target) {
		add(s, len(t.Mounts), t.Probed.Superblock(), t.found.code, &t.History)
	}
	for _, t := range targets {
		for _, s := range t.servers {
			s.noteElsewhere(t)
			t.ruleOut(s)
			addTarget(s.Server, t)
		}
		if t.behindDaemon.Address.IsValid() {
			addTarget(t.behindDaemon, t)
		}
	}
	for path, d := range demands {
		if d.unmet != nil {
			add(d.server(), 1, path, result.Error, &fault.History{})
		}
	}
	for s, sum := range sums {
		fields := sum.Fields()
		if asked := all.byQuestion[s.Question]; asked != nil {
			asked.answer.AddTo(fields, "rpc")
		}
		acc.AddGauge("mountstat_server", fields, s.Tags())
	}
}
