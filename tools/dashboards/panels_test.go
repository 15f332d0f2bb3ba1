//go:build !race

package dashboards

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// replayed are the hosts whose metrics were recorded, and their faults.
var replayed = map[string]string{
	"many-1": "many-mounts", "many-2": "many-mounts", "many-3": "many-mounts", "cut": "network-cut",
	"statd": "statd-killed", "nlm": "nlm-dropped", "rpcbind": "rpcbind-stopped", "held": "lock-held", "ganesha": "lock-held-ganesha", "stale": "export-removed",
}

// Addresses of the servers in the virtual machines: one has the faults, and one, which is
// NFS-Ganesha, a lock that is held.
const (
	badServer  = "10.1.1.1"
	goodServer = "10.2.1.1"
	ganesha    = "10.3.1.1"
)

// places are the paths of this host's faults.
type places struct{ hung, dead, missing, fine, flood string }

// demands are what each panel must show. Blocked tasks, stuck helpers and negative
// dentries, which other things than this test can cause, are judged under the
// faults only.
func (p places) demands() map[string]map[string]demand {
	return map[string]map[string]demand{
		"fleet": {
			"Hosts that report":     {faulty: equal(11), healthy: equal(1)},
			"Hosts with a fault":    {faulty: equal(6), healthy: equal(0)},
			"Mounts at fault":       {faulty: equal(3 + 3*50 + 4 + 5), healthy: equal(0)},
			"Processes blocked":     {faulty: atLeast(1)},
			"NFS locks at fault":    {faulty: atLeast(3*50 + 2), healthy: equal(0)},
			"Dentry caches growing": {faulty: equal(1)},
			"File servers, and the clients that hang on them": {healthy: empty,
				faulty: all(has("server", badServer, "hosts", "4"), func(t assert.TestingT, got answer) { assert.Empty(t, got.where("server", goodServer)) })},
			"Hung mounts by server":               {healthy: empty, faulty: number64(3*50, 3*50+5, "value", "server", badServer)},
			"Hosts and how many faults they have": {healthy: empty, faulty: all(has("host", thisHost, "value", "3"), has("host", "many-1", "value", "50"))},
			"Hosts with faults, by kind":          {healthy: empty, faulty: all(has("host", thisHost, "stuck", "1", "error", "1", "missing", "1"), has("host", "many-2", "timeout", "50"))},
			"Faults and their causes": {healthy: empty, faulty: all(
				has("host", thisHost, "path", p.hung, "cause", "fuse_daemon_silent", "result_code", "7"),
				has("host", "many-3", "path", "/mnt/dead3-17", "cause", "server_unreachable", "result_code", "6"),
				has("host", "stale", "path", "/mnt/v3", "cause", "stale_export", "errno", "ESTALE"))},
		},
		"host": {
			"Mounts": {healthy: has("path", p.hung, "value", "0"), faulty: all(has("path", "/", "value", "0"), has("path", p.fine, "value", "0"),
				has("path", p.hung, "value", "7"), has("path", p.dead, "value", "5"), has("path", p.missing, "value", "3"))},
			"Faults and their causes": {healthy: empty, faulty: all(
				has("path", p.hung, "cause", "fuse_daemon_silent", "failed_check", "statfs"),
				has("path", p.dead, "cause", "fuse_daemon_dead", "errno", "ENOTCONN"),
				has("path", p.missing, "cause", "not_mounted"),
				func(t assert.TestingT, got answer) { assert.Len(t, got, 3) })},
			"Who is blocked":                   {faulty: has("comm", "backup", "count", "1")},
			"Hung for":                         {healthy: has("path", p.hung, "value", "0"), faulty: all(number64(2, 60, "value", "path", p.hung), has("path", p.fine, "value", "0"))},
			"Processes blocked":                {faulty: atLeast(1)},
			"Time of statfs, over all mounts":  {faulty: number64(1e-7, 0.5, "value", "path", p.fine)},
			"Time of readdir, over all mounts": {faulty: number64(1e-7, 0.5, "value", "path", p.fine)},
			"File servers' answers": {host: "many-1", faulty: func(t assert.TestingT, got answer) {
				number64(1e-7, 1, "value", "server", goodServer)(t, got)
				assert.Empty(t, got.where("server", badServer), "it does not answer")
			}},
			"NFS calls sent again":               {host: "many-1", faulty: has("path", "/mnt/dead3-1", "value", "0")}, // a recording stands still
			"Used":                               {faulty: number64(0.1, 100, "value", "path", "/")},
			"vfsprobe's helpers that are stuck":  {faulty: equal(0)},
			"vfsprobe's helpers that are asleep": {faulty: atLeast(1)},
		},
		"locks": {
			"The chain at each server": {host: "rpcbind|nlm|statd", faulty: all(
				has("host", "rpcbind", "server", badServer, "rpcbind_errno", "ECONNREFUSED"),
				has("host", "nlm", "server", badServer, "nlm_errno", "ETIMEDOUT"),
				number64(1e-7, 1, "nfs_seconds", "host", "nlm", "server", badServer),
				number64(1e-7, 1, "nlm_seconds", "host", "nlm", "server", goodServer))},
			"The chain on the host": {host: "nlm|statd", faulty: all(
				has("host", "statd", "statd_errno", "ECONNREFUSED"), number64(1e-7, 1, "statd_seconds", "host", "nlm"))},
			"Not ready for locks of NFS 3": {host: "statd", healthy: empty, faulty: has("host", "statd", "diagnosis", "statd_dead_registered", "needed_by", "mount")},
			"Locks":                        {host: "statd", faulty: all(has("path", "/mnt/v3", "value", "5"), has("path", "/mnt/v4", "value", "0"))},
			"Faults and their diagnoses": {host: ".*", healthy: empty, faulty: all(
				has("host", "statd", "path", "/mnt/v3", "diagnosis", "statd_dead_registered", "errno", "ENOLCK"),
				has("host", "nlm", "path", "/mnt/v3", "diagnosis", "nlm_unreachable"),
				has("host", "held", "path", "/mnt/v4", "diagnosis", "held_elsewhere"),
				has("host", "ganesha", "path", "/mnt/v3", "diagnosis", "held_elsewhere", "holder_host", "client2"),
				has("host", "many-2", "path", "/mnt/dead4-25", "diagnosis", "server_unreachable"))},
			"Holders that are in the way":                   {host: "held", healthy: empty, faulty: has("host", "held", "path", "/mnt/v3", "holder_lock", "write")},
			"Tasks that wait for a server's word on a lock": {host: "nlm", faulty: has("path", "/mnt/v4", "value", "0")},
			"Time of a lock (F_SETLK)":                      {host: "nlm", faulty: number64(1e-7, 1, "value", "path", "/mnt/v4")},
			"Lock managers' answers": {host: "nlm", faulty: func(t assert.TestingT, got answer) {
				number64(1e-7, 1, "value", "server", goodServer)(t, got)
				assert.Empty(t, got.where("server", badServer))
			}},
			"Locks held on NFS":         {host: "nlm", faulty: equal(0)},
			"Waiting for a lock on NFS": {host: "nlm", faulty: equal(0)},
		},
		"dentries": {
			"Stall that a watch on a directory would cause": {faulty: number64(1e-4, 10, "value", "directory", p.flood)},
			"New negative dentries by process and directory": {faulty: func(t assert.TestingT, got answer) {
				assert.NotEmpty(t, got.where("comm", "flooder", "directory", p.flood), "%v", got)
			}},
			"Who makes negative dentries": {faulty: func(t assert.TestingT, got answer) {
				assert.NotEmpty(t, got.where("comm", "flooder", "directory", p.flood), "%v", got)
			}},
			"Directories":                 {faulty: number64(1000, 1e9, "children", "directory", p.flood)},
			"Negative dentries":           {faulty: atLeast(1000)},
			"Growth of negative dentries": {faulty: atLeast(1000)},
			"Share of memory in dentries": {faulty: atLeast(1e-6)},
			"Reclaimable slab by cgroup":  {faulty: func(t assert.TestingT, got answer) { assert.NotEmpty(t, got) }},
		},
	}
}

