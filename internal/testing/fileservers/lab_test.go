//go:build !race

// Package fileservers tests what vfsprobe says of mounts of real file servers, whose faults
// are made for real: Samba and diod in a virtual machine, Gluster and WebDAV in
// namespaces of this host. NFS has nfsvm, and sshfs TestFaults of mountstat.
package fileservers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm/agent"
)

const (
	commandTimeout = 5 * time.Minute
	// interval is that of gathers.
	interval = 5 * time.Second
	// reportTimeout is for faults: mostly the second gather reports them (docs/FAULTS.md), but on a
	// busy machine a server may take a while to show what is wrong with it.
	reportTimeout = 6 * interval
	// patience is for recoveries: what clients notice, SMB's tries each 2 s, TCP with its
	// backoff.
	patience = 5 * time.Minute
)

// family skips a test unless VFSPROBE_FAMILIES names its family of file systems. Where that
// is not set, smb alone runs.
func family(t *testing.T, name string) {
	t.Helper()
	families := strings.Fields(os.Getenv("VFSPROBE_FAMILIES"))
	if len(families) == 0 {
		families = []string{"smb"}
	}
	if !slices.Contains(families, name) {
		t.Skipf("VFSPROBE_FAMILIES does not name %s; see make test-vm", name)
	}
}

// lab is where servers, mounts of theirs and vfsprobe run.
type lab struct {
	t        *testing.T
	run      func(ctx context.Context, script string) (agent.Result, error)
	program  string // vfsprobe
	checks   string // that it makes, as TOML has them
	timeout  string // of those
	ignoreFS string // types which it leaves out, as TOML has them; empty: as by default
	override string // settings of all mounts that only an override has; empty: none
	table    document.Table
}

// network has servers in a network namespace of their own, so that what is between them and the
// client can be cut: "net drop" has the server lose all its answers.
const network = `ip link set lo up
ip netns add server
ip link add client type veth peer name server netns server
ip addr add 10.9.0.2/24 dev client && ip link set client up
ip -n server addr add 10.9.0.1/24 dev server && ip -n server link set server up && ip -n server link set lo up
cat >/run/net <<'X'
#!/bin/sh
case $1 in
drop) ip -n server route add blackhole 10.9.0.2/32;;
undrop) ip -n server route del blackhole 10.9.0.2/32;;
reject) ip netns exec server iptables-legacy -I INPUT -s 10.9.0.2 -j REJECT --reject-with icmp-admin-prohibited;;
unreject) ip netns exec server iptables-legacy -D INPUT 1;;
esac
X
chmod +x /run/net
`

// gathers has vfsprobe gather whenever a line is written to /run/gathers.
const gathers = `printf '%%s\n' '[[inputs.mountstat]]' 'mount_points = ["/mnt/*"]' 'timeout = "%s"' 'fstab = ""' 'checks = [%s]' '%s' '%s' >/run/vfsprobe.toml
[ -e /run/vfsprobe.pid ] && kill $(cat /run/vfsprobe.pid)
[ -e /run/gathers ] || { mkfifo /run/gathers; sleep 1000000 >/run/gathers 2>/run/ignored & }
%s -config /run/vfsprobe.toml </run/gathers >/run/metrics 2>/run/log &
echo $! >/run/vfsprobe.pid
`

func buildProgram(t *testing.T) string {
	t.Helper()
	program, err := programs.Vfsprobe()
	require.NoError(t, err)
	return program
}

func newLab(t *testing.T, program string, run func(context.Context, string) (agent.Result, error)) *lab {
	return &lab{t: t, run: run, program: program, checks: `"statfs", "readdir"`, timeout: "3s", table: document.Table{
		Header: []string{"fault", "mount", "reported", "reason", "reported after", "recovered after"}}}
}

// inMachine is a lab in a virtual machine of User Mode Linux.
func inMachine(t *testing.T, base vm.Debian, modules string) *lab {
	t.Helper()
	base.Suite = "bookworm"
	own, err := os.Executable()
	require.NoError(t, err)
	m := vm.Start(t, vm.Config{Emulator: vm.UML(), Base: base, Modules: strings.Fields(modules),
		Files: []vm.File{{From: buildProgram(t), Name: "usr/bin/vfsprobe"}, {From: own, Name: "usr/bin/tests"}}})
	l := newLab(t, "vfsprobe", m.Shell)
	l.shell("mount -t tmpfs none /run; mkdir -p /run/lock; modprobe -a " + modules + " 2>&1 || true\n" + network)
	return l
}

