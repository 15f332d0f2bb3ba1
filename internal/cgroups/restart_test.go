package cgroups_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

// restartOf is what restarts a process in this cgroup.
func restartOf(t *testing.T, cgroup string) string {
	file := filepath.Join(t.TempDir(), "cgroup")
	require.NoError(t, os.WriteFile(file, []byte("0::"+cgroup+"\n"), 0o600))
	return cgroups.Restart(file)
}

func TestRestart_OfACgroup(t *testing.T) {
	short := id[:12]
	for path, want := range map[string]string{
		"/":                              "",
		"/init.scope":                    "",
		"/system.slice/rclone.service":   "systemctl restart rclone.service",
		"/system.slice/mnt-data.mount":   "systemctl restart mnt-data.mount",
		`/system.slice/mnt-a\x2db.mount`: `systemctl restart 'mnt-a\x2db.mount'`,
		"/system.slice/system-rclone.slice/rclone@media.service":                              "systemctl restart rclone@media.service",
		"/system.slice/app.service/workers/one":                                               "systemctl restart app.service",
		"/system.slice/_odd.service":                                                          "systemctl restart odd.service",
		"/../../system.slice/rclone.service":                                                  "systemctl restart rclone.service",
		"/user.slice/user-1000.slice/session-2.scope":                                         "",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/rclone.service":              "systemctl --user -M 1000@ restart rclone.service",
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-terminal-12.scope": "",
		"/user.slice/user-1000.slice/user@1000.service/init.scope":                            "",
		"/user.slice/user-1000.slice/user@1000.service":                                       "",
		"/system.slice/docker-" + id + ".scope":                                               "docker restart " + short,
		"/system.slice/docker-" + id + ".scope/system.slice/inner.service":                    "docker restart " + short,
		"/docker/" + id: "docker restart " + short,
		"/machine.slice/libpod-" + id + ".scope/container":                                 "podman restart " + short,
		"/libpod_parent/libpod-" + id:                                                      "podman restart " + short,
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope": "sudo -i -u '#1000' podman restart " + short,
		"/kubepods.slice/kubepods-pod1f.slice/cri-containerd-" + id + ".scope":             "crictl stop " + short,
		"/kubepods.slice/kubepods-pod1f.slice/crio-" + id + ".scope":                       "crictl stop " + short,
		"/kubepods/besteffort/pod1f/" + id:                                                 "crictl stop " + short,
		"/kubepods.slice/kubepods-pod1f.slice/docker-" + id + ".scope":                     "docker restart " + short,
		"/system.slice/containerd.service/kubepods-pod1f.slice:cri-containerd:" + id:       "crictl stop " + short,
		"/nomad.slice/" + id:               "",
		"/machine.slice/machine-web.scope": "machinectl reboot web",
		`/machine.slice/machine-my\x2dweb.scope/payload/system.slice/nginx.service`:    "systemctl -M my-web restart nginx.service",
		"/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service": "systemctl -M web restart nginx.service",
		"/machine.slice/systemd-nspawn@web.service/payload":                            "machinectl reboot web",
		"/lxc.payload.web/system.slice/nginx.service":                                  "",
		"/system.slice/a;reboot.service":                                               "",
		"/system.slice/$(id).service":                                                  "",
		"/system.slice/-x.service":                                                     "",
	} {
		assert.Equal(t, want, restartOf(t, path), path)
	}
}

func TestRestart_OfAProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cgroup")
	assert.Empty(t, cgroups.Restart(file), "the process has ended")
	require.NoError(t, os.WriteFile(file, []byte("12:pids:/\n1:name=systemd:/system.slice/rclone.service\n"), 0o600))
	assert.Equal(t, "systemctl restart rclone.service", cgroups.Restart(file), "cgroup v1")
}

// Whatever somebody calls a cgroup, a shell runs what is meant.
func FuzzRestart(f *testing.F) {
	f.Add(`/system.slice/mnt-a\x2db.mount`)
	f.Add("/user@1.service/x;y.service")
	f.Add("/machine-a'b.scope/payload/`id`.service")
	f.Fuzz(func(t *testing.T, path string) {
		command := restartOf(t, path)
		if command == "" {
			return
		}
		assert.Empty(t, strings.Trim(command, `ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.\@ '#`), command)
		assert.NoError(t, exec.Command("bash", "-n", "-c", command).Run(), command)
	})
}
