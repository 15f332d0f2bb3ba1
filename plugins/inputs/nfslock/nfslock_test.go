package nfslock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

func TestMain(m *testing.M) { rpchost.Main(m) }

const (
	// timeout is for locks that are to hang.
	timeout = 500 * time.Millisecond
	// unhurried is for all others: it is more than they take on a machine whose CPUs others have.
	unhurried = 20 * time.Second
)

// newInput makes an input that gives locks up when within says so, and calls none slow.
func newInput(t testing.TB, changes ...func(*NFSLock)) (*NFSLock, *journal.Journal) {
	t.Helper()
	n := inputs.Inputs["nfslock"]().(*NFSLock)
	log := journal.New(t)
	n.Log, n.Timeout, n.SlowThreshold, n.KernelLog = log, config.Duration(unhurried), config.Duration(unhurried), ""
	// The file systems of these tests are FUSE's, and pretend to be NFS, whose helpers
	// never sleep so that they are left.
	p := prober.New(prober.Options{Warnf: log.Warnf, KillAsleep: true})
	t.Cleanup(p.Close)
	n.UseHost(host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p, Log: log, MountsPatience: collect.MountsPatience}))
	for _, change := range changes {
		if change != nil {
			change(n)
		}
	}
	require.NoError(t, n.Init())
	return n, log
}

// within limits the time of locks on these mount points, or on all, and that of all servers.
func within(limit time.Duration, paths ...string) func(*NFSLock) {
	duration := config.Duration(limit)
	return func(n *NFSLock) { n.Override = append(n.Override, Override{MountPoints: paths, Timeout: &duration}) }
}

// withRoots has the input find the host's files elsewhere.
func withRoots(n *NFSLock, change func(*host.Roots)) {
	roots := n.host.Roots
	change(&roots)
	n.UseHost(host.New(host.Options{Roots: roots, Prober: n.host.Prober, Log: n.Log, MountsPatience: collect.MountsPatience}))
}

// withTable has the input take a file for the host's mount table.
func withTable(t testing.TB, n *NFSLock, table string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mountinfo"), []byte(table), 0o600))
	withRoots(n, func(r *host.Roots) { r.PID = filepath.Join("..", dir) }) // below /proc
}

// on selects mounts of any type by their mount points.
func on(paths ...string) func(*NFSLock) {
	return func(n *NFSLock) { n.MountPoints, n.FS = paths, []string{"*"} }
}

// tmpfs mounts one with a canary.
func tmpfs(t testing.TB, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	putCanary(t, dir)
	return dir
}

func putCanary(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(dir, ".nfslock-probe")
	require.NoError(t, os.WriteFile(name, nil, 0o666))
	require.NoError(t, os.Chmod(name, 0o666))
	return name
}

func at(m *collect.Metrics, path string) telegraf.Metric { return m.Tagged("nfslock", "path", path) }

// gather gathers until a mount's locks were tried: on a busy machine a check may come too late.
func gather(t testing.TB, n *NFSLock, path string) telegraf.Metric {
	t.Helper()
	for began := time.Now(); ; {
		m := at(collect.Gather(t, n), path)
		if m != nil && verdict(t, m) != "unchecked unknown" || time.Since(began) > 30*time.Second {
			return m
		}
	}
}

// gatherUntil gathers until a mount has a verdict, which may take a while after a change: a helper
// that was left waiting has its answer when the machine has time for it. A stuck one that can be
// killed counts as one that has timed out.
func gatherUntil(t testing.TB, n *NFSLock, path, want string) telegraf.Metric {
	t.Helper()
	return at(gatherAllUntil(t, n, map[string]string{path: want}), path)
}

// gatherAllUntil gathers until mounts have their verdicts, all in one gather.
func gatherAllUntil(t testing.TB, n *NFSLock, want map[string]string) *collect.Metrics {
	t.Helper()
	return collect.GatherUntil(t, n, want, func(g *collect.Metrics, path string) string {
		m := at(g, path)
		switch {
		case m == nil:
			return ""
		case strings.HasPrefix(want[path], "timeout "):
			return verdictOfHang(t, m)
		}
		return verdict(t, m)
	})
}

// verdictOfHang is the verdict on a lock that hangs, be it that its helper could be ended within the
// time that the machine takes for that, or not.
func verdictOfHang(t testing.TB, m telegraf.Metric) string {
	t.Helper()
	return strings.Replace(verdict(t, m), "stuck ", "timeout ", 1)
}

func field(t testing.TB, m telegraf.Metric, name string) any {
	t.Helper()
	require.NotNil(t, m)
	value, found := m.GetField(name)
	require.True(t, found, "no field %s in %v", name, m.Fields())
	return value
}

func text(t testing.TB, m telegraf.Metric, name string) string {
	t.Helper()
	require.NotNil(t, m)
	value, _ := m.GetField(name)
	s, _ := value.(string)
	return s
}

// verdict is what a metric says, in short.
func verdict(t testing.TB, m telegraf.Metric) string {
	t.Helper()
	return text(t, m, "result") + " " + text(t, m, "diagnosis")
}
