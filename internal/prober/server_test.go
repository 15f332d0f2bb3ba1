package prober

import (
	"math"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// withServer makes a prober whose fork server is the test: it gets the requests, and
// answers by receive.
func withServer(t *testing.T) (p *Prober, s *server, requests *os.File) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	s = &server{pid: math.MaxInt32, conn: os.NewFile(uintptr(pair[0]), "prober"), started: time.Now(), heard: time.Now(), ready: true}
	requests = os.NewFile(uintptr(pair[1]), "server")
	s.raw, err = s.conn.SyscallConn()
	require.NoError(t, err)
	p = New(Options{})
	p.server = s
	t.Cleanup(func() {
		s.conn.Close()
		requests.Close()
	})
	return p, s, requests
}

func request(t *testing.T, requests *os.File) forkserver.RequestHeader {
	message := make([]byte, forkserver.MaxRequest)
	n, err := requests.Read(message)
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, int(unsafe.Sizeof(forkserver.RequestHeader{})))
	return *(*forkserver.RequestHeader)(unsafe.Pointer(unsafe.SliceData(message)))
}

// A helper's first answers can overtake the server's word of it, which tells whom to
// kill.
func TestServer_AHelperIsKilledOnceItsServerHasToldOfIt(t *testing.T) {
	p, s, requests := withServer(t)
	plan := &Plan{Timeout: time.Hour, Steps: []Step{Call("first", unix.SYS_GETPID), Call("second", unix.SYS_GETPID)}}
	reports := make(chan Report, 1)
	ticket := p.Submit(Check{Key: "key", Plan: plan}, func(r Report) { reports <- r })
	fork := request(t, requests)
	require.EqualValues(t, forkserver.Fork, fork.Kind)
	answer := func(a forkserver.Answer) { p.receive(s, unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a))) }
	answer(forkserver.Answer{Kind: forkserver.StepDone, ID: fork.ID, Step: 0})
	require.True(t, p.SetDeadline(ticket, time.Now()))
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.helperOfLocked(ticket).overdue
	}, 10*time.Second, time.Millisecond)
	const pid = 4711 // of nobody: the test is the server
	answer(forkserver.Answer{Kind: forkserver.Forked, ID: fork.ID, PID: pid})

	require.NoError(t, requests.SetReadDeadline(time.Now().Add(10*time.Second)))
	kill := request(t, requests)
	assert.EqualValues(t, forkserver.Kill, kill.Kind)
	assert.EqualValues(t, pid, kill.PID)
	answer(forkserver.Answer{Kind: forkserver.Exited, PID: pid, Status: uint32(unix.SIGKILL)})
	r := <-reports
	assert.Equal(t, Expired, r.Outcome, "%v", &r)
	assert.Equal(t, "second", r.HangsIn)
}
