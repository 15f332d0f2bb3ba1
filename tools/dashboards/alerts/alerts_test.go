//go:build !race

package alerts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
)

const root = "../../.."

// A situation is what Prometheus has seen, and which alerts that makes.
type situation struct {
	name   string
	series map[string]string // values by series, in promtool's notation; one per 10 s
	// want are the alerts that fire after twelve minutes, and how many of each.
	want map[string]int
	at   string // instead of twelve minutes
}

const (
	end  = "12m"
	late = "90m"
)

// always has the value from the first moment on.
func always(value float64) string { return fmt.Sprintf("%gx600", value) }

// mounts are series of the mounts of some hosts.
func mounts(hosts, each int, labels, value string) map[string]string {
	all := make(map[string]string)
	for h := range hosts {
		for m := range each {
			all[fmt.Sprintf(`mountstat_info_result_code{host="h%d",path="/mnt/%d",%s}`, h, m, labels)] = value
		}
	}
	return all
}

func situations() []situation {
	const nfs = `server="10.0.0.1",fstype="nfs",device="filer:/vol"`
	const smb = `server="10.0.0.2",fstype="cifs",device="//filer/vol"`
	healthy := mounts(3, 100, nfs+`,result="ok"`, always(0))
	for h := range 3 {
		for metric, value := range map[string]float64{
			"vfsprobe_helpers_running": 0, "vfsprobe_helpers_stuck": 0, "vfsprobe_fork_server_restarts": 0, "mountstat_summary_faults": 0,
			"dentrycache_negative_per_s": 10, "dentrycache_memory_share": 0.01,
		} {
			healthy[fmt.Sprintf(`%s{host="h%d"}`, metric, h)] = always(value)
		}
		healthy[fmt.Sprintf(`dentrycache_dir_predicted_stall_seconds{host="h%d",directory="/"}`, h)] = always(0.00001)
		healthy[fmt.Sprintf(`mountstat_blocked_longest_seconds{host="h%d",comm="dd",wchan="io_schedule"}`, h)] = always(2)
		healthy[fmt.Sprintf(`nfslock_info_result_code{host="h%d",path="/mnt/0",server="10.0.0.1",diagnosis="ok"}`, h)] = always(0)
	}
	one := func(series, value string) map[string]string { return map[string]string{series: value} }
	lock := func(diagnosis string, code float64) map[string]string {
		all := make(map[string]string)
		for h := range 20 {
			all[fmt.Sprintf(`nfslock_info_result_code{host="h%d",path="/mnt/0",server="10.0.0.1",diagnosis=%q}`, h, diagnosis)] = always(code)
		}
		return all
	}
	all := []situation{
		{name: "healthy hosts", series: healthy},
		{name: "an interval is missed", series: mounts(2, 2, nfs, "0x50 _ 0x400")},
		{name: "three intervals are missed by a host", at: late, series: one(`vfsprobe_helpers_running{host="h"}`, "0+0x500 _ _ _ 0+0x60")},
		{name: "a mount is slow, or not checked", series: mounts(1, 1, nfs, "1+0x100 8+0x400")},
		{name: "one interval with a fault", series: mounts(10, 30, nfs+`,cause="server_unreachable"`, "_x30 6x3 stale"), at: "6m"},
		{name: "one dead filer with 300 mounts", series: mounts(3, 100, nfs+`,cause="server_unreachable",failed_check="statfs"`, always(6)), want: map[string]int{"FileServerHangs": 1}},
		{name: "the same with soft mounts and several causes", want: map[string]int{"FileServerHangs": 1}, series: join(
			mounts(100, 2, nfs+`,cause="server_unreachable",errno="EIO"`, always(5)), mounts(50, 1, nfs+`,cause="server_rpc_dead"`, always(6)))},
		{name: "one dead filer with SMB mounts on 300 hosts", series: join(mounts(300, 1, smb+`,cause="server_unreachable"`, always(6)), mounts(300, 1, smb+`,cause="server_service_dead",errno="EHOSTDOWN"`, always(5))), want: map[string]int{"FileServerHangs": 1}},
		{name: "a password was changed on it", series: mounts(30, 3, smb+`,cause="login_refused",errno="EACCES"`, always(2)), want: map[string]int{"FileServerHangs": 1}},
		{name: "Ceph without monitors", series: mounts(30, 3, `server="10.0.0.3",fstype="ceph",cause="ceph_monitors_dead"`, always(6)), want: map[string]int{"FileServerHangs": 1}},
		{name: "9P mounts that have lost their server", series: mounts(2, 3, `server="10.0.0.4",fstype="9p",cause="mount_needs_remount",errno="EIO"`, always(5)), want: map[string]int{"FileSystemFails": 2}},
		{name: "a server that reboots: the cause changes every minute", at: "2m30s", want: map[string]int{"FileServerHangs": 1}, series: join(
			mounts(3, 10, nfs+`,cause="server_unreachable"`, "6x5 stale"), mounts(3, 10, nfs+`,cause="server_rpc_dead"`, "_x6 6x10 stale"))},
		{name: "300 mounts of a FUSE daemon that is silent", series: mounts(1, 300, `fstype="fuse.filer",cause="fuse_daemon_silent"`, always(7)), want: map[string]int{"FileSystemHangs": 1}},
		{name: "300 hosts' mounts of an sshd that is gone", want: map[string]int{"FUSEServerHangs": 1}, series: join(
			mounts(150, 1, `fstype="fuse.sshfs",device="u@filer:/vol",cause="fuse_server_unreachable"`, always(7)),
			mounts(150, 1, `fstype="fuse.sshfs",device="u@filer:/vol",cause="fuse_server_silent",errno="ENOTCONN"`, always(5)))},
		{name: "a disk's death", series: mounts(1, 300, `fstype="ext4",cause="device_errors"`, always(5)), want: map[string]int{"BlockDeviceFails": 1}},
		{name: "its death", series: mounts(1, 300, `fstype="fuse.filer",cause="fuse_daemon_dead",errno="ENOTCONN"`, always(5)), want: map[string]int{"FileSystemFails": 1}},
		{name: "read-only", series: mounts(2, 3, `fstype="ext4",cause="read_only"`, always(5)), want: map[string]int{"FileSystemReadOnly": 2}},
		{name: "missing", series: mounts(2, 3, `fstype="ext4",cause="not_mounted"`, always(3)), want: map[string]int{"FileSystemMissing": 2}},
		{name: "an export was removed", series: mounts(30, 3, nfs+`,cause="stale_export"`, always(4)), want: map[string]int{"StaleExport": 1}},
		{name: "blocked without a fault", series: one(`mountstat_blocked_longest_seconds{host="h",comm="dd",wchan="io_schedule",path="/x"}`, "0+10x600"), want: map[string]int{"ProcessesBlocked": 1}},
		{name: "blocked by a fault", series: join(one(`mountstat_blocked_longest_seconds{host="h",comm="dd",wchan="io_schedule",path="/x"}`, "0+10x600"), one(`mountstat_summary_faults{host="h"}`, always(1)))},
		{name: "many children", series: one(`dentrycache_dir_predicted_stall_seconds{host="h",directory="/spool"}`, always(0.7)), want: map[string]int{"DirectoryStallAhead": 1}},
		{name: "a tenth of them", at: late, series: one(`dentrycache_dir_predicted_stall_seconds{host="h",directory="/spool"}`, always(0.07)), want: map[string]int{"DirectoryStallNears": 1}},
		{name: "ever more negative dentries", at: late, series: one(`dentrycache_negative_per_s{host="h"}`, always(5000)), want: map[string]int{"NegativeDentriesGrow": 1}},
		{name: "a burst of them", at: late, series: one(`dentrycache_negative_per_s{host="h"}`, "0+0x300 200000x12 0x300")},
		{name: "dentries in all the memory", at: late, series: join(one(`dentrycache_memory_share{host="h"}`, always(0.2)), one(`dentrycache_seconds_to_memory_share{host="h"}`, always(3600))), want: map[string]int{"DentriesFillMemory": 1}},
		{name: "a host is gone", at: late, series: one(`vfsprobe_helpers_running{host="h"}`, "0+0x300"), want: map[string]int{"VfsprobeSilent": 1}},
		{name: "an input is gone", at: late, series: join(one(`mountstat_summary_mounts{host="h"}`, "5+0x300"), one(`vfsprobe_helpers_running{host="h"}`, always(0))), want: map[string]int{"MountstatSilent": 1}},
		{name: "another is gone", at: late, series: join(one(`dentrycache_dentries{host="h"}`, "5+0x300"), one(`vfsprobe_helpers_running{host="h"}`, always(0))), want: map[string]int{"DentrycacheSilent": 1}},
		{name: "the third is gone", at: late, series: join(one(`nfslock_host_mounts{host="h"}`, "0+0x300"), one(`vfsprobe_helpers_running{host="h"}`, always(0))), want: map[string]int{"NfslockSilent": 1}},
		{name: "a host is gone with its inputs", at: late, series: join(one(`mountstat_summary_mounts{host="h"}`, "5+0x300"), one(`vfsprobe_helpers_running{host="h"}`, "0+0x300")), want: map[string]int{"VfsprobeSilent": 1}},
		{name: "helpers up to the cap", series: one(`vfsprobe_helpers_stuck{host="h"}`, always(16)), want: map[string]int{"VfsprobeHelpersStuck": 1}},
		{name: "the fork server is killed again and again", series: one(`vfsprobe_fork_server_restarts{host="h"}`, "0+0.1x600"), want: map[string]int{"VfsprobeForkServerRestarts": 1}},
		{name: "a lock manager is unreachable for 20 hosts", series: lock("nlm_unreachable", 6), want: map[string]int{"NFSLocksFailAtServer": 1}},
		{name: "locks work, the status monitor does not", series: lock("nsm_unreachable", 0)},
		{name: "rpc.statd of 20 hosts is dead", series: lock("statd_dead_registered", 5), want: map[string]int{"NFSLocksFailOnHost": 20}},
		{name: "hosts without rpc.statd, before their first mount", want: map[string]int{"NFSLocksNotReady": 2}, series: join(
			one(`nfslock_readiness_info_result_code{host="h1",diagnosis="statd_missing",result="error"}`, always(5)),
			one(`nfslock_readiness_info_result_code{host="h2",diagnosis="statd_down",result="error"}`, always(5)))},
		{name: "a host that is ready, and one that could not be asked", series: join(
			one(`nfslock_readiness_info_result_code{host="h1",diagnosis="ok",result="ok"}`, always(0)),
			one(`nfslock_readiness_info_result_code{host="h2",diagnosis="unknown",result="unchecked"}`, always(8)))},
		{name: "a lease is refused to 20 hosts", series: lock("lease_refused", 2), want: map[string]int{"NFSv4StateFails": 1}},
		{name: "a delegation is recalled", series: lock("delegation_recall", 6), want: map[string]int{"NFSv4StateFails": 1}},
		{name: "locks were lost", series: join(one(`nfslock_host_kernel_lost_locks{host="h"}`, "0+0x60 3+0x540"), one(`nfslock_host_kernel_lost_opens{host="h"}`, "0+0x600")), want: map[string]int{"NFSStateLost": 1}},
		{name: "locks were lost before anybody looked", series: join(one(`nfslock_host_kernel_lost_locks{host="h"}`, "3+0x600"), one(`nfslock_host_kernel_lost_opens{host="h"}`, "0+0x600"))},
		{name: "held", series: lock("held_elsewhere", 5), want: map[string]int{"NFSLockHeldElsewhere": 1}},
		{name: "a grace period", series: lock("grace_period", 8)},
		{name: "a long grace period", series: lock("grace_period", 6), want: map[string]int{"NFSGracePeriodTooLong": 1}},
	}
	return all
}

