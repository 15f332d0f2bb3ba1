package mounts

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Devices makes the tag "device" as Telegraf's disk input makes it: the source without
// /dev/, and the kernel's name for /dev/root and for what the device mapper has made.
// It asks sysfs alone, and no device.
type Devices struct {
	Sys string // where sysfs is mounted; empty: that is not asked
}

// Tag returns the tag of a mount, which is printable. Where the kernel's name can't be
// found, that of the mount table stays.
func (d Devices) Tag(m *Mount) string {
	source := m.Source
	switch mapped, found := strings.CutPrefix(source, "/dev/mapper/"); {
	case d.Sys == "":
	case found:
		if name := d.byNumber(m.Major, m.Minor); name != "" {
			source = name
		} else if name := d.byMapping(mapped); name != "" { // btrfs has a number of its own
			source = name
		}
	case source == "/dev/root":
		if name := d.byNumber(m.Major, m.Minor); name != "" {
			source = name
		}
	}
	return SourceTag(source)
}

// SourceTag is the tag for a source which is not mounted.
func SourceTag(source string) string { return Printable(strings.ReplaceAll(source, "/dev/", "")) }

// byNumber is the kernel's name of a block device.
func (d Devices) byNumber(major, minor int) string {
	target, err := os.Readlink(filepath.Join(d.Sys, "dev/block", strconv.Itoa(major)+":"+strconv.Itoa(minor)))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// byMapping looks for the device that the device mapper knows under a name
// (Documentation/ABI/testing/sysfs-block-dm).
func (d Devices) byMapping(name string) string {
	all, _ := filepath.Glob(filepath.Join(d.Sys, "block/dm-*/dm/name"))
	for _, file := range all {
		if content, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(content)) == name {
			return filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
	}
	return ""
}
