//go:build !race

package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	node         = "node1"
	podNamespace = "monitoring"
	server       = "https://" + address + ":6443"
	token        = "admin"
	// startTimeout is for a part of the cluster that starts, on a busy machine.
	startTimeout = 2 * time.Minute
)

// cluster is one of a single node, whose parts all run in the tests' namespaces.
type cluster struct {
	t        *testing.T
	dir      string // the parts' files
	binaries string // of Kubernetes
	engine   string // the directory of containerd
	http     *http.Client
	cgroup   string // of all pods
	service  int    // the process of vfsprobe.service
}

// newCluster starts all parts, with that containerd, and waits for the node to be ready.
func newCluster(t *testing.T, engine func() (dir string, err error)) *cluster {
	faultfs.Require(t)
	if os.Getenv(wanted) == "" {
		t.Skip("part of make test-long: " + wanted + "=1")
	}
	binaries, err := programs.Kubernetes()
	require.NoError(t, err)
	for _, name := range []string{"containerd", "etcd", "ip", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%v: make test-kubernetes installs it", err)
		}
	}
	containerd, err := engine()
	require.NoError(t, err)
	c := &cluster{t: t, dir: t.TempDir(), binaries: binaries, engine: containerd, http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	c.makeCgroup()
	t.Cleanup(unmountNode)
	c.startContainerd()
	c.startControlPlane()
	c.startKubelet()
	return c
}

// unmountNode leaves nothing of one cluster to the next.
func unmountNode() {
	content, _ := os.ReadFile("/proc/self/mounts")
	var dirs []string
	for line := range strings.Lines(string(content)) {
		dir := strings.Fields(line)[1]
		if slices.ContainsFunc(nodeDirs(), func(top string) bool { return strings.HasPrefix(dir, top+"/") }) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range slices.Backward(dirs) {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	for _, dir := range nodeDirs() {
		names, _ := filepath.Glob(dir + "/*")
		for _, name := range names {
			_ = os.RemoveAll(name)
		}
	}
}

// in is the cluster for a test of its own.
func (c *cluster) in(t *testing.T) *cluster {
	in := *c
	in.t = t
	return &in
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name, content string) string {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(c.file(name), []byte(content), 0o600))
	return c.file(name)
}

// start runs a part until the tests end.
func (c *cluster) start(program string, arguments ...string) {
	c.t.Helper()
	log, err := os.Create(c.file(filepath.Base(program) + ".log"))
	require.NoError(c.t, err)
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = log, log
	command.Env = append(os.Environ(), "PATH="+c.engine+":"+os.Getenv("PATH")) // of its shim
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(c.t, command.Start())
	c.t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		_ = log.Close()
		if c.t.Failed() {
			content, _ := os.ReadFile(log.Name())
			c.t.Logf("%s:\n%s", program, content[max(0, len(content)-4000):])
		}
	})
}

// wait is for a condition, and says in vain what was last seen.
func (c *cluster) wait(what string, timeout time.Duration, holds func() (bool, string)) time.Duration {
	c.t.Helper()
	began := time.Now()
	if ok, seen := within(timeout, holds); !ok {
		require.Fail(c.t, "not within "+timeout.String(), "%s: %s", what, seen)
	}
	return time.Since(began)
}

// within tells if a condition holds in time, and what was last seen.
func within(timeout time.Duration, holds func() (bool, string)) (ok bool, seen string) {
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if ok, seen = holds(); ok {
			break
		}
	}
	return ok, seen
}

// makeCgroup makes one above those of all pods, in each hierarchy. It is locked while the
// cluster runs: what a killed run has left is known by that.
func (c *cluster) makeCgroup() {
	t := c.t
	const prefix = "/vfsprobe-kubernetes-"
	left, err := filepath.Glob("/sys/fs/cgroup/*" + prefix + "*")
	require.NoError(t, err)
	for _, dir := range left {
		if lock, err := lockDir(dir); err == nil {
			removeCgroup(dir)
			_ = lock.Close()
		}
	}
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	c.cgroup = prefix + strings.Trim(namespace, "mnt:[]")
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	require.NoError(t, err)
	if len(hierarchies) < 5 {
		t.Skip("no cgroups of version 1 here")
	}
	for _, procs := range hierarchies {
		hierarchy := filepath.Dir(procs)
		dir := filepath.Join(hierarchy, c.cgroup)
		require.NoError(t, os.Mkdir(dir, 0o755))
		lock, err := lockDir(dir)
		require.NoError(t, err)
		t.Cleanup(func() {
			if !removeCgroup(dir) {
				t.Errorf("%s is left", dir)
			}
			_ = lock.Close()
		})
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if content, err := os.ReadFile(filepath.Join(hierarchy, name)); err == nil {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0))
			}
		}
	}
}

