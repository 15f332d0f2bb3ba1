package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/containers"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

const podUID = "1f2e3d4c-0000-4111-8222-333344445555"

// containerID is one of 64 digits.
func containerID(digit string) string { return strings.Repeat(digit, 64) }

// ownerOf asks until there is an answer: names are read by and by.
func ownerOf(t *testing.T, h *host.Host, id cgroups.Identity, want containers.Owner) {
	t.Helper()
	assert.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, h.OwnerOf(id)) }, 20*time.Second, 10*time.Millisecond)
}

func writeAll(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	}
}

func TestHost_OwnerOf(t *testing.T) {
	root := t.TempDir()
	kubelet, docker, podman, cri, nerdctl := containerID("1"), containerID("2"), containerID("3"), containerID("4"), containerID("5")
	writeAll(t, root, map[string]string{
		"var/log/containers/web-0_shop_nginx-" + kubelet + ".log":                          "",
		"var/log/pods/shop_web-0_" + podUID + "/nginx/0.log":                               "",
		"var/lib/docker/containers/" + docker + "/config.v2.json":                          `{"Name":"/db"}`,
		"var/lib/containers/storage/overlay-containers/containers.json":                    `[{"id":"` + podman + `","names":["cache"]}]`,
		"run/containerd/io.containerd.runtime.v2.task/k8s.io/" + cri + "/config.json":      `{"annotations":{"io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop"}}`,
		"run/containerd/io.containerd.runtime.v2.task/default/" + nerdctl + "/config.json": `{"annotations":{"nerdctl/name":"job"}}`,
	})
	h, log := newHost(t, map[string]string{"HOST_MOUNT_PREFIX": root})
	owners := map[string]containers.Owner{
		kubelet: {Namespace: "shop", Pod: "web-0", Container: "nginx"}, docker: {Container: "db"}, podman: {Container: "cache"},
		cri: {Namespace: "shop", Pod: "web-0"}, nerdctl: {Container: "job"},
	}
	for id := range owners { // so that one reading is for all
		h.OwnerOf(cgroups.Identity{IDs: []string{id}})
	}
	for id, want := range owners {
		ownerOf(t, h, cgroups.Identity{IDs: []string{id}}, want)
	}
	// Docker in the pod: of the inner container nobody here knows the name.
	ownerOf(t, h, cgroups.Identity{IDs: []string{containerID("a"), kubelet}, PodUID: podUID}, containers.Owner{Namespace: "shop", Pod: "web-0", Container: "nginx"})
	ownerOf(t, h, cgroups.Identity{IDs: []string{containerID("b")}, PodUID: podUID}, containers.Owner{Namespace: "shop", Pod: "web-0"})
	assert.Equal(t, containers.Owner{Namespace: "shop", Pod: "web-0"}, h.OwnerOfPod(podUID))
	assert.Equal(t, containers.Owner{Container: "web"}, h.OwnerOf(cgroups.Identity{Task: "web"}))
	assert.Empty(t, h.OwnerOfPod(""))
	assert.Empty(t, log.said(), "that files are missing is no news")

	// One that comes later is found, and one that is known is not lost with its files.
	later := containerID("6")
	writeAll(t, root, map[string]string{"var/log/containers/web-1_shop_nginx-" + later + ".log": ""})
	require.NoError(t, os.Remove(filepath.Join(root, "var/log/containers/web-0_shop_nginx-"+kubelet+".log")))
	ownerOf(t, h, cgroups.Identity{IDs: []string{later}}, containers.Owner{Namespace: "shop", Pod: "web-1", Container: "nginx"})
	ownerOf(t, h, cgroups.Identity{IDs: []string{kubelet}}, containers.Owner{Namespace: "shop", Pod: "web-0", Container: "nginx"})
}

// Who asks for names waits for nothing, and a log on a dead file system costs a container of
// Docker's nothing.
func TestHost_OwnerOfWaitsForNoFile(t *testing.T) {
	faultfs.Require(t)
	root, fs := t.TempDir(), faultfs.New(t)
	docker := containerID("2")
	writeAll(t, root, map[string]string{"var/lib/docker/containers/" + docker + "/config.v2.json": `{"Name":"/db"}`, "var/log/containers/x": ""})
	logs := filepath.Join(root, "var/log/containers")
	require.NoError(t, unix.Mount(fs.Dir, logs, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(logs, unix.MNT_DETACH)) })
	fs.Silence()
	h, _ := newHost(t, map[string]string{"HOST_MOUNT_PREFIX": root})
	began := time.Now()
	h.OwnerOf(cgroups.Identity{IDs: []string{docker}})
	assert.Less(t, time.Since(began), 4*time.Second, "a helper has 5 s")
	ownerOf(t, h, cgroups.Identity{IDs: []string{docker}}, containers.Owner{Container: "db"})
	assert.NotZero(t, fs.Unanswered())
}
