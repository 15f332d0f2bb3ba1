//go:build !race

package systemd

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

const (
	podImage   = "docker.io/library/" + containers.Image
	pauseImage = "localhost/pause:test"
	// reports is how long a pod may take to report that takes the place of another, in a machine
	// that is emulated on one that has much else to do. Without that it is less than 30 s.
	reports = 3 * patience / 2
	// kubectl is the command line, with the binaries that the machine shares.
	kubectl = "/srv/kubernetes/kubectl --kubeconfig=/srv/kubeconfig --namespace=monitoring "
)

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
readOnlyPort: 10255
cgroupDriver: systemd
failSwapOn: false
staticPodPath: /srv/pods
fileCheckFrequency: 2s
syncFrequency: 10s
localStorageCapacityIsolation: false
evictionHard: {memory.available: "1Mi", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
`

const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
`

// podWay is a way of the chart's to run vfsprobe in a pod.
type podWay struct {
	name, run, user string
	moveHelpers     bool
	privileged      bool
	holds           bool // what hangs is in the pod's cgroup
}

func podWays() []podWay {
	return []podWay{
		{name: "service", run: "service", user: "root"},
		{name: "moved helpers of a privileged pod", run: "telegraf", user: "61100", moveHelpers: true, privileged: true},
		{name: "one container", run: "telegraf", user: "61100", holds: true},
		{name: "moved helpers", run: "telegraf", user: "61100", moveHelpers: true, holds: true},
	}
}

// A kubelet with static pods, containerd and runc as a distribution sets them up: with version 2
// of cgroups, which systemd mounts and makes them in. While mounts hang, Telegraf is killed, the
// pod is replaced by one of another manifest, and its memory runs out.
func TestSystemd_Kubelet(t *testing.T) {
	node := newNode(t, false)
	for _, way := range podWays() {
		t.Run(way.name, func(t *testing.T) { h := &host{node.Machine, t}; h.replacePods(way, h.staticPod(way)) })
	}
}

// The same with containerd and runc of today, and a DaemonSet of an API server: the pod is
// replaced by a rollout, and where it can't be ended by kubectl delete --force.
func TestSystemd_KubeletOfADaemonSet(t *testing.T) {
	node := newNode(t, true)
	for _, way := range podWays() {
		t.Run(way.name, func(t *testing.T) { h := &host{node.Machine, t}; h.replacePods(way, h.daemonSet(way)) })
	}
}

// workload is what has a pod run.
type workload interface {
	create()
	replace()          // the pod by another
	force(what string) // another pod, where what hangs holds the one that is there
	remove()
}

func (h *host) replacePods(way podWay, pod workload) {
	h.metricsOf(way.user)
	if way.run == "service" {
		h.install()
		h.shell("systemctl enable --now vfsprobe")
	}
	defer func() {
		if h.t.Failed() {
			h.t.Log(h.shell("journalctl -u kubelet -u containerd --no-pager -o cat | grep -v '^I' | tail -n 40; tail -n 20 /var/log/pods/*/*/*.log; ps -eo pid,stat,comm,wchan"))
		}
		pod.remove()
		h.shell("systemctl disable --now vfsprobe 2>/dev/null || true")
		assert.True(h.t, within(reports, func() bool { return len(h.pods()) == 0 }), "the pods end: %+v", h.pods())
	}()
	pod.create()
	require.True(h.t, within(reports, func() bool { return h.telegrafs() != "" }), "Telegraf runs")
	h.until("mountstat,", "path=/srv/healthy ", `result="ok"`)

	first := faults()["silent FUSE daemon"]
	rename := strings.NewReplacer("/srv/fuse", "/srv/more", "silent", "silent2")
	second := fault{path: "/srv/more", make: rename.Replace(first.make), heal: rename.Replace(first.heal), want: first.want}
	h.shell(first.make)
	defer h.shell(first.heal)
	h.hang(way, first)
	h.change(way, pod, "kill", func() { h.shell("pkill -KILL -x telegraf") }, first)

	h.shell(second.make)
	defer h.shell(second.heal)
	h.hang(way, first, second)
	h.change(way, pod, "replacement", pod.replace, first, second)
	h.change(way, pod, "memory", h.runOutOfMemory, first, second)
}

// runOutOfMemory has the kernel end what runs in Telegraf's container, since it needs more than
// the limit of its manifest: another process takes it there.
func (h *host) runOutOfMemory() {
	h.t.Helper()
	telegraf := h.telegrafs()
	cgroup := "/sys/fs/cgroup" + h.shell("sed -n s/^0:://p /proc/"+telegraf+"/cgroup")
	require.Equal(h.t, "268435456", h.shell("cat "+cgroup+"/memory.max"), "the manifest's")
	h.shell("guest " + cgroup + "/cgroup.procs >/dev/null 2>&1; [ $? = 137 ]")
	require.True(h.t, within(patience, func() bool { return !slices.Contains(strings.Fields(h.telegrafs()), telegraf) }), "Telegraf is gone")
	h.shell("dmesg | grep 'Memory cgroup out of memory: '")
}

// change waits until another Telegraf reports what hangs. Where what hangs may hold the pod there
// may be none: then the pod is not ready, and can be forced.
func (h *host) change(way podWay, pod workload, name string, act func(), hung ...fault) {
	h.t.Helper()
	before := strings.Fields(h.telegrafs())
	another := func() bool {
		now := strings.Fields(h.telegrafs())
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	}
	limit := reports
	if way.holds {
		limit = patience
	}
	began := time.Now()
	act()
	if !within(limit, another) {
		h.t.Logf("%s: no other Telegraf after %.0f s: %+v", name, time.Since(began).Seconds(), h.pods())
		require.True(h.t, way.holds, name)
		assert.False(h.t, slices.ContainsFunc(h.pods(), podStatus.ready), "ready without a process")
		began = time.Now()
		pod.force(name)
		require.True(h.t, within(reports, another), "%s: no Telegraf of another pod", name)
		name += ", forced"
	}
	h.hang(way, hung...)
	h.t.Logf("%s: reports after %.1f s", name, time.Since(began).Seconds())
}

// hang waits for the reports of mounts that hang, for each of which there is one helper, in the
// root's cgroup if it can be moved. A runtime kills what it finds in a container's.
func (h *host) hang(way podWay, hung ...fault) {
	h.t.Helper()
	for _, f := range hung {
		want := f.want
		if way.holds {
			want = []string{`result="stuck"`}
		}
		h.until(append([]string{"mountstat,", "path=" + f.path + " "}, want...)...)
	}
	var cgroups []string
	settled := func() bool {
		cgroups = strings.Fields(h.shell("for pid in $(pgrep '^vfsp:'); do cat /proc/$pid/cgroup || true; done 2>/dev/null"))
		return len(cgroups) == len(hung) && !slices.ContainsFunc(cgroups, func(cgroup string) bool { return (cgroup == "0::/") == way.holds })
	}
	require.True(h.t, within(patience, settled), "one helper for each mount: %q", cgroups)
}

// within waits for a condition, and reports whether it came to hold in time.
func within(timeout time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if holds() {
			return true
		}
	}
	return false
}

