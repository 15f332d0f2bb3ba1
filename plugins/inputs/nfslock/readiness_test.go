package nfslock

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// The node of the story: no NFS mount yet, and no rpc.statd. It is said before a workload
// meets it.
func TestReadiness_IsToldBeforeTheFirstMount(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/rpc.statd"); err != nil {
		t.Skip(err)
	}
	expected := true
	n, log := newInput(t, func(n *NFSLock) { n.ExpectNFS = &expected })
	withTable(t, n, "")
	ready := func() string {
		n.readiness.due = n.began // as if a minute had passed
		all := collect.Gather(t, n).Named("nfslock_readiness")
		require.Len(t, all, 1)
		assert.Empty(t, all[0].Tags())
		assert.Equal(t, "expect_nfs", text(t, all[0], "needed_by"))
		assert.Equal(t, true, field(t, all[0], "statd_installed"))
		return verdict(t, all[0])
	}
	assert.Equal(t, "error statd_down", ready())
	assert.Equal(t, "error statd_down", ready())
	assert.Len(t, log.About("not ready for locks of NFS 3: statd_down"), 1)
	rpchost.StartRPCBind(t)
	assert.Equal(t, "error statd_down", ready())
	statd := rpchost.StartStatd(t)
	assert.Equal(t, "ok ok", ready())
	assert.Len(t, log.About("ready for locks of NFS 3 again"), 1)
	require.NoError(t, statd.Kill())
	require.Eventually(t, func() bool { return ready() == "error statd_dead_registered" }, 30*time.Second, 10*time.Millisecond)
}

func TestReadiness_OfAHostWithFstab(t *testing.T) {
	etc := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(etc, "fstab"), []byte("nas:/data /srv/data nfs noauto 0 0\n"), 0o600))
	n, _ := newInput(t)
	withTable(t, n, "")
	n.host.Etc, n.host.MountPrefix = etc, "/" // what is below /etc counts in a container too, if it is the host's
	all := collect.Gather(t, n).Named("nfslock_readiness")
	require.Len(t, all, 1)
	assert.Equal(t, "fstab", text(t, all[0], "needed_by"))
	assert.Equal(t, false, field(t, all[0], "server"))
}

func TestReadiness_IsQuietWhereNothingNeedsIt(t *testing.T) {
	for _, change := range []func(*NFSLock){nil, func(n *NFSLock) { n.ExpectNFS = new(bool) }} {
		n, log := newInput(t, change)
		withTable(t, n, "1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / /v4 rw - nfs4 nas:/a rw,vers=4.2,addr=192.0.2.1\n")
		n.IgnoreMountPoints = []string{"*"}
		require.NoError(t, n.resolve())
		n.host.Etc = t.TempDir()
		g := collect.Gather(t, n)
		assert.Empty(t, g.Named("nfslock_readiness"))
		assert.Empty(t, log.About("W!"))
		for _, host := range g.Named("nfslock_host") {
			assert.False(t, host.HasField("rpcbind_errno"), "nobody is asked")
		}
	}
}
