//go:build !race

package systemd

import (
	"encoding/json"
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
		{name: "one container", run: "telegraf", user: "61100", holds: true},
		{name: "moved helpers", run: "telegraf", user: "61100", moveHelpers: true, holds: true},
		{name: "moved helpers of a privileged pod", run: "telegraf", user: "61100", moveHelpers: true, privileged: true},
		{name: "service", run: "service", user: "root"},
	}
}

// A kubelet with static pods, containerd and runc as a distribution sets them up: with version 2
// of cgroups, which systemd mounts and makes them in. While mounts hang, Telegraf is killed, and
// the pod is replaced by one of another manifest.
func TestSystemd_Kubelet(t *testing.T) {
	if os.Getenv("VFSPROBE_KUBERNETES") == "" {
		t.Skip("VFSPROBE_KUBERNETES=1 has a kubelet run in a machine: make test-kubernetes")
	}
	node := newNode(t)
	for _, way := range podWays() {
		t.Run(way.name, func(t *testing.T) { (&host{node.Machine, t}).replacePods(way) })
	}
}

func (h *host) replacePods(way podWay) {
	pod := h.staticPod(way)
	h.metricsOf(way.user)
	if way.run == "service" {
		h.install()
		h.shell("systemctl enable --now vfsprobe")
	}
	defer func() {
		if h.t.Failed() {
			h.t.Log(h.shell("journalctl -u kubelet -u containerd --no-pager -o cat | grep -v '^I' | tail -n 40; tail -n 20 /var/log/pods/*/*/*.log; ps -eo pid,stat,comm,wchan"))
		}
		h.shell("rm -f /srv/pods/*; systemctl disable --now vfsprobe 2>/dev/null || true")
		assert.True(h.t, within(reports, func() bool { return len(h.pods()) == 0 }), "the pods end: %+v", h.pods())
	}()
	h.setPod(pod)
	require.True(h.t, within(reports, func() bool { return h.telegrafs() != "" }), "Telegraf runs")
	h.until("mountstat,", "path=/srv/healthy ", `result="ok"`)

	first := faults()["silent FUSE daemon"]
	rename := strings.NewReplacer("/srv/fuse", "/srv/more", "silent", "silent2")
	second := fault{path: "/srv/more", make: rename.Replace(first.make), heal: rename.Replace(first.heal), want: first.want}
	h.shell(first.make)
	defer h.shell(first.heal)
	h.hang(way, first)
	pod = h.change(way, pod, "kill", func() { h.shell("pkill -KILL -x telegraf") }, first)

	h.shell(second.make)
	defer h.shell(second.heal)
	h.hang(way, first, second)
	pod = strings.Replace(pod, "  annotations:\n", "  annotations:\n    again: now\n", 1)
	h.change(way, pod, "replacement", func() { h.setPod(pod) }, first, second)
}

// change waits until another Telegraf reports what hangs. Where what hangs may hold the pod there
// may be none: then the pod is not ready, and one of another name helps. It returns the manifest
// that is in force.
func (h *host) change(way podWay, pod, name string, act func(), hung ...fault) string {
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
		assert.False(h.t, slices.ContainsFunc(h.pods(), staticPod.ready), "ready without a process")
		began = time.Now()
		pod = podName.ReplaceAllString(pod, "${1}vfsprobe-"+name)
		h.setPod(pod)
		require.True(h.t, within(reports, another), "%s: no Telegraf of another pod", name)
		name += ", and another name"
	}
	h.hang(way, hung...)
	h.t.Logf("%s: reports after %.1f s", name, time.Since(began).Seconds())
	return pod
}

// podName finds the name in a manifest.
var podName = regexp.MustCompile(`(?m)^(  name: )\S+$`)

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

func (h *host) setPod(manifest string) {
	h.shell("cat >/srv/vfsprobe.yaml <<'END'\n" + manifest + "\nEND\nmv /srv/vfsprobe.yaml /srv/pods/")
}

// staticPod is what kubelet says of one.
type staticPod struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase      string
		Conditions []struct{ Type, Status string }
	}
}

func (p staticPod) ready() bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == "Ready" && c.Status == "True" })
}