func (h *host) telegrafs() string { return h.shell("pgrep -x telegraf || true") }

// write writes a file of /srv.
func (h *host) write(name, content string) {
	h.t.Helper()
	h.shell("cat >/srv/" + name + " <<'END'\n" + content + "\nEND\n")
}

// staticPod is one that kubelet takes from a file.
type staticPod struct {
	*host
	manifest string
}

func (p *staticPod) create() {
	p.write("vfsprobe.yaml", p.manifest)
	p.shell("mv /srv/vfsprobe.yaml /srv/pods/")
}

func (p *staticPod) replace() {
	p.manifest = strings.Replace(p.manifest, "  annotations:\n", "  annotations:\n    again: now\n", 1)
	p.create()
}

// podName finds the name in a manifest.
var podName = regexp.MustCompile(`(?m)^(  name: )\S+$`)

// force gives the pod another name.
func (p *staticPod) force(what string) {
	p.manifest = podName.ReplaceAllString(p.manifest, "${1}vfsprobe-"+what)
	p.create()
}

func (p *staticPod) remove() { p.shell("rm -f /srv/pods/*") }

// daemonSet is one that has a pod on the node.
type daemonSet struct {
	*host
	manifests string
}

func (d *daemonSet) create() {
	d.write("vfsprobe.yaml", d.manifests)
	d.shell(kubectl + "apply --server-side --validate=strict --filename=/srv/vfsprobe.yaml")
}

func (d *daemonSet) replace() { d.shell(kubectl + "rollout restart daemonset/vfsprobe") }

func (d *daemonSet) force(string) {
	d.t.Log(d.shell(kubectl + "get pods; " + kubectl + "delete pod --all --force --grace-period=0 2>&1"))
}

func (d *daemonSet) remove() {
	d.shell(kubectl + "delete --ignore-not-found --filename=/srv/vfsprobe.yaml")
}

// podStatus is what kubelet says of a pod.
type podStatus struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase      string
		Conditions []struct{ Type, Status string }
	}
}

