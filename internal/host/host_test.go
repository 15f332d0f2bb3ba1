package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

// recorder keeps what was logged.
type recorder struct {
	telegraf.Logger
	mu    sync.Mutex
	lines []string
}

func (r *recorder) say(level, line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, level+" "+line)
}

func (r *recorder) Error(a ...any)                 { r.say("E", fmt.Sprint(a...)) }
func (r *recorder) Errorf(format string, a ...any) { r.say("E", fmt.Sprintf(format, a...)) }
func (r *recorder) Info(a ...any)                  { r.say("I", fmt.Sprint(a...)) }
func (r *recorder) Infof(format string, a ...any)  { r.say("I", fmt.Sprintf(format, a...)) }

// said returns what was logged since the last call.
func (r *recorder) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return lines
}

func newHost(t *testing.T, environment map[string]string) (*host.Host, *recorder) {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	log := new(recorder)
	roots := host.FindRoots(func(name string) string { return environment[name] })
	return host.New(host.Options{Roots: roots, Prober: p, Log: log, MountsPatience: 20 * time.Second}), log
}

func TestFindRoots(t *testing.T) {
	for _, c := range []struct {
		environment map[string]string
		want        host.Roots
		other       bool
	}{
		{nil, host.Roots{Proc: "/proc", Sys: "/sys", Etc: "/etc", Dev: "/dev", PID: "self"}, false},
		{map[string]string{"HOST_PROC": "/hostfs/proc", "HOST_SYS": "/hostfs/sys", "HOST_ETC": "/hostfs/etc", "HOST_MOUNT_PREFIX": "/hostfs/"},
			host.Roots{Proc: "/hostfs/proc", Sys: "/hostfs/sys", Etc: "/hostfs/etc", Dev: "/dev", MountPrefix: "/hostfs", PID: "1"}, true},
		{map[string]string{"HOST_PROC": "/proc", "HOST_MOUNT_PREFIX": "/"}, host.Roots{Proc: "/proc", Sys: "/sys", Etc: "/etc", Dev: "/dev", PID: "self"}, false},
		{map[string]string{"HOST_PROC": "/proc/", "HOST_SYS": ""}, host.Roots{Proc: "/proc", Sys: "/sys", Etc: "/etc", Dev: "/dev", PID: "self"}, false},
	} {
		got := host.FindRoots(func(name string) string { return c.environment[name] })
		assert.Equal(t, c.want, got, "%v", c.environment)
		assert.Equal(t, c.other, got.OtherProc(), "%v", c.environment)
	}
}

func TestHost_Join(t *testing.T) {
	h, _ := newHost(t, nil)
	a, b := new(int), new(int)
	first := h.Join(a)
	assert.NotZero(t, first)
	assert.Equal(t, first, h.Join(b), "the round under way")
	second := h.Join(b)
	assert.Greater(t, second, first)
	assert.Equal(t, second, h.Join(a))
	third := h.Join(a)
	assert.Equal(t, third+1, h.Join(a), "another interval than the other's")
	assert.Equal(t, third+1, h.Join(b))

	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			me, last := new(int), uint64(0)
			for range 100 {
				round := h.Join(me)
				assert.Greater(t, round, last)
				last = round
			}
		})
	}
	all.Wait()
}

func TestHost_ReadFile(t *testing.T) {
	h, _ := newHost(t, nil)
	dir := t.TempDir()
	name := filepath.Join(dir, "a b\n")
	content := strings.Repeat("x", 100_000)
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	got, err := h.ReadFile(name, 100_000, 5*time.Second)
	require.NoError(t, err)
	assert.Equal(t, content, string(got))

	require.NoError(t, os.WriteFile(name, nil, 0o600))
	got, err = h.ReadFile(name, 10, 5*time.Second)
	require.NoError(t, err)
	assert.Empty(t, got)

	for what, c := range map[string]struct {
		prepare func(name string) error
		want    error
	}{
		"missing":     {func(string) error { return nil }, os.ErrNotExist},
		"too large":   {func(name string) error { return os.WriteFile(name, make([]byte, 1001), 0o600) }, unix.EFBIG},
		"a directory": {func(name string) error { return os.Mkdir(name, 0o700) }, unix.EISDIR},
		"a loop":      {func(name string) error { return os.Symlink(name, name) }, unix.ELOOP},
	} {
		name := filepath.Join(dir, what)
		require.NoError(t, c.prepare(name))
		_, err := h.ReadFile(name, 1000, 5*time.Second)
		require.ErrorIs(t, err, c.want, what)
		assert.ErrorContains(t, err, name)
	}

	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	began := time.Now()
	_, _ = h.ReadFile(fifo, 1000, 5*time.Second)
	assert.Less(t, time.Since(began), 4*time.Second, "whatever it says, it does not wait for a writer")

	h.Prober.Close()
	_, err = h.ReadFile(name, 10, time.Second)
	assert.ErrorContains(t, err, "no helper process")
}