// pods are those that kubelet has.
func (h *host) pods() []staticPod {
	h.t.Helper()
	answer := h.shell(`bash -c 'exec 3<>/dev/tcp/127.0.0.1/10255 && printf "GET /pods HTTP/1.0\r\n\r\n" >&3 && cat <&3'`)
	_, body, _ := strings.Cut(strings.ReplaceAll(answer, "\r", ""), "\n\n")
	var list struct{ Items []staticPod }
	require.NoError(h.t, json.Unmarshal([]byte(body), &list), answer)
	return list.Items
}

// newNode is a machine with containerd and kubelet.
func newNode(t *testing.T) *host {
	t.Helper()
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
	h := newHostWith(t, "uml", []vm.File{{From: filepath.Join(kubernetes, "kubelet"), Name: "usr/bin/kubelet"},
		{From: filepath.Join(dir, "image.tar"), Name: "srv/image.tar"}, {From: filepath.Join(dir, "pause.tar"), Name: "srv/pause.tar"}}, "containerd", "runc", "iproute2", "mount")
	h.shell(`modprobe -a overlay 2>/dev/null || true
		mkdir -p /srv/pods /run/vfsprobe /etc/containerd /var/lib/containerd && mount -t tmpfs none /var/lib/containerd
		ip link set lo up && ip address add 10.99.0.1/32 dev lo && ip route add default dev lo
		mkdir -p /srv/healthy /srv/fuse /srv/more; truncate -s 32M /srv/healthy.image && mkfs.ext4 -q /srv/healthy.image && mount -o loop /srv/healthy.image /srv/healthy
		# User Mode Linux says nothing of its clock, without which kubelet does not start.
		sed 's/^bogomips.*/cpu MHz\t\t: 1000.000\n&/' /proc/cpuinfo >/srv/cpuinfo && mount --bind /srv/cpuinfo /proc/cpuinfo
		cat >/etc/containerd/config.toml <<'END'` + "\n" + containerdConfig + "\nEND\ncat >/srv/kubelet.yaml <<'END'\n" + kubeletConfig + `
END
		systemctl restart containerd && ctr --namespace k8s.io images import /srv/image.tar && ctr --namespace k8s.io images import /srv/pause.tar
		rm /srv/image.tar /srv/pause.tar
		systemd-run --unit=kubelet --property=Restart=always kubelet --config /srv/kubelet.yaml --hostname-override=node1 --node-ip=10.99.0.1`)
	require.Contains(t, h.shell("grep cgroup2 /proc/mounts"), "nsdelegate")
	t.Log(h.shell("containerd --version; runc --version | head -n 1; kubelet --version; uname -r"))
	return h
}

// staticPod is the pod that the chart makes, with its configuration, of which Telegraf writes to
// /run/telegraf.
func (h *host) staticPod(way podWay) string {
	h.t.Helper()
	h.configure(way.run)
	renderer, err := programs.Manifests()
	require.NoError(h.t, err)
	values, err := json.Marshal(map[string]any{"run": way.run, "moveHelpers": way.moveHelpers})
	require.NoError(h.t, err)
	manifests := run(h.t, ".", renderer, "-values", string(values), ".")
	_, template, found := strings.Cut(manifests[strings.LastIndex(manifests, "---\n"):], "\n  template:\n")
	require.True(h.t, found, manifests)
	pod := strings.NewReplacer("metadata:\n", "metadata:\n  name: vfsprobe\n  namespace: monitoring\n",
		"configMap:\n        name: vfsprobe", "hostPath:\n        path: /etc/vfsprobe/container",
		"volumeMounts:\n", "volumeMounts:\n        - name: out\n          mountPath: /out\n",
		"\n  volumes:\n", "\n  volumes:\n    - name: out\n      hostPath:\n        path: /run/telegraf\n",
	).Replace("apiVersion: v1\nkind: Pod\n" + strings.ReplaceAll("\n"+template, "\n    ", "\n"))
	if way.privileged {
		pod = strings.Replace(pod, "allowPrivilegeEscalation: false", "privileged: true", 1)
	}
	return pod
}
