package prober

import (
	"encoding/binary"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// A prober that was taken over, and asks for what plans never hold.
func TestFilter_AForbiddenCallKillsTheHelper(t *testing.T) {
	if filter().Call == 0 {
		t.Skip("there is no filter for this processor")
	}
	s, err := launch("/proc", true, true)
	require.NoError(t, err)
	defer func() { s.conn.Close(); s.reapLocked() }()
	ask := func(number uint32) unix.WaitStatus {
		w := &pending{comm: "vfsp:test", check: Check{Plan: &Plan{Steps: []Step{Call("getpid", unix.SYS_GETPID)}}}}
		w.compiled, err = w.check.Plan.compile(statxWorks)
		require.NoError(t, err)
		request := w.message()
		binary.NativeEndian.PutUint32(request[unsafe.Sizeof(forkserver.RequestHeader{}):], number)
		require.NoError(t, s.send(request))
		message := make([]byte, 4096)
		for {
			n, err := s.conn.Read(message)
			require.NoError(t, err)
			if answer, _, ok := forkserver.ParseAnswer(message[:n]); ok && answer.Kind == forkserver.Exited {
				return unix.WaitStatus(answer.Status)
			}
		}
	}
	assert.Zero(t, ask(unix.SYS_GETPID).ExitStatus())
	for name, number := range map[string]uint32{
		"execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "socket of no family": unix.SYS_SOCKET, "bind": unix.SYS_BIND,
		"ptrace": unix.SYS_PTRACE, "process_vm_writev": unix.SYS_PROCESS_VM_WRITEV, "mount": unix.SYS_MOUNT, "unshare": unix.SYS_UNSHARE,
		"bpf": unix.SYS_BPF, "init_module": unix.SYS_INIT_MODULE, "finit_module": unix.SYS_FINIT_MODULE, "reboot": unix.SYS_REBOOT,
		"open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT, "perf_event_open": unix.SYS_PERF_EVENT_OPEN, "keyctl": unix.SYS_KEYCTL,
		"io_uring_setup": unix.SYS_IO_URING_SETUP, "renameat2": unix.SYS_RENAMEAT2, "linkat": unix.SYS_LINKAT, "fchown": unix.SYS_FCHOWN,
		"chroot": unix.SYS_CHROOT, "ioctl": unix.SYS_IOCTL, "mkdirat": unix.SYS_MKDIRAT, "write": unix.SYS_WRITE, "memfd_create": unix.SYS_MEMFD_CREATE, "mmap": unix.SYS_MMAP, "mprotect": unix.SYS_MPROTECT,
		"of the x32 ABI": unix.SYS_GETPID | 1<<30,
	} {
		assert.Equal(t, unix.SIGSYS, ask(number).Signal(), name)
	}
	assert.Zero(t, ask(unix.SYS_GETPID).ExitStatus(), "the server goes on")
}

// The filter permits what plans are made of, and no more.
func TestFilter_AllowsTheCallsOfThePlans(t *testing.T) {
	call := regexp.MustCompile(`unix\.(SYS_[A-Z0-9_]+)`)
	collect := func(found map[string]bool, source string) {
		for _, match := range call.FindAllStringSubmatch(source, -1) {
			found[match[1]] = true
		}
	}
	permitted, used := make(map[string]bool), make(map[string]bool)
	own, err := os.ReadFile("seccomp.go")
	require.NoError(t, err)
	_, list, found := strings.Cut(string(own), "func planCalls()")
	require.True(t, found)
	list, _, found = strings.Cut(list, "// compoundCalls are")
	require.True(t, found)
	for line := range strings.Lines(list) {
		if !strings.Contains(line, "// for tests") {
			collect(permitted, line)
		}
	}
	for _, name := range []string{"plan.go", "steps.go", "statx.go"} { // only they make steps
		source, err := os.ReadFile(name)
		require.NoError(t, err)
		collect(used, string(source))
	}
	assert.Equal(t, slices.Sorted(maps.Keys(used)), slices.Sorted(maps.Keys(permitted)))
}
