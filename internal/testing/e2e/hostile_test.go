package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// plugin starts vfsprobe with the tests' configuration and waits for its first
// gather.
func plugin(t *testing.T, w way, arguments ...string) *atWork {
	t.Helper()
	p := w.start(t, append([]string{"-config", inputs(t)}, arguments...)...)
	p.says("^mountstat,", `result="ok"`)
	p.until("^mountstat_summary ")
	return p
}

// stopTimeout is that of checks while vfsprobe, or a part of it, is stopped: for longer, or for a part of
// it that leaves enough to a machine that is busy.
const stopTimeout = 3 * time.Second

// stoppable is a vfsprobe whose checks have that time.
func stoppable(t *testing.T, w way) *atWork {
	t.Helper()
	p := w.start(t, "-config", patient(t, stopTimeout))
	p.says("^mountstat,", `result="(ok|slow)"`)
	p.until("^mountstat_summary ")
	return p
}

// beginsToWait pauses a file system, and has a gather begin whose helper waits for that, with time left.
func (p *atWork) beginsToWait(fs *faultfs.FS, server int) {
	p.t.Helper()
	for began := time.Now(); ; {
		fs.Pause()
		asked := time.Now()
		p.waitingHelper(server)
		if time.Since(asked) < stopTimeout/2 {
			return
		}
		require.Less(p.t, time.Since(began), patience, "this machine is too busy")
		fs.Heal()
		p.reports(fs.Dir, `result="(ok|slow)"`)
		p.until("^mountstat_summary ")
	}
}

func TestVfsprobe_AForkServerThatIsThawedLosesNothing(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		p := stoppable(t, w)
		server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
		for range 10 {
			require.NoError(t, unix.Kill(server, unix.SIGSTOP))
			p.trigger()
			time.Sleep(stopTimeout / 10)
			require.NoError(t, unix.Kill(server, unix.SIGCONT))
			p.until("^mountstat,", "path=/ ", `result="(ok|slow)"`)
		}
		p.until("^mountstat_summary ")
		p.trigger()
		p.until("^vfsprobe ", "fork_server_restarts=0i", "helpers_killed=0i")
	})
}

// As a frozen cgroup, a debugger or a suspended machine would: for longer than
// all timeouts, in the middle of a gather. What was answered is not a fault.
func TestVfsprobe_ThawedReportsNoFault(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		fs := faultfs.New(t)
		p := stoppable(t, w)
		p.reports(fs.Dir, `result="(ok|slow)"`)
		p.until("^mountstat_summary ")
		server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
		for range 2 {
			p.beginsToWait(fs, server)
			require.NoError(t, p.plugin.Process.Signal(syscall.SIGSTOP))
			fs.Heal()
			time.Sleep(stopTimeout * 4 / 3) // its time is up
			require.NoError(t, p.plugin.Process.Signal(syscall.SIGCONT))
			p.until("^mountstat,", "path="+fs.Dir+" ", `result="(ok|slow)"`)
			p.until("^mountstat_summary ", "faults=0i")
		}
		p.trigger()
		p.until("^vfsprobe ", "fork_server_restarts=0i")
	})
}

// As "docker pause" does: the helpers stop as well, in the middle of a check.
func TestContainer_PausedReportsNoFault(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		group := cgroup(t, "freezer")
		fs := faultfs.New(t)
		p := stoppable(t, w)
		p.reports(fs.Dir, `result="(ok|slow)"`)
		p.until("^mountstat_summary ")
		server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
		group.take(t, p.plugin.Process.Pid)
		group.take(t, server)
		t.Cleanup(func() { group.freeze(t, "THAWED") })
		for range 2 {
			p.beginsToWait(fs, server)
			group.freeze(t, "FROZEN")
			fs.Heal()
			time.Sleep(stopTimeout * 4 / 3) // its time is up
			group.freeze(t, "THAWED")
			p.until("^mountstat,", "path="+fs.Dir+" ", `result="(ok|slow)"`)
			p.until("^mountstat_summary ", "faults=0i")
		}
	})
}