func join(all ...map[string]string) map[string]string {
	joined := make(map[string]string)
	for _, m := range all {
		for series, values := range m {
			joined[series] = values
		}
	}
	return joined
}

func promtool(t *testing.T, arguments ...string) {
	t.Helper()
	out, err := exec.Command(stores.Program(t, "promtool"), arguments...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func rulesFile(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "rules.yml")
	require.NoError(t, os.WriteFile(file, Prometheus(), 0o600))
	return file
}

func TestRules_AreAcceptedByPromtool(t *testing.T) { promtool(t, "check", "rules", rulesFile(t)) }

// situationTests are the situations as a file of promtool's, with the alerts that are to fire.
func situationTests(t *testing.T) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: 10s\ntests:\n", rulesFile(t))
	for _, s := range situations() {
		at := s.at
		if at == "" {
			at = end
		}
		fmt.Fprintf(&b, "- name: %q\n  interval: 10s\n  input_series:\n", s.name)
		for series, values := range s.series {
			fmt.Fprintf(&b, "  - {series: '%s', values: '%s'}\n", series, values)
		}
		fmt.Fprintf(&b, "  promql_expr_test:\n  - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n    eval_time: %s\n    exp_samples:\n", at)
		for alert, n := range s.want {
			fmt.Fprintf(&b, "    - {labels: '{alertname=%q}', value: %d}\n", alert, n)
		}
	}
	return b.String()
}

