package checkup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/sshhost"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/mountstat"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

func row(name, path, result string, code int64, more map[string]any) Metric {
	m := Metric{Name: name, Tags: map[string]string{"path": path}, Fields: map[string]any{"result": result, "result_code": code}}
	for key, value := range more {
		m.Fields[key] = value
	}
	return m
}

func reportOf(lines []LogLine, metrics ...Metric) *Report {
	r := newReport(metrics, lines)
	r.conclude()
	return r
}

func render(t *testing.T, r *Report, o TextOptions) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, r.Text(&b, o))
	return b.String()
}

func TestReport_Status(t *testing.T) {
	ok, slow := row("mountstat", "/", "ok", 0, nil), row("mountstat", "/slow", "slow", 1, nil)
	denied, stuck := row("mountstat", "/x", "denied", 2, nil), row("mountstat", "/y", "stuck", 7, nil)
	grace := row("nfslock", "/n", "unchecked", 8, map[string]any{"diagnosis": "grace_period"})
	failure := []LogLine{{"E", "mountstat", "opening the mount table: gone"}}
	for name, c := range map[string]struct {
		want   Status
		report *Report
	}{
		"nothing":             {OK, reportOf(nil)},
		"all well":            {OK, reportOf(nil, ok)},
		"unchecked":           {OK, reportOf(nil, ok, row("mountstat", "/auto", "unchecked", 8, nil))},
		"slow":                {Warning, reportOf(nil, ok, slow)},
		"denied":              {Warning, reportOf(nil, ok, denied)},
		"grace":               {Warning, reportOf(nil, grace)},
		"stuck":               {Critical, reportOf(nil, ok, slow, stuck)},
		"missing":             {Critical, reportOf(nil, row("mountstat", "/m", "missing", 3, nil))},
		"not looked at":       {Unknown, reportOf(failure, ok, slow)},
		"stuck is certain":    {Critical, reportOf(failure, stuck)},
		"no helper":           {Unknown, reportOf([]LogLine{{"E", "mountstat", "3 mounts are not checked; the field reason says why"}}, ok)},
		"what the rows show":  {OK, reportOf([]LogLine{{"W", "mountstat", "/x hangs"}, {"I", "nfslock", "no CAP_SYSLOG"}}, ok)},
		"a code from nowhere": {OK, reportOf(nil, row("mountstat", "/", "ok", 99, nil))},
	} {
		assert.Equal(t, c.want, c.report.Status, name)
		assert.Equal(t, int(c.want), c.report.Code, name)
	}
}

// Where a server dies, its mounts do not fill the screen, and all else is seen.
func TestReport_ShowsFewOfManyMountsOfOneServer(t *testing.T) {
	var metrics []Metric
	for i := range 300 {
		m := row("mountstat", "/nfs/"+strings.Repeat("x", i%7)+string(rune('a'+i%26))+time.Duration(i).String(), "timeout", 6,
			map[string]any{"cause": "server_unreachable", "fault_seconds": 5.0})
		m.Tags["server"], m.Tags["fstype"] = "10.0.0.1", "nfs4"
		metrics = append(metrics, m)
	}
	metrics = append(metrics, row("mountstat", "/zzz", "error", 5, map[string]any{"errno": "EIO", "cause": "io_error"}))
	metrics = append(metrics, Metric{Name: "mountstat_server", Tags: map[string]string{"server": "10.0.0.1"},
		Fields: map[string]any{"mounts": int64(300), "faults": int64(300), "rpc_errno": "ETIMEDOUT"}})
	r := reportOf(nil, metrics...)
	text := render(t, r, TextOptions{})
	assert.Less(t, strings.Count(text, "\n"), 25)
	assert.Contains(t, text, "and 295 more: timeout on 10.0.0.1 (server_unreachable)")
	assert.Contains(t, text, "/zzz")
	assert.Regexp(t, `10\.0\.0\.1 +300 +300 +ETIMEDOUT`, text)
	assert.Contains(t, r.Summary, "298 more")
	assert.Greater(t, strings.Count(render(t, r, TextOptions{All: true}), "\n"), 300)
}

