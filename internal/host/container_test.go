package host_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// In a PID namespace of its own a process is in a container: one of an application, unless
// process 1 there is systemd.
func TestHost_Container(t *testing.T) {
	h, _ := newHost(t, nil)
	if answer := os.Getenv("VFSPROBE_TEST_CONTAINER"); answer != "" {
		_ = os.WriteFile(answer, []byte{'0' + byte(h.Container())}, 0o600)
		return
	}
	faultfs.Require(t)
	self, err := os.Executable()
	assert.NoError(t, err)
	within := func(init string, arguments ...string) string {
		answer := t.TempDir() + "/answer"
		script := init + `; "$0" -test.run '^TestHost_Container$'`
		command := exec.Command("unshare", append(arguments, "sh", "-c", script, self)...)
		command.Env = append(os.Environ(), "VFSPROBE_TEST_CONTAINER="+answer)
		out, err := command.CombinedOutput()
		assert.NoError(t, err, "%s", out)
		content, _ := os.ReadFile(answer)
		return strings.TrimSpace(string(content))
	}
	number := func(c host.Container) string { return string('0' + byte(c)) }
	assert.Equal(t, number(host.ApplicationContainer), within("true", "--pid", "--fork", "--mount-proc"))
	assert.Equal(t, number(host.SystemContainer), within("echo systemd >/proc/self/comm", "--pid", "--fork", "--mount-proc"))
	assert.Equal(t, number(host.ApplicationContainer), within("true", "--cgroup"))
	assert.Equal(t, number(h.Container()), within("true", "--mount"), "mounts of its own make no container: systemd's PrivateMounts=")
}
