package pages

import (
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func locked(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	found := regexp.MustCompile(`VmLck:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, found)
	n, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	return n
}

// It is this test again, in a process of its own.
func TestLockProgram(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch os.Getenv("PAGES_TEST") {
	case "locks":
		before := locked(t)
		require.NoError(t, LockProgram("/proc"))
		assert.Greater(t, locked(t), before+1000, "kB, of code and constants")
		return
	case "may not":
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}))
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		require.NoError(t, unix.Capset(&header, &none[0])) // of this thread, which CAP_IPC_LOCK is asked of
		err := LockProgram("/proc")
		if assert.Error(t, err) {
			assert.Regexp(t, `mlock2: .* \(RLIMIT_MEMLOCK must be \d{4,} kB\)`, err.Error())
		}
		return
	}
	for _, what := range []string{"locks", "may not"} {
		command := exec.Command("/proc/self/exe", "-test.run=^TestLockProgram$")
		command.Env = append(os.Environ(), "PAGES_TEST="+what)
		out, err := command.CombinedOutput()
		if what == "locks" && os.Geteuid() != 0 {
			continue // RLIMIT_MEMLOCK is whatever it is
		}
		assert.NoError(t, err, "%s: %s", what, out)
	}
	assert.Error(t, LockProgram(t.TempDir()))
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon\n7ffc1c5f2000-7ffc1c5f6000 r--p 00000000 00:00 0 [vvar]\n"))
	f.Fuzz(func(t *testing.T, maps []byte) {
		for _, m := range ParseMaps(maps) {
			assert.Less(t, m.Start, m.End)
		}
	})
}
