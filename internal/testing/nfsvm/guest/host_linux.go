package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

// A host is a set of network, mount and UTS namespaces: lockd, statd and NFS
// clients are told apart by these. The server is the machine's own set, since
// nfsd records its clients' state there only (fs/nfsd/nfs4recover.c).
type host struct {
	name   string
	pid    int // of the process that holds the namespaces; 0: the machine's own
	stdin  io.Closer
	exited chan struct{}
}

// patience is for programs that answer at once on a machine that is not busy.
const patience = 3 * time.Minute

// startHost makes a host whose /etc/hosts has these lines.
func startHost(name, hosts string) (*host, error) {
	command := exec.Command(self, asHost, name, hosts)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting host %s: %w", name, err)
	}
	h := &host{name: name, pid: command.Process.Pid, stdin: stdin, exited: make(chan struct{})}
	answer, err := bufio.NewReader(stdout).ReadString('\n')
	go func() {
		_ = command.Wait()
		close(h.exited)
	}()
	if strings.TrimSpace(answer) != "ready" {
		return nil, fmt.Errorf("starting host %s: %s: %w", name, strings.TrimSpace(answer), err)
	}
	return h, nil
}

// beHost prepares the namespaces it was started in, and holds them until its
// stdin ends.
func beHost(name, hosts string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("naming the host: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// What the server has mounted is not there.
	for _, path := range []string{"/srv/data", "/srv/home", "/srv/healthy", "/proc/fs/nfsd", "/etc/hosts", "/run/rpc_pipefs", "/var/lib/nfs", "/run"} {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
	if err := prepareNFS(hosts); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("lo: %w: %s", err, out)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// prepareNFS makes the directories the NFS programs keep their state in, and
// /etc/hosts: statd looks names up, and would wait for a DNS server.
func prepareNFS(hosts string) error {
	if err := agent.Mount(
		agent.Mountpoint{Source: "tmpfs", Target: "/run", Type: "tmpfs"},
		agent.Mountpoint{Source: "tmpfs", Target: "/var/lib/nfs", Type: "tmpfs"},
		agent.Mountpoint{Source: "rpc_pipefs", Target: "/run/rpc_pipefs", Type: "rpc_pipefs"},
	); err != nil {
		return err
	}
	for _, dir := range []string{"sm", "sm.bak", "v4recovery", "nfsdcltrack"} {
		if err := os.MkdirAll(filepath.Join("/var/lib/nfs", dir), 0o755); err != nil {
			return err
		}
	}
	for file, text := range map[string]string{"/var/lib/nfs/etab": "", "/var/lib/nfs/rmtab": "", "/run/hosts": hosts} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return unix.Mount("/run/hosts", "/etc/hosts", "", unix.MS_BIND, "")
}

// command is a program to be run on the host.
func (h *host) command(ctx context.Context, name string, arguments ...string) *exec.Cmd {
	if h.pid != 0 {
		arguments = append([]string{"-t", strconv.Itoa(h.pid), "-n", "-m", "-u", "--", name}, arguments...)
		name = "nsenter"
	}
	c := exec.CommandContext(ctx, name, arguments...)
	c.WaitDelay = time.Second
	return c
}

// do runs a program to its end.
func (h *host) do(name string, arguments ...string) error {
	_, err := h.output(name, arguments...)
	return err
}

func (h *host) output(name string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer
	c := h.command(ctx, name, arguments...)
	c.Stdout, c.Stderr = &out, &out
	if err := start(c, ctx); err != nil {
		return "", fmt.Errorf("%s: %s %s: %w: %s", h.name, name, strings.Join(arguments, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// start runs a command to its end, and does not wait for one that survives
// being killed.
func start(c *exec.Cmd, ctx context.Context) error {
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return errors.Join(err, ctx.Err())
	case <-time.After(5 * time.Second):
		return errors.New("it survives SIGKILL")
	}
}

// pids of the host's processes of that name; of all for "".
func (h *host) pids(comm string) []int {
	own := "self"
	if h.pid != 0 {
		own = strconv.Itoa(h.pid)
	}
	ns, err := os.Readlink("/proc/" + own + "/ns/net")
	if err != nil {
		return nil
	}
	var found []int
	for _, pid := range processes() {
		if pid == h.pid {
			continue
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil && theirs == ns && (comm == "" || commOf(pid) == comm) {
			found = append(found, pid)
		}
	}
	return found
}

func processes() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func commOf(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(comm))
}

// signal sends a signal to the host's processes of that name, and for one that
// ends them waits until they are gone.
func (h *host) signal(comm string, s unix.Signal) error {
	pids := h.pids(comm)
	if len(pids) == 0 {
		return fmt.Errorf("%s: no %s runs", h.name, comm)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, s); err != nil {
			return fmt.Errorf("%s: %s: %w", h.name, comm, err)
		}
	}
	if s != unix.SIGTERM && s != unix.SIGKILL {
		return nil
	}
	return poll(patience, func() error {
		if left := h.pids(comm); len(left) > 0 {
			return fmt.Errorf("%s: %s does not end", h.name, comm)
		}
		return nil
	})
}

// end kills all that runs on the host, and gives its namespaces back.
func (h *host) end() error {
	for _, pid := range h.pids("") {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	err := poll(patience, func() error {
		if left := h.pids(""); len(left) > 0 {
			return fmt.Errorf("%s: process %d (%s) is left", h.name, left[0], commOf(left[0]))
		}
		return nil
	})
	_ = h.stdin.Close()
	<-h.exited
	return err
}

// poll tries until it works, or its time is up.
func poll(limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
