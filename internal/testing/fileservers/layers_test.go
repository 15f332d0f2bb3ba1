//go:build !race

package fileservers

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// setupLayers has file systems that lie on SMB mounts, a 9P export among them, mounts of another
// user, and two mounts of servers at different ports of one address.
const setupLayers = `set -e
mkdir -p /mnt/image /mnt/over /mnt/user /mnt/a /mnt/b /mnt/hard/lower /srv/empty /mnt/hard/crypt /mnt/crypt /mnt/9p-hard /mnt/9p-loose /mnt/9p-user
truncate -s 8M /mnt/hard/disk.img
mkfs.ext4 -q /mnt/hard/disk.img
mount -o loop /mnt/hard/disk.img /mnt/image
echo data >/mnt/hard/lower/file
mount -t overlay overlay -o lowerdir=/mnt/hard/lower:/srv/empty /mnt/over
signature=$(printf secret | ecryptfs-add-passphrase - | grep -o '[0-9a-f]\{16\}' | head -n 1)
mount -i -t ecryptfs /mnt/hard/crypt /mnt/crypt -o ecryptfs_sig=$signature,ecryptfs_cipher=aes,ecryptfs_key_bytes=16
printf 'right\nright\n' | smbpasswd -c /srv/smb.conf -s -a daemon
` + mountUser + `
mount -t cifs //10.9.0.4/data /mnt/a -o username=root,pass=right,nosharesock,echo_interval=5
mount -t cifs //10.9.0.4/more /mnt/b -o port=4450,username=root,pass=right,nosharesock,echo_interval=5
kill -KILL $(pidof diod); while pidof diod >/dev/null; do sleep 0.1; done
/run/servers start-diod # which sees /mnt/hard now
sleep 1
mount -t 9p 10.9.0.1 /mnt/9p-hard -o trans=tcp,port=5640,aname=/mnt/hard,version=9p2000.L,cache=none,uname=root,access=user
mount -t 9p 10.9.0.1 /mnt/9p-loose -o trans=tcp,port=5640,aname=/srv/nine,version=9p2000.L,cache=loose,uname=root,access=user
mkdir /mnt/hard/below
mount -t tmpfs none /mnt/hard/below
mount -t 9p 10.9.0.1 /mnt/9p-user -o trans=tcp,port=5640,aname=/srv/more,version=9p2000.L,cache=none,uname=daemon,access=any,dfltuid=1,dfltgid=1
`

const mountUser = "mount -t cifs //10.9.0.1/more /mnt/user -o username=daemon,pass=right,nosharesock,echo_interval=5"

func TestCauses_OfWhatLiesOnSMB(t *testing.T) {
	family(t, "layers")
	base := smbBase()
	base.Packages = append(base.Packages, "ecryptfs-utils")
	l := inMachine(t, base, smbModules+" xt_tcpudp loop overlay cbc xts algif_skcipher ecryptfs")
	l.shell(setupSMB)
	l.shell(setupLayers)
	const image, over, user, a, b = "/mnt/image", "/mnt/over", "/mnt/user", "/mnt/a", "/mnt/b"
	const ninePHard, ninePUser, ninePLoose, crypt, below = "/mnt/9p-hard", "/mnt/9p-user", "/mnt/9p-loose", "/mnt/crypt", "/mnt/hard/below"
	l.checks, l.ignoreFS = `"statfs", "readdir", "device"`, "[]"
	l.watch(smb, hard, image, over, crypt, user, a, b, ninePHard, ninePUser, ninePLoose, below)
	l.locate("10.9.0.3", 4450)
	l.locate("10.9.0.4", 4450)
	const (
		stopServing = "for pid in $(pgrep smbd); do [ $pid = $(pgrep -o smbd) ] || kill -STOP $pid || true; done"
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
		{fault: "the root of a share, which is exported by 9P, too, gets mode 0", inflict: "chmod 0 /srv/more",
			// smbd may have told the client that the share is deleted. Then Linux 6.1 gives EAGAIN for good.
			heal:   "chmod 755 /srv/more; for i in $(seq 20); do ls /mnt/user && exit; sleep 0.5; done; umount -l /mnt/user; " + mountUser,
			expect: expected{user: {`result="denied"`, `cause="permission"`}, ninePUser: {`result="ok"`, "readdir was left out: EACCES"}, a: {`result="ok"`}}},
		{fault: "the SMB server below what a 9P server exports is stopped with SIGSTOP", inflict: "kill -STOP $(pidof smbd)", heal: "kill -CONT $(pidof smbd)",
			expect: expected{ninePHard: {`cause="export_hangs"`, "server_rpc_seconds"}, ninePUser: {`result="ok"`}, hard: {dead}}},
		{fault: "one of two ports of a server's address is cut off", inflict: port4450("I"), heal: port4450("D"),
			expect: expected{b: {`cause="server_unreachable"`, "10.9.0.4:4450"}, a: {`result="ok"`}}},
		{fault: "the processes that serve SMB connections are stopped with SIGSTOP, and the one that takes new ones is not",
			inflict: stopServing, heal: goOnServing,
			expect: expected{a: {`cause="export_hangs"`, "acknowledged, and not answered", "server_rpc_seconds"}, user: {`cause="export_hangs"`}}},
		{fault: "the server below a loop device, whose image is not in memory, an overlay and eCryptfs is stopped with SIGSTOP",
			inflict: useImage + "; /run/servers freeze", heal: "/run/servers thaw",
			expect: expected{image: {`result="timeout"`, dead, lies}, over: {dead, "the directory it lies on, /mnt/hard/lower, is on /mnt/hard"},
				crypt: {dead, "the directory it lies on, /mnt/hard/crypt, is on /mnt/hard"},
				below: {dead}, ninePLoose: {dead, "10.9.0.1:5640 is acknowledged, and not answered"}}},
		{fault: "packets from the servers are dropped for so long that the clients connect anew", inflict: "/run/net drop", heal: "/run/net undrop", stays: 40 * time.Second,
			expect: expected{smb: {`cause="server_unreachable"`}, hard: {`cause="server_unreachable"`}, ninePLoose: {`cause="server_unreachable"`}, below: {`cause="server_unreachable"`}}},
	} {
		l.try(s)
	}
	l.checks = `"stat"`
	l.watch(a)
	l.try(scenario{fault: "the processes that serve SMB connections are stopped with SIGSTOP, and stat is the only check", inflict: stopServing, heal: goOnServing,
		expect: expected{a: {`result="timeout"|result="stuck"`, `cause="export_hangs"`, "acknowledged, and not answered"}}})
	l.checks = `"statfs", "readdir"`
	l.watch(hard, image)
	l.try(scenario{fault: "the server below a loop device is stopped with SIGSTOP, and somebody reads from the device, which the checks do not",
		// findmnt would wait for the image, too.
		inflict: useImage + "; device=$(findmnt -no SOURCE /mnt/image); /run/servers freeze; setsid dd if=$device of=/dev/null bs=4k skip=1000 count=1 </dev/null >/run/read 2>&1 &", heal: "/run/servers thaw",
		expect: expected{image: {`result="error"`, dead, "requests are in flight", lies}}, within: 4 * interval})
	l.timeout = "14s"
	l.watch(smb, hard)
	l.try(scenario{fault: "the server is killed, and the timeout is longer than the client's own", inflict: "/run/servers stop", heal: "/run/servers start",
		expect: expected{smb: {`result="error"`, `errno="EHOSTDOWN"|errno="EAGAIN"`, dead}, hard: {`result="timeout"`, dead}}, within: patience})
	l.try(scenario{fault: "the server is stopped with SIGSTOP, and the timeout is longer than the client's own", inflict: "/run/servers freeze", heal: "/run/servers thaw",
		expect: expected{smb: {dead}, hard: {dead}}, within: patience})
	l.write("layers")
}

