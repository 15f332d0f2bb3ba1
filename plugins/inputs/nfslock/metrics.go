package nfslock

import (
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// counts of targets per result.
type counts [result.Count]int64

// emit makes one metric per mount of a target.
func (n *NFSLock) emit(acc telegraf.Accumulator, t *target, f *finding, locks *lockTable, counts *counts) {
	counts[f.code]++
	fields := map[string]any{
		"result":      f.code.String(),
		"result_code": int64(f.code),
		"diagnosis":   string(f.diagnosis),
	}
	t.AddTo(fields)
	if t.scope != scopeUnknown {
		fields["lock_scope"] = string(t.scope)
	}
	if f.reason != "" {
		fields["reason"] = mounts.Printable(f.reason)
	}
	switch f.end {
	case hung:
		fields["hangs_in"] = f.call
		if wait := firstFunction(t.waits); wait != "" {
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
	t.leaseFields(fields)
	if t.leftover {
		fields["leftover"] = true
	}
	if f.code == result.Stuck && f.report.PID != 0 {
		fields["stuck_pid"], fields["stuck_state"] = int64(f.report.PID), f.report.Wait.String()
	}
	if locks.known {
		fields["locks_held"], fields["locks_waiting"] = locks.held[t.superblock], locks.waiting[t.superblock]
		n.waiterFields(locks.oldest[t.superblock], fields)
	}
	n.blockedFields(t, fields)
	for _, mount := range t.Mounts {
		tags := map[string]string{"path": mounts.Printable(mount.Mountpoint), "fstype": mounts.Printable(mount.FSType)}
		for tag, option := range map[string]string{"server": "addr", "version": "vers"} {
			if value, found := mount.Option(option); found && value != "" {
				tags[tag] = value
			}
		}
		acc.AddGauge("nfslock", fields, tags)
	}
}

// fields adds the holder. A pid of another host has no meaning here, but on that host it
// does.
func (h *holder) fields(fields map[string]any) {
	fields["holder_lock"] = "read"
	if h.write {
		fields["holder_lock"] = "write"
	}
	if h.pid != 0 && h.pid != -1 {
		fields["holder_pid"], fields["holder_remote"] = max(h.pid, -h.pid), h.pid < 0
	}
	if h.host != "" {
		fields["holder_host"] = h.host
	}
}

// firstFunction is the name of the function on top of a stack, or a wchan. On some
// architectures, such as arm64, functions of the scheduler are on top of it and are skipped.
// Kernels before 4.15 show an address where later ones show [<0>].
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

// emitServers makes one metric per server: it shows at once what 300 mounts have
// in common.
func (n *NFSLock) emitServers(acc telegraf.Accumulator) {
	all := make(map[*lockServer]*fault.Sums, len(n.servers))
	for _, t := range n.targets {
		if t.server == nil {
			continue
		}
		s := all[t.server]
		if s == nil {
			s = &fault.Sums{}
			all[t.server] = s
		}
		s.Add(len(t.Mounts), t.superblock, t.found.code, &t.History)
	}
	for server, s := range all {
		fields := s.Fields()
		server.nfs.AddTo(fields, "nfs")
		server.rpcbind.AddTo(fields, "rpcbind")
		server.nlm.AddTo(fields, "nlm")
		server.nsm.AddTo(fields, "nsm")
		n.kernel.serverFields(server, fields)
		acc.AddGauge("nfslock_server", fields, server.Tags())
	}
}

// emitHost makes the metric of this host.
func (n *NFSLock) emitHost(acc telegraf.Accumulator, locks *lockTable, counts *counts) {
	fields := make(map[string]any)
	if n.table != nil {
		fields["mounts"], fields["mounts_remote_locking"], fields["mounts_local_locking"] = locks.remote+locks.localLocking, locks.remote, locks.localLocking
	}
	if locks.known {
		fields["host_locks_held"], fields["host_locks_waiting"] = locks.hostHeld, locks.hostWaiting
	}
	if locks.known && n.table != nil {
		fields["locks_held"], fields["locks_waiting"] = locks.nfsHeld, locks.nfsWaiting
		n.waiterFields(locks.oldestOfAll, fields)
	}
	if len(n.targets) > 0 {
		var faults int64
		for code, count := range counts {
			fields[result.Code(code).String()] = count
			if result.Code(code).Fault() {
				faults += count
			}
		}
		superblocks := make(map[string]bool)
		for _, t := range n.targets {
			superblocks[t.superblock] = true
		}
		fields["faults"], fields["superblocks"] = faults, int64(len(superblocks))
		n.blockedFields(nil, fields)
		n.kernel.fields(fields)
		fields["gather_seconds"] = time.Since(n.began).Seconds()
	}
	n.local.rpcbind.AddTo(fields, "rpcbind")
	n.local.nsm.AddTo(fields, "statd")
	if len(fields) > 0 {
		acc.AddGauge("nfslock_host", fields, nil)
	}
}
