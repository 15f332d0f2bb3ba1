//go:build !race

package fileservers

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

const (
	commandTimeout = time.Minute
	// patience is for what clients notice, and for recoveries: SMB's tries each 2 s, TCP with
	// its backoff.
	patience = 90 * time.Second
)

// modules are what SMB, 9P, their cryptography, a firewall and sock_diag take of the kernel.
const modules = "cifs ecb cmac gcm ghash-generic ccm md4 arc4 aes_generic sha512_generic sha256_generic hmac md5 ctr 9p 9pnet 9pnet_fd veth ip_tables iptable_filter tcp_diag"

// setup has the servers in a network namespace of their own, so that a firewall between them
// and the client can be made.
const setup = `set -e
modprobe -a ` + modules + ` 2>&1 || true
mount -t tmpfs none /run; mkdir -p /run/lock /run/smb /srv/data /srv/more /mnt/smb /mnt/more /mnt/9p /var/log/samba /var/lib/samba/private /var/cache/samba
chmod 755 /srv/data /srv/more
printf '%s\n' '10.9.0.1 server' '10.9.0.2 client' >>/etc/hosts # diod looks its clients up
ip link set lo up
ip netns add server
ip link add client type veth peer name server netns server
ip addr add 10.9.0.2/24 dev client && ip link set client up
ip -n server addr add 10.9.0.1/24 dev server && ip -n server link set server up && ip -n server link set lo up
printf '%s\n' '[global]' 'server role = standalone server' 'smb ports = 445' 'map to guest = never' 'load printers = no' \
	'bind interfaces only = yes' 'interfaces = 10.9.0.1' '[more]' 'path = /srv/more' 'read only = no' >/srv/base.conf
printf '%s\n' '[data]' 'path = /srv/data' 'read only = no' | cat /srv/base.conf - >/srv/smb.conf
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a root
cat >/usr/bin/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw|drop|undrop
case $1 in
start) ip netns exec server smbd -D -s /srv/smb.conf; ip netns exec server diod -n -l 10.9.0.1:564 -e /srv/data -c /dev/null;;
stop) kill -KILL $(pidof smbd diod); while pidof smbd diod >/dev/null; do sleep 0.1; done;;
restart-smbd) kill -KILL $(pidof smbd); while pidof smbd >/dev/null; do sleep 0.1; done; ip netns exec server smbd -D -s /srv/smb.conf;;
freeze) kill -STOP $(pidof smbd diod);;
thaw) kill -CONT $(pidof smbd diod);;
drop) ip netns exec server iptables-legacy -w -I INPUT -s 10.9.0.2 -j DROP;;
undrop) ip netns exec server iptables-legacy -w -D INPUT -s 10.9.0.2 -j DROP;;
esac
X
chmod +x /usr/bin/servers
servers start
sleep 2
mount.cifs //10.9.0.1/data /mnt/smb -o user=root,pass=right,echo_interval=5
mount.cifs //10.9.0.1/more /mnt/more -o user=root,pass=right,nosharesock,echo_interval=5
mount -t 9p 10.9.0.1 /mnt/9p -o trans=tcp,aname=/srv/data,version=9p2000.L,cache=none,uname=root,access=user
printf '%s\n' '[[inputs.mountstat]]' 'mount_points = ["/mnt/*"]' 'timeout = "3s"' 'fstab = ""' >/srv/vfsprobe.toml
mkfifo /run/gathers
sleep 1000000 >/run/gathers &
vfsprobe -config /srv/vfsprobe.toml </run/gathers >/run/metrics 2>/run/log &
`

type machine struct {
	*vm.Machine
	t *testing.T
}

func (m *machine) shell(script string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), commandTimeout)
	defer cancel()
	result, err := m.Shell(ctx, script)
	require.NoError(m.t, err)
	require.NoError(m.t, result.Err(), script)
	return strings.TrimSpace(result.Output)
}

