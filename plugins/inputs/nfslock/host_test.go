package nfslock

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

// newHost is an input that reads this procfs, and probes nothing.
func newHost(t *testing.T, proc string) (*NFSLock, *journal.Journal) {
	n, log := newInput(t, func(n *NFSLock) { n.IgnoreMountPoints, n.ExpectNFS = []string{"*"}, new(bool) })
	proc, err := filepath.Abs(proc)
	require.NoError(t, err)
	withRoots(n, func(r *host.Roots) { r.Proc, r.PID = proc, "./self" }) // not this process, whatever its number
	return n, log
}

// only fails unless the input added this gauge and nothing else. It may have
// other fields, too.
func only(t *testing.T, acc *collect.Metrics, fields map[string]any, others ...string) {
	t.Helper()
	all := acc.Named("nfslock_host")
	require.Len(t, all, 1)
	got := all[0].Fields()
	for _, other := range others {
		assert.Contains(t, got, other)
		delete(got, other)
	}
	assert.Equal(t, fields, got)
	assert.Empty(t, all[0].Tags())
	assert.Equal(t, telegraf.Gauge, all[0].Type())
}

func TestNFSLock_OfAnNFSClient(t *testing.T) {
	n, log := newHost(t, "testdata/client")
	for range 2 { // the second time from the table at hand
		acc := &collect.Metrics{}
		require.NoError(t, n.Gather(acc))
		require.Empty(t, acc.Errors())
		only(t, acc, map[string]any{
			"mounts":                int64(11),
			"mounts_remote_locking": int64(8),
			"mounts_local_locking":  int64(3),
			"locks_held":            int64(3),
			"locks_waiting":         int64(2),
			"host_locks_held":       int64(5),
			"host_locks_waiting":    int64(3),
		}, "waiter_pid", "waiter_seconds")
	}
	assert.Empty(t, log.About("W!"))
}

func TestNFSLock_LinesThatMakeNoSenseAreSaidOnce(t *testing.T) {
	n, log := newHost(t, "testdata/malformed")
	for range 2 {
		acc := &collect.Metrics{}
		require.NoError(t, n.Gather(acc))
		only(t, acc, map[string]any{
			"mounts":                int64(1),
			"mounts_remote_locking": int64(1),
			"mounts_local_locking":  int64(0),
			"locks_held":            int64(1),
			"locks_waiting":         int64(0),
			"host_locks_held":       int64(1),
			"host_locks_waiting":    int64(0),
		})
	}
	assert.Len(t, log.About("/mnt/broken"), 1)
	assert.Len(t, log.About("2: FLOCK"), 1)
}

// procWith is a procfs with one file.
func procWith(t *testing.T, name, content string) string {
	t.Helper()
	proc := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600))
	return proc
}

func TestNFSLock_CountsTheMountsWithoutTheListOfLocks(t *testing.T) {
	acc := &collect.Metrics{}
	proc := procWith(t, "self/mountinfo", "40 1 253:0 / / rw,relatime - xfs /dev/sda1 rw\n")
	n, log := newHost(t, proc)
	require.NoError(t, n.Gather(acc))
	require.Len(t, log.About("no such file"), 1)
	only(t, acc, map[string]any{
		"mounts": int64(0), "mounts_remote_locking": int64(0), "mounts_local_locking": int64(0),
	})
}

func TestNFSLock_NoLocksAreZeros(t *testing.T) {
	acc := &collect.Metrics{}
	proc := procWith(t, "self/mountinfo", "40 1 253:0 / / rw,relatime - xfs /dev/sda1 rw\n")
	require.NoError(t, os.WriteFile(filepath.Join(proc, "locks"), nil, 0o600))
	n, log := newHost(t, proc)
	require.NoError(t, n.Gather(acc))
	assert.Empty(t, log.About("W!"))
	assert.Len(t, log.About("no mounts of"), 1)
	only(t, acc, map[string]any{
		"mounts": int64(0), "mounts_remote_locking": int64(0), "mounts_local_locking": int64(0),
		"locks_held": int64(0), "locks_waiting": int64(0), "host_locks_held": int64(0), "host_locks_waiting": int64(0),
	})
}

func TestNFSLock_WithoutAMountTableTheHostsLocksAreAllThereIs(t *testing.T) {
	proc := procWith(t, "locks", "1: FLOCK  ADVISORY  WRITE 5 08:01:7 0 EOF\n")
	n, log := newHost(t, proc)
	gather := func() {
		acc := &collect.Metrics{}
		require.NoError(t, n.Gather(acc))
		only(t, acc, map[string]any{"host_locks_held": int64(1), "host_locks_waiting": int64(0)}) // zeros would say that there are no NFS mounts
		assert.Empty(t, acc.Named("nfslock"))
		assert.Empty(t, acc.Named("nfslock_server"))
	}
	gather()
	assert.Len(t, log.About("there is no mount table"), 1)

	// One that can be opened, but not read.
	require.NoError(t, os.MkdirAll(filepath.Join(proc, "self", "mountinfo"), 0o755))
	gather()
	gather()
	assert.Len(t, log.About("there is no mount table"), 1, "said once")

	// Not even these can be read.
	require.NoError(t, os.Remove(filepath.Join(proc, "locks")))
	acc := &collect.Metrics{}
	require.NoError(t, n.Gather(acc))
	assert.Empty(t, acc.Named("nfslock_host"))
}

func TestNFSLock_TheRealHost(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))

	n, _ := newInput(t)
	all := collect.Gather(t, n).Named("nfslock_host")
	require.Len(t, all, 1)
	held, found := all[0].GetField("host_locks_held")
	require.True(t, found)
	assert.Positive(t, held, "the test holds one")
}

func TestNFSLock_TheSampleConfigurationIsValid(t *testing.T) {
	sample := (&NFSLock{}).SampleConfig()
	all, err := config.Parse("sample.conf", []byte(sample), os.LookupEnv, map[string]inputs.Creator{"nfslock": inputs.Inputs["nfslock"]})
	require.NoError(t, err)
	require.Len(t, all, 1)
	want, got := inputs.Inputs["nfslock"]().(*NFSLock), all[0].Plugin.(*NFSLock)
	want.mail, got.mail = nil, nil
	assert.Equal(t, want, got)

	// All that is commented out is the default, but for the overrides.
	uncommented := regexp.MustCompile(`(?m)^  # ( *[a-z_]+ = )`).ReplaceAllString(strings.Split(sample, "# [[")[0], "  $1")
	all, err = config.Parse("sample.conf", []byte(uncommented), os.LookupEnv, map[string]inputs.Creator{"nfslock": inputs.Inputs["nfslock"]})
	require.NoError(t, err)
	got = all[0].Plugin.(*NFSLock)
	want.ExpectNFS = new(bool)
	*want.ExpectNFS = true // the one that has no default
	got.mail, want.MountPoints, want.IgnoreMountPoints, want.FS = nil, []string{}, []string{}, []string{"nfs", "nfs4"}
	assert.Equal(t, want, got)
}
