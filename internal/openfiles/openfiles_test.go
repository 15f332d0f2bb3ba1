package openfiles_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

func newReader(t testing.TB) *openfiles.Reader {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	return &openfiles.Reader{Prober: p, Proc: "/proc"}
}

// own is a directory of this process in procfs, relative to that.
func own(name string) string { return filepath.Join(strconv.Itoa(os.Getpid()), name) }

func targets(links openfiles.Links) map[string]string {
	all := make(map[string]string)
	for _, link := range links.Links {
		all[link.Name] = link.Target
	}
	return all
}

func TestReader_Links(t *testing.T) {
	dir := t.TempDir()
	want := make(map[string]string)
	for _, name := range []string{"plain", "new\nline", "\xff", strings.Repeat("x", 255)} {
		path := filepath.Join(dir, name)
		file, err := os.Create(path)
		require.NoError(t, err)
		defer file.Close()
		want[strconv.Itoa(int(file.Fd()))] = path
	}
	gone, err := os.Create(filepath.Join(dir, "gone"))
	require.NoError(t, err)
	defer gone.Close()
	require.NoError(t, os.Remove(gone.Name()))
	want[strconv.Itoa(int(gone.Fd()))] = gone.Name() + " (deleted)"

	r := newReader(t)
	all, err := r.Links([]string{own("fd")}, "/", 1000)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Zero(t, all[0].Errno)
	got := targets(all[0])
	for fd, path := range want {
		assert.Equal(t, path, got[fd])
	}
	for _, target := range got {
		assert.Equal(t, byte('/'), target[0], "and no sockets")
	}

	all, err = r.Links([]string{own("fd")}, dir[:8], 3)
	require.NoError(t, err)
	assert.Len(t, all[0].Links, 3, "there is a bound")
	all, err = r.Links(nil, "/", 3)
	require.NoError(t, err)
	assert.Empty(t, all)
}

func TestReader_LinksOfManyDirectories(t *testing.T) {
	directories := []string{"4194304/fd", own("fd"), own("nosuch")}
	for range 30 {
		directories = append(directories, own("fd"))
	}
	all, err := newReader(t).Links(directories, "/", 1000)
	require.NoError(t, err)
	require.Len(t, all, len(directories))
	assert.Equal(t, unix.ENOENT, all[0].Errno, "such a process has ended")
	assert.Equal(t, unix.ENOENT, all[2].Errno)
	for i, links := range all {
		if i != 0 && i != 2 {
			assert.Zero(t, links.Errno)
			assert.NotEmpty(t, links.Links)
		}
	}
}

func TestReader_LinksOfAProcessWithManyFiles(t *testing.T) {
	const many = 3000
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Cur < many+500 {
		t.Skip("too few files may be open")
	}
	file, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer file.Close()
	for range many {
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
	}
	all, err := newReader(t).Links([]string{own("fd")}, "/", 1<<20)
	require.NoError(t, err)
	found := 0
	for _, link := range all[0].Links {
		if link.Target == file.Name() {
			found++
		}
	}
	assert.Equal(t, many+1, found)
}

func TestReader_Infos(t *testing.T) {
	file, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer file.Close()
	files := []string{own("fdinfo/99999")}
	for range 25 {
		files = append(files, own(fmt.Sprint("fdinfo/", file.Fd())))
	}
	all, err := newReader(t).Infos(files)
	require.NoError(t, err)
	require.Len(t, all, len(files))
	assert.Nil(t, all[0])
	for _, info := range all[1:] {
		assert.Contains(t, string(info), "mnt_id:\t")
	}
}

func TestReader_CommandLines(t *testing.T) {
	sleeper := exec.Command("sleep", "600", "0")
	sleeper.Args[0] = ""
	require.NoError(t, sleeper.Start())
	t.Cleanup(func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	})
	all, err := newReader(t).CommandLines([]int{sleeper.Process.Pid, 4194304, os.Getpid()})
	require.NoError(t, err)
	assert.Equal(t, [][]string{{"", "600", "0"}, nil, os.Args}, all)
}

func TestReader_Task(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b\n")
	require.NoError(t, os.Mkdir(dir, 0o755))
	sleeper := exec.Command("sleep", "600")
	sleeper.Dir = dir
	require.NoError(t, sleeper.Start())
	t.Cleanup(func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	})
	r := newReader(t)
	task, err := r.Task(sleeper.Process.Pid, sleeper.Process.Pid)
	require.NoError(t, err)
	assert.Equal(t, dir, task.Cwd)
	if os.Geteuid() == 0 {
		if _, err := os.Stat("/proc/self/stack"); err == nil {
			require.Eventually(t, func() bool { // it may run still
				task, err := r.Task(sleeper.Process.Pid, sleeper.Process.Pid)
				return err == nil && strings.Contains(task.Stack, "+0x")
			}, 20*time.Second, 10*time.Millisecond)
		}
	}
	task, err = r.Task(4194304, 4194304)
	require.NoError(t, err)
	assert.Zero(t, task)
}

func TestReader_SeveralAtOnce(t *testing.T) {
	r := newReader(t)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for range 5 {
				links, err := r.Links([]string{own("fd")}, "/", 10)
				assert.NoError(t, err)
				assert.Len(t, links, 1)
			}
		})
	}
	all.Wait()
}

func TestReader_WithoutHelpers(t *testing.T) {
	r := newReader(t)
	r.Prober.Close()
	_, err := r.Task(os.Getpid(), os.Getpid())
	assert.ErrorContains(t, err, "other processes, host open files")
}

// To look at links of procfs asks no file system.
func TestReader_FilesOnASilentFileSystem(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	holder := exec.Command("sh", "-c", `cd "$0"; exec <canary; echo; exec sleep 600`, fs.Dir)
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	t.Cleanup(fs.Heal)
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)
	fs.Silence()
	pid := holder.Process.Pid
	r := newReader(t)
	task, err := r.Task(pid, pid)
	require.NoError(t, err)
	assert.Equal(t, fs.Dir, task.Cwd)
	all, err := r.Links([]string{fmt.Sprintf("%d/fd", pid)}, "/", 100)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(fs.Dir, faultfs.FileName), targets(all[0])["0"])
	infos, err := r.Infos([]string{fmt.Sprintf("%d/fdinfo/0", pid)})
	require.NoError(t, err)
	assert.Contains(t, string(infos[0]), "mnt_id:")
}
