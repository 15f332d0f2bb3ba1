package sunrpc_test

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// limit is for what answers, on a busy machine.
const limit = 20 * time.Second

// ask puts a question and waits for the answer.
func ask(p *serverpool.Pool, round uint64, q serverpool.Question, versions ...uint32) serverpool.Answer {
	answers := make(chan serverpool.Answer, 1)
	p.Ask(round, q, serverpool.Wanted{Evidence: true, Timeout: limit, Ask: asker(q, versions)}, func(a serverpool.Answer) { answers <- a })
	return <-answers
}

func asker(q serverpool.Question, versions []uint32) serverpool.Asker {
	for _, program := range []uint32{sunrpc.ProgramNFS, sunrpc.ProgramNLM, sunrpc.ProgramNSM} {
		if sunrpc.ServiceOf(program) == q.Service {
			return sunrpc.Asker(program, versions...)
		}
	}
	return sunrpc.Asker(sunrpc.ProgramRPCBind, versions...)
}

func nfsAt(server netip.AddrPort) serverpool.Question {
	return serverpool.Question{Network: "tcp", Address: server, Service: sunrpc.ServiceOf(sunrpc.ProgramNFS)}
}

// counting is a server that answers with the words after the xid, and counts calls.
func counting(t *testing.T, words ...uint32) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	calls := new(atomic.Int64)
	server := serveTCP(t, func(conn net.Conn, xid uint32) {
		calls.Add(1)
		_, _ = conn.Write(record(xdr(append([]uint32{xid}, words...)...), 1000))
	})
	return server, calls
}

func TestPool_OneQuestionPerRound(t *testing.T) {
	server, calls := counting(t, 1, 0, 0, 0, 0)
	p := serverpool.NewPool()
	q := nfsAt(server)
	assert.Zero(t, p.Last(q))
	for round := uint64(1); round < 4; round++ {
		var all sync.WaitGroup
		answers := make([]serverpool.Answer, 10)
		for i := range answers {
			all.Go(func() { answers[i] = ask(p, round, q, 3) })
		}
		all.Wait()
		for _, a := range answers {
			assert.Equal(t, answers[0], a)
		}
		assert.True(t, answers[0].Answered())
		assert.True(t, answers[0].Reached)
		assert.Positive(t, answers[0].Elapsed)
		assert.Equal(t, answers[0], p.Last(q))
		assert.EqualValues(t, round, calls.Load())
	}
	other := q
	other.Service = "nlockmgr"
	ask(p, 3, other, 4)
	assert.EqualValues(t, 4, calls.Load(), "another question")
}

func TestPool_JoinsAQuestionOfAnEarlierRound(t *testing.T) {
	var calls atomic.Int64
	release := make(chan struct{})
	server := serveTCP(t, func(conn net.Conn, xid uint32) {
		calls.Add(1)
		<-release
		_, _ = conn.Write(record(success(xid), 1000))
	})
	p := serverpool.NewPool()
	q := nfsAt(server)
	answers := make(chan serverpool.Answer, 3)
	for round := range uint64(3) {
		p.Ask(round, q, serverpool.Wanted{Evidence: true, Timeout: limit, Ask: sunrpc.Asker(sunrpc.ProgramNFS, 3)}, func(a serverpool.Answer) { answers <- a })
	}
	close(release)
	for range 3 {
		assert.True(t, (<-answers).Answered())
	}
	assert.EqualValues(t, 1, calls.Load())
}

func TestPool_WhatAnswersMean(t *testing.T) {
	unavailable, _ := counting(t, 1, 0, 0, 0, 1)
	mismatch, _ := counting(t, 1, 0, 0, 0, 2, 4, 4)
	denied, _ := counting(t, 1, 1, 1, 1)
	garbage, _ := counting(t, 1, 9)
	silent := serveTCP(t, silence)
	closed := serveTCP(t, func(net.Conn, uint32) {})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refused := listener.Addr().(*net.TCPAddr).AddrPort()
	require.NoError(t, listener.Close())
	for name, c := range map[string]struct {
		server  netip.AddrPort
		errno   string
		reached bool
	}{
		"no such program": {unavailable, "EPROGUNAVAIL", true},
		"another version": {mismatch, "", true},
		"credentials":     {denied, "", true},
		"garbage":         {garbage, "EBADRPC", true},
		"silent":          {silent, "ETIMEDOUT", true},
		"hangs up":        {closed, "ECONNRESET", true},
		"refused":         {refused, "ECONNREFUSED", true},
	} {
		t.Run(name, func(t *testing.T) {
			p := serverpool.NewPool()
			answers := make(chan serverpool.Answer, 1)
			timeout := limit
			if c.errno == "ETIMEDOUT" {
				timeout = 2 * time.Second
			}
			p.Ask(1, nfsAt(c.server), serverpool.Wanted{Evidence: true, Timeout: timeout, Ask: sunrpc.Asker(sunrpc.ProgramNFS, 3)}, func(a serverpool.Answer) { answers <- a })
			a := <-answers
			assert.True(t, a.Known)
			assert.Equal(t, c.errno, a.Errno)
			assert.Equal(t, c.errno == "", a.Answered())
			assert.Equal(t, c.errno != "", a.Broken())
			assert.Equal(t, c.reached, a.Reached)
			assert.False(t, a.Unregistered())
			fields := make(map[string]any)
			a.AddTo(fields, "nfs")
			assert.Len(t, fields, 1)
		})
	}
}