func (p podStatus) ready() bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == "Ready" && c.Status == "True" })
}

// pods are those that kubelet has.
func (h *host) pods() []podStatus {
	h.t.Helper()
	answer := h.shell(`bash -c 'exec 3<>/dev/tcp/127.0.0.1/10255 && printf "GET /pods HTTP/1.0\r\n\r\n" >&3 && cat <&3'`)
	_, body, _ := strings.Cut(strings.ReplaceAll(answer, "\r", ""), "\n\n")
	var list struct{ Items []podStatus }
	require.NoError(h.t, json.Unmarshal([]byte(body), &list), answer)
	return list.Items
}

// newNode is a machine with containerd and kubelet: Debian's with static pods, or those of today
// with an API server and a DaemonSet's controller.
func newNode(t *testing.T, today bool) *host {
	t.Helper()
	if os.Getenv("VFSPROBE_KUBERNETES") == "" {
		t.Skip("VFSPROBE_KUBERNETES=1 has a kubelet run in a machine: make test-kubernetes")
	}
	kubernetes, err := programs.Kubernetes()
	require.NoError(t, err)
	vfsprobe, err := programs.Vfsprobe()
	require.NoError(t, err)
	telegraf, err := programs.Telegraf()
	require.NoError(t, err)
	dir := t.TempDir()
	guest := filepath.Join(dir, "pause")
	run(t, ".", "go", "build", "-o", guest, "./internal/testing/systemd/guest")
	require.NoError(t, containers.WriteArchive(filepath.Join(dir, "image.tar"), podImage, []string{"/usr/bin/telegraf"}, map[string]string{"usr/bin/telegraf": telegraf, "usr/bin/vfsprobe": vfsprobe}))
	require.NoError(t, containers.WriteArchive(filepath.Join(dir, "pause.tar"), pauseImage, []string{"/pause"}, map[string]string{"pause": guest}))
	config := vm.Config{MemoryMiB: 3072, Shares: []vm.Share{{Dir: kubernetes, Name: "/srv/kubernetes", ReadOnly: true}},
		Files: []vm.File{{From: filepath.Join(dir, "image.tar"), Name: "srv/image.tar"}, {From: filepath.Join(dir, "pause.tar"), Name: "srv/pause.tar"}}}
	if today {
		config.Files = append(config.Files, enginesOfToday(t)...)
	}
	h := newHostWith(t, vm.UML(), config, "containerd", "runc", "iproute2", "mount", "etcd-server")
	h.shell(`modprobe -a overlay 2>/dev/null || true
		mkdir -p /srv/pods /run/vfsprobe /etc/containerd /etc/cni/net.d /var/lib/containerd && mount -t tmpfs none /var/lib/containerd
		ip link set lo up && ip address add 10.99.0.1/32 dev lo && ip route add default dev lo
		mkdir -p /srv/healthy /srv/fuse /srv/more; truncate -s 32M /srv/healthy.image && mkfs.ext4 -q /srv/healthy.image && mount -o loop /srv/healthy.image /srv/healthy
		# User Mode Linux says nothing of its clock, without which kubelet does not start.
		sed 's/^bogomips.*/cpu MHz\t\t: 1000.000\n&/' /proc/cpuinfo >/srv/cpuinfo && mount --bind /srv/cpuinfo /proc/cpuinfo
		# All pods have the node's network: that there is a plugin is enough for a node to be ready.
		echo '{"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]}' >/etc/cni/net.d/lo.conflist`)
	h.write("containerd.toml", containerdConfig)
	h.write("kubelet.yaml", kubeletConfig)
	h.shell(`mv /srv/containerd.toml /etc/containerd/config.toml
		systemctl restart containerd && ctr --namespace k8s.io images import /srv/image.tar && ctr --namespace k8s.io images import /srv/pause.tar
		rm /srv/image.tar /srv/pause.tar`)
	kubeconfig := ""
	if today {
		h.startControlPlane()
		kubeconfig = "--kubeconfig=/srv/kubeconfig"
	}
	h.shell("systemd-run --unit=kubelet --property=Restart=always /srv/kubernetes/kubelet --config /srv/kubelet.yaml --hostname-override=node1 --node-ip=10.99.0.1 " + kubeconfig)
	if today {
		h.eventually("the node is ready", kubectl+"get node node1 | grep ' Ready '")
	}
	require.Contains(t, h.shell("grep cgroup2 /proc/mounts"), "nsdelegate")
	t.Log(h.shell("containerd --version; runc --version | head -n 1; /srv/kubernetes/kubelet --version; uname -r"))
	return h
}

