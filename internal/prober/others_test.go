package prober_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// stranger is the user that helpers become here, and that tries to get at them.
const stranger = 4711

// attackVariable has the copy of this test's program that is the stranger's: what it does, and
// to which process.
const attackVariable = "PROBER_TEST_ATTACK"

// reaches are ways into another process, or to what it has in common with others.
func reaches(pid int) map[string]func() error {
	word := make([]byte, 8)
	local := []unix.Iovec{{Base: &word[0], Len: 8}}
	remote := []unix.RemoteIovec{{Base: 0x400000, Len: 8}}
	call := func(number uintptr, arguments ...uintptr) error {
		var a [6]uintptr
		copy(a[:], arguments)
		if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
	onPidfd := func(do func(pidfd int) error) error {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		return do(pidfd)
	}
	file := func(name string, flags int) func() error {
		return func() error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), flags, 0)
			if err == nil {
				_, err = unix.Read(fd, word)
				unix.Close(fd)
			}
			return err
		}
	}
	write := func(name, what string) func() error {
		return func() error { return os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), []byte(what), 0) }
	}
	all := map[string]func() error{
		"seize":             func() error { return unix.PtraceSeize(pid) },
		"attach":            func() error { return unix.PtraceAttach(pid) },
		"process_vm_readv":  func() error { _, err := unix.ProcessVMReadv(pid, local, remote, 0); return err },
		"process_vm_writev": func() error { _, err := unix.ProcessVMWritev(pid, local, remote, 0); return err },
		"pidfd_getfd":       func() error { return onPidfd(func(fd int) error { _, err := unix.PidfdGetfd(fd, 3, 0); return err }) },
		"kcmp":              func() error { return call(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), 1) },
		"move_pages":        func() error { return call(unix.SYS_MOVE_PAGES, uintptr(pid)) },
		"migrate_pages":     func() error { return call(unix.SYS_MIGRATE_PAGES, uintptr(pid)) },
		"get_robust_list": func() error {
			return call(unix.SYS_GET_ROBUST_LIST, uintptr(pid), uintptr(unsafe.Pointer(&word[0])), uintptr(unsafe.Pointer(&word[0])))
		},
		"more core": func() error {
			return unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, nil)
		},
		"write oom_adj":     write("oom_adj", "15"),
		"write oom_score":   write("oom_score_adj", "1000"),
		"write clear_refs":  write("clear_refs", "1"),
		"write core filter": write("coredump_filter", "ff"),
		"write mem":         file("mem", unix.O_RDWR),
		"read mem":          file("mem", unix.O_RDONLY),
		"look into fd":      file("fd", unix.O_RDONLY|unix.O_DIRECTORY),
		"enter its root":    file("root/proc/self/status", unix.O_RDONLY),
	}
	for _, name := range []string{"auxv", "environ", "io", "maps", "map_files", "pagemap", "smaps", "syscall", "ns/mnt"} {
		all["read "+name] = file(name, unix.O_RDONLY)
	}
	all["perf_event_open"] = func() error {
		_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK,
			Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv}, pid, -1, -1, 0)
		return err
	}
	return all
}

// attack does as the stranger what the variable says, and says what came of it.
func attack(order string) {
	what, number, _ := strings.Cut(order, " ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	say := func(name string, err error) { fmt.Printf("%s: %v\n", name, err) }
	switch what {
	case "reach":
		for name, reach := range reaches(pid) {
			say(name, reach())
		}
	case "signal":
		for s := unix.Signal(1); s < 32; s++ {
			switch s {
			case unix.SIGKILL, unix.SIGSTOP, unix.SIGCONT:
			default:
				say(s.String(), unix.Kill(pid, s))
			}
		}
		say("fewer files", unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{}, nil))
		say("no time", unix.Prlimit(pid, unix.RLIMIT_CPU, &unix.Rlimit{Max: unix.RLIM_INFINITY}, nil))
	case "stop":
		say("stop", unix.Kill(pid, unix.SIGSTOP))
	case "kill":
		say("kill", unix.Kill(pid, unix.SIGKILL))
		pidfd, err := unix.PidfdOpen(pid, 0)
		say("pidfd_open", err)
		// It would free the memory of what is about to end.
		if _, _, errno := unix.Syscall(unix.SYS_PROCESS_MRELEASE, uintptr(pidfd), 0, 0); errno != 0 {
			err = errno
		}
		say("process_mrelease", err)
	}
	os.Exit(0)
}

// TestStranger is no test of its own: it is what attackAs runs.
func TestStranger(*testing.T) {
	if order := os.Getenv(attackVariable); order != "" {
		attack(order)
	}
}

// attackAs has a process of the user do it, and returns what came of each attempt.
func attackAs(t *testing.T, uid uint32, what string, pid int) map[string]string {
	t.Helper()
	command := exec.Command("/proc/self/exe", "-test.run=^TestStranger$")
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", attackVariable, what, pid))
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := command.Output()
	require.NoError(t, err, "%s", out)
	results := make(map[string]string)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, result, _ := strings.Cut(lines.Text(), ": ")
		results[name] = result
	}
	require.NotEmpty(t, results)
	return results
}

