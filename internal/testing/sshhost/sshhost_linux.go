// Package sshhost runs a real sshd for tests, whose directories the real sshfs mounts.
package sshhost

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Host is an sshd, and a directory that it has to offer.
type Host struct {
	Address string // and port, where it listens
	Port    string
	Export  string
	dir     string // of its keys and configuration
	sshd    *exec.Cmd
}

// New runs an sshd on the loopback device until the end of the test, which is skipped where
// there is none. The network, the mounts and /run have to be the test's own; see
// rpchost.Main.
func New(t testing.TB) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("sshd takes root")
	}
	for _, name := range []string{"/usr/sbin/sshd", "ssh-keygen", "sshfs"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("no %s here", name)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{Address: listener.Addr().String(), Export: t.TempDir(), dir: t.TempDir()}
	_, h.Port, _ = net.SplitHostPort(h.Address)
	listener.Close()
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.file(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // whereto it locks itself up
		t.Fatal(err)
	}
	h.Start(t)
	t.Cleanup(h.Kill)
	return h
}

func (h *Host) file(name string) string { return filepath.Join(h.dir, name) }

// Start runs the sshd, again.
func (h *Host) Start(t testing.TB) {
	t.Helper()
	h.sshd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", h.Port, "-h", h.file("host"),
		"-o", "ListenAddress=127.0.0.1", "-o", "AuthorizedKeysFile="+h.file("user.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no",
		"-o", "PermitRootLogin=yes", "-o", "PidFile=none", "-o", "Subsystem=sftp internal-sftp", "-o", "LogLevel=ERROR")
	h.sshd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.sshd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "sshd answers", func() bool {
		conn, err := net.DialTimeout("tcp", h.Address, time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		n, _ := conn.Read(make([]byte, 4))
		return n > 0
	})
}

// Pause stops the sshd and its sessions, which the kernel goes on to take bytes for.
func (h *Host) Pause() { h.signal(unix.SIGSTOP) }

// PauseSessions stops the sessions alone: new ones can be begun.
func (h *Host) PauseSessions() {
	for _, pid := range descendants(h.sshd.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGSTOP)
	}
}

// Resume lets them go on.
func (h *Host) Resume() { h.signal(unix.SIGCONT) }

// Kill ends the sshd and its sessions: its port refuses.
func (h *Host) Kill() {
	h.signal(unix.SIGKILL)
	_ = h.sshd.Wait()
}

// signal sends the listener a signal, and its sessions, the listener first.
func (h *Host) signal(signal unix.Signal) {
	for _, pid := range append([]int{h.sshd.Process.Pid}, descendants(h.sshd.Process.Pid)...) {
		_ = unix.Kill(pid, signal)
	}
}

// FS is a directory that sshfs has mounted.
type FS struct {
	Dir    string
	Daemon *os.Process
	host   *Host
	sshfs  *exec.Cmd
}

// Mount mounts the host's export for the time of the test.
func (h *Host) Mount(t testing.TB, options ...string) *FS {
	t.Helper()
	return h.MountAt(t, t.TempDir(), options...)
}

// MountAt is Mount with a directory of the test's choice.
func (h *Host) MountAt(t testing.TB, dir string, options ...string) *FS {
	t.Helper()
	fs := &FS{Dir: dir, host: h}
	fs.Mount(t, options...)
	t.Cleanup(fs.end)
	return fs
}

// Mount mounts it, again, and waits until the host answers.
func (fs *FS) Mount(t testing.TB, options ...string) {
	t.Helper()
	fs.unmount()
	arguments := []string{"-f", "-p", fs.host.Port, "root@127.0.0.1:" + fs.host.Export, fs.Dir, "-o", "IdentityFile=" + fs.host.file("user"),
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5"}
	for _, option := range options {
		arguments = append(arguments, "-o", option)
	}
	fs.sshfs = exec.Command("sshfs", arguments...)
	fs.sshfs.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := fs.sshfs.Start(); err != nil {
		t.Fatal(err)
	}
	fs.Daemon = fs.sshfs.Process
	AwaitMount(t, fs.Dir)
	// The first answers are slow on a busy machine: the server starts.
	if _, err := os.ReadDir(fs.Dir); err != nil {
		t.Fatal(err)
	}
}

// Pause stops the daemon, and waits until all its threads stand still: until then they may
// answer.
func (fs *FS) Pause(t testing.TB) {
	t.Helper()
	if err := fs.Daemon.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the daemon is stopped", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", fs.Daemon.Pid))
		return err == nil && !slices.ContainsFunc(tasks, func(name string) bool {
			stat, err := os.ReadFile(name)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
}

// Resume lets it go on.
func (fs *FS) Resume() { _ = fs.Daemon.Signal(unix.SIGCONT) }

// Kill ends the daemon, and waits for its end.
func (fs *FS) Kill() {
	_ = fs.sshfs.Process.Kill()
	_ = fs.sshfs.Wait()
}

// end ends the daemon and what it has called, whatever state they are in.
func (fs *FS) end() {
	fs.unmount()
	for _, pid := range processes() {
		if line := read(pid, "cmdline"); strings.HasPrefix(line, "ssh\x00") && strings.Contains(line, "\x00-oPort="+fs.host.Port+"\x00") {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func (fs *FS) unmount() {
	if fs.sshfs != nil {
		fs.Kill()
	}
	_ = unix.Unmount(fs.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// AwaitMount waits until something is mounted on a directory.
func AwaitMount(t testing.TB, dir string) {
	t.Helper()
	await(t, "something is mounted on "+dir, func() bool {
		table, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && strings.Contains(string(table), " "+dir+" ")
	})
}

func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("it does not come that " + what)
		}
	}
}

// descendants are the processes that a process has started, and those that these have.
func descendants(ancestor int) []int {
	children := make(map[int][]int)
	for _, pid := range processes() {
		stat := read(pid, "stat")
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	all := children[ancestor]
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

func processes() (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func read(pid int, file string) string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return string(content)
}
