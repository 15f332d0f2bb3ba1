package blockdev

import (
	"path/filepath"
	"slices"
)

// NamesInLog returns the names that the kernel's messages have for the device and what it lies
// on: the kernel's own, the addresses of SCSI disks (2:0:0:0), and the controllers of NVMe disks
// (nvme0), which sysfs has as the directories of the disks.
func (d *Device) NamesInLog() (all []string) {
	for device := range d.All() {
		parent := filepath.Dir(device.dir)
		if filepath.Base(parent) == "block" {
			parent = filepath.Dir(parent)
		}
		all = append(all, device.Name, filepath.Base(parent))
	}
	slices.Sort(all)
	return slices.Compact(all) // a partition lies in its disk
}