func TestRules_Fire(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.yml")
	require.NoError(t, os.WriteFile(file, []byte(situationTests(t)), 0o600))
	promtool(t, "test", "rules", file)
	fired := make(map[string]bool)
	for _, s := range situations() {
		for alert := range s.want {
			fired[alert] = true
		}
	}
	for _, a := range All() {
		assert.True(t, fired[a.Name], "no situation makes %s fire", a.Name)
	}
}

// VictoriaMetrics, whose language is not quite Prometheus's, raises the same alerts. It takes a
// minute or two to build: part of make test-long.
func TestRules_OnVictoriaMetrics(t *testing.T) {
	if os.Getenv("VFSPROBE_VICTORIAMETRICS") == "" {
		t.Skip("part of make test-long: VFSPROBE_VICTORIAMETRICS=1")
	}
	program, err := programs.VictoriaMetricsRules()
	if err != nil {
		t.Skip(err)
	}
	run := func(tests string) (string, error) {
		file := filepath.Join(t.TempDir(), "test.yml")
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(tests, "promql_expr_test", "metricsql_expr_test")), 0o600))
		command := exec.Command(program, "unittest", "--files="+file)
		command.Dir = t.TempDir() // of its storage
		out, err := command.CombinedOutput()
		return string(out), err
	}
	out, err := run(situationTests(t))
	require.NoError(t, err, out)
	assert.Contains(t, out, "SUCCESS")
	out, err = run(fmt.Sprintf("rule_files: [%q]\ntests:\n- interval: 10s\n  promql_expr_test: [{expr: vector(1), eval_time: 1m, exp_samples: [{labels: '{}', value: 2}]}]\n", rulesFile(t)))
	assert.Error(t, err, "it would say so: %s", out)
}

