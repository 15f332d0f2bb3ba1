//go:build !race

package fileservers

import "testing"

// setupGluster makes a volume of three replicas, which needs two of them.
const setupGluster = `set -e
mkdir -p /srv/brick1 /srv/brick2 /srv/brick3 /mnt/gluster /run/gluster /run/glusterd
mount --bind /run/glusterd /var/lib/glusterd
mount -t tmpfs none /var/log/glusterfs
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw NUMBER...: of bricks
do=$1
shift
for number; do
	pid=$(pgrep -f "glusterfsd .*--brick-name /srv/brick$number ") || pid=
	case $do in
	start) ip netns exec server gluster --mode=script volume start vol force; break;;
	stop) kill -KILL $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done;;
	freeze) kill -STOP $pid;;
	thaw) kill -CONT $pid;;
	esac
done
X
chmod +x /run/servers
inside="ip netns exec server"
$inside glusterd
for i in $(seq 20); do
	$inside gluster --mode=script volume create vol replica 3 10.9.0.1:/srv/brick1 10.9.0.1:/srv/brick2 10.9.0.1:/srv/brick3 force && break
	sleep 1
done
$inside gluster --mode=script volume set vol network.ping-timeout 10
$inside gluster --mode=script volume set vol cluster.self-heal-daemon off
$inside gluster --mode=script volume start vol
`

const mountGluster = `glusterfs --volfile-server=10.9.0.1 --volfile-id=vol /mnt/gluster; ls /mnt/gluster`

func TestCauses_OfGluster(t *testing.T) {
	family(t, "gluster")
	l := onThisHost(t, "glusterd", "gluster", "glusterfs", "glusterfsd")
	const path = "/mnt/gluster"
	l.shell(setupGluster)
	l.shell(mountGluster)
	l.watch(path)
	fault := func(parts ...string) expected { return expected{path: parts} }
	const (
		unreachable = `cause="fuse_server_unreachable"`
		silent      = `cause="fuse_server_silent"`
		lost        = `errno="ENOTCONN"`
		client      = "$(pgrep -f '^glusterfs .*--volfile-id=vol ')"
	)
	for _, s := range []scenario{
		{fault: "glusterd is killed", inflict: "pid=$(pidof glusterd); kill -KILL $pid", heal: "ip netns exec server glusterd", expect: well(path)},
		{fault: "one of three bricks is killed", inflict: "/run/servers stop 1", heal: "/run/servers start 1", expect: well(path)},
		{fault: "two of three bricks are killed: the quorum is lost", inflict: "/run/servers stop 1 2", heal: "/run/servers start 1 2",
			expect: fault(unreachable, lost)},
		{fault: "all bricks are killed", inflict: "/run/servers stop 1 2 3", heal: "/run/servers start 1 2 3", expect: fault(unreachable, lost)},
		{fault: "one of three bricks is stopped with SIGSTOP", inflict: "/run/servers freeze 1", heal: "/run/servers thaw 1", expect: fault(silent)},
		{fault: "one of three bricks is stopped with SIGSTOP, after network.ping-timeout",
			inflict: "/run/servers freeze 1; while timeout 2 stat -f /mnt/gluster; do sleep 0.2; done >/run/asked 2>&1; until timeout 2 stat -f /mnt/gluster; do sleep 0.5; done >/run/asked 2>&1",
			heal:    "/run/servers thaw 1", expect: well(path)},
		{fault: "all bricks are stopped with SIGSTOP", inflict: "/run/servers freeze 1 2 3", heal: "/run/servers thaw 1 2 3",
			expect: fault(silent)},
		{fault: "all bricks are stopped with SIGSTOP, after network.ping-timeout", inflict: "/run/servers freeze 1 2 3", heal: "/run/servers thaw 1 2 3",
			expect: fault(silent+"|"+unreachable, lost), within: patience},
		{fault: "packets from the servers are dropped", inflict: "/run/net drop", heal: "/run/net undrop", expect: fault(unreachable)},
		{fault: "packets from the servers are dropped, after network.ping-timeout", inflict: "/run/net drop", heal: "/run/net undrop",
			expect: fault(unreachable, lost), within: patience},
		{fault: "the client is stopped with SIGSTOP", inflict: "kill -STOP " + client, heal: "kill -CONT " + client, expect: fault(`cause="fuse_daemon_silent"`)},
		{fault: "the client is killed", inflict: "kill -KILL " + client, heal: "umount -l /mnt/gluster; " + mountGluster, expect: fault(`cause="fuse_daemon_dead"`)},
	} {
		l.try(s)
	}
	l.write("gluster")
}

// setupWebDAV has rclone serve and mount a directory, twice. The cache of directories of one is
// short; that of the other lasts five minutes, as by default, and hides what happens to the
// server from all but who reads.
const setupWebDAV = `set -e
mkdir -p /srv/dav /mnt/dav /mnt/cached
echo canary >/srv/dav/.mountstat
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw
case $1 in
start)
	ip netns exec server rclone serve webdav /srv/dav --addr 10.9.0.1:8080 >/run/dav.out 2>&1 &
	echo $! >/run/dav.pid
	for i in $(seq 100); do ip netns exec server ss -tln | grep -q :8080 && break; sleep 0.1; done;;
stop) kill -KILL $(cat /run/dav.pid);;
freeze) kill -STOP $(cat /run/dav.pid);;
thaw) kill -CONT $(cat /run/dav.pid);;
esac
X
chmod +x /run/servers
/run/servers start
`

const mountWebDAV = `umount -l /mnt/dav /mnt/cached 2>/dev/null
rclone mount :webdav: /mnt/dav --webdav-url http://10.9.0.1:8080 --dir-cache-time 1s --allow-other --daemon --config /run/rclone.conf >/run/mount.out 2>&1
rclone mount :webdav: /mnt/cached --webdav-url http://10.9.0.1:8080 --allow-other --daemon --config /run/rclone.conf >>/run/mount.out 2>&1
ls /mnt/dav /mnt/cached`

func TestCauses_OfWebDAV(t *testing.T) {
	family(t, "webdav")
	l := onThisHost(t, "rclone")
	const path, cached = "/mnt/dav", "/mnt/cached"
	l.shell(setupWebDAV)
	l.shell(mountWebDAV)
	l.checks = `"statfs", "readdir", "read"`
	l.watch(path, cached)
	fault := func(cause string) expected {
		return expected{path: {`cause="` + cause + `"`}, cached: {`cause="` + cause + `"`}}
	}
	const client = "$(pgrep -f '^[^ ]*rclone mount ')"
	for _, s := range []scenario{
		{fault: "the server is stopped with SIGSTOP", inflict: "/run/servers freeze", heal: "/run/servers thaw", expect: fault("fuse_server_silent")},
		{fault: "packets from the server are dropped", inflict: "/run/net drop", heal: "/run/net undrop", expect: fault("fuse_server_unreachable")},
		{fault: "the server is killed", inflict: "/run/servers stop", heal: "/run/servers start", expect: fault("fuse_server_unreachable")},
		{fault: "the client is stopped with SIGSTOP", inflict: "kill -STOP " + client, heal: "kill -CONT " + client, expect: fault("fuse_daemon_silent")},
		{fault: "the client is killed", inflict: "kill -KILL " + client, heal: mountWebDAV, expect: fault("fuse_daemon_dead")},
	} {
		l.try(s)
	}
	l.write("webdav")
}