// What this host could not ask tells nothing of the server.
func TestPool_LocalErrorsAreUnknown(t *testing.T) {
	p := serverpool.NewPool()
	for _, address := range []string{"[fe80::1%nosuch]:2049", "255.255.255.255:2049"} {
		a := ask(p, 1, nfsAt(netip.MustParseAddrPort(address)), 3)
		if a.Known { // a kernel that says so in another way
			assert.Contains(t, []string{"ENETUNREACH", "EACCES"}, a.Errno, address)
			continue
		}
		assert.False(t, a.Answered())
		assert.False(t, a.Broken())
	}
}

func TestPool_SinceChangesWithTheAnswerOnly(t *testing.T) {
	var broken atomic.Bool
	server := serveTCP(t, func(conn net.Conn, xid uint32) {
		words := []uint32{xid, 1, 0, 0, 0, 0}
		if broken.Load() {
			words[5] = 1 // PROG_UNAVAIL
		}
		_, _ = conn.Write(record(xdr(words...), 1000))
	})
	p := serverpool.NewPool()
	q := nfsAt(server)
	first := ask(p, 1, q, 3)
	assert.Equal(t, first.At, first.Since)
	second := ask(p, 2, q, 3)
	assert.Equal(t, first.Since, second.Since)
	assert.True(t, second.At.After(first.At))
	broken.Store(true)
	third := ask(p, 3, q, 3)
	assert.Equal(t, third.At, third.Since)
	assert.Equal(t, third.Since, ask(p, 4, q, 3).Since)
	broken.Store(false)
	last := ask(p, 5, q, 3)
	assert.Equal(t, last.At, last.Since)
}

func TestPool_ForgetsWhatNobodyAsks(t *testing.T) {
	one, _ := counting(t, 1, 0, 0, 0, 0)
	two, _ := counting(t, 1, 0, 0, 0, 0)
	p := serverpool.NewPool()
	ask(p, 1, nfsAt(one), 3)
	for round := uint64(2); round <= 4; round++ {
		ask(p, round, nfsAt(two), 3)
		assert.True(t, p.Last(nfsAt(one)).Known, "round %d", round)
	}
	ask(p, 5, nfsAt(two), 3)
	assert.Zero(t, p.Last(nfsAt(one)))
	assert.True(t, p.Last(nfsAt(two)).Known)
}

func TestPool_LooksPortsUp(t *testing.T) {
	address := netip.MustParseAddrPort("127.0.0.1:0")
	p := serverpool.NewPool()
	statd := serverpool.Question{Network: "tcp", Address: address, Service: sunrpc.ServiceOf(sunrpc.ProgramNSM)}
	answers := make(chan serverpool.Answer, 1)
	p.Ask(1, statd, serverpool.Wanted{Evidence: true, Timeout: time.Second, Ask: sunrpc.Asker(sunrpc.ProgramNSM, 1)}, func(a serverpool.Answer) { answers <- a })
	assert.False(t, (<-answers).Known, "without rpcbind nothing is known of the program")

	rpchost.StartRPCBind(t)
	a := ask(p, 2, statd, 1)
	assert.True(t, a.Unregistered())
	assert.True(t, a.Broken())
	assert.Equal(t, "ENOTREGISTERED", a.Errno)
	for _, network := range []string{"tcp", "udp"} {
		itself := serverpool.Question{Network: network, Address: address, Service: sunrpc.ServiceOf(sunrpc.ProgramRPCBind)}
		assert.True(t, ask(p, 2, itself, 9, 4).Answered(), "rpcbind has a port for any version of what it knows")
	}
	process := rpchost.StartStatd(t)
	assert.True(t, ask(p, 3, statd, 1).Answered())
	require.NoError(t, process.Kill())
	require.Eventually(t, func() bool { return ask(p, uint64(time.Now().UnixNano()), statd, 1).Broken() }, 20*time.Second, 10*time.Millisecond)
}
