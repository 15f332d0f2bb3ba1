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

func TestContainerOf(t *testing.T) {
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
		"/lxc/web":                                               "web",
		"/machine.slice/machine-a.scope":                         "a",
		"/system.slice/docker-" + id[:63] + ".scope":             "",
		"/system.slice/docker-" + strings.ToUpper(id) + ".scope": "",
		"/system.slice/telegraf.service":                         "telegraf",
		"/user.slice/user-1000.slice/session-2.scope":            "",
	} {
		assert.Equal(t, want, cgroups.ContainerOf(path), path)
	}
}

func TestContainer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup")
	assert.Empty(t, cgroups.Container(file), "the process has ended")
	require.NoError(t, os.WriteFile(file, []byte("12:pids:/docker/"+id+"\n1:name=systemd:/docker/"+id+"\n"), 0o600))
	assert.Equal(t, id[:12], cgroups.Container(file), "cgroup v1")
	require.NoError(t, os.WriteFile(file, []byte("nonsense\n0::/system.slice/docker-"+id+".scope\n"), 0o600))
	assert.Equal(t, id[:12], cgroups.Container(file))
}

func FuzzContainerOf(f *testing.F) {
	f.Add("/system.slice/docker-" + id + ".scope")
	f.Add("/lxc/a/lxc/")
	f.Add("machine-.scope")
	f.Fuzz(func(t *testing.T, path string) {
		assert.LessOrEqual(t, len(cgroups.ContainerOf(path)), len(path))
		assert.NotContains(t, cgroups.ContainerOf(path), "/")
	})
}
