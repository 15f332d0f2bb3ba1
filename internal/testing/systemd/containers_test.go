//go:build !race

package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// fromDocument is the example below a mark in docs/CONTAINERS.md.
func fromDocument(t *testing.T, mark string) string {
	t.Helper()
	example, err := containers.Example(mark)
	require.NoError(t, err)
	return example
}

// configure writes a container's configuration, which is made of the chart.
func (h *host) configure(way string) {
	h.t.Helper()
	files, err := containers.Configuration(way)
	require.NoError(h.t, err)
	h.shell("mkdir -p /etc/vfsprobe/container")
	for name, text := range files {
		h.shell("cat >/etc/vfsprobe/container/" + name + " <<'END'\n" + text + "\nEND\n")
	}
}

// buildImage has the machine build it by its Containerfile.
func (h *host) buildImage() {
	h.t.Helper()
	h.shell(`modprobe -a overlay 2>/dev/null || true
		for dir in /var/lib/containers /run/out; do mkdir -p $dir && mount -t tmpfs none $dir; done
		mkdir -p /srv/context/base/usr/bin /srv/context/dist /run/vfsprobe && cd /srv/context
		cp /usr/bin/telegraf base/usr/bin && printf 'FROM scratch\nCOPY base /\n' >Base
		podman build --quiet --file Base --tag localhost/telegraf:test .`)
	version := h.shell(`cd /srv/context && cp /srv/package.tar.gz . && name=$(tar -tzf package.tar.gz | head -n 1) && name=${name#./} && name=${name%%/*}
		mv package.tar.gz dist/$name.tar.gz && name=${name#vfsprobe-} && echo ${name%-linux-*}`)
	h.shell("cd /srv/context && podman build --quiet --file /srv/Containerfile --platform linux/amd64 --build-arg TELEGRAF=localhost/telegraf:test --build-arg VERSION=" + version + " --tag " + containers.Image + " .")
}

// Podman with runc and crun, with systemd as it mounts version 2 of cgroups (nsdelegate):
// in one container with the door, and connected to the service. While a mount hangs, the
// container can be stopped, replaced and killed, also since its memory runs out, and a new one
// reports.
func TestSystemd_Containers(t *testing.T) {
	if os.Getenv("VFSPROBE_RUNTIMES") != "all" {
		t.Skip("VFSPROBE_RUNTIMES=all has containers run in a machine: make test-containers")
	}
	h := newHost(t, vm.UML(), "podman", "crun", "runc")
	h.buildImage()
	t.Log(h.shell("grep cgroup2 /proc/mounts; podman info | grep -i -E 'cgroup|runtime' | head; podman --version; runc --version | head -n 1; crun --version | head -n 1; uname -r"))
	require.Contains(t, h.shell("grep cgroup2 /proc/mounts"), "nsdelegate")
	h.shell("mkdir -p /srv/healthy /srv/fuse; truncate -s 32M /srv/healthy.image && mkfs.ext4 -q /srv/healthy.image && mount -o loop /srv/healthy.image /srv/healthy")
	silent := faults()["silent FUSE daemon"]

	for _, runtime := range []string{"runc", "crun"} {
		for _, way := range []struct{ name, mark, configuration, door, user string }{
			{"in one container", "run", "telegraf", fromDocument(t, "door"), "61100"},
			{"connected to the service", "connect", "service", "", "root"},
		} {
			t.Run(runtime+" "+way.name, func(t *testing.T) {
				h := &host{h.Machine, t}
				h.configure(way.configuration)
				defer func() {
					if t.Failed() {
						t.Log(h.shell("podman ps --all; podman logs --tail 20 tested 2>&1; tail -n 20 /run/telegraf/metrics"))
					}
					h.shell("podman rm --force --time 0 tested || true")
				}()
				if way.mark == "connect" {
					h.install()
					h.shell("systemctl enable --now vfsprobe")
				}
				line := regexp.MustCompile(`--name \S+`).ReplaceAllString(fromDocument(t, way.mark), "--name tested")
				line = strings.Replace(line, "podman run", "podman --runtime "+runtime+" run --memory=268435456 --volume=/run/telegraf:/out "+way.door, 1)
				if way.door != "" {
					line = strings.Replace(line, " setpriv ", " setpriv -keep all ", 1)
				}
				h.metricsOf(way.user)
				h.shell(line)
				h.until("mountstat,", "path=/srv/healthy ", `result="ok"`)
				h.shell(silent.make)
				defer h.shell(silent.heal)
				hangs := append([]string{"mountstat,", "path=/srv/fuse "}, silent.want...)
				h.until(hangs...)
				for _, change := range [][2]string{
					{"restart", "podman restart tested"},
					{"another one of the same name", "podman rm --force tested; " + line},
					{"killed", "kill -KILL $(podman inspect --format '{{.State.Pid}}' tested)"},
					{"out of memory", `pid=$(podman inspect --format '{{.State.Pid}}' tested) && echo 1000 >/proc/$pid/oom_score_adj
						guest /sys/fs/cgroup$(sed -n s/^0:://p /proc/$pid/cgroup)/cgroup.procs >/dev/null 2>&1 || [ $? = 137 ] && ! kill -0 $pid 2>/dev/null && dmesg | grep 'Memory cgroup out of memory: '`},
				} {
					began := time.Now()
					out := h.shell(change[1])
					took := time.Since(began)
					h.until(hangs...)
					t.Logf("%s: %.1f s, reports after %.1f s", change[0], took.Seconds(), time.Since(began).Seconds())
					assert.NotContains(t, out, "resorting to SIGKILL", change[0])
					assert.Less(t, took, stopTimeout, change[0])
					assert.Equal(t, "running", h.shell("podman inspect --format '{{.State.Status}}' tested"), change[0])
				}
			})
			h.shell("systemctl disable --now vfsprobe 2>/dev/null || true")
		}
	}
}
