package e2e

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// suspend tells the machine to, and to wake a few seconds later: User Mode Linux, which has no
// clock that could wake it, ends what it calls S3 at once.
func suspend(t *testing.T) error {
	t.Helper()
	write(t, "/sys/power", "pm_freeze_timeout", "2000") // ms
	if _, err := os.Stat("/sys/class/rtc/rtc0/wakealarm"); err == nil {
		write(t, "/sys/class/rtc/rtc0", "wakealarm", "+4")
	}
	return os.WriteFile("/sys/power/state", []byte("mem"), 0)
}

// The kernel can't freeze a process that waits for a FUSE daemon, whoever it is, and gives up
// to suspend (Documentation/power/freezing-of-tasks.rst). All others have been frozen
// meanwhile.
func TestVfsprobe_SuspendingBesideASilentDaemon(t *testing.T) {
	inTurn(t, func(t *testing.T, w way) {
		if os.Getenv(repositoryVariable) == "" {
			t.Skip("a virtual machine is needed: make test-nfs RUN=cgroups-v2")
		}
		faultfs.Require(t)
		for _, c := range []struct {
			name      string
			arguments []string
			silent    bool
			stuck     string // stuck_state
		}{
			{name: "nothing hangs"},
			{name: "a helper sleeps", silent: true, stuck: "asleep"},
			{name: "a helper was killed", silent: true, arguments: []string{"-kill-asleep"}, stuck: "unkillable"},
		} {
			t.Run(c.name, func(t *testing.T) {
				hung, healthy := faultfs.New(t), faultfs.New(t)
				p := plugin(t, w, c.arguments...)
				p.reports(hung.Dir, `result="ok"`)
				if !c.silent {
					err := suspend(t)
					for tries := 1; err != nil && tries < 5; tries++ { // its daemon was frozen while a helper waited for it
						err = suspend(t)
					}
					assert.NoError(t, err)
					p.reports(hung.Dir, `result="ok"`)
					return
				}
				hung.Silence()
				before := p.reports(hung.Dir, `result="stuck"`, `stuck_state="`+c.stuck+`"`)
				require.ErrorIs(t, suspend(t), unix.EBUSY)
				p.reports(healthy.Dir, `result="ok"`)
				after := p.reports(hung.Dir, `result="stuck"`)
				assert.Equal(t, field(t, before, "stuck_pid"), field(t, after, "stuck_pid"))
				assert.GreaterOrEqual(t, field(t, after, "hung_seconds"), field(t, before, "hung_seconds")+1)
				p.until("^mountstat_summary ", "stuck=1i", "faults=1i")
				hung.Abort()
			})
		}
		t.Run("somebody else waits", func(t *testing.T) {
			hung := faultfs.New(t)
			hung.Silence()
			waits := exec.Command("stat", "-f", hung.Dir)
			require.NoError(t, waits.Start())
			require.Eventually(t, func() bool { return hung.Unanswered() > 0 }, patience, 10*time.Millisecond)
			assert.ErrorIs(t, suspend(t), unix.EBUSY, "without vfsprobe it is the same")
			hung.Abort()
			_ = waits.Wait()
		})
	})
}
