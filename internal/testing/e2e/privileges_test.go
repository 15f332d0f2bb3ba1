//go:build !race

// The programs that this runs are not built with -race, and slow enough.

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/doctor"
	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// user is one without privileges, and other is another.
const user, other = 65534, 1000

// unprivileged has a program run by user, with these capabilities and no other.
func unprivileged(command *exec.Cmd, capabilities doctor.Capabilities) *exec.Cmd {
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	for set := uint64(capabilities); set != 0; set &= set - 1 {
		command.SysProcAttr.AmbientCaps = append(command.SysProcAttr.AmbientCaps, uintptr(bits.TrailingZeros64(set)))
	}
	return command
}

// ward is a host with something for each feature to see.
type ward struct {
	binary, config                   string
	private, closed, hung, elsewhere string
	watched                          string // by root
	dentries                         string // a configuration
	waiter                           int
}

func newWard(t *testing.T) *ward {
	t.Helper()
	root := t.TempDir()
	for dir := root; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	directory := func(name string, mode os.FileMode) string {
		dir := filepath.Join(root, name)
		require.NoError(t, os.Mkdir(dir, mode))
		return dir
	}
	w := &ward{binary: filepath.Join(root, "vfsprobe"), config: filepath.Join(root, "vfsprobe.toml")}
	in, err := os.Open(binary(t, vfsprobe))
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(w.binary, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	points := fmt.Sprintf("mount_points = [%q]\n  timeout = \"500ms\"\n", root+"/*")
	require.NoError(t, os.WriteFile(w.config, []byte("[[inputs.mountstat]]\n  mount_namespaces = \"all\"\n  "+points+
		"[[inputs.nfslock]]\n  fstypes = [\"fuse.faultfs\"]\n  "+points+"[[inputs.dentrycache]]\n"), 0o644))

	// In the tests' mount namespace. The host may have it already.
	if err := unix.Mount("fusectl", "/sys/fs/fuse/connections", "fusectl", 0, ""); err == nil {
		t.Cleanup(func() { _ = unix.Unmount("/sys/fs/fuse/connections", unix.MNT_DETACH) })
	}
	w.private = directory("private", 0o755)
	faultfs.NewWith(t, w.private, faultfs.Options{UID: other, GID: other, Private: true})
	directory("closed", 0o700)
	w.closed = directory("closed/mount", 0o755)
	faultfs.NewAt(t, w.closed, "closed")
	w.hung = directory("hung", 0o755)
	hung := faultfs.NewAt(t, w.hung, "hung")
	// Who works in it, and waits.
	waiter := exec.Command("sh", "-c", "cd "+w.hung+" && echo there && read go && exec ls .")
	waiter.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
	says, err := waiter.StdoutPipe()
	require.NoError(t, err)
	told, err := waiter.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, waiter.Start())
	w.waiter = waiter.Process.Pid
	t.Cleanup(func() { hung.Abort(); _ = waiter.Wait() })
	_, err = io.ReadFull(says, make([]byte, len("there\n")))
	require.NoError(t, err)
	hung.Silence()
	_, err = io.WriteString(told, "\n")
	require.NoError(t, err)

	w.watched = directory("watched", 0o755)
	w.dentries = filepath.Join(root, "dentries.toml")
	require.NoError(t, os.WriteFile(w.dentries, fmt.Appendf(nil, "[[inputs.dentrycache]]\n  directories = [%q]\n  find_directories = false\n  lookup_probe = false\n", w.watched), 0o644))
	hold(t, w.watched)
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(watch) })
	_, err = unix.InotifyAddWatch(watch, w.watched, unix.IN_MODIFY)
	require.NoError(t, err)

	w.elsewhere = directory("elsewhere", 0o755)
	sshfs := faultfs.NewWith(t, w.elsewhere, faultfs.Options{Source: "elsewhere", Type: "fuse.sshfs"})
	container := exec.Command("sleep", "1000")
	container.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, container.Start())
	t.Cleanup(func() { _ = container.Process.Kill(); _ = container.Wait() })
	require.NoError(t, unix.Unmount(sshfs.Dir, 0))

	require.Eventually(t, func() bool { return hung.Unanswered() > 0 }, patience, 10*time.Millisecond)
	return w
}

type seen struct {
	Metrics []struct {
		Name   string
		Tags   map[string]string
		Fields map[string]any
	}
}

func (s *seen) field(name, path, field string) string {
	for _, m := range s.Metrics {
		if m.Name == name && m.Tags["path"] == path && m.Fields[field] != nil {
			return fmt.Sprint(m.Fields[field])
		}
	}
	return ""
}

