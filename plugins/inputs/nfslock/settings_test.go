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
		`fs: there must be one`:          func(n *Nfslock) { n.FS = []string{} },
		`fstypes: there must be one`:     func(n *Nfslock) { n.FSTypes = []string{} },
		`fs: a pattern`:                  func(n *Nfslock) { n.FS = []string{"[", "{"} },
		`fs and fstypes`:                 func(n *Nfslock) { n.FS, n.FSTypes = []string{"nfs"}, []string{"nfs"} },
		`is not an absolute path`:        func(n *Nfslock) { n.MountPoints = []string{"srv"} },
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

func TestTheOldNameOfFS(t *testing.T) {
	for _, change := range []func(*Nfslock){
		func(n *Nfslock) { n.FS = []string{"nfs4"} }, func(n *Nfslock) { n.FSTypes = []string{"nfs4"} },
	} {
		n, _ := newInput(t, change)
		assert.True(t, n.selection.FitsEntry("/srv", "nfs4"))
		assert.False(t, n.selection.FitsEntry("/srv", "nfs"))
	}
}

func TestWhatAutofsHasMountedIsLeftAlone(t *testing.T) {
	serveNFS(t)
	dir := tmpfs(t, "")
	n, _ := newInput(t, func(n *Nfslock) { n.ExpectNFS = new(bool) })
	pretend(t, n, map[string]string{dir: nfs4})
	n.refresh()
	n.targets[0].Probed.OnDemand = true
	n.regroup()
	m := at(collect.Gather(t, n), dir)
	assert.Equal(t, "unchecked", text(t, m, "result"))
	assert.Contains(t, text(t, m, "reason"), "mounted on demand")
	assert.EqualValues(t, 2, n.host.Prober.Stats().Forked, "the readers of the table and of the machine-id alone")
}
