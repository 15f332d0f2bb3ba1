package dashboards

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// An Info says which string fields of a measurement become labels in
// Prometheus: of one more metric, whose value is that of the carrier, a field
// that is always reported. If they were labels of all its metrics (Telegraf's
// string_as_label), each change of state would start all of them anew. There is
// none while the carrier is a result code of 0: what is well has no cause.
type Info struct {
	Carrier string
	Labels  []string
}

var infos = map[string]Info{
	"mountstat":         {resultCode, []string{"result", "cause", "failed_check", "errno", "hangs_in"}},
	"nfslock":           {resultCode, []string{"result", "diagnosis", "hangs_in", "failed_call", "errno", "lock_scope", "holder_lock", "holder_host"}},
	"nfslock_readiness": {resultCode, []string{"result", "diagnosis", "needed_by"}},
	"nfslock_server":    {"hung", []string{"nfs_errno", "rpcbind_errno", "nlm_errno", "nsm_errno"}},
	"nfslock_host":      {"mounts", []string{"rpcbind_errno", "statd_errno"}},
}

// resultCode is a field of every mount.
const resultCode = "result_code"

// Infos returns them by measurement.
func Infos() map[string]Info { return maps.Clone(infos) }

// rare are fields of each mount that are zero while it is well, by measurement:
// Prometheus gets them while they are not, and zero once after it. Queries take
// the zeros from the result codes.
var rare = map[string][]string{
	"mountstat": {"fault_seconds", "hung_seconds"},
	"nfslock":   {"fault_seconds", "tasks_blocked"},
}

// shown returns the fields that the dashboards for Prometheus or the alert rules
// name, by measurement. An info metric is "info_" and its carrier.
func shown() map[string][]string {
	var text strings.Builder
	measurements := make(map[string]bool)
	text.WriteString(prometheus.hosts().Query + "\n")
	for _, d := range All() {
		for _, p := range d.Panels {
			measurements[p.Query.From] = true
			for _, t := range prometheus.targets(&p) {
				text.WriteString(t.Expr + "\n")
			}
		}
	}
	text.Write(alerts.Prometheus())
	// The longest first: dentrycache is the beginning of dentrycache_dir.
	names := slices.Sorted(maps.Keys(measurements))
	slices.Reverse(names)
	metric := regexp.MustCompile(`\b(` + strings.Join(names, "|") + `)_([a-z0-9_]+)`)
	fields := make(map[string][]string)
	for _, found := range metric.FindAllStringSubmatch(text.String(), -1) {
		if m := found[1]; !slices.Contains(fields[m], found[2]) {
			fields[m] = append(fields[m], found[2])
		}
	}
	for _, all := range fields {
		slices.Sort(all)
	}
	return fields
}

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
#
# Prometheus gets copies, made below, with the tag copy="prometheus". Other outputs
# get them, too, unless they have this:
#   [outputs.influxdb.tagdrop]
#     copy = ["prometheus"]

[[outputs.prometheus_client]]
  listen = ":9273"
  metric_version = 2
  string_as_label = false
  ## Three intervals of 10 s: what is no longer reported is gone after that.
  expiration_interval = "30s"
  collectors_exclude = ["gocollector", "process"]
  tagexclude = ["copy"]
  [outputs.prometheus_client.tagpass]
    copy = ["prometheus"]
  ## Types do not survive line protocol: these are the counters. Gauges
  ## are left untyped, since a glob for them would win over the counters.
  [outputs.prometheus_client.metric_types]
    counter = [
`)
	for _, name := range counters {
		fmt.Fprintf(&b, "      %q,\n", name)
	}
	fields := shown()
	measurements := slices.Sorted(maps.Keys(fields))
	fmt.Fprintf(&b, `    ]

[[processors.starlark]]
  namepass = [%s]
  source = %s
# What a dashboard shows or an alert uses. One series per mount and field adds up,
# so the rest is left out: add what you want to have.
numbers = {
`, quoted(measurements), "'''")
	list := func(keep func(m, field string) bool) {
		for _, m := range measurements {
			var kept []string
			for _, field := range fields[m] {
				if keep(m, field) {
					kept = append(kept, field)
				}
			}
			if len(kept) > 0 {
				fmt.Fprintf(&b, "    %q: [%s],\n", m, quoted(kept))
			}
		}
		b.WriteString("}\n")
	}
	list(func(m, field string) bool {
		return !slices.Contains(rare[m], field) && !strings.HasPrefix(field, "info_")
	})
	b.WriteString(`
# These only while they are not zero, and zero once after it. The dashboards'
# queries put in the zeros of what is well.
rare = {
`)
	list(func(m, field string) bool { return slices.Contains(rare[m], field) })
	b.WriteString(`
# Strings that become labels, and the number that has them. What is well, with a
# result_code of 0, has none.
info = {
`)
	for _, m := range slices.Sorted(maps.Keys(infos)) {
		fmt.Fprintf(&b, "    %q: (%q, [%s]),\n", m, infos[m].Carrier, quoted(infos[m].Labels))
	}
	b.WriteString(`}

# The rare ones that were not zero.
state = {}

def copy(metric):
    # Of metrics of this name the output takes the fields' names as they are.
    new = Metric("prometheus")
    for key, value in metric.tags.items():
        new.tags[key] = value
    new.tags["copy"] = "prometheus"
    new.time = metric.time
    return new

def apply(metric):
    name = metric.name
    plain = copy(metric)
    for field in numbers.get(name, []):
        if field in metric.fields:
            plain.fields[name + "_" + field] = metric.fields[field]
    for field in rare.get(name, []):
        value = metric.fields.get(field, 0)
        if value == 0 and not state:
            continue
        key = (name, field) + tuple(metric.tags.items())
        if value != 0:
            state[key] = True
        if key in state:
            plain.fields[name + "_" + field] = value
        if value == 0:
            state.pop(key, None)
    made = [metric]
    if plain.fields.keys():
        made.append(plain)
    carrier, labels = info.get(name, ("", []))
    value = metric.fields.get(carrier)
    if value != None and not (carrier == "result_code" and value == 0):
        labeled = copy(metric)
        labeled.fields[name + "_info_" + carrier] = value
        for label in labels:
            if label in metric.fields:
                labeled.tags[label] = str(metric.fields[label])
        made.append(labeled)
    return made
'''
`)
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