func TestHost_ReadFileOnASilentFileSystem(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	h, _ := newHost(t, nil)
	name := filepath.Join(fs.Dir, faultfs.FileName)
	_, err := h.ReadFile(name, faultfs.FileSize, 5*time.Second)
	require.NoError(t, err)
	fs.Silence()
	for range 2 {
		began := time.Now()
		_, err = h.ReadFile(name, faultfs.FileSize, 300*time.Millisecond)
		assert.ErrorContains(t, err, name)
		assert.ErrorContains(t, err, "not read within 300ms")
		assert.Less(t, time.Since(began), 20*time.Second)
	}
	fs.Heal()
	require.Eventually(t, func() bool {
		_, err := h.ReadFile(name, faultfs.FileSize, 5*time.Second)
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
}

// in puts a file in the place of another for the time of the test.
func in(t *testing.T, place, content string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	require.NoError(t, unix.Mount(file, place, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(place, 0)) })
}

func TestHost_LookUpUser(t *testing.T) {
	faultfs.Require(t)
	in(t, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n# a comment\n\nnonsense\nann:x:1000:1001:Ann,,,:/home/ann:/bin/sh\nbob:x:1002:1002::/:\neve:x:1OO3:1003::/:\nmallory:x:1004:::/:\nnone:x:4294967295:1005::/:\n")
	in(t, "/etc/group", "root:x:0:\nodd:x:a:ann\nbackup:x:34:bob,ann\ndisk:x:6:ann\nann:x:1001:\nmore:x:35:annette\n")
	h, _ := newHost(t, nil)
	ann := host.User{UID: 1000, GID: 1001, Groups: []uint32{34, 6}}
	for name, want := range map[string]host.User{
		"ann": ann, "1000": ann, "root": {}, "0": {}, "bob": {UID: 1002, GID: 1002, Groups: []uint32{34}},
	} {
		got, err := h.LookUpUser(name)
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	for _, name := range []string{"nobody", "1001", "", "ann:x", "eve", "mallory", "none"} {
		_, err := h.LookUpUser(name)
		assert.ErrorContains(t, err, fmt.Sprintf("no user %q", name))
	}
}

func TestHost_LogsTheTablesStateOnce(t *testing.T) {
	proc := t.TempDir()
	h, log := newHost(t, map[string]string{"HOST_PROC": proc})
	look := func() []string {
		h.RereadMounts()
		h.Mounts(h.Join(t))
		return log.said()
	}
	lines := look()
	require.Len(t, lines, 1)
	assert.Regexp(t, `^E there is no mount table, .*`+proc+`/1/mountinfo`, lines[0])
	assert.Empty(t, look(), "it is said once")

	require.NoError(t, os.Mkdir(filepath.Join(proc, "1"), 0o755))
	file := filepath.Join(proc, "1/mountinfo")
	good := "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	require.NoError(t, os.WriteFile(file, []byte(good), 0o600))
	assert.Equal(t, []string{"I the mount table can be read again"}, look())
	assert.Empty(t, look())

	require.NoError(t, os.WriteFile(file, []byte(good+"nonsense\n"), 0o600))
	lines = look()
	require.Len(t, lines, 1)
	assert.Regexp(t, `^E a line of the mount table`, lines[0])
	assert.Empty(t, look())

	require.NoError(t, os.Remove(file))
	lines = look()
	require.Len(t, lines, 1)
	assert.Regexp(t, `^E the mount table is \S+ old: .*no such file`, lines[0])
	assert.Empty(t, look())
	require.NoError(t, os.WriteFile(file, []byte(good), 0o600))
	assert.Equal(t, []string{"I the mount table can be read again"}, look())
}

func TestHost_OfThisProcess(t *testing.T) {
	h, log := newHost(t, nil)
	view := h.Mounts(h.Join(t))
	require.NoError(t, view.Hindrance)
	assert.NotNil(t, view.At("/proc"))
	own, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	assert.Equal(t, own, h.MountNamespace())
	other, err := h.MountsOf("self")
	require.NoError(t, err)
	assert.Len(t, other.Mounts, len(view.Mounts))
	err = h.NFSStats(1, time.Time{}).Err
	require.NoError(t, err)
	assert.Empty(t, log.said())
}

// A reader of mountstats keeps others from mounting while it hangs: inputs share what it finds.
func TestHost_NFSStatsAreReadOnceInARound(t *testing.T) {
	proc := t.TempDir()
	file := filepath.Join(proc, "1", "mountstats")
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o700))
	put := func(age int) {
		const mount = "device s:/e mounted on /e with fstype nfs4 statvers=1.1\n\tage:\t%d\n"
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, mount, age), 0o600))
	}
	h, _ := newHost(t, map[string]string{"HOST_PROC": proc})
	ages := func(round uint64, since time.Time) (ages []int64) {
		counters := h.NFSStats(round, since)
		require.NoError(t, counters.Err)
		for _, s := range counters.All {
			ages = append(ages, s.Age)
		}
		return ages
	}
	put(1)
	assert.Equal(t, []int64{1}, ages(1, time.Time{}))
	first := h.NFSStats(1, time.Time{}).At
	put(2)
	assert.Equal(t, []int64{1}, ages(1, first), "by another input")
	assert.Equal(t, []int64{2}, ages(1, first.Add(1)), "who needs to know what it is later")
	put(3)
	assert.Equal(t, []int64{2}, ages(1, time.Time{}))
	assert.Equal(t, []int64{3}, ages(2, time.Time{}), "in the next round")
}