func TestReport_Colors(t *testing.T) {
	r := reportOf(nil, row("mountstat", "/x", "stuck", 7, nil))
	assert.NotContains(t, render(t, r, TextOptions{}), "\x1b")
	assert.Contains(t, render(t, r, TextOptions{Color: true}), "\x1b[1;31m")
	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer file.Close()
	assert.False(t, WantsColor(file, os.LookupEnv), "no terminal")
}

// What is known is filled in. Where rows with the same cause differ, the text has
// the placeholder, and JSON has each.
func TestReport_ExplainsProofAndCure(t *testing.T) {
	readOnly := func(path, device string) Metric {
		m := row("mountstat", path, "error", 5, map[string]any{"cause": "read_only"})
		m.Tags["device"] = device
		return m
	}
	text := render(t, reportOf(nil, readOnly("/srv/my data", "vdb")), TextOptions{Explain: true})
	assert.Contains(t, text, "\n  read_only: it is read-only and should not be")
	assert.Contains(t, text, "\n    by hand:\n      `findmnt -o OPTIONS '/srv/my data';")
	assert.Contains(t, text, "\n    what to do: After errors mend the device, then:\n      `umount '/srv/my data' && fsck /dev/vdb &&")

	container := readOnly("/data", "vdb")
	container.Tags["container"] = "0123456789ab"
	r := reportOf(nil, container, readOnly("/srv", "vdb"))
	text = render(t, r, TextOptions{})
	assert.Equal(t, 1, strings.Count(text, "what to do:"))
	assert.Contains(t, text, "umount MOUNT && fsck /dev/vdb &&")
	assert.Contains(t, r.Problems[0].Cure, "umount MOUNT && fsck /dev/vdb &&", "a path in a container is none of the host's")
	assert.Contains(t, r.Problems[1].Cure, "umount /srv && fsck /dev/vdb &&")

	nfs := readOnly("/nfs", "nas:/vol")
	nfs.Tags["server"] = "10.0.0.1"
	assert.Contains(t, reportOf(nil, nfs).Problems[0].Cure, "fsck /dev/DEVICE")
	waits := row("nfslock", "/n", "timeout", 6, map[string]any{"diagnosis": "grace_period", "blocked_pid": int64(4711)})
	assert.Contains(t, reportOf(nil, waits).Problems[0].Proof, "cat /proc/4711/stack")
	assert.NotContains(t, render(t, reportOf(nil, row("other", "/", "error", 5, map[string]any{"cause": "else"})), TextOptions{}), "by hand")
}

// Who waits is shown once, as the last gather has it.
func TestReport_WithWaiters(t *testing.T) {
	waits := func(comm string) Metric { return Metric{Name: blockedTasks, Tags: map[string]string{"comm": comm}} }
	mount := row("mountstat", "/", "ok", 0, nil)
	assert.Equal(t, []Metric{mount, waits("b")}, withWaiters([]Metric{waits("a"), mount, waits("b")}, []Metric{mount, waits("b")}))
	assert.Equal(t, []Metric{mount, waits("a")}, withWaiters([]Metric{mount, waits("a")}, []Metric{mount}), "the second was too short")
}

func TestEvidence_NamesTheHolder(t *testing.T) {
	for name, c := range map[string]struct {
		fstype string
		fields map[string]any
		want   string
	}{
		"of this host":         {"nfs", map[string]any{"holder_lock": "read", "holder_pid": int64(7), "holder_remote": false}, "process 7 of this host holds a read lock"},
		"NFS 3":                {"nfs", map[string]any{"holder_lock": "write", "holder_pid": int64(7), "holder_remote": true}, "another host, or the server itself (which calls the owner 7), holds a write lock"},
		"NFS 3 with a host":    {"nfs", map[string]any{"holder_lock": "write", "holder_pid": int64(7), "holder_remote": true, "holder_host": "build-17", "reason": "the server says that build-17 holds it"}, "the server says that build-17 holds it"},
		"NFSv4":                {"nfs4", map[string]any{"holder_lock": "write"}, "somebody holds a write lock"},
		"a cluster's, by pids": {"gfs2", map[string]any{"holder_lock": "write", "holder_pid": int64(7), "holder_remote": true}, "process 7 of another host holds a write lock"},
		"nobody":               {"nfs", map[string]any{}, ""},
	} {
		m := row("nfslock", "/n", "error", 5, c.fields)
		m.Tags["fstype"] = c.fstype
		assert.Equal(t, c.want, evidence(&m), name)
	}
}

