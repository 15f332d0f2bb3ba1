//go:build !race

package fileservers

import (
	"testing"
)

// setupLayers has file systems that lie on SMB mounts, a mount of another user, and two mounts of
// servers at different ports of one address.
const setupLayers = `set -e
mkdir -p /mnt/image /mnt/over /mnt/user /mnt/a /mnt/b /mnt/hard/lower /srv/empty
truncate -s 8M /mnt/hard/disk.img
mkfs.ext4 -q /mnt/hard/disk.img
mount -o loop /mnt/hard/disk.img /mnt/image
echo data >/mnt/hard/lower/file
mount -t overlay overlay -o lowerdir=/mnt/hard/lower:/srv/empty /mnt/over
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a daemon
mount -t cifs //10.9.0.1/more /mnt/user -o username=daemon,pass=right,nosharesock,echo_interval=5
mount -t cifs //10.9.0.4/data /mnt/a -o username=root,pass=right,nosharesock,echo_interval=5
mount -t cifs //10.9.0.4/more /mnt/b -o port=4450,username=root,pass=right,nosharesock,echo_interval=5
`

func TestCauses_OfWhatLiesOnSMB(t *testing.T) {
	family(t, "layers")
	l := inMachine(t, smbBase(), smbModules+" xt_tcpudp loop overlay")
	l.shell(setupSMB)
	l.shell(setupLayers)
	const image, over, user, a, b = "/mnt/image", "/mnt/over", "/mnt/user", "/mnt/a", "/mnt/b"
	l.checks, l.ignoreFS = `"statfs", "readdir", "device"`, "[]"
	l.watch(hard, image, over, user, a, b)
	l.gather()
	const (
		stopServing = "for pid in $(pgrep smbd); do [ $pid = $(pgrep -o smbd) ] || kill -STOP $pid; done"
		goOnServing = "kill -CONT $(pgrep smbd)"
		dead        = `cause="server_service_dead"`
		lies        = "the image it lies on, /mnt/hard/disk.img, is on /mnt/hard"
		// useImage has the device used, and nothing of the image in memory but the root's entries.
		useImage = "echo x >/mnt/image/use; sync; echo 3 >/proc/sys/vm/drop_caches; ls -f /mnt/image >/run/listed"
	)
	port4450 := func(do string) string {
		return "ip netns exec server iptables-legacy -" + do + " INPUT -p tcp -d 10.9.0.4 --dport 4450 -j DROP"
	}
	for _, s := range []scenario{
		{fault: "the root of a share gets mode 0", inflict: "chmod 0 /srv/more", heal: "chmod 755 /srv/more",
			expect: expected{user: {`result="denied"`, `cause="permission"`}, a: {`result="ok"`}}},
		{fault: "one of two ports of a server's address is cut off", inflict: port4450("I"), heal: port4450("D"),
			expect: expected{b: {`cause="server_unreachable"`, "10.9.0.4:4450"}, a: {`result="ok"`}}},
		{fault: "the processes that serve SMB connections are stopped with SIGSTOP, and the one that takes new ones is not",
			inflict: stopServing, heal: goOnServing,
			expect: expected{a: {`cause="export_hangs"`, "acknowledged, and not answered", "server_rpc_seconds"}, user: {`cause="export_hangs"`}}},
		{fault: "the server below a loop device, whose image is not in memory, and an overlay is stopped with SIGSTOP",
			inflict: useImage + "; /run/servers freeze", heal: "/run/servers thaw",
			expect: expected{image: {`result="timeout"`, dead, lies}, over: {dead, "the directory it lies on, /mnt/hard/lower, is on /mnt/hard"}}},
	} {
		l.try(s)
	}
	l.checks = `"stat"`
	l.watch(a)
	l.try(scenario{fault: "the processes that serve SMB connections are stopped with SIGSTOP, and stat is the only check", inflict: stopServing, heal: goOnServing,
		expect: expected{a: {`result="timeout"`, `cause="export_hangs"`, "acknowledged, and not answered"}}})
	l.checks = `"statfs", "readdir"`
	l.watch(hard, image)
	l.try(scenario{fault: "the server below a loop device is stopped with SIGSTOP, and somebody reads from the device, which the checks do not",
		inflict: useImage + "; /run/servers freeze; setsid dd if=$(findmnt -no SOURCE /mnt/image) of=/dev/null bs=4k skip=1000 count=1 </dev/null >/run/read 2>&1 &", heal: "/run/servers thaw",
		expect: expected{image: {`result="error"`, dead, "requests are in flight", lies}}, within: patience})
	l.timeout = "14s"
	l.watch(smb, hard)
	l.try(scenario{fault: "the server is killed, and the timeout is longer than the client's own", inflict: "/run/servers stop", heal: "/run/servers start",
		expect: expected{smb: {`result="error"`, `errno="EHOSTDOWN"|errno="EAGAIN"`, dead}, hard: {`result="timeout"`, dead}}, within: patience})
	l.write("layers")
}
