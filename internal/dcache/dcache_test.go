package dcache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
)

func TestRead_OfKernels(t *testing.T) {
	for _, c := range []struct {
		name     string
		version  dcache.Version
		dentries dcache.DentryState
		inodes   dcache.InodeState
	}{
		{"rhel7", dcache.Version{Major: 3, Minor: 10}, dcache.DentryState{Dentries: 184466, Unused: 163245}, dcache.InodeState{Inodes: 122417, Unused: 3541}},
		{"ubuntu1804", dcache.Version{Major: 4, Minor: 15}, dcache.DentryState{Dentries: 98034, Unused: 77140}, dcache.InodeState{Inodes: 83204, Unused: 3410}},
		// Red Hat brought the count to 4.18.
		{"rhel8", dcache.Version{Major: 4, Minor: 18}, dcache.DentryState{Dentries: 1093712, Unused: 1063200, Negative: 871032, HasNegative: true}, dcache.InodeState{Inodes: 209418, Unused: 2217}},
		// Zero is a count since 5.0.
		{"rc", dcache.Version{Major: 5}, dcache.DentryState{Dentries: 70054, Unused: 68782, HasNegative: true}, dcache.InodeState{Inodes: 57943}},
		{"v6", dcache.Version{Major: 6, Minor: 18}, dcache.DentryState{Dentries: 70054, Unused: 68782, Negative: 11953, HasNegative: true}, dcache.InodeState{Inodes: 57943}},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := filepath.Join("testdata", c.name)
			version, err := dcache.ReadVersion(proc)
			require.NoError(t, err)
			assert.Equal(t, c.version, version)
			dentries, err := dcache.ReadDentryState(proc, version)
			require.NoError(t, err)
			assert.Equal(t, c.dentries, dentries)
			inodes, err := dcache.ReadInodeState(proc)
			require.NoError(t, err)
			assert.Equal(t, c.inodes, inodes)
		})
	}
}

func TestParseRelease(t *testing.T) {
	for release, want := range map[string]dcache.Version{
		"4.18.0-553.el8.x86_64":   {Major: 4, Minor: 18},
		"6.18.44-fc-v669\n":       {Major: 6, Minor: 18},
		"5.0.0-rc1+":              {Major: 5, Minor: 0},
		"6.1":                     {Major: 6, Minor: 1},
		"10.0.0":                  {Major: 10, Minor: 0},
		"5.15.167.4-microsoft-s2": {Major: 5, Minor: 15},
		"6.12-rc3":                {Major: 6, Minor: 12},
		"5.10-generic":            {Major: 5, Minor: 10},
	} {
		t.Run(release, func(t *testing.T) {
			got, err := dcache.ReadVersion(proc(t, "sys/kernel/osrelease", release))
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
	for _, release := range []string{"", "\n", "linux", "6", "6.", "6.x", "v6.1", "-6.1", "6.-1", "99999999999999999999.1"} {
		t.Run("malformed "+release, func(t *testing.T) {
			_, err := dcache.ReadVersion(proc(t, "sys/kernel/osrelease", release))
			require.ErrorContains(t, err, "sys/kernel/osrelease")
			assert.ErrorContains(t, err, strconv.Quote(release))
		})
	}
}

// proc is a procfs of one file.
func proc(t testing.TB, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	return dir
}

func TestRead_MalformedStates(t *testing.T) {
	for content, want := range map[string]string{
		"":                                    "0 numbers",
		"\n":                                  "0 numbers",
		"1\t2\t45\t0":                         "4 numbers, expected 5",
		"1\t2\t45\t0\tx\t0":                   `"x"`,
		"1\t2.5\t45\t0\t0\t0":                 `"2.5"`,
		"1\t2\t45\t0\t0\tdummy":               `"dummy"`,
		"9223372036854775808\t2\t45\t0\t0\t0": "out of range",
	} {
		t.Run(content, func(t *testing.T) {
			_, err := dcache.ReadDentryState(proc(t, "sys/fs/dentry-state", content), dcache.Version{Major: 6})
			require.ErrorContains(t, err, want)
			assert.ErrorContains(t, err, "sys/fs/dentry-state")
		})
	}
	for content, want := range map[string]string{"": "0 numbers", "5": "1 numbers, expected 2", "5 x": `"x"`} {
		_, err := dcache.ReadInodeState(proc(t, "sys/fs/inode-nr", content))
		require.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "sys/fs/inode-nr")
	}
}

func TestRead_ALaterKernelMayAddNumbers(t *testing.T) {
	dentries, err := dcache.ReadDentryState(proc(t, "sys/fs/dentry-state", "1 2 3 4 5 6 7 8"), dcache.Version{Major: 9})
	require.NoError(t, err)
	assert.Equal(t, dcache.DentryState{Dentries: 1, Unused: 2, Negative: 5, HasNegative: true}, dentries)
}

func TestRead_MissingFiles(t *testing.T) {
	empty := t.TempDir()
	_, err := dcache.ReadDentryState(empty, dcache.Version{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = dcache.ReadInodeState(empty)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = dcache.ReadVersion(empty)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestRead_OfThisKernel(t *testing.T) {
	version, err := dcache.ReadVersion("/proc")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, version.Major, 3)

	dentries, err := dcache.ReadDentryState("/proc", version)
	require.NoError(t, err)
	assert.Positive(t, dentries.Dentries)
	assert.LessOrEqual(t, dentries.Unused, dentries.Dentries)
	if version.Major >= 5 {
		assert.True(t, dentries.HasNegative)
	}

	inodes, err := dcache.ReadInodeState("/proc")
	require.NoError(t, err)
	assert.Positive(t, inodes.Inodes)
	assert.LessOrEqual(t, inodes.Unused, inodes.Inodes)
}

func TestRead_CountsNamesThatDoNotExist(t *testing.T) {
	version, err := dcache.ReadVersion("/proc")
	require.NoError(t, err)
	state := func() dcache.DentryState {
		now, err := dcache.ReadDentryState("/proc", version)
		require.NoError(t, err)
		return now
	}
	if !state().HasNegative {
		t.Skip("the kernel has no such count")
	}
	dir := t.TempDir()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("tmpfs keeps no negative dentries")
	}
	// Enough to stand out from what the rest of the host does meanwhile, unless it has many freed.
	const names, tries = 20_000, 20
	for try := range tries {
		before := state()
		for i := range names {
			_, err := os.Lstat(filepath.Join(dir, fmt.Sprintf("missing%d-%d", try, i)))
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		after := state()
		if after.Negative > before.Negative+names/2 && after.Dentries > before.Dentries+names/2 {
			return
		}
		t.Logf("%+v, then %+v", before, after)
	}
	assert.Fail(t, "names that do not exist are not counted")
}