func TestDuration(t *testing.T) {
	for seconds, want := range map[float64]string{
		0.000012: "12µs", 0.25: "250ms", 5.04: "5s", 59.99: "1m0s", 60: "1m", 130: "2m10s", 3600: "1h0m", 86400 * 5.5: "5d12h",
	} {
		assert.Equal(t, want, duration(seconds), "%v", seconds)
	}
}

// What a person reads at 3 a.m. fits into 80 columns, but for commands, which are whole, and
// paths. The worst comes first, and numbers have units.
func TestReport_Text(t *testing.T) {
	failing := row("mountstat", "/failing", "error", 5, map[string]any{"cause": "io_error", "errno": "EIO", "fault_seconds": 500.0,
		"reason": strings.Repeat("the kernel: a long message ", 8), "used_percent": 93.2, "total": int64(1e12), "free": int64(68e9), "inodes_used_percent": 4.0})
	hung := row("mountstat", "/hung", "timeout", 6, map[string]any{"cause": "server_unreachable", "fault_seconds": 5.0})
	hung.Tags["server"] = "10.0.0.1"
	locks := row("nfslock", "/other", "error", 5, map[string]any{"diagnosis": "statd_down", "fault_seconds": 900.0})
	slow := row("mountstat", "/slow", "slow", 1, nil)
	dentries := Metric{Name: "dentrycache", Fields: map[string]any{"dentry_slab_bytes": int64(22421504), "dentries": int64(1234567), "hash_buckets": int64(7), "stall_seconds": 0.25, "negative_ratio": 0.5}}
	text := render(t, reportOf(nil, failing, hung, locks, slow, dentries, row("mountstat", "/", "ok", 0, nil)), TextOptions{})
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "vfsprobe ") && !strings.Contains(line, "`") {
			assert.LessOrEqual(t, len(line), 81, line)
		}
	}
	order := []string{"timeout", "/hung", "what to do: Bring the server", "`ping -c 3 10.0.0.1`", "NFS locks", "Filling up", "93 %", "1.0 TB", "68 GB", "No fault", "Mounts: 1 ok",
		"dentries 1,234,567, dentry slab 22 MB, negative ratio 50 %, stall 250ms"}
	for at := 0; len(order) > 0; order = order[1:] {
		next := strings.Index(text[at:], order[0])
		require.GreaterOrEqual(t, next, 0, "%q is missing, or comes too early, in:\n%s", order[0], text)
		at += next
	}
	assert.Less(t, strings.Index(text, "/failing"), strings.Index(text, "/slow"))
	// A number stays with its unit, and a command's name as long as it can be.
	many := Metric{Name: "dentrycache", Fields: map[string]any{}}
	for i := range 20 {
		many.Fields[strings.Repeat("x", i)+"_percent"] = 97.0
	}
	unprintable := Metric{Name: blockedTasks, Tags: map[string]string{"comm": strings.Repeat(`\001`, 15), "wchan": "request_wait_answer"}, Fields: map[string]any{"count": int64(1), "pid": int64(7)}}
	text = render(t, reportOf(nil, many, unprintable), TextOptions{})
	assert.NotRegexp(t, `(?m)^ *%|97$`, text)
	assert.Contains(t, text, `  \001\001\001\00…  request_wait_answer  pid 7`)
	assert.NotContains(t, text, "hash buckets")
}

func TestNumber_ShowsUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 22421504: "22 MB", 999500000: "1.0 GB", 5e12: "5.0 TB", 1 << 62: "4.6 EB"} {
		assert.Equal(t, want, size(n))
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", -123: "-123"} {
		assert.Equal(t, want, grouped(n))
	}
	assert.Equal(t, "time to memory share 2h44m33s", number("seconds_to_memory_share", 9873.4))
	assert.Equal(t, "dentries per s 9,873", number("dentries_per_s", 9873.4))
	assert.Equal(t, "hash load 0.0123", number("hash_load", 0.01234))
	assert.Empty(t, number("reason", "text"))
}

func TestFirstSentence(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "One": "One", "One. Two.": "One.", "See 1.2 there. Two.": "See 1.2 there.", "`cat a. b` is it. Two.": "`cat a. b` is it.",
	} {
		assert.Equal(t, want, firstSentence(text))
	}
}

