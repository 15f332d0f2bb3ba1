//go:build !race

package fileservers

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// smbModules are what SMB, 9P, their cryptography and sock_diag take of the kernel.
const smbModules = "ip_tables iptable_filter ipt_REJECT cifs ecb cmac gcm ghash-generic ccm md4 arc4 aes_generic sha512_generic sha256_generic hmac md5 ctr 9p 9pnet 9pnet_fd veth tcp_diag"

const setupSMB = `set -e
mkdir -p /run/smb /run/mount /srv/dfs/plain /mnt/dfs /srv/data /srv/more /srv/nine /mnt/bind /mnt/smb /mnt/hard /mnt/more /mnt/9p /var/log/samba /var/lib/samba/private /var/cache/samba
chmod 755 /srv/data /srv/more /srv/nine
for i in 3 4 5 6; do ip -n server addr add 10.9.0.$i/24 dev server; done
printf '%s\n' '10.9.0.1 server' '10.9.0.2 client' >>/etc/hosts # diod looks its clients up
printf '%s\n' '[global]' 'server role = standalone server' 'smb ports = 445 4450' 'map to guest = never' 'load printers = no' \
	'bind interfaces only = yes' 'interfaces = 10.9.0.1 10.9.0.3 10.9.0.4 10.9.0.5 10.9.0.6' 'host msdfs = yes' \
	'[more]' 'path = /srv/more' 'read only = no' '[dfs]' 'path = /srv/dfs' 'msdfs root = yes' 'read only = no' >/srv/base.conf
ln -s 'msdfs:10.9.0.1\more' /srv/dfs/link
printf '%s\n' '[data]' 'path = /srv/data' 'read only = no' | cat /srv/base.conf - >/srv/smb.conf
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a root
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw|restart-smbd|start-diod
# User Mode Linux 6.12 panics when a process is killed while it forks (flush_tlb_mm,
# arch/um/kernel/tlb.c, of a map that was not copied whole): one that is stopped does not.
end() {
	while kill -STOP $(pidof "$@"); ps -o state= -p "$(pidof "$@")" | grep -qv T; do sleep 0.05; done
	kill -KILL $(pidof "$@")
	while pidof "$@" >/dev/null; do sleep 0.1; done
}
case $1 in
start) ip netns exec server smbd -D -s /srv/smb.conf; $0 start-diod;;
start-diod) ip netns exec server diod -n -l 10.9.0.1:5640 -e /srv/nine -e /srv/more -e /mnt/hard -c /dev/null;;
stop) end smbd diod;;
restart-smbd) end smbd; ip netns exec server smbd -D -s /srv/smb.conf;;
freeze) kill -STOP $(pidof smbd diod);;
thaw) kill -CONT $(pidof smbd diod);;
esac
X
chmod +x /run/servers
/run/servers start
sleep 2
mount.cifs //10.9.0.1/data /mnt/smb -o user=root,pass=right,echo_interval=5
mount.cifs //10.9.0.3/data /mnt/hard -o port=4450,hard,user=root,pass=right,nosharesock,echo_interval=5
mount.cifs //10.9.0.1/more /mnt/more -o user=root,pass=right,nosharesock,echo_interval=5
mount --bind /mnt/smb /mnt/bind
mount -t cifs //10.9.0.1/dfs /mnt/dfs -o username=root,pass=right,nosharesock,echo_interval=5
`

// smbBase is a machine with Samba, diod and their clients.
func smbBase() vm.Debian {
	return vm.Debian{Packages: []string{"samba", "diod", "cifs-utils", "kmod", "iproute2", "iptables", "procps", "sysvinit-utils"}}
}

const mount9P = "mount -t 9p 10.9.0.1 /mnt/9p -o trans=tcp,port=5640,aname=/srv/nine,version=9p2000.L,cache=none,uname=root,access=user"

const (
	smb, hard, more, nineP, bind = "/mnt/smb", "/mnt/hard", "/mnt/more", "/mnt/9p", "/mnt/bind"
)

