package drill

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// drilling has this program make a drill at that place.
const drilling = "VFSPROBE_TEST_DRILL"

func TestMain(m *testing.M) {
	Guard()
	if dir := os.Getenv(drilling); dir != "" {
		if err := Run(context.Background(), Options{Dir: dir, Duration: time.Hour, Began: func() { os.Stdout.WriteString("hangs\n") }}); err != nil {
			panic(err)
		}
		return
	}
	faultfs.Main(m)
}

func mounted(t *testing.T, dir string) bool {
	content, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	return bytes.Contains(content, []byte(" "+dir+" "))
}

// waits starts a process that waits for the mount, and returns what it says in the end.
func waits(t *testing.T, dir string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	c := exec.Command("stat", "-f", dir)
	c.Stderr = &said
	require.NoError(t, c.Start())
	return c, &said
}

func untilItWaits(t *testing.T, c *exec.Cmd) {
	t.Helper()
	require.Eventually(t, func() bool {
		wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", c.Process.Pid))
		return string(wchan) == "request_wait_answer"
	}, 30*time.Second, time.Millisecond, "it does not wait for the mount")
}

// It hangs, and ends by itself, with an error for who waits.
func TestRun(t *testing.T) {
	faultfs.Require(t)
	dir := filepath.Join(t.TempDir(), "drill")
	var waiter, killed *exec.Cmd
	var said *bytes.Buffer
	began := time.Now()
	const lasts = 2 * time.Second // after this process has seen it begin
	err := Run(context.Background(), Options{Dir: dir, Duration: lasts, Began: func() {
		assert.True(t, mounted(t, dir))
		waiter, said = waits(t, dir)
		killed, _ = waits(t, dir)
		untilItWaits(t, waiter)
		untilItWaits(t, killed)
		require.NoError(t, killed.Process.Kill())
		began = time.Now()
	}})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, time.Since(began), lasts)
	require.Error(t, killed.Wait())
	require.Error(t, waiter.Wait())
	assert.Contains(t, said.String(), "connection abort")
	assert.False(t, mounted(t, dir))
	_, err = os.Lstat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// It ends, too, when its process is killed, and when that is stopped and its time is up.
func TestRun_Killed(t *testing.T) {
	faultfs.Require(t)
	dir := filepath.Join(t.TempDir(), "drill")
	c := exec.Command("/proc/self/exe")
	c.Env = []string{drilling + "=" + dir}
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	_, err = out.Read(make([]byte, 6))
	require.NoError(t, err)
	assert.True(t, mounted(t, dir))
	waiter, _ := waits(t, dir)
	untilItWaits(t, waiter)
	require.NoError(t, c.Process.Kill())
	_ = c.Wait()
	require.Error(t, waiter.Wait())
	require.Eventually(t, func() bool {
		_, err := os.Lstat(dir)
		return errors.Is(err, os.ErrNotExist) && !mounted(t, dir)
	}, 30*time.Second, 20*time.Millisecond)
}

// Who is interrupted leaves nothing behind, and a place that is taken is left alone.
func TestRun_Ends(t *testing.T) {
	faultfs.Require(t)
	dir := t.TempDir()
	require.ErrorIs(t, Run(context.Background(), Options{Dir: dir, Duration: time.Hour}), os.ErrExist)
	ctx, stop := context.WithCancel(context.Background())
	require.NoError(t, Run(ctx, Options{Dir: filepath.Join(dir, "x"), Duration: time.Hour, Began: stop}))
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, names)
}

func TestGreet(t *testing.T) {
	_, err := greet(make([]byte, 100))
	require.ErrorContains(t, err, "no greeting")
	_, err = greet(nil)
	require.Error(t, err)
	request := make([]byte, 104)
	binary.NativeEndian.PutUint32(request[4:], opInit)
	binary.NativeEndian.PutUint64(request[8:], 77)
	binary.NativeEndian.PutUint32(request[40:], 7)
	binary.NativeEndian.PutUint32(request[44:], 45)
	answer, err := greet(request)
	require.NoError(t, err)
	assert.EqualValues(t, 80, binary.NativeEndian.Uint32(answer))
	assert.EqualValues(t, 0, binary.NativeEndian.Uint32(answer[4:]), "no error")
	assert.EqualValues(t, 77, binary.NativeEndian.Uint64(answer[8:]))
	assert.EqualValues(t, 7, binary.NativeEndian.Uint32(answer[16:]))
	assert.EqualValues(t, 45, binary.NativeEndian.Uint32(answer[20:]))
}

func FuzzGreet(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x1a\x00\x00\x00", 26)))
	f.Fuzz(func(t *testing.T, request []byte) {
		answer, err := greet(request)
		assert.Equal(t, err == nil, len(answer) == outHeader+initOut)
	})
}
