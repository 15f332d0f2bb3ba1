//go:build !race

package containers

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
)

// containerd's client ctr has other words than docker, and containers have ids only; what
// nerdctl names them is in an annotation.
type containerd struct {
	cli
	runtime string
	dir     string
}

func containerID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// The capabilities that containerd gives to who does not say which.
var defaultCapabilities = strings.Fields("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE")

func (c *containerd) run(arguments []string) string {
	c.t.Helper()
	var id string
	var more, labels, added []string
	dropped := false
	unconfined := false
	program := "/usr/bin/telegraf" // as the image says
	for len(arguments) > 0 && strings.HasPrefix(arguments[0], "--") {
		flag, value, joined := strings.Cut(arguments[0], "=")
		arguments = arguments[1:]
		if !joined && flag == "--name" {
			value, arguments = arguments[0], arguments[1:]
		}
		switch flag {
		case "--name":
			id = containerID(value)
			more = append(more, "--annotation=nerdctl/name="+value)
		case "--restart":
			labels = []string{"containerd.io/restart.policy=" + value, "containerd.io/restart.status=running"}
		case "--pid":
			more = append(more, "--with-ns=pid:/proc/1/ns/pid")
		case "--cgroupns":
			more = append(more, "--with-ns=cgroup:/proc/1/ns/cgroup")
		case "--network":
			if value == "host" {
				more = append(more, "--net-host")
			}
		case "--cap-drop":
			dropped = value == "all"
		case "--cap-add":
			added = append(added, value)
			more = append(more, "--cap-add=CAP_"+value)
		case "--volume":
			parts := strings.Split(value, ":")
			options := strings.ReplaceAll(strings.Join(append(parts[2:], "rbind"), ":"), ",", ":")
			more = append(more, "--mount=type=bind,src="+parts[0]+",dst="+parts[1]+",options="+options)
		case "--memory":
			more = append(more, "--memory-limit="+value)
		case "--workdir":
			more = append(more, "--cwd="+value)
		case "--entrypoint":
			program = value
		case "--env":
			more = append(more, "--env="+value)
		case "--read-only":
			more = append(more, flag)
		case "--security-opt": // there are no new privileges, and no other profiles
			unconfined = unconfined || value == "seccomp=unconfined"
		case "--detach":
		default:
			require.Fail(c.t, "unknown flag", flag)
		}
	}
	for _, name := range defaultCapabilities { // ctr drops after it has added
		if dropped && !slices.Contains(added, name) {
			more = append(more, "--cap-drop=CAP_"+name)
		}
	}
	if !unconfined && !strings.Contains(c.runtime, "runc-1.3") {
		more = append(more, "--seccomp")
	}
	log := filepath.Join(c.dir, id)
	c.say(append(append([]string{"run", "--detach", "--cpu-shares=0", "--runc-binary=" + c.runtime, "--log-uri=file://" + log}, more...),
		append([]string{"localhost/" + arguments[0], id, program}, arguments[1:]...)...)...)
	if labels != nil { // not before: the monitor would take it for one that has ended
		c.say(append([]string{"containers", "label", id}, labels...)...)
	}
	return id
}

// wants tells containerd's restart monitor.
func (c *containerd) wants(name, status string) {
	c.t.Helper()
	c.say("containers", "label", containerID(name), "containerd.io/restart.status="+status)
}

func (c *containerd) start(name string) {
	c.t.Helper()
	c.wants(name, "running") // the monitor starts it
	require.Eventually(c.t, func() bool { status, _ := c.state(name); return status == "running" }, replaced, 100*time.Millisecond)
}

func (c *containerd) stop(name string) {
	c.t.Helper()
	c.wants(name, "stopped")
	_ = c.command("task", "kill", "--signal=SIGTERM", containerID(name)).Run()
	require.Eventually(c.t, func() bool { status, _ := c.state(name); return status != "running" }, replaced, 100*time.Millisecond)
	_ = c.command("task", "delete", containerID(name)).Run() // or the monitor has done so
}

func (c *containerd) restart(name string) { c.t.Helper(); c.stop(name); c.start(name) }

func (c *containerd) remove(name string) {
	c.t.Helper()
	require.NoError(c.t, c.tryRemove(name))
}

func (c *containerd) tryRemove(name string) error {
	c.wants(name, "stopped")
	for deadline := time.Now().Add(replaced); ; time.Sleep(100 * time.Millisecond) {
		task, _ := c.command("task", "delete", "--force", containerID(name)).CombinedOutput()
		out, err := c.command("containers", "delete", containerID(name)).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s%s", err, task, out)
		}
	}
}

func (c *containerd) state(name string) (string, int) {
	c.t.Helper()
	out, _ := c.command("task", "list").Output()
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == containerID(name) {
			pid, err := strconv.Atoi(fields[1])
			require.NoError(c.t, err)
			return strings.ToLower(fields[2]), pid
		}
	}
	return "exited", 0
}

func (c *containerd) log(name string) string {
	content, _ := os.ReadFile(filepath.Join(c.dir, containerID(name)))
	return string(content)
}

func (c *containerd) exec(name string, arguments ...string) (string, error) {
	out, err := c.command(append([]string{"task", "exec", "--exec-id=tested", containerID(name)}, arguments...)...).CombinedOutput()
	return string(out), err
}
