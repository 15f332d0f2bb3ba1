package e2e

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// The kernel can't freeze a process that waits in a mount and survives SIGKILL, as a
// stuck helper does, and gives up to suspend. All others have been frozen meanwhile.
func TestAStuckHelperKeepsTheMachineFromSuspending(t *testing.T) {
	if os.Getenv(binaryVariable) == "" {
		t.Skip("a virtual machine is needed: make test-nfs RUN=cgroups-v2")
	}
	faultfs.Require(t)
	hung, healthy := faultfs.New(t), faultfs.New(t)
	p := plugin(t)
	hung.Silence()
	p.trigger()
	before := p.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
	write(t, "/sys/power", "pm_freeze_timeout", "2000") // ms
	require.ErrorIs(t, os.WriteFile("/sys/power/state", []byte("freeze"), 0), unix.EBUSY)
	p.trigger()
	p.until("^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
	p.trigger()
	after := p.until("^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
	assert.Equal(t, field(t, before, "stuck_pid"), field(t, after, "stuck_pid"))
	assert.GreaterOrEqual(t, field(t, after, "hung_seconds"), field(t, before, "hung_seconds")+1)
	p.until("^mountstat_summary ", "stuck=1i", "faults=1i")
	hung.Abort()
}
