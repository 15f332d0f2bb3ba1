package forkserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/pages"
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

// The Go runtime maps memory whenever it likes, also between the moment at which all memory is
// marked that a server does not need and the fork.
func TestStart_InheritsNothingThatIsMappedMeanwhile(t *testing.T) {
	const size, atOnce = 4 << 20, 16
	var mappers sync.WaitGroup
	ended := make(chan struct{})
	mappers.Go(func() {
		var mapped [atOnce][]byte
		for i := 0; ; i = (i + 1) % atOnce {
			if mapped[i] != nil {
				_ = unix.Munmap(mapped[i])
			}
			select {
			case <-ended:
				mapped[i] = nil
				for _, m := range mapped {
					if m != nil {
						_ = unix.Munmap(m)
					}
				}
				return
			default:
			}
			mapped[i], _ = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		}
	})
	defer mappers.Wait()
	defer close(ended)
	for range 20 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		pid, err := Start(pair[1], nil, true, Filter{})
		require.NoError(t, err)
		unix.Close(pair[1])
		_, err = unix.Read(pair[0], make([]byte, unsafe.Sizeof(Answer{}))) // it is ready
		assert.NoError(t, err)
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		assert.NoError(t, err)
		for _, m := range pages.ParseMaps(maps) {
			assert.True(t, m.Constant || m.End-m.Start < size, "%x-%x in\n%s", m.Start, m.End, maps)
		}
		unix.Close(pair[0]) // which ends it
		_, err = unix.Wait4(pid, nil, 0, nil)
		assert.NoError(t, err)
	}
}
