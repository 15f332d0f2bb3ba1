package blockdev

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// F2FSStopped returns what in sysfs says that f2fs on the device has stopped, after an error or
// because it was told to, and answers EIO; or nothing
// (Documentation/ABI/testing/sysfs-fs-f2fs, cp_status since Linux 6.1, sb_status since 5.11).
func (t Tree) F2FSStopped(device string) string {
	for _, status := range []struct {
		file string
		flag uint64
	}{
		{"stat/cp_status", 0x8},  // CP_ERROR_FLAG
		{"stat/sb_status", 0x40}, // SBI_IS_SHUTDOWN
	} {
		content, err := procfs.ReadText(filepath.Join(string(t), "fs/f2fs", device, status.file))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(content, 16, 64); err == nil && n&status.flag != 0 {
			return fmt.Sprintf("%s: %s is %#x", device, status.file, n)
		}
	}
	return ""
}
