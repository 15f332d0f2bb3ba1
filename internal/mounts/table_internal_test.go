package mounts

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The kernel tells of a change once. When the reading after it fails, the next
// call must try again. A FIFO plays the table: poll says that something
// happened while it has no writer, and it can't be read with pread.
func TestAFailedReadIsTriedAgain(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mountinfo")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	writer, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	table, err := OpenTable(name)
	require.NoError(t, err)
	defer table.Close()
	table.mounts, table.read = []Mount{{}}, true
	all, changed, err := table.Mounts()
	require.NoError(t, err)
	require.False(t, changed)
	require.Len(t, all, 1)

	require.NoError(t, unix.Close(writer))
	_, _, err = table.Mounts()
	require.ErrorIs(t, err, unix.ESPIPE)

	writer, err = unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(writer)
	all, _, err = table.Mounts()
	require.ErrorIs(t, err, unix.ESPIPE, "the mounts from before the change are out of date")
	assert.Nil(t, all)
}