// enginesOfToday take the place of Debian's.
func enginesOfToday(t *testing.T) (files []vm.File) {
	t.Helper()
	containerd, err := programs.Containerd()
	require.NoError(t, err)
	runc, err := programs.RuncOfPods()
	require.NoError(t, err)
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		files = append(files, vm.File{From: filepath.Join(containerd, name), Name: "usr/bin/" + name})
	}
	return append(files, vm.File{From: runc, Name: "usr/sbin/runc"})
}

// eventually waits until a script succeeds.
func (h *host) eventually(what, script string) {
	h.t.Helper()
	require.True(h.t, within(commandTimeout, func() bool { return h.shell("if "+script+" >/dev/null 2>&1; then echo yes; fi") == "yes" }), what)
}

// startControlPlane starts the API server and what it takes, and the controllers of a DaemonSet,
// whose pod is bound to the node by its manifest.
func (h *host) startControlPlane() {
	t := h.t
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	h.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	h.write("tokens", "admin,admin,admin,system:masters")
	h.write("kubeconfig", `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://10.99.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: test, user: {token: admin}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test`)
	h.shell(`systemctl stop etcd 2>/dev/null || true
		systemd-run --unit=store etcd --data-dir /srv/etcd --unsafe-no-fsync
		systemd-run --unit=apiserver --property=Restart=always /srv/kubernetes/kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=10.99.0.1 \
			--advertise-address=10.99.0.1 --cert-dir=/srv/certificates --service-cluster-ip-range=10.96.0.0/24 --authorization-mode=AlwaysAllow --allow-privileged \
			--token-auth-file=/srv/tokens --service-account-issuer=https://10.99.0.1:6443 --service-account-key-file=/srv/sa.key --service-account-signing-key-file=/srv/sa.key`)
	h.eventually("the API server is ready", kubectl+"get --raw /readyz")
	h.shell(`systemd-run --unit=controllers --property=Restart=always /srv/kubernetes/kube-controller-manager --kubeconfig=/srv/kubeconfig --leader-elect=false \
			--bind-address=127.0.0.1 --authentication-skip-lookup --cert-dir=/srv/certificates \
			--controllers=daemonset-controller,garbage-collector-controller,namespace-controller,pod-garbage-collector-controller,serviceaccount-controller
		` + kubectl + "create namespace monitoring")
	h.eventually("the namespace has an account", kubectl+"get serviceaccount default")
}

// manifests are those of the chart, with its pod's output in /run/telegraf.
func (h *host) manifests(way podWay) string {
	h.t.Helper()
	renderer, err := programs.Manifests()
	require.NoError(h.t, err)
	values, err := json.Marshal(map[string]any{"run": way.run, "moveHelpers": way.moveHelpers, "interval": "1s", "env": []any{},
		"outputs": "[[outputs.file]]\n  files = [\"/out/metrics\"]\n", "vfsprobe": "[[inputs.mountstat]]\n  timeout = \"500ms\"\n"})
	require.NoError(h.t, err)
	manifests := strings.NewReplacer("volumeMounts:\n", "volumeMounts:\n            - name: out\n              mountPath: /out\n",
		"\n      volumes:\n", "\n      volumes:\n        - name: out\n          hostPath:\n            path: /run/telegraf\n",
	).Replace(run(h.t, ".", renderer, "-values", string(values), "."))
	if way.privileged {
		manifests = strings.Replace(manifests, "allowPrivilegeEscalation: false", "privileged: true", 1)
	}
	return manifests
}

// daemonSet is that of the chart.
func (h *host) daemonSet(way podWay) *daemonSet {
	h.t.Helper()
	return &daemonSet{h, strings.Replace(h.manifests(way), "\n    spec:\n", "\n    spec:\n      nodeName: node1\n", 1)}
}

// staticPod is the pod that the chart makes, with its configuration.
func (h *host) staticPod(way podWay) *staticPod {
	h.t.Helper()
	h.configure(way.run)
	manifests := h.manifests(way)
	_, template, found := strings.Cut(manifests[strings.LastIndex(manifests, "---\n"):], "\n  template:\n")
	require.True(h.t, found, manifests)
	return &staticPod{h, strings.NewReplacer("metadata:\n", "metadata:\n  name: vfsprobe\n  namespace: monitoring\n",
		"configMap:\n        name: vfsprobe", "hostPath:\n        path: /etc/vfsprobe/container",
	).Replace("apiVersion: v1\nkind: Pod\n" + strings.ReplaceAll("\n"+template, "\n    ", "\n"))}
}
