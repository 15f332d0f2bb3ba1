package fileserver

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// freePort is one that nobody listens at.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return netip.MustParseAddrPort(listener.Addr().String())
}

// run starts a server, and stops it at the end.
func run(t *testing.T, at netip.AddrPort, name string, arguments ...string) *os.Process {
	t.Helper()
	command := exec.Command(name, arguments...)
	command.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Signal(unix.SIGCONT)
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", at.String())
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 30*time.Second, 50*time.Millisecond, "%s does not listen", name)
	return command.Process
}

func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("there is no %s", program)
	}
	return path
}

func startSamba(t *testing.T, at netip.AddrPort) *os.Process {
	t.Helper()
	smbd, dir := need(t, "smbd"), t.TempDir()
	configuration := "[global]\nserver role = standalone server\nbind interfaces only = yes\ninterfaces = 127.0.0.1\n" +
		fmt.Sprintf("smb ports = %d\nlog file = %s/log\n", at.Port(), dir)
	for _, option := range []string{"private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir"} {
		configuration += fmt.Sprintf("%s = %s\n", option, filepath.Join(dir, option))
		require.NoError(t, os.Mkdir(filepath.Join(dir, option), 0o755))
	}
	file := filepath.Join(dir, "smb.conf")
	require.NoError(t, os.WriteFile(file, []byte(configuration), 0o600))
	return run(t, at, smbd, "-F", "--no-process-group", "-s", file)
}

func startDiod(t *testing.T, at netip.AddrPort) *os.Process {
	t.Helper()
	return run(t, at, need(t, "diod"), "-f", "-n", "-l", at.String(), "-e", t.TempDir(), "-c", "/dev/null")
}

// Samba answers before anybody logs in, and so does diod.
func TestAsker_RealServers(t *testing.T) {
	for service, start := range map[serverpool.Service]func(*testing.T, netip.AddrPort) *os.Process{
		serverpool.SMB: startSamba, serverpool.NineP: startDiod,
	} {
		t.Run(string(service), func(t *testing.T) {
			at := freePort(t)
			process := start(t, at)
			a := ask(service, at, 10*time.Second)
			assert.True(t, a.Answered(), "%+v", a)
			t.Logf("it answered in %v", a.Elapsed)
			for _, other := range []serverpool.Service{serverpool.SMB, serverpool.NineP, serverpool.CephMon} {
				if other != service {
					assert.True(t, ask(other, at, time.Second).Broken(), "it is no %s server", other)
				}
			}
			require.NoError(t, process.Signal(unix.SIGSTOP))
			a = ask(service, at, time.Second)
			assert.Equal(t, "ETIMEDOUT", a.Errno)
			assert.True(t, a.Reached)
			require.NoError(t, process.Signal(unix.SIGCONT))
			assert.Eventually(t, func() bool { return ask(service, at, 10*time.Second).Answered() }, 30*time.Second, 100*time.Millisecond)
		})
	}
}
