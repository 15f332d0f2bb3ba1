package forkserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// onMainThread is set for the copy of the test binary which starts a server from its
// main goroutine, which keeps the main thread then.
const onMainThread = "VFSPROBE_TEST_ON_MAIN_THREAD"

func init() {
	if os.Getenv(onMainThread) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(onMainThread) == "" {
		os.Exit(m.Run())
	}
	if err := startWithRestartableSequences(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// startWithRestartableSequences does to this thread what the dynamic linker of glibc
// does to the main thread: the kernel writes to the area whenever it returns there, in
// a forked process, too. See rseq(2), and sysdeps/nptl/rseq-access.h of glibc.
func startWithRestartableSequences() error {
	area, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	const size, signature = 32, 0x53053053
	_, _, errno := unix.Syscall6(unix.SYS_RSEQ, uintptr(unsafe.Pointer(unsafe.SliceData(area))), size, 0, signature, 0, 0)
	if errno != 0 && errno != unix.EBUSY && errno != unix.EINVAL && errno != unix.ENOSYS { // a libc was first, or the kernel has none
		return fmt.Errorf("rseq: %w", errno)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	pid, err := Start(pair[1], nil, true, Filter{})
	if err != nil {
		return err
	}
	unix.Close(pair[1])
	wait := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	message := make([]byte, unsafe.Sizeof(Answer{}))
	n, err := unix.Read(pair[0], message)
	unix.Close(pair[0]) // which ends it
	var status unix.WaitStatus
	for {
		if _, waitErr := unix.Wait4(pid, &status, 0, nil); !errors.Is(waitErr, unix.EINTR) {
			break
		}
	}
	if err != nil || n == 0 || !status.Exited() {
		return fmt.Errorf("%d bytes (%v), then it ended: %#x", n, err, status)
	}
	return nil
}

// Even a program without cgo has a thread like that: where it is position independent
// the dynamic linker has run in it.
func TestStart_FromTheMainThread(t *testing.T) {
	self, err := os.Executable()
	assert.NoError(t, err)
	command := exec.Command(self)
	command.Env = append(os.Environ(), onMainThread+"=1")
	out, err := command.CombinedOutput()
	assert.NoError(t, err, "%s", out)
}
