// Package containers knows the names that people have given to containers, pods and volumes,
// from the names and the content of files that container runtimes and kubelet write. It reads
// none itself: they lie on file systems that may hang.
//
// Whoever starts a container chooses these names. They are bounded here, and made printable
// where they are emitted.
package containers

import (
	"encoding/json"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// maxName bounds each name, in bytes: that of a DNS subdomain, which names of Kubernetes are.
const maxName = 253

// An Owner is whose a container is, as far as that is known: Namespace and Pod are of
// Kubernetes.
type Owner struct{ Namespace, Pod, Container string }

// Known reports whether anything is.
func (o Owner) Known() bool { return o != Owner{} }

// Bounded returns the owner with names of no more bytes than Kubernetes allows.
func (o Owner) Bounded() Owner {
	for _, name := range []*string{&o.Namespace, &o.Pod, &o.Container} {
		*name = (*name)[:min(len(*name), maxName)]
	}
	return o
}

// AddTo adds the names that are known as fields, whose names are those of Telegraf's input
// kubernetes, with a prefix. They are no tags: a pod that is replaced would begin new series.
func (o Owner) AddTo(fields map[string]any, prefix string) {
	for _, f := range [...][2]string{{"namespace", o.Namespace}, {"pod_name", o.Pod}, {"container_name", o.Container}} {
		if f[1] != "" {
			fields[prefix+f[0]] = printable.Name(f[1])
		}
	}
}

// ParseLog reads the name of a link in /var/log/containers, which kubelet makes for each
// container: POD_NAMESPACE_CONTAINER-ID.log (kubelet's kuberuntime/legacy.go).
func ParseLog(name string) (id string, o Owner, ok bool) {
	name, ok = strings.CutSuffix(name, ".log")
	parts := strings.Split(name, "_")
	if !ok || len(parts) != 3 {
		return "", Owner{}, false
	}
	dash := len(parts[2]) - cgroups.IDLength - 1
	if dash < 1 || parts[2][dash] != '-' || parts[0] == "" || parts[1] == "" {
		return "", Owner{}, false
	}
	return parts[2][dash+1:], Owner{Namespace: parts[1], Pod: parts[0], Container: parts[2][:dash]}, true
}

// ParsePodLogs reads the name of a directory in /var/log/pods: NAMESPACE_POD_UID.
func ParsePodLogs(name string) (uid string, o Owner, ok bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", Owner{}, false
	}
	return parts[2], Owner{Namespace: parts[0], Pod: parts[1]}, true
}

// ofName reads the name of a container, which is that of a pod's where CRI-O or cri-dockerd
// has made it: k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT.
func ofName(name string) Owner {
	name = strings.TrimPrefix(name, "/")
	if parts := strings.Split(name, "_"); len(parts) == 6 && parts[0] == "k8s" {
		return Owner{Namespace: parts[3], Pod: parts[2], Container: parts[1]}
	}
	return Owner{Container: name}
}

// ParseDocker reads a config.v2.json of Docker's.
func ParseDocker(content []byte) (Owner, error) {
	var file struct{ Name string }
	err := json.Unmarshal(content, &file)
	return ofName(file.Name), err
}

// ParseStorage reads a containers.json of Podman's and CRI-O's, by id.
func ParseStorage(content []byte) (map[string]Owner, error) {
	var file []struct {
		ID    string
		Names []string
	}
	err := json.Unmarshal(content, &file)
	all := make(map[string]Owner, len(file))
	for _, c := range file {
		if len(c.Names) > 0 {
			all[c.ID] = ofName(c.Names[0])
		}
	}
	return all, err
}

// ParseBundle reads the annotations in a config.json that containerd has written for its
// runtime: of its CRI plugin, and of nerdctl.
func ParseBundle(content []byte) (Owner, error) {
	var file struct{ Annotations map[string]string }
	err := json.Unmarshal(content, &file)
	const cri = "io.kubernetes.cri."
	o := Owner{Namespace: file.Annotations[cri+"sandbox-namespace"], Pod: file.Annotations[cri+"sandbox-name"], Container: file.Annotations[cri+"container-name"]}
	if o.Container == "" {
		o.Container = file.Annotations["nerdctl/name"]
	}
	return o, err
}
