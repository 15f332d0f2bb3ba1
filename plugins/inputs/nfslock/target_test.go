package nfslock

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// NFS gives all directories of an export one superblock, and each can be removed alone.
func TestTarget_IsADirectoryOfAnExport(t *testing.T) {
	n, _ := newInput(t)
	withTable(t, n, `50 1 0:47 / /srv/a rw - nfs nas:/export/a rw,vers=3,proto=tcp,addr=192.0.2.1
51 1 0:47 / /srv/b rw - nfs nas:/export/b rw,vers=3,proto=tcp,addr=192.0.2.1
52 1 0:47 / /mnt/b rw - nfs nas:/export/b rw,vers=3,proto=tcp,addr=192.0.2.1
53 1 0:48 / /srv/c rw - nfs nas:/other rw,vers=3,proto=tcp,port=12049,addr=192.0.2.1
`)
	n.refresh()
	require.Len(t, n.targets, 3)
	a, b, c := n.targets[0], n.targets[1], n.targets[2]
	assert.Len(t, a.Mounts, 1)
	assert.Len(t, b.Mounts, 2)
	assert.NotEqual(t, a.ID, b.ID)
	assert.NotEqual(t, n.rangeOf(a), n.rangeOf(b))
	assert.Equal(t, a.Probed.FateGroup(), b.Probed.FateGroup())
	assert.Same(t, a.server, b.server)
	assert.NotSame(t, a.server, c.server, "at another port")
	assert.Same(t, b, n.byMount[52])
}

func TestTarget_KeepsItsHistoryWhileItIsTheSameFileSystem(t *testing.T) {
	n, _ := newInput(t)
	table := func(source string) *mounts.Snapshot {
		return mounts.Parse([]byte("50 1 0:47 / /srv rw - nfs " + source + " rw,vers=3,addr=192.0.2.1\n"))
	}
	n.table = table("nas:/export")
	n.regroup()
	before, server := n.targets[0], n.targets[0].server
	n.table = table("nas:/export")
	n.regroup()
	assert.Same(t, before, n.targets[0])
	n.table = table("nas:/other")
	n.regroup()
	require.Len(t, n.targets, 1)
	assert.NotSame(t, before, n.targets[0])
	assert.Same(t, server, n.targets[0].server)
}

func TestTarget_TwoOfOneExportAreProbedApart(t *testing.T) {
	serveNFS(t)
	dir := tmpfs(t, "")
	with, without := filepath.Join(dir, "with"), filepath.Join(dir, "without")
	for _, d := range []string{with, without} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	putCanary(t, with)
	n, _ := newInput(t)
	pretend(t, n, map[string]string{with: nfs4, without: nfs4})
	var g *collect.Metrics
	require.Eventually(t, func() bool { // a busy machine may be late
		g = collect.Gather(t, n)
		return verdict(t, at(g, with)) == "ok ok" && verdict(t, at(g, without)) == "unchecked no_canary"
	}, 30*time.Second, time.Millisecond)
	server, host := g.Named("nfslock_server")[0].Fields(), g.Named("nfslock_host")[0].Fields()
	assert.Equal(t, int64(2), server["mounts"])
	assert.Equal(t, int64(1), server["superblocks"])
	assert.Equal(t, int64(1), host["superblocks"])
	assert.Equal(t, int64(1), host["ok"])
	assert.Equal(t, int64(1), host["unchecked"])
}

// A host without a place for a helper says nothing new of a fault that is known, and its
// own line sums up what is not probed.
func TestTarget_SaysAFaultOnceWhateverHelpersItGets(t *testing.T) {
	hangs := finding{attempt: attempt{end: hung, call: "fcntl", report: &prober.Report{}}, diagnosis: serverUnreachable, code: result.Timeout}
	refused := finding{attempt: attempt{refused: true, reason: "no place"}, diagnosis: serverUnreachable, code: result.Error}
	untold := finding{attempt: attempt{refused: true, reason: "no place"}, diagnosis: unknown, code: result.Unchecked}
	well := finding{attempt: attempt{end: passed}, code: result.OK}
	for name, findings := range map[string][]finding{
		"a hang":             {hangs, refused, hangs, untold, hangs, well},
		"a fault by the way": {refused, refused, hangs, refused, untold, well},
	} {
		t.Run(name, func(t *testing.T) {
			n, log := newInput(t)
			withTable(t, n, "50 1 0:47 / /srv rw - nfs nas:/export rw,vers=3,proto=tcp,addr=192.0.2.1\n")
			n.refresh()
			for _, f := range findings {
				n.settle(n.targets[0], f)
			}
			assert.Len(t, log.About("W! "), 1)
			assert.Len(t, log.About("locks work again"), 1)
		})
	}
}
