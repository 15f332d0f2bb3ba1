//go:build !race

package dashboards

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// hasty are the shipped rules, but nothing must last for minutes.
func hasty(rules []byte) string {
	return regexp.MustCompile(`(?m)^    for: .*$`).ReplaceAllString(string(rules), "    for: 5s")
}

// expected are the alerts that the faults of TestPanels must raise, by name and
// by whom they are about.
func expected() []string {
	return []string{
		"FileServerHangs " + badServer, // 3 × 50 mounts, and 4 of another host
		"FileSystemHangs " + thisHost, "FileSystemFails " + thisHost, "FileSystemMissing " + thisHost,
		"StaleExport " + badServer,
		"NFSLocksFailAtServer " + badServer, "NFSLocksFailOnHost statd", "NFSLocksNotReady statd", "NFSLockHeldElsewhere " + badServer, "NFSLockHeldElsewhere " + ganesha,
	}
}

// An alert that fires in Prometheus.
type firing struct {
	State               string
	Labels, Annotations map[string]string
}

func (f firing) String() string {
	return f.Labels["alertname"] + " " + f.Labels["server"] + f.Labels["host"]
}

// firing are the alerts of Prometheus, without those on what else this machine
// does.
func (l *live) firing(t *testing.T) map[string]firing {
	t.Helper()
	answer, err := http.Get(l.prometheus.URL + "/api/v1/alerts")
	require.NoError(t, err)
	defer answer.Body.Close()
	var said struct{ Data struct{ Alerts []firing } }
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&said))
	all := make(map[string]firing)
	for _, a := range said.Data.Alerts {
		if a.State == "firing" && !elsewhere[a.Labels["alertname"]] {
			assert.NotContains(t, all, a.String(), "one alert, not several")
			all[a.String()] = a
		}
	}
	return all
}

// awaitAlone waits until an alert fires, and no other: a busy machine can be too slow for a check, which passes.
func (l *live) awaitAlone(t *testing.T, alert string) firing {
	t.Helper()
	var got map[string]firing
	require.Eventually(t, func() bool {
		got = l.firing(t)
		_, fires := got[alert]
		return fires && len(got) == 1
	}, patience, 200*time.Millisecond, "%s alone", alert)
	return got[alert]
}

// awaitPanel waits until a panel shows what is demanded.
func (l *live) awaitPanel(t *testing.T, s store, p *Panel, demanded func(assert.TestingT, answer)) {
	t.Helper()
	assert.EventuallyWithT(t, func(c *assert.CollectT) { demanded(c, l.ask(t, s, p, thisHost)) }, patience, 500*time.Millisecond)
}

// elsewhere are alerts which other things on a test machine can cause, and those
// of the flood, when dentrycache reports it.
var elsewhere = map[string]bool{"ProcessesBlocked": true, "NegativeDentriesGrow": true, "DentriesFillMemory": true, "DirectoryStallAhead": true, "DirectoryStallNears": true, "VfsprobeSilent": true}

