package dentrycache

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// floodVariable tells the test program to be the process that floods a directory.
const floodVariable = "VFSPROBE_TEST_FLOOD"

// floodComm is its name: one with bytes that are trouble elsewhere.
const floodComm = "agent \"x\",=\\\n"

// flood looks up names that do not exist: as many as each line of stdin says, and
// then answers with a line. All are made by one thread, as an agent does.
func flood(directory string) {
	runtime.LockOSThread()
	comm := append([]byte(floodComm), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&comm[0])), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fd, err := unix.Open(directory, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, directory, err)
		os.Exit(1)
	}
	prefix := directory + "/missing-" + strconv.Itoa(os.Getpid()) + "-"
	if os.Getenv(floodVariable+"_AT") != "" { // through the descriptor
		prefix = prefix[len(directory)+1:]
	} else {
		fd = unix.AT_FDCWD
	}
	name := make([]byte, 0, unix.PathMax)
	var st unix.Stat_t
	next := 0
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		count, err := strconv.Atoi(lines.Text())
		if err != nil {
			os.Exit(1)
		}
		for range count {
			name = strconv.AppendInt(append(name[:0], prefix...), int64(next), 10)
			name = append(name, 0)
			next++
			_, _, errno := unix.RawSyscall6(unix.SYS_NEWFSTATAT, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
			if errno != unix.ENOENT {
				fmt.Fprintln(os.Stderr, string(name), errno)
				os.Exit(1)
			}
		}
		fmt.Println(count)
	}
}

// flooder is the process that floods.
type flooder struct {
	t       testing.TB
	command *exec.Cmd
	stdin   io.WriteCloser
	answers *bufio.Scanner
}

func startFlooder(t testing.TB, directory string) *flooder {
	t.Helper()
	f := &flooder{t: t, command: exec.Command("/proc/self/exe")}
	f.command.Env = append(os.Environ(), floodVariable+"="+directory)
	f.command.Stderr = os.Stderr
	var err error
	f.stdin, err = f.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := f.command.StdoutPipe()
	require.NoError(t, err)
	f.answers = bufio.NewScanner(stdout)
	require.NoError(t, f.command.Start())
	t.Cleanup(func() {
		f.stdin.Close()
		_ = f.command.Wait()
	})
	return f
}

// start looks up so many names, and does not wait.
func (f *flooder) start(count int) {
	f.t.Helper()
	_, err := fmt.Fprintln(f.stdin, count)
	require.NoError(f.t, err)
}

// wait waits for the end of what was started.
func (f *flooder) wait() {
	f.t.Helper()
	require.True(f.t, f.answers.Scan(), "the process that floods has ended")
}

func (f *flooder) pid() int64 { return int64(f.command.Process.Pid) }

// directoryOf makes one whose path has few surprises.
func directoryOf(t testing.TB, parent, name string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return strings.TrimSuffix(dir, "/")
}
