//go:build !race

package fileservers

import (
	"testing"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// smbModules are what SMB, 9P, their cryptography and sock_diag take of the kernel.
const smbModules = "ip_tables iptable_filter ipt_REJECT cifs ecb cmac gcm ghash-generic ccm md4 arc4 aes_generic sha512_generic sha256_generic hmac md5 ctr 9p 9pnet 9pnet_fd veth tcp_diag"

const setupSMB = `set -e
mkdir -p /run/smb /srv/data /srv/more /srv/nine /mnt/bind /mnt/smb /mnt/hard /mnt/more /mnt/9p /var/log/samba /var/lib/samba/private /var/cache/samba
chmod 755 /srv/data /srv/more /srv/nine
ip -n server addr add 10.9.0.3/24 dev server
printf '%s\n' '10.9.0.1 server' '10.9.0.2 client' >>/etc/hosts # diod looks its clients up
printf '%s\n' '[global]' 'server role = standalone server' 'smb ports = 445 4450' 'map to guest = never' 'load printers = no' \
	'bind interfaces only = yes' 'interfaces = 10.9.0.1 10.9.0.3' '[more]' 'path = /srv/more' 'read only = no' >/srv/base.conf
printf '%s\n' '[data]' 'path = /srv/data' 'read only = no' | cat /srv/base.conf - >/srv/smb.conf
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a root
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw|restart-smbd|start-diod
case $1 in
start) ip netns exec server smbd -D -s /srv/smb.conf; $0 start-diod;;
start-diod) ip netns exec server diod -n -l 10.9.0.1:5640 -e /srv/nine -c /dev/null;;
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
mount.cifs //10.9.0.3/data /mnt/hard -o port=4450,hard,user=root,pass=right,nosharesock,echo_interval=5
mount.cifs //10.9.0.1/more /mnt/more -o user=root,pass=right,nosharesock,echo_interval=5
mount --bind /mnt/smb /mnt/bind
`

// smbBase is a machine with Samba, diod and their clients.
func smbBase() vm.Debian {
	return vm.Debian{Packages: []string{"samba", "diod", "cifs-utils", "kmod", "iproute2", "iptables", "procps", "sysvinit-utils"}}
}

const mount9P = "mount -t 9p 10.9.0.1 /mnt/9p -o trans=tcp,port=5640,aname=/srv/nine,version=9p2000.L,cache=none,uname=root,access=user"

const (
	smb, hard, more, nineP, bind = "/mnt/smb", "/mnt/hard", "/mnt/more", "/mnt/9p", "/mnt/bind"
)

func TestTheCausesOfSMBAnd9PMounts(t *testing.T) {
	family(t, "smb")
	l := inMachine(t, smbBase(), smbModules)
	l.shell(setupSMB + mount9P)
	l.watch(smb, hard, more, nineP, bind)
	for range 3 { // until it is known where the server of hard is, by the client's connection
		l.gather()
		time.Sleep(time.Second)
	}
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
			inflict: `printf 'wrong\nwrong\n' | smbpasswd -c /srv/smb.conf -s root; /run/servers restart-smbd`,
			heal:    `printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s root`,
			expect:  expected{smb: {`cause="login_refused"`, "server_rpc_seconds"}, hard: {`cause="login_refused"`}, nineP: {`result="ok"`}}, after: well(smb, hard, more)},
		{fault: "the servers are killed while a file is open and dirty, and then started again",
			inflict: "(exec 9>/mnt/hard/dirty; dd if=/dev/zero bs=64k count=16 >&9 2>/run/dd; exec setsid sleep 120 <&9 >/run/ignored 2>&1) & sleep 1; /run/servers stop", heal: "/run/servers start",
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