func TestScreen(t *testing.T) {
	assert.Equal(t, "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J", string(screen([]byte("a\nb\n"), 24)))
	assert.Equal(t, "\x1b[Ha\x1b[K\n... 3 more lines\x1b[K\n\x1b[J", string(screen([]byte("a\nb\nc\nd\n"), 3)))
	assert.Equal(t, "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J", string(screen([]byte("a\nb\n"), 0)))
}

func FuzzWrapped(f *testing.F) {
	f.Add("what to do: `a long command` and then " + strings.Repeat("more ", 40))
	f.Fuzz(func(t *testing.T, text string) {
		var b bytes.Buffer
		NewText(&b, false).wrapped("  ", text)
		assert.Equal(t, strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(b.String()), " "))
	})
}

func FuzzNothingReachesTheTerminal(f *testing.F) {
	f.Add("/mnt/\x1b]0;title\x07", "\u009b31m", "\u202eevil", int64(7))
	f.Add("\xff\n\r", "a\tb", "", int64(8))
	f.Fuzz(func(t *testing.T, path, comm, reason string, code int64) {
		now := time.Unix(0, 0)
		r := newReport([]Metric{
			newMetric(metric.New("mountstat", map[string]string{"path": path, "fstype": comm, "container": reason},
				map[string]any{"result": comm, "result_code": code, "reason": reason, "stuck_pid": int64(4), "stuck_wchan": comm}, now)),
			newMetric(metric.New(blockedTasks, map[string]string{"comm": comm, "path": path}, map[string]any{"count": int64(1), "container": reason}, now)),
			newMetric(metric.New("dentrycache", nil, map[string]any{reason: int64(1)}, now)),
		}, nil)
		log := &logLines{}
		_, _ = log.Write([]byte("I! [inputs.x] " + reason + "\n"))
		r.Log = log.taken()
		r.conclude()
		var b bytes.Buffer
		require.NoError(t, r.Text(&b, TextOptions{All: true}))
		require.NoError(t, r.JSON(&b))
		assert.False(t, strings.ContainsFunc(b.String(), func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) }), "%q", b.String())
	})
}

func FuzzLogLines(f *testing.F) {
	f.Add("W! [inputs.mountstat] text\n")
	f.Add("W! [inputs.mountstat\n! [] \n")
	f.Fuzz(func(t *testing.T, text string) {
		l := &logLines{}
		n, err := l.Write([]byte(text))
		require.NoError(t, err)
		assert.Equal(t, len(text), n)
	})
}

func TestCheckup_OfAHungMount(t *testing.T) {
	faultfs.Require(t)
	hung := faultfs.New(t)
	hung.Silence()
	// Somebody waits for it: a child, which ends with the mount.
	waiter := exec.Command("ls", hung.Dir)
	require.NoError(t, waiter.Start())
	t.Cleanup(func() { hung.Abort(); _ = waiter.Wait() })
	require.Eventually(t, func() bool { return hung.Unanswered() > 0 }, 30*time.Second, 10*time.Millisecond)
	p := prober.New(prober.Options{Warnf: t.Logf})
	defer p.Close()
	all, err := config.Parse("x", []byte("[[inputs.mountstat]]\n timeout = \"3s\""), os.LookupEnv, inputs.Inputs)
	require.NoError(t, err)
	rows := 0
	r, err := run(Options{Inputs: all, Host: host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p}), Timeout: 30 * time.Second, Arrived: func(n int) { rows = n }})
	require.NoError(t, err)
	assert.Equal(t, Critical, r.Status)
	assert.GreaterOrEqual(t, rows, 2)
	text := render(t, r, TextOptions{})
	assert.Regexp(t, `(?m)^vfsprobe CRITICAL: `+hung.Dir+` stuck \(fuse_daemon_silent\)`, text)
	var st unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, hung.Dir, unix.AT_STATX_DONT_SYNC, 0, &st))
	assert.Contains(t, text, fmt.Sprintf("what to do: If it is stopped: `kill -CONT %d`.", os.Getpid()))
	assert.Regexp(t, "Else:\\s+`vfsprobe check -explain`\\.", text)
	assert.Contains(t, render(t, r, TextOptions{Explain: true}), fmt.Sprintf("`echo 1 >/sys/fs/fuse/connections/%d/abort`", st.Dev_minor))
	assert.Regexp(t, `stuck +\S+ +fuse_daemon_silent +`+hung.Dir+`\n +faultfs \(fuse\.faultfs\): hangs in`, text)
	assert.Regexp(t, `(?m)^Blocked\n.*\n +1 +> \S+ +\S+ +request_wait_answer`, text, "who waits")
	var decoded map[string]any
	var b bytes.Buffer
	require.NoError(t, r.JSON(&b))
	require.NoError(t, json.Unmarshal(b.Bytes(), &decoded))
	assert.Equal(t, "critical", decoded["status"])
}

