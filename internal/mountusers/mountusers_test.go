package mountusers_test

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mountusers"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// mapFile has this program map the file of that name, and wait.
const mapFile = "VFSPROBE_TEST_MAP"

func TestMain(m *testing.M) {
	if name, wanted := os.LookupEnv(mapFile); wanted {
		if name != "" {
			f, err := os.Open(name)
			if err == nil {
				_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE)
			}
			if err != nil {
				panic(err)
			}
			f.Close()
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	faultfs.Main(m)
}

func newHost(t *testing.T) *host.Host {
	p := prober.New(prober.Options{Warnf: t.Logf})
	t.Cleanup(p.Close)
	return host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p})
}

// start runs a command until the test ends.
func start(t *testing.T, c *exec.Cmd) int {
	t.Helper()
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c.Process.Pid
}

// waitReady runs this program under another name, until the test ends.
func waitReady(t *testing.T, program, file string, attributes *syscall.SysProcAttr) int {
	t.Helper()
	c := exec.Command(program)
	c.Env, c.SysProcAttr = []string{mapFile + "=" + file}, attributes
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	pid := start(t, c)
	line := make([]byte, 5)
	_, err = out.Read(line)
	require.NoError(t, err, "it does not run")
	return pid
}

func copyProgram(t *testing.T, to string) {
	content, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, content, 0o700))
}

// isStatic reports whether this program runs in another root: with the race detector it takes
// libraries.
func isStatic(t *testing.T) bool {
	program, err := elf.Open("/proc/self/exe")
	require.NoError(t, err)
	defer program.Close()
	return program.Section(".interp") == nil
}

// openFile has another process open a file: this one serves some file systems, and would wait
// for itself.
func openFile(t *testing.T, path string) int {
	return start(t, exec.Command("sh", "-c", `exec 5<>"$0" 6>&5; exec sleep 600`, path))
}

// await waits until processes have become what they are to be.
func await(t *testing.T, program string, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		require.Eventually(t, func() bool {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return err == nil && strings.TrimSpace(string(comm)) == program
		}, 30*time.Second, 10*time.Millisecond)
	}
}

// uses are what lsof tells of a process, in the terms of [mountusers.Uses].
type uses struct {
	files              int
	cwd, root, program bool
	mapped             int
}

// lsof asks the real one.
func lsof(t *testing.T, mount string) map[int]uses {
	t.Helper()
	out, err := exec.Command("lsof", "-w", "-n", "-P", "-F", "pf", "--", mount).Output()
	if err != nil && len(out) == 0 {
		return nil // it says so by exit code 1 that there is none
	}
	all := make(map[int]uses)
	pid := 0
	for line := range strings.Lines(string(out)) {
		value := strings.TrimSpace(line[1:])
		if line[0] == 'p' {
			pid, err = strconv.Atoi(value)
			require.NoError(t, err)
			continue
		}
		u := all[pid]
		switch {
		case value == "cwd":
			u.cwd = true
		case value == "rtd":
			u.root = true
		case value == "txt":
			u.program = true
		case value == "mem", value == "DEL":
			u.mapped++
		default:
			u.files++
		}
		all[pid] = u
	}
	return all
}

// unseen is what could not be looked at, but for processes which a sandbox hides from root.
func unseen(r *mountusers.Report) []string {
	return slices.DeleteFunc(slices.Clone(r.Unseen), func(why string) bool { return strings.HasPrefix(why, "the open files of ") })
}

func found(t *testing.T, h *host.Host, mount string) map[int]uses {
	t.Helper()
	report, err := mountusers.Find(h, mount, mountusers.Options{Timeout: time.Minute})
	require.NoError(t, err)
	assert.Empty(t, unseen(report), mount)
	all := make(map[int]uses)
	for _, u := range report.Users {
		all[u.PID] = uses{u.Files, u.Cwd, u.Root, u.Program, u.Mapped}
		assert.NotEmpty(t, u.Command)
		assert.Equal(t, "root", u.User)
		assert.Nil(t, u.Blocked)
	}
	return all
}