// check runs vfsprobe with just the capabilities.
func (w *ward) check(t *testing.T, capabilities doctor.Capabilities) *seen {
	t.Helper()
	out, _ := unprivileged(exec.Command(w.binary, "check", "-json", "-config", w.config), capabilities).Output()
	s := &seen{}
	require.NoError(t, json.Unmarshal(out, s), "%s", out)
	return s
}

// children is how many the watched directory has in memory.
const children = 50

// hold makes them, and has them open until the test ends: however little memory the kernel has,
// and whoever has its caches dropped, it does not free the dentry of an open file.
func hold(t *testing.T, dir string) {
	t.Helper()
	for i := range children {
		f, err := os.Create(filepath.Join(dir, "child"+strconv.Itoa(i)))
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
	}
}

// count runs dentrycache with just the capabilities, and returns the last line of
// each of its measurements, once it has told of all that it can find and can't.
func (w *ward) count(t *testing.T, capabilities doctor.Capabilities) map[string]string {
	t.Helper()
	p := startCommand(t, unprivileged(exec.Command(w.binary, "-config", w.dentries), capabilities))
	last := make(map[string]string)
	note := func(line string) { last[line[:strings.IndexAny(line, ", ")]] = line }
	tells := func(field, refusal string) bool {
		return strings.Contains(last["dentrycache_dir"], ","+field+"=") || strings.Contains(p.stderr.String(), refusal)
	}
	for began, done := time.Now(), false; !done; {
		require.Less(t, time.Since(began), patience, "it has not told: %v", last)
		p.trigger()
		time.Sleep(250 * time.Millisecond)
		for len(p.lines) > 0 {
			note(<-p.lines)
		}
		status := last["dentrycache_status"]
		done = status != "" && !strings.Contains(status, `mode="starting"`) &&
			tells("children", "the children of directories can't be counted") && tells("watched", "the open files of some processes can't be seen")
	}
	_ = p.stdin.Close()
	for line := range p.lines {
		note(line)
	}
	return last
}

// doctors says whether vfsprobe's doctor holds the feature for granted.
func (w *ward) doctors(t *testing.T, capabilities doctor.Capabilities, id string) bool {
	t.Helper()
	out, _ := unprivileged(exec.Command(w.binary, "doctor", "-self", "-json"), capabilities).Output()
	var report struct {
		Findings []struct{ ID, Status string }
	}
	require.NoError(t, json.Unmarshal(out, &report), "%s", out)
	for _, f := range report.Findings {
		if f.ID == "feature."+id {
			return f.Status == "ok"
		}
	}
	require.Fail(t, "the doctor does not know", id)
	return false
}

