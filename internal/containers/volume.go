package containers

import (
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// A Volume is what the path of a mount below kubelet's folder tells.
type Volume struct {
	PodUID    string // of the pod that it was mounted for; empty for one that pods share
	Name      string // of the PersistentVolume, or of the volume in the pod
	Container string // the one for which a part of it is mounted
}

// VolumeAt reads the path of a mount that kubelet has made, wherever its folder is:
//
//	…/pods/UID/volumes/PLUGIN/NAME, with /mount behind that for CSI
//	…/pods/UID/volume-subpaths/NAME/CONTAINER/INDEX
//	…/plugins/kubernetes.io/csi/pv/NAME/globalmount
func VolumeAt(path string) (v Volume, found bool) {
	if _, shared, ok := strings.Cut(path, "/plugins/kubernetes.io/csi/pv/"); ok {
		name, rest, _ := strings.Cut(shared, "/")
		return Volume{Name: name}, name != "" && rest == "globalmount"
	}
	_, rest, ok := strings.Cut(path, "/pods/")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) < 4 || parts[0] == "" {
		return Volume{}, false
	}
	switch parts[1] {
	case "volumes":
		v = Volume{PodUID: parts[0], Name: parts[3]}
		found = strings.Contains(parts[2], "~") && (len(parts) == 4 || len(parts) == 5 && parts[4] == "mount")
	case "volume-subpaths":
		v = Volume{PodUID: parts[0], Name: parts[2], Container: parts[3]}
		found = len(parts) == 5
	}
	if !found || v.Name == "" {
		return Volume{}, false
	}
	return v, true
}

// Claim is the PersistentVolumeClaim's name where the source of the mount has it: directories
// that provisioners make are named NAMESPACE-CLAIM-VOLUME.
func (v Volume) Claim(source string, pod Owner) string {
	directory := source[strings.LastIndexByte(source, '/')+1:]
	claim, found := strings.CutPrefix(directory, pod.Namespace+"-")
	if claim, cut := strings.CutSuffix(claim, "-"+v.Name); found && cut && pod.Namespace != "" {
		return claim[:min(len(claim), maxName)]
	}
	return ""
}

// AddTo adds the names as fields, of the pod as well, which Kubernetes's own metrics have.
func (v Volume) AddTo(fields map[string]any, source string, pod Owner) {
	fields["volume_name"] = printable.Name(v.Name[:min(len(v.Name), maxName)])
	if claim := v.Claim(source, pod); claim != "" {
		fields["pvc_name"] = printable.Name(claim)
	}
	pod.Container = v.Container
	pod.Bounded().AddTo(fields, "")
}
