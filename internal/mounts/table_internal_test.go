package mounts

import (
	"os"
	"path/filepath"
	"testing"
	"time"

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
	table.mounts, table.read = []Mount{{}}, time.Now()
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

// As when the kernel makes a file system read-only after an error.
func TestAnUnannouncedChangeIsFound(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mountinfo")
	write := func(mode string) {
		line := "22 1 8:1 / / rw - ext4 /dev/sda1 " + mode + "\n"
		require.NoError(t, os.WriteFile(name, []byte(line), 0o600))
	}
	write("rw")
	table, err := OpenTable(name)
	require.NoError(t, err)
	defer table.Close()
	look := func() (readOnly, changed bool) {
		all, changed, err := table.Mounts()
		require.NoError(t, err)
		require.Len(t, all, 1)
		return all[0].ReadOnly(), changed
	}
	later := func() { table.read = table.read.Add(-recheck) }
	readOnly, changed := look()
	assert.True(t, changed && !readOnly)
	later()
	readOnly, changed = look()
	assert.False(t, changed || readOnly)
	write("ro")
	readOnly, changed = look()
	assert.False(t, changed || readOnly, "it is not time yet")
	later()
	readOnly, changed = look()
	assert.True(t, changed && readOnly)
}
