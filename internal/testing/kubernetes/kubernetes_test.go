//go:build !race

package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	repository = "../../.."
	// reports is how long a pod that takes the place of another may be silent.
	reports       = 30 * time.Second
	configuration = "[[inputs.mountstat]]\n  timeout = \"500ms\"\n[[inputs.dentrycache]]\n[[inputs.nfslock]]\n"
)

// Vfsprobe in a cluster of one node, each way that the chart has, with runtimes of Debian and
// of today.
func TestKubernetes(t *testing.T) {
	c := newCluster(t, debianContainerd)
	c.prepare()
	t.Run("the manifest", func(t *testing.T) { c.in(t).testManifest() })
	t.Run("Prometheus", func(t *testing.T) { c.in(t).testPrometheus() })
	t.Run("names", func(t *testing.T) { c.in(t).testNames() })
	t.Run("what can be written", func(t *testing.T) { c.in(t).testWhatCanBeWritten("debian", true) })
	t.Run("a stale gather", func(t *testing.T) { c.in(t).testAStaleGather() })
	t.Run("a static pod", func(t *testing.T) { c.in(t).testAStaticPod() })
	for _, runtime := range []string{"debian", "built"} {
		for _, w := range ways() {
			t.Run(runtime+" runc "+w.name, func(t *testing.T) { c.in(t).testReplacement(runtime, w, runtime == "built" && w.inPod) })
		}
	}
}

// The same with a containerd of today, which makes mounts read-only with all that is below them.
func TestKubernetes_TodaysContainerd(t *testing.T) {
	c := newCluster(t, programs.Containerd)
	c.prepare()
	t.Run("what can be written", func(t *testing.T) { c.in(t).testWhatCanBeWritten("built", false) })
	for _, runtime := range []string{"debian", "built"} {
		for _, w := range ways() {
			t.Run(runtime+" runc "+w.name, func(t *testing.T) { c.in(t).testReplacement(runtime, w, runtime == "built" && w.inPod) })
		}
	}
}

func debianContainerd() (dir string, err error) {
	path, err := exec.LookPath("containerd")
	return filepath.Dir(path), err
}

// prepare makes what the pods need of the API.
func (c *cluster) prepare() {
	c.apply(`apiVersion: v1
kind: Namespace
metadata:
  name: ` + podNamespace + `
  labels: {pod-security.kubernetes.io/enforce: privileged}
`)
	for name := range c.runtimes() {
		c.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: " + name + "\nhandler: " + name + "\n")
	}
	c.wait("the namespace's service account", startTimeout, func() (bool, string) {
		status, body := c.request("GET", "/api/v1/namespaces/"+podNamespace+"/serviceaccounts/default", "", "")
		return status == 200, body
	})
}

// way is one to run vfsprobe, with what the document says of it.
type way struct {
	name   string
	values map[string]any
	inPod  bool // what hangs is in the pod's cgroup, where nothing can be moved
}

func ways() []way {
	return []way{
		{name: "service", values: map[string]any{"run": "service"}},
		{name: "moved helpers", values: map[string]any{"run": "telegraf", "moveHelpers": true}},
		{name: "moved helpers of two containers", values: map[string]any{"run": "containers", "moveHelpers": true}},
		{name: "one container", values: map[string]any{"run": "telegraf"}, inPod: true},
	}
}

// deploy applies the chart, with a runtime, and waits for its pod.
func (c *cluster) deploy(runtime string, values map[string]any) object {
	c.t.Helper()
	c.record()
	if values["run"] == "service" {
		c.serve()
	}
	c.t.Cleanup(c.remove)
	c.apply(withRuntime(c.render(values), runtime))
	pod, took := c.readyPod(time.Minute)
	c.t.Logf("%v: ready after %.1f s", values, took.Seconds())
	return pod
}

func withRuntime(manifests, runtime string) string {
	return strings.Replace(manifests, "\n    spec:\n", "\n    spec:\n      runtimeClassName: "+runtime+"\n", 1)
}

// serve runs vfsprobe.service on the node, until the test ends.
func (c *cluster) serve() {
	c.t.Helper()
	require.NoError(c.t, os.MkdirAll("/run/vfsprobe", 0o755))
	binary, err := programs.Vfsprobe()
	require.NoError(c.t, err)
	service := exec.Command(binary, "-listen", "/run/vfsprobe/socket", "-config", c.write("vfsprobe.toml", configuration))
	service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(c.t, service.Start())
	c.t.Cleanup(func() { _ = service.Process.Kill(); _ = service.Wait() })
	c.service = service.Process.Pid
}

