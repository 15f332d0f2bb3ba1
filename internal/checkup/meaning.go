package checkup

import (
	"fmt"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// meaning is what a cause or diagnosis says, in one line. The inputs' README
// files have the evidence behind each; a test compares the lists.
func meaning(cause string) string {
	switch cause {
	case "server_unreachable":
		return "no connection to the NFS port of the server: look at the server, the network, firewalls"
	case "server_rpc_dead":
		return "the server's host is up, and its NFS service does not answer"
	case "export_hangs":
		return "the server answers, this export does not: look at the file system behind it on the server"
	case "stale_export":
		return "the export or its directory was removed, or its fsid changed: mount it anew"
	case "fuse_daemon_silent":
		return "the FUSE daemon takes requests and does not answer: restart it, or abort the connection in /sys/fs/fuse/connections"
	case "fuse_daemon_dead":
		return "the FUSE daemon has ended: unmount, and mount it anew"
	case "frozen":
		return "writers wait for a thaw (fsfreeze, a snapshot): fsfreeze -u MOUNT"
	case "device_hangs":
		return "the block device does not answer: look at the kernel's log, multipath, the storage"
	case "no_space":
		return "the file system or a quota is full"
	case "read_only":
		return "it is read-only and should not be: look for an error of the file system in the kernel's log"
	case "permission", "denied":
		return "this user may not look: vfsprobe doctor says which capability would help"
	case "io_error":
		return "the file system gives errors: look at the kernel's log"
	case "not_mounted":
		return "it is expected, and not mounted: mount it, or remove it from fstab or the configuration"
	case "statd_down":
		return "this host's rpc.statd does not run: systemctl start rpcbind rpc-statd"
	case "statd_dead_registered":
		return "this host's rpc.statd is dead, though still registered with rpcbind: systemctl restart rpc-statd"
	case "statd_hung":
		return "this host's rpc.statd does not answer: systemctl restart rpc-statd; look for slow DNS"
	case "statd_down_latent":
		return "locks still work, but this host's rpc.statd is down and the server's next restart loses them: systemctl restart rpc-statd"
	case "server_rpcbind_unreachable":
		return "the server's rpcbind, port 111, can't be reached: start it there, open the port"
	case "nlm_unregistered":
		return "the server has no lock service (NLM) registered: start it there"
	case "nlm_unreachable":
		return "the server's lock service (NLM) can't be reached: fix lockd's ports there and open them"
	case "nsm_unreachable":
		return "the server's rpc.statd can't be reached: start it there, open its port"
	case "grace_period":
		return "the server was restarted, and waits for its clients to reclaim their locks: it lasts 90 s by default"
	case "held_elsewhere":
		return "another client holds the lock, or died while it did: end the holder, or clear its locks on the server"
	case "local_only":
		return "locks never leave this host by its mount options, so that they work proves nothing"
	case "no_canary":
		return "there is no file to try a lock on: install -m 666 /dev/null CANARY, or create_canary"
	case "unknown":
		return "it hangs or fails, and all that could be asked answers: look at the kernel's log"
	}
	return ""
}

// evidence is what the fields of a row say beside its cause.
func evidence(m *Metric) string {
	var parts []string
	add := func(format string, arguments ...any) { parts = append(parts, fmt.Sprintf(format, arguments...)) }
	if call := m.text("hangs_in"); call != "" {
		where := ""
		if wait := m.text("waits_in"); wait != "" {
			where = " (" + wait + ")"
		}
		add("hangs in %s%s", call, where)
	}
	if errno := m.text("errno"); errno != "" {
		call := m.text("failed_call")
		if call == "" {
			call = m.text("failed_check")
		}
		add("%s", strings.TrimSpace(call+" "+errno))
	}
	if code, _ := m.code(); code == result.Slow && m.text("failed_check") != "" {
		add("%s took %s", m.text("failed_check"), duration(m.seconds(m.text("failed_check")+"_seconds")))
	}
	if pid := m.integer("stuck_pid"); pid != 0 {
		where := ""
		if wait := m.text("stuck_wchan"); wait != "" {
			where = " in " + wait
		}
		add("process %d survives SIGKILL%s", pid, where)
	}
	if errno := m.text("server_rpc_errno"); errno != "" {
		add("the server's NFS port: %s", errno)
	}
	if _, asked := m.Fields["server_rpc_seconds"]; asked {
		add("the server answers in %s", duration(m.seconds("server_rpc_seconds")))
	}
	if waiting := m.integer("fuse_waiting"); waiting > 0 {
		add("%d FUSE requests wait", waiting)
	}
	if pid := m.integer("holder_pid"); pid != 0 {
		host := "of this host"
		if remote, _ := m.Fields["holder_remote"].(bool); remote {
			host = "of another host"
		}
		add("process %d %s holds a %s lock", pid, host, m.text("holder_lock"))
	}
	if n := m.integer("tasks_blocked"); n > 0 {
		add("%d tasks wait for it, such as %s (%d)", n, m.text("blocked_comm"), m.integer("blocked_pid"))
	}
	if reason := m.text("reason"); reason != "" {
		add("%s", reason)
	}
	if other := m.text("shared_with"); other != "" {
		add("same file system as %s", other)
	}
	return strings.Join(parts, "; ")
}

// duration is short and readable.
func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 100*time.Hour:
		text := d.Round(time.Second).String()
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		return text
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