func write(t *testing.T, dir, file, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0))
}

// state is the letter of proc_pid_stat(5), or 0 of a process that is gone.
func state(pid int) byte {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, found := strings.Cut(string(stat), ") ")
	if !found {
		return 0
	}
	return rest[0]
}

func running(pid int) bool { s := state(pid); return s != 0 && s != 'Z' && s != 'X' }

func TestVfsprobe_TheOOMKillerTakesAHelperOrTheForkServer(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		group := cgroup(t, "memory")
		// Helpers become the owner of the second.
		mounts := []*faultfs.FS{faultfs.New(t), faultfs.NewWith(t, t.TempDir(), faultfs.Options{UID: 4711, GID: 4711})}
		command := exec.Command(binary(t, vfsprobe), "-config", patient(t, 20*time.Second))
		command.Env = append(os.Environ(), "HOST_SYS="+t.TempDir()) // where no cgroups are that a helper could be moved to
		p := w.startCommand(t, command)
		p.trigger()
		p.until("^mountstat_summary ", "faults=0i")
		kills := 0
		kill := func(victim func(server int) int) {
			t.Helper()
			server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
			group.take(t, server)
			group.outOfMemory(t, victim(server))
			kills++
		}
		healthyAgain := func(fs *faultfs.FS) {
			t.Helper()
			p.reports(fs.Dir, `result="ok"`)
			p.says("^vfsprobe ", fmt.Sprintf("fork_server_restarts=%di", kills))
		}
		for _, fs := range mounts {
			// Whose memory the helper shares, the kernel kills as well.
			kill(func(server int) int {
				fs.Pause()
				return p.waitingHelper(server)
			})
			p.until("^mountstat,", "path="+fs.Dir+" ", `result="unchecked"`, "the fork server ended while the check was under way")
			p.until("^mountstat_summary ", "faults=0i")
			fs.Heal()
			healthyAgain(fs)
		}
		kill(func(server int) int { return server })
		healthyAgain(mounts[0])
	})
}

// waitingHelper triggers gathers until a helper sleeps for a while: others wait for a busy CPU. What is
// triggered while a gather is under way is left out.
func (p *atWork) waitingHelper(server int) (helper int) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		before := helper
		if helper == 0 {
			p.trigger()
		}
		helper = 0
		for _, pid := range helpersOf(server) {
			if s := state(pid); s == 'S' || s == 'D' {
				helper = pid
			}
		}
		return helper != 0 && helper == before
	}, patience, 50*time.Millisecond)
	return helper
}

func helpersOf(server int) (pids []int) {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", server, server))
	for _, word := range strings.Fields(string(content)) {
		if pid, err := strconv.Atoi(word); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// The cgroup holds the fork server, or the plugin with all its threads as well, as
// TasksMax= of a service does.
func TestVfsprobe_SaysOnceThatItsPidsCgroupIsFull(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		for name, whole := range map[string]bool{"server": false, "plugin": true} {
			t.Run(name, func(t *testing.T) {
				group := cgroup(t, "pids")
				hung, healthy := faultfs.New(t), faultfs.New(t)
				p := plugin(t, w)
				server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
				group.take(t, server)
				if whole {
					group.take(t, p.plugin.Process.Pid)
				}
				hung.Silence()
				p.reports(hung.Dir, `result="stuck"`)
				before := len(p.plugin.stderr.String()) // it may have had no time for all at first
				write(t, group.dir, "pids.max", "1")    // less than there are, whichever helpers end
				for range 3 {
					p.says("^mountstat,", "path="+healthy.Dir+" ", `result="unchecked"`, "forking a helper: resource temporarily unavailable")
					p.until("^mountstat_summary ")
				}
				p.saysOnce(before, "are not checked")
				write(t, group.dir, "pids.max", "max")
				p.reports(healthy.Dir, `result="ok"`)
				p.saysOnce(before, "are not checked")
				hung.Abort()
			})
		}
	})
}