// A hundred mounts of five servers that are well have each server asked once, and then, with the
// minute, once more at most; NEGOTIATE is a connection of its own.
func TestMounts_OfOneServerHaveItAskedOnce(t *testing.T) {
	family(t, "layers")
	l := inMachine(t, smbBase(), smbModules)
	l.shell(setupSMB)
	l.shell(`umount /mnt/bind /mnt/smb /mnt/hard /mnt/more /mnt/dfs
		for i in $(seq 20); do printf '%s\n' "[m$i]" 'path = /srv/more'; done >>/srv/smb.conf; smbcontrol -s /srv/smb.conf smbd reload-config`)
	servers := []int{1, 3, 4, 5, 6}
	for _, server := range servers {
		l.shell(fmt.Sprintf(`set -e; for i in $(seq 20); do mkdir -p /mnt/%[1]d-$i; mount -t cifs //10.9.0.%[1]d/m$i /mnt/%[1]d-$i -o username=root,pass=right; done`, server))
	}
	number := func(script string) int {
		t.Helper()
		n, err := strconv.Atoi(l.shell(script))
		require.NoError(t, err)
		return n
	}
	opened := func() int {
		return number(`ip netns exec server cat /proc/net/snmp | awk '/^Tcp:/ && !names {names = 1; for (i = 1; i <= NF; i++) if ($i == "PassiveOpens") at = i; next} /^Tcp:/ {print $at}'`)
	}
	before := opened()
	l.shell(fmt.Sprintf(gathers, "30s", l.checks, `slow_threshold = "30s"`, "", l.program)) // of a hundred on one CPU some are slow
	const well = `grep -c '^mountstat,.*result="ok"' /run/metrics || true`
	const spent = "cat /proc/$(cat /run/vfsprobe.pid)/stat | awk '{print $14 + $15 + $16 + $17}'" // ticks, those of helpers included
	const rounds = 4
	var asked []string
	for round := range rounds {
		began := number(spent)
		l.shell(fmt.Sprintf("echo >/run/gathers; for i in $(seq 300); do [ $(%s) -ge %d ] && exit; sleep 0.1; done", well, 100*(round+1)))
		assert.Equal(t, 100*(round+1), number(well))
		asked = append(asked, fmt.Sprintf("%d questions, %d ticks of CPU", opened()-before, number(spent)-began))
	}
	t.Log("after each gather: " + strings.Join(asked, "; "))
	assert.GreaterOrEqual(t, opened()-before, len(servers))
	assert.LessOrEqual(t, opened()-before, rounds*len(servers), "each at most once in a gather")
}
