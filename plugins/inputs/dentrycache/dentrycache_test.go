package dentrycache

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
)

// only fails unless the input added this gauge and nothing else.
func only(t *testing.T, acc *collect.Metrics, fields map[string]any) {
	t.Helper()
	all := acc.Named("dentrycache")
	require.Len(t, all, 1)
	assert.Equal(t, fields, all[0].Fields())
	assert.Empty(t, all[0].Tags())
	assert.Equal(t, telegraf.Gauge, all[0].Type())
}

func TestKernels(t *testing.T) {
	for name, fields := range map[string]map[string]any{
		"ubuntu1804": { // 4.15, which does not count negative dentries
			"dentries": int64(98034), "unused": int64(77140), "inodes": int64(83204), "inodes_unused": int64(3410),
		},
		"rhel8": { // 4.18, which does
			"dentries": int64(1093712), "unused": int64(1063200), "negative": int64(871032), "inodes": int64(209418), "inodes_unused": int64(2217),
		},
		"v6": {
			"dentries": int64(70054), "unused": int64(68782), "negative": int64(11953), "inodes": int64(57943), "inodes_unused": int64(0),
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &Dentrycache{proc: filepath.Join("testdata", name)}
			require.NoError(t, d.Init())
			acc := &collect.Metrics{}
			require.NoError(t, d.Gather(acc))
			require.Empty(t, acc.Errors())
			only(t, acc, fields)
		})
	}
}

func TestInitNeedsTheKernelsVersion(t *testing.T) {
	proc := t.TempDir()
	require.ErrorIs(t, (&Dentrycache{proc: proc}).Init(), os.ErrNotExist)
	write(t, proc, "sys/kernel/osrelease", "linux\n")
	require.ErrorContains(t, (&Dentrycache{proc: proc}).Init(), `"linux\n"`)
}

func write(t *testing.T, proc, name, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600))
}

func TestWithoutTheInodeStateTheDentriesAreReported(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	d := &Dentrycache{proc: proc}
	require.NoError(t, d.Init())
	acc := &collect.Metrics{}
	require.NoError(t, d.Gather(acc))
	require.Len(t, acc.Errors(), 1)
	require.ErrorIs(t, acc.Errors()[0], os.ErrNotExist)
	only(t, acc, map[string]any{"dentries": int64(5), "unused": int64(4), "negative": int64(0)})
}

func TestWithoutTheDentryStateNothingIsReported(t *testing.T) {
	proc := t.TempDir()
	d := &Dentrycache{proc: proc}
	acc := &collect.Metrics{}
	require.ErrorIs(t, d.Gather(acc), os.ErrNotExist)
	write(t, proc, "sys/fs/dentry-state", "5\t4\n")
	require.ErrorContains(t, d.Gather(acc), "2 numbers, expected 5")
	assert.Empty(t, acc.Named("dentrycache"))
}

func TestTheRealHost(t *testing.T) {
	d := inputs.Inputs["dentrycache"]().(*Dentrycache)
	require.NoError(t, d.Init())
	acc := &collect.Metrics{}
	require.NoError(t, d.Gather(acc))
	require.Empty(t, acc.Errors())
	all := acc.Named("dentrycache")
	require.Len(t, all, 1)
	for _, name := range []string{"dentries", "inodes"} {
		value, found := all[0].GetField(name)
		require.True(t, found, name)
		assert.Positive(t, value, name)
	}
}

func TestTheSampleConfigurationIsValid(t *testing.T) {
	sample := (&Dentrycache{}).SampleConfig()
	all, err := config.Parse("sample.conf", []byte(sample), os.LookupEnv, map[string]inputs.Creator{"dentrycache": inputs.Inputs["dentrycache"]})
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Equal(t, &Dentrycache{proc: "/proc"}, all[0].Plugin)
}
