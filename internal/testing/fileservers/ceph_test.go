//go:build !race

package fileservers

import (
	"testing"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// setupCeph starts a cluster of a monitor, an OSD and an MDS. No manager is needed for files. The
// OSD sends no commands when it starts: it may not know the cluster's fsid yet, and the monitor
// refuses them then ("wrong fsid").
const setupCeph = `set -e
mkdir -p /etc/ceph /run/ceph /run/state /mnt/ceph /mnt/sub
mount -t tmpfs none /run/state
for name in mon/ceph-a mon/ceph-b mon/ceph-c osd/ceph-0 mds/ceph-a; do mkdir -p /run/state/$name; done
cat >/etc/ceph/ceph.conf <<'C'
[global]
fsid = 11111111-2222-3333-4444-555555555555
monmap = /run/monmap
public addr = 10.9.0.1
cluster addr = 10.9.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
mon data = /run/state/mon/ceph-$id
osd data = /run/state/osd/ceph-0
mds data = /run/state/mds/ceph-a
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
osd class update on start = false
osd crush update on start = false
osd objectstore = memstore
osd fast shutdown = false
memstore device bytes = 67108864
rocksdb cache size = 16777216
log file = /run/$name.log
C
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|end|freeze|thaw mon|osd|mds: of a cluster
inside="ip netns exec server"
case $1 in
start) case $2 in mon) $inside ceph-mon -i a;; osd) $inside ceph-osd -i 0;; mds) $inside ceph-mds -i a;; esac >/run/$2.out 2>&1 || { tail -n 40 /run/$2.out /run/$2.*.log; exit 1; };;
stop) pid=$(pidof ceph-$2); kill -KILL $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done; sleep 0.5;; # until its files are closed
end) pid=$(pidof ceph-$2); kill -TERM $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done;; # which has memstore write what it holds
freeze) kill -STOP $(pidof ceph-$2);;
thaw) kill -CONT $(pidof ceph-$2);;
esac
X
cat >/run/monitors <<'X'
#!/bin/sh
# monitors start|stop b:10.9.0.3 c:10.9.0.4...: more monitors, which join the first by themselves
do=$1
shift
for monitor; do
	case $do in
	start) ip netns exec server ceph-mon -i ${monitor%:*} --public-addr ${monitor#*:}:6789 >/run/mon-${monitor%:*}.out 2>&1;;
	stop) pid=$(pgrep -f "ceph-mon -i ${monitor%:*} "); kill -KILL $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done;;
	esac
done
X
cat >/usr/sbin/ceph <<'X'
#!/bin/sh
# The client may send a command before it has heard of the cluster's fsid, which the monitor refuses
# by EPERM: one in seven on Linux 6.12.
for i in $(seq 30); do /usr/bin/ceph "$@"; code=$?; [ $code = 1 ] || exit $code; sleep 0.1; done
exit 1
X
chmod +x /run/servers /run/monitors /usr/sbin/ceph
monmaptool --create --add a 10.9.0.1:6789 --fsid 11111111-2222-3333-4444-555555555555 /run/monmap
ceph-mon -i a --mkfs --monmap /run/monmap
/run/servers start mon
`

const createCephFS = `for i in $(seq 30); do ceph mon stat && break; sleep 1; done # until it has a quorum
set -e
ceph osd create 99999999-2222-3333-4444-555555555555 0
ceph osd crush add osd.0 1 root=default host=ceph
ip netns exec server ceph-osd -i 0 --mkfs --osd-uuid 99999999-2222-3333-4444-555555555555 >/run/mkfs.out 2>&1 || { tail -n 40 /run/mkfs.out /run/osd.0.log; exit 1; }
/run/servers start osd
ceph osd pool create meta 4; ceph osd pool create data 4
ceph fs new cephfs meta data
/run/servers start mds
`

const mountCeph = `for i in $(seq 30); do mount -i -t ceph 10.9.0.1:6789:/ /mnt/ceph -o name=admin && exit 0; sleep 1; done; ceph -s; dmesg | tail; exit 1`

// addMonitors makes three monitors of one, two of which are a quorum.
const addMonitors = `set -e
quorum=0
for monitor in b:10.9.0.3 c:10.9.0.4; do
	ip -n server addr add ${monitor#*:}/24 dev server
	ceph mon getmap -o /run/monmap-now
	ceph-mon -i ${monitor%:*} --mkfs --monmap /run/monmap-now --public-addr ${monitor#*:}:6789
	/run/monitors start $monitor
	quorum=$quorum,$((${quorum##*,} + 1))
	for i in $(seq 100); do ceph quorum_status 2>/dev/null | grep -q "\"quorum\":\[$quorum\]" && continue 2; sleep 0.2; done
	ceph -s; tail -n 40 /run/mon.?.log; exit 1
done
`

// setupCephAutomounts has automount mount directories of the file system on demand.
const setupCephAutomounts = `mkdir -p /mnt/auto
echo '/mnt/auto /etc/auto.ceph' >/etc/auto.master
for name in used new; do mkdir -p /mnt/ceph/$name; echo "$name -fstype=ceph,name=admin :10.9.0.1:6789:/$name"; done >/etc/auto.ceph
setsid -w automount --timeout=300 --negative-timeout=1 --pid-file /run/automount.pid
for i in $(seq 100); do mountpoint -q /mnt/auto && break; sleep 0.1; done
ls /mnt/auto/used && mountpoint -q /mnt/auto/used || { cat /proc/self/mountinfo | tail; dmesg | tail; exit 1; }
`

func TestCauses_OfCephFS(t *testing.T) {
	family(t, "ceph")
	l := inMachine(t, vm.Debian{Python: true, Packages: []string{"ceph-mon", "ceph-osd", "ceph-mds", "kmod", "iproute2", "procps", "sysvinit-utils", "iptables", "autofs"}, Omit: []string{"usr/share/ceph", "usr/share/perl",
		"usr/bin/ceph*tool", "usr/bin/cephfs-*", "usr/bin/radosgw*", "usr/bin/ceph-mgr", "usr/lib/*/librgw*"}},
		"ceph libceph libcrc32c crc32c_generic veth tcp_diag autofs4 ip_tables iptable_filter xt_tcpudp")
	began := time.Now()
	l.shell(setupCeph)
	l.shell(createCephFS)
	l.shell(mountCeph)
	t.Logf("the cluster is up after %v", time.Since(began))
	const (
		path, sub, used, fresh = "/mnt/ceph", "/mnt/sub", "/mnt/auto/used", "/mnt/auto/new"
		mountSub               = "mkdir -p /mnt/ceph/sub && echo canary >/mnt/ceph/sub/.mountstat && mount -i -t ceph 10.9.0.1:6789:/sub /mnt/sub -o name=admin"
		mountAnew              = "umount -l /mnt/ceph /mnt/sub /mnt/auto/used; (" + mountCeph + ") && " + mountSub + "; ls /mnt/auto/used"
	)
	l.shell("echo canary >/mnt/ceph/.mountstat; sync")
	l.shell(mountSub)
	l.shell(setupCephAutomounts)
	l.checks = `"statfs", "readdir", "read"` // which alone takes an OSD
	untouched := []string{`result="unchecked"`}
	l.watchFor(expected{path: {`result="ok"`}, sub: {`result="ok"`}, used: untouched})
	fault := func(cause string, more ...string) expected {
		return expected{path: append([]string{`cause="` + cause + `"`}, more...)}
	}
	monitorPort := func(do string) string {
		return "ip netns exec server iptables-legacy -" + do + " INPUT -p tcp -s 10.9.0.2 --dport 6789 -j DROP"
	}
	for _, s := range []scenario{
		{fault: "the MDS is stopped with SIGSTOP", inflict: "/run/servers freeze mds", expect: fault("ceph_mds_dead"), heal: "/run/servers thaw mds"},
		{fault: "the OSD is stopped with SIGSTOP", inflict: "/run/servers freeze osd", expect: fault("ceph_osds_dead"), heal: "/run/servers thaw osd"},
		{fault: "the OSD has ended", inflict: "/run/servers end osd", expect: fault("ceph_osds_dead"), heal: "/run/servers start osd"},
		{fault: "the monitor is stopped with SIGSTOP", inflict: "/run/servers freeze mon", expect: fault("ceph_monitors_dead"), heal: "/run/servers thaw mon"},
		{fault: "the monitor is killed", inflict: "/run/servers stop mon", expect: fault("ceph_monitors_dead"), heal: "/run/servers start mon"},
		{fault: "packets from the cluster are dropped", inflict: "/run/net drop", expect: fault("server_unreachable"), heal: "/run/net undrop"},
		{fault: "packets to the monitor's port are dropped", inflict: monitorPort("I"), heal: monitorPort("D"), expect: fault("server_unreachable", "not acknowledged|no connection|has no answer")},
		{fault: "the MDS is killed", inflict: "/run/servers stop mds", expect: fault("ceph_mds_dead"), heal: "/run/servers start mds"},
		{fault: "the client is evicted", inflict: `for id in $(ceph tell mds.0 client ls 2>/dev/null | grep -o '"id": [0-9]*' | tr -dc '0-9\n'); do ceph tell mds.0 client evict $id; done 2>&1 | head -c 2000`,
			expect: fault("client_evicted"), heal: mountAnew},
		{fault: "the client's address is put on the OSDs' blocklist",
			inflict: `for client in $(ceph tell mds.0 client ls 2>/dev/null | grep -o '10\.9\.0\.2:0/[0-9]*' | sort -u); do ceph osd blocklist add $client; done 2>&1`,
			expect:  fault("client_evicted"), heal: "ceph osd blocklist clear; " + mountAnew},
		{fault: "the directory that is mounted is removed by another client", inflict: "rm -r /mnt/ceph/sub",
			expect: expected{sub: {`result="stale"`, `cause="stale_export"`}, path: {`result="ok"`}}, heal: "umount -l /mnt/sub; " + mountSub},
		{fault: "the monitor is stopped with SIGSTOP, and somebody uses what automount has mounted, and goes to what it has not yet",
			inflict: "/run/servers freeze mon; " + "setsid stat -f " + used + " </dev/null >/run/asked 2>&1 & " + wants(fresh), heal: "/run/servers thaw mon",
			expect: expected{used: {`result="error"`, `cause="ceph_monitors_dead"`}, fresh: {`cause="ceph_monitors_dead"`, "waits for its server 10.9.0.1:6789"}},
			after:  expected{used: untouched, fresh: gone(`result="unchecked"`)}},
	} {
		l.try(s)
	}
	l.checks = `"statfs", "readdir"`
	l.watch(path)
	l.try(scenario{fault: "the OSD is stopped with SIGSTOP, somebody writes, and there are the default checks alone",
		inflict: "/run/servers freeze osd; setsid sh -c 'for i in $(seq 20); do mkdir /mnt/ceph/new$i; done; sync' </dev/null >/run/wrote 2>&1 &", heal: "/run/servers thaw osd",
		expect: fault("ceph_mds_dead"), within: patience})
	l.shell(addMonitors)
	l.watchFor(expected{path: {`result="ok"`}, sub: {`result="ok"`}})
	for _, s := range []scenario{
		{fault: "one of three monitors is killed", inflict: "/run/monitors stop c:10.9.0.4", heal: "/run/monitors start c:10.9.0.4", expect: well(path)},
		{fault: "two of three monitors are killed: the quorum is lost, which the third takes some seconds to notice",
			inflict: "/run/monitors stop b:10.9.0.3 c:10.9.0.4; while timeout 2 stat -f /mnt/ceph >/run/asked; do sleep 0.2; done",
			heal:    "/run/monitors start b:10.9.0.3 c:10.9.0.4", expect: fault("ceph_monitors_dead", "server_rpc_seconds")},
	} {
		l.try(s)
	}
	l.write("ceph")
}
