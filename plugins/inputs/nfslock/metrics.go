package nfslock

import (
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// counts of superblocks per result.
type counts [result.Count]int64

func secondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

// emit makes one metric per mount of a superblock.
func (n *Nfslock) emit(acc telegraf.Accumulator, sb *superblock, f *finding, locks *lockTable, counts *counts) {
	counts[f.code]++
	fields := map[string]any{
		"result":        f.code.String(),
		"result_code":   int64(f.code),
		"diagnosis":     string(f.diagnosis),
		"hung_seconds":  secondsSince(sb.hungSince),
		"fault_seconds": secondsSince(sb.badSince),
		"recoveries":    sb.recovered,
	}
	if sb.scope != scopeUnknown {
		fields["lock_scope"] = string(sb.scope)
	}
	if f.reason != "" {
		fields["reason"] = mounts.Printable(f.reason)
	}
	if !sb.lastOK.IsZero() {
		fields["last_ok_seconds_ago"] = secondsSince(sb.lastOK)
	}
	switch f.end {
	case hung:
		fields["hangs_in"] = f.call
		if wait := firstFunction(sb.waits); wait != "" {
			fields["waits_in"] = wait
		}
	case failed:
		fields["failed_call"], fields["errno"] = f.call, result.ErrnoName(f.errno)
	case passed:
		fields["flock"], fields["read_lock"] = f.flocked, f.readOnly
	}
	for field, took := range f.seconds {
		fields[field] = took.Seconds()
	}
	if f.holder != nil {
		f.holder.fields(fields)
	}
	if sb.leftover {
		fields["leftover"] = true
	}
	if r := f.report; r != nil && f.code == result.Stuck && r.Outcome != prober.Expired && r.PID != 0 {
		fields["stuck_pid"] = int64(r.PID)
	}
	if locks.known {
		fields["locks_held"], fields["locks_waiting"] = locks.held[sb.id], locks.waiting[sb.id]
		n.waiterFields(locks.oldest[sb.id], fields)
	}
	n.blockedFields(sb, fields)
	for _, mount := range sb.mounts {
		tags := map[string]string{"path": mounts.Printable(mount.Mountpoint), "fstype": mounts.Printable(mount.FSType)}
		for tag, option := range map[string]string{"server": "addr", "version": "vers"} {
			if value, found := mount.Option(option); found && value != "" {
				tags[tag] = value
			}
		}
		acc.AddGauge("nfslock", fields, tags)
	}
}

// fields names the holder. A pid of another host has no meaning here, but there
// it has.
func (h *holder) fields(fields map[string]any) {
	fields["holder_lock"] = "read"
	if h.write {
		fields["holder_lock"] = "write"
	}
	if h.pid != 0 && h.pid != -1 {
		fields["holder_pid"], fields["holder_remote"] = max(h.pid, -h.pid), h.pid < 0
	}
}

// firstFunction is the name of the function on top of a stack, or a wchan. On some
// architectures, arm64 for one, the scheduler's are on top of all. Kernels before
// 4.15 show an address where later ones show [<0>].
func firstFunction(waits string) string {
	for line := range strings.Lines(waits) {
		if _, function, found := strings.Cut(line, ">] "); found {
			line = function
		}
		name, _, _ := strings.Cut(line, "+")
		switch name = strings.TrimSpace(name); name {
		case "", "0", "0xffffffffffffffff", "__switch_to", "__schedule", "schedule":
		default:
			return name
		}
	}
	return ""
}

// fields adds the time of the answer, or why there was none.
func (l link) fields(name string, fields map[string]any) {
	switch {
	case !l.asked:
	case l.errno != "":
		fields[name+"_errno"] = l.errno
	default:
		fields[name+"_seconds"] = l.elapsed.Seconds()
	}
}

// emitServers makes one metric per server: it says at once what 300 mounts have
// in common.
func (n *Nfslock) emitServers(acc telegraf.Accumulator) {
	type sums struct{ mounts, superblocks, faults, hung int64 }
	by := make(map[*chain]sums, len(n.chains))
	for _, sb := range n.superblocks {
		if sb.chain == nil {
			continue
		}
		s := by[sb.chain]
		s.superblocks++
		s.mounts += int64(len(sb.mounts))
		if sb.found.code.Fault() {
			s.faults++
		}
		if sb.hung() {
			s.hung++
		}
		by[sb.chain] = s
	}
	for c, s := range by {
		fields := map[string]any{"mounts": s.mounts, "superblocks": s.superblocks, "faults": s.faults, "hung": s.hung}
		c.links.nfs.fields("nfs", fields)
		c.links.rpcbind.fields("rpcbind", fields)
		c.links.nlm.fields("nlm", fields)
		c.links.nsm.fields("nsm", fields)
		n.kernel.serverFields(c, fields)
		acc.AddGauge("nfslock_server", fields, c.tags())
	}
}

func (c *chain) tags() map[string]string {
	tags := map[string]string{"server": c.address.String()}
	const usual = 2049
	if c.port != usual && c.port != 0 {
		tags["port"] = strconv.Itoa(int(c.port))
	}
	if c.network != "tcp" {
		tags["proto"] = c.network
	}
	return tags
}

// emitHost makes the metric of this host.
func (n *Nfslock) emitHost(acc telegraf.Accumulator, locks *lockTable, counts *counts) {
	n.sayOnce(&n.blockedErr, n.scanBlocked(n.began))
	fields := map[string]any{
		"mounts":                locks.remote + locks.localLocking,
		"mounts_remote_locking": locks.remote,
		"mounts_local_locking":  locks.localLocking,
	}
	if locks.known {
		fields["locks_held"], fields["locks_waiting"] = locks.nfsHeld, locks.nfsWaiting
		fields["host_locks_held"], fields["host_locks_waiting"] = locks.hostHeld, locks.hostWaiting
		n.waiterFields(locks.oldestOfAll, fields)
	}
	if len(n.superblocks) > 0 {
		var faults int64
		for code, count := range counts {
			fields[result.Code(code).String()] = count
			if result.Code(code).Fault() {
				faults += count
			}
		}
		fields["faults"], fields["superblocks"] = faults, int64(len(n.superblocks))
		n.blockedFields(nil, fields)
		n.kernel.fields(fields)
		fields["gather_seconds"] = time.Since(n.began).Seconds()
	}
	n.local.links.rpcbind.fields("rpcbind", fields)
	n.local.links.nsm.fields("statd", fields)
	acc.AddGauge("nfslock_host", fields, nil)
}
