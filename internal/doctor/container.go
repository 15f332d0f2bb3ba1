package doctor

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// findContainer finds out whether Telegraf runs in this container, and what is then to be
// examined.
func (p *examination) findContainer() {
	own := cmp.Or(p.Own, "/")
	if info, err := os.Stat(filepath.Join(own, cmp.Or(p.TelegrafConfig, etcTelegraf))); !p.Contained || err != nil || p.TelegrafConfig == "" && !info.IsDir() {
		return
	}
	p.contained, p.Root = true, own
}

// inContainer is a cure for those who run in a container; elsewhere it is empty.
func (p *examination) inContainer(cure string) string {
	if p.contained {
		return cure
	}
	return ""
}

// grantContainer is how to grant capabilities to a container.
func grantContainer(c Capabilities) string {
	manifest, flags, names := "", "", []string{}
	for name := range strings.FieldsSeq(c.String()) {
		name = strings.TrimPrefix(name, "CAP_")
		manifest += "    - " + name + "\n"
		flags += " --cap-add=" + name
		names = append(names, name)
	}
	return "in the manifest:\nsecurityContext:\n  capabilities:\n    add:\n" + manifest + "with docker or podman run:\n" + strings.TrimPrefix(flags, " ") +
		"\nand where vfsprobe setpriv runs Telegraf, to the names of its -keep:\n" + strings.Join(names, ",")
}

// profile is how to take a container's profile away.
func profile(manifest, flag string) string {
	return "in the manifest:\nsecurityContext:\n" + manifest + "\nwith docker or podman run:\n--security-opt=" + flag
}

// examineProfiles looks for what a container's runtime takes away in addition to capabilities.
func (p *examination) examineProfiles() {
	if !p.contained {
		return
	}
	if p.SeccompRefuses != nil {
		if refused := p.SeccompRefuses(); len(refused) > 0 {
			p.add(Finding{ID: "kernel.seccomp", Status: checkup.Warning, Object: "seccomp", Says: "it refuses " + strings.Join(refused, " and "),
				Symptom: "dentrycache_status has the mode \"none\" or \"enoent\", with a reason that says \"seccomp refuses\"; dentrycache_dir has no children",
				Cure:    profile("  seccompProfile:\n    type: Unconfined", "seccomp=unconfined")})
		} else {
			p.fine("kernel.seccomp", "seccomp", "it refuses nothing that vfsprobe needs")
		}
	}
	file := filepath.Join(p.Proc, "self/attr/current")
	content, _ := os.ReadFile(file)
	switch module, name := procfs.Confinement(content); module {
	case procfs.AppArmor:
		p.add(Finding{ID: "kernel.apparmor", Status: checkup.Warning, Object: file, Says: "AppArmor confines this process: " + name,
			Symptom: "mountstat_blocked has no path for processes outside of containers, nor processes that wait for a FUSE daemon, and dentrycache_dir no watched: the profile forbids looking at processes that it does not confine, too, and the kernel's log gets a line each time; blocked_reason of mountstat_summary and watches_reason of dentrycache_status say so",
			Cure:    profile("  appArmorProfile:\n    type: Unconfined", "apparmor=unconfined")})
	case procfs.SELinux:
		p.add(Finding{ID: "kernel.selinux", Status: checkup.Warning, Object: file, Says: "SELinux confines this process: " + name,
			Symptom: "mounts are \"denied\" or \"unchecked\", with EACCES: a container's type may not read the host's files",
			Cure:    profile("  seLinuxOptions:\n    type: spc_t", "label=disable")})
	}
}

// sharesMounts reports whether a process is in this one's mount namespace.
func (p *examination) sharesMounts(pid string) bool {
	theirs, err := os.Readlink(filepath.Join(p.Proc, pid, "ns/mnt"))
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	return err == nil && theirs == ours
}

// socketTimeout is for a connection to the service on the same host.
const socketTimeout = 2 * time.Second

// examineSocket looks whether the service that a container's Telegraf connects to answers.
func (p *examination) examineSocket(found *stanzas) {
	socket := "/run/vfsprobe/socket"
	for i := range found.all {
		for j, word := range found.all[i].command {
			flag, value, joined := strings.Cut(strings.TrimLeft(word, "-"), "=")
			switch {
			case flag != "socket":
			case joined:
				socket = value
			case j+1 < len(found.all[i].command):
				socket = found.all[i].command[j+1]
			}
		}
	}
	conn, err := net.DialTimeout("unix", p.host(socket), socketTimeout)
	if err != nil {
		p.add(Finding{ID: "vfsprobe.socket", Status: checkup.Critical, Object: socket, Says: fmt.Sprintf("connecting to the service: %v", err),
			Symptom: "no metrics of vfsprobe; Telegraf's log says that the vfsprobe service does not answer",
			Cure:    "on the node: systemctl start vfsprobe\nin the manifest:\nvolumeMounts:\n- name: socket\n  mountPath: " + filepath.Dir(socket) + "\nvolumes:\n- name: socket\n  hostPath:\n    path: /run/vfsprobe\nwith docker or podman run:\n--volume=/run/vfsprobe:" + filepath.Dir(socket) + ":ro"})
		return
	}
	conn.Close()
	p.fine("vfsprobe.socket", socket, "the service listens; what it lacks, vfsprobe doctor says where that runs")
}
