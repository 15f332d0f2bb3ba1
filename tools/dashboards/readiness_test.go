//go:build !race

package dashboards

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/stores"
)

// The node of the story, under a real Telegraf: it is about to get its first NFS mount, and
// has no rpc.statd. The alert fires in a real Prometheus while there is nothing yet that could
// hang.
func TestStory_ReadinessAlertFiresBeforeTheFirstMount(t *testing.T) {
	if _, err := os.Stat("/run/rpcbind.sock"); err == nil {
		t.Skip("an rpcbind runs on this host")
	}
	rules, err := os.ReadFile(filepath.Join(programs.Repository(), "dashboards/prometheus/vfsprobe-alerts.yml"))
	require.NoError(t, err)
	l := startLive(t, "[[inputs.nfslock]]\n  expect_nfs = true\n", hasty(rules))
	alert := "NFSLocksNotReady " + thisHost
	assert.Contains(t, l.awaitAlone(t, alert).Annotations["evidence"], "expect_nfs", "nothing hangs yet")
	assert.Empty(t, l.influx.Query(t, `SELECT "result" FROM "nfslock"`), "there is no mount whose locks could be tried")
	var points []stores.Row
	require.Eventually(t, func() bool {
		points = l.influx.Query(t, `SELECT "result", "needed_by", "reason" FROM "nfslock_readiness" ORDER BY time DESC LIMIT 1`)
		return len(points) == 1
	}, patience, 200*time.Millisecond)
	assert.Equal(t, "expect_nfs", points[0].Points[0].Values["needed_by"])
	l.judgeCaptured(t, rules, []string{alert})
	for _, s := range l.databases() {
		l.awaitPanel(t, s, panelOf(t, "locks", "Not ready for locks of NFS 3"), has("host", thisHost, "needed_by", "expect_nfs", "result_code", "5"))
	}
}