// until gathers until the mount's metric has all the parts.
func (m *machine) until(path string, parts ...string) {
	m.t.Helper()
	began := time.Now()
	var line string
	for time.Since(began) < patience {
		line = m.shell(`before=$(grep -c "^mountstat_summary" /run/metrics || true); echo >/run/gathers
			for i in $(seq 100); do [ "$(grep -c '^mountstat_summary' /run/metrics || true)" != "$before" ] && break; sleep 0.1; done
			grep '^mountstat,.*path=` + path + `[ ,]' /run/metrics | tail -n 1`)
		missing := ""
		for _, part := range parts {
			if !strings.Contains(line, part) {
				missing = part
			}
		}
		if missing == "" {
			m.t.Logf("%5.1f s: %s", time.Since(began).Seconds(), brief(line))
			return
		}
	}
	m.t.Fatalf("%s never had %q; its last line: %s\n%s\n%s", path, parts, line, m.shell("tail -n 20 /run/log; dmesg | tail -n 20"),
		m.shell("cat /proc/fs/cifs/DebugData | head -n 60"))
}

// brief is the part of a line that says what is at fault.
func brief(line string) string {
	var kept []string
	for field := range strings.SplitSeq(line, ",") {
		for _, name := range []string{"path=", "cause=", "errno=", "result=", "reason=", "server_rpc_errno=", "hangs_in="} {
			if strings.HasPrefix(field, name) {
				kept = append(kept, field)
			}
		}
	}
	return strings.Join(kept, " ")
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{vm.Start(t, vm.Config{Emulator: vm.UML(),
		Base:    vm.Debian{Suite: "bookworm", Packages: []string{"samba", "diod", "cifs-utils", "kmod", "iproute2", "iptables", "procps", "sysvinit-utils"}},
		Modules: strings.Fields(modules),
		Files:   []vm.File{{From: buildProgram(t), Name: "usr/bin/vfsprobe"}}}), t}
}

const (
	smb, more, nineP = "/mnt/smb", "/mnt/more", "/mnt/9p"
	healthy          = `result="ok"`
)

func TestTheCausesOfSMBAnd9PMounts(t *testing.T) {
	family(t, "smb")
	m := newMachine(t)
	m.shell(setup)
	well := func(paths ...string) {
		t.Helper()
		for _, path := range paths {
			m.until(path, healthy)
		}
	}
	well(smb, more, nineP)

	t.Log("the servers are stopped with SIGSTOP")
	m.shell("servers freeze")
	m.until(smb, `cause="server_service_dead"`, `server_rpc_errno="ETIMEDOUT"`)
	m.until(nineP, `cause="server_service_dead"`, `server_rpc_errno="ETIMEDOUT"`)
	m.shell("servers thaw")
	well(smb, more, nineP)

	t.Log("packets to the servers are dropped")
	m.shell("servers drop")
	m.until(smb, `cause="server_unreachable"`)
	m.until(nineP, `cause="server_unreachable"`, "not acknowledged")
	m.shell("servers undrop")
	well(smb, more, nineP)

	t.Log("the password is changed, and smbd restarted")
	m.shell(`printf 'wrong\nwrong\n' | smbpasswd -c /srv/smb.conf -s root; servers restart-smbd`)
	m.until(smb, `cause="login_refused"`, "server_rpc_seconds")
	well(nineP)
	m.shell(`printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s root`)
	well(smb, more)

	t.Log("the servers are killed")
	m.shell("servers stop")
	m.until(smb, `cause="server_service_dead"`, `server_rpc_errno="ECONNREFUSED"`)
	m.until(nineP, `cause="server_service_dead"`, `server_rpc_errno="ECONNREFUSED"`)
	m.shell("servers start")
	well(smb, more)
	m.until(nineP, `cause="mount_needs_remount"`)
	m.shell("umount -l /mnt/9p; mount -t 9p 10.9.0.1 /mnt/9p -o trans=tcp,aname=/srv/data,version=9p2000.L,cache=none,uname=root,access=user")
	well(nineP)

	t.Log("a share is removed")
	m.shell("cp /srv/base.conf /srv/smb.conf; smbcontrol -s /srv/smb.conf smbd reload-config; smbcontrol -s /srv/smb.conf smbd close-share data")
	m.until(smb, `cause="share_gone"`)
	well(more)
}
