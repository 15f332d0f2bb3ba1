package watches

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// TestMain gives the tests processes of their own: into some of the host's even root may
// not look, in a sandbox.
func TestMain(m *testing.M) {
	namespace.Main(m, 0, nil)
}

// inode is the directory as stat shows it. Not on btrfs.
func inode(t *testing.T, path string) Inode {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return Inode{unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino}
}

func newReader(t testing.TB, proc string) *openfiles.Reader {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	return &openfiles.Reader{Prober: p, Proc: proc}
}

func scan(t *testing.T) *Watches {
	t.Helper()
	p := prober.New(prober.Options{})
	defer p.Close()
	w, err := Scan(&openfiles.Reader{Prober: p, Proc: "/proc"})
	require.NoError(t, err)
	return w
}

func TestScan_Inotify(t *testing.T) {
	dir := t.TempDir()
	require.Zero(t, scan(t).Counts[inode(t, dir)])
	var all []int
	for _, mask := range []uint32{unix.IN_MODIFY, unix.IN_ALL_EVENTS, unix.IN_CREATE | unix.IN_DELETE} {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		require.NoError(t, err)
		all = append(all, fd)
		_, err = unix.InotifyAddWatch(fd, dir, mask)
		require.NoError(t, err)
	}
	w := scan(t)
	assert.Equal(t, 2, w.Counts[inode(t, dir)], "the third one needs nothing of the children")
	for _, fd := range all {
		require.NoError(t, unix.Close(fd))
	}
	assert.Zero(t, scan(t).Counts[inode(t, dir)])
}

func TestScan_Fanotify(t *testing.T) {
	with, without := t.TempDir(), t.TempDir()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		t.Skipf("fanotify_init: %v", err)
	}
	defer unix.Close(fd)
	require.NoError(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, with))
	require.NoError(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN|unix.FAN_ONDIR, unix.AT_FDCWD, without))
	w := scan(t)
	assert.Equal(t, 1, w.Counts[inode(t, with)])
	assert.Zero(t, w.Counts[inode(t, without)])
}

// Others may not see which files a process has open.
func TestScan_WithoutTheRight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("another user takes root")
	}
	own := exec.Command("/proc/self/exe", "-test.run=^TestScan_AsAnotherUser$", "-test.v")
	own.Env = append(os.Environ(), asAnotherUser+"=1")
	own.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := own.CombinedOutput()
	require.NoError(t, err, "%s", output)
	assert.Contains(t, string(output), "--- PASS: TestScan_AsAnotherUser")
}

const asAnotherUser = "VFSPROBE_TEST_WATCHES_AS_ANOTHER_USER"

func TestScan_AsAnotherUser(t *testing.T) {
	if os.Getenv(asAnotherUser) == "" {
		t.Skip("it is run by TestScan_WithoutTheRight")
	}
	w := scan(t)
	require.ErrorContains(t, w.Hidden, "CAP_SYS_PTRACE")
}

// Processes that watch come and go while they are looked at.
func TestScan_ProcessesThatEndMeanwhile(t *testing.T) {
	watched := t.TempDir()
	stop := make(chan struct{})
	var holders sync.WaitGroup
	for range 2 {
		holders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				holder := exec.Command("sleep", "600")
				if !assert.NoError(t, holder.Start()) {
					return
				}
				time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
				_ = holder.Process.Kill()
				_ = holder.Wait()
			}
		})
	}
	defer holders.Wait()
	defer close(stop)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, watched, unix.IN_MODIFY)
	require.NoError(t, err)
	hidden := scan(t).Hidden // where another process has capabilities that this one lacks
	for range 20 {
		w := scan(t)
		require.Positive(t, w.Counts[inode(t, watched)], "or two: a child has it, too, until it executes")
		require.Equal(t, hidden, w.Hidden, "that a process has ended is no lack of a right")
	}
}

