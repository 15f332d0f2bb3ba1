package prober_test

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

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
	"github.com/vfsprobe/vfsprobe/internal/testing/sandbox"
)

// newCalls are those newer than Linux 3.10 that the prober makes. Sandboxes of their time
// do not know of them.
func newCalls() map[string]uint32 {
	return map[string]uint32{"seccomp": unix.SYS_SECCOMP, "close_range": unix.SYS_CLOSE_RANGE, "statx": unix.SYS_STATX}
}

// Whatever a sandbox makes of a system call that it does not know: the rest works. The one
// who is in it is this test again, in a process of its own.
func TestProber_WorksInASandboxThatKnowsNoNewCalls(t *testing.T) {
	actions := sandbox.Actions()
	if what := os.Getenv("PROBER_TEST_REFUSED"); what != "" {
		name, action, _ := strings.Cut(what, " ")
		require.NoError(t, sandbox.Enter(actions[action], newCalls()[name]))
		log := journal.New(t)
		p := prober.New(prober.Options{Warnf: log.Warnf})
		defer p.Close()
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		require.NoError(t, os.WriteFile(file, []byte("x"), 0o640))
		require.NoError(t, os.Chown(file, 4711, 4712))
		for range 2 {
			plan := &prober.Plan{Timeout: time.Minute}
			found := plan.Add(prober.Statx(prober.CWD(), file, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS))
			opened := plan.OpenRegular(prober.OpenPath(prober.CWD(), file, 0), prober.Open(prober.CWD(), file, unix.O_RDONLY, 0))
			if os.Geteuid() == 0 {
				plan.BecomeOwner(found)
			}
			uid := plan.Add(prober.Call("getuid", unix.SYS_GETUID))
			r := p.Run(prober.Check{Key: file, Plan: plan})
			require.Equal(t, prober.Done, r.Outcome, "%v", &r)
			require.Nil(t, r.Failed(), "%v", &r)
			st := r.Step(found).Statx()
			require.NotNil(t, st)
			assert.Equal(t, []uint32{4711, 4712, unix.S_IFREG | 0o640, 1}, []uint32{st.Uid, st.Gid, uint32(st.Mode), uint32(st.Size)})
			var own unix.Stat_t
			require.NoError(t, unix.Stat(file, &own))
			assert.Equal(t, []uint32{unix.Major(own.Dev), unix.Minor(own.Dev)}, []uint32{st.Dev_major, st.Dev_minor})
			assert.Equal(t, own.Ino, st.Ino)
			assert.NotNil(t, r.Step(opened))
			if os.Geteuid() == 0 {
				assert.EqualValues(t, 4711, r.Step(uid).Result)
			}
		}
		assert.LessOrEqual(t, len(log.About("")), 1, "said once")
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("changing a file's owner takes root")
	}
	for call := range newCalls() {
		for action := range actions {
			t.Run(call+" "+action, func(t *testing.T) {
				command := exec.Command("/proc/self/exe", "-test.run=^TestProber_WorksInASandboxThatKnowsNoNewCalls$", "-test.v")
				command.Env = append(os.Environ(), "PROBER_TEST_REFUSED="+call+" "+action)
				out, err := command.CombinedOutput()
				require.NoError(t, err, "%s", out)
			})
		}
	}
}
