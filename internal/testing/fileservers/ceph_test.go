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
mkdir -p /etc/ceph /run/ceph /run/state /mnt/ceph
mount -t tmpfs none /run/state
for name in mon/ceph-a osd/ceph-0 mds/ceph-a; do mkdir -p /run/state/$name; done
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
mon data = /run/state/mon/ceph-a
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
chmod +x /run/servers
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

func TestCauses_OfCephFS(t *testing.T) {
	family(t, "ceph")
	l := inMachine(t, vm.Debian{Python: true, Packages: []string{"ceph-mon", "ceph-osd", "ceph-mds", "kmod", "iproute2", "procps", "sysvinit-utils"}, Omit: []string{"usr/share/ceph", "usr/share/perl",
		"usr/bin/ceph*tool", "usr/bin/cephfs-*", "usr/bin/radosgw*", "usr/bin/ceph-mgr", "usr/lib/*/librgw*"}},
		"ceph libceph libcrc32c crc32c_generic veth tcp_diag")
	began := time.Now()
	l.shell(setupCeph)
	l.shell(createCephFS)
	l.shell(mountCeph)
	t.Logf("the cluster is up after %v", time.Since(began))
	const path = "/mnt/ceph"
	l.shell("echo canary >/mnt/ceph/.mountstat; sync")
	l.checks = `"statfs", "readdir", "read"` // which alone takes an OSD
	l.watch(path)
	fault := func(cause string, more ...string) expected {
		return expected{path: append([]string{`cause="` + cause + `"`}, more...)}
	}
	for _, s := range []scenario{
		{fault: "the MDS is stopped with SIGSTOP", inflict: "/run/servers freeze mds", expect: fault("ceph_mds_dead"), heal: "/run/servers thaw mds"},
		{fault: "the OSD is stopped with SIGSTOP", inflict: "/run/servers freeze osd", expect: fault("ceph_osds_dead"), heal: "/run/servers thaw osd"},
		{fault: "the OSD has ended", inflict: "/run/servers end osd", expect: fault("ceph_osds_dead"), heal: "/run/servers start osd"},
		{fault: "the monitor is stopped with SIGSTOP", inflict: "/run/servers freeze mon", expect: fault("ceph_monitors_dead"), heal: "/run/servers thaw mon"},
		{fault: "the monitor is killed", inflict: "/run/servers stop mon", expect: fault("ceph_monitors_dead"), heal: "/run/servers start mon"},
		{fault: "packets from the cluster are dropped", inflict: "/run/net drop", expect: fault("server_unreachable"), heal: "/run/net undrop"},
		{fault: "the MDS is killed", inflict: "/run/servers stop mds", expect: fault("ceph_mds_dead"), heal: "/run/servers start mds"},
		{fault: "the client is evicted", inflict: `ceph tell mds.0 client evict $(ceph tell mds.0 client ls 2>/dev/null | grep -m1 -o '"id": [0-9]*' | tr -dc 0-9) 2>&1 | head -c 2000`,
			expect: fault("client_evicted"), heal: "umount -l /mnt/ceph; " + mountCeph},
	} {
		l.try(s)
	}
	l.write("ceph")
}
