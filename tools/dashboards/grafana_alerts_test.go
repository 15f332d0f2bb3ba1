//go:build !race

package dashboards

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// The queries of Grafana's rules that are not about faults of mounts and locks
// (TestPanels has those): a host that is to raise the alert, and one that is not.
func TestGrafanaAlerts_FindTheHost(t *testing.T) {
	faultfs.Require(t)
	db := stores.StartInflux(t)
	now := time.Now()
	ago := func(d time.Duration) int64 { return now.Add(-d).UnixNano() }
	var b strings.Builder
	for host, bad := range map[string]bool{"bad": true, "good": false} {
		pick := func(is, otherwise float64) float64 {
			if bad {
				return is
			}
			return otherwise
		}
		line := func(at time.Duration, format string, values ...any) {
			fmt.Fprintf(&b, strings.Replace(format, "HOST", "host="+host, 1)+" %d\n", append(values, ago(at))...)
		}
		for at := 5 * time.Second; at < 60*time.Second; at += 10 * time.Second {
			line(at, "mountstat_blocked,HOST,comm=dd,wchan=io_schedule longest_seconds=%g", pick(600, 20)+30-at.Seconds())
			line(at, "dentrycache_dir,HOST,directory=/spool predicted_stall_seconds=%g", pick(0.8, 0.01))
			line(at, "dentrycache,HOST negative_per_s=%g,memory_share=%g,seconds_to_memory_share=%g", pick(5000, 900), pick(0.2, 0.01), pick(3600, 100))
		}
		for at := 5 * time.Second; at < time.Hour; at += time.Minute {
			if bad && at < 12*time.Minute {
				continue // silent
			}
			line(at, "vfsprobe,HOST helpers_running=0i")
			line(at, "mountstat_summary,HOST mounts=3i")
			line(at, "dentrycache,HOST dentries=5i")
			line(at, "nfslock_host,HOST mounts=0i")
		}
		line(2*time.Minute, "vfsprobe,HOST fork_server_restarts=0i")
		line(2*time.Minute, "nfslock_host,HOST kernel_lost_locks=7i,kernel_lost_opens=0i")
		line(30*time.Second, "nfslock_host,HOST kernel_lost_locks=%di,kernel_lost_opens=0i", int(pick(9, 7)))
		line(30*time.Second, "vfsprobe,HOST helpers_stuck=%di,fork_server_restarts=%di", int(pick(16, 8)), int(pick(4, 1)))
	}
	db.Write(t, strings.NewReader(b.String()))

	for _, rule := range alerts.Grafana() {
		if rule.Alert.Faults != nil {
			continue
		}
		var hosts []string
		since := fmt.Sprintf("time > now() - %ds", rule.Seconds)
		for _, row := range db.Query(t, strings.ReplaceAll(rule.Query, "$timeFilter", since)) {
			for _, value := range row.Points[len(row.Points)-1].Values {
				number, isNumber := value.(float64)
				require.True(t, isNumber)
				if number > rule.Above {
					hosts = append(hosts, row.Labels["host"])
				}
			}
		}
		assert.Equal(t, []string{"bad"}, hosts, "%s: %s", rule.Title, rule.Query)
	}
}