func reported(f *faultfs.FS, result string) []string {
	return []string{"^mountstat,", "host=" + node + "[, ]", "path=" + f.Dir + " ", `result="` + result + `"`}
}

// testReplacement is of a pod while a mount hangs: a rollout, and Telegraf killed. Each time
// another one reports within 30 s, one helper hangs, and no pod is ready without a process. One
// that may be held may need kubectl delete --force, as the document says, and is not ready then.
func (c *cluster) testReplacement(runtime string, w way, mayBeHeld bool) {
	t := c.t
	pod := c.deploy(runtime, w.values)
	hung := faultfs.New(t)
	c.until(pod, 0, reported(hung, "ok")...)
	hung.Silence()
	c.until(pod, 0, reported(hung, "stuck")...)
	assert.Len(t, helpers(t), 1)

	began := time.Now()
	if !mayBeHeld { // once for each pod: kubelet restarts what ends again later
		mark := len(logs(pod, "telegraf"))
		c.runOutOfMemory(pod)
		c.hangs(pod, mark, hung)
		assert.Less(t, c.found(began, "out of memory: the hang is reported again"), reports)
		began = time.Now()
	}
	c.rolloutRestart()
	var next object
	if mayBeHeld {
		if ok, _ := within(reports, c.isReady(&next, pod)); !ok {
			c.found(began, "rollout restart: no other pod")
			began = c.force(pod)
		}
	}
	next, _ = c.readyPod(reports, pod)
	c.found(began, "rollout restart: another pod is ready")
	c.hangs(next, 0, hung)
	assert.Less(t, c.found(began, "rollout restart: it reports the hang"), reports)
	c.notReady(pod)

	// One more, whose helper is the new pod's own.
	also := faultfs.New(t)
	c.until(next, 0, reported(also, "ok")...)
	also.Silence()
	c.hangs(next, 0, hung, also)
	mark := len(logs(next, "telegraf"))
	began = time.Now()
	c.kill(next, "telegraf", syscall.SIGKILL)
	if mayBeHeld {
		var line string
		if ok, _ := within(reports, printed(&line, next, mark, reported(also, "stuck")...)); !ok {
			c.found(began, "Telegraf killed: not restarted")
			began = c.force(next)
			next, _ = c.readyPod(reports, next)
			mark = 0
		}
	}
	c.hangs(next, mark, hung, also)
	assert.Less(t, c.found(began, "Telegraf killed: the hang is reported again"), reports)

	began = time.Now()
	hung.Heal()
	also.Heal()
	var last object
	c.wait("one pod that is ready", time.Minute, func() (bool, string) {
		ok, seen := c.isReady(&last)()
		return ok && len(c.pods()) == 1, seen
	})
	c.found(began, "the mounts answer: one pod is left")
	c.until(last, 0, reported(hung, "ok")...)
	c.wait("no helper hangs", reports, func() (bool, string) {
		left := helpers(t)
		return len(left) == 0, fmt.Sprint(left)
	})
}

// hangs waits for the reports of mounts that hang, for each of which there is one helper.
func (c *cluster) hangs(pod object, after int, all ...*faultfs.FS) {
	c.t.Helper()
	for _, hung := range all {
		c.until(pod, after, reported(hung, "stuck")...)
	}
	assert.Len(c.t, helpers(c.t), len(all))
}

// notReady waits until a pod is gone, or not ready.
func (c *cluster) notReady(pod object) {
	c.t.Helper()
	c.wait("the old pod is gone, or not ready", reports, func() (bool, string) {
		pods := c.pods()
		ready := slices.ContainsFunc(pods, func(o object) bool { return o.Metadata.UID == pod.Metadata.UID && o.is("Ready") })
		return !ready, fmt.Sprintf("%+v", pods)
	})
}

// force removes a pod that can't end, which shows in its not being ready.
func (c *cluster) force(pod object) (began time.Time) {
	c.t.Helper()
	c.notReady(pod)
	began = time.Now()
	c.forceDelete(pod)
	return began
}

// found notes when something was seen.
func (c *cluster) found(since time.Time, what string) time.Duration {
	took := time.Since(since)
	c.t.Logf("%5.1f s  %s", took.Seconds(), what)
	return took
}