func lockDir(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// removeCgroup ends what is left in it.
func removeCgroup(top string) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if len(dirs) == 0 {
			return true
		}
		for _, dir := range slices.Backward(dirs) {
			for _, pid := range pidsOf(dir) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			_ = os.Remove(dir)
		}
	}
	return false
}

// pidsOf are the processes of a cgroup.
func pidsOf(dir string) (pids []int) {
	content, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, word := range strings.Fields(string(content)) {
		var pid int
		if _, err := fmt.Sscan(word, &pid); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// runtimes are the handlers of containerd, by the name that a RuntimeClass has.
func (c *cluster) runtimes() map[string]string {
	debian, err := exec.LookPath("runc")
	require.NoError(c.t, err)
	all := map[string]string{"debian": debian}
	if built, err := programs.RuncOfPods(); err == nil {
		all["built"] = built
	} else {
		c.t.Log(err)
	}
	return all
}

const (
	image      = "docker.io/library/telegraf-vfsprobe:0.1.0" // the chart's
	pauseImage = "localhost/pause:test"
)

func (c *cluster) startContainerd() {
	t := c.t
	config := fmt.Sprintf(`version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  # Root may lack CAP_SYS_RESOURCE here.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = %q
    bin_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "debian"
`, pauseImage, c.file("cni"), c.file("cni"))
	for name, binary := range c.runtimes() {
		config += fmt.Sprintf(`  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%s]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%s.options]
      BinaryName = %q
`, name, name, binary)
	}
	// All pods have the node's network: that there is a plugin is enough for a node to be ready.
	require.NoError(t, os.Mkdir(c.file("cni"), 0o755))
	c.write("cni/lo.conflist", `{"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]}`)
	c.start(filepath.Join(c.engine, "containerd"), "--config", c.write("containerd.toml", config))
	c.wait("containerd", startTimeout, func() (bool, string) {
		out, err := c.command(filepath.Join(c.engine, "ctr"), "version").CombinedOutput()
		return err == nil, string(out)
	})
	for _, archive := range c.images() {
		out, err := c.command(filepath.Join(c.engine, "ctr"), "--namespace", "k8s.io", "images", "import", archive).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

func (c *cluster) command(name string, arguments ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	command := exec.CommandContext(ctx, name, arguments...)
	command.WaitDelay = time.Second
	return command
}

func (c *cluster) kubeconfig() string {
	return c.write("kubeconfig", `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "`+server+`", insecure-skip-tls-verify: true}}]
users: [{name: test, user: {token: `+token+`}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
`)
}

func (c *cluster) startControlPlane() {
	t := c.t
	c.start("etcd", "--data-dir", c.file("etcd"), "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	keyFile := c.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	c.start(filepath.Join(c.binaries, "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--bind-address="+address, "--advertise-address="+address,
		"--cert-dir="+c.file("certificates"), "--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=AlwaysAllow",
		"--token-auth-file="+c.write("tokens", token+",admin,admin,system:masters\n"), "--service-account-issuer="+server,
		"--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile)
	c.wait("the API server", startTimeout, func() (bool, string) {
		status, body := c.request(http.MethodGet, "/readyz", "", "")
		return status == http.StatusOK, body
	})
	kubeconfig := c.kubeconfig()
	c.start(filepath.Join(c.binaries, "kube-controller-manager"), "--kubeconfig="+kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
		"--authentication-skip-lookup", "--cert-dir="+c.file("certificates"),
		"--controllers=daemonset-controller,garbage-collector-controller,namespace-controller,node-lifecycle-controller,pod-garbage-collector-controller,serviceaccount-controller")
	c.start(filepath.Join(c.binaries, "kube-scheduler"), "--kubeconfig="+kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1", "--authentication-skip-lookup",
		"--cert-dir="+c.file("certificates"))
}

func (c *cluster) staticPods() string { return c.file("static") }

func (c *cluster) startKubelet() {
	require.NoError(c.t, os.Mkdir(c.staticPods(), 0o755))
	c.start(filepath.Join(c.binaries, "kubelet"), "--kubeconfig="+c.kubeconfig(), "--hostname-override="+node, "--node-ip="+address, "--config",
		c.write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: `+c.cgroup+`
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
staticPodPath: `+c.staticPods()+`
fileCheckFrequency: 2s
syncFrequency: 10s
containerLogMaxSize: 1Gi
localStorageCapacityIsolation: false
evictionHard: {memory.available: "1Mi", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
`))
	took := c.wait("the node", startTimeout, func() (bool, string) {
		status, body := c.request(http.MethodGet, "/api/v1/nodes/"+node, "", "")
		return status == http.StatusOK && regexp.MustCompile(`"type":"Ready","status":"True"`).MatchString(body), body
	})
	c.t.Logf("the node is ready %.1f s after kubelet's start", took.Seconds())
}

// definitions is the directory of those of Prometheus' operator.
func definitions() (dir string, err error) {
	command := exec.Command("go", "mod", "download", "-json", "github.com/prometheus-operator/prometheus-operator")
	command.Dir = filepath.Join(repository, "tools/prometheus-operator")
	command.Env = append(os.Environ(), "GOWORK=off")
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("downloading the definitions of Prometheus' operator: %w: %s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", err
	}
	return filepath.Join(module.Dir, "example/prometheus-operator-crd"), nil
}

// request asks the API server.
func (c *cluster) request(method, path, contentType, body string) (status int, answer string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, server+path, strings.NewReader(body))
	require.NoError(c.t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(content)
}

// object is what the tests look at of those of the API.
type object struct {
	Metadata struct {
		Name              string
		UID               string
		DeletionTimestamp string
		Annotations       map[string]string
	}
	Status struct {
		Phase             string
		Conditions        []struct{ Type, Status, Message string }
		ContainerStatuses []struct {
			Name         string
			ContainerID  string
			Ready        bool
			RestartCount int
		}
	}
}

func (o *object) is(condition string) bool {
	for _, each := range o.Status.Conditions {
		if each.Type == condition {
			return each.Status == "True"
		}
	}
	return false
}

// clusterWide are the kinds without a namespace.
var clusterWide = []string{"CustomResourceDefinition", "Namespace", "RuntimeClass"}

var documentParts = regexp.MustCompile(`(?ms)^apiVersion: (\S+)$.*?^kind: (\S+)$.*?^metadata:$.*?^  name: (\S+)$`)

// path is that of the object of a manifest.
func path(t *testing.T, manifest string) string {
	t.Helper()
	parts := documentParts.FindStringSubmatch(manifest)
	require.NotNil(t, parts, manifest)
	group, kind, name := "/apis/"+parts[1], parts[2], parts[3]
	if parts[1] == "v1" {
		group = "/api/v1"
	}
	plural := strings.ToLower(kind) + "s"
	if strings.HasSuffix(kind, "s") {
		plural = strings.ToLower(kind) + "es"
	}
	if slices.Contains(clusterWide, kind) {
		return group + "/" + plural + "/" + name
	}
	return group + "/namespaces/" + podNamespace + "/" + plural + "/" + name
}

// apply is kubectl apply --server-side --validate=strict.
func (c *cluster) apply(manifests string) {
	c.t.Helper()
	for manifest := range strings.SplitSeq("\n"+manifests, "\n---\n") {
		if strings.TrimSpace(manifest) == "" {
			continue
		}
		at := path(c.t, manifest)
		status, body := c.request(http.MethodPatch, at+"?fieldManager=test&fieldValidation=Strict&force=true", "application/apply-patch+yaml", manifest)
		require.Contains(c.t, []int{http.StatusOK, http.StatusCreated}, status, "%s: %s", at, body)
	}
}

// pods are those of the namespace that belong to the release, by their age.
func (c *cluster) pods() []object {
	status, body := c.request(http.MethodGet, "/api/v1/namespaces/"+podNamespace+"/pods?labelSelector=app.kubernetes.io/name=vfsprobe", "", "")
	var list struct{ Items []object }
	if status != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil {
		return nil
	}
	return list.Items
}

// readyPod waits for a pod that is ready, other than those.
func (c *cluster) readyPod(timeout time.Duration, others ...object) (pod object, took time.Duration) {
	c.t.Helper()
	took = c.wait("a pod that is ready", timeout, c.isReady(&pod, others...))
	return pod, took
}

// isReady tells if a pod other than those is ready.
func (c *cluster) isReady(pod *object, others ...object) func() (bool, string) {
	return func() (bool, string) {
		pods := c.pods()
		for i := range pods {
			known := slices.ContainsFunc(others, func(o object) bool { return o.Metadata.UID == pods[i].Metadata.UID })
			if !known && pods[i].Metadata.DeletionTimestamp == "" && pods[i].is("Ready") {
				*pod = pods[i]
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", pods)
	}
}

// rolloutRestart is kubectl rollout restart.
func (c *cluster) rolloutRestart() {
	c.t.Helper()
	status, body := c.request(http.MethodPatch, "/apis/apps/v1/namespaces/"+podNamespace+"/daemonsets/vfsprobe?fieldManager=kubectl-rollout", "application/strategic-merge-patch+json",
		`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"`+time.Now().Format(time.RFC3339Nano)+`"}}}}}`)
	require.Equal(c.t, http.StatusOK, status, body)
}

// forceDelete is kubectl delete pod --force --grace-period=0.
func (c *cluster) forceDelete(pod object) {
	c.t.Helper()
	status, body := c.request(http.MethodDelete, "/api/v1/namespaces/"+podNamespace+"/pods/"+pod.Metadata.Name, "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}`)
	require.Equal(c.t, http.StatusOK, status, body)
}

func (c *cluster) delete(at string) {
	c.t.Helper()
	status, body := c.request(http.MethodDelete, at, "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`)
	require.Contains(c.t, []int{http.StatusOK, http.StatusNotFound}, status, body)
}

// remove deletes the release, and waits until the last of its pods is gone.
func (c *cluster) remove() {
	c.t.Helper()
	c.delete("/apis/apps/v1/namespaces/" + podNamespace + "/daemonsets/vfsprobe")
	c.delete("/api/v1/namespaces/" + podNamespace + "/configmaps/vfsprobe")
	c.wait("no pod", time.Minute, func() (bool, string) {
		pods := c.pods()
		return len(pods) == 0, fmt.Sprintf("%+v", pods)
	})
}

// render is helm template, by Helm's own code.
func (c *cluster) render(values map[string]any) string {
	c.t.Helper()
	all := map[string]any{"interval": "1s", "env": []any{}, "outputs": "[[outputs.file]]\n  files = [\"stdout\"]\n", "health": map[string]any{"maxAge": "10s"}, "vfsprobe": configuration}
	for name, value := range values {
		all[name] = value
	}
	encoded, err := json.Marshal(all)
	require.NoError(c.t, err)
	renderer, err := programs.Manifests()
	require.NoError(c.t, err)
	out, err := c.command(renderer, "-values", string(encoded), repository).CombinedOutput()
	require.NoError(c.t, err, "%s", out)
	return string(out)
}

// logs are what a container has printed, whichever of its runs, as kubelet keeps it.
func logs(pod object, container string) string {
	names, _ := filepath.Glob(fmt.Sprintf("/var/log/pods/%s_%s_%s/%s/*.log", podNamespace, pod.Metadata.Name, logUID(pod), container))
	var all []byte
	for _, name := range names {
		content, _ := os.ReadFile(name)
		all = append(all, content...)
	}
	return string(all)
}

// logUID is the uid by which kubelet knows a pod: a static one has its own.
func logUID(pod object) string {
	if uid := pod.Metadata.Annotations["kubernetes.io/config.hash"]; uid != "" {
		return uid
	}
	return pod.Metadata.UID
}

// until waits for a line of Telegraf's with all of these, printed after the mark.
func (c *cluster) until(pod object, after int, patterns ...string) (line string) {
	c.t.Helper()
	c.wait(fmt.Sprintf("a line with %q", patterns), reports, printed(&line, pod, after, patterns...))
	return line
}

// printed tells if Telegraf has printed such a line.
func printed(found *string, pod object, after int, patterns ...string) func() (bool, string) {
	var all []*regexp.Regexp
	for _, pattern := range patterns {
		all = append(all, regexp.MustCompile(pattern))
	}
	return func() (bool, string) {
		text := logs(pod, "telegraf")
		text = text[min(after, len(text)):]
	lines:
		for line := range strings.Lines(text) {
			_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " F ")
			for _, one := range all {
				if !one.MatchString(line) {
					continue lines
				}
			}
			*found = line
			return true, ""
		}
		return false, text[max(0, len(text)-4000):]
	}
}

// recording is what kubectl get pods --watch prints.
type recording struct {
	began time.Time
	lines []string
}

// record watches the pods until the test ends.
func (c *cluster) record() {
	t := c.t
	ctx, cancel := context.WithCancel(context.Background())
	r := &recording{began: time.Now()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.watch(ctx, r)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		t.Logf("kubectl get pods --watch:\n%s", strings.Join(r.lines, "\n"))
	})
}

// watch ends when the API server ends it.
func (c *cluster) watch(ctx context.Context, r *recording) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/api/v1/namespaces/"+podNamespace+"/pods?watch=1&labelSelector=app.kubernetes.io/name=vfsprobe", nil)
	if err != nil {
		return
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	response, err := c.http.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	for {
		var event struct {
			Type   string
			Object struct{ Rows []struct{ Cells []any } }
		}
		if err := decoder.Decode(&event); err != nil {
			return
		}
		for _, row := range event.Object.Rows {
			if event.Type == "DELETED" {
				r.say("%s deleted", row.Cells[0])
			} else {
				r.say("%s %s %s restarts=%v", row.Cells[0], row.Cells[1], row.Cells[2], row.Cells[3])
			}
		}
	}
}

// say adds a line, unless it says the same as the last.
func (r *recording) say(format string, arguments ...any) {
	line := fmt.Sprintf(format, arguments...)
	if len(r.lines) > 0 && strings.HasSuffix(r.lines[len(r.lines)-1], " s  "+line) {
		return
	}
	r.lines = append(r.lines, fmt.Sprintf("%6.1f s  %s", time.Since(r.began).Seconds(), line))
}