// onThisHost is a lab in namespaces of this host, whose kernel is newer. All that runs there
// ends with the test.
func onThisHost(t *testing.T, needs ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces take root")
	}
	for _, name := range append(needs, "ip", "nsenter", "fusermount3") {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("no %s here", name)
		}
	}
	init := exec.Command("bash", "-c", "sleep infinity & wait") // which reaps orphans
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	require.NoError(t, init.Start())
	t.Cleanup(func() {
		_ = init.Process.Kill()
		_ = init.Wait()
	})
	pid := strconv.Itoa(init.Process.Pid)
	l := newLab(t, buildProgram(t), func(ctx context.Context, script string) (agent.Result, error) {
		command := exec.CommandContext(ctx, "nsenter", "-t", pid, "-m", "-n", "-p", "sh", "-c", script)
		command.WaitDelay = time.Second
		out, err := command.CombinedOutput()
		exit := new(exec.ExitError)
		if err == nil || errors.Is(err, exec.ErrWaitDelay) || errors.As(err, &exit) {
			return agent.Result{Output: string(out), Code: command.ProcessState.ExitCode()}, nil
		}
		return agent.Result{}, err
	})
	l.shell("mount --make-rprivate /; mount -t proc proc /proc; mount -t tmpfs none /run; mount -t tmpfs none /srv; mount -t tmpfs none /mnt\n" + network)
	return l
}

func (l *lab) shell(script string) string {
	l.t.Helper()
	return vm.Output(l.t, l.run, commandTimeout, script)
}

// watch starts vfsprobe, which must find all the mounts well.
func (l *lab) watch(paths ...string) {
	l.t.Helper()
	l.watchFor(well(paths...))
}

// watchFor starts vfsprobe, which must find all as expected.
func (l *lab) watchFor(all expected) {
	l.t.Helper()
	ignore, override := "", ""
	if l.ignoreFS != "" {
		ignore = "ignore_fs = " + l.ignoreFS
	}
	if l.override != "" {
		override = "[[inputs.mountstat.override]]\n" + l.override
	}
	l.shell(fmt.Sprintf(gathers, l.timeout, l.checks, ignore, override, l.program))
	l.await("at first", patience, all)
}

// expected says which parts the metrics of mounts are to have.
type expected map[string][]string

// well expects mounts to be so.
func well(paths ...string) expected {
	all := make(expected)
	for _, path := range paths {
		all[path] = []string{`result="ok"`}
	}
	return all
}

// absent is the part of a mount that has no line.
const absent = "no line"

// gone expects that there is no line, or one with one of these parts.
func gone(or ...string) []string { return []string{strings.Join(append([]string{absent}, or...), "|")} }

// missing names a part that a line does not have; empty if it has all. What is parted by |
// may be one of these.
func missing(line string, parts []string) string {
	for _, part := range parts {
		if !slices.ContainsFunc(strings.Split(part, "|"), func(one string) bool { return strings.Contains(line, one) || one == absent && line == "" }) {
			return part
		}
	}
	return ""
}

// gather returns the lines of mounts, by their paths.
func (l *lab) gather() map[string]string {
	l.t.Helper()
	out := l.shell(`before=$(grep -c "^mountstat_summary" /run/metrics || true); echo >/run/gathers
		for i in $(seq 200); do [ "$(grep -c '^mountstat_summary' /run/metrics || true)" != "$before" ] && break; sleep 0.1; done
		tail -n 60 /run/metrics | grep -E '^mountstat(_summary)?[, ]' || true`)
	timestamp := func(line string) string { return line[strings.LastIndexByte(line, ' ')+1:] }
	last := timestamp(strings.TrimSpace(out)) // of this gather, and of none before
	lines := make(map[string]string)
	for line := range strings.Lines(out) {
		if timestamp(strings.TrimSpace(line)) != last {
			continue
		}
		if _, rest, found := strings.Cut(line, ",path="); found {
			path, _, _ := strings.Cut(rest, ",")
			path, _, _ = strings.Cut(path, " ")
			lines[path] = strings.TrimSpace(line)
		}
	}
	return lines
}

// locate gathers until it is known where an SMB server listens, by the client's connection.
func (l *lab) locate(address string, port int) {
	l.t.Helper()
	script := fmt.Sprintf(`grep '^mountstat_server,' /run/metrics | tail -n 20 | grep 'port=%d,' | grep -c 'server=%s,' || true`, port, address)
	for began, n := time.Now(), time.Duration(0); l.shell(script) == "0"; n++ {
		if time.Since(began) > patience && n > patience/interval {
			require.Fail(l.t, "the port is not found", "%s: %s", address, l.shell("tail -n 20 /run/log; grep '^mountstat_server,' /run/metrics | tail -n 20"))
		}
		start := time.Now()
		l.gather()
		time.Sleep(time.Until(start.Add(interval)))
	}
}