// What is reported of a container that waits for its volume, of which it has a part that
// kubelet has mounted below its folder.
func (c *cluster) testNames() {
	t := c.t
	hung := faultfs.New(t)
	pod := c.deploy("debian", map[string]any{"run": "telegraf"})
	c.apply(`apiVersion: v1
kind: Pod
metadata:
  name: tenant
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: reader
      image: ` + image + `
      command: [/usr/bin/test, /data]
      env: [{name: ` + roleVariable + `, value: ` + roleRead + `}]
      volumeMounts: [{name: data, mountPath: /data, subPath: "` + filepath.Base(hung.Dir) + `"}]
  volumes:
    - name: data
      hostPath: {path: ` + filepath.Dir(hung.Dir) + `}
`)
	var tenant object
	c.t.Cleanup(func() { hung.Heal(); c.delete("/api/v1/namespaces/" + podNamespace + "/pods/tenant") })
	c.wait("the tenant", time.Minute, func() (bool, string) {
		status, body := c.request(http.MethodGet, "/api/v1/namespaces/"+podNamespace+"/pods/tenant", "", "")
		return status == http.StatusOK && json.Unmarshal([]byte(body), &tenant) == nil && tenant.is("Ready"), body[max(0, len(body)-2000):]
	})
	volume := "/var/lib/kubelet/pods/" + tenant.Metadata.UID + "/volume-subpaths/data/reader/0"
	names := []string{`namespace="` + podNamespace + `"`, `pod_name="tenant"`}
	line := c.until(pod, 0, append(names, "^mountstat,", "path="+volume+" ", `result="ok"`)...)
	assert.Contains(t, line, `volume_name="data"`)
	for _, hang := range []struct {
		how   func()
		cause string
	}{{hung.Pause, "fuse_daemon_silent"}, {hung.Heal, ""}, {func() { hung.Silence() }, "fuse_daemon_silent"}} {
		mark := len(logs(pod, "telegraf"))
		hang.how()
		if hang.cause == "" {
			c.until(pod, mark, append(names, "^mountstat,", "path="+volume+" ", `result="ok"`)...)
			continue
		}
		c.until(pod, mark, append(names, "^mountstat,", "path="+volume+" ", `result="stuck"|result="timeout"`)...)
		line := c.until(pod, mark, append(names, "^mountstat_blocked,", `container_name="reader"`)...)
		id := strings.TrimPrefix(tenant.Status.ContainerStatuses[0].ContainerID, "containerd://")
		assert.Contains(t, line, id[:12])
		t.Log(line)
	}
}

// A static pod, which kubelet takes from a file, is known by its name, and is replaced while
// a mount hangs.
func (c *cluster) testAStaticPod() {
	c.record()
	manifests := c.render(map[string]any{"run": "telegraf", "moveHelpers": true})
	c.t.Cleanup(c.remove)
	c.apply(manifests[:strings.LastIndex(manifests, "---\n")])
	var configMap struct{ Data map[string]string }
	status, body := c.request(http.MethodGet, "/api/v1/namespaces/"+podNamespace+"/configmaps/vfsprobe", "", "")
	require.Equal(c.t, http.StatusOK, status, body)
	require.NoError(c.t, json.Unmarshal([]byte(body), &configMap))
	require.NoError(c.t, os.Mkdir(c.file("configuration"), 0o755))
	for name, content := range configMap.Data {
		c.write("configuration/"+name, content)
	}
	_, template, _ := strings.Cut(manifests, "\n  template:\n")
	pod := "apiVersion: v1\nkind: Pod\n" + strings.ReplaceAll("\n"+template, "\n    ", "\n")
	pod = strings.NewReplacer("metadata:\n", "metadata:\n  name: vfsprobe\n  namespace: "+podNamespace+"\n",
		"configMap:\n        name: vfsprobe", "hostPath:\n        path: "+c.file("configuration")).Replace(pod)
	file := filepath.Join(c.staticPods(), "vfsprobe.yaml")
	c.t.Cleanup(func() { _ = os.Remove(file) })
	require.NoError(c.t, os.WriteFile(file, []byte(pod), 0o600))
	old, _ := c.readyPod(time.Minute)
	hung := faultfs.New(c.t)
	c.until(old, 0, reported(hung, "ok")...)
	hung.Silence()
	c.until(old, 0, reported(hung, "stuck")...)

	began := time.Now()
	require.NoError(c.t, os.WriteFile(file, []byte(strings.Replace(pod, "  annotations:\n", "  annotations:\n    again: now\n", 1)), 0o600))
	next, _ := c.readyPod(reports, old)
	c.hangs(next, 0, hung)
	assert.Less(c.t, c.found(began, "another manifest: the hang is reported by the new pod"), reports)
	hung.Heal()
}

