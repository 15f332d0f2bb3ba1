package main

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const root = "../.."

func TestManifests_AreTheCharts(t *testing.T) {
	if err := run(root, true); err != nil {
		t.Fatal(err)
	}
}

func TestChart_Lint(t *testing.T) {
	for _, way := range ways() {
		linter := lint.AllWithKubeVersion(filepath.Join(root, chartDir), map[string]any{"run": way}, "monitoring", nil)
		for _, message := range linter.Messages {
			if message.Severity > support.InfoSev {
				t.Errorf("run: %s: %v", way, message)
			}
		}
	}
}

// objects decodes manifests with the types of the Kubernetes API. Unknown and repeated fields
// are errors. Those of other APIs are counted by their kind.
func objects(t *testing.T, manifests ...string) (all []runtime.Object, others map[string]int) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), appsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	others = make(map[string]int)
	for _, manifest := range manifests {
		reader := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(manifest)))
		buffer := make([]byte, len(manifest)+1)
		for {
			n, err := reader.Read(buffer)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			document := bytes.Clone(buffer[:n])
			if len(bytes.TrimSpace(document)) == 0 {
				continue
			}
			object, kind, err := strict.Decode(document, nil, nil)
			if runtime.IsNotRegisteredError(err) {
				others[kind.Kind]++
				continue
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, document)
			}
			all = append(all, object)
		}
	}
	return all, others
}

func daemonSet(t *testing.T, values map[string]any, version string) *appsv1.DaemonSet {
	t.Helper()
	rendered, err := render(root, values, version)
	if err != nil {
		t.Fatal(err)
	}
	all, _ := objects(t, rendered["daemonset.yaml"])
	return all[0].(*appsv1.DaemonSet)
}

func TestChart_EachWay(t *testing.T) {
	for _, version := range []string{"v1.25.0", kubernetesVersion} {
		for _, way := range ways() {
			d := daemonSet(t, map[string]any{"run": way}, version)
			pod := &d.Spec.Template.Spec
			if pod.HostPID != (way != "service") || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
				t.Errorf("%s: the host's PID namespace: %v", way, pod.HostPID)
			}
			for i := range pod.Containers {
				c := &pod.Containers[i]
				looks := c.Name == "vfsprobe" || way == "telegraf"
				if given := len(c.SecurityContext.Capabilities.Add); (given > 0) != looks {
					t.Errorf("%s: %s has %d capabilities", way, c.Name, given)
				}
				if *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem || c.SecurityContext.Privileged != nil {
					t.Errorf("%s: %s has more rights than it needs", way, c.Name)
				}
				if c.Name == "telegraf" && (c.ReadinessProbe == nil || c.LivenessProbe == nil || c.ReadinessProbe.HTTPGet.Host != "127.0.0.1") {
					t.Errorf("%s: %s has no probe", way, c.Name)
				}
				for _, mount := range c.VolumeMounts {
					if strings.HasPrefix(mount.MountPath, "/host") && !mount.ReadOnly {
						t.Errorf("%s: %s is writable", way, mount.MountPath)
					}
				}
				recursive := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.RecursiveReadOnly != nil })
				if recursive != (looks && version == kubernetesVersion) {
					t.Errorf("%s: recursiveReadOnly of %s in %s: %v", way, c.Name, version, recursive)
				}
			}
		}
	}
}

func TestChart_Values(t *testing.T) {
	d := daemonSet(t, map[string]any{"moveHelpers": true, "capabilities": map[string]any{"BPF": nil, "PERFMON": nil}}, kubernetesVersion)
	c := &d.Spec.Template.Spec.Containers[0]
	if added := c.SecurityContext.Capabilities.Add; !slices.Equal(added, []corev1.Capability{"DAC_READ_SEARCH", "SYS_PTRACE", "KILL", "SETGID", "SETUID"}) {
		t.Errorf("capabilities: %v", added)
	}
	var writable []string
	for _, mount := range c.VolumeMounts {
		if !mount.ReadOnly {
			writable = append(writable, mount.MountPath)
		}
	}
	if !slices.Equal(writable, []string{"/host/sys/fs/cgroup"}) {
		t.Errorf("writable: %v", writable)
	}
	if !slices.Equal(c.Command, []string{"/usr/bin/vfsprobe", "setpriv", "-user", "61100", "-keep", "DAC_READ_SEARCH,KILL,SETGID,SETUID,SYS_PTRACE", "/usr/bin/telegraf"}) {
		t.Errorf("command: %q", c.Command)
	}
	c = &daemonSet(t, nil, kubernetesVersion).Spec.Template.Spec.Containers[0]
	if !slices.Equal(c.Command, []string{"/usr/bin/vfsprobe", "setpriv", "-user", "61100", "-keep", "BPF,DAC_READ_SEARCH,PERFMON,SYS_PTRACE", "/usr/bin/telegraf"}) {
		t.Errorf("command: %q", c.Command)
	}
	owner := map[string]any{"capabilities": map[string]any{"SETUID": "checks as the owner", "SETGID": "the same", "KILL": "ends such helpers"}}
	if c = &daemonSet(t, owner, kubernetesVersion).Spec.Template.Spec.Containers[0]; !slices.Contains(c.Command, "BPF,DAC_READ_SEARCH,KILL,PERFMON,SETGID,SETUID,SYS_PTRACE") {
		t.Errorf("command: %q", c.Command)
	}
	// Who may look at nobody: the command becomes another user, and gives up to.
	less := map[string]any{"run": "containers", "user": 1234, "capabilities": map[string]any{"SYS_PTRACE": nil}}
	c = &daemonSet(t, less, kubernetesVersion).Spec.Template.Spec.Containers[1]
	if want := []string{"/usr/bin/vfsprobe", "setpriv", "-user", "1234", "-keep", "BPF,DAC_READ_SEARCH,PERFMON", "-protect", "/host", "/usr/bin/vfsprobe"}; !slices.Equal(c.Command, want) {
		t.Errorf("command: %q", c.Command)
	}
	if added := c.SecurityContext.Capabilities.Add; !slices.Equal(added, []corev1.Capability{"BPF", "DAC_READ_SEARCH", "PERFMON", "SETGID", "SETUID"}) {
		t.Errorf("capabilities: %v", added)
	}
	less["moveHelpers"] = true // writes below /host
	if c = &daemonSet(t, less, kubernetesVersion).Spec.Template.Spec.Containers[1]; slices.Contains(c.Command, "-protect") {
		t.Errorf("command: %q", c.Command)
	}
	sum := func(values map[string]any) string {
		return daemonSet(t, values, kubernetesVersion).Spec.Template.Annotations["checksum/config"]
	}
	if sum(map[string]any{"interval": "20s"}) == sum(nil) {
		t.Error("another configuration makes no new pods")
	}
	if _, err := render(root, map[string]any{"run": "elsewhere"}, kubernetesVersion); err == nil {
		t.Error("a way that does not exist is taken")
	}
}

