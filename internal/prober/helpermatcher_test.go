package prober_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// Any user can name processes like helpers. If they were taken for stuck helpers
// of an earlier run, he could keep file systems from being checked.
func TestHelperMatcher_AProcessThatIsOnlyNamedLikeAHelperIsNone(t *testing.T) {
	faultfs.Require(t)
	var names []string
	t.Run("genuine", func(t *testing.T) { names = helperNames(t) })
	require.Len(t, names, 4)
	dir, err := os.MkdirTemp("", "spoof") // t.TempDir is below a directory for root alone
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	content, err := os.ReadFile(sleep)
	require.NoError(t, err)
	var paths []string
	for _, name := range names {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o755))
		paths = append(paths, path)
	}
	setuid := filepath.Join(dir, "setuid")
	require.NoError(t, os.Mkdir(setuid, 0o755))
	setuid = filepath.Join(setuid, names[0])
	require.NoError(t, os.WriteFile(setuid, content, 0o755))
	require.NoError(t, os.Chmod(setuid, 0o4755))

	user := []string{"setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"}
	for what, prefix := range map[string][]string{
		"of a user's":                              user,
		"of a user's with no_new_privs":            append(slices.Clone(user), "--no-new-privs"),
		"of root's, as sudo asking for a password": {"env"},
		"of root's of a user namespace": append(slices.Clone(user), "unshare", "--user", "--map-root-user",
			"setpriv", "--no-new-privs", "--inh-caps=+kill"),
		"of root's of a container": {"unshare", "--pid", "--fork", "setpriv", "--no-new-privs"},
		"set-uid root":             user,
	} {
		t.Run(what, func(t *testing.T) {
			programs := paths
			if what == "set-uid root" {
				programs = []string{setuid}
			}
			before := named(t)
			for _, program := range programs {
				command := exec.Command(prefix[0], append(slices.Clone(prefix[1:]), program, "60")...)
				command.Stderr = os.Stderr
				require.NoError(t, command.Start())
				t.Cleanup(func() {
					for pid := range named(t) {
						if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); exe == program {
							_ = unix.Kill(pid, unix.SIGKILL)
						}
					}
					_ = command.Process.Kill()
					_ = command.Wait()
				})
			}
			eventually(t, "processes named like helpers", func() bool {
				started := named(t)
				maps.DeleteFunc(started, func(pid int, _ string) bool { return before[pid] != "" })
				return len(started) == len(programs)
			})
			matcher, err := prober.NewHelperMatcher("/proc")
			require.NoError(t, err)
			for pid, comm := range named(t) {
				if _, other := before[pid]; !other { // another test's may be there
					assert.False(t, matcher.IsHelper(pid), "%d %v", pid, comm)
				}
			}

			p := start(t, prober.Options{MaxStuck: 4})
			for key := range len(names) {
				c := check("/")
				c.Key = fmt.Sprint(key)
				report := p.Run(patient(c))
				assert.Equal(t, prober.Done, report.Outcome, "%v", &report)
			}
			assert.Zero(t, p.Stats().Stuck)
		})
	}
}

// helperNames are those of the helpers for the keys "0" to "3".
func helperNames(t *testing.T) (names []string) {
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	matcher, err := prober.NewHelperMatcher("/proc")
	require.NoError(t, err)
	defer func() {
		if t.Failed() {
			t.Logf("%+v, %v", p.Stats(), comms(t))
		}
	}()
	for key := range 4 {
		fs.Pause()
		c := check(fs.Dir)
		c.Key = fmt.Sprint(key)
		reports := make(chan prober.Report, 1)
		p.Submit(patient(c), func(r prober.Report) { reports <- r })
		eventually(t, "a helper", func() bool {
			for _, pid := range children(t, serverOf(t, os.Getpid())) {
				if comm := comms(t)[pid]; strings.HasPrefix(comm, prober.HelperPrefix) {
					assert.True(t, matcher.IsHelper(pid))
					names = append(names, comm)
					return true
				}
			}
			return false
		})
		fs.Heal()
		<-reports
	}
	return names
}

// named are the processes with a helper's name.
func named(t *testing.T) map[int]string {
	found := comms(t)
	for pid, comm := range found {
		if !strings.HasPrefix(comm, prober.HelperPrefix) {
			delete(found, pid)
		}
	}
	return found
}