// unprivileged are values by which vfsprobe may look at no other process.
func unprivileged() map[string]any {
	return map[string]any{"run": "telegraf", "capabilities": map[string]any{"SYS_PTRACE": nil}}
}

// What is written in the document of what the pod can't write, also who has taken it over: with
// its usual capabilities, what belongs to others but for what everybody may, on mounts that are
// not read-only with all below them; with less of them nothing. Root it becomes with neither.
func (c *cluster) testWhatCanBeWritten(runtime string, below bool) {
	other, fuse := loopfs.New(c.t, "ext4", 16<<20, ""), faultfs.New(c.t)
	everybodys := filepath.Join(other.Dir, "everybodys")
	require.NoError(c.t, os.Mkdir(everybodys, 0o700))
	require.NoError(c.t, os.Chmod(everybodys, 0o777))
	tried := []string{"/host/etc", "/host/usr", "/host/var/lib", "/host/run", "/host/dev", "/host/proc/1/root/etc", "/host/proc/sys/kernel/core_pattern",
		"/host/sys/kernel/mm/ksm/run", "/host/sys/fs/cgroup/memory/release_agent", "/host/dev/shm", "/host" + other.Dir, "/host" + everybodys, "/host" + filepath.Join(fuse.Dir, faultfs.FileName),
		"/proc/1/mem", "/host/proc/1/mem", traceInit, becomeRoot}
	// The daemon of the FUSE mount leaves it to nobody to look at permissions.
	writable := []string{"writable: /host" + everybodys, "writable: /host" + filepath.Join(fuse.Dir, faultfs.FileName)}
	if below {
		writable = append(writable, "writable: /host/dev/shm")
	}
	slices.Sort(writable)
	assert.Equal(c.t, writable, c.written(runtime, map[string]any{"run": "telegraf"}, tried))
	assert.Empty(c.t, c.written(runtime, unprivileged(), tried))

	pod := c.deploy(runtime, unprivileged())
	c.until(pod, 0, reported(fuse, "ok")...)
	fuse.Silence()
	c.until(pod, 0, reported(fuse, "stuck")...)
	fuse.Heal()
}

// written is what a program in Telegraf's place can write of the node's.
func (c *cluster) written(runtime string, values map[string]any, tried []string) (lines []string) {
	c.record()
	defer c.remove()
	arguments, err := json.Marshal(tried)
	require.NoError(c.t, err)
	c.apply(strings.NewReplacer(`"/usr/bin/telegraf"]`, `"/usr/bin/test"]`, `args: ["--config", "/etc/telegraf/telegraf.conf"]`, "args: "+string(arguments),
		"          env:\n", "          env:\n            - {name: "+roleVariable+", value: "+roleOpen+"}\n").Replace(withRuntime(c.render(values), runtime)))
	var text string
	c.wait("all tried", time.Minute, func() (bool, string) {
		if pods := c.pods(); len(pods) == 1 {
			text = logs(pods[0], "telegraf")
		}
		return strings.Contains(text, "all tried"), text
	})
	c.t.Log(text)
	for line := range strings.Lines(text) {
		if _, found, ok := strings.Cut(line, "writable: "); ok {
			lines = append(lines, "writable: "+strings.TrimSpace(found))
		}
	}
	slices.Sort(lines)
	return lines
}

// A pod whose gathers stand still is not ready, and is again.
func (c *cluster) testAStaleGather() {
	for _, way := range []string{"telegraf", "service"} {
		pod := c.deploy("debian", map[string]any{"run": way})
		signal := func(s syscall.Signal) { c.kill(pod, "vfsprobe", s) }
		if way == "service" {
			signal = func(s syscall.Signal) { require.NoError(c.t, syscall.Kill(c.service, s)) }
		}
		ready := func(wanted bool) {
			began := time.Now()
			c.wait("ready: "+strconv.FormatBool(wanted), time.Minute, func() (bool, string) {
				pods := c.pods()
				return len(pods) == 1 && pods[0].is("Ready") == wanted && pods[0].Metadata.UID == pod.Metadata.UID, fmt.Sprintf("%+v", pods)
			})
			c.found(began, fmt.Sprintf("%s: ready: %v", way, wanted))
		}
		signal(syscall.SIGSTOP)
		ready(false)
		signal(syscall.SIGCONT)
		ready(true)
		c.remove()
	}
}

