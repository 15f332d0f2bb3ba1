//go:build !race

package fileservers

import (
	"strings"
	"testing"
)

// setupAutofs has automount mount shares of the SMB server on demand. What failed is tried
// again after a second. The kernel wants automount's process group to be one of the PID
// namespace, which that of process 1 is not.
const setupAutofs = `set -e
mkdir -p /mnt/auto /var/lib/nfs
printf '%s\n' '/mnt/auto /etc/auto.shares' >/etc/auto.master
echo '10.9.0.4 filer' >>/etc/hosts
for entry in used:10.9.0.1 cut:10.9.0.1 hung:10.9.0.1 cut-named:filer hung-named:filer; do
	echo "${entry%:*} -fstype=cifs,user=root,pass=right,nosharesock,echo_interval=5 ://${entry#*:}/data"
done >/etc/auto.shares
echo 'nine -fstype=9p,trans=tcp,port=5640,aname=/srv/nine,version=9p2000.L,uname=root,access=user :10.9.0.1' >>/etc/auto.shares
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
ls /mnt/auto/used
`

// wants has somebody go to a path, and not wait for it here.
func wants(path string) string { return "setsid ls " + path + " </dev/null >/run/wanted 2>&1 & " }

func TestCauses_OfAutomounts(t *testing.T) {
	family(t, "autofs")
	base := smbBase()
	base.Packages = append(base.Packages, "autofs")
	l := inMachine(t, base, smbModules+" autofs4")
	l.shell(strings.Replace(setupSMB, "set -e", "", 1))
	l.shell(setupAutofs)
	const auto = "/mnt/auto"
	used := []string{`result="unchecked"`}
	l.watchFor(expected{auto + "/used": used, auto: gone()})
	cut, hung, cutNamed, hungNamed := auto+"/cut", auto+"/hung", auto+"/cut-named", auto+"/hung-named"
	nine := auto + "/nine"
	for _, s := range []scenario{
		{fault: "packets from the server are dropped, and somebody goes to what is not mounted yet, and to what is",
			inflict: "/run/net drop; " + wants(cut) + wants(auto+"/used"), heal: "/run/net undrop",
			expect: expected{cut: {`cause="server_unreachable"`, "mount.cifs waits"}, auto + "/used": {`result="error"`, `cause="server_unreachable"`}},
			after:  expected{cut: gone(`result="unchecked"`), auto + "/used": used}},
		{fault: "the server is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(hung) + wants(auto+"/used"), heal: "/run/servers thaw", within: 3 * interval,
			expect: expected{hung: {`cause="server_service_dead"`, "mount.cifs waits"}, auto + "/used": {`result="error"`, `cause="server_service_dead"`}},
			after:  expected{hung: gone(`result="unchecked"`), auto + "/used": used}},
		{fault: "packets from a server that has a name in the map are dropped, and somebody goes to what is not mounted yet",
			inflict: "/run/net drop; " + wants(cutNamed), heal: "/run/net undrop", within: 3 * interval,
			expect: expected{cutNamed: {`cause="server_unreachable"`, "waits for its server 10.9.0.4:445"}}, after: expected{cutNamed: gone(`result="unchecked"`)}},
		{fault: "a server that has a name in the map is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(hungNamed), heal: "/run/servers thaw", within: 3 * interval,
			expect: expected{hungNamed: {`cause="server_service_dead"`, "waits for its server 10.9.0.4:445"}}, after: expected{hungNamed: gone(`result="unchecked"`)}},
		{fault: "automount is stopped with SIGSTOP", inflict: "/run/automounter freeze", heal: "/run/automounter thaw",
			expect: expected{auto: {`cause="automounter_stopped"`, "is stopped: kill -CONT"}}, after: expected{auto: gone()}},
		{fault: "automount is killed", inflict: "/run/automounter stop", heal: "umount -l /mnt/auto; /run/automounter start",
			expect: expected{auto: {`cause="automounter_stopped"`, "has ended"}}, after: expected{auto: gone()}},
		{fault: "the 9P server is stopped with SIGSTOP, and somebody goes to what is not mounted yet",
			inflict: "/run/servers freeze; " + wants(nine), heal: "/run/servers thaw", within: 3 * interval,
			expect: expected{nine: {`cause="server_service_dead"`, "mount waits for its server 10.9.0.1:5640"}}, after: expected{nine: gone(`result="unchecked"`)}},
	} {
		l.try(s)
	}
	l.write("autofs")
}