// Telegraf is stopped while the plugin goes on gathering by itself. What was
// gathered meanwhile does not come as a flood, and does not fill memory.
func TestTelegraf_IsStoppedForAWhile(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	stopped := 8 * time.Second
	if text := os.Getenv("VFSPROBE_BLOCKED"); text != "" {
		var err error
		stopped, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	const n, interval = 100, 100 * time.Millisecond
	root := t.TempDir()
	for i := range n {
		dir := filepath.Join(root, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	config, metrics := configure(t, []string{binary(t, vfsprobe), "-interval", interval.String(), "-config", inputs(t)}, "")
	text, err := os.ReadFile(config)
	require.NoError(t, err)
	changed := strings.Replace(string(text), `"STDIN"`, `"none"`, 1)
	require.NoError(t, os.WriteFile(config, []byte(changed), 0o600))
	agent := start(t, binary(t, telegraf), "--config", config)
	tail(t, metrics, "^vfsprobe ")
	time.Sleep(3 * time.Second) // until it has the memory that it needs
	pid := child(t, agent.Process.Pid, "vfsprobe")
	before := resident(t, pid)

	require.NoError(t, agent.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	time.Sleep(stopped)
	after := resident(t, pid)
	thawed := time.Now()
	require.NoError(t, agent.Process.Signal(syscall.SIGCONT))
	clear(t, metrics)
	require.Eventually(t, func() bool {
		content, _ := os.ReadFile(metrics)
		lines := strings.Split(strings.TrimSpace(string(content)), "\n")
		for _, line := range lines {
			if strings.HasPrefix(line, "mountstat_summary ") && when(t, line).After(thawed.Add(time.Second)) {
				return true
			}
		}
		return false
	}, patience, 100*time.Millisecond, "a gather of after the thaw")
	content, err := os.ReadFile(metrics)
	require.NoError(t, err)
	old, bytes := 0, 0
	for _, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
		if at := when(t, line); at.After(began.Add(time.Second)) && at.Before(thawed.Add(-1500*time.Millisecond)) {
			old, bytes = old+1, bytes+len(line)
		}
	}
	gathered := int(stopped/interval) * n
	t.Logf("stopped for %v: about %d lines were gathered, %d (%d bytes) older than 1.5 s came through; resident before %d kB, after %d kB",
		stopped, gathered, old, bytes, before>>10, after>>10)
	assert.Less(t, bytes, 64<<10+2*(16<<10), "a pipe's content, and a chunk")
	assert.Less(t, after-before, 8<<20)
	// Telegraf lets its reader of stderr take the line before the metrics or after.
	require.Eventually(t, func() bool { return strings.Contains(agent.stderr.String(), "stdout is blocked") }, patience, 50*time.Millisecond)
}

// Between gathers vfsprobe sleeps, also while a mount hangs. Only the Go runtime's
// monitor thread may look around.
func TestVfsprobe_NothingWakesItBetweenGathers(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		const still, most = 5 * time.Second, 3
		fs := faultfs.New(t)
		for _, state := range []string{"ok", "stuck"} {
			t.Run(state, func(t *testing.T) {
				if state == "stuck" {
					fs.Silence()
				}
				p := w.start(t, "-config", inputs(t))
				for range 2 {
					p.reports(fs.Dir, `result="`+state+`"`)
					p.until("^mountstat_summary ")
				}
				server := child(t, p.plugin.Process.Pid, "vfsprobe-server")
				time.Sleep(time.Second) // what a gather has begun may go on, for longer on a busy machine
				var woken [2]int
				require.Eventually(t, func() bool {
					before := [2]int{sleeps(t, p.plugin.Process.Pid), sleeps(t, server)}
					time.Sleep(still)
					woken = [2]int{sleeps(t, p.plugin.Process.Pid) - before[0], sleeps(t, server) - before[1]}
					t.Logf("within %v, the plugin was woken %d times, the fork server %d times", still, woken[0], woken[1])
					return woken[0] <= most && woken[1] == 0
				}, patience, time.Millisecond, "neither the plugin nor the fork server is ever at rest")
			})
		}
	})
}

// sleeps is how often the threads of a process have gone to sleep: once for each time
// they were woken.
func sleeps(t *testing.T, pid int) (sum int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		require.NoError(t, err)
		found := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)$`).FindSubmatch(status)
		require.NotNil(t, found, "%s", status)
		n, err := strconv.Atoi(string(found[1]))
		require.NoError(t, err)
		sum += n
	}
	return sum
}

// Nobody reads stderr, and what fits into its pipe is there already. The fork server
// is killed again and again, and mounts hang: there is more and more to be logged.
func TestVfsprobe_ABlockedStderrBlocksNothing(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		for name, stop := range map[string]func(p *atWork) time.Duration{
			"stdin ends": (*atWork).stop,
			"SIGTERM":    (*atWork).terminate,
		} {
			t.Run(name, func(t *testing.T) {
				hung := faultfs.New(t)
				var pipe [2]int
				require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
				defer unix.Close(pipe[0])
				stderr := os.NewFile(uintptr(pipe[1]), "stderr")
				defer stderr.Close()
				filling, err := unix.FcntlInt(stderr.Fd(), unix.F_GETPIPE_SZ, 0)
				require.NoError(t, err)
				_, err = stderr.Write(make([]byte, filling))
				require.NoError(t, err)
				command := exec.Command(binary(t, vfsprobe), "-config", inputs(t))
				command.Stderr = stderr
				p := w.startCommand(t, command)
				p.reports(hung.Dir)
				p.until("^mountstat_summary ")

				for i := range 3 {
					hung.Silence()
					p.reports(hung.Dir, `result="stuck"`)
					p.until("^mountstat_summary ")
					hung.Heal()
					require.NoError(t, unix.Kill(child(t, p.plugin.Process.Pid, "vfsprobe-server"), unix.SIGKILL))
					p.reports(hung.Dir, `result="ok"`)
					p.says("^vfsprobe ", fmt.Sprintf("fork_server_restarts=%di", i+1))
				}
				assert.Less(t, stop(p), execdGrace, "half a second for the log, and this machine's noise")
			})
		}
	})
}

func when(t testing.TB, line string) time.Time {
	t.Helper()
	n, err := strconv.ParseInt(timestamp(strings.TrimSpace(line)), 10, 64)
	if err != nil {
		return time.Time{} // of a line that is being written
	}
	return time.Unix(0, n)
}

func resident(t *testing.T, pid int) int {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	require.NoError(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(content))[1])
	require.NoError(t, err)
	return pages * os.Getpagesize()
}

// Two Telegrafs with a plugin each check the same mounts: neither takes the other's
// helpers for leftovers, and each stops at once.
func TestTelegraf_TwoOverOneHungMount(t *testing.T) {
	if besideOthers(t) {
		return
	}
	faultfs.Require(t)
	hung, healthy := faultfs.New(t), faultfs.New(t)
	hung.Silence()
	var agents [2]*agent
	var metrics [2]string
	for i := range agents {
		agents[i] = direct.telegraf(t, nil)
		metrics[i] = agents[i].metrics
		tail(t, metrics[i], "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`)
		tail(t, metrics[i], "^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
		tail(t, metrics[i], "^vfsprobe ", "helpers_asleep=1i", "helpers_killed=0i")
	}
	began := time.Now()
	require.NoError(t, agents[0].Process.Signal(syscall.SIGTERM))
	agents[0].exit()
	assert.Less(t, time.Since(began), execdGrace)
	// The other goes on, and may count what the first has left.
	clear(t, metrics[1])
	tail(t, metrics[1], "^mountstat,", "path="+healthy.Dir+" ", `result="ok"`)
	tail(t, metrics[1], "^vfsprobe ", "helpers_asleep=[12]i")
	hung.Heal()
	require.Eventually(t, func() bool {
		clear(t, metrics[1])
		tail(t, metrics[1], "^vfsprobe ")
		content, _ := os.ReadFile(metrics[1])
		return strings.Contains(string(content), "helpers_asleep=0i")
	}, patience, 100*time.Millisecond)
	tail(t, metrics[1], "^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
}

