// Command kubernetes writes the manifests that are made from the Helm chart: the plain one,
// and those of kustomize. With -check it tells which of these files differ. With -values,
// in JSON, it prints what the chart makes of them, as helm template does.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// kubernetesVersion is that of the cluster for which manifests are made that know none.
const kubernetesVersion = "v1.34.2"

const chartDir = "packaging/kubernetes/chart"

// ways are the values of the chart's run.
func ways() []string { return []string{"service", "containers", "telegraf"} }

func main() {
	check := flag.Bool("check", false, "write nothing, fail where files differ")
	values := flag.String("values", "", "print what the chart makes of these")
	flag.Parse()
	var err error
	if *values != "" {
		err = printChart(os.Stdout, flag.Arg(0), *values)
	} else {
		err = run(flag.Arg(0), *check)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	files, err := manifests(root)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		if check {
			committed, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if !bytes.Equal(committed, files[name]) {
				return fmt.Errorf("%s differs from what the chart says: run make manifests", path)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func printChart(w io.Writer, root, values string) error {
	var parsed map[string]any
	if err := json.Unmarshal([]byte(values), &parsed); err != nil {
		return fmt.Errorf("the values: %w", err)
	}
	rendered, err := render(root, parsed, kubernetesVersion)
	if err != nil {
		return err
	}
	for _, name := range []string{"configmap.yaml", "daemonset.yaml", "prometheus.yaml"} {
		if strings.TrimSpace(rendered[name]) == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "---\n%s", rendered[name]); err != nil {
			return err
		}
	}
	return nil
}

// render is what helm template prints, by file of the chart.
func render(root string, values map[string]any, version string) (map[string]string, error) {
	chart, err := loader.Load(filepath.Join(root, chartDir))
	if err != nil {
		return nil, fmt.Errorf("reading the chart: %w", err)
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	parsed, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return nil, err
	}
	capabilities.KubeVersion = *parsed
	all, err := chartutil.ToRenderValues(chart, values, chartutil.ReleaseOptions{Name: "vfsprobe", Namespace: "monitoring", IsInstall: true}, capabilities)
	if err != nil {
		return nil, fmt.Errorf("the values: %w", err)
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	short := make(map[string]string, len(rendered))
	for name, content := range rendered {
		short[strings.TrimPrefix(name, chart.Name()+"/templates/")] = content
	}
	return short, nil
}

const header = `# Made from the Helm chart in packaging/kubernetes/chart by "make manifests".
`

const plain = header + `# Telegraf and vfsprobe on every node. docs/CONTAINERS.md says what to set, and what
# was tested. It needs a namespace that allows privileged pods (the label
# pod-security.kubernetes.io/enforce: privileged): they see the node's processes
# and files.
`

// manifests are the files, by their names below the root.
func manifests(root string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, way := range ways() {
		rendered, err := render(root, map[string]any{"run": way}, kubernetesVersion)
		if err != nil {
			return nil, fmt.Errorf("run: %s: %w", way, err)
		}
		dir := "packaging/kubernetes/kustomize/" + way
		files[dir+"/daemonset.yaml"] = []byte(header + rendered["daemonset.yaml"])
		data, err := configuration(rendered["configmap.yaml"])
		if err != nil {
			return nil, fmt.Errorf("run: %s: %w", way, err)
		}
		list := ""
		for _, name := range slices.Sorted(maps.Keys(data)) {
			files[dir+"/"+name] = []byte(data[name])
			list += "      - " + name + "\n"
		}
		files[dir+"/kustomization.yaml"] = fmt.Appendf(nil, header+`# An overlay replaces a file of the configuration by a configMapGenerator with
# "behavior: merge", which makes new pods, and sets the image by "images".
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - daemonset.yaml
configMapGenerator:
  - name: vfsprobe
    files:
%s`, list)
		if way == "telegraf" {
			files["packaging/container/daemonset.yaml"] = []byte(plain + rendered["configmap.yaml"] + "---\n" + rendered["daemonset.yaml"])
		}
	}
	return files, nil
}

// configuration is what a ConfigMap holds.
func configuration(manifest string) (map[string]string, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifest), len(manifest))
	var m corev1.ConfigMap
	if err := decoder.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the ConfigMap: %w", err)
	}
	return m.Data, nil
}
