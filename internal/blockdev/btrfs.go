package blockdev

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Btrfs returns where sysfs has the btrfs file system that the device is a part of, or nothing.
func (t Tree) Btrfs(device string) string {
	parts, _ := filepath.Glob(filepath.Join(string(t), "fs/btrfs/*/devices", device))
	if len(parts) == 0 {
		return ""
	}
	return filepath.Dir(filepath.Dir(parts[0]))
}

// BtrfsErrors returns how many errors btrfs has counted on the devices of the file system
// that sysfs has in a directory, of all kinds, since it was made. It returns false where sysfs does
// not say, as before Linux 5.14 (btrfs_devinfo_error_stats_show, fs/btrfs/sysfs.c).
func BtrfsErrors(directory string) (sum int64, found bool) {
	if directory == "" {
		return 0, false
	}
	devices, _ := os.ReadDir(filepath.Join(directory, "devinfo"))
	for _, device := range devices {
		content, err := procfs.ReadText(filepath.Join(directory, "devinfo", device.Name(), "error_stats"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(content) {
			_, count, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseInt(count, 10, 64); err == nil {
				sum, found = sum+n, true
			}
		}
	}
	return sum, found
}
