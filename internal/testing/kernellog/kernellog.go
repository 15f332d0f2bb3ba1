// Package kernellog stands in for the kernel's log, /dev/kmsg, to which no program can write as
// the kernel.
package kernellog

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// New makes a FIFO that is read as the log is. write writes one record, which begins with its
// priority, number and time in microseconds since the boot, as in "4,1,1,-;text".
func New(t testing.TB) (name string, write func(record string)) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "kmsg")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	_, err = unix.FcntlInt(file.Fd(), unix.F_SETFL, unix.O_RDWR|unix.O_DIRECT) // one read returns one write, pipe(2)
	require.NoError(t, err)
	return name, func(record string) {
		t.Helper()
		_, err := file.WriteString(record)
		require.NoError(t, err)
	}
}
