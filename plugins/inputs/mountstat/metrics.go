package mountstat

import (
	"maps"
	"math"
	"strings"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/containers"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// counts of mounts per result.
type counts [result.Count]int

// emit makes one metric per mount of a target, from what its check found.
func (m *Mountstat) emit(acc telegraf.Accumulator, t *target, f *finding, counts *counts) {
	clear(m.fields)
	m.addFields(m.fields, t, f)
	m.add(acc, t, f, m.fields, counts)
}

// addFields adds the fields that all mounts of a target have.
func (m *Mountstat) addFields(fields map[string]any, t *target, f *finding) {
	fields["result"], fields["result_code"] = f.code.String(), int64(f.code)
	t.AddTo(fields)
	for _, text := range [...]struct{ name, value string }{
		{"errno", f.errno}, {"failed_check", string(f.check)}, {"cause", string(f.cause)}, {"reason", f.reason}, {"hangs_in", f.hangsIn()},
	} {
		if text.value != "" {
			fields[text.name] = text.value
		}
	}
	for _, made := range f.timings {
		fields[secondsOf[made.check]] = made.took.Seconds()
	}
	if f.statfs != nil {
		usage(fields, f.statfs, t.Probed.ReadOnly())
	}
	if r := t.report; r != nil && f.code == result.Stuck && r.Outcome != prober.Expired && r.PID != 0 {
		fields["stuck_pid"], fields["stuck_state"] = int64(r.PID), r.Wait.String()
		if t.waits != "" {
			fields["stuck_wchan"] = t.waits
		}
	}
	if f.code.Fault() {
		culpritOf(t, f).daemonFields(fields)
		if f.cause == result.FanotifySilent {
			m.guards.addTo(fields)
		}
	}
	if label := m.labelOf(t.Probed); label != "" {
		fields["device_label"] = label
	}
	t.requests.addTo(fields, "fuse_waiting")
	t.fsErrors.addTo(fields, "fs_errors")
	t.kernelErrors.addTo(fields, "kernel_errors")
	t.serverFields(fields)
}

// add makes one metric per mount of the target.
func (m *Mountstat) add(acc telegraf.Accumulator, t *target, f *finding, fields map[string]any, counts *counts) {
	for _, mount := range t.Mounts {
		own, code := fields, f.code
		unexpected := m.expectations.readOnly[mount.Mountpoint]
		volume, ofKubelet := containers.VolumeAt(mount.Mountpoint)
		if mount != t.Probed || unexpected != nil || mount.SourceDeleted() || ofKubelet {
			own = maps.Clone(fields)
		}
		if ofKubelet {
			volume.AddTo(own, mount.Source, m.host.OwnerOfPod(volume.PodUID))
		}
		if mount != t.Probed {
			own["shared_with"] = mounts.Printable(t.Probed.Mountpoint)
		}
		if unexpected != nil && t.namespace == nil {
			own["unexpected_ro"] = true
			if code == result.OK || code == result.Slow {
				code = result.Error
				own["result"], own["result_code"], own["errno"], own["cause"] = code.String(), int64(code), "EROFS", string(readOnly)
				own["fault_seconds"] = fault.SecondsSince(unexpected.since)
				if why := joinReasons(f.reason, t.quote(quoted[readOnly]...)); why != "" {
					own["reason"] = why
				}
			}
		}
		if mount.SourceDeleted() && (code == result.OK || code == result.Slow) {
			code = result.Stale
			own["result"], own["result_code"], own["cause"] = code.String(), int64(code), string(result.SourceDeleted)
		}
		counts[code]++
		clear(m.tags)
		addTags(m.tags, mount)
		if t.namespace != nil && t.namespace.container != "" {
			m.tags["container"] = t.namespace.container
		}
		acc.AddGauge("mountstat", own, m.tags)
		if m.DiskMetrics && t.namespace == nil {
			m.addDisk(acc, mount, own)
		}
	}
}

func mountTags(mount *mounts.Mount) map[string]string {
	tags := make(map[string]string)
	addTags(tags, mount)
	return tags
}

func addTags(tags map[string]string, mount *mounts.Mount) {
	tags["path"] = mounts.Printable(mount.Mountpoint)
	if mount.ID == 0 {
		return
	}
	tags["device"], tags["fstype"], tags["mode"] = mount.Device, mounts.Printable(mount.FSType), "rw"
	if mount.ReadOnly() {
		tags["mode"] = "ro"
	}
	if server, found := mount.Option("addr"); found {
		tags["server"] = server
	} else if all := mount.Servers(); len(all) > 0 {
		tags["server"] = all[0].Address.Addr().String()
	}
}

// usage adds sizes in the terms of Telegraf's disk input. File systems without a size, such
// as an empty FUSE one, get none. Numbers that make no sense are left out: s3fs and CephFS have
// some that are no numbers at all. What is full by construction, such as an image, has no
// percentages.
func usage(fields map[string]any, st *unix.Statfs_t, image bool) {
	block := uint64(st.Frsize) // the unit of the block counts, statvfs(3)
	if block == 0 {
		block = uint64(st.Bsize)
	}
	if st.Blocks == 0 || block == 0 || st.Blocks > math.MaxInt64/block {
		return
	}
	total := st.Blocks
	fields["total"] = int64(total * block)
	if st.Bfree <= total {
		used, free := total-st.Bfree, st.Bavail
		if free > math.MaxInt64 { // below zero: less is left than is reserved for root
			free = 0
		}
		free = min(free, st.Bfree)
		fields["free"], fields["used"] = int64(free*block), int64(used*block)
		if !image || st.Bfree > 0 {
			fields["used_percent"] = percent(used, free)
		}
	}
	if st.Files > math.MaxInt64 {
		return
	}
	fields["inodes_total"] = int64(st.Files)
	if st.Ffree <= st.Files {
		fields["inodes_free"], fields["inodes_used"] = int64(st.Ffree), int64(st.Files-st.Ffree)
		if !image || st.Ffree > 0 {
			fields["inodes_used_percent"] = percent(st.Files-st.Ffree, st.Ffree)
		}
	}
}

// addDisk adds a metric as Telegraf's disk input makes it, for a mount whose sizes are
// among the fields.
func (m *Mountstat) addDisk(acc telegraf.Accumulator, mount *mounts.Mount, fields map[string]any) {
	sizes := make(map[string]any, 8)
	for _, name := range [...]string{"total", "free", "used", "used_percent", "inodes_total", "inodes_free", "inodes_used", "inodes_used_percent"} {
		if value, there := fields[name]; there {
			sizes[name] = value
		}
	}
	if len(sizes) == 0 {
		return
	}
	tags := mountTags(mount)
	delete(tags, "server")
	if device, there := tags["device"]; there { // the disk input has it as the mount table does
		tags["device"] = strings.ReplaceAll(device, " ", `\040`)
	}
	if label := m.labelOf(mount); label != "" {
		tags["label"] = label
	}
	acc.AddGauge("disk", sizes, tags)
}

// labelOf is the name that was given to a device of the device mapper, as sysfs has it, or else
// the mount table. It is empty for other devices.
func (m *Mountstat) labelOf(mount *mounts.Mount) string {
	if label := blockdev.Tree(m.host.Sys).MappingOf(mount.Device); label != "" {
		return mounts.Printable(label)
	}
	label, mapped := strings.CutPrefix(mount.Source, "/dev/mapper/")
	if !mapped {
		return ""
	}
	return mounts.Printable(label)
}

func percent(used, free uint64) float64 {
	if used+free == 0 {
		return 0
	}
	return float64(used) / (float64(used) + float64(free)) * 100
}

func (m *Mountstat) summarize(acc telegraf.Accumulator, counts *counts, began time.Time) {
	fields := map[string]any{
		"superblocks": int64(m.superblocks),
		"hidden":      int64(m.hidden),
		"malformed":   int64(m.table.Malformed),
	}
	if m.view.Snapshot != nil {
		fields["table_age_seconds"] = m.view.Age.Seconds()
	}
	if m.view.Hindrance != nil {
		fields["table_reason"] = mounts.Printable(m.view.Hindrance.Error())
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
	m.hungTaskFields(fields)
	scan, err := m.blocked.scan(m.targets, m.automounts.there)
	m.said.Error("blocked tasks", err)
	fields["blocked"], fields["blocked_helpers"] = int64(len(scan.Tasks)), scan.Helpers
	if m.blocked.emit(acc, &scan, &m.inventory, m.BlockedTop) {
		fields["blocked_reason"] = "the open files of some tasks can't be seen: " + openfiles.Hindrance()
	}
	fields["gather_seconds"] = time.Since(began).Seconds()
	acc.AddGauge("mountstat_summary", fields, nil)
}