// await gathers until all is as expected, and returns the lines, and after how long each path was
// so for good. A busy host may take longer for a gather: within a limit are as many as begin within it
// where each is in time.
func (l *lab) await(when string, limit time.Duration, all expected) (lines map[string]string, took map[string]time.Duration) {
	l.t.Helper()
	began := time.Now()
	took = make(map[string]time.Duration)
	for n := time.Duration(1); ; n++ {
		start := time.Now()
		lines = l.gather()
		now, wrong := time.Since(began), ""
		for path, parts := range all {
			if part := missing(lines[path], parts); part != "" {
				wrong = fmt.Sprintf("%s has not %s: %s", path, part, brief(lines[path]))
				l.t.Logf("%s, after %.1f s: %s", when, now.Seconds(), wrong)
				delete(took, path)
			} else if took[path] == 0 {
				took[path] = now
			}
		}
		if wrong == "" {
			for path := range all {
				l.t.Logf("%s: %s after %.1f s: %s", when, path, took[path].Seconds(), brief(lines[path]))
			}
			return lines, took
		}
		if now > limit && n > limit/interval {
			require.Fail(l.t, when+": "+wrong, "%s", l.shell("tail -n 20 /run/log; dmesg | tail -n 20; head -n 60 /proc/fs/cifs/DebugData /run/read /sys/block/loop0/inflight 2>/dev/null || true"))
		}
		time.Sleep(time.Until(start.Add(interval)))
	}
}

// value is a field of a line, without quotation marks.
func value(line, field string) string {
	_, rest, found := strings.Cut(line, ","+field+"=")
	if !found {
		_, rest, found = strings.Cut(line, " "+field+"=") // the first
	}
	if !found {
		return ""
	}
	if quoted, isQuoted := strings.CutPrefix(rest, `"`); isQuoted {
		text, _, _ := strings.Cut(quoted, `"`)
		return text
	}
	text, _, _ := strings.Cut(rest, ",")
	text, _, _ = strings.Cut(text, " ")
	return text
}

// brief is the part of a line that says what is at fault.
func brief(line string) string {
	var kept []string
	for _, field := range []string{"result", "errno", "hangs_in", "cause", "server_rpc_errno", "reason"} {
		if text := value(line, field); text != "" {
			kept = append(kept, field+"="+text)
		}
	}
	return strings.Join(kept, " ")
}

// scenario is a fault that is made and undone by scripts.
type scenario struct {
	fault   string // as docs/FAULTS.md has it
	inflict string
	expect  expected
	within  time.Duration // zero: reportTimeout
	stays   time.Duration // for how long each further gather is to say so
	heal    string
	after   expected // nil: all that was expected to be at fault is well
}

// try makes a fault and undoes it.
func (l *lab) try(s scenario) {
	l.t.Run(s.fault, func(t *testing.T) {
		outer := l.t
		l.t = t
		defer func() { l.t = outer }()
		healed := false
		defer func() {
			if !healed {
				l.shell(s.heal)
			}
		}()
		l.shell(s.inflict)
		if s.within == 0 {
			s.within = reportTimeout
		}
		lines, reported := l.await("at fault", s.within, s.expect)
		for began := time.Now(); time.Since(began) < s.stays; {
			time.Sleep(interval)
			l.await("still", 0, s.expect)
		}
		l.shell(s.heal)
		healed = true
		if s.after == nil {
			s.after = make(expected)
			for path := range s.expect {
				s.after[path] = []string{`result="ok"`}
			}
		}
		later, recovered := l.await("afterward", patience, s.after)
		for _, path := range slices.Sorted(maps.Keys(s.expect)) {
			then := fmt.Sprintf("%.1f s", recovered[path].Seconds())
			if later := later[path]; strings.Contains(later, "cause=") {
				then = "then " + summary(later)
			}
			l.table.Add(s.fault, path, summary(lines[path]), value(lines[path], "reason"), fmt.Sprintf("%.1f s", reported[path].Seconds()), then)
		}
	})
}

// summary is what is reported, in a table.
func summary(line string) string {
	parts := []string{value(line, "result"), value(line, "errno"), value(line, "cause")}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// write writes the table of a family to docs/FAULTS.md, if FAULTS names that, and logs what the
// kernel's clients have said.
func (l *lab) write(name string) {
	l.t.Logf("the kernel's clients:\n%s", l.shell(`dmesg | grep -E 'CIFS|VFS|9p|ceph' | sed 's/^\[[^]]*\] *//' | sort | uniq -c | sort -rn | head -n 60 || true`))
	if file := os.Getenv("FAULTS"); file != "" && !l.t.Failed() {
		require.NoError(l.t, l.table.Write(file, name))
	}
}
