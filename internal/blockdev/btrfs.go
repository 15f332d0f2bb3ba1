package blockdev

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// BtrfsErrors returns how many errors btrfs has counted on the devices of the file system
// that this one is a part of, of all kinds and since its making; false where it does not say,
// as before Linux 5.14 (btrfs_devinfo_error_stats_show, fs/btrfs/sysfs.c).
func (t Tree) BtrfsErrors(device string) (sum int64, found bool) {
	parts, _ := filepath.Glob(filepath.Join(string(t), "fs/btrfs/*/devices", device))
	for _, part := range parts {
		files, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(part)), "devinfo/*/error_stats"))
		for _, file := range files {
			content, err := procfs.ReadText(file)
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
	}
	return sum, found
}