// On healthy mounts of many kinds the answer is that of lsof.
func TestFind_AgreesWithLsof(t *testing.T) {
	faultfs.Require(t)
	if _, err := exec.LookPath("lsof"); err != nil {
		t.Skip("no lsof here")
	}
	base := t.TempDir()
	mount := func(name, source, fstype string, flags uintptr, data string) string {
		dir := filepath.Join(base, name)
		namespace.Mount(t, dir, source, fstype, flags, data)
		return dir
	}
	var all []string
	for i := range 12 {
		all = append(all, mount(fmt.Sprintf("tmpfs %d", i), "tmpfs", "tmpfs", 0, ""))
	}
	require.NoError(t, os.Mkdir(filepath.Join(all[0], "part"), 0o755))
	bind := mount("bind", filepath.Join(all[0], "part"), "", unix.MS_BIND, "")
	inner := filepath.Join(all[1], "inner")
	require.NoError(t, os.Mkdir(inner, 0o755))
	require.NoError(t, unix.Mount("tmpfs", inner, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(inner, unix.MNT_DETACH) })
	for _, name := range []string{"upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(all[2], name), 0o755))
	}
	overlay := mount("overlay", "overlay", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, strings.ReplaceAll(all[2], " ", `\ `), strings.ReplaceAll(all[2], " ", `\ `)))
	disk, fuse, otherFUSE := loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, faultfs.New(t).Dir, faultfs.New(t).Dir
	proc := mount("proc", "proc", "proc", 0, "")
	idle := mount("idle", "tmpfs", "tmpfs", 0, "")
	all = append(all, bind, inner, overlay, disk, fuse, otherFUSE, proc, idle)
	require.Len(t, all, 20)

	var opened []int
	open := func(path string) { opened = append(opened, openFile(t, path)) }
	for i, dir := range []string{all[0], all[3], all[4], disk, overlay} {
		c := exec.Command("sleep", "600")
		c.Dir = dir
		start(t, c)
		if i > 0 {
			open(filepath.Join(dir, "file"))
		}
	}
	open(filepath.Join(bind, "new\nline"))
	open(filepath.Join(inner, "a (deleted)"))
	open(filepath.Join(fuse, faultfs.FileName))
	open(filepath.Join(all[5], "removed"))
	open(filepath.Join(proc, "self/comm"))
	await(t, "sleep", opened...)
	require.NoError(t, os.Remove(filepath.Join(all[5], "removed")))
	for _, dir := range []string{all[6], disk} {
		program := filepath.Join(dir, "program")
		copyProgram(t, program)
		waitReady(t, program, "", nil)
		if isStatic(t) {
			waitReady(t, "/program", "/program", &syscall.SysProcAttr{Chroot: dir})
		}
	}
	for _, dir := range []string{all[7], disk} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "mapped file"), make([]byte, 4096), 0o600))
		waitReady(t, "/proc/self/exe", filepath.Join(dir, "mapped file"), nil)
	}
	// In a mount namespace of its own.
	c := exec.Command("sleep", "600")
	c.Dir, c.SysProcAttr = all[8], &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	start(t, c)

	h := newHost(t)
	users := 0
	for _, dir := range all {
		want, got := lsof(t, dir), found(t, h, dir)
		if want == nil {
			want = map[int]uses{}
		}
		if dir == overlay {
			// Files there have other device numbers than directories (inode_properties in
			// Documentation/filesystems/overlayfs.rst), by which lsof goes.
			maps.DeleteFunc(got, func(_ int, u uses) bool { return u == uses{files: 2} })
			users++
		}
		assert.Equal(t, want, got, "%s", dir)
		users += len(got)
	}
	assert.Greater(t, users, 20)
	report, err := mountusers.Find(h, all[8], mountusers.Options{Timeout: time.Minute})
	require.NoError(t, err)
	require.Len(t, report.Users, 1)
	assert.True(t, report.Users[0].Foreign)
	assert.Empty(t, found(t, h, idle))

	report, err = mountusers.Find(h, filepath.Join(all[1], "inner/file/that is not there"), mountusers.Options{Timeout: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, inner, report.Path, "a path on it will do")
	report, err = mountusers.Find(h, all[1], mountusers.Options{Timeout: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, []string{inner}, report.Below)
	report, err = mountusers.Find(h, all[0], mountusers.Options{Timeout: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, []string{bind}, report.Others)
	require.Len(t, report.Users, 2)
	elsewhere := slices.DeleteFunc(report.Users, func(u mountusers.User) bool { return u.Elsewhere == "" })
	require.Len(t, elsewhere, 1, "one of them uses it by the bind mount")
	assert.Equal(t, bind, elsewhere[0].Elsewhere)
}

// Where the mount hangs, who uses it is told all the same, and who is blocked comes first.
func TestFind_AHangingMount(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	file := filepath.Join(fs.Dir, faultfs.FileName)
	// The child goes there once it has another program: until then this process, which serves
	// the mount, may wait for it.
	cwd := exec.Command("sh", "-c", `cd "$0" && exec sleep 600`, fs.Dir)
	users := map[string]int{"cwd": start(t, cwd)}
	users["file"] = openFile(t, file)
	await(t, "sleep", users["file"], users["cwd"])
	users["mapped"] = waitReady(t, "/proc/self/exe", file, nil)
	fs.Silence()
	t.Cleanup(fs.Abort)
	waits := exec.Command("ls", fs.Dir)
	require.NoError(t, waits.Start())
	t.Cleanup(func() { fs.Abort(); _ = waits.Wait() })
	require.Eventually(t, func() bool { // others may ask before it
		where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", waits.Process.Pid))
		return strings.Contains(string(where), "request_wait_answer")
	}, 30*time.Second, 10*time.Millisecond)

	began := time.Now()
	report, err := mountusers.Find(newHost(t), fs.Dir, mountusers.Options{Timeout: 30 * time.Second})
	require.NoError(t, err)
	assert.Less(t, time.Since(began), 30*time.Second)
	assert.Empty(t, unseen(report))
	got := make(map[int]mountusers.Uses)
	for _, u := range report.Users {
		u.Path = ""
		got[u.PID] = u.Uses
	}
	first := got[waits.Process.Pid]
	delete(got, waits.Process.Pid)
	assert.Equal(t, map[int]mountusers.Uses{users["cwd"]: {Cwd: true}, users["file"]: {Files: 2}, users["mapped"]: {Mapped: 1}}, got, "%v", maps.Keys(users))
	assert.True(t, first.Named || first.Files > 0, "%+v", first)
	require.Equal(t, waits.Process.Pid, report.Users[0].PID)
	require.NotNil(t, report.Users[0].Blocked)
	assert.Contains(t, report.Users[0].Blocked.Wchan, "request_wait_answer")
	assert.Equal(t, 1, report.Blocked())

	var text, json, pids bytes.Buffer
	require.NoError(t, report.Text(&text, false))
	assert.Contains(t, text.String(), "1 of them blocked")
	assert.Regexp(t, `(?m)^  \d+ +root +ls +\S in request_wait_answer`, text.String())
	assert.Contains(t, text.String(), "umount "+fs.Dir)
	for line := range strings.Lines(text.String()) {
		if regexp.MustCompile(`^  \d`).MatchString(line) {
			assert.LessOrEqual(t, len(line), 81, line)
		}
	}
	require.NoError(t, report.JSON(&json))
	assert.Contains(t, json.String(), `"cwd": true`)
	require.NoError(t, report.PIDs(&pids))
	assert.Contains(t, pids.String(), fmt.Sprintln(users["cwd"]))
}

func TestFind_NoSuchMount(t *testing.T) {
	_, err := mountusers.Find(newHost(t), "relative", mountusers.Options{Timeout: time.Minute})
	assert.ErrorContains(t, err, "nothing is mounted at relative")
}
