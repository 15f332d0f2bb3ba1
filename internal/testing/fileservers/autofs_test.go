//go:build !race

package fileservers

import (
	"strings"
	"testing"
)

// setupAutofs has automount mount shares of the SMB server on demand, and what a 9P server, sshd
// and nfsd export. What failed is tried again after a second. The kernel wants automount's process group to be one of the PID
// namespace, which that of process 1 is not.
const setupAutofs = `set -e
mkdir -p /mnt/auto /var/lib/nfs
printf '%s\n' '/mnt/auto /etc/auto.shares' >/etc/auto.master
echo '10.9.0.4 filer' >>/etc/hosts
for entry in used:10.9.0.1 cut:10.9.0.1 hung:10.9.0.1 cut-named:filer hung-named:filer; do
	echo "${entry%:*} -fstype=cifs,user=root,pass=right,nosharesock,echo_interval=5 ://${entry#*:}/data"
done >/etc/auto.shares
for entry in nine nine-used; do
	echo "$entry -fstype=9p,trans=tcp,port=5640,aname=/srv/nine,version=9p2000.L,uname=root,access=user :10.9.0.1"
done >>/etc/auto.shares
for entry in ssh ssh-cut; do echo "$entry -fstype=fuse.sshfs :root@10.9.0.1:/srv/data"; done >>/etc/auto.shares
for entry in nfs nfs-cut; do echo "$entry -fstype=nfs4 10.9.0.1:/"; done >>/etc/auto.shares

mkdir -p /run/sshd /root/.ssh
mount -t fusectl fusectl /sys/fs/fuse/connections
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
printf '%s\n' 'StrictHostKeyChecking no' 'UserKnownHostsFile /dev/null' 'LogLevel ERROR' >/root/.ssh/config
chmod -R go= /root/.ssh; chmod 700 /root
ip netns exec server /usr/sbin/sshd -o UsePAM=no -o StrictModes=no

mkdir -p /var/lib/nfs/v4recovery
: >>/var/lib/nfs/etab; : >>/var/lib/nfs/rmtab
ip netns exec server sh -ec 'mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4gracetime
exportfs -o rw,no_subtree_check,no_root_squash,fsid=0 10.9.0.0/24:/srv/data
rpc.mountd -N 2 -N 3
rpc.nfsd -N 3 2'
cat >/run/automounter <<'X'
#!/bin/sh
# automounter start|stop|freeze|thaw
case $1 in
start) setsid -w automount --timeout=300 --negative-timeout=1 --pid-file /run/automount.pid; for i in $(seq 100); do mountpoint -q /mnt/auto && exit; sleep 0.1; done; exit 1;;
stop) pid=$(cat /run/automount.pid); kill -KILL $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done;;
freeze) kill -STOP $(cat /run/automount.pid);;
thaw) kill -CONT $(cat /run/automount.pid);;
esac
X
chmod +x /run/automounter
/run/automounter start
ls /mnt/auto/used /mnt/auto/nine-used /mnt/auto/ssh /mnt/auto/nfs
`

// wants has somebody go to a path, and not wait for it here.
func wants(path string) string { return "setsid ls " + path + " </dev/null >/run/wanted 2>&1 & " }

// keepsWanting has somebody go to a path again and again, until it is there.
func keepsWanting(path string) string {
	return "setsid sh -c 'until ls " + path + "; do sleep 1; done' </dev/null >/run/wanted-again 2>&1 & "
}

// asksFor has somebody ask the server of what is mounted at a path, which no cache answers, and not
// wait for it here.
func asksFor(path string) string { return "setsid stat -f " + path + " </dev/null >/run/asked 2>&1 & " }

