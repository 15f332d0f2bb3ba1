package namespace

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m, 0, nil) }

// role is what another run of this program is to do.
const role = "VFSPROBE_TEST_ROLE"

// again runs a test of this program in namespaces below these.
func again(t *testing.T, test string, environment ...string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces take root")
	}
	command := Again("-test.run=^" + test + "$")
	command.Env = append(append(command.Env, role+"="+test), environment...)
	return command
}

func TestMain_ShowsItsOwnProcesses(t *testing.T) {
	if os.Getenv(role) != "" {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("namespaces take root")
	}
	comm, err := os.ReadFile("/proc/1/comm")
	require.NoError(t, err)
	assert.Equal(t, "exe\n", string(comm), "process 1 is a copy of the test program")
	assert.Equal(t, 1, os.Getppid())
	out, err := again(t, "TestMain_ShowsItsOwnProcesses").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestMain_SaysHowTheTestsEnded has tests fail, and die.
func TestMain_SaysHowTheTestsEnded(t *testing.T) {
	switch os.Getenv("END") {
	case "fail":
		t.Fatal("as it was told to")
	case "die":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	for end, want := range map[string]string{"fail": "as it was told to", "die": "the tests have ended: killed"} {
		out, err := again(t, "TestMain_SaysHowTheTestsEnded", "END="+end).CombinedOutput()
		assert.EqualError(t, err, "exit status 1", end)
		assert.Contains(t, string(out), want)
	}
}

// TestMain_LetsFaultsBeUndone kills all that a fault's maker is below, or its tests only.
func TestMain_LetsFaultsBeUndone(t *testing.T) {
	const fileVariable = "FILE"
	if file := os.Getenv(fileVariable); file != "" {
		guard := exec.Command("sh", "-c", "read -r line; sleep 0.2; echo undone >"+file)
		guard.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		_, err := guard.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, guard.Start())
		require.NoError(t, os.WriteFile(file, []byte("made"), 0o600))
		if os.Getenv("PANIC") != "" {
			panic("as it was told to")
		}
		time.Sleep(time.Minute)
		return
	}
	for _, killed := range []bool{false, true} {
		file := filepath.Join(t.TempDir(), "file")
		is := func(content string) func() bool {
			return func() bool {
				text, _ := os.ReadFile(file)
				return strings.TrimSpace(string(text)) == content
			}
		}
		environment := []string{fileVariable + "=" + file}
		if !killed {
			environment = append(environment, "PANIC=1")
		}
		command := again(t, "TestMain_LetsFaultsBeUndone", environment...)
		require.NoError(t, command.Start())
		if killed {
			require.Eventually(t, is("made"), 20*time.Second, 10*time.Millisecond)
			require.NoError(t, command.Process.Kill())
		}
		require.Error(t, command.Wait())
		assert.Eventually(t, is("undone"), 20*time.Second, 10*time.Millisecond, "killed: %v", killed)
	}
}
