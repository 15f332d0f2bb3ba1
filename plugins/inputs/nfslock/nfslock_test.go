package nfslock

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

func newInput(t *testing.T, proc string) *Nfslock {
	n := &Nfslock{proc: proc}
	t.Cleanup(func() {
		if n.table != nil {
			assert.NoError(t, n.table.Close())
		}
	})
	return n
}

// only fails unless the input added this gauge and nothing else.
func only(t *testing.T, acc *collect.Metrics, fields map[string]any) {
	t.Helper()
	all := acc.Named("nfslock_summary")
	require.Len(t, all, 1)
	assert.Equal(t, fields, all[0].Fields())
	assert.Empty(t, all[0].Tags())
	assert.Equal(t, telegraf.Gauge, all[0].Type())
}

func TestAnNFSClient(t *testing.T) {
	n := newInput(t, "testdata/client")
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
		})
	}
}

func TestLinesThatMakeNoSenseAreErrorsBesideTheMetrics(t *testing.T) {
	acc := &collect.Metrics{}
	require.NoError(t, newInput(t, "testdata/malformed").Gather(acc))
	require.Len(t, acc.Errors(), 2)
	assert.ErrorContains(t, acc.Errors()[0], "/mnt/broken")
	assert.ErrorContains(t, acc.Errors()[1], "2: FLOCK")
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

// procWith is a procfs with one file.
func procWith(t *testing.T, name, content string) string {
	t.Helper()
	proc := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600))
	return proc
}

func TestWithoutTheListOfLocksTheMountsAreCounted(t *testing.T) {
	acc := &collect.Metrics{}
	proc := procWith(t, "self/mountinfo", "40 1 253:0 / / rw,relatime - xfs /dev/sda1 rw\n")
	require.NoError(t, newInput(t, proc).Gather(acc))
	require.Len(t, acc.Errors(), 1)
	require.ErrorIs(t, acc.Errors()[0], os.ErrNotExist)
	only(t, acc, map[string]any{
		"mounts": int64(0), "mounts_remote_locking": int64(0), "mounts_local_locking": int64(0),
	})
}

func TestNoLocksAreZeros(t *testing.T) {
	acc := &collect.Metrics{}
	proc := procWith(t, "self/mountinfo", "40 1 253:0 / / rw,relatime - xfs /dev/sda1 rw\n")
	require.NoError(t, os.WriteFile(filepath.Join(proc, "locks"), nil, 0o600))
	require.NoError(t, newInput(t, proc).Gather(acc))
	require.Empty(t, acc.Errors())
	only(t, acc, map[string]any{
		"mounts": int64(0), "mounts_remote_locking": int64(0), "mounts_local_locking": int64(0),
		"locks_held": int64(0), "locks_waiting": int64(0), "host_locks_held": int64(0), "host_locks_waiting": int64(0),
	})
}

func TestWithoutAMountTableNothingIsReported(t *testing.T) {
	proc := procWith(t, "locks", "1: FLOCK  ADVISORY  WRITE 5 08:01:7 0 EOF\n")
	n := newInput(t, proc)
	acc := &collect.Metrics{}
	require.ErrorIs(t, n.Gather(acc), os.ErrNotExist)
	assert.Empty(t, acc.Named("nfslock_summary"))

	// One that can be opened, but not read.
	require.NoError(t, os.MkdirAll(filepath.Join(proc, "self", "mountinfo"), 0o755))
	require.ErrorIs(t, n.Gather(acc), unix.EISDIR)
	assert.Empty(t, acc.Named("nfslock_summary"), "zeros would say that there are no NFS mounts")
}

func TestTheRealHost(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))

	n := inputs.Inputs["nfslock"]().(*Nfslock)
	acc := &collect.Metrics{}
	require.NoError(t, n.Gather(acc))
	defer n.table.Close()
	require.Empty(t, acc.Errors())
	all := acc.Named("nfslock_summary")
	require.Len(t, all, 1)
	held, found := all[0].GetField("host_locks_held")
	require.True(t, found)
	assert.Positive(t, held, "the test holds one")
}

func TestTheSampleConfigurationIsValid(t *testing.T) {
	sample := (&Nfslock{}).SampleConfig()
	all, err := config.Parse("sample.conf", []byte(sample), os.LookupEnv, map[string]inputs.Creator{"nfslock": inputs.Inputs["nfslock"]})
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, &Nfslock{proc: "/proc"}, all[0].Plugin)
}