func TestCauses_OfSMBAnd9P(t *testing.T) {
	family(t, "smb")
	l := inMachine(t, smbBase(), smbModules)
	l.shell(setupSMB + mount9P)
	l.watch(smb, hard, more, nineP, bind, "/mnt/dfs")
	t.Run("DFS", func(t *testing.T) { l.leaveLinksAlone(t) })
	l.locate("10.9.0.3", 4450)
	both := func(cause string, ofSMB, ofNineP string) expected {
		return expected{smb: {`cause="` + cause + `"`, ofSMB}, hard: {`cause="` + cause + `"`, ofSMB}, nineP: {`cause="` + cause + `"`, ofNineP}}
	}
	at := func(all expected, path, where string) expected {
		all[path] = append(all[path], where)
		return all
	}
	const silent, refuses = `server_rpc_errno="ETIMEDOUT"`, `server_rpc_errno="ECONNREFUSED"`
	for _, s := range []scenario{
		{fault: "the servers are stopped with SIGSTOP", inflict: "/run/servers freeze", heal: "/run/servers thaw",
			expect: at(at(at(both("server_service_dead", silent, silent), hard, "10.9.0.3:4450 is acknowledged"), nineP, "10.9.0.1:5640"), bind, `cause="server_service_dead"`)},
		{fault: "packets from the servers are dropped", inflict: "/run/net drop", heal: "/run/net undrop",
			expect: both("server_unreachable", "", "not acknowledged")},
		{fault: "a firewall rejects what is sent to the servers", inflict: "/run/net reject", heal: "/run/net unreject",
			expect: both("server_unreachable", "", "")},
		{fault: "the exported directory of 9P is removed, and made anew", inflict: "rmdir /srv/nine", heal: "mkdir /srv/nine",
			expect: expected{nineP: {`errno="ENOENT"`, `cause="stale_export"`}}},
		{fault: "the password is changed, and smbd restarted",
			// Until the restarted smbd has refused a login.
			inflict: `refused() { dmesg | grep -c STATUS_LOGON_FAILURE; }
				before=$(refused); printf 'wrong\nwrong\n' | smbpasswd -c /srv/smb.conf -s root; /run/servers restart-smbd
				for i in $(seq 300); do [ $(refused) -gt $before ] && break; sleep 0.1; done`,
			// smbd writes the account of a refused login back as it was when it read it.
			heal:   `for i in 1 2 3 4 5; do printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s root; sleep 1; done`,
			expect: expected{smb: {`cause="login_refused"`}, hard: {`cause="login_refused"`}, nineP: {`result="ok"`}}, after: well(smb, hard, more)},
		{fault: "the servers are killed while a file is open and dirty, and then started again",
			inflict: "(exec 9>/mnt/hard/dirty; dd if=/dev/zero bs=64k count=16 >&9 2>/run/dd; exec setsid sleep 120 <&9 >/run/ignored 2>&1) & sleep 1; /run/servers stop", heal: "/run/servers start",
			expect: both("server_service_dead", refuses, refuses),
			after:  expected{smb: {`result="ok"`}, hard: {`result="ok"`}, more: {`result="ok"`}, nineP: {`cause="mount_needs_remount"`}}},
		{fault: "a share is removed, and 9P mounted anew",
			inflict: "umount -l /mnt/9p; " + mount9P + "; cp /srv/base.conf /srv/smb.conf; smbcontrol -s /srv/smb.conf smbd reload-config; smbcontrol -s /srv/smb.conf smbd close-share data",
			expect:  expected{smb: {`cause="share_gone"`}, nineP: {`result="ok"`}}, heal: "true", after: well(more)},
		{fault: "the 9P server is stopped with SIGSTOP, killed while a gather waits for it, and started again",
			inflict: "pid=$(pidof diod); kill -STOP $pid; echo >/run/gathers; sleep 5; kill -KILL $pid; while pidof diod >/dev/null; do sleep 0.1; done",
			expect:  expected{nineP: {`cause="server_service_dead"`}}, heal: "/run/servers start-diod", after: expected{nineP: {`cause="mount_needs_remount"`}}},
	} {
		l.try(s)
	}
	l.write("smb")
}

// leaveLinksAlone sees that what the kernel mounts at a link of DFS is not kept mounted, and
// missed by nobody; and that what somebody mounts at a directory there is checked.
func (l *lab) leaveLinksAlone(t *testing.T) {
	outer := l.t
	l.t = t
	defer func() { l.t = outer }()
	l.shell(`ls /mnt/dfs/link/; mount -t cifs //10.9.0.1/dfs/plain /mnt/dfs/plain -o username=root,pass=right,nosharesock,echo_interval=5`)
	l.await("mounted", patience, expected{"/mnt/dfs/link": {`result="unchecked"`}, "/mnt/dfs/plain": {`result="ok"`}, "/mnt/dfs": {`result="ok"`}})

	const expire = "EXPIRE=/mnt/dfs/link tests -test.run '^TestExpire$' -test.v"
	require.Contains(t, l.shell(expire), "busy")
	for range 3 {
		assert.Empty(t, missing(l.gather()["/mnt/dfs/link"], []string{`result="unchecked"`}))
	}
	require.Contains(t, l.shell(expire), "expired", "nobody has used it")
	before := strings.TrimSpace(l.shell("stat -c %s /run/metrics"))
	for range 3 {
		l.await("expired", patience, expected{"/mnt/dfs": {`result="ok"|result="slow"`}})
	}
	assert.NotContains(t, l.shell("tail -c +"+before+" /run/metrics"), "/mnt/dfs/link")
	assert.NotContains(t, l.shell("cat /run/log"), "/mnt/dfs/link is not mounted")
	// Until the server's processes for these have ended.
	l.shell(`umount /mnt/dfs/plain /mnt/dfs; until [ "$(pidof smbd)" = "$before" ]; do before=$(pidof smbd); sleep 1; done`)
}

// TestExpire is run in a machine. As the kernel does with its own mounts, it unmounts one that
// nobody has used since it was asked to before (MNT_EXPIRE, umount(2)).
func TestExpire(t *testing.T) {
	path := os.Getenv("EXPIRE")
	if path == "" {
		t.Skip("for the use of other tests")
	}
	switch err := unix.Unmount(path, unix.MNT_EXPIRE); {
	case err == nil:
		fmt.Println("expired")
	case errors.Is(err, unix.EAGAIN):
		fmt.Println("busy, or used")
	default:
		t.Fatal(err)
	}
}