// Telegraf's own image has no vfsprobe: an init container brings it.
func TestChart_AnImageOfTelegrafsOwn(t *testing.T) {
	values := map[string]any{"run": "containers", "telegrafImage": "telegraf:1.37"}
	pod := daemonSet(t, values, kubernetesVersion).Spec.Template.Spec
	bring, telegraf := pod.InitContainers[0], pod.Containers[0]
	if telegraf.Image != "telegraf:1.37" || pod.Containers[1].Image == telegraf.Image || bring.Image != pod.Containers[1].Image {
		t.Errorf("images: %s, %s, %s", bring.Image, telegraf.Image, pod.Containers[1].Image)
	}
	to := bring.Command[2]
	mounted := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "program" && m.MountPath == filepath.Dir(to) })
	}
	if !mounted(bring) || !mounted(telegraf) || len(bring.SecurityContext.Capabilities.Add) > 0 {
		t.Errorf("%v, %v", bring, telegraf)
	}
	rendered, err := render(root, values, kubernetesVersion)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(rendered["configmap.yaml"], `command = ["`+to+`", "connect"]`) {
		t.Error(rendered["configmap.yaml"])
	}
	values["run"] = "telegraf"
	if _, err := render(root, values, kubernetesVersion); err == nil {
		t.Error("an image without vfsprobe is to run it")
	}
}

func TestChart_Prometheus(t *testing.T) {
	rendered, err := render(root, map[string]any{"prometheus": map[string]any{"enabled": true, "serviceMonitor": true, "rules": true, "labels": map[string]any{"release": "prometheus"}}}, kubernetesVersion)
	if err != nil {
		t.Fatal(err)
	}
	_, others := objects(t, slices.Collect(maps.Values(map[string]string{"a": rendered["prometheus.yaml"], "b": rendered["configmap.yaml"]}))...)
	if !maps.Equal(others, map[string]int{"ServiceMonitor": 1, "PrometheusRule": 1}) {
		t.Errorf("%v", others)
	}
	rules, err := os.ReadFile(filepath.Join(root, "dashboards/prometheus/vfsprobe-alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	alerts := bytes.Count(rules, []byte("- alert: "))
	if got := strings.Count(rendered["prometheus.yaml"], "- alert: "); got != alerts || alerts == 0 {
		t.Errorf("%d alerts of %d", got, alerts)
	}
}

// Kustomize makes of its files what the chart makes, but for the name of the ConfigMap.
func TestManifests_Kustomize(t *testing.T) {
	for _, way := range ways() {
		built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "packaging/kubernetes/kustomize", way))
		if err != nil {
			t.Fatal(err)
		}
		text, err := built.AsYaml()
		if err != nil {
			t.Fatal(err)
		}
		all, others := objects(t, string(text))
		if len(all) != 2 || len(others) != 0 {
			t.Fatalf("%s: %d objects, %v", way, len(all), others)
		}
		var name string
		for _, object := range all {
			if m, ok := object.(*corev1.ConfigMap); ok {
				name = m.Name
			}
		}
		for _, object := range all {
			d, ok := object.(*appsv1.DaemonSet)
			if ok && (d.Spec.Template.Spec.Volumes[0].ConfigMap.Name != name || name == "vfsprobe") {
				t.Errorf("%s: the pod has another configuration than %s", way, name)
			}
		}
	}
}

func TestPrintChart(t *testing.T) {
	var out bytes.Buffer
	if err := printChart(&out, root, `{"run": "service", "prometheus": {"enabled": true, "serviceMonitor": true}}`); err != nil {
		t.Fatal(err)
	}
	all, others := objects(t, out.String())
	if len(all) != 3 || !maps.Equal(others, map[string]int{"ServiceMonitor": 1}) {
		t.Errorf("%d objects, %v:\n%s", len(all), others, out.String())
	}
	if err := printChart(&out, root, `{"run": "elsewhere"}`); err == nil {
		t.Error("a way that does not exist is taken")
	}
}
