package mountstat

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// What one run knows of faults, the next one goes on from.
func TestMountstat_KeepsWhatIsKnown(t *testing.T) {
	faultfs.Require(t)
	bad, well := faultfs.New(t), faultfs.New(t)
	missing := t.TempDir() + "/none"
	change := func(m *Mountstat) { m.Expected = []string{missing} }
	m, _ := newInput(t, change)
	bad.Fail(unix.EIO, faultfs.Statfs)
	collect.Gather(t, m)
	bad.Heal()
	collect.Gather(t, m)
	bad.Fail(unix.EIO, faultfs.Statfs)
	time.Sleep(100 * time.Millisecond)
	g := collect.Gather(t, m)
	before := field(t, at(g, bad.Dir), "fault_seconds_total").(float64)
	content, err := json.Marshal(m.Keep())
	require.NoError(t, err)

	m, log := newInput(t, change)
	require.NoError(t, m.Restore(content))
	time.Sleep(100 * time.Millisecond)
	g = collect.Gather(t, m)
	assert.EqualValues(t, 1, field(t, at(g, bad.Dir), "recoveries"))
	assert.GreaterOrEqual(t, field(t, at(g, bad.Dir), "fault_seconds"), 0.1)
	assert.Greater(t, field(t, at(g, bad.Dir), "fault_seconds_total"), before)
	assert.EqualValues(t, 0, field(t, at(g, well.Dir), "recoveries"))
	assert.GreaterOrEqual(t, field(t, at(g, missing), "fault_seconds"), 0.1)
	assert.Empty(t, log.about(missing), "that was said")
	bad.Heal()
	g = collect.Gather(t, m)
	assert.EqualValues(t, 2, field(t, at(g, bad.Dir), "recoveries"))

	require.Error(t, m.Restore(json.RawMessage("7")))
}

// A mount that is missing has the series that it had, also after a restart: what the
// configuration expects has no source of its own.
func TestMountstat_KeepsTheSeriesOfAMissingMount(t *testing.T) {
	faultfs.Require(t)
	dir := tmpfs(t, "", "")
	change := func(m *Mountstat) {
		only(dir)(m)
		m.Expected = []string{dir}
	}
	m, _ := newInput(t, change)
	collect.Gather(t, m)
	before := at(collect.Gather(t, m), dir)
	require.Equal(t, "ok", text(before, "result"))
	assert.Nil(t, m.Keep(), "all is well")
	require.NoError(t, unix.Unmount(dir, 0))
	require.Equal(t, "missing", text(at(collect.Gather(t, m), dir), "result"))
	content, err := json.Marshal(m.Keep())
	require.NoError(t, err)
	m, _ = newInput(t, change)
	require.NoError(t, m.Restore(content))
	after := at(collect.Gather(t, m), dir)
	require.Equal(t, "missing", text(after, "result"))
	assert.Equal(t, before.Tags(), after.Tags())
}
