//go:build !race

package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// AppArmor's profile of Podman takes away what status and doctor say: to look at processes that it
// does not confine, too. Without the profile nothing is missing, and nothing is said.
func TestSystemd_AppArmor(t *testing.T) {
	h := newConfinedHost(t, []string{"lsm=landlock,yama,apparmor"}, "apparmor")
	require.Equal(t, "Y", h.shell("cat /sys/module/apparmor/parameters/enabled"))
	const profile = "AppArmor confines vfsprobe: containers-default-"
	h.confined("containers-default-", func(h *host, report string) {
		assert.Contains(h.t, report, "warning: /host/proc/self/attr/current: AppArmor confines this process: containers-default-")
		assert.Contains(h.t, report, "--security-opt=apparmor=unconfined")
		h.until("dentrycache_status", `watches_reason="`, profile)
		assert.NotContains(h.t, h.until("dentrycache_dir,", "directory=/srv/watched"), "watched=")
		h.until("mountstat_summary", `blocked_reason="`, profile)
		assert.NotContains(h.t, h.until("mountstat_blocked,", "comm=ls"), "path=")
	}, "--security-opt=apparmor=unconfined")
	h.confined("unconfined", func(h *host, report string) {
		assert.NotContains(h.t, report, "AppArmor")
		h.until("dentrycache_dir,", "directory=/srv/watched", "watched=true")
		assert.NotContains(h.t, h.until("dentrycache_status"), "watches_reason=")
		h.until("mountstat_blocked,", "comm=ls", "path=/srv/nfs")
		assert.NotContains(h.t, h.until("mountstat_summary"), "blocked_reason=")
	})
}

// newConfinedHost is a machine whose kernel has a security module, with the image. On the host, a
// unit watches a directory, and a process waits for an NFS server that is dead.
func newConfinedHost(t *testing.T, parameters []string, packages ...string) *host {
	t.Helper()
	if os.Getenv("VFSPROBE_RUNTIMES") != "all" {
		t.Skip("VFSPROBE_RUNTIMES=all has containers run in a machine: make test-containers")
	}
	h := newHostWith(t, vm.UML(), vm.Config{Parameters: parameters, MemoryMiB: 2048}, append([]string{"podman", "crun", "runc"}, packages...)...)
	h.buildImage()
	h.shell(`mkdir -p /srv/watched && systemd-run --unit=watches --path-property=PathChanged=/srv/watched true
		mkdir -p /srv/export /srv/nfs && mount -t tmpfs none /srv/export
		systemctl start nfs-server && exportfs -o rw,fsid=0,insecure '*:/srv/export' && mount -t nfs4 -o vers=4.2 127.0.0.1:/ /srv/nfs
		systemd-run --unit=waits --property=WorkingDirectory=/srv/nfs sh -c 'until [ "$(cat /proc/fs/nfsd/threads)" = 0 ]; do sleep 1; done; exec ls'
		until systemctl is-active waits; do sleep 0.1; done; rpc.nfsd 0`)
	t.Cleanup(func() { h.shell("rpc.nfsd 4") })
	return h
}

// confined starts the document's container without some of its words, and has it tested what the
// metrics and the doctor's report say. Process 1 of the container has the label.
func (h *host) confined(label string, test func(h *host, report string), without ...string) {
	h.t.Run(label, func(t *testing.T) {
		h := &host{h.Machine, t}
		h.configure("telegraf")
		h.shell(`printf '[[inputs.mountstat]]\n[[inputs.dentrycache]]\n  directories = ["/srv/watched"]\n' >/etc/vfsprobe/container/vfsprobe.toml`)
		h.metricsOf("61100")
		line := regexp.MustCompile(`--name \S+`).ReplaceAllString(fromDocument(t, "run"), "--name tested")
		for _, word := range without {
			require.Contains(t, line, " "+word)
			line = strings.Replace(line, " "+word, "", 1)
		}
		h.shell(strings.Replace(line, "podman run", "podman --runtime runc run --volume=/run/telegraf:/out", 1))
		defer func() {
			if t.Failed() {
				t.Log(h.shell("podman logs --tail 20 tested 2>&1; grep -a -v ^disk /run/telegraf/metrics | tail -n 40; ps -eo pid,stat,wchan,comm; dmesg | tail -n 20"))
			}
			h.shell("podman rm --force --time 0 tested || true")
		}()
		require.Contains(t, h.shell(`tr '\0' '\n' </proc/$(podman inspect --format '{{.State.Pid}}' tested)/attr/current`), label)
		h.until("mountstat,", "path=/srv/nfs", `result="timeout"`)
		test(h, h.shell("podman exec tested /usr/bin/vfsprobe doctor -root /host 2>&1 || true"))
	})
}
