package filelocks_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/filelocks"
)

func TestParse_AllKindsOfLines(t *testing.T) {
	locks, err := filelocks.Read("testdata")
	require.NoError(t, err)
	assert.Equal(t, []filelocks.Lock{
		{Class: "POSIX", PID: 1234, Superblock: "8:1"},
		{Class: "POSIX", PID: 1235, Superblock: "8:1", Waiting: true},
		{Class: "POSIX", PID: 1236, Superblock: "8:1", Waiting: true}, // waits for a waiter
		{Class: "FLOCK", PID: 777, Superblock: "253:0"},
		{Class: "FLOCK", PID: 778, Superblock: "253:0", Waiting: true},
		{Class: "OFDLCK", PID: -1, Superblock: "0:47"},
		{Class: "LEASE", PID: 900, Superblock: "259:5"},
		{Class: "LEASE", PID: 901, Superblock: "8:1"},
		{Class: "LEASE", PID: 902, Superblock: "8:1"},
		{Class: "DELEG", PID: 0, Superblock: "8:17"},
		{Class: "POSIX", PID: 903, Superblock: ""},
		{Class: "POSIX", PID: 904, Superblock: "8:1"},
		{Class: "FLOCK", PID: 905, Superblock: "8:1"},
		{Class: "ACCESS", PID: 906, Superblock: "8:1"},
		{Class: "UNKNOWN", PID: 907, Superblock: "8:1"},
		{Class: "POSIX", PID: 908, Superblock: "1048575:1048575"},
	}, locks)
}

func TestParse_NoLocks(t *testing.T) {
	for _, content := range []string{"", "\n", "\n \n"} {
		locks, err := filelocks.Parse([]byte(content))
		require.NoError(t, err)
		assert.Empty(t, locks)
	}
}

func TestParse_MalformedLinesCostNoOthers(t *testing.T) {
	good := lock("FLOCK  ADVISORY  WRITE 5 08:01:7 0 EOF")
	for name, line := range map[string]string{
		"too few fields":          "2: POSIX  ADVISORY  WRITE 6",
		"a waiter of few fields":  "2: -> POSIX  ADVISORY  WRITE 6",
		"nothing but an arrow":    "2: ->",
		"no line number":          "POSIX  ADVISORY  WRITE 6 08:01:7 0",
		"a PID that is no number": lock("POSIX  ADVISORY  WRITE me 08:01:7 0 EOF"),
		"a device without inode":  lock("POSIX  ADVISORY  WRITE 6 08:01 0 EOF"),
		"one number too many":     lock("POSIX  ADVISORY  WRITE 6 08:01:02:7 0 EOF"),
		"a major beyond hex":      lock("POSIX  ADVISORY  WRITE 6 0g:01:7 0 EOF"),
		"a minor beyond 32 bits":  lock("POSIX  ADVISORY  WRITE 6 08:100000000:7 0 EOF"),
		"a negative minor":        lock("POSIX  ADVISORY  WRITE 6 08:-1:7 0 EOF"),
		"no device at all":        lock("POSIX  ADVISORY  WRITE 6 - 0 EOF"),
	} {
		t.Run(name, func(t *testing.T) {
			locks, err := filelocks.Parse([]byte(good + "\n" + line + "\n" + good))
			want := filelocks.Lock{Class: "FLOCK", PID: 5, Superblock: "8:1"}
			assert.Equal(t, []filelocks.Lock{want, want}, locks)
			require.Error(t, err)
			assert.ErrorContains(t, err, line, "the error shows the line")
			assert.NotContains(t, err.Error(), "FLOCK")
		})
	}
	_, err := filelocks.Parse([]byte("a\nb\n"))
	assert.ErrorContains(t, err, `"a\n"`)
	assert.ErrorContains(t, err, `"b\n"`, "all bad lines are named")
}

func lock(text string) string { return "1: " + text }

func TestRead_WithoutAFile(t *testing.T) {
	_, err := filelocks.Read(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestRead_TheKernelsLocks(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	require.NoError(t, err)
	defer file.Close()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(file.Fd()), &st))
	superblock := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))

	mine := func(want filelocks.Lock) int {
		t.Helper()
		locks, err := filelocks.Read("/proc")
		require.NoError(t, err)
		count := 0
		for _, l := range locks {
			if l == want {
				count++
			}
		}
		return count
	}
	flock := filelocks.Lock{Class: "FLOCK", PID: os.Getpid(), Superblock: superblock}
	posix := filelocks.Lock{Class: "POSIX", PID: os.Getpid(), Superblock: superblock}
	assert.Zero(t, mine(flock))
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	assert.Equal(t, 1, mine(flock), "of %+v", flock)
	require.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	assert.Equal(t, 1, mine(posix), "of %+v", posix)

	// Someone else's attempt waits.
	other, err := os.Open(file.Name())
	require.NoError(t, err)
	defer other.Close()
	done := make(chan error)
	go func() { done <- unix.Flock(int(other.Fd()), unix.LOCK_SH) }()
	waiting := flock
	waiting.Waiting = true
	for mine(waiting) == 0 {
		select {
		case err := <-done:
			t.Fatalf("flock did not wait: %v", err)
		default:
		}
	}
	assert.Equal(t, 1, mine(waiting))
	require.NoError(t, unix.Flock(int(file.Fd()), unix.LOCK_UN))
	require.NoError(t, <-done)
	assert.Zero(t, mine(waiting))
	assert.Equal(t, 1, mine(flock), "the waiter holds it now")
}

func FuzzParse(f *testing.F) {
	content, err := os.ReadFile("testdata/locks")
	require.NoError(f, err)
	f.Add(string(content))
	for _, line := range []string{"", "1: ->", "1: -> -> a b c 1 1:1:1", "1: POSIX A W 1 <none>", "1: FLOCK a b 1 :1:1", "1:\u00a0a b c 1 1:1:1\r\n\n"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, content string) {
		locks, err := filelocks.Parse([]byte(content))
		filled := 0
		for line := range strings.Lines(content) {
			if len(strings.Fields(line)) > 0 {
				filled++
			}
		}
		require.LessOrEqual(t, len(locks), filled)
		if len(locks) < filled {
			require.Error(t, err)
		} else {
			require.NoError(t, err)
		}
		for _, l := range locks {
			require.NotEmpty(t, l.Class)
			if l.Superblock != "" {
				require.Regexp(t, `^[0-9]+:[0-9]+$`, l.Superblock)
			}
		}
	})
}
