package hostreport

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

func newHost(t *testing.T) *host.Host {
	p := prober.New(prober.Options{Warnf: t.Logf})
	t.Cleanup(p.Close)
	return host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p, Log: execd.NewLog(t.Output()).Named("test")})
}

func faultOf(subject string) *fault.Report {
	r := &fault.Report{Input: "mountstat", Subject: subject, Began: time.Unix(1e9, 0), Cause: "unknown",
		Fields: map[string]any{"result": "stuck", "errno": "EIO\x1b[2J"}, Processes: []int{os.Getpid()}}
	r.Add("daemon", "one line")
	r.Add("nothing", "")
	r.Add("lines", "first\nsecond\n")
	return r
}

// The report has all that it is to have, and nothing that a terminal would obey.
func TestReport_Text(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	connection, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	r := faultOf("/nowhere/at all")
	r.Servers = []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}
	text := string(Text(newHost(t), []*fault.Report{r}, Options{Version: "1.2.3"}))
	for _, want := range []string{"vfsprobe 1.2.3: report of 2", "Linux ", "== Faults\n", "mountstat: /nowhere/at all: stuck (unknown), since 2001-09-09T01:46:40Z",
		"  daemon: one line\n", "  lines:\n    first\n    second\n", fmt.Sprintf("process %d, task %d", os.Getpid(), os.Getpid()),
		"== Users of /nowhere/at all\n", "== Tasks that wait\n", "== TCP connections with these servers\n", " to " + listener.Addr().String() + ": state 1", "== The kernel's last messages\n"} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "\x1b")
	assert.NotContains(t, text, "nothing:")

	masked := string(Text(newHost(t), []*fault.Report{r}, Options{Version: "1.2.3", Mask: NewMask(), Brief: true}))
	host, err := os.Hostname()
	require.NoError(t, err)
	assert.Contains(t, masked, "\nhost host-1, Linux ")
	assert.NotContains(t, masked, "host "+host+",")

	many := make([]*fault.Report, 300)
	for i := range many {
		many[i] = &fault.Report{Subject: "relative"}
	}
	text = string(Text(newHost(t), many, Options{}))
	assert.Equal(t, maxFaults, strings.Count(text, "relative"))
	assert.Contains(t, text, "and 250 more\n")
}

// Faults that begin together have one file; files are bounded in number.
func TestFlightRecorder(t *testing.T) {
	dir := t.TempDir()
	for i := range maxFiles + 9 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("fault-20000101T0000%02d.000Z.txt", i)), nil, 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "state.json"), nil, 0o600))
	h := newHost(t)
	bad := false
	f := NewFlightRecorder(h, dir, "1.2.3", func() bool { return bad }, execd.NewLog(t.Output()).Named("test"))
	name := f.Began(faultOf("/one"))
	assert.Equal(t, dir, filepath.Dir(name))
	assert.Equal(t, name, f.Began(faultOf("/two")))
	assert.Empty(t, f.Began(faultOf("/one")), "it is kept already")
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "fault-*.txt"))
		_, missing := os.Stat(name)
		return err == nil && missing == nil && len(files) == maxFiles
	}, time.Minute, 50*time.Millisecond)
	content, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Contains(t, string(content), "mountstat: /one: stuck")
	assert.Contains(t, string(content), "mountstat: /two: stuck")
	assert.LessOrEqual(t, len(content), maxFile)
	st, err := os.Stat(name)
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, st.Mode().Perm())
	assert.NoFileExists(t, filepath.Join(dir, "fault-20000101T000000.000Z.txt"), "the oldest")
	assert.FileExists(t, filepath.Join(dir, "state.json"))

	bad = true
	assert.Empty(t, f.Began(faultOf("/three")), "its own file system is at fault")
}

// What comes to be at fault before it is written is left alone.
func TestFlightRecorder_AtFaultMeanwhile(t *testing.T) {
	dir := t.TempDir()
	asked := 0
	f := NewFlightRecorder(newHost(t), dir, "", func() bool { asked++; return asked > 1 }, execd.NewLog(t.Output()).Named("test"))
	require.NotEmpty(t, f.Began(faultOf("/one")))
	f.write()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, files)
}

// One file is written at a time: faults that begin meanwhile share the next.
func TestFlightRecorder_WritesOneFileAtATime(t *testing.T) {
	var writes atomic.Int32
	end, beginning := make(chan struct{}), true
	f := NewFlightRecorder(nil, t.TempDir(), "", func() bool {
		if beginning {
			return false
		}
		writes.Add(1)
		<-end
		return true // nothing is written
	}, execd.NewLog(io.Discard).Named("test"))
	f.writing = true // so that nothing is by itself
	require.NotEmpty(t, f.Began(faultOf("/one")))
	beginning = false
	go f.write()
	require.Eventually(t, func() bool { return writes.Load() == 1 }, time.Minute, time.Millisecond)
	f.mu.Lock()
	f.open, f.faults = "next", []*fault.Report{faultOf("/two")}
	f.mu.Unlock()
	end <- struct{}{}
	end <- struct{}{}
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.writing && f.open == ""
	}, time.Minute, time.Millisecond)
	assert.EqualValues(t, 2, writes.Load())
	assert.Empty(t, f.faults)
}

func TestCollector(t *testing.T) {
	c := &Collector{}
	assert.Empty(t, c.Began(faultOf("/one")))
	assert.Len(t, c.Faults(), 1)
}

func TestMask(t *testing.T) {
	m := NewMask()
	host, err := os.Hostname()
	require.NoError(t, err)
	m.Name("server", "db17")
	m.Name("device", "nas:/vol/secret")
	m.Name("device", "//filer/share")
	m.Name("mount", "/data/customer")
	m.Name("mount", "/data/customer/deep")
	for _, name := range []string{"/", "/var", "", "a", "\xff\xff"} {
		m.Name("mount", name)
	}
	for _, c := range [][2]string{
		{host + ": x" + host, "host-1: x" + host},
		{"db17: nas:/vol/secret on /data/customer/deep", "server-1: device-1 on mount-2"},
		{"/var/lib /data/customer/x, nas and filer, dynasty", "/var/lib mount-1/x, server-2 and server-3, dynasty"},
		{"10.0.0.1, 10.0.0.1:2049 [fe80::1%eth0]:445", "address-1, address-1:2049 [address-2%eth0]:445"},
		{"::ffff:10.2.3.4 127.0.0.1 03:15:02 1.5 a:b:c", "address-3 127.0.0.1 03:15:02 1.5 a:b:c"},
		{"2026-11-27T14:16:38Z 0:43 fe:00 6.18.44-fc fd", "2026-11-27T14:16:38Z 0:43 fe:00 6.18.44-fc fd"},
	} {
		assert.Equal(t, c[1], string(m.Apply([]byte(c[0]))))
	}
}

func FuzzMask(f *testing.F) {
	f.Add("10.0.0.1 nas:/vol", "nas:/vol")
	f.Fuzz(func(t *testing.T, text, name string) {
		m := NewMask()
		m.Name("device", name)
		masked := string(m.Apply([]byte(text + " 192.0.2.77")))
		assert.NotContains(t, masked, " 192.0.2.77")
	})
}
