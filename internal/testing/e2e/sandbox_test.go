package e2e

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/sandbox"
)

// sandboxed names the case of a process of this test which is to execute its arguments in a
// sandbox.
const sandboxed = "VFSPROBE_TEST_SANDBOXED"

// newCalls are the system calls that came with a kernel and later, syscalls(2).
func newCalls(since string) []uint32 {
	all := []uint32{unix.SYS_LISTMOUNT, unix.SYS_STATMOUNT, unix.SYS_CLOSE_RANGE, unix.SYS_OPENAT2, unix.SYS_FACCESSAT2, unix.SYS_EPOLL_PWAIT2, unix.SYS_CLONE3}
	switch since {
	case "3.11":
		all = append(all, unix.SYS_SECCOMP, unix.SYS_BPF, unix.SYS_GETRANDOM, unix.SYS_MEMFD_CREATE, unix.SYS_MLOCK2, unix.SYS_COPY_FILE_RANGE, unix.SYS_STATX)
		fallthrough
	case "4.19":
		all = append(all, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL)
	}
	return all
}

// Old kernels lack system calls, sandboxes of old know none of the new ones, and a unit's
// SystemCallFilter=@system-service kills a process that calls seccomp(2) or bpf(2). The rest works.
func TestVfsprobe_WorksWithoutNewCalls(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		cases := map[string]struct {
			action string
			calls  []uint32
		}{
			"Linux 3.10":           {"ENOSYS", newCalls("3.11")},
			"Linux 4.18":           {"ENOSYS", newCalls("4.19")},
			"Linux 5.4":            {"ENOSYS", newCalls("5.5")},
			"a container":          {"EPERM", newCalls("3.11")},
			"a unit with a filter": {"kill", []uint32{unix.SYS_SECCOMP, unix.SYS_BPF, unix.SYS_STATX, unix.SYS_CLOSE_RANGE, unix.SYS_OPENAT2, unix.SYS_LISTMOUNT, unix.SYS_STATMOUNT, unix.SYS_MLOCK2}},
		}
		if what := os.Getenv(sandboxed); what != "" {
			c, command := cases[what], flag.Args()
			require.NoError(t, sandbox.Enter(sandbox.Actions()[c.action], c.calls...))
			require.NoError(t, unix.Exec(command[0], command, os.Environ()))
		}
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				run := func(arguments ...string) (*exec.Cmd, *strings.Builder) {
					vfsprobe := append([]string{"-test.run=^TestVfsprobe_WorksWithoutNewCalls$", "--", binary(t, vfsprobe), "-config", patient(t, 5*time.Second, "dentrycache", "nfslock")}, arguments...)
					command := exec.Command("/proc/self/exe", vfsprobe...)
					command.Env = append(os.Environ(), sandboxed+"="+name)
					log := new(strings.Builder)
					command.Stderr = log
					return command, log
				}
				command, log := run("-test")
				out, err := command.Output()
				require.NoError(t, err, "%s", log)
				for _, line := range []string{"mountstat,", "mountstat_summary ", "dentrycache "} {
					assert.Contains(t, "\n"+string(out), "\n"+line)
				}
				assert.Regexp(t, `(?m)^mountstat,.*path=/ .*result="(ok|slow)"`, string(out))
				assert.NotContains(t, string(out), `result="error"`)
				assert.NotContains(t, log.String(), "no mount table")
				if c.action == "kill" {
					assert.Contains(t, log.String(), "W! [vfsprobe] a sandbox kills a process that calls seccomp(2)")
					assert.Contains(t, log.String(), "a sandbox kills a process that calls bpf(2)")
				}

				command, _ = run()
				command.Stderr = nil
				p := w.startCommand(t, command)
				p.reports("/", `result="(ok|slow)"`)
				p.until("^mountstat_summary ")
				p.stop()
			})
		}
	})
}
