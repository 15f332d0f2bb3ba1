package mounts

import (
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
)

// Devices makes the tag "device" as Telegraf's disk input makes it: the source without
// /dev/, and the kernel's name for /dev/root and for what the device mapper has made.
// It asks only sysfs, and no device.
type Devices struct {
	Sys string // where sysfs is mounted; empty: that is not asked
}

// Tag returns the tag of a mount, which is printable. Where the kernel's name can't be
// found, the tag is the name in the mount table.
func (d Devices) Tag(m *Mount) string {
	source := m.Source
	switch mapped, found := strings.CutPrefix(source, "/dev/mapper/"); {
	case d.Sys == "":
	case found:
		if name := blockdev.Tree(d.Sys).NameByNumber(m.Major, m.Minor); name != "" {
			source = name
		} else if name := blockdev.Tree(d.Sys).NameByMapping(mapped); name != "" { // btrfs has a number of its own
			source = name
		}
	case source == "/dev/root":
		if name := blockdev.Tree(d.Sys).NameByNumber(m.Major, m.Minor); name != "" {
			source = name
		}
	}
	return SourceTag(source)
}

// SourceTag is the tag for a source that is not mounted.
func SourceTag(source string) string { return Printable(strings.ReplaceAll(source, "/dev/", "")) }
