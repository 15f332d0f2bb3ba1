//go:build !race

package fileservers

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// setupS3 has a server of one bucket in memory. The client answers statfs by itself, and asks
// the server for what it lists and reads.
const setupS3 = `set -e
mkdir -p /mnt/s3
echo key >/run/key
echo key:secret >/run/passwd
chmod 600 /run/passwd
cat >/run/servers <<'X'
#!/bin/sh
# servers start|stop|freeze|thaw
case $1 in
start)
	ip netns exec server $(cat /run/s3.program) 10.9.0.1:9000 bucket /run/key >/run/s3.out 2>&1 &
	echo $! >/run/s3.pid
	for i in $(seq 100); do ip netns exec server ss -tln | grep -q :9000 && break; sleep 0.1; done;;
stop) kill -KILL $(cat /run/s3.pid);;
freeze) kill -STOP $(cat /run/s3.pid);;
thaw) kill -CONT $(cat /run/s3.pid);;
esac
X
chmod +x /run/servers
/run/servers start
`

// mountS3 has the client try again for a short time only, and keep nothing.
const mountS3 = `s3fs bucket /mnt/s3 -o url=http://10.9.0.1:9000,use_path_request_style,passwd_file=/run/passwd,allow_other,stat_cache_expire=1,retries=1; ls /mnt/s3`

// buildS3 builds the server, which is a module of its own.
func buildS3(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "s3")
	build := exec.Command("go", "-C", "../../../tools/s3", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

func TestCauses_OfS3(t *testing.T) {
	family(t, "s3")
	l := onThisHost(t, "s3fs")
	const path = "/mnt/s3"
	l.shell("echo " + buildS3(t) + " >/run/s3.program\n" + setupS3)
	l.shell(mountS3)
	l.override = `checks = ["statfs", "readdir"]` // without, a listing is not made: it is paid for
	l.watch(path)
	fault := func(cause string, more ...string) expected {
		return expected{path: append([]string{`cause="` + cause + `"`}, more...)}
	}
	const client = "$(pgrep -f '^s3fs ')"
	for _, s := range []scenario{
		{fault: "the server is stopped with SIGSTOP", inflict: "/run/servers freeze", heal: "/run/servers thaw", expect: fault("fuse_server_silent")},
		{fault: "packets from the server are dropped", inflict: "/run/net drop", heal: "/run/net undrop", expect: fault("fuse_server_unreachable")},
		{fault: "the server is killed", inflict: "/run/servers stop", heal: "/run/servers start", expect: fault("fuse_server_unreachable")},
		{fault: "the server refuses the access key", inflict: "echo another >/run/key", heal: "echo key >/run/key", expect: fault("login_refused", `result="denied"`)},
		{fault: "the client is stopped with SIGSTOP", inflict: "kill -STOP " + client, heal: "kill -CONT " + client, expect: fault("fuse_daemon_silent")},
		{fault: "the client is killed", inflict: "kill -KILL " + client, heal: "umount -l /mnt/s3; " + mountS3, expect: fault("fuse_daemon_dead")},
	} {
		l.try(s)
	}
	l.write("s3")
}