// command is what the annotation of that name must be where there is one cause.
func command(c result.Cause, v result.Values) string { return c.Proof(v) + "\n" + c.Cure(v) + "\n" }

// What the person on call reads.
func TestRules_AnnotationsNameCauseEvidenceAndCommand(t *testing.T) {
	text := fmt.Sprintf(`
rule_files: [%q]
evaluation_interval: 10s
tests:
- interval: 10s
  input_series:
  - {series: 'mountstat_info_result_code{host="web-1",path="/mnt/a",server="10.0.0.1",fstype="nfs",cause="server_unreachable",failed_check="statfs"}', values: '6x60'}
  - {series: 'mountstat_info_result_code{host="web-1",path="/mnt/c",server="10.0.0.1",fstype="nfs",cause="server_unreachable",failed_check="statfs"}', values: '6x60'}
  - {series: 'mountstat_info_result_code{host="web-2",path="/mnt/a",server="10.0.0.1",fstype="nfs",cause="server_unreachable",failed_check="statfs"}', values: '6x60'}
  - {series: 'nfslock_info_result_code{host="web-3",path="/mnt/b",server="10.0.0.2",diagnosis="statd_down",failed_call="setlk",errno="ENOLCK"}', values: '5x60'}
  - {series: 'mountstat_info_result_code{host="web-5",path="/mnt/s",device="u@filer:/a\"b\\c",fstype="fuse.sshfs",cause="fuse_server_silent",failed_check="statfs"}', values: '7x60'}
  - {series: 'dentrycache_memory_share{host="web-4"}', values: '0.1x900'}
  - {series: 'dentrycache_seconds_to_memory_share{host="web-4"}', values: '3600x900'}
  - {series: 'dentrycache_source_negative_per_s{host="web-4",comm="agent",directory="/spool",device="sda"}', values: '5000x900'}
  alert_rule_test:
  - alertname: DentriesFillMemory
    eval_time: 90m
    exp_alerts:
    - exp_labels: {severity: warning, host: web-4}
      exp_annotations:
        summary: "web-4: 10%% of the memory is dentries, and within a day it will be a quarter"
        cause: "the dentry cache grows so fast that it will be a quarter of the memory within a day"
        evidence: "agent /spool 5k; "
        command: "vfsprobe dentries; slabtop -o | grep dentry\nmend the process that causes it; echo 200M >/sys/fs/cgroup/GROUP/memory.reclaim, in steps"
        dashboard: vfsprobe-dentries-promql
        runbook_url: %[2]sDentriesFillMemory.md
  - alertname: FileServerHangs
    eval_time: 5m
    exp_alerts:
    - exp_labels: {severity: critical, server: 10.0.0.1}
      exp_annotations:
        summary: "10.0.0.1: 3 mounts of this file server hang or fail"
        cause: "server_unreachable: nothing answers at the server's port (3)\n"
        evidence: "web-1: 2 mounts; web-2: 1 mounts; "
        command: %[3]q
        dashboard: vfsprobe-fleet-promql
        runbook_url: %[2]sFileServerHangs.md
  - alertname: FUSEServerHangs
    eval_time: 5m
    exp_alerts:
    - exp_labels: {severity: critical, device: 'u@filer:/a"b\c'}
      exp_annotations:
        summary: 'u@filer:/a"b\c: 1 mounts of this source hang or fail: the server of their FUSE daemons does'
        cause: "fuse_server_silent: the FUSE daemon is well, and waits for its server, which takes the connection and does not answer (1)\n"
        evidence: "web-5: 1 mounts; "
        command: %[5]q
        dashboard: vfsprobe-fleet-promql
        runbook_url: %[2]sFUSEServerHangs.md
  - alertname: NFSLocksFailOnHost
    eval_time: 5m
    exp_alerts:
    - exp_labels: {severity: critical, host: web-3}
      exp_annotations:
        summary: "web-3: no lock can be taken on 1 NFS mounts"
        cause: "statd_down: the rpc.statd of this host is not registered with rpcbind, or rpcbind is down (1)\n"
        evidence: "/mnt/b (setlk  ENOLCK); "
        command: %[4]q
        dashboard: vfsprobe-locks-promql
        runbook_url: %[2]sNFSLocksFailOnHost.md
`, rulesFile(t), runbooks, command(result.ServerUnreachable, result.Values{result.Server: "10.0.0.1"}), command(result.StatdDown, nil), command(result.FUSEServerSilent, nil))
	file := filepath.Join(t.TempDir(), "test.yml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	promtool(t, "test", "rules", file)
}

// Each alert has its page, and each page its alert.
func TestRunbooks_AreComplete(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs/runbooks/*.md"))
	require.NoError(t, err)
	var got, want []string
	for _, page := range pages {
		got = append(got, filepath.Base(page))
	}
	for _, a := range All() {
		want = append(want, a.Name+".md")
	}
	assert.ElementsMatch(t, want, got)
}

// Every cause that an input can name makes an alert.
func TestRules_EveryCauseMakesAnAlert(t *testing.T) {
	for input, elsewhere := range map[string][]result.Cause{
		"mountstat": nil,
		// Of a dead server and its exports mountstat's alert tells.
		"nfslock": {result.ServerUnreachable, result.StaleExport},
	} {
		want := make(map[result.Cause]bool)
		for _, cause := range result.Causes(input) {
			if cause.Fault() && !slices.Contains(elsewhere, cause) {
				want[cause] = true
			}
		}
		alerted := make(map[result.Cause]bool)
		for _, a := range All() {
			if a.Faults != nil && strings.HasPrefix(a.Faults.From, input) { // nfslock_readiness, too
				for _, cause := range a.Faults.Causes {
					alerted[cause] = true
				}
			}
		}
		assert.Equal(t, want, alerted, "of %s", input)
	}
}
