//go:build !race

package fileservers

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// setupKerberos has a KDC and an NFS server, whose clients are to prove who they are. This host's
// tickets are good for 20 seconds.
const setupKerberos = `set -e
hostname client.example.test
printf '%s\n' '10.9.0.1 server.example.test' '10.9.0.2 client.example.test' >>/etc/hosts
cat >/etc/krb5.conf <<'C'
[libdefaults]
	default_realm = EXAMPLE.TEST
	dns_lookup_kdc = false
	dns_canonicalize_hostname = false
	rdns = false
	udp_preference_limit = 1
	default_tkt_enctypes = aes256-cts-hmac-sha1-96
	permitted_enctypes = aes256-cts-hmac-sha1-96
[realms]
	EXAMPLE.TEST = {
		kdc = 10.9.0.1
	}
[domain_realm]
	.example.test = EXAMPLE.TEST
C
mkdir -p /etc/krb5kdc /var/lib/krb5kdc
cat >/etc/krb5kdc/kdc.conf <<'C'
[realms]
	EXAMPLE.TEST = {
		max_life = 1h
		supported_enctypes = aes256-cts-hmac-sha1-96:normal
	}
C
kdb5_util create -s -r EXAMPLE.TEST -P secret >/run/kdb.out 2>&1 || { cat /run/kdb.out; exit 1; }
for name in server client; do
	kadmin.local -q "addprinc -randkey nfs/$name.example.test" >>/run/kadmin.out 2>&1
	kadmin.local -q "ktadd nfs/$name.example.test" >>/run/kadmin.out 2>&1
done
kadmin.local -q 'modprinc -maxlife "20 sec" nfs/client.example.test' >>/run/kadmin.out 2>&1
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop: the KDC
case $1 in
start) ip netns exec server krb5kdc -P /run/kdc.pid;;
stop) kill -KILL $(cat /run/kdc.pid);;
esac
X
chmod +x /run/servers
/run/servers start

mkdir -p /srv/data /mnt/krb5 /var/lib/nfs/v4recovery /run/rpc_pipefs
: >>/var/lib/nfs/etab; : >>/var/lib/nfs/rmtab
ip netns exec server sh -ec 'mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4gracetime
exportfs -o rw,no_subtree_check,no_root_squash,fsid=0,sec=krb5 10.9.0.0/24:/srv/data
rpc.mountd -N 2 -N 3
rpc.svcgssd -p nfs/server.example.test@EXAMPLE.TEST
rpc.nfsd -N 3 2'
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
` + startGSSD

const startGSSD = "rpc.gssd -p /run/rpc_pipefs"

const mountKerberos = `mount -t nfs4 -o sec=krb5,vers=4.2 server.example.test:/ /mnt/krb5`

func TestCauses_OfKerberos(t *testing.T) {
	family(t, "krb5")
	l := inMachine(t, vm.Debian{Packages: []string{"krb5-kdc", "krb5-admin-server", "krb5-user", "nfs-kernel-server", "nfs-common", "kmod", "iproute2", "procps", "sysvinit-utils"}},
		"nfs nfsv4 nfsd auth_rpcgss rpcsec_gss_krb5 cts cbc ecb aes_generic hmac sha1_generic veth tcp_diag")
	l.shell(setupKerberos)
	l.shell(mountKerberos)
	const path = "/mnt/krb5"
	l.watch(path)
	refused := expected{path: {`result="denied"`, `errno="EACCES"`, `cause="login_refused"`}}
	const untilRefused = "; while stat -f /mnt/krb5 >/run/asked 2>&1; do sleep 1; done"
	for _, s := range []scenario{
		{fault: "the KDC is killed, and this host's ticket expires", inflict: "/run/servers stop" + untilRefused, heal: "/run/servers start", expect: refused},
		{fault: "this host's key is changed in the KDC, and its ticket expires", inflict: "kadmin.local -q 'cpw -randkey nfs/client.example.test' >>/run/kadmin.out 2>&1" + untilRefused,
			heal: "kadmin.local -q 'ktadd nfs/client.example.test' >>/run/kadmin.out 2>&1", expect: refused},
		{fault: "rpc.gssd of this host is killed, and its ticket expires", inflict: "kill -KILL $(pidof rpc.gssd)" + untilRefused, heal: startGSSD, expect: refused},
		{fault: "rpc.gssd of this host is stopped with SIGSTOP, and its ticket expires", inflict: "kill -STOP $(pidof rpc.gssd); while timeout 2 stat -f /mnt/krb5 >/run/asked 2>&1; do sleep 1; done", heal: "kill -CONT $(pidof rpc.gssd)",
			expect: expected{path: {`cause="login_refused"`, "waits for rpc.gssd"}}},
	} {
		l.try(s)
	}
	l.write("krb5")
}
