package service

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

// patience is for what is going to happen, but not within a given time.
const patience = 20 * time.Second

// text collects what is written.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// fixture is a server whose gathers make one metric each, with its number.
type fixture struct {
	*Server
	socket string
	log    *journal.Journal
	fan    *LogFan

	mu      sync.Mutex
	gathers []time.Time
}

func serve(t *testing.T, socket string) *fixture {
	t.Helper()
	f := &fixture{socket: socket, log: journal.New(t), fan: &LogFan{}}
	var err error
	f.Server, err = Listen(socket, ServerOptions{Log: f.log, Fan: f.fan, Inputs: 1, Group: func() (uint32, bool) { return 0, false }})
	require.NoError(t, err)
	t.Cleanup(f.stop)
	go func() {
		for {
			select {
			case now := <-f.Triggers():
				f.mu.Lock()
				f.gathers = append(f.gathers, now)
				n := len(f.gathers)
				f.mu.Unlock()
				f.Write(now, fmt.Appendf(nil, "gather n=%di %d\n", n, now.UnixNano()))
			case <-f.ended:
				return
			}
		}
	}()
	return f
}

func (f *fixture) stop() {
	select {
	case <-f.ended:
	default:
		f.Close()
	}
}

// connected is a client that runs.
type connected struct {
	*Client
	stdout, stderr *text
	log            *journal.Journal
	ended          chan error
	stop           func()
}

func dial(t *testing.T, socket string) *connected {
	t.Helper()
	c := &connected{stdout: &text{}, stderr: &text{}, log: journal.New(t), ended: make(chan error, 1)}
	c.Client = &Client{Socket: socket, Stdout: c.stdout, Stderr: c.stderr, Log: c.log}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	t.Cleanup(cancel)
	go func() { c.ended <- c.Run(ctx) }()
	return c
}

func (c *connected) isConnected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, what)
}

func TestServer_AnswersEachNewline(t *testing.T) {
	f := serve(t, filepath.Join(t.TempDir(), "socket"))
	c := dial(t, f.socket)
	eventually(t, "a connection", c.isConnected)
	for n := 1; n <= 3; n++ {
		asked := time.Now()
		c.Trigger()
		eventually(t, "metrics", func() bool { return strings.Contains(c.stdout.String(), fmt.Sprintf("gather n=%di ", n)) })
		f.mu.Lock()
		assert.False(t, f.gathers[n-1].Before(asked), "begun after the newline")
		f.mu.Unlock()
	}
	_, _ = f.fan.Write([]byte("W! [inputs.mountstat] something hangs\n"))
	eventually(t, "log lines", func() bool { return c.stderr.String() == "W! [inputs.mountstat] something hangs\n" })
	c.stop()
	require.NoError(t, <-c.ended)
}

// Two clients whose newlines are less than half an interval apart share gathers; what one
// alone has asked for is for that one alone.
func TestServer_SharesGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(ServerOptions{Log: journal.New(t), Inputs: 1}, nil)
		defer close(s.ended)
		var gathers atomic.Int32
		go func() {
			for {
				select {
				case now := <-s.Triggers():
					s.Write(now, fmt.Appendf(nil, "gather n=%di\n", gathers.Add(1)))
				case <-s.ended:
					return
				}
			}
		}()
		connect := func() (c *client, has func() int32) {
			var metrics text
			c = &client{metrics: execd.NewOutput(&metrics, "a test", s.options.Log, 1)}
			t.Cleanup(func() { assert.NoError(t, c.metrics.Close(time.Second)) })
			require.True(t, s.add(c))
			return c, func() int32 {
				synctest.Wait()
				return int32(strings.Count(metrics.String(), "gather"))
			}
		}
		a, aHas := connect()
		b, bHas := connect()
		const interval = 10 * time.Second
		round := func(apart time.Duration) {
			s.ask(a, time.Now())
			time.Sleep(apart)
			s.ask(b, time.Now())
			time.Sleep(interval - apart)
		}
		for range 2 { // they are not known to come
			round(interval / 5)
		}
		assert.EqualValues(t, 4, gathers.Load())
		for n := range int32(5) {
			round(interval / 5)
			assert.EqualValues(t, 5+n, gathers.Load())
			assert.EqualValues(t, 3+n, aHas())
			assert.EqualValues(t, 3+n, bHas())
		}
		round(interval/5 + shareSlack + 1)
		assert.EqualValues(t, 11, gathers.Load(), "nobody waits for one that is late")
		assert.EqualValues(t, 8, aHas())
		assert.EqualValues(t, 8, bHas())
	})
}

// A client that reads nothing costs nobody else anything.
func TestServer_AClientThatStallsCostsOnlyItself(t *testing.T) {
	f := serve(t, filepath.Join(t.TempDir(), "socket"))
	stalled, err := net.Dial("unix", f.socket)
	require.NoError(t, err)
	defer stalled.Close()
	require.NoError(t, greet(bufio.NewReader(stalled), stalled))
	c := dial(t, f.socket)
	eventually(t, "a connection", c.isConnected)
	long := strings.Repeat("x", 2000) // in all less than may wait for one who reads
	for n := 1; n <= 300; n++ {
		_, err := stalled.Write([]byte("\n"))
		require.NoError(t, err)
		_, _ = f.fan.Write([]byte("W! [x] " + long + "\n"))
	}
	began := time.Now()
	for n := 1; n <= 3; n++ {
		before := strings.Count(c.stdout.String(), "gather")
		c.Trigger()
		eventually(t, "metrics", func() bool { return strings.Count(c.stdout.String(), "gather") > before })
	}
	assert.Less(t, time.Since(began), patience)
	eventually(t, "log lines", func() bool { return strings.Count(c.stderr.String(), "\n") == 300 })
}

