package mountstat

import (
	"path/filepath"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// hungTaskFields adds what the kernel says about hung tasks.
func (m *Mountstat) hungTaskFields(fields map[string]any) {
	if n, err := procfs.ReadNumber(filepath.Join(m.host.Proc, "sys/kernel/hung_task_detect_count")); err == nil {
		fields["hung_task_detect_count"] = n
	}
	if m.kernelLog.readable {
		fields["hung_task_helpers"] = m.kernelLog.hungHelpers
	}
}

// panicsOverHungTasks reports whether the kernel panics when a task waits unkillably for
// longer than its limit: kernel.hung_task_panic and kernel.hung_task_timeout_secs,
// Documentation/admin-guide/sysctl/kernel.rst.
func panicsOverHungTasks(proc string) bool {
	sysctl := func(name string) int64 {
		n, _ := procfs.ReadNumber(filepath.Join(proc, "sys/kernel", name))
		return n
	}
	return sysctl("hung_task_panic") > 0 && sysctl("hung_task_timeout_secs") > 0
}

// makesHungTasks reports whether the check can make a hung task of a helper. On a disk that
// does not answer, only a check that reads nothing can't. A write waits unkillably for any disk
// or server, for a frozen one for instance, but not for a FUSE daemon.
func makesHungTasks(c check, mount *mounts.Mount) bool {
	return mount.BlockDevice() && needsDisk(c) || c == checkWrite && !mount.FUSE()
}