// Each row of docs/PRIVILEGES.md, with a real fault: what an unprivileged user
// sees without the capabilities and with them, and that none of them is too much.
func TestPrivileges(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	w := newWard(t)
	or := func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	}
	rows := map[string]struct {
		see           func(*seen, doctor.Capabilities) string
		without, with string
	}{
		"owner": {func(s *seen, _ doctor.Capabilities) string {
			return "a private FUSE mount: " + s.field("mountstat", w.private, "result")
		}, "a private FUSE mount: unchecked", "a private FUSE mount: ok"},
		"closed_directories": {func(s *seen, _ doctor.Capabilities) string {
			waiting := "no fuse_waiting"
			if s.field("mountstat", w.hung, "fuse_waiting") != "" {
				waiting = "fuse_waiting"
			}
			slab := "no dentry_slab_bytes"
			if s.field("dentrycache", "", "dentry_slab_bytes") != "" {
				slab = "dentry_slab_bytes"
			}
			return "a mount in a closed directory: " + s.field("mountstat", w.closed, "result") + "; " + waiting + "; " + slab
		}, "a mount in a closed directory: unchecked; no fuse_waiting; no dentry_slab_bytes", "a mount in a closed directory: ok; fuse_waiting; dentry_slab_bytes"},
		"dentry_attribution": {func(_ *seen, capabilities doctor.Capabilities) string {
			last := w.count(t, capabilities)
			mode := regexp.MustCompile(`mode="(\w+)"`).FindStringSubmatch(last["dentrycache_status"])
			require.NotNil(t, mode, "%v", last)
			if mode[1] != "none" { // which one it is, is the kernel's
				mode[1] = "fentry, kprobe or enoent"
			}
			counted := "missing"
			if n := regexp.MustCompile(`,children=(\d+)i`).FindStringSubmatch(last["dentrycache_dir"]); n != nil {
				counted = n[1]
			}
			return fmt.Sprintf("mode: %s; children of a directory with %d: %s", mode[1], children, counted)
		}, "mode: none; children of a directory with 50: missing", "mode: fentry, kprobe or enoent; children of a directory with 50: 50"},
		"watches": {func(_ *seen, capabilities doctor.Capabilities) string {
			watched := "missing"
			if found := regexp.MustCompile(`watched=(\w+)`).FindStringSubmatch(w.count(t, capabilities)["dentrycache_dir"]); found != nil {
				watched = found[1]
			}
			return "a directory that root watches: watched " + watched
		}, "a directory that root watches: watched missing", "a directory that root watches: watched true"},
		"who_waits": {func(s *seen, _ doctor.Capabilities) string {
			return "another user's process that waits for a FUSE daemon: " + or(strings.Repeat("seen, with path and wchan", min(1, len(s.field("mountstat_blocked", w.hung, "count")))), "not seen")
		}, "another user's process that waits for a FUSE daemon: not seen", "another user's process that waits for a FUSE daemon: seen, with path and wchan"},
		"kernel_log": {func(s *seen, _ doctor.Capabilities) string {
			return "kernel_not_responding: " + or(s.field("nfslock_host", "", "kernel_not_responding"), "missing")
		}, "kernel_not_responding: missing", "kernel_not_responding: 0"},
		"other_namespaces": {func(s *seen, _ doctor.Capabilities) string {
			return "a mount that only another mount namespace has: " + or(s.field("mountstat", w.elsewhere, "result"), "not seen")
		}, "a mount that only another mount namespace has: not seen", "a mount that only another mount namespace has: ok"},
		"kernel_stacks": {func(_ *seen, capabilities doctor.Capabilities) string {
			stack, _ := unprivileged(exec.Command("cat", "/proc/"+strconv.Itoa(w.waiter)+"/stack"), capabilities).Output()
			if bytes.Contains(stack, []byte("request_wait_answer")) {
				return "the stack of another user's task: can be read"
			}
			return "the stack of another user's task: can't be read"
		}, "the stack of another user's task: can't be read", "the stack of another user's task: can be read"},
	}
	none := w.check(t, 0)
	for began := time.Now(); none.field("mountstat", w.hung, "cause") != "fuse_daemon_silent" && time.Since(began) < patience; {
		none = w.check(t, 0) // a busy machine may have no time for it
	}
	for path, want := range map[string]string{w.hung: "stuck", w.private: "unchecked", w.closed: "unchecked"} {
		assert.Equal(t, want, none.field("mountstat", path, "result"), "without any capability, %s", path)
	}
	table := &document.Table{Header: []string{"capabilities", "what they buy", "seen without", "seen with"}}
	table.Add("none", "every fault of mounts that this user can reach: hung, dead, stale, missing, read-only; their causes; the counts of dentrycache; locks counted",
		"", "a hung FUSE mount: stuck, fuse_daemon_silent")
	assert.Equal(t, "fuse_daemon_silent", none.field("mountstat", w.hung, "cause"))
	for _, f := range doctor.Features() {
		row, tested := rows[f.ID]
		require.True(t, tested, "no test of %s", f.ID)
		t.Run(f.ID, func(t *testing.T) {
			if f.Needed != nil && !f.Needed(doctor.Host{Proc: "/proc", Sys: "/sys", Dev: "/dev"}) {
				t.Skip("this host asks for no capability")
			}
			assert.Equal(t, row.without, row.see(none, 0))
			with := row.see(w.check(t, f.Capabilities), f.Capabilities)
			for began := time.Now(); with != row.with && time.Since(began) < patience; { // a busy machine may not see all at once
				with = row.see(w.check(t, f.Capabilities), f.Capabilities)
			}
			assert.Equal(t, row.with, with)
			assert.False(t, w.doctors(t, 0, f.ID))
			assert.True(t, w.doctors(t, f.Capabilities, f.ID))
			for set := uint64(f.Capabilities); set&(set-1) != 0 || set == uint64(f.Capabilities); set &= set - 1 {
				fewer := f.Capabilities &^ doctor.Capabilities(set&-set)
				if fewer != 0 {
					assert.NotEqual(t, row.with, row.see(w.check(t, fewer), fewer), "%v is enough", fewer)
				}
				if set&(set-1) == 0 {
					break
				}
			}
		})
		table.Add(strings.ReplaceAll(f.Capabilities.String(), " ", ", "), f.Buys, row.without, row.with)
	}
	file := filepath.Join(repository(), "docs/PRIVILEGES.md")
	if os.Getenv("PRIVILEGES") != "" {
		require.NoError(t, table.Write(file, "privileges"))
		return
	}
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	copied := filepath.Join(t.TempDir(), "copy.md")
	require.NoError(t, os.WriteFile(copied, before, 0o600))
	require.NoError(t, table.Write(copied, "privileges"))
	after, err := os.ReadFile(copied)
	require.NoError(t, err)
	assert.Equal(t, string(before), string(after), "make privileges writes the table anew")
}
