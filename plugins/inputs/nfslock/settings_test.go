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

func TestSettings_Bad(t *testing.T) {
	short := config.Duration(time.Millisecond)
	for problem, change := range map[string]func(*NFSLock){
		`timeout = "1ms"`:                func(n *NFSLock) { n.Timeout = short },
		`slow_threshold = "0s"`:          func(n *NFSLock) { n.SlowThreshold = 0 },
		`grace_timeout = "-1s"`:          func(n *NFSLock) { n.GraceTimeout = config.Duration(-time.Second) },
		`fs: there must be one`:          func(n *NFSLock) { n.FS = []string{} },
		`fstypes: there must be one`:     func(n *NFSLock) { n.FSTypes = []string{} },
		`fs: a pattern`:                  func(n *NFSLock) { n.FS = []string{"[", "{"} },
		`fs and fstypes`:                 func(n *NFSLock) { n.FS, n.FSTypes = []string{"nfs"}, []string{"nfs"} },
		`is not an absolute path`:        func(n *NFSLock) { n.MountPoints = []string{"srv"} },
		`fstypes: a pattern`:             func(n *NFSLock) { n.FSTypes = []string{"[", "{"} },
		`mount_points: a pattern`:        func(n *NFSLock) { n.IgnoreMountPoints = []string{"[", "{"} },
		`canary = ""`:                    func(n *NFSLock) { n.Canary = "" },
		`canary = "."`:                   func(n *NFSLock) { n.Canary = "." },
		`canary = "/etc/passwd"`:         func(n *NFSLock) { n.Canary = "/etc/passwd" },
		`canary = "../canary"`:           func(n *NFSLock) { n.Canary = "../canary" },
		`override 1: canary = "a/../.."`: func(n *NFSLock) { n.Override = []Override{{Canary: "a/../.."}, {}} },
		`override 2: timeout = "1ms"`:    func(n *NFSLock) { n.Override = []Override{{}, {Timeout: &short}} },
	} {
		n := inputs.Inputs["nfslock"]().(*NFSLock)
		n.Log = journal.New(t)
		change(n)
		require.ErrorContains(t, n.Init(), problem)
	}
}

func TestSettings_TheOldNameOfFS(t *testing.T) {
	for _, change := range []func(*NFSLock){
		func(n *NFSLock) { n.FS = []string{"nfs4"} }, func(n *NFSLock) { n.FSTypes = []string{"nfs4"} },
	} {
		n, _ := newInput(t, change)
		assert.True(t, n.selection.FitsEntry("/srv", "nfs4"))
		assert.False(t, n.selection.FitsEntry("/srv", "nfs"))
	}
}

func TestNFSLock_LeavesAloneWhatAutofsHasMounted(t *testing.T) {
	serveNFS(t)
	dir := tmpfs(t, "")
	n, log := newInput(t, func(n *NFSLock) { n.ExpectNFS = new(bool) })
	pretend(t, n, map[string]string{dir: nfs4})
	n.refresh()
	n.targets[0].Probed.OnDemand = true
	n.regroup()
	m := at(collect.Gather(t, n), dir)
	assert.Equal(t, "unchecked", text(t, m, "result"))
	assert.Contains(t, text(t, m, "reason"), "mounted on demand")
	assert.Equal(t, []string{"D! " + n.targets[0].Probed.String() + ": unchecked: " + text(t, m, "reason")}, log.About(dir), "nothing hangs or fails")
	assert.EqualValues(t, 2, n.host.Prober.Stats().Forked, "the readers of the table and of the machine-id alone")
}