func TestCauses_OfAutomounts(t *testing.T) {
	family(t, "autofs")
	base := smbBase()
	base.Packages = append(base.Packages, "autofs", "sshfs", "openssh-server", "nfs-kernel-server", "nfs-common")
	l := inMachine(t, base, smbModules+" autofs4 fuse nfs nfsv4 nfsd unix_diag")
	l.shell(strings.Replace(setupSMB, "set -e", "", 1))
	l.shell(setupAutofs)
	const auto = "/mnt/auto"
	used := []string{`result="unchecked"`}
	cut, hung, cutNamed, hungNamed := auto+"/cut", auto+"/hung", auto+"/cut-named", auto+"/hung-named"
	nine, nineUsed, ssh, sshCut, nfs := auto+"/nine", auto+"/nine-used", auto+"/ssh", auto+"/ssh-cut", auto+"/nfs"
	l.watchFor(expected{auto + "/used": used, nineUsed: used, ssh: used, nfs: used, auto: gone()})
	const freezeSSHD, thawSSHD = "kill -STOP $(pidof sshd)", "kill -CONT $(pidof sshd)"
	for _, s := range []scenario{
		{fault: "packets from the server are dropped, and somebody goes to what is not mounted yet, and to what is",
			inflict: "/run/net drop; " + wants(cut) + wants(auto+"/used"), heal: "/run/net undrop",
			expect: expected{cut: {`cause="server_unreachable"`, "mount.cifs waits"}, auto + "/used": {`result="error"`, `cause="server_unreachable"`}},
			after:  expected{cut: gone(`result="unchecked"`), auto + "/used": used}},
		{fault: "the server is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(hung) + wants(auto+"/used"), heal: "/run/servers thaw",
			expect: expected{hung: {`cause="server_service_dead"`, "mount.cifs waits"}, auto + "/used": {`result="error"`, `cause="server_service_dead"`}},
			after:  expected{hung: gone(`result="unchecked"`), auto + "/used": used}},
		{fault: "packets from a server that has a name in the map are dropped, and somebody goes to what is not mounted yet",
			inflict: "/run/net drop; " + wants(cutNamed), heal: "/run/net undrop",
			expect: expected{cutNamed: {`cause="server_unreachable"`, "waits for its server 10.9.0.4:445"}}, after: expected{cutNamed: gone(`result="unchecked"`)}},
		{fault: "a server that has a name in the map is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(hungNamed), heal: "/run/servers thaw",
			expect: expected{hungNamed: {`cause="server_service_dead"`, "waits for its server 10.9.0.4:445"}}, after: expected{hungNamed: gone(`result="unchecked"`)}},
		{fault: "the 9P server is stopped with SIGSTOP, and somebody uses what is mounted",
			inflict: "/run/servers freeze; " + wants(nineUsed), heal: "/run/servers thaw",
			expect: expected{nineUsed: {`result="error"`, `cause="server_service_dead"`, "10.9.0.1:5640 is acknowledged, and not answered"}}, after: expected{nineUsed: used}},
		{fault: "the 9P server is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(nine), heal: "/run/servers thaw",
			expect: expected{nine: {`cause="server_service_dead"`, "mount waits for its server 10.9.0.1:5640"}}, after: expected{nine: gone(`result="unchecked"`)}},
		{fault: "the 9P server is killed and started again, and nobody uses what is mounted", inflict: "pid=$(pidof diod); kill -KILL $pid; while pidof diod >/dev/null; do sleep 0.1; done; /run/servers start-diod",
			heal:   "umount -l " + nine + " " + nineUsed + "; ls " + nine + " " + nineUsed,
			expect: expected{nineUsed: {`result="error"`, `cause="mount_needs_remount"`}}, after: expected{nineUsed: used}},
		{fault: "sshd and its sessions are stopped with SIGSTOP, and somebody uses what is mounted",
			inflict: freezeSSHD + "; " + asksFor(ssh), heal: thawSSHD,
			expect: expected{ssh: {`result="error"`, `cause="fuse_server_silent"`, "waits for its server 10.9.0.1:22"}}, after: expected{ssh: used}},
		{fault: "packets from the servers are dropped, and somebody uses what sshfs and NFS have mounted, and goes to what they have not yet",
			inflict: "/run/net drop; " + asksFor(ssh) + asksFor(nfs) + wants(sshCut) + keepsWanting(auto+"/nfs-cut"), heal: "/run/net undrop",
			expect: expected{ssh: {`result="error"`, `cause="fuse_server_unreachable"`}, sshCut: {`result="error"`, `cause="fuse_server_unreachable"`},
				nfs: {`result="error"`, `cause="server_unreachable"`}, auto: {`cause="server_unreachable"`, "automount waits for its server 10.9.0.1:2049"}},
			after: expected{ssh: used, nfs: used, sshCut: gone(`result="unchecked"`), auto: gone()}},
		{fault: "automount is stopped with SIGSTOP", inflict: "/run/automounter freeze", heal: "/run/automounter thaw",
			expect: expected{auto: {`cause="automounter_stopped"`, "is stopped: kill -CONT"}}, after: expected{auto: gone()}},
		{fault: "automount is killed", inflict: "/run/automounter stop", heal: "umount -l /mnt/auto; /run/automounter start",
			expect: expected{auto: {`cause="automounter_stopped"`, "has ended"}}, after: expected{auto: gone()}},
	} {
		l.try(s)
	}
	l.write("autofs")
}
