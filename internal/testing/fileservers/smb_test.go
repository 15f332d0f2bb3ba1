//go:build !race

package fileservers

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// smbModules are what SMB, 9P, their cryptography and sock_diag take of the kernel.
const smbModules = "cifs ecb cmac gcm ghash-generic ccm md4 arc4 aes_generic sha512_generic sha256_generic hmac md5 ctr 9p 9pnet 9pnet_fd veth tcp_diag"

const setupSMB = `set -e
mkdir -p /run/smb /srv/data /srv/more /mnt/smb /mnt/hard /mnt/more /mnt/9p /var/log/samba /var/lib/samba/private /var/cache/samba
chmod 755 /srv/data /srv/more
printf '%s\n' '10.9.0.1 server' '10.9.0.2 client' >>/etc/hosts # diod looks its clients up
printf '%s\n' '[global]' 'server role = standalone server' 'smb ports = 445' 'map to guest = never' 'load printers = no' \
	'bind interfaces only = yes' 'interfaces = 10.9.0.1' '[more]' 'path = /srv/more' 'read only = no' >/srv/base.conf
printf '%s\n' '[data]' 'path = /srv/data' 'read only = no' | cat /srv/base.conf - >/srv/smb.conf
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a root
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw|restart-smbd
case $1 in
start) ip netns exec server smbd -D -s /srv/smb.conf; ip netns exec server diod -n -l 10.9.0.1:564 -e /srv/data -c /dev/null;;
stop) kill -KILL $(pidof smbd diod); while pidof smbd diod >/dev/null; do sleep 0.1; done;;
restart-smbd) kill -KILL $(pidof smbd); while pidof smbd >/dev/null; do sleep 0.1; done; ip netns exec server smbd -D -s /srv/smb.conf;;
freeze) kill -STOP $(pidof smbd diod);;
thaw) kill -CONT $(pidof smbd diod);;
esac
X
chmod +x /run/servers
/run/servers start
sleep 2
mount.cifs //10.9.0.1/data /mnt/smb -o user=root,pass=right,echo_interval=5
mount.cifs //10.9.0.1/data /mnt/hard -o hard,user=root,pass=right,nosharesock,echo_interval=5
mount.cifs //10.9.0.1/more /mnt/more -o user=root,pass=right,nosharesock,echo_interval=5
`

const mount9P = "mount -t 9p 10.9.0.1 /mnt/9p -o trans=tcp,aname=/srv/data,version=9p2000.L,cache=none,uname=root,access=user"

const (
	smb, hard, more, nineP = "/mnt/smb", "/mnt/hard", "/mnt/more", "/mnt/9p"
)

func TestTheCausesOfSMBAnd9PMounts(t *testing.T) {
	family(t, "smb")
	l := inMachine(t, vm.Debian{Packages: []string{"samba", "diod", "cifs-utils", "kmod", "iproute2", "iptables", "procps", "sysvinit-utils"}}, smbModules)
	l.shell(setupSMB + mount9P)
	l.watch(smb, hard, more, nineP)
	both := func(cause string, ofSMB, ofNineP string) expected {
		return expected{smb: {`cause="` + cause + `"`, ofSMB}, hard: {`cause="` + cause + `"`, ofSMB}, nineP: {`cause="` + cause + `"`, ofNineP}}
	}
	const silent, refuses = `server_rpc_errno="ETIMEDOUT"`, `server_rpc_errno="ECONNREFUSED"`
	for _, s := range []scenario{
		{fault: "the servers are stopped with SIGSTOP", inflict: "/run/servers freeze", heal: "/run/servers thaw",
			expect: both("server_service_dead", silent, silent)},
		{fault: "packets from the servers are dropped", inflict: "/run/net drop", heal: "/run/net undrop",
			expect: both("server_unreachable", "", "not acknowledged")},
		{fault: "the password is changed, and smbd restarted",
			inflict: `printf 'wrong\nwrong\n' | smbpasswd -c /srv/smb.conf -s root; /run/servers restart-smbd`,
			heal:    `printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s root`,
			expect:  expected{smb: {`cause="login_refused"`, "server_rpc_seconds"}, hard: {`cause="login_refused"`}, nineP: {`result="ok"`}}, after: well(smb, hard, more)},
		{fault: "the servers are killed, and then started again", inflict: "/run/servers stop", heal: "/run/servers start",
			expect: both("server_service_dead", refuses, refuses),
			after:  expected{smb: {`result="ok"`}, hard: {`result="ok"`}, more: {`result="ok"`}, nineP: {`cause="mount_needs_remount"`}}},
		{fault: "a share is removed, and 9P mounted anew",
			inflict: "umount -l /mnt/9p; " + mount9P + "; cp /srv/base.conf /srv/smb.conf; smbcontrol -s /srv/smb.conf smbd reload-config; smbcontrol -s /srv/smb.conf smbd close-share data",
			expect:  expected{smb: {`cause="share_gone"`}, nineP: {`result="ok"`}}, heal: "true", after: well(more)},
	} {
		l.try(s)
	}
	l.write("smb")
}
