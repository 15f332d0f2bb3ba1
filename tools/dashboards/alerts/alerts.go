// Package alerts makes the alert rules from one description: those of Prometheus,
// those that Grafana evaluates on InfluxDB, and a runbook page for each.
//
// Rules are about what one person mends at once: a file server, or a host; never
// about single mounts. Prometheus's rules count series by it, so a change of the
// cause starts no new alert; its annotations then ask for the causes. Grafana's
// have no such queries, so there is a rule per cause.
package alerts

import (
	"fmt"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// An Alert is one rule.
type Alert struct {
	Name     string
	Critical bool
	For      time.Duration
	Expr     string // PromQL; an alert per series
	Summary  string // what is the matter, with {{ $labels }} and {{ $value }}
	Board    string // the dashboard that shows it

	// Faults are what the alert counts, for alerts on mounts and locks. Expr is
	// made of it.
	Faults *Faults

	// InfluxQL, which must have a value above Above for each alert. Not for
	// alerts on faults, whose query is made of them.
	InfluxQL string
	Above    float64

	// Of alerts without Faults: what it means, what proves it in PromQL (a
	// query by host, whose labels and values are listed), and what to do.
	Cause    string
	Evidence string
	Prove    string
	Fix      string

	Page string // further text of the runbook
}

// Faults are mounts or locks whose cause is one of these, counted by a label.
type Faults struct {
	From   string // mountstat or nfslock
	Label  string // cause or diagnosis
	Causes []result.Cause
	By     string // host, server or device
	More   string // a further label: fstype
	Hung   bool   // only those that hang
	Where  string // PromQL: further matchers
}

const minimum, hang, maximum = result.Denied, result.Timeout, result.Stuck // of faults

func (f *Faults) low() result.Code {
	if f.Hung {
		return hang
	}
	return minimum
}

func (f *Faults) names() string {
	names := make([]string, len(f.Causes))
	for i, c := range f.Causes {
		names[i] = string(c)
	}
	return strings.Join(names, "|")
}

// by are the labels of an alert.
func (f *Faults) by() string {
	if f.More != "" {
		return f.By + ", " + f.More
	}
	return f.By
}

// series selects the faults, further narrowed by a template's labels.
func (f *Faults) series(narrowed string) string {
	return fmt.Sprintf(`%s_info_result_code{%s=~"%s"%s%s} >= %d <= %d`, f.From, f.Label, f.names(), f.Where, narrowed, f.low(), maximum)
}

// expr counts each mount once, whatever else is said of it.
func (f *Faults) expr() string {
	return fmt.Sprintf(`count by (%s) (count by (%s, host, path) (%s))`, f.by(), f.by(), f.series(""))
}

// influxQL is the same for one cause.
func (f *Faults) influxQL(cause result.Cause) string {
	where := fmt.Sprintf(`$timeFilter AND %q = '%s'`, f.Label, cause)
	switch {
	case strings.Contains(f.Where, `server=""`):
		where += ` AND "server" = ''`
	case strings.Contains(f.Where, `server!=""`):
		where += ` AND "server" != ''`
	}
	by := `"host", "path"`
	if f.By != "host" {
		by += fmt.Sprintf(", %q", f.By)
	}
	group := fmt.Sprintf("%q", f.By)
	if f.More != "" {
		by += fmt.Sprintf(", %q", f.More)
		group += fmt.Sprintf(", %q", f.More)
	}
	return fmt.Sprintf(`SELECT count("v") FROM (SELECT last("result_code") AS "v" FROM %q WHERE %s GROUP BY %s) WHERE "v" >= %d AND "v" <= %d GROUP BY %s`,
		f.From, where, by, f.low(), maximum, group)
}

// command is the annotation of that name for a cause. Only a server's address is
// filled in: a template can't quote the name of a mount point for a shell.
func (f *Faults) command(c result.Cause) string {
	text := c.Proof(nil) + "\n" + c.Cure(nil)
	if f.By == "server" {
		text = strings.ReplaceAll(text, string(result.Server), "{{ $labels.server }}")
	}
	return text
}

// silent is an alert on an input that has stopped while vfsprobe goes on.
func silent(name, input, measurement, field string) Alert {
	metric := measurement + "_" + field
	return Alert{Name: name, For: 10 * time.Minute, Board: "fleet",
		Summary: "{{ $labels.host }}: the input " + input + " has reported nothing for ten minutes, though vfsprobe runs",
		Expr: fmt.Sprintf("count by (host) (%[1]s offset 1h) unless on (host) count by (host) (%[1]s) and on (host) count by (host) (vfsprobe_helpers_running)",
			metric),
		InfluxQL: fmt.Sprintf(`SELECT -1 * count(%q) FROM %q WHERE time > now() - 70m AND time < now() GROUP BY time(10m, now()), "host" fill(0)`, field, measurement), Above: -1,
		Cause:    "its configuration was taken away, or it can't go on; the log says why",
		Evidence: fmt.Sprintf(`count by (host) (%s{host="%%s"} offset 1h)`, metric),
		Prove:    "journalctl -u vfsprobe -u telegraf | grep 'inputs." + input + "' | tail; vfsprobe doctor",
		Fix:      "what the log says; systemctl restart vfsprobe, or telegraf where that runs it",
		Page:     "Grafana's rule on InfluxDB can't ask whether vfsprobe goes on: there, VfsprobeSilent fires as well where it does not. An input that was taken out of the configuration on purpose is told of for an hour.",
	}
}

// All returns the alerts.
func All() []Alert {
	all := []Alert{
		{Name: "FileServerHangs", Critical: true, For: time.Minute, Board: "fleet",
			Summary: "{{ $labels.server }}: {{ $value }} mounts of this file server hang or fail",
			Faults: &Faults{From: "mountstat", Label: "cause", By: "server", Where: `, server!=""`,
				Causes: []result.Cause{result.ServerUnreachable, result.ServerRPCDead, result.ServerServiceDead, result.ExportHangs, result.LoginRefused, result.ShareGone,
					result.CephMonitorsDead, result.CephMDSDead, result.CephOSDsDead, result.Unknown}},
			Page: "One server is one alert, however many hosts and mounts hang on it. If the summary's mounts are all of one host while others use the same server, it is that host's network."},
		{Name: "FUSEServerHangs", Critical: true, For: time.Minute, Board: "fleet",
			Summary: "{{ $labels.device }}: {{ $value }} mounts of this source hang or fail: the server of their FUSE daemons does",
			Faults: &Faults{From: "mountstat", Label: "cause", By: "device",
				Causes: []result.Cause{result.FUSEServerUnreachable, result.FUSEServerSilent}},
			Page: "One source is one alert, however many hosts have mounted it. The daemons are well: don't restart them. The field `reason` and the rows of `mountstat_server` have the server's address, where it could be seen."},
		{Name: "FileSystemHangs", Critical: true, For: time.Minute, Board: "host",
			Summary: "{{ $labels.host }}: {{ $value }} file systems of type {{ $labels.fstype }} hang",
			Faults: &Faults{From: "mountstat", Label: "cause", By: "host", More: "fstype", Hung: true, Where: `, server=""`,
				Causes: []result.Cause{result.FUSEDaemonSilent, result.FanotifySilent, result.DeviceHangs, result.Frozen, result.Unknown}},
			Page: "Processes that wait for it can often not be killed, and each adds 1 to the load average. The panel \"Who is blocked\" names them."},
		{Name: "FileSystemFails", For: 2 * time.Minute, Board: "host",
			Summary: "{{ $labels.host }}: {{ $value }} file systems fail",
			Faults: &Faults{From: "mountstat", Label: "cause", By: "host",
				Causes: []result.Cause{result.FUSEDaemonDead, result.NoSpace, result.Permission, result.IOError, result.SourceDeleted,
					result.MountNeedsRemount, result.ClientEvicted, result.LeaseRefused, result.ClientIDInUse, result.AutomounterStopped}}},
		{Name: "BlockDeviceFails", Critical: true, For: time.Minute, Board: "host",
			Summary: "{{ $labels.host }}: {{ $value }} file systems have lost their device",
			Faults: &Faults{From: "mountstat", Label: "cause", By: "host",
				Causes: []result.Cause{result.DeviceErrors, result.DeviceGone, result.FSShutdown, result.DeviceHangs}},
			Page: "What is in the page cache can still be read, so that programs may not have noticed. What they write is lost, or waits. A device that hangs so that checks do is [FileSystemHangs](FileSystemHangs.md) as well."},
		{Name: "FileSystemReadOnly", Critical: true, For: time.Minute, Board: "host",
			Summary: "{{ $labels.host }}: {{ $value }} file systems have become read-only",
			Faults:  &Faults{From: "mountstat", Label: "cause", By: "host", Causes: []result.Cause{result.ReadOnly}}},
		{Name: "FileSystemMissing", For: 5 * time.Minute, Board: "host",
			Summary: "{{ $labels.host }}: {{ $value }} expected mounts are missing",
			Faults:  &Faults{From: "mountstat", Label: "cause", By: "host", Causes: []result.Cause{result.NotMounted}},
			Page:    "What is written below the mount point meanwhile goes to the file system under it."},
		{Name: "StaleExport", Critical: true, For: 2 * time.Minute, Board: "fleet",
			Summary: "{{ $labels.server }}: {{ $value }} mounts of this server are stale",
			Faults:  &Faults{From: "mountstat", Label: "cause", By: "server", Causes: []result.Cause{result.StaleExport}}},
		{Name: "ProcessesBlocked", For: 2 * time.Minute, Board: "host",
			Summary:  "{{ $labels.host }}: processes have been blocked for {{ $value | humanizeDuration }}",
			Expr:     `max by (host) (mountstat_blocked_longest_seconds) > 300 unless on (host) max by (host) (mountstat_summary_faults) > 0`,
			InfluxQL: `SELECT max("longest_seconds") FROM "mountstat_blocked" WHERE $timeFilter GROUP BY "host"`, Above: 300,
			Cause:    "a process has been in uninterruptible sleep for over five minutes although no mount is at fault: a device, a driver, or a file system that is not checked",
			Evidence: `max by (comm, wchan, path) (mountstat_blocked_longest_seconds{host="%s"}) > 300`,
			Prove:    "cat /proc/PID/stack; dmesg -T | grep -A9 'blocked for more than'",
			Fix:      "mend what the stack names; the process ends by itself then"},
		{Name: "NFSLocksFailAtServer", Critical: true, For: 2 * time.Minute, Board: "locks",
			Summary: "{{ $labels.server }}: no lock can be taken on {{ $value }} mounts",
			Faults: &Faults{From: "nfslock", Label: "diagnosis", By: "server",
				Causes: []result.Cause{result.ServerRPCBindUnreachable, result.NLMUnregistered, result.NLMUnreachable, result.NSMUnreachable}},
			Page: "Reading and writing go on: only NFS versions 2 and 3 have these services, and only locks need them. A server that does not answer at all is [FileServerHangs](FileServerHangs.md)."},
		{Name: "NFSLocksFailOnHost", Critical: true, For: 2 * time.Minute, Board: "locks",
			Summary: "{{ $labels.host }}: no lock can be taken on {{ $value }} NFS mounts",
			Faults: &Faults{From: "nfslock", Label: "diagnosis", By: "host",
				Causes: []result.Cause{result.StatdDown, result.StatdDeadRegistered, result.StatdHung, result.StatdDownLatent, result.CanaryDenied, result.Unknown}}},
		{Name: "NFSLocksNotReady", For: 2 * time.Minute, Board: "locks",
			Summary: "{{ $labels.host }}: the next lock on an NFS 3 mount will hang or fail",
			Faults: &Faults{From: "nfslock_readiness", Label: "diagnosis", By: "host",
				Causes: []result.Cause{result.StatdMissing, result.StatdMasked, result.StatdDown, result.StatdDeadRegistered, result.StatdHung}},
			Page: "Nobody has to be hurt yet: the host may have no NFS mount at all, and only be about to get one. The field `needed_by` says why it is judged: fstab, mount units, automount maps, exports, mounts, the kubelet's volumes, or `expect_nfs`. A host that has to do with NFS 4 alone, or with none, raises no such alert."},
		{Name: "NFSv4StateFails", Critical: true, For: time.Minute, Board: "locks",
			Summary: "{{ $labels.server }}: the NFSv4 state of {{ $value }} mounts is at fault: nobody gets a lock, or locks get lost",
			Faults: &Faults{From: "nfslock", Label: "diagnosis", By: "server",
				Causes: []result.Cause{result.LeaseRefused, result.LeaseExpired, result.ClientIDInUse, result.ClientNameShared,
					result.DelegationRecall, result.StateManagerStuck, result.LockLimit}},
			Page: "Locks, opens and delegations of NFSv4 live as long as the client's lease. If the mounts are all of one host while others use the same server, look at that host's name and identity first."},
		{Name: "NFSStateLost", For: 0, Board: "locks",
			Summary:  "{{ $labels.host }}: the kernel has lost {{ $value | humanize }} locks or open files of NFS mounts",
			Expr:     `sum by (host) (increase(nfslock_host_kernel_lost_locks[10m]) + increase(nfslock_host_kernel_lost_opens[10m])) > 0`,
			InfluxQL: `SELECT spread("kernel_lost_locks") + spread("kernel_lost_opens") FROM "nfslock_host" WHERE time > now() - 10m GROUP BY "host"`, Above: 0,
			Cause:    "after a restart of the server or a lost lease the kernel could not reclaim what programs held: they believe that they have locks which others can take, or get EIO from files that they have open",
			Evidence: `sum by (server) (increase(nfslock_server_kernel_lost_locks{host="%s"}[10m])) > 0`,
			Prove:    "dmesg -T | grep -E 'lost .* locks|Lock reclaim failed|failed to reclaim lock|state recovery failed'",
			Fix:      "restart the programs that lock files there; look for corruption of what they guard; then see why the state was lost: NFSv4StateFails, or a server that gave no grace period"},
		{Name: "NFSLockHeldElsewhere", For: 10 * time.Minute, Board: "locks",
			Summary: "{{ $labels.server }}: the locks of {{ $value }} mounts are held by others",
			Faults:  &Faults{From: "nfslock", Label: "diagnosis", By: "server", Causes: []result.Cause{result.HeldElsewhere}},
			Page:    "Each host locks a byte of its own, so nobody but this host's earlier self, or somebody who locks the whole canary, can be in the way."},
		{Name: "NFSGracePeriodTooLong", For: time.Minute, Board: "locks",
			Summary: "{{ $labels.server }}: still in its grace period, for {{ $value }} mounts",
			Faults:  &Faults{From: "nfslock", Label: "diagnosis", By: "server", Causes: []result.Cause{result.GracePeriod}}},
		{Name: "DirectoryStallAhead", Critical: true, For: 5 * time.Minute, Board: "dentries",
			Summary:  "{{ $labels.host }}: a watch on {{ $labels.directory }} would stall the host for {{ $value | humanizeDuration }}",
			Expr:     `max by (host, directory) (dentrycache_dir_predicted_stall_seconds) > 0.5`,
			InfluxQL: `SELECT last("predicted_stall_seconds") FROM "dentrycache_dir" WHERE $timeFilter GROUP BY "host", "directory"`, Above: 0.5,
			Cause:    "the directory has millions of children in the dentry cache, mostly names that do not exist; the first inotify watch on it walks over all of them with a lock held",
			Evidence: `topk(3, sum by (comm, directory) (dentrycache_source_negative_per_s{host="%s"}))`,
			Prove:    "vfsprobe dentries",
			Fix:      "end or mend the process that looks up ever new names; vfsprobe dentries -free DIRECTORY then frees the dentries, after a question"},
		{Name: "DirectoryStallNears", For: 15 * time.Minute, Board: "dentries",
			Summary:  "{{ $labels.host }}: a watch on {{ $labels.directory }} would already stall the host for {{ $value | humanizeDuration }}",
			Expr:     `max by (host, directory) (dentrycache_dir_predicted_stall_seconds) > 0.05 <= 0.5`,
			InfluxQL: `SELECT last("predicted_stall_seconds") FROM "dentrycache_dir" WHERE $timeFilter GROUP BY "host", "directory"`, Above: 0.05,
			Cause:    "the directory has more than half a million children in the dentry cache, and nothing but a lack of memory takes them away",
			Evidence: `topk(3, sum by (comm, directory) (dentrycache_source_negative_per_s{host="%s"}))`,
			Prove:    "vfsprobe dentries",
			Fix:      "if they are names that do not exist: end or mend the process that looks up ever new ones, before it is a stall that people feel"},
		{Name: "NegativeDentriesGrow", For: time.Hour, Board: "dentries",
			Summary:  "{{ $labels.host }}: {{ $value | humanize }} new negative dentries per second, for an hour",
			Expr:     `avg by (host) (avg_over_time(dentrycache_negative_per_s[10m])) > 1000`,
			InfluxQL: `SELECT mean("negative_per_s") FROM "dentrycache" WHERE $timeFilter GROUP BY "host"`, Above: 1000,
			Cause:    "a process looks up ever new names that do not exist, and the kernel remembers each",
			Evidence: `topk(3, sum by (comm, directory) (dentrycache_source_negative_per_s{host="%s"}))`,
			Prove:    "vfsprobe dentries",
			Fix:      "mend the process; memory.high on its cgroup bounds what it leaves"},
		{Name: "DentriesFillMemory", For: time.Hour, Board: "dentries",
			Summary:  "{{ $labels.host }}: {{ $value | humanizePercentage }} of the memory is dentries, and within a day it will be a quarter",
			Expr:     `min by (host) (min_over_time(dentrycache_memory_share[10m])) > 0.05 and on (host) (max by (host) (max_over_time(dentrycache_seconds_to_memory_share[10m])) < 86400)`,
			InfluxQL: `SELECT last("memory_share") FROM "dentrycache" WHERE $timeFilter AND "seconds_to_memory_share" < 86400 GROUP BY "host"`, Above: 0.05,
			Cause:    "the dentry cache grows so fast that it will be a quarter of the memory within a day",
			Evidence: `topk(3, sum by (comm, directory) (dentrycache_source_negative_per_s{host="%s"}))`,
			Prove:    "vfsprobe dentries; slabtop -o | grep dentry",
			Fix:      "mend the process that causes it; echo 200M >/sys/fs/cgroup/GROUP/memory.reclaim, in steps"},
		{Name: "VfsprobeSilent", For: 10 * time.Minute, Board: "fleet",
			Summary: "{{ $labels.host }}: vfsprobe has reported nothing for ten minutes",
			Expr:    `count by (host) (vfsprobe_helpers_running offset 1h) unless on (host) count by (host) (vfsprobe_helpers_running)`,
			// How many points there were in the last ten minutes, below zero; the
			// hour before makes hosts known that have none.
			InfluxQL: `SELECT -1 * count("helpers_running") FROM "vfsprobe" WHERE time > now() - 70m AND time < now() GROUP BY time(10m, now()), "host" fill(0)`, Above: -1,
			Cause:    "the host is down or cut off, or Telegraf or vfsprobe has ended there",
			Evidence: `count by (host) (vfsprobe_helpers_running{host="%s"} offset 1h)`,
			Prove:    "systemctl status telegraf; journalctl -u telegraf -n 50",
			Fix:      "systemctl restart telegraf"},
		silent("MountstatSilent", "mountstat", "mountstat_summary", "mounts"),
		silent("DentrycacheSilent", "dentrycache", "dentrycache", "dentries"),
		silent("NfslockSilent", "nfslock", "nfslock_host", "mounts"),
		{Name: "VfsprobeHelpersStuck", For: 5 * time.Minute, Board: "host",
			Summary:  "{{ $labels.host }}: {{ $value }} helper processes are stuck; further mounts may go unchecked",
			Expr:     `max by (host) (vfsprobe_helpers_stuck) >= 16`,
			InfluxQL: `SELECT last("helpers_stuck") FROM "vfsprobe" WHERE $timeFilter GROUP BY "host"`, Above: 15,
			Cause:    "so many mounts hang unkillably that -max-stuck (16) is reached",
			Evidence: `count by (cause) (mountstat_info_result_code{host="%s"} == 7)`,
			Prove:    "ps -eo pid,stat,wchan:32,comm | grep vfsp:",
			Fix:      "mend the file systems that hang; -max-stuck raises the limit"},
		{Name: "VfsprobeForkServerRestarts", For: time.Minute, Board: "host",
			Summary:  "{{ $labels.host }}: vfsprobe's fork server has been restarted {{ $value | humanize }} times in 15 minutes",
			Expr:     `sum by (host) (increase(vfsprobe_fork_server_restarts[15m])) > 2`,
			InfluxQL: `SELECT spread("fork_server_restarts") FROM "vfsprobe" WHERE time > now() - 15m GROUP BY "host"`, Above: 2,
			Cause:    "something kills it: the OOM killer, or a limit on processes",
			Evidence: `max by (host) (vfsprobe_fork_server_resident_bytes{host="%s"})`,
			Prove:    "journalctl -u telegraf | grep 'fork server'; journalctl -k | grep -i oom",
			Fix:      "raise TasksMax= or MemoryMax= of telegraf.service"},
	}
	for i := range all {
		if f := all[i].Faults; f != nil {
			all[i].Expr = f.expr()
		}
	}
	return all
}
