package mountstat

import (
	"slices"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// server is an NFS server of some targets.
type server struct {
	*mounts.NFSServer
	timeout time.Duration // of its mounts, the shortest
	asked   uint64        // the last round in which its answer was evidence
	pending bool          // the answer is to come
}

// question is what an NFS server is asked.
func (s *server) question() serverpool.Question {
	return serverpool.Question{Network: s.Network, Address: s.Address, Service: serverpool.NFS}
}

// linkServer finds the server of a target, in the table of its mounts' network.
func (m *Mountstat) linkServer(t *target, before map[serverpool.Question]*server) {
	t.server = nil
	found := t.Probed.NFSServer()
	if found == nil || t.namespace != nil && !t.namespace.network {
		return // the server's address means another network
	}
	s := &server{NFSServer: found, timeout: t.policy.timeout}
	q := s.question()
	switch known, kept := m.servers[q], before[q]; {
	case known != nil:
		known.timeout = min(known.timeout, t.policy.timeout)
		s = known
	case kept != nil:
		kept.NFSServer, kept.timeout = found, t.policy.timeout
		s = kept
	}
	m.servers[q], t.server = s, s
}

// askServers sends a NULL call to the servers whose answers are evidence, has the others
// asked by turns, and does not wait for the answers.
func (m *Mountstat) askServers() {
	evidence := make(map[*server]bool, len(m.servers))
	for _, t := range m.targets {
		if t.server != nil && (t.found.code.Fault() || t.skipReason != "" && t.traffic.unanswered() > 0) {
			evidence[t.server] = true
		}
	}
	for _, s := range m.servers {
		m.ask(s, evidence[s])
	}
}

// askAboutLate asks the servers of the targets whose checks take long, once they do. stop
// must be called.
func (m *Mountstat) askAboutLate(pending map[*target]struct{}) (stop func() bool) {
	if len(m.servers) == 0 {
		return func() bool { return true }
	}
	shortest := m.longestTimeout()
	for _, s := range m.servers {
		shortest = min(shortest, s.timeout)
	}
	return time.AfterFunc(serverpool.EvidenceAfter(shortest), func() {
		m.mail.Post(func() {
			for t := range pending {
				if t.server != nil && t.underWay {
					m.ask(t.server, true)
				}
			}
		})
	}).Stop
}

// ask puts the question to a server, in each round once at most.
func (m *Mountstat) ask(s *server, evidence bool) {
	if s.pending || s.asked == m.round {
		return // a gather may have been cut short
	}
	wanted := serverpool.Wanted{Evidence: evidence, Ask: sunrpc.Asker(sunrpc.ProgramNFS, s.Version), Timeout: s.timeout}
	if !m.host.Servers.Ask(m.round, s.question(), wanted, func(serverpool.Answer) {
		m.mail.Post(func() {
			s.pending = false
			m.asking--
			m.reconsider()
		})
	}) {
		return
	}
	s.asked, s.pending = m.round, true
	m.asking++
}

// answerOf returns the last answer of the target's server.
func (m *Mountstat) answerOf(t *target) serverpool.Answer {
	return m.host.Servers.Last(t.server.question())
}

// traffic is what the transport of an NFS mount has done.
type traffic struct {
	stats     *mounts.NFSStats // of this gather, or nil
	received  int64            // replies, when they last grew,
	sent      int64            // calls at that time,
	lastReply time.Time        // and that time
}

// readTraffic takes the transports' statistics, if there are NFS mounts.
func (m *Mountstat) readTraffic(now time.Time) {
	if !slices.ContainsFunc(m.targets, func(t *target) bool { return t.Probed.NFS() }) {
		return
	}
	all, err := m.host.NFSStats()
	m.said.Error("mountstats", err)
	at := make(map[string]*mounts.NFSStats, len(all))
	for i := range all {
		at[all[i].Mountpoint] = &all[i]
	}
	for _, t := range m.targets {
		t.traffic.stats = nil
		if !t.Probed.NFS() || t.namespace != nil {
			continue
		}
		if stats := at[t.Probed.Mountpoint]; stats != nil {
			t.traffic.update(stats, now)
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

func (m *Mountstat) serverFields(t *target, fields map[string]any) {
	if t.server != nil {
		m.answerOf(t).AddTo(fields, "server_rpc")
	}
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

// emitServers makes one metric per NFS server: it says at once what 300 mounts
// have in common.
func (m *Mountstat) emitServers(acc telegraf.Accumulator) {
	all := make(map[*server]*fault.Sums, len(m.servers))
	for _, t := range m.targets {
		if t.server == nil {
			continue
		}
		if all[t.server] == nil {
			all[t.server] = &fault.Sums{}
		}
		all[t.server].Add(len(t.Mounts), t.Probed.Superblock(), t.found.code, &t.History)
	}
	for s, sums := range all {
		fields := sums.Fields()
		m.host.Servers.Last(s.question()).AddTo(fields, "rpc")
		acc.AddGauge("mountstat_server", fields, s.Tags())
	}
}
