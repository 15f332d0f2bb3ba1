package mountstat

import (
	"slices"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// question is what an NFS server is asked.
func question(s *mounts.NFSServer) sunrpc.Question {
	return sunrpc.Question{Network: s.Network, Address: s.Address, Program: sunrpc.ProgramNFS}
}

// askServers sends a NULL call to each server, and does not wait for the answers.
func (m *Mountstat) askServers(round uint64) {
	type wanted struct {
		version uint32
		limit   time.Duration
	}
	questions := make(map[sunrpc.Question]wanted)
	for _, t := range m.targets {
		if t.server == nil {
			continue
		}
		w := wanted{t.server.Version, sunrpc.AnswerLimit(t.policy.timeout)}
		if before, found := questions[question(t.server)]; found {
			w = wanted{before.version, min(before.limit, w.limit)}
		}
		questions[question(t.server)] = w
	}
	for q, w := range questions {
		if m.asking[q] {
			continue // a gather was cut short
		}
		m.asking[q] = true
		m.host.Servers.Ask(round, q, w.limit, []uint32{w.version}, func(sunrpc.Answer) {
			m.mail.Post(func() {
				delete(m.asking, q)
				m.arrived, m.held = append(m.arrived, m.held...), nil
			})
		})
	}
}

// answerOf returns the last answer of the target's server.
func (m *Mountstat) answerOf(t *target) sunrpc.Answer { return m.host.Servers.Last(question(t.server)) }

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
	type sums struct {
		fault.Sums
		server *mounts.NFSServer
	}
	servers := make(map[sunrpc.Question]*sums)
	for _, t := range m.targets {
		if t.server == nil {
			continue
		}
		s := servers[question(t.server)]
		if s == nil {
			s = &sums{server: t.server}
			servers[question(t.server)] = s
		}
		s.Add(len(t.Mounts), t.Probed.Superblock(), t.found.code, &t.History)
	}
	for q, s := range servers {
		fields := s.Fields()
		m.host.Servers.Last(q).AddTo(fields, "rpc")
		acc.AddGauge("mountstat_server", fields, s.server.Tags())
	}
}
