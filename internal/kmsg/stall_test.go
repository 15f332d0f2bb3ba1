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
		"an old one, in the instruction pointer": {`NMI watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [systemd:1]
CPU: 1 PID: 1 Comm: systemd Not tainted 3.10.0-693.el7.x86_64 #1
RIP: 0010:[<ffffffff81244f1c>]  [<ffffffff81244f1c>] __fsnotify_update_child_dentry_flags+0xac/0xf0
RSP: 0018:ffff88017a4cbe38  EFLAGS: 00000246
Call Trace:
 [<ffffffff81246062>] fsnotify_add_mark_locked+0x112/0x160`, []Stall{{Function: "__fsnotify_update_child_dentry_flags", Comm: "systemd"}}},
		"under Xen": {`watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [systemd:1]
RIP: e030:d_walk+0x9a/0x110`, []Stall{{Function: "d_walk", Comm: "systemd"}}},
		// https://mail.spinics.net/lists/linux-fsdevel/msg211870.html
		"200 million of them": {`watchdog: BUG: soft lockup - CPU#20 stuck for 9s! [inotifywait:9528]
CPU: 20 PID: 9528 Comm: inotifywait Kdump: loaded Not tainted 5.16.0-rc4.20211208.el8uek.rc1.x86_64 #1
Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.4.1 12/03/2020
RIP: 0010:__fsnotify_update_child_dentry_flags+0xad/0x120
Call Trace:
 <TASK>
 fsnotify_add_mark_locked+0x113/0x160
 inotify_new_watch+0x130/0x190
 inotify_update_watch+0x11a/0x140
 __x64_sys_inotify_add_watch+0xef/0x140
 do_syscall_64+0x3b/0x90
 entry_SYSCALL_64_after_hwframe+0x44/0xae`, []Stall{{Function: "__fsnotify_update_child_dentry_flags", Comm: "inotifywait"}}},
		// Of a patch for fs/cachefiles/namei.c, August 2024.
		"no stall, but a bug found by a walk": {`BUG: Dentry 000000008ad87947{i=7a,n=Dx_1_1.img}  still in use (1) [unmount of ext4 sda]
WARNING: CPU: 4 PID: 359261 at fs/dcache.c:1767 umount_check+0x5d/0x70
CPU: 4 PID: 359261 Comm: umount Not tainted 6.6.0-dirty #25
RIP: 0010:umount_check+0x5d/0x70
Call Trace:
 <TASK>
 d_walk+0xda/0x2b0
 do_one_tree+0x20/0x40
 shrink_dcache_for_umount+0x2c/0x90`, nil},
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
	f.Add("watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [a:1]", "RIP: 0010:[<ffffffff81244f1c>]  [<ffffffff81244f1c>] d_walk+0xac/0xf0")
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
