package mountstat

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
)

// answer is what a server said when it was last asked.
type answer struct {
	known   bool
	at      time.Time
	since   time.Time // it has been so
	seconds float64
	errno   string // empty: it answered
	reached bool   // its host did, if only to refuse
}

func (a answer) answered() bool { return a.known && a.errno == "" }

// askServers sends a NULL call to each server, and does not wait for the
// answers. They must be here before the checks that hang are given up.
func (m *Mountstat) askServers() {
	const share = 0.8
	wanted := make(map[mounts.NFSServer]time.Duration)
	for _, sb := range m.superblocks {
		if sb.remote == nil {
			continue
		}
		limit := time.Duration(float64(sb.policy.timeout) * share)
		if before, found := wanted[*sb.remote]; found {
			limit = min(limit, before)
		}
		wanted[*sb.remote] = limit
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.answers, func(e mounts.NFSServer, _ answer) bool { _, found := wanted[e]; return !found })
	for e, limit := range wanted {
		if m.asking[e] {
			continue // a gather was cut short
		}
		m.asking[e] = true
		go func() {
			a := ask(e, limit)
			m.mu.Lock()
			delete(m.asking, e)
			a.at, a.since = time.Now(), m.answers[e].since
			if m.answers[e].errno != a.errno {
				a.since = a.at
			}
			m.answers[e] = a
			m.arrived, m.held = append(m.arrived, m.held...), nil
			m.mu.Unlock()
			m.signal()
		}()
	}
}

func ask(e mounts.NFSServer, limit time.Duration) answer {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	took, err := sunrpc.Null(ctx, e.Network, e.Address, sunrpc.ProgramNFS, e.Version)
	if err != nil {
		took = time.Since(began)
	}
	if sunrpc.Alive(err) {
		return answer{known: true, seconds: took.Seconds()}
	}
	if sunrpc.Local(err) {
		return answer{}
	}
	return answer{known: true, errno: sunrpc.ErrorName(err), reached: sunrpc.Reached(err)}
}

// answerOf returns the server's last answer.
func (m *Mountstat) answerOf(e *mounts.NFSServer) answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answers[*e]
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
	if !slices.ContainsFunc(m.superblocks, func(sb *superblock) bool { return sb.checked.NFS() }) {
		return
	}
	all, err := mounts.ReadMountStats(m.mountstats)
	m.sayOnce(&m.statsErr, err)
	at := make(map[string]*mounts.NFSStats, len(all))
	for i := range all {
		at[all[i].Mountpoint] = &all[i]
	}
	for _, sb := range m.superblocks {
		sb.traffic.stats = nil
		if !sb.checked.NFS() || sb.namespace != nil {
			continue
		}
		if stats := at[sb.checked.Mountpoint]; stats != nil {
			sb.traffic.update(stats, now)
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

func (m *Mountstat) serverFields(sb *superblock, fields map[string]any) {
	if sb.remote != nil {
		if a := m.answerOf(sb.remote); a.answered() {
			fields["server_rpc_seconds"] = a.seconds
		} else if a.known {
			fields["server_rpc_errno"] = a.errno
		}
	}
	t := &sb.traffic
	if t.stats == nil {
		return
	}
	fields["nfs_age_seconds"] = t.stats.Age
	fields["nfs_read_bytes"] = t.stats.Bytes.ServerRead
	fields["nfs_written_bytes"] = t.stats.Bytes.ServerWritten
	fields["nfs_retransmissions"] = t.stats.Operations.Retransmissions()
	fields["nfs_timeouts"] = t.stats.Operations.MajorTimeouts
	fields["nfs_backlog"] = t.stats.Transport.Backlog
	fields["nfs_unanswered"] = t.unanswered()
	fields["nfs_last_reply_seconds_ago"] = time.Since(t.lastReply).Seconds()
}

// emitServers makes one metric per NFS server: it says at once what 300 mounts
// have in common.
func (m *Mountstat) emitServers(acc telegraf.Accumulator) {
	type summary struct {
		mounts, superblocks, faults, hung int64
		answer                            answer
	}
	servers := make(map[string]*summary)
	for _, sb := range m.superblocks {
		if sb.remote == nil {
			continue
		}
		name := sb.remote.Address.Addr().String()
		s := servers[name]
		if s == nil {
			s = &summary{}
			servers[name] = s
		}
		s.superblocks++
		s.mounts += int64(len(sb.mounts))
		if sb.found.code.Fault() {
			s.faults += int64(len(sb.mounts))
		}
		if sb.hung() {
			s.hung += int64(len(sb.mounts))
		}
		// Of several ports and protocols the worst counts.
		if a := m.answerOf(sb.remote); a.known && (a.errno != "" || s.answer.errno == "" && a.seconds > s.answer.seconds) {
			s.answer = a
		}
	}
	for name, s := range servers {
		fields := map[string]any{
			"mounts":      s.mounts,
			"superblocks": s.superblocks,
			"faults":      s.faults,
			"hung":        s.hung,
		}
		if s.answer.errno != "" {
			fields["rpc_errno"] = s.answer.errno
		} else if s.answer.known {
			fields["rpc_seconds"] = s.answer.seconds
		}
		acc.AddGauge("mountstat_server", fields, map[string]string{"server": name})
	}
}
