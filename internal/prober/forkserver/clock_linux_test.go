package forkserver

import (
	"os"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/pages"
)

func TestCallClock_IsTheKernels(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	function := clockFunction(pages.ParseMaps(maps))
	require.NotZero(t, function, "%s", maps)

	var before, after unix.Timespec
	var now syscall.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &before))
	assert.Zero(t, callClock(function, clockMonotonic, &now))
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &after))
	assert.LessOrEqual(t, before.Nano(), now.Nano())
	assert.LessOrEqual(t, now.Nano(), after.Nano())

	const noClock = 12345
	assert.NotZero(t, callClock(function, noClock, &now), "the error is the function's")
}

func TestClockFunction_WithoutVDSO(t *testing.T) {
	assert.Zero(t, clockFunction(nil))
	notELF := []byte("not an executable")
	assert.Zero(t, clockFunction([]pages.Mapping{{Start: uintptr(unsafe.Pointer(&notELF[0])), End: uintptr(unsafe.Pointer(&notELF[0])) + uintptr(len(notELF)), Name: "[vdso]"}}))
}