// known are the fields and tags that the inputs' README files list.
func known(t *testing.T) map[string]Names {
	files, err := filepath.Glob(filepath.Join(programs.Repository(), "plugins/inputs/*/README.md"))
	require.NoError(t, err)
	all := make(map[string]Names)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, n := range documented(string(content)) {
			all[n.Measurement] = n
		}
	}
	return all
}

// Each panel, in each language, against real databases which a real Telegraf
// fills: first nothing is wrong, then much.
func TestPanels(t *testing.T) {
	faultfs.Require(t)
	// Links lead elsewhere than they seem to.
	root, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	p := places{hung: root + "/hung", dead: root + "/dead", missing: root + "/missing", fine: root + "/fine", flood: root + "/flood"}
	for _, dir := range []string{p.hung, p.dead, p.missing, p.fine, p.flood} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	hung, dead := faultfs.NewAt(t, p.hung, "hung"), faultfs.NewAt(t, p.dead, "dead")
	faultfs.NewAt(t, p.fine, "fine")
	fstab := filepath.Join(t.TempDir(), "fstab")
	missing := faultfs.NewAt(t, p.missing, "missing")
	require.NoError(t, os.WriteFile(fstab, fmt.Appendf(nil, "missing %s ext4 defaults 0 0\n", p.missing), 0o644))

	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(watch) })
	_, err = unix.InotifyAddWatch(watch, p.flood, unix.IN_CREATE)
	require.NoError(t, err)

	l := startLive(t, fmt.Sprintf("[[inputs.mountstat]]\n  timeout = \"500ms\"\n  fstab = %q\n[[inputs.dentrycache]]\n  directories = [%q]\n[[inputs.nfslock]]\n",
		fstab, p.flood), hasty(alerts.Prometheus()))
	began := time.Now().Add(2 * time.Second) // the first gathers
	demands := p.demands()
	documented := known(t)

	judge := func(state string, pick func(demand) func(assert.TestingT, answer)) {
		deadline := time.Now().Add(patience)
		for _, d := range All() {
			for i := range d.Panels {
				panel := &d.Panels[i]
				want, listed := demands[d.Name][panel.Title]
				require.True(t, listed, "nothing is demanded of %q in %s", panel.Title, d.Name)
				check := pick(want)
				if check == nil {
					continue
				}
				host := want.host
				if host == "" {
					host = thisHost
				}
				for _, s := range l.databases() {
					t.Run(strings.ReplaceAll(state+"/"+s.name+"/"+d.Name+"/"+panel.Title, " ", "-"), func(t *testing.T) {
						if panel.Query.From == "dentrycache_cgroup" && !slabPerCgroup() {
							t.Skip("no cgroup hierarchy of version 2 with a memory controller here")
						}
						require.Empty(t, undocumented(documented, panel.Query.Names()), "not in the input's README")
						until := deadline
						if twice := time.Now().Add(2 * recent); twice.After(until) { // a busy machine may have been too slow for a check
							until = twice
						}
						for {
							got := l.ask(t, s, panel, host)
							if attempt := new(trial); time.Now().Before(until) {
								if check(attempt, got); attempt.failed {
									time.Sleep(500 * time.Millisecond)
									continue
								}
							}
							check(t, got)
							return
						}
					})
				}
			}
		}
	}
	judge("healthy", func(d demand) func(assert.TestingT, answer) { return d.healthy })

	t.Run("healthy/alerts", func(t *testing.T) {
		// A busy machine can be too slow for a check; that passes.
		assert.Eventually(t, func() bool { return len(l.firing(t)) == 0 && len(l.firingOnInflux(t)) == 0 }, patience, time.Second)
	})

	hung.Silence()
	dead.Abort()
	missing.Close()
	ls, err := exec.LookPath("ls")
	require.NoError(t, err)
	backup := filepath.Join(t.TempDir(), "backup") // a name that no other test's programs have
	require.NoError(t, os.Symlink(ls, backup))
	blocked := exec.Command(backup, p.hung)
	require.NoError(t, blocked.Start())
	t.Cleanup(func() {
		hung.Close()
		_ = blocked.Wait()
	})
	var lines strings.Builder
	for host, scenario := range replayed {
		lines.WriteString(recorded(t, scenario, host))
	}
	l.play(t, lines.String())
	flood(t, p.flood)
	judge("faulty", func(d demand) func(assert.TestingT, answer) { return d.faulty })

	t.Run("counters-are-counters", func(t *testing.T) {
		for metric, want := range map[string]string{"vfsprobe_fork_server_restarts": "counter", "mountstat_nfs_retransmissions": "counter",
			"dentrycache_source_created": "counter", "vfsprobe_helpers_stuck": "unknown", "mountstat_result_code": "unknown", "mountstat_info_result_code": "unknown"} {
			assert.Equal(t, want, l.prometheus.Type(t, metric), metric)
		}
	})
	t.Run("faulty/alerts", func(t *testing.T) { l.judgeAlerts(t, p) })
	if file := os.Getenv("PICTURES"); file != "" { // make pictures
		time.Sleep(15 * time.Second)
		l.exportPictures(t, file, root, began)
	}
	t.Run("every-name-is-reported", func(t *testing.T) { judgeNames(t, l.lines) })
}

// flood makes negative dentries until the test ends.
func flood(t *testing.T, dir string) {
	t.Helper()
	flooder := filepath.Join(t.TempDir(), "flooder")
	shell, err := filepath.EvalSymlinks("/bin/sh")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(shell, flooder))
	c := exec.Command(flooder, "-c", `i=0; while :; do i=$((i+1)); [ -e "$0/miss-$i" ]; [ $((i % 2000)) != 0 ] || sleep 0.2; done`, dir)
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
}

// trial notes whether an assertion fails.
type trial struct{ failed bool }

func (a *trial) Errorf(string, ...any) { a.failed = true }

// slabPerCgroup reports whether this host's kernel tells the slab of each cgroup.
func slabPerCgroup() bool {
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return strings.Contains(string(controllers), "memory")
}