// The binary is replaced by rename, as packages do, while helpers are stuck, and
// replaced back.
func TestVfsprobe_UpgradeAndDowngradeWhileHelpersAreStuck(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		dir := t.TempDir()
		installed := filepath.Join(dir, "vfsprobe")
		for _, version := range []string{"1", "2"} {
			command := exec.Command("go", "build", "-ldflags", "-s -w -X main.version="+version, "-o", filepath.Join(dir, version), "./cmd/vfsprobe")
			command.Dir = repository()
			command.Env = append(os.Environ(), "CGO_ENABLED=0")
			out, err := command.CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		install := func(version string) {
			unpacked := installed + ".new"
			out, err := exec.Command("cp", filepath.Join(dir, version), unpacked).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.NoError(t, os.Rename(unpacked, installed))
		}
		install("1")
		hung := faultfs.New(t)
		hung.Silence()
		agent := w.telegraf(t, func(s *setup) { s.vfsprobe = installed })
		metrics := agent.metrics
		line := tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, "stuck_pid=")
		helper := int(field(t, line, "stuck_pid"))

		for i, version := range []string{"2", "1"} {
			install(version)
			out, err := exec.Command(installed, "-version").Output()
			require.NoError(t, err)
			require.Equal(t, "vfsprobe "+version+"\n", string(out))
			agent.end(syscall.SIGTERM)
			clear(t, metrics)
			line = tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="stuck"`, "stuck_pid=")
			assert.Equal(t, helper, int(field(t, line, "stuck_pid")), "the same helper, no new one")
			tail(t, metrics, "^vfsprobe ", "helpers_asleep=1i", "helpers_killed=0i")
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", agent.plugin()))
			require.NoError(t, err)
			assert.Equal(t, installed, exe, "the new binary runs, exchange %d", i)
		}
		hung.Heal()
		clear(t, metrics)
		tail(t, metrics, "^vfsprobe ", "helpers_asleep=0i")
		tail(t, metrics, "^mountstat,", "path="+hung.Dir+" ", `result="ok"`)
	})
}

// The clocks that durations are taken from are far from where they were when the
// machine started, and differ between the processes of the host.
func TestVfsprobe_InAnotherTimeNamespace(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		faultfs.Require(t)
		if out, err := exec.Command("unshare", "--time", "--fork", "true").CombinedOutput(); err != nil {
			t.Skipf("no time namespaces: %v: %s", err, out)
		}
		hung := faultfs.New(t)
		hung.Silence()
		p := w.startCommand(t, exec.Command("unshare", "--time", "--monotonic", "10000000", "--boottime", "10000000", "--fork", "--kill-child",
			binary(t, vfsprobe), "-config", inputs(t)))
		line := p.reports(hung.Dir, `result="stuck"`)
		hung0 := field(t, line, "hung_seconds")
		assert.Less(t, hung0, 30.0)
		p.until("^mountstat_summary ")
		p.trigger()
		assert.Less(t, field(t, p.until("^mountstat,", "path=/ ", `result="ok"`), "last_ok_seconds_ago"), 30.0)

		// A successor in the host's own finds the helper, and knows its age.
		plugin := child(t, p.plugin.Process.Pid, "vfsprobe")
		require.NoError(t, unix.Kill(plugin, unix.SIGKILL))
		next := w.start(t, "-config", inputs(t))
		line = next.reports(hung.Dir, `result="stuck"`)
		assert.Less(t, field(t, line, "hung_seconds"), 60.0)
		assert.Regexp(t, regexp.MustCompile(`stuck_pid=\d+i`), line)
	})
}