// inUnit moves a process to a cgroup as systemd makes it for a unit, until the test ends.
func inUnit(t *testing.T, process *os.Process, unit string) {
	t.Helper()
	const root = "/sys/fs/cgroup/systemd"
	dir := filepath.Join(root, unit)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("a cgroup can't be made here: %v", err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), fmt.Appendf(nil, "%d", process.Pid), 0)
	}
	t.Cleanup(func() {
		_ = move(root) // it may have ended
		assert.Eventually(t, func() bool { return os.Remove(dir) == nil }, 20*time.Second, 10*time.Millisecond)
	})
	require.NoError(t, move(dir))
}

// What is to be done can be copied, with the numbers and names of this host.
func TestCheckup_NamesTheCommandsForASilentFUSEDaemon(t *testing.T) {
	fs := sshhost.New(t).Mount(t)
	unit := fmt.Sprintf("vfsprobe-test-%d.service", time.Now().UnixNano()) // in another PID namespace this pid is another's
	inUnit(t, fs.Daemon, unit)
	fs.Pause(t)
	t.Cleanup(fs.Resume)
	p := prober.New(prober.Options{Warnf: t.Logf})
	defer p.Close()
	all, err := config.Parse("x", fmt.Appendf(nil, "[[inputs.mountstat]]\n timeout = \"3s\"\n mount_points = [%q]", fs.Dir), os.LookupEnv, inputs.Inputs)
	require.NoError(t, err)
	r, err := run(Options{Inputs: all, Host: host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p}), Timeout: 30 * time.Second})
	require.NoError(t, err)
	text := render(t, r, TextOptions{Explain: true})
	t.Log(text)
	var st unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, fs.Dir, unix.AT_STATX_DONT_SYNC, 0, &st))
	for _, command := range []string{
		fmt.Sprintf("`kill -CONT %d`", fs.Daemon.Pid),
		"`systemctl restart " + unit + "`",
		fmt.Sprintf("`echo 1 >/sys/fs/fuse/connections/%d/abort`", st.Dev_minor),
	} {
		assert.Contains(t, text, command)
	}
	require.Len(t, r.Problems, 1)
	said := r.Log[slices.IndexFunc(r.Log, func(l LogLine) bool { return strings.Contains(l.Text, "hangs") })].Text
	assert.Contains(t, said, "its daemon is restarted by: systemctl restart "+unit)
	assert.Contains(t, said, fmt.Sprintf("echo 1 >/sys/fs/fuse/connections/%d/abort", st.Dev_minor))
}

// What has not answered when time is up is not taken to be well.
func TestCheckup_SaysThatTimeIsUp(t *testing.T) {
	faultfs.Require(t)
	hung := faultfs.New(t)
	hung.Silence()
	p := prober.New(prober.Options{Warnf: t.Logf})
	defer p.Close()
	all, err := config.Parse("x", []byte("[[inputs.mountstat]]\n timeout = \"60s\""), os.LookupEnv, inputs.Inputs)
	require.NoError(t, err)
	began := time.Now()
	r, err := run(Options{Inputs: all, Host: host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p}), Timeout: 300 * time.Millisecond})
	require.NoError(t, err)
	assert.Less(t, time.Since(began), 25*time.Second)
	assert.Equal(t, Unknown, r.Status)
	assert.Contains(t, render(t, r, TextOptions{}), "not everything has answered within 300ms")
}

func TestDeliver_GivesUp(t *testing.T) {
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	defer writer.Close()
	require.NoError(t, Deliver(writer, make([]byte, 600<<10), time.Minute), "a pipe grows")
	require.ErrorIs(t, Deliver(writer, make([]byte, 2<<20), 100*time.Millisecond), errNobodyReads)
}

// run gathers once.
func run(o Options) (*Report, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	return c.Report(), nil
}