// Either side may come first, and come again: that is said once each time.
func TestClient_WaitsForTheService(t *testing.T) {
	t.Parallel() // it waits most of the time
	socket := filepath.Join(t.TempDir(), "socket")
	c := dial(t, socket)
	c.Trigger() // to nobody
	eventually(t, "a line", func() bool { return len(c.log.About("nobody listens on "+socket+"; systemctl start vfsprobe")) == 1 })
	time.Sleep(maxTriggerAge) // which is then of another time
	f := serve(t, socket)
	eventually(t, "a connection", c.isConnected)
	c.Trigger()
	eventually(t, "metrics", func() bool { return strings.Count(c.stdout.String(), "gather") == 1 })
	f.stop()
	eventually(t, "another line", func() bool { return len(c.log.About("nobody listens on "+socket)) == 2 })
	f = serve(t, socket)
	eventually(t, "another connection", c.isConnected)
	c.Trigger()
	eventually(t, "more metrics", func() bool { return strings.Count(c.stdout.String(), "gather") == 2 })
	assert.Len(t, c.log.About("answers again"), 2)
	_, err := Listen(socket, ServerOptions{Log: f.log})
	assert.ErrorContains(t, err, "another vfsprobe does")
}

// A newline that comes while the connection is being made is answered.
func TestClient_AsksOnceItIsConnected(t *testing.T) {
	f := serve(t, filepath.Join(t.TempDir(), "socket"))
	c := &Client{Socket: f.socket, Stdout: &text{}, Stderr: io.Discard, Log: f.log}
	c.Trigger()
	go func() { _ = c.Run(t.Context()) }()
	eventually(t, "metrics", func() bool { return strings.Contains(c.Stdout.(*text).String(), "gather n=1i ") })
}

func TestClient_SaysThatVersionsDiffer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "vfsprobe 7\n")
			conn.Close()
		}
	}()
	c := dial(t, socket)
	eventually(t, "a line", func() bool {
		return len(c.log.About("it speaks protocol 7, and this one 1; restart the older one")) == 1
	})
	time.Sleep(3 * firstRetryDelay)
	assert.Len(t, c.log.About("protocol"), 1, "said once")
}

func TestClient_EndsWithStdout(t *testing.T) {
	f := serve(t, filepath.Join(t.TempDir(), "socket"))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	r.Close()
	c := &Client{Socket: f.socket, Stdout: w, Stderr: io.Discard, Log: f.log}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context()) }()
	eventually(t, "an end", func() bool {
		c.Trigger()
		select {
		case err := <-ended:
			return assert.ErrorIs(t, err, syscall.EPIPE)
		default:
			return false
		}
	})
}

// The kernel says who connects.
func TestServer_LetsInRootAndOneGroup(t *testing.T) {
	if socket := os.Getenv("SERVICE_TEST_SOCKET"); socket != "" { // another user
		conn, err := net.Dial("unix", socket)
		require.NoError(t, err)
		require.NoError(t, greet(bufio.NewReader(conn), conn))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("becoming another user takes root")
	}
	dir, err := os.MkdirTemp("/tmp", "service")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	f := &fixture{log: journal.New(t)}
	const group, user = 4712, 4711
	f.Server, err = Listen(filepath.Join(dir, "socket"), ServerOptions{Log: f.log, Inputs: 1, Group: func() (uint32, bool) { return group, true }})
	require.NoError(t, err)
	t.Cleanup(f.Close)
	for name, c := range map[string]struct {
		who     syscall.Credential
		allowed bool
	}{
		"root":          {syscall.Credential{}, true},
		"primary group": {syscall.Credential{Uid: user, Gid: group}, true},
		"another group": {syscall.Credential{Uid: user, Gid: user, Groups: []uint32{1, group}}, true},
		"nobody":        {syscall.Credential{Uid: user, Gid: user}, false},
	} {
		t.Run(name, func(t *testing.T) {
			command := exec.Command("/proc/self/exe", "-test.run=^TestServer_LetsInRootAndOneGroup$")
			command.Env = append(os.Environ(), "SERVICE_TEST_SOCKET="+filepath.Join(dir, "socket"))
			command.Dir = "/"
			command.SysProcAttr = &syscall.SysProcAttr{Credential: &c.who}
			out, err := command.CombinedOutput()
			assert.Equal(t, c.allowed, err == nil, "%v: %s", err, out)
		})
	}
	assert.Len(t, f.log.About("uid 4711 may not connect"), 1)
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("metrics 3\na b\nlog 2\nx\n"))
	f.Add([]byte("metrics -1\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r := bufio.NewReader(bytes.NewReader(content))
		for {
			if _, _, err := readFrame(r); err != nil {
				break
			}
		}
		_ = greet(bufio.NewReader(bytes.NewReader(content)), io.Discard)
	})
}
