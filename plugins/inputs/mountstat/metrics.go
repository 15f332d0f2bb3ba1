package mountstat

import (
	"maps"
	"strings"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// counts of mounts per result.
type counts [result.Count]int

// device is the tag of that name, as Telegraf's disk input makes it.
func device(source string) string { return strings.ReplaceAll(source, "/dev/", "") }

// emit makes one metric per mount of a superblock, from what its check found.
func (m *Mountstat) emit(acc telegraf.Accumulator, sb *superblock, f *finding, counts *counts) {
	fields := map[string]any{
		"result":        f.code.String(),
		"result_code":   int64(f.code),
		"hung_seconds":  secondsSince(sb.hungSince),
		"fault_seconds": secondsSince(sb.badSince),
		"recoveries":    sb.recovered,
	}
	for name, value := range map[string]string{
		"errno": f.errno, "failed_check": string(f.check), "cause": string(f.cause), "reason": f.reason, "hangs_in": f.hangsIn(),
	} {
		if value != "" {
			fields[name] = value
		}
	}
	if !sb.lastOK.IsZero() {
		fields["last_ok_seconds_ago"] = secondsSince(sb.lastOK)
	}
	for c, took := range f.seconds {
		fields[string(c)+"_seconds"] = took.Seconds()
	}
	if f.statfs != nil {
		usage(fields, f.statfs)
	}
	if r := sb.report; r != nil && f.code == result.Stuck && r.Outcome != prober.Expired && r.PID != 0 {
		fields["stuck_pid"] = int64(r.PID)
		if waits := m.waitsIn(sb); waits != "" {
			fields["stuck_wchan"] = waits
		}
	}
	if waiting, found := m.fuseWaiting(sb); found {
		fields["fuse_waiting"] = waiting
	}
	m.serverFields(sb, fields)
	m.add(acc, sb, f, fields, counts)
}

func secondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

// add makes one metric per mount of the superblock.
func (m *Mountstat) add(acc telegraf.Accumulator, sb *superblock, f *finding, fields map[string]any, counts *counts) {
	for _, mount := range sb.mounts {
		own, code := fields, f.code
		unexpected := m.expectations.readOnly[mount.Mountpoint]
		if mount != sb.checked || unexpected != nil {
			own = maps.Clone(fields)
		}
		if mount != sb.checked {
			own["shared_with"] = mounts.Printable(sb.checked.Mountpoint)
		}
		if unexpected != nil && sb.namespace == nil {
			own["unexpected_ro"] = true
			if code == result.OK || code == result.Slow {
				code = result.Error
				own["result"], own["result_code"], own["errno"], own["cause"] = code.String(), int64(code), "EROFS", string(readOnly)
				own["fault_seconds"] = secondsSince(unexpected.since)
			}
		}
		counts[code]++
		mode := "rw"
		if mount.ReadOnly() {
			mode = "ro"
		}
		tags := map[string]string{
			"path":   mounts.Printable(mount.Mountpoint),
			"device": mounts.Printable(device(mount.Source)),
			"fstype": mounts.Printable(mount.FSType),
			"mode":   mode,
		}
		if server, found := mount.Option("addr"); found {
			tags["server"] = server
		}
		if sb.namespace != nil && sb.namespace.container != "" {
			tags["container"] = sb.namespace.container
		}
		acc.AddGauge("mountstat", own, tags)
	}
}

// usage adds sizes in the terms of Telegraf's disk input. File systems without
// a size, such as an empty FUSE one, get none.
func usage(fields map[string]any, st *unix.Statfs_t) {
	if st.Blocks == 0 {
		return
	}
	block := st.Frsize // the unit of the block counts, statvfs(3)
	if block == 0 {
		block = st.Bsize
	}
	bytes := func(blocks uint64) int64 { return int64(blocks) * block }
	used, free := st.Blocks-st.Bfree, st.Bavail
	fields["total"] = bytes(st.Blocks)
	fields["free"] = bytes(free)
	fields["used"] = bytes(used)
	fields["used_percent"] = percent(used, free)
	fields["inodes_total"] = int64(st.Files)
	fields["inodes_free"] = int64(st.Ffree)
	fields["inodes_used"] = int64(st.Files - st.Ffree)
	fields["inodes_used_percent"] = percent(st.Files-st.Ffree, st.Ffree)
}

func percent(used, free uint64) float64 {
	if used+free == 0 {
		return 0
	}
	return float64(used) / (float64(used) + float64(free)) * 100
}

func (m *Mountstat) summarise(acc telegraf.Accumulator, counts *counts, began time.Time) {
	fields := map[string]any{
		"superblocks": int64(len(m.superblocks)),
		"hidden":      int64(m.hidden),
		"malformed":   int64(m.malformed),
	}
	var reported, faults int
	for code, n := range counts {
		fields[result.Code(code).String()] = int64(n)
		reported += n
		if result.Code(code).Fault() {
			faults += n
		}
	}
	fields["mounts"] = int64(reported)
	fields["faults"] = int64(faults)
	if n, found := m.hungTasks(); found {
		fields["hung_task_detect_count"] = n
	}
	m.emitBlocked(acc, fields)
	fields["gather_seconds"] = time.Since(began).Seconds()
	acc.AddGauge("mountstat_summary", fields, nil)
}
