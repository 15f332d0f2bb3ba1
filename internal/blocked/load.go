package blocked

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// LoadExcludes reports whether the host's load average rules out that any task
// has been in state D for the given time. It reads only one small file. If it is true,
// a scan would find no such task; otherwise a scan may find some.
//
// A task in D counts as 1 in the load (kernel/sched/loadavg.c). The
// 1-minute average approaches the load every 5 seconds: after 30 s of D it is 0.28 or
// more, after 60 s 0.57. So this is useful only on quiet hosts, where
// it is nearly always true; one busy CPU is enough to make it false. It is false
// for any time shorter than some 10 s.
//
// The load does not count tasks in S, such as those that wait for a FUSE server and
// got no signal, nor those that the freezer has stopped. A container whose
// /proc/loadavg is made up (lxcfs) must not rely on it. procs_blocked of
// /proc/stat is no help: it counts tasks that wait for pages and block devices
// (io_schedule), but not those that wait for the answer of an NFS server or on a
// frozen file system.
func LoadExcludes(proc string, waiting time.Duration) (bool, error) {
	name := filepath.Join(proc, "loadavg")
	content, err := procfs.Read(name)
	if err != nil {
		return false, err
	}
	load, err := parseLoad(content)
	if err != nil {
		return false, fmt.Errorf("%s: %q: %w", name, content, err)
	}
	// LOAD_FREQ is 5 s and a tick; the first sample may have come too early, and
	// that of an idle CPU is counted one period late.
	samples := math.Floor(waiting.Seconds()/5.01) - 1
	least := 1 - math.Pow(1884.0/2048, samples) // EXP_1 of FIXED_1
	const rounding = 0.01                       // of the two digits shown
	return samples > 0 && load+rounding < least, nil
}

// parseLoad returns the 1-minute average of proc_loadavg(5).
func parseLoad(content []byte) (float64, error) {
	word, _, _ := bytes.Cut(content, []byte(" "))
	load, err := strconv.ParseFloat(string(word), 64)
	if err == nil && !(load >= 0 && load <= math.MaxInt32) {
		err = fmt.Errorf("a load of %v makes no sense", load)
	}
	if err != nil {
		return 0, err
	}
	return load, nil
}
