//go:build !race

package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/doctor"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// manifest is what matters here of packaging/container/daemonset.yaml.
type manifest struct {
	Data map[string]string // of the ConfigMap
	Spec struct {
		Template struct {
			Spec struct {
				HostPID    bool `yaml:"hostPID"`
				Containers []struct {
					Command, Args   []string
					Env             []struct{ Name, Value string }
					SecurityContext struct {
						RunAsUser                *int `yaml:"runAsUser"`
						ReadOnlyRootFilesystem   bool `yaml:"readOnlyRootFilesystem"`
						AllowPrivilegeEscalation bool `yaml:"allowPrivilegeEscalation"`
						Privileged               bool
						Capabilities             struct{ Add, Drop yaml.Node }
					} `yaml:"securityContext"`
					VolumeMounts []struct {
						Name, MountPath  string
						ReadOnly         bool   `yaml:"readOnly"`
						MountPropagation string `yaml:"mountPropagation"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct {
					Name     string
					HostPath *struct{ Path string } `yaml:"hostPath"`
				}
			}
		}
	}
}

// daemonSet reads the ConfigMap and the DaemonSet into one.
func daemonSet(t *testing.T) *manifest {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository(), "packaging/container/daemonset.yaml"))
	require.NoError(t, err)
	m := &manifest{}
	documents := yaml.NewDecoder(bytes.NewReader(content))
	for range 2 {
		require.NoError(t, documents.Decode(m))
	}
	require.ErrorIs(t, documents.Decode(m), io.EOF)
	require.Len(t, m.Spec.Template.Spec.Containers, 1)
	return m
}

// added are the capabilities, without CAP_.
func (m *manifest) added(t *testing.T) []string {
	t.Helper()
	var names []string
	require.NoError(t, m.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add.Decode(&names))
	return names
}

// The manifest gives what the doctor's features take, but for those that take all
// of a host, and says why for each. Those by which one becomes another user are for the command
// alone.
func TestContainer_TheDaemonSetsPrivileges(t *testing.T) {
	m := daemonSet(t)
	pod := &m.Spec.Template.Spec
	context := &pod.Containers[0].SecurityContext
	wanted := doctor.Capabilities(0)
	for _, f := range doctor.Features() {
		if f.Capabilities&(doctor.SysAdmin|doctor.SysChroot|doctor.Syslog) == 0 {
			wanted |= f.Capabilities
		}
	}
	given := m.added(t)
	for i, name := range given {
		node := context.Capabilities.Add.Content[i]
		assert.NotEmpty(t, node.LineComment, "what %s buys", name)
		given[i] = "CAP_" + name
	}
	assert.ElementsMatch(t, strings.Fields((wanted &^ doctor.Kill).String()), given)
	kept := strings.Fields(strings.ReplaceAll((wanted &^ (doctor.Kill | doctor.SetGID | doctor.SetUID)).String(), "CAP_", ""))
	command := pod.Containers[0].Command
	assert.ElementsMatch(t, kept, strings.Split(command[slices.Index(command, "-keep")+1], ","))
	var dropped []string
	require.NoError(t, context.Capabilities.Drop.Decode(&dropped))
	assert.Equal(t, []string{"ALL"}, dropped)
	assert.False(t, context.Privileged)
	assert.False(t, context.AllowPrivilegeEscalation)
	assert.True(t, context.ReadOnlyRootFilesystem)
	assert.True(t, pod.HostPID)
	for _, volume := range pod.Volumes {
		if volume.HostPath != nil {
			assert.NotContains(t, volume.HostPath.Path, ".sock")
		}
	}
	for _, mount := range pod.Containers[0].VolumeMounts {
		assert.True(t, mount.ReadOnly, mount.Name)
	}
}

// node is a host of its own: PID and mount namespaces with a process 1, in which
// the tests' mounts show.
type node struct {
	pid    int    // of its process 1, as seen from here
	root   string // of its containers
	health string // address of the health output of a container
}

func newNode(t *testing.T) *node {
	t.Helper()
	host := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-c", "mount --make-rshared / && echo ready && read -r line")
	host.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := host.StdinPipe()
	require.NoError(t, err)
	stdout, err := host.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, host.Start())
	t.Cleanup(func() { _ = stdin.Close(); _ = host.Wait() })
	_, err = io.ReadFull(stdout, make([]byte, len("ready\n")))
	require.NoError(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0") // another test's container may have the manifest's port
	require.NoError(t, err)
	require.NoError(t, free.Close())
	return &node{pid: child(t, host.Process.Pid, "sh"), root: t.TempDir(), health: free.Addr().String()}
}

// command runs a shell script in the node's namespaces.
func (n *node) command(script string, arguments ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(n.pid), "--mount", "--pid", "sh", "-e", "-c", script, "sh"}, arguments...)...)
}

// What a container runtime does: a root of its own, read-only, the node's files
// below /host, and just these capabilities. Programs come from the tests' machine:
// setpriv with its libraries, which are not in the container's image.
const runtimeScript = `
root=$1 files=$2 caps=$3 own=$4; shift 4
mount --make-rslave /
mount -t tmpfs container "$root"
cd "$root"
mkdir -p usr/bin etc proc sys dev host
cp "$files/vfsprobe" "$files/telegraf" usr/bin
cp -r "$files/etc" etc/telegraf
ln -s /host/lib lib; ln -s /host/lib64 lib64; ln -s /host/usr/lib usr/lib
touch dev/null; mount --bind /dev/null dev/null
mount --rbind / host; mount -o remount,bind,ro host
mount -t sysfs -o ro sysfs sys
mount -t proc proc proc
mount -o remount,bind,ro .
exec chroot . /host/usr/bin/setpriv --no-new-privs --inh-caps=-all --bounding-set="$caps" "$@"
`

// container is started as the manifest says, with Telegraf's points on stdout. With
// a PID namespace of its own it is what "hostPID: false" would give.
func (n *node) container(t *testing.T, m *manifest, ownPID bool) *process {
	t.Helper()
	files := t.TempDir()
	etc := filepath.Join(files, "etc")
	require.NoError(t, os.Mkdir(etc, 0o755))
	for name, content := range m.Data {
		if name == "telegraf.conf" {
			require.Contains(t, content, "127.0.0.1:9275")
			content = strings.Replace(content, "127.0.0.1:9275", n.health, 1)
			content = strings.ReplaceAll(content, `interval = "10s"`, `interval = "1s"`)
			content = strings.Replace(content, `max_time_between_metrics = "60s"`, `max_time_between_metrics = "5s"`, 1)
		}
		if name == "vfsprobe.toml" {
			content = strings.Replace(content, "[[inputs.mountstat]]", "[[inputs.mountstat]]\n  timeout = \"500ms\"", 1)
		}
		require.NoError(t, os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(etc, "stdout.conf"), []byte("[[outputs.file]]\n  files = [\"stdout\"]\n"), 0o644))
	for name, from := range map[string]string{"vfsprobe": binary(t, vfsprobe), "telegraf": binary(t, telegraf)} {
		content, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(files, name), content, 0o755))
	}
	spec := &m.Spec.Template.Spec.Containers[0]
	caps := "-all,+" + strings.ToLower(strings.Join(m.added(t), ",+"))
	enter := []string{"nsenter", "--target", strconv.Itoa(n.pid), "--mount", "--pid", "unshare", "--mount"}
	if ownPID {
		enter = append(enter, "--pid", "--fork")
	}
	enter = append(enter, "sh", "-e", "-c", runtimeScript, "sh", n.root, files, caps, "")
	enter = slices.Concat(enter, spec.Command, spec.Args, []string{"--config", "/etc/telegraf/stdout.conf"})
	command := exec.Command(enter[0], enter[1:]...)
	command.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NODE_NAME=node1", "INFLUX_URL=http://127.0.0.1:1"}
	for _, variable := range spec.Env {
		if strings.HasPrefix(variable.Name, "HOST_") {
			command.Env = append(command.Env, variable.Name+"="+variable.Value)
		}
	}
	return startCommand(t, command)
}

func TestContainer_SeesTheHost(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	m := daemonSet(t)
	hung, healthy := faultfs.New(t), faultfs.New(t)
	watched := t.TempDir()
	hold(t, watched)
	m.Data["vfsprobe.toml"] = strings.Replace(m.Data["vfsprobe.toml"], "[[inputs.dentrycache]]",
		"[[inputs.dentrycache]]\n  lookup_probe = false\n  directories = [\""+watched+"\"]", 1)
	n := newNode(t)
	// A process of the node that waits.
	waiter := n.command("cd " + hung.Dir + " && echo there && read -r go && exec ls .")
	waiter.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	told, err := waiter.StdinPipe()
	require.NoError(t, err)
	says, err := waiter.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, waiter.Start())
	t.Cleanup(func() { hung.Abort(); _ = waiter.Wait() })
	_, err = io.ReadFull(says, make([]byte, len("there\n")))
	require.NoError(t, err)
	hung.Silence()
	_, err = io.WriteString(told, "\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return hung.Unanswered() > 0 }, patience, 10*time.Millisecond)

	agent := n.container(t, m, false)
	agent.until("^mountstat,", "host=node1", "path="+healthy.Dir+" ", `result="ok"`)
	agent.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, `cause="fuse_daemon_silent"`)
	agent.until("^mountstat_blocked,", "comm=ls", "path="+hung.Dir, "wchan=request_wait_answer")
	agent.until("^dentrycache,", "negative=", "dentry_slab_bytes=")
	line := agent.until("^dentrycache_dir,", "directory="+watched+",", "children=")
	assert.Contains(t, line, "children="+strconv.Itoa(children)+"i", line)
	assert.Contains(t, line, "watched=false", line)
	agent.until("^dentrycache_status,", `mode="(fentry|kprobe|enoent)"`)
	agent.until("^nfslock_host,")

	// What the node mounts and unmounts later.
	later := t.TempDir()
	run := func(script string) {
		out, err := n.command(script).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("mount --bind " + healthy.Dir + " " + later)
	agent.until("^mountstat,", "path="+later+" ", `result="ok"`)
	run("umount " + later)
	require.Eventually(t, func() bool {
		return !strings.Contains(gatherOf(agent), "path="+later+" ")
	}, patience, 10*time.Millisecond)

	// What the manifest's probes ask: a gather that is stale is not ready.
	ready := func(want int) {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			r, err := http.Get("http://" + n.health)
			require.NoError(c, err)
			require.NoError(c, r.Body.Close())
			assert.Equal(c, want, r.StatusCode)
		}, patience, 100*time.Millisecond)
	}
	ready(http.StatusOK)
	plugin := child(t, descendant(t, agent.Process.Pid, "telegraf"), "vfsprobe")
	require.NoError(t, syscall.Kill(plugin, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(plugin, syscall.SIGCONT) })
	ready(http.StatusServiceUnavailable)
	require.NoError(t, syscall.Kill(plugin, syscall.SIGCONT))
	ready(http.StatusOK)

	began := time.Now()
	require.NoError(t, syscall.Kill(descendant(t, agent.Process.Pid, "telegraf"), syscall.SIGTERM))
	agent.exit()
	assert.Less(t, time.Since(began), execdGrace, "the container ends although a mount hangs")
	for line := range strings.Lines(agent.stderr.String()) {
		if strings.Contains(line, " E! ") && !noTime.MatchString(line) {
			assert.Regexp(t, "outputs.influxdb|Error writing to|file already closed", line)
		}
	}
}

// Without hostPID a mount that hangs holds the container, as the manifest says.
func TestContainer_WithAPIDNamespaceOfItsOwn(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	m := daemonSet(t)
	hung, healthy := faultfs.New(t), faultfs.New(t)
	hung.Silence()
	agent := newNode(t).container(t, m, true)
	agent.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
	agent.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
	agent.until("^dentrycache_dir,", "children=")
	pid := descendant(t, agent.Process.Pid, "telegraf")
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	time.Sleep(time.Second)
	require.NoError(t, unix.Kill(pid, 0), "the kernel waits for all processes of the namespace")
	hung.Abort()
	agent.exit()
}

// gatherOf returns the lines of mountstat up to its summary.
func gatherOf(p *process) string {
	p.until("^mountstat_summary,")
	var b strings.Builder
	for line := range p.lines {
		if strings.HasPrefix(line, "mountstat_summary,") {
			break
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// descendant waits for a process of that name below another.
func descendant(t *testing.T, ancestor int, comm string) int {
	t.Helper()
	found := 0
	require.Eventually(t, func() bool {
		for pid := ancestor; pid != 0; {
			name, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
			if strings.TrimSpace(string(name)) == comm {
				found = pid
				return true
			}
			children, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
			first, _, _ := strings.Cut(string(children), " ")
			pid, _ = strconv.Atoi(first)
		}
		return false
	}, patience, 10*time.Millisecond, "no process %s", comm)
	return found
}