func TestHost_WaitOfAHelper(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	h, _ := newHost(t, nil)
	fs.Silence(faultfs.Statfs)
	t.Cleanup(fs.Heal)
	ticket := h.Prober.Submit(prober.Check{Key: "k", Plan: &prober.Plan{Timeout: time.Minute, Steps: []prober.Step{prober.Statfs(fs.Dir)}}}, func(prober.Report) {})
	var helper int
	require.Eventually(t, func() bool {
		progress, ok := h.Prober.Progress(ticket)
		helper = progress.PID
		return ok && helper != 0 && strings.Contains(h.FunctionOf(helper), "request")
	}, 20*time.Second, 10*time.Millisecond)
	assert.Contains(t, h.WaitOf(helper), "request")
	assert.Empty(t, h.FunctionOf(4194304))
	assert.Empty(t, h.WaitOf(4194304))
}

func TestHost_KernelLog(t *testing.T) {
	h, log := newHost(t, nil)
	name := filepath.Join(t.TempDir(), "kmsg")
	for _, member := range []string{"a", "b"} {
		_, readable := h.KernelLog(name, member)
		assert.False(t, readable)
		_, readable = h.KernelLog("", member)
		assert.False(t, readable)
	}
	lines := log.said()
	require.Len(t, lines, 1, "said once, and nothing of the log that nobody wants")
	assert.Regexp(t, "^I the kernel's messages are not counted.*"+name, lines[0])

	name += "2"
	require.NoError(t, unix.Mkfifo(name, 0o600))
	kernel, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer kernel.Close()
	for _, member := range []string{"a", "b"} {
		_, readable := h.KernelLog(name, member)
		assert.True(t, readable)
	}
	_, err = kernel.WriteString("4,1,1,-;to all\n")
	require.NoError(t, err)
	for _, member := range []string{"a", "b"} {
		news, _ := h.KernelLog(name, member)
		require.Len(t, news.Records, 1)
		assert.Equal(t, "to all", news.Records[0].Text)
	}
	assert.Empty(t, log.said())
	_, err = kernel.WriteString("nonsense")
	require.NoError(t, err)
	_, readable := h.KernelLog(name, "a")
	assert.True(t, readable)
	assert.Len(t, log.said(), 1)
}
