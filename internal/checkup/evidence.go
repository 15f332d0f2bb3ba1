package checkup

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// values are what the placeholders of a cause's proof and cure stand for, as far
// as the fields of a row say. The mount points of containers are none of this
// host's, and what a server exports is no device.
func values(m *Metric) result.Values {
	v := result.Values{result.Server: m.Tags["server"]}
	if m.Tags["container"] == "" {
		v[result.Mount] = m.Tags["path"]
	}
	if m.Tags["server"] == "" {
		v[result.Device] = m.Tags["device"]
	}
	if pid := cmp.Or(m.integer("blocked_pid"), m.integer("stuck_pid")); pid != 0 {
		v[result.PID] = fmt.Sprint(pid)
	}
	if connection := m.integer("fuse_connection"); connection != 0 {
		v[result.Connection] = fmt.Sprint(connection)
	}
	if daemon := cmp.Or(m.integer("guard_pid"), m.integer("fuse_daemon_pid")); daemon != 0 {
		v[result.Daemon] = fmt.Sprint(daemon)
	}
	if restart := m.text("restart_command"); restart != "" {
		v[result.Restart] = restart
	}
	return v
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
		add("%s took %s", m.text("failed_check"), duration(m.float(m.text("failed_check")+"_seconds")))
	}
	if pid := m.integer("stuck_pid"); pid != 0 {
		where := ""
		if wait := m.text("stuck_wchan"); wait != "" {
			where = " in " + wait
		}
		does := "survives SIGKILL"
		if m.text("stuck_state") == "asleep" {
			does = "sleeps"
		}
		add("process %d %s%s", pid, does, where)
	}
	if errno := m.text("server_rpc_errno"); errno != "" {
		add("the server's port: %s", errno)
	}
	if _, asked := m.Fields["server_rpc_seconds"]; asked {
		add("the server answers in %s", duration(m.float("server_rpc_seconds")))
	}
	if waiting := m.integer("fuse_waiting"); waiting > 0 {
		add("%d FUSE requests wait", waiting)
	}
	if holder := holderOf(m); holder != "" {
		add("%s holds a %s lock", holder, m.text("holder_lock"))
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

// holderOf says who holds the lock that is in the way. Empty: nobody does, or the reason says who.
// Of NFS 3 a server gives a number that it or the holder's host has counted, which is no process
// (__nlm_alloc_pid, nlmsvc_testlock, fs/lockd); of NFSv4 none (decode_lock_denied,
// fs/nfs/nfs4xdr.c).
func holderOf(m *Metric) string {
	pid := m.integer("holder_pid")
	remote, _ := m.Fields["holder_remote"].(bool)
	switch {
	case m.text("holder_lock") == "", m.text("holder_host") != "":
		return ""
	case pid == 0:
		return "somebody"
	case !remote:
		return fmt.Sprintf("process %d of this host", pid)
	case strings.HasPrefix(m.Tags["fstype"], "nfs"):
		return fmt.Sprintf("another host, or the server itself (which calls the owner %d),", pid)
	}
	return fmt.Sprintf("process %d of another host", pid)
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

// size is a number of bytes, in the units that df -H has.
func size(bytes int64) string {
	value, unit := float64(bytes), ""
	for _, next := range []string{"k", "M", "G", "T", "P", "E"} {
		if value < 999.5 {
			break
		}
		value, unit = value/1000, next
	}
	text := fmt.Sprintf("%.0f", value)
	if unit != "" && value < 9.95 {
		text = fmt.Sprintf("%.1f", value)
	}
	return text + " " + unit + "B"
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", share) }

// number is a field and its value, with its unit; empty if it is no number.
func number(field string, value any) string {
	name := strings.ReplaceAll(field, "_", " ")
	n, isFloat := value.(float64)
	count, isInt := value.(int64)
	bytes, isSize := strings.CutSuffix(name, " bytes")
	switch {
	case isSize && isInt:
		return bytes + " " + size(count)
	case isInt:
		return name + " " + grouped(count)
	case !isFloat:
		return ""
	case strings.HasSuffix(name, " seconds"):
		return strings.TrimSuffix(name, " seconds") + " " + duration(n)
	case strings.HasPrefix(name, "seconds to "):
		return strings.Replace(name, "seconds", "time", 1) + " " + duration(n)
	case strings.HasSuffix(name, " percent"):
		return strings.TrimSuffix(name, " percent") + " " + percent(n)
	case strings.HasSuffix(name, " share"), strings.HasSuffix(name, " ratio"):
		return name + " " + percent(n*100)
	}
	if math.Abs(n) >= 1000 {
		return name + " " + grouped(int64(math.Round(n)))
	}
	return fmt.Sprintf("%s %.3g", name, n)
}

// grouped is a number with a comma before each three digits.
func grouped(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