// What a helper may do, by what its plan asks for.
func TestHelperMatcher_HelpersKeepTheCapabilitiesTheirPlansNeed(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	p := start(t, prober.Options{})
	fs := faultfs.New(t)
	look := func(fs *faultfs.FS, plan *prober.Plan) string {
		fs.Pause()
		reports := make(chan prober.Report, 1)
		ticket := p.Submit(patient(prober.Check{Key: fs.Dir, Plan: plan}), func(r prober.Report) { reports <- r })
		var sets string
		eventually(t, "a helper that waits", func() bool {
			progress, found := p.Progress(ticket)
			if !found || progress.HangsIn != "fstatfs" || progress.PID == 0 {
				return false
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", progress.PID))
			require.NoError(t, err)
			_, rest, _ := strings.Cut(string(status), "CapInh:")
			sets, _, _ = strings.Cut(rest, "CapBnd:")
			return true
		})
		fs.Heal()
		fs.Heal()
		<-reports
		return strings.Join(strings.Fields(sets), " ")
	}
	plain := &prober.Plan{Timeout: timeout}
	reach(plain, fs.Dir)
	permitted := func(alone string) string {
		if forkserver.Sharing {
			return "00000000002c00e6" // the server's
		}
		return alone
	}
	assert.Equal(t, "0000000000000020 CapPrm: "+permitted("0000000000000006")+" CapEff: 0000000000000006", look(fs, plain),
		"CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH")
	assert.Equal(t, "0000000000000020 CapPrm: 0000000000000000 CapEff: 0000000000000000", look(fs, statfsAs(4711, fs.Dir)))
	named := &prober.Plan{Timeout: timeout}
	named.Add(prober.Statx(prober.CWD(), "/home/user/proc/1/root", 0, unix.STATX_TYPE).WithoutOutput().Optional())
	reach(named, fs.Dir)
	assert.Equal(t, "0000000000000020 CapPrm: "+permitted("0000000000000006")+" CapEff: 0000000000000006", look(fs, named), "a mount point can have any name")
	below := &prober.Plan{Timeout: timeout}
	below.SearchBelow("/proc/1/root")
	reach(below, fs.Dir)
	assert.Equal(t, "0000000000000020 CapPrm: "+permitted("0000000000080006")+" CapEff: 0000000000080006", look(fs, below), "and CAP_SYS_PTRACE")
	other := &prober.Plan{Timeout: timeout}
	other.EnterMountNS("/proc/self/ns/mnt")
	reach(other, fs.Dir)
	assert.Equal(t, "0000000000000020 CapPrm: "+permitted("00000000002c0006")+" CapEff: 00000000002c0006", look(fs, other),
		"and CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN")
	own := func() string {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", serverOf(t, os.Getpid())))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(status), "CapPrm:")
		sets, _, _ := strings.Cut(rest, "CapBnd:")
		return strings.Join(strings.Fields(sets), " ")
	}
	if forkserver.Sharing {
		assert.Equal(t, "00000000002c00e6 CapEff: 0000000000000006", own(), "the server's: permitted are CAP_KILL, CAP_SETGID, CAP_SETUID, too")
	}
	fs.Pause()
	reports := make(chan prober.Report, 1)
	ticket := p.Submit(patient(prober.Check{Key: fs.Dir, Plan: statfsAs(4711, fs.Dir)}), func(r prober.Report) { reports <- r })
	eventually(t, "a helper of another user", func() bool { r, _ := p.Progress(ticket); return r.PID != 0 })
	assert.Equal(t, "00000000002c00e6 CapEff: 0000000000000026", own(), "and in effect is CAP_KILL, to kill it")
	beside := faultfs.New(t)
	besides := &prober.Plan{Timeout: timeout}
	reach(besides, beside.Dir)
	assert.Equal(t, "0000000000000020 CapPrm: "+permitted("0000000000000006")+" CapEff: 0000000000000006", look(beside, besides), "not in those beside it")
	fs.Heal()
	<-reports
}

// A helper that shares the server's memory has less in effect than the server. What
// runs as the same user and may do less still must not get at it.
func TestHelperMatcher_WhoMayNotTraceTheServerMayTraceNoHelper(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	if !forkserver.Sharing {
		t.Skip("helpers have memory of their own in this build")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skipf("dropping capabilities: %v", err)
	}
	// It may do what is in effect in the helper.
	limited := func(arguments ...string) *exec.Cmd {
		return exec.Command("setpriv", append([]string{"--inh-caps=-all", "--bounding-set=-all,+dac_override,+dac_read_search"}, arguments...)...)
	}
	traces := func(pid int) error { return limited("cat", fmt.Sprintf("/proc/%d/environ", pid)).Run() }

	other := limited("sleep", "60")
	require.NoError(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	eventually(t, "its like can be traced", func() bool { return traces(other.Process.Pid) == nil })

	p := start(t, prober.Options{})
	plain := func(dir string) *prober.Plan {
		plan := &prober.Plan{}
		reach(plan, dir)
		return plan
	}
	for name, plan := range map[string]func(dir string) *prober.Plan{
		"itself":                      plain,
		"itself without capabilities": func(dir string) *prober.Plan { return statfsAs(0, dir) },
	} {
		fs := faultfs.New(t)
		fs.Pause()
		helper, reports := hang(t, p, name, plan(fs.Dir))
		assert.Error(t, traces(helper), name)
		fs.Heal()
		<-reports
	}
	assert.Error(t, traces(serverOf(t, os.Getpid())))
}