// firingOnInflux are the alerts whose queries give Grafana a value above their
// threshold.
func (l *live) firingOnInflux(t *testing.T) []string {
	t.Helper()
	all := make(map[string]bool)
	for _, rule := range alerts.Grafana() {
		for _, row := range l.influx.Query(t, strings.ReplaceAll(rule.Query, "$timeFilter", "time > now() - 10s")) {
			for _, value := range row.Points[len(row.Points)-1].Values {
				number, isNumber := value.(float64)
				require.True(t, isNumber, "%s has the value %v", rule.Query, value)
				if number > rule.Above && !elsewhere[rule.Alert.Name] {
					all[rule.Title+" "+row.Labels["server"]+row.Labels["host"]] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (l *live) judgeAlerts(t *testing.T, p places) {
	var got map[string]firing
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if got = l.firing(t); slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(expected()))) {
			break
		}
	}
	assert.ElementsMatch(t, expected(), slices.Collect(maps.Keys(got)))
	for alert, says := range map[string][]string{
		"FileServerHangs " + badServer: {"server_unreachable: nothing answers", "many-1: 50 mounts", "rpcinfo -a " + badServer + ".8.1 -T tcp nfs"},
		"FileSystemHangs " + thisHost:  {"fuse_daemon_silent", p.hung + " (statfs", "/sys/fs/fuse/connections"},
		"NFSLocksNotReady statd":       {"statd_dead_registered", "mount: no rpc.statd", "systemctl restart rpc-statd"},
		"NFSLocksFailOnHost statd":     {"statd_dead_registered", "/mnt/v3 (setlk  ENOLCK)", "systemctl restart rpc-statd"},
	} {
		a := got[alert].Annotations
		for i, annotation := range []string{"cause", "evidence", "command"} {
			assert.Contains(t, a[annotation], says[i], "%s of %s", annotation, alert)
		}
	}
	for _, a := range got {
		for name, text := range a.Annotations {
			assert.NotContains(t, text, "error", "%s of %s", name, a)
			assert.NotEmpty(t, strings.TrimSpace(text), "%s of %s", name, a)
		}
	}

	want := []string{
		"FileServerHangs: server_unreachable " + badServer,
		"FileSystemHangs: fuse_daemon_silent " + thisHost, "FileSystemFails: fuse_daemon_dead " + thisHost, "FileSystemMissing: not_mounted " + thisHost,
		"StaleExport: stale_export " + badServer,
		"NFSLocksFailAtServer: nlm_unreachable " + badServer, "NFSLocksFailAtServer: server_rpcbind_unreachable " + badServer,
		"NFSLocksFailOnHost: statd_dead_registered statd", "NFSLocksNotReady: statd_dead_registered statd", "NFSLockHeldElsewhere: held_elsewhere " + badServer, "NFSLockHeldElsewhere: held_elsewhere " + ganesha,
	}
	slices.Sort(want)
	var found []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Second) {
		if found = l.firingOnInflux(t); slices.Equal(want, found) {
			break
		}
	}
	assert.Equal(t, want, found, "Grafana's rules")

	l.judgeCaptured(t, alerts.Prometheus(), expected())
}

// judgeCaptured gives promtool the rules as they are shipped, and the series that
// Prometheus has just got, as if they had stayed so: those of what was a moment ago, too, until they end.
func (l *live) judgeCaptured(t *testing.T, shipped []byte, expected []string) {
	t.Helper()
	var out []byte
	err := errors.New("not tried")
	for began := time.Now(); err != nil && time.Since(began) < patience; {
		if out, err = l.tryCaptured(t, shipped, expected); err != nil {
			time.Sleep(time.Second)
		}
	}
	assert.NoError(t, err, "%s", out)
}

// tryCaptured returns what promtool says of what there is now.
func (l *live) tryCaptured(t *testing.T, shipped []byte, expected []string) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.yml")
	require.NoError(t, os.WriteFile(rules, shipped, 0o600))
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: 10s\ntests:\n- interval: 10s\n  input_series:\n", rules)
	for _, row := range l.prometheus.Now(t, `{__name__=~"(mountstat|nfslock|nfslock_readiness)_info_.*|vfsprobe_helpers_stuck"}`) {
		var labels []string
		for _, name := range slices.Sorted(maps.Keys(row.Labels)) {
			if name != "__name__" {
				labels = append(labels, name+"="+strconv.Quote(row.Labels[name]))
			}
		}
		fmt.Fprintf(&b, "  - {series: '%s{%s}', values: '%vx100'}\n", row.Labels["__name__"], strings.Join(labels, ","), row.Points[0].Values["value"])
	}
	count := make(map[string]int)
	for _, alert := range expected {
		name, _, _ := strings.Cut(alert, " ")
		count[name]++
	}
	b.WriteString("  promql_expr_test:\n  - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n    eval_time: 15m\n    exp_samples:\n")
	for name, n := range count {
		fmt.Fprintf(&b, "    - {labels: '{alertname=%q}', value: %d}\n", name, n)
	}
	file := filepath.Join(dir, "captured.yml")
	require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o600))
	return exec.Command(stores.Program(t, "promtool"), "test", "rules", file).CombinedOutput()
}
