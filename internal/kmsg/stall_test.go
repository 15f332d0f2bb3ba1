package kmsg

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stallsIn are those in lines, which come 1 ms after one another.
func stallsIn(lines string) (found []Stall) {
	var stalls Stalls
	for i, line := range strings.Split(lines, "\n") {
		if stall, ok := stalls.Next(Record{Text: line, Uptime: time.Duration(i) * time.Millisecond}); ok {
			found = append(found, stall)
		}
	}
	return found
}

func TestStalls_Next(t *testing.T) {
	for name, c := range map[string]struct {
		lines string
		want  []Stall
	}{
		"a soft lockup": {`watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [telegraf:1234]
Modules linked in: ext4 jbd2
CPU: 3 PID: 1234 Comm: telegraf Not tainted 5.14.0-427.el9.x86_64 #1
RIP: 0010:__fsnotify_update_child_dentry_flags.part.0+0x9a/0x110
Call Trace:
 fsnotify_recalc_mask+0x52/0x70`, []Stall{{Function: "__fsnotify_update_child_dentry_flags.part.0", Comm: "telegraf"}}},
		"an old one": {`NMI watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [a:b c:12]
RIP: 0010:[<ffffffff8122d2c0>]  [<ffffffff8122d2c0>] something+0x10/0x20
Call Trace:
 [<ffffffff8122d2c0>] ? d_walk+0xb0/0x2c0
 [<ffffffff8122d2c0>] shrink_dcache_parent+0x30/0x90`, []Stall{{Function: "shrink_dcache_parent", Comm: "a:b c"}}},
		"a hung task": {`INFO: task systemd:1 blocked for more than 122 seconds.
      Not tainted 6.1.0 #1
Call Trace:
 __schedule+0x3c1/0x8e0
 d_walk+0x30/0x2a0
 d_walk+0x30/0x2a0`, []Stall{{Function: "d_walk", Comm: "systemd"}}},
		"rcu on arm64": {`rcu: INFO: rcu_sched self-detected stall on CPU
CPU: 1 UID: 0 PID: 77 Comm: kubelet Kdump: loaded Tainted: G
pc : fsnotify_set_children_dentry_flags+0x5c/0x110
lr : fsnotify_recalc_mask+0x5c/0x110`, []Stall{{Function: "fsnotify_set_children_dentry_flags", Comm: "kubelet"}}},
		"what is left on the stack": {`watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [x:1]
 ? d_walk+0x30/0x2a0`, nil},
		"another fault": {`INFO: task cp:12 blocked for more than 122 seconds.
 io_schedule+0x46/0x70
 fsnotify_handle_event+0x1/0x2`, nil},
		"no report":    {" d_walk+0x30/0x2a0", nil},
		"one too late": {"watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [x:1]" + strings.Repeat("\n y+0x1/0x2", maxReport) + "\n d_walk+0x30/0x2a0", nil},
	} {
		assert.Equal(t, c.want, stallsIn(c.lines), name)
	}
}

func FuzzStalls(f *testing.F) {
	f.Add("watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [telegraf:1234]", "RIP: 0010:d_walk+0x9a/0x110")
	f.Add("INFO: task a:1 blocked for more than 1 seconds.", " [<ffffffff8122d2c0>] d_walk+0xb0/0x2c0")
	f.Add("rcu: INFO: rcu_sched self-detected stall on CPU", "CPU: 1 PID: 7 Comm:  Comm: Not tainted d_walk+0x")
	f.Fuzz(func(t *testing.T, first, second string) {
		var stalls Stalls
		_, found := stalls.Next(Record{Text: first})
		require.False(t, found, "the first line is no report yet")
		if stall, found := stalls.Next(Record{Text: second}); found {
			require.Contains(t, second, stall.Function)
			require.NotEmpty(t, stall.Function)
		}
	})
}
