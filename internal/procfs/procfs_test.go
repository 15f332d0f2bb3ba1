package procfs_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

func TestRead(t *testing.T) {
	limits, err := procfs.Read("/proc/self/limits")
	require.NoError(t, err)
	assert.Contains(t, string(limits), "Max open files")
	name := filepath.Join(t.TempDir(), "long")
	for _, size := range []int{0, 1, 511, 512, 513, 1024, 100_000} {
		want := bytes.Repeat([]byte("x"), size)
		require.NoError(t, os.WriteFile(name, want, 0o600))
		got, err := procfs.Read(name)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, got), "%d bytes", size)
	}
	_, err = procfs.Read(filepath.Dir(name))
	assert.ErrorContains(t, err, "read "+filepath.Dir(name))
	text, err := procfs.ReadText("/proc/self/comm")
	require.NoError(t, err)
	assert.Equal(t, filepath.Base(os.Args[0])[:min(15, len(filepath.Base(os.Args[0])))], text)
}

func TestReadNumber(t *testing.T) {
	n, err := procfs.ReadNumber("/proc/sys/kernel/pid_max")
	require.NoError(t, err)
	assert.Positive(t, n)
	_, err = procfs.ReadNumber("/proc/sys/kernel/none")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = procfs.ReadNumber("/proc/self/comm")
	assert.ErrorContains(t, err, "/proc/self/comm: ")
}

func FuzzParseNumber(f *testing.F) {
	for _, content := range []string{"4845 N0=4845\n", "100\n", "", "\v1\v", " 9223372036854775807", "-1\n", "9223372036854775808", "+07"} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		n, err := procfs.ParseNumber([]byte(content))
		if err != nil {
			require.Zero(t, n)
			return
		}
		want, err := strconv.ParseInt(strings.Fields(content)[0], 10, 64)
		require.NoError(t, err)
		require.Equal(t, want, n)
		again, err := procfs.ParseNumber(fmt.Appendf(nil, "%d N0=5 %s", n, content))
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}
