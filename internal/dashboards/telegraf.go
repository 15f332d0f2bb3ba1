package dashboards

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An Info says which string fields of a measurement become labels in
// Prometheus: of one more metric, whose value is that of the carrier, a field
// that is always reported. If they were labels of all its metrics (Telegraf's
// string_as_label), each change of state would start all of them anew.
type Info struct {
	Carrier string
	Labels  []string
}

var infos = map[string]Info{
	"mountstat":        {"result_code", []string{"result", "cause", "failed_check", "errno", "hangs_in"}},
	"mountstat_server": {"hung", []string{"rpc_errno"}},
	"nfslock":          {"result_code", []string{"result", "diagnosis", "hangs_in", "failed_call", "errno", "lock_scope"}},
	"nfslock_server":   {"hung", []string{"nfs_errno", "rpcbind_errno", "nlm_errno", "nsm_errno"}},
	"nfslock_host":     {"mounts", []string{"rpcbind_errno", "statd_errno"}},
}

// Infos returns them by measurement.
func Infos() map[string]Info { return maps.Clone(infos) }

// Processors is the part of Telegraf's configuration that the dashboards and
// alerts for Prometheus need.
func Processors() string {
	var b strings.Builder
	b.WriteString(`# Telegraf for Prometheus, for vfsprobe's dashboards and alert rules. Made by
# "make dashboards". Put it into telegraf.d; Prometheus then scrapes port 9273.
#
# Numbers become metrics named MEASUREMENT_FIELD. Strings, such as the cause of a
# fault, become labels of one more metric per series, MEASUREMENT_info_FIELD: as
# labels of all metrics they would start each of them anew at every change.

[[outputs.prometheus_client]]
  listen = ":9273"
  metric_version = 2
  string_as_label = false
  ## Three intervals of 10 s: what is no longer reported is gone after that.
  expiration_interval = "30s"
  collectors_exclude = ["gocollector", "process"]
  ## One series per mount and field adds up: these are shown by no dashboard and
  ## used by no alert. Remove what you want to have.
  fieldexclude = [
`)
	for _, name := range unshown {
		fmt.Fprintf(&b, "    %q,\n", name)
	}
	b.WriteString(`  ]
  namepass = ["mountstat", "mountstat_*", "nfslock", "nfslock_*", "dentrycache", "dentrycache_*", "vfsprobe"]
  ## Types do not survive line protocol: these are the counters. Gauges
  ## are left untyped, since a glob for them would win over the counters.
  [outputs.prometheus_client.metric_types]
    counter = [
`)
	for _, name := range counters {
		fmt.Fprintf(&b, "      %q,\n", name)
	}
	b.WriteString("    ]\n")
	for _, name := range slices.Sorted(maps.Keys(infos)) {
		info := infos[name]
		fmt.Fprintf(&b, `
[[processors.clone]]
  order = 101
  name_override = "%[1]s_info"
  namepass = ["%[1]s"]

[[processors.converter]]
  order = 102
  namepass = ["%[1]s_info"]
  fieldinclude = [%[2]s]
  [processors.converter.fields]
    tag = [%[3]s]
`, name, quoted(append([]string{info.Carrier}, info.Labels...)), quoted(info.Labels))
	}
	return b.String()
}

// counters are the fields that only grow, in Prometheus's names.
var counters = []string{
	"mountstat_recoveries", "mountstat_nfs_read_bytes", "mountstat_nfs_written_bytes",
	"mountstat_nfs_retransmissions", "mountstat_nfs_timeouts", "mountstat_nfs_backlog",
	"mountstat_summary_hung_task_detect_count",
	"nfslock_recoveries", "nfslock_server_kernel_*", "nfslock_host_kernel_*",
	"dentrycache_drop_slab",
	"dentrycache_source_created", "dentrycache_source_converted", "dentrycache_source_unlinked", "dentrycache_source_killed_in_dir",
	"dentrycache_status_created", "dentrycache_status_converted", "dentrycache_status_unlinked", "dentrycache_status_killed", "dentrycache_status_events_lost",
	"vfsprobe_cpu_seconds", "vfsprobe_fork_server_cpu_seconds", "vfsprobe_helpers_forked", "vfsprobe_helpers_killed", "vfsprobe_fork_server_restarts",
}

// unshown are fields of each mount that nothing here asks for.
var unshown = []string{
	"total", "free", "used", "inodes_total", "inodes_free", "inodes_used", "inodes_used_percent",
	"recoveries", "last_ok_seconds_ago", "stuck_pid", "fuse_waiting", "unexpected_ro", "server_rpc_seconds",
	"nfs_age_seconds", "nfs_read_bytes", "nfs_written_bytes", "nfs_timeouts", "nfs_backlog", "nfs_unanswered", "nfs_last_reply_seconds_ago",
	"fstatfs_seconds", "open_seconds", "getlk_seconds", "unlock_seconds", "close_seconds", "flock_sh_seconds", "flock_ex_seconds", "flock", "read_lock",
}
