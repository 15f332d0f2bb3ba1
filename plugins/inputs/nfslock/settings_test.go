package nfslock

import (
	"testing"
	"time"

	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

func TestBadSettings(t *testing.T) {
	short := config.Duration(time.Millisecond)
	for problem, change := range map[string]func(*Nfslock){
		`timeout = "1ms"`:                func(n *Nfslock) { n.Timeout = short },
		`slow_threshold = "0s"`:          func(n *Nfslock) { n.SlowThreshold = 0 },
		`grace_timeout = "-1s"`:          func(n *Nfslock) { n.GraceTimeout = config.Duration(-time.Second) },
		`fstypes: there must be one`:     func(n *Nfslock) { n.FSTypes = nil },
		`fstypes: a pattern`:             func(n *Nfslock) { n.FSTypes = []string{"[", "{"} },
		`mount_points: a pattern`:        func(n *Nfslock) { n.IgnoreMountPoints = []string{"[", "{"} },
		`canary = ""`:                    func(n *Nfslock) { n.Canary = "" },
		`canary = "."`:                   func(n *Nfslock) { n.Canary = "." },
		`canary = "/etc/passwd"`:         func(n *Nfslock) { n.Canary = "/etc/passwd" },
		`canary = "../canary"`:           func(n *Nfslock) { n.Canary = "../canary" },
		`override 1: canary = "a/../.."`: func(n *Nfslock) { n.Override = []Override{{Canary: "a/../.."}, {}} },
		`override 2: timeout = "1ms"`:    func(n *Nfslock) { n.Override = []Override{{}, {Timeout: &short}} },
	} {
		n := inputs.Inputs["nfslock"]().(*Nfslock)
		n.Log = journal.New(t)
		change(n)
		require.ErrorContains(t, n.Init(), problem)
	}
}

func TestWhatAutofsHasMountedIsLeftAlone(t *testing.T) {
	serveNFS(t)
	dir := tmpfs(t, "")
	n, _ := newInput(t, nil)
	pretend(t, n, map[string]string{dir: nfs4})
	require.NoError(t, n.refresh())
	n.superblocks[0].probed.OnDemand = true
	n.regroup(n.all)
	m := at(collect.Gather(t, n), dir)
	assert.Equal(t, "unchecked", text(t, m, "result"))
	assert.Contains(t, text(t, m, "reason"), "mounted on demand")
	assert.Zero(t, n.prober.Stats().Forked-1, "the machine-id's alone")
}