func TestScan_WithoutProcfs(t *testing.T) {
	_, err := Scan(newReader(t, filepath.Join(t.TempDir(), "proc")))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestParseMarks(t *testing.T) {
	w := &Watches{Counts: make(map[Inode]int)}
	require.NoError(t, w.add([]byte("pos:\t0\nflags:\t02004000\nmnt_id:\t15\nino:\t57\n"+
		"inotify wd:2 ino:2 sdev:fe00001 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0200000000000000\n"+
		"inotify wd:1 ino:ffffffffffffffff sdev:2c mask:fce ignored_mask:0 \n"+
		"fanotify flags:10 event-flags:0\nfanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000000\n"+
		"fanotify ino:68 sdev:800013 mflags:0 mask:8000038 ignored_mask:0\n"+
		"fanotify sdev:800013 mflags:0 mask:8000038 ignored_mask:0\n")))
	assert.Equal(t, map[Inode]int{{254, 1, 2}: 1, {0, 44, 1<<64 - 1}: 1, {8, 19, 0x68}: 1}, w.Counts)
	require.ErrorContains(t, w.add([]byte("inotify wd:1 ino:x sdev:1\n")), "ino")
	require.Error(t, w.add([]byte("inotify wd:1 ino\n")))
}

func FuzzMarks(f *testing.F) {
	f.Add([]byte("inotify wd:2 ino:2 sdev:fe00001 mask:800afce ignored_mask:0\n"))
	f.Add([]byte("fanotify ino:68 sdev:800013 mflags:0 mask:8000038\n"))
	f.Add([]byte("inotify ino sdev:\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		w := &Watches{Counts: make(map[Inode]int)}
		err := w.add(content)
		for inode, count := range w.Counts {
			require.Positive(t, count)
			require.Less(t, inode.Major, uint32(1<<12))
			require.Less(t, inode.Minor, uint32(1<<20))
		}
		if len(content) == 0 {
			require.NoError(t, err)
		}
	})
}

func BenchmarkScan(b *testing.B) {
	files := newReader(b, "/proc")
	for b.Loop() {
		if _, err := Scan(files); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWatches_Guards(t *testing.T) {
	dir := t.TempDir()
	files := newReader(t, "/proc")
	none, err := Guards(files)
	require.NoError(t, err)
	assert.Empty(t, none)
	for mask, want := range map[uint64][]int{unix.FAN_OPEN: nil, unix.FAN_OPEN_PERM: {os.Getpid()}, unix.FAN_ACCESS_PERM | unix.FAN_CLOSE: {os.Getpid()}} {
		fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
		if err != nil {
			t.Skipf("fanotify_init: %v", err)
		}
		require.NoError(t, unix.FanotifyMark(fd, unix.FAN_MARK_ADD, mask, unix.AT_FDCWD, dir))
		found, err := Guards(files)
		require.NoError(t, unix.Close(fd)) // which permits all
		require.NoError(t, err)
		assert.Equal(t, want, found, "%#x", mask)
	}
}

func TestAsksForPermission(t *testing.T) {
	for content, want := range map[string]bool{
		"": false,
		"pos:\t0\nflags:\t02\nmnt_id:\t15\nfanotify flags:4 event-flags:0\nfanotify mnt_id:2d mflags:0 mask:10000 ignored_mask:0\n":      true,
		"fanotify ino:2 sdev:800013 mflags:0 mask:8000002 ignored_mask:0\nfanotify sdev:800013 mflags:0 mask:40000 ignored_mask:30000\n": true,
		"fanotify ino:2 sdev:800013 mflags:0 mask:8000002 ignored_mask:10000\n":                                                          false,
	} {
		asks, err := asksForPermission([]byte(content))
		require.NoError(t, err)
		assert.Equal(t, want, asks, content)
	}
	_, err := asksForPermission([]byte("fanotify mask:x"))
	assert.Error(t, err)
}

func FuzzAsksForPermission(f *testing.F) {
	f.Add([]byte("fanotify mnt_id:2d mflags:0 mask:10000 ignored_mask:0\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if asks, _ := asksForPermission(content); asks && !bytes.Contains(content, []byte("mask:")) {
			t.Error(content)
		}
	})
}
