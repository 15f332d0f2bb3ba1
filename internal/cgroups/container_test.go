package cgroups_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

var id = strings.Repeat("0123456789abcdef", 4)

func TestIdentityOf_Name(t *testing.T) {
	for path, want := range map[string]string{
		"/":                                     "",
		"/system.slice/docker-" + id + ".scope": id[:12],
		"/docker/" + id:                         id[:12],
		"/docker/" + id + "/init.scope":         id[:12],
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f.slice/cri-containerd-" + id + ".scope": id[:12],
		"/kubepods.slice/kubepods-pod1f.slice/crio-" + id + ".scope":                                              id[:12],
		"/kubepods/besteffort/pod1f/" + id:                                                                        id[:12],
		"/system.slice/containerd.service/kubepods-pod1f.slice:cri-containerd:" + id:                              id[:12],
		"/machine.slice/libpod-" + id + ".scope/container":                                                        id[:12],
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope":                        id[:12],
		"/lxc.payload.web/system.slice/nginx.service":                                                             "web",
		"/lxc/web":                                                                "web",
		"/machine.slice/machine-a.scope":                                          "a",
		"/system.slice/docker-" + id[:63] + ".scope":                              "",
		"/system.slice/docker-" + strings.ToUpper(id) + ".scope":                  "",
		"/system.slice/telegraf.service":                                          "telegraf",
		"/machine.slice/libpod-conmon-" + id + ".scope":                           "",
		"/ecs/0123456789abcdef0123456789abcdef/" + id:                             id[:12],
		"/ecstasks.slice/ecstasks-0123.slice/docker-" + id + ".scope":             id[:12],
		"/nomad.slice/share.slice/1c9bb5a2-7d3b-9dbe-2f1c-5a5e8a1a0f3e.web.scope": "1c9bb5a2",
		"/garden/6f31bd0b-d8b9-4a4c-6e2d-3ac0":                                    "6f31bd0b-d8b9-4a4c-6e2d-3ac0",
		"/garden/good/6f31bd0b-d8b9-4a4c-6e2d-3ac0":                               "6f31bd0b-d8b9-4a4c-6e2d-3ac0",
		"/garden/good":                                           "",
		"/buildkit/u4v7kkzwoy9kzsrk5brkfpxg9":                    "u4v7kkzwoy9kzsrk5brkfpxg9",
		"/docker/buildkit/u4v7kkzwoy9kzsrk5brkfpxg9":             "u4v7kkzwoy9kzsrk5brkfpxg9",
		"/system.slice/docker-u4v7kkzwoy9kzsrk5brkfpxg9.scope":   "u4v7kkzwoy9kzsrk5brkfpxg9",
		"/user.slice/user-1000.slice/session-2.scope":            "",
		"/kubepods.slice/crio-conmon-" + id + ".scope":           "",
		"/system.slice/telegraf.service/a/b":                     "telegraf",
		"/system.slice/containerd.service":                       "containerd",
		"/system.slice/containerd.service/default/web":           "web",
		"/system.slice/garden.service/garden/5e2f4c4e-2b2c-4fd6": "5e2f4c4e-2b2c-4fd6",
	} {
		assert.Equal(t, want, cgroups.IdentityOf(path).Name, path)
	}
}

func TestIdentityOf_AProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup")
	assert.Empty(t, cgroups.Identify(file).Name, "the process has ended")
	require.NoError(t, os.WriteFile(file, []byte("12:pids:/docker/"+id+"\n1:name=systemd:/docker/"+id+"\n"), 0o600))
	assert.Equal(t, id[:12], cgroups.Identify(file).Name, "cgroup v1")
	require.NoError(t, os.WriteFile(file, []byte("nonsense\n0::/system.slice/docker-"+id+".scope\n"), 0o600))
	assert.Equal(t, id[:12], cgroups.Identify(file).Name)
}

func TestIdentityOf_WhoseItIs(t *testing.T) {
	const uid, static = "1f2e3d4c-0000-4111-8222-333344445555", "0123456789abcdef0123456789abcdef"
	inner := strings.Repeat("fedcba9876543210", 4)
	for path, want := range map[string]cgroups.Identity{
		"/kubepods/besteffort/pod" + uid + "/" + id: {Name: id[:12], IDs: []string{id}, PodUID: uid},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e3d4c_0000_4111_8222_333344445555.slice/cri-containerd-" + id + ".scope": {Name: id[:12], IDs: []string{id}, PodUID: uid},
		"/kubepods.slice/kubepods-pod" + static + ".slice/crio-" + id + ".scope":                                                                    {Name: id[:12], IDs: []string{id}, PodUID: static},
		"/system.slice/containerd.service/kubepods-pod" + static + ".slice:cri-containerd:" + id:                                                    {Name: id[:12], IDs: []string{id}, PodUID: static},
		"/../../pod" + uid + "/" + id: {Name: id[:12], IDs: []string{id}, PodUID: uid},
		// Docker in a pod, and kind: a cluster in a container.
		"/kubepods/pod" + uid + "/" + id + "/docker/" + inner: {Name: inner[:12], IDs: []string{inner, id}, PodUID: uid},
		"/docker/" + id + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + inner + ".scope": {Name: inner[:12], IDs: []string{inner, id}, PodUID: uid},
		// Podman 4.3 and Docker 20.10 in a container of Podman 4.3, as they were seen.
		"/libpod_parent/libpod-" + id + "/libpod_parent/libpod-" + inner: {Name: inner[:12], IDs: []string{inner, id}},
		"/libpod_parent/libpod-" + id + "/docker/" + inner:               {Name: inner[:12], IDs: []string{inner, id}},
		"/nomad.slice/share.slice/" + uid + ".web.scope":                 {Name: uid[:8], Task: "web"},
		"/kubepods/podx": {},
		"/system.slice":  {},
	} {
		assert.Equal(t, want, cgroups.IdentityOf(path), path)
	}
}

func FuzzIdentityOf(f *testing.F) {
	f.Add("/system.slice/docker-" + id + ".scope")
	f.Add("/lxc/a/lxc/")
	f.Add("machine-.scope")
	f.Fuzz(func(t *testing.T, path string) {
		assert.LessOrEqual(t, len(cgroups.IdentityOf(path).Name), len(path))
		assert.NotContains(t, cgroups.IdentityOf(path).Name, "/")
	})
}