// lockSuidDumpable keeps fs.suid_dumpable, which is the host's, from being set by others until the test ends: the
// same tests may run with the race detector beside these. how is LOCK_EX for who sets it.
func lockSuidDumpable(t *testing.T, how int) {
	t.Helper()
	directory, err := os.Open(".") // of the sources, which both have
	require.NoError(t, err)
	t.Cleanup(func() { directory.Close() })
	require.NoError(t, unix.Flock(int(directory.Fd()), how))
}

// setSuidDumpable sets fs.suid_dumpable until the test ends. It takes [lockSuidDumpable].
func setSuidDumpable(t *testing.T, value string) {
	t.Helper()
	const name = "/proc/sys/fs/suid_dumpable"
	before, err := os.ReadFile(name)
	require.NoError(t, err)
	if err := os.WriteFile(name, []byte(value), 0); err != nil {
		t.Skipf("the host's settings can't be changed here: %v", err)
	}
	t.Cleanup(func() { assert.NoError(t, os.WriteFile(name, before, 0)) })
}

// hang submits the plan, and returns the helper's pid once it waits for the file system.
func hang(t *testing.T, p *prober.Prober, key string, plan *prober.Plan) (pid int, reports chan prober.Report) {
	t.Helper()
	reports = make(chan prober.Report, 1)
	ticket := p.Submit(patient(prober.Check{Key: key, Plan: plan}), func(r prober.Report) { reports <- r })
	last := plan.Steps[len(plan.Steps)-1].Name
	eventually(t, key+": a helper that hangs", func() bool {
		r, found := p.Progress(ticket)
		pid = r.PID
		return found && pid != 0 && r.HangsIn == last
	})
	return pid, reports
}

// A user whose mount is checked as that user may send the helper signals, and nothing else:
// not even where the helper shares the memory of the server.
func TestProber_AUserReachesNothingByAHelperOfTheirs(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_EX)
	for _, dumpable := range []string{"0", "2", "1"} {
		t.Run("fs.suid_dumpable "+dumpable, func(t *testing.T) {
			setSuidDumpable(t, dumpable)
			p := start(t, prober.Options{})
			silent, paused := forEverybody(t), forEverybody(t)
			silent.Silence(faultfs.Statfs)
			paused.Pause()
			victim, victimsReport := hang(t, p, "the victim", statfsAs(stranger, silent.Dir))
			like, likesReport := hang(t, p, "its like", statfsAs(stranger, paused.Dir))
			itself, itselfsReport := hang(t, p, "root's", statfs(paused.Dir))
			server := serverOf(t, os.Getpid())
			shares := forkserver.Sharing && dumpable != "1"
			assert.Equal(t, shares, sharesMemory(t, server, victim))
			assert.Equal(t, forkserver.Sharing, sharesMemory(t, server, itself))
			unharmed := func() {
				t.Helper()
				for _, plan := range []*prober.Plan{statfs("/"), statfsAs(stranger, "/")} {
					r := p.Run(patient(prober.Check{Key: "/", Plan: plan}))
					assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
				}
				for _, pid := range []int{server, like, itself} {
					assert.True(t, alive(pid))
				}
				assert.Zero(t, p.Stats().ServerRestarts)
			}

			for pid, results := range map[int]map[string]string{
				victim: attackAs(t, stranger, "reach", victim), server: attackAs(t, stranger, "reach", server),
			} {
				for name, result := range results {
					assert.Regexp(t, "operation not permitted|permission denied|function not implemented", result, "%d: %s", pid, name)
				}
			}
			score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", server))
			require.NoError(t, err)
			assert.NotEqual(t, "1000\n", string(score))
			unharmed()

			for name, result := range attackAs(t, stranger, "signal", victim) {
				assert.Equal(t, "<nil>", result, name)
			}
			unharmed()
			assert.True(t, alive(victim), "all signals are blocked")
			attackAs(t, stranger, "stop", victim)
			unharmed()
			results := attackAs(t, stranger, "kill", victim)
			assert.Equal(t, "<nil>", results["kill"])
			if t.Log(results); shares {
				assert.NotEqual(t, "<nil>", results["process_mrelease"], "others need the memory")
			}
			unharmed()

			silent.Heal()
			r := <-victimsReport
			assert.Equal(t, prober.Died, r.Outcome, "%v", &r)
			paused.Heal()
			for _, reports := range []chan prober.Report{likesReport, itselfsReport} {
				r := <-reports
				assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
				assert.Nil(t, r.Failed(), "%v", &r)
			}
			unharmedServer := serverOf(t, os.Getpid())
			assert.Equal(t, server, unharmedServer)
		})
	}
}

