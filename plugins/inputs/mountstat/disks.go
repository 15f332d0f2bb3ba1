package mountstat

import (
	"bytes"
	"fmt"
	"path/filepath"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// disks are the block devices of all targets, and the file systems on them.
type disks struct {
	*kit
	panics    bool             // the kernel does, over hung tasks
	extErrors map[string]int64 // that ext4 has counted, by file of sysfs
	bcachefs  bcachefs
}

// inspect updates what sysfs says about the targets' block devices. This asks none of them.
func (d *disks) inspect(targets []*target, log *kernelLog, now time.Time) {
	tree := blockdev.Tree(d.host.Sys)
	for _, t := range targets {
		if t.namespace != nil || !t.Probed.BlockDevice() {
			continue
		}
		device := t.disk.device
		if device == nil || !device.Unchanged() {
			device, t.disk.btrfs = blockDeviceOf(tree, t.Probed), ""
			if device != nil && t.Probed.FSType == "btrfs" {
				t.disk.btrfs = tree.Btrfs(device.Name)
			}
		}
		if device != nil {
			t.disk.known = device
		}
		before := d.conditionOf(t)
		if t.messages = log.of(t); len(t.messages) > 0 {
			t.disk.mounted = d.mountedSince(t)
		}
		t.disk.blamed = t.newest(kmsg.DeviceError, kmsg.DeviceTimeout).at
		t.disk.counts = false
		if errors := d.fsErrors(t); errors.known && device != nil {
			t.disk.countErrors(errors.n, now)
		}
		t.disk.inspect(device, t.found.code.Fault() && t.found.check == checkDevice, d.letSleep, now)
		if device == nil && t.Probed.Major != 0 && tree.Known() {
			t.disk.state = blockdev.State{Trouble: blockdev.Gone, Says: fmt.Sprintf("%s is not in /sys/dev/block", t.Probed.Superblock())}
		}
		if after := d.conditionOf(t); after != before {
			t.policy, t.plan = d.policyFor(t.Probed, after), nil
		}
	}
}

// conditionOf is the condition that decides now which checks of the target may be made.
func (d *disks) conditionOf(t *target) condition {
	return condition{panics: d.panics, asleep: t.disk.asleep, inUse: t.disk.inUse}
}

// stopped is where sysfs says that f2fs has stopped, or nothing.
func (d *disks) stopped(t *target) string {
	if t.Probed.FSType != "f2fs" || t.namespace != nil || t.disk.known == nil {
		return ""
	}
	return blockdev.Tree(d.host.Sys).F2FSStopped(t.disk.known.Name)
}

// extErrorsGrew reports whether ext4 has counted errors since the last look. An error can have
// turned it read-only, which the kernel does not announce.
func (d *disks) extErrorsGrew(targets []*target) (grew bool) {
	before := d.extErrors
	d.extErrors = make(map[string]int64)
	for _, t := range targets {
		if t.namespace != nil || t.Probed.FSType != "ext4" && t.Probed.FSType != "ext3" {
			continue
		}
		file := d.extErrorsFile(t)
		if count, err := procfs.ReadNumber(file); err == nil {
			d.extErrors[file] = count
			grew = grew || count != before[file]
		}
	}
	return grew
}

// mountedSince is when an ext4 or ext3 was mounted: its journal's thread has run since then. It is zero
// where that does not show. A remount changes nothing.
func (d *disks) mountedSince(t *target) time.Time {
	pid, err := procfs.ReadText(filepath.Join(d.host.Sys, "fs/ext4", t.Probed.Device, "journal_task"))
	if err != nil {
		return time.Time{}
	}
	stat, _ := procfs.Read(filepath.Join(d.host.Proc, pid, "stat"))
	if fields := procfs.StatFields(stat); bytes.Contains(stat, []byte(" (jbd2/")) && len(fields) > procfs.StatStarttime {
		if started, err := procfs.StartedAt(string(fields[procfs.StatStarttime])); err == nil {
			return started
		}
	}
	return time.Time{}
}

// extErrorsFile is where ext4 counts errors, Documentation/ABI/testing/sysfs-fs-ext4.
func (d *disks) extErrorsFile(t *target) string {
	return filepath.Join(d.host.Sys, "fs/ext4", t.Probed.Device, "errors_count")
}

// fsErrors is how many errors the file system has counted.
func (d *disks) fsErrors(t *target) (c count) {
	switch t.Probed.FSType {
	case "btrfs":
		c.n, c.known = blockdev.BtrfsErrors(t.disk.btrfs)
	case "bcachefs":
		c.n, c.known = d.bcachefs.errors[t.ID]
	default:
		c.n, c.known = d.extErrors[d.extErrorsFile(t)]
	}
	return c
}
