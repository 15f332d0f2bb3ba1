package mountstat

import (
	"path/filepath"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// hungTasks counts the kernel's reports of hung tasks that are vfsprobe's helpers.
type hungTasks struct {
	log     *kmsg.Log
	denied  bool // the log can't be opened
	helpers int64
}

// read takes what is new in the kernel's log.
func (h *hungTasks) read() error {
	if h.log == nil && !h.denied {
		log, err := kmsg.Open(kmsg.Device)
		h.log, h.denied = log, err != nil // doctor says what it takes
	}
	if h.log == nil {
		return nil
	}
	return h.log.Read(func(r kmsg.Record) {
		comm, found := kmsg.ParseHungTask(r.Text)
		if r.Facility == 0 && found && strings.HasPrefix(comm, prober.HelperPrefix) {
			h.helpers++
		}
	})
}

// hungTaskFields adds what the kernel says about hung tasks.
func (m *Mountstat) hungTaskFields(fields map[string]any) {
	if n, err := procfs.ReadNumber(filepath.Join(m.host.Proc, "sys/kernel/hung_task_detect_count")); err == nil {
		fields["hung_task_detect_count"] = n
	}
	m.said.Error("kernel log", m.hungTasks.read())
	if m.hungTasks.log != nil {
		fields["hung_task_helpers"] = m.hungTasks.helpers
	}
}

// panicsOverHungTasks reports whether the kernel panics when a task waits unkillably for
// longer than it is patient: kernel.hung_task_panic and kernel.hung_task_timeout_secs,
// Documentation/admin-guide/sysctl/kernel.rst.
func (m *Mountstat) panicsOverHungTasks() bool {
	sysctl := func(name string) int64 {
		n, _ := procfs.ReadNumber(filepath.Join(m.host.Proc, "sys/kernel", name))
		return n
	}
	return sysctl("hung_task_panic") > 0 && sysctl("hung_task_timeout_secs") > 0
}

// makesHungTasks reports whether the check can make a hung task of a helper. On a disk that
// does not answer only what reads nothing can't; and a write waits unkillably for any disk or
// server, a frozen one for instance, but for a FUSE daemon.
func makesHungTasks(c check, mount *mounts.Mount) bool {
	return mount.BlockDevice() && needsDisk(c) || c == checkWrite && !mount.FUSE()
}