// With fs.suid_dumpable 1 a user could trace a helper for some microseconds, and with it all
// others of theirs that share its memory. Each helper looks before it becomes that user.
func TestProber_SharesWithOthersNoMoreOnceTheyCouldTrace(t *testing.T) {
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_EX)
	setSuidDumpable(t, "0")
	p := start(t, prober.Options{})
	before, after := forEverybody(t), forEverybody(t)
	before.Pause()
	after.Pause()
	first, firstReport := hang(t, p, "before", statfsAs(stranger, before.Dir))
	server := serverOf(t, os.Getpid())
	assert.Equal(t, forkserver.Sharing, sharesMemory(t, server, first))

	setSuidDumpable(t, "1")
	reports := make(chan prober.Report, 8)
	for i := range cap(reports) {
		p.Submit(patient(prober.Check{Key: strconv.Itoa(i), Group: strconv.Itoa(i), Plan: statfsAs(stranger, "/")}), func(r prober.Report) { reports <- r })
	}
	for range cap(reports) {
		r := <-reports
		assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
		assert.Nil(t, r.Failed(), "%v", &r)
	}
	second, secondReport := hang(t, p, "after", statfsAs(stranger, after.Dir))
	assert.False(t, sharesMemory(t, server, second))
	for name, result := range attackAs(t, stranger, "reach", first) {
		assert.NotEqual(t, "<nil>", result, name)
	}
	for fs, reports := range map[*faultfs.FS]chan prober.Report{before: firstReport, after: secondReport} {
		fs.Heal()
		r := <-reports
		assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	}
	assert.Zero(t, p.Stats().ServerRestarts)
	assert.Equal(t, server, serverOf(t, os.Getpid()))
}

// What is refused above is granted where the kernel has no reason to refuse it.
func TestStranger_ReachesItsOwnProcesses(t *testing.T) {
	faultfs.Require(t)
	own := exec.Command("sleep", "60")
	own.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	require.NoError(t, own.Start())
	t.Cleanup(func() { _ = own.Process.Kill(); _ = own.Wait() })
	results := attackAs(t, stranger, "reach", own.Process.Pid)
	t.Log(results)
	for _, name := range []string{"write oom_score", "kcmp", "move_pages", "more core", "read maps", "read environ", "enter its root"} {
		assert.Equal(t, "<nil>", results[name], name)
	}
	assert.Contains(t, []string{results["seize"], results["attach"]}, "<nil>", "the first of them")
	assert.Equal(t, "bad address", results["process_vm_writev"], "there is nothing at that place")
	assert.Equal(t, "input/output error", results["write mem"])
	assert.Equal(t, "bad file descriptor", results["pidfd_getfd"])
}

// pluginVariable has the copy of this test that is a plugin without root: the directory of a
// file system that hangs.
const pluginVariable = "PROBER_TEST_PLUGIN"

// A plugin that may trace no other user can't see where a helper waits that nobody may trace:
// there those of other users have memory of their own, and the others stay as they were.
func TestProber_SharesWithOthersOnlyWhatItMayTrace(t *testing.T) {
	if dir := os.Getenv(pluginVariable); dir != "" {
		p := start(t, prober.Options{})
		own, _ := hang(t, p, "itself", statfs(dir))
		other, _ := hang(t, p, "another user", statfsAs(stranger, dir))
		fmt.Printf("%d %d %q\n", own, other, prober.FunctionOf("/proc", own))
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test has looked
		os.Exit(0)
	}
	faultfs.Require(t)
	lockSuidDumpable(t, unix.LOCK_SH)
	for name, c := range map[string]struct {
		capabilities []uintptr
		shares       bool
	}{
		"CAP_SYS_PTRACE": {[]uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL, unix.CAP_SYS_PTRACE}, true},
		"without":        {[]uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}, false},
	} {
		t.Run(name, func(t *testing.T) {
			fs := forEverybody(t)
			fs.Pause()
			plugin := exec.Command("/proc/self/exe", "-test.run=^TestProber_SharesWithOthersOnlyWhatItMayTrace$")
			plugin.Env = append(os.Environ(), pluginVariable+"="+fs.Dir)
			plugin.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4712, Gid: 4712}, AmbientCaps: c.capabilities}
			end, err := plugin.StdinPipe()
			require.NoError(t, err)
			says, err := plugin.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, plugin.Start())
			var own, other int
			var function string
			_, err = fmt.Fscanf(says, "%d %d %q\n", &own, &other, &function)
			require.NoError(t, err)
			assert.Equal(t, prober.FunctionOf("/proc", own), function, "it is still seen; before Linux 5.16 mostly none is")
			server := serverOf(t, plugin.Process.Pid)
			assert.Equal(t, forkserver.Sharing, sharesMemory(t, server, own))
			assert.Equal(t, forkserver.Sharing && c.shares, sharesMemory(t, server, other))
			for name, result := range attackAs(t, stranger, "reach", other) {
				assert.NotEqual(t, "<nil>", result, name)
			}
			fs.Heal()
			end.Close()
			require.NoError(t, plugin.Wait())
		})
	}
}