// helpers are those that hang, by their pids: that are there now, and a while later.
func helpers(t *testing.T) []int {
	t.Helper()
	named := func(comm string) bool { return strings.HasPrefix(comm, prober.HelperPrefix) }
	first := processes(t, named)
	time.Sleep(time.Second)
	later := processes(t, named)
	return slices.DeleteFunc(first, func(pid int) bool { return !slices.Contains(later, pid) })
}

// processes are those of the node with such a name, by their pids.
func processes(t *testing.T, named func(comm string) bool) (pids []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		if named(strings.TrimSuffix(string(comm), "\n")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// processOf is the first process of a program in a pod's container.
func (c *cluster) processOf(pod object, program string) int {
	c.t.Helper()
	var pids []int
	for _, pid := range processes(c.t, func(comm string) bool { return comm == program }) {
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if bytes.Contains(cgroup, []byte("/pod"+logUID(pod)+"/")) {
			pids = append(pids, pid)
		}
	}
	require.NotEmpty(c.t, pids, "%s of %s", program, pod.Metadata.Name)
	return slices.Min(pids)
}

// kill sends a signal to a program of a pod's container, as the OOM killer does.
func (c *cluster) kill(pod object, program string, signal syscall.Signal) {
	c.t.Helper()
	require.NoError(c.t, syscall.Kill(c.processOf(pod, program), signal))
}

// runOutOfMemory has the kernel end Telegraf, since its container needs more than the limit of
// its manifest: another process takes it, in the container's cgroup.
func (c *cluster) runOutOfMemory(pod object) {
	c.t.Helper()
	pid := c.processOf(pod, "telegraf")
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	require.NoError(c.t, err)
	memory := regexp.MustCompile(`(?m)^\d+:memory:(.*)$`).FindSubmatch(content)
	require.NotNil(c.t, memory, "%s", content)
	dir := "/sys/fs/cgroup/memory" + string(memory[1])
	limit, err := os.ReadFile(filepath.Join(dir, "memory.limit_in_bytes"))
	require.NoError(c.t, err)
	require.Equal(c.t, "268435456\n", string(limit), "the manifest's")
	// Who takes the memory is not to be chosen first.
	require.NoError(c.t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0))
	eats := exec.Command("/proc/self/exe", dir+"/cgroup.procs")
	eats.Env = append(os.Environ(), roleVariable+"="+roleEat)
	out, err := eats.CombinedOutput()
	require.Error(c.t, err, "the kernel ends it in the end: %s", out)
	require.Empty(c.t, out)
	_, err = os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	require.ErrorIs(c.t, err, os.ErrNotExist, "Telegraf is gone")
}

// The ServiceMonitor and the alert rules, by the definitions of Prometheus' operator, and what
// Prometheus would get.
func (c *cluster) testPrometheus() {
	dir, err := definitions()
	require.NoError(c.t, err)
	for _, name := range []string{"prometheusrules", "servicemonitors"} {
		content, err := os.ReadFile(filepath.Join(dir, "monitoring.coreos.com_"+name+".yaml"))
		require.NoError(c.t, err)
		c.apply(string(content))
		c.wait(name, startTimeout, func() (bool, string) {
			status, body := c.request(http.MethodGet, "/apis/monitoring.coreos.com/v1/namespaces/"+podNamespace+"/"+name, "", "")
			return status == http.StatusOK, body
		})
	}
	c.deploy("debian", map[string]any{"run": "telegraf", "prometheus": map[string]any{"enabled": true, "serviceMonitor": true, "rules": true}})
	c.wait("metrics", reports, func() (bool, string) {
		response, err := http.Get("http://127.0.0.1:9273/metrics")
		if err != nil {
			return false, err.Error()
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		return err == nil && bytes.Contains(content, []byte("\nmountstat_")), string(content)
	})
}

// The plain manifest as it is.
func (c *cluster) testManifest() {
	content, err := os.ReadFile(filepath.Join(repository, "packaging/container/daemonset.yaml"))
	require.NoError(c.t, err)
	c.t.Cleanup(c.remove)
	_, manifests, _ := strings.Cut(string(content), "apiVersion:")
	c.apply("apiVersion:" + manifests)
	_, took := c.readyPod(time.Minute)
	c.t.Logf("ready after %.1f s", took.Seconds())
}
