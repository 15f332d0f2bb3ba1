package serverpool

import (
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// silent is a program that takes connections and says nothing; it counts them.
func silent(t *testing.T, connections *atomic.Int64) Question {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			go func() {
				var b [4096]byte
				for {
					if _, err := conn.Read(b[:]); err != nil {
						connections.Add(-1)
						_ = conn.Close()
						return
					}
				}
			}()
		}
	}()
	return Question{Network: "tcp", Address: netip.MustParseAddrPort(listener.Addr().String()), Service: NFS}
}

// hello is an Asker of servers that answer anything.
func hello(q Question, due time.Time, each time.Duration) Answer {
	began := time.Now()
	conn, err := net.DialTimeout("tcp", q.Address.String(), min(each, time.Until(due)))
	if err != nil {
		return Answer{Known: true, Errno: ErrorName(err)}
	}
	defer conn.Close()
	_ = conn.SetDeadline(began.Add(min(each, time.Until(due))))
	if _, err = conn.Write([]byte("hello")); err == nil {
		_, err = conn.Read(make([]byte, 5))
	}
	return Answer{Known: true, Errno: ErrorName(err), Reached: true, Elapsed: time.Since(began)}
}

// Who asks later has less time than who asked first.
func TestPool_KeepsTheLimitOfEachCaller(t *testing.T) {
	p, q := NewPool(), silent(t, new(atomic.Int64))
	patient, hasty := make(chan Answer, 1), make(chan Answer, 1)
	began := time.Now()
	p.Ask(1, q, Wanted{Evidence: true, Timeout: time.Second, Ask: hello}, func(a Answer) { patient <- a })
	p.Ask(1, q, Wanted{Evidence: true, Timeout: 20 * time.Millisecond, Ask: hello}, func(a Answer) { hasty <- a })
	assert.Equal(t, "ETIMEDOUT", (<-hasty).Errno)
	assert.Less(t, time.Since(began), 500*time.Millisecond)
	assert.Empty(t, patient)
	assert.Zero(t, p.Last(q).At, "it is still under way")
	a := <-patient
	assert.Equal(t, "ETIMEDOUT", a.Errno)
	assert.True(t, a.Reached)
	assert.Empty(t, hasty, "it is told once")

	p.Ask(2, q, Wanted{Evidence: true, Timeout: time.Second, Ask: hello}, func(a Answer) { patient <- a })
	p.Ask(2, q, Wanted{Evidence: true, Timeout: 20 * time.Millisecond, Ask: hello}, func(a Answer) { hasty <- a })
	assert.Equal(t, a.Since, (<-hasty).Since, "as before")
	assert.Equal(t, a.Since, (<-patient).Since)
}

func TestPool_ConnectsToAServerTwiceAtATime(t *testing.T) {
	var connections atomic.Int64
	p, q := NewPool(), silent(t, &connections)
	const timeout = time.Second
	services := []Service{NFS, "nlockmgr", "status", "mountd", "other"} // a call may take 0.4 s, and all 0.9 s
	answers := make([]Answer, len(services))
	var done sync.WaitGroup
	for i, service := range services {
		done.Add(1)
		q.Service = service
		p.Ask(1, q, Wanted{Evidence: true, Timeout: timeout, Ask: hello}, func(a Answer) { answers[i] = a; done.Done() })
	}
	stop := make(chan struct{})
	go func() { done.Wait(); close(stop) }()
	for most := int64(0); ; most = max(most, connections.Load()) {
		select {
		case <-stop:
			assert.LessOrEqual(t, most, int64(2))
			for i, a := range answers {
				assert.Equal(t, i < 3, a.Broken(), "%d: a question that was not put tells nothing of the server", i)
			}
			assert.Eventually(t, func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.lines) == 0 }, 10*time.Second, time.Millisecond)
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// A server that is busy has more time for its next answer, which comes in time nevertheless.
func TestPool_GivesALateServerMoreTime(t *testing.T) {
	late := Answer{Known: true, Reached: true, Errno: "ETIMEDOUT"}
	for _, c := range []struct {
		address     string
		first, next time.Duration
	}{{"192.0.2.1:445", 750, 1500}, {"192.0.2.1:0", 750, 1350}, {"127.0.0.1:445", 1200, 2400}} {
		const timeout = 3 * time.Second
		q := Question{Network: "tcp", Address: netip.MustParseAddrPort(c.address), Service: SMB}
		for last, want := range map[Answer]time.Duration{{}: c.first, {Known: true}: c.first, {Known: true, Errno: "ETIMEDOUT"}: c.first, late: c.next} {
			each := q.callLimit(timeout, last)
			assert.Equal(t, want*time.Millisecond, each, "%s after %+v", c.address, last)
			assert.LessOrEqual(t, NewPool().delay(&q, timeout, last)+q.calls()*each, answerLimit(timeout))
		}
	}
}

// Hosts ask at different times, in a gather and in the minute.
func TestPool_HasMomentsOfItsOwn(t *testing.T) {
	const hosts = 1000
	server := netip.MustParseAddr("192.0.2.1")
	var early int
	for range hosts {
		if moment := NewPool().moment(server); moment < 0.5 {
			early++
			assert.GreaterOrEqual(t, moment, 0.0)
		} else {
			assert.Less(t, moment, 1.0)
		}
	}
	assert.InDelta(t, hosts/2, early, hosts/10)

	const timeout = 400 * time.Millisecond
	var delays [3]time.Duration
	for range hosts {
		p := NewPool()
		for i, q := range []Question{
			{Address: netip.AddrPortFrom(server, 2049), Service: NFS},
			{Address: netip.AddrPortFrom(server, 111), Service: "rpcbind"},
			{Address: netip.AddrPortFrom(server, 0), Service: "nlockmgr"},
		} {
			delays[i] = max(delays[i], p.delay(&q, timeout, Answer{}))
		}
	}
	for i, want := range []time.Duration{260, 160, 160} { // milliseconds: 0.9 of the timeout, less one call or two
		assert.InDelta(t, want, delays[i]/time.Millisecond, 10, "%d", i)
	}

	q := Question{Network: "tcp", Address: netip.AddrPortFrom(server, 2049), Service: NFS}
	answer := make(chan Answer, 1)
	p := NewPool()
	began := time.Now()
	p.Ask(1, q, Wanted{Evidence: true, Timeout: timeout, Ask: hello}, func(a Answer) { answer <- a })
	<-answer
	assert.GreaterOrEqual(t, time.Since(began), p.delay(&q, timeout, Answer{}))
	p.AtOnce = true
	assert.Zero(t, p.delay(&q, timeout, Answer{}))
}

func TestPool_AsksInItsMomentWhatIsNoEvidence(t *testing.T) {
	for _, at := range []time.Duration{0, time.Second, 30 * time.Second, time.Minute - 1} {
		now := time.Date(2026, 11, 27, 8, 15, 0, 0, time.UTC).Add(at)
		for _, moment := range []float64{0, 0.25, 0.999} {
			next := nextMoment(now, time.Minute, moment)
			assert.True(t, next.After(now))
			assert.LessOrEqual(t, next.Sub(now), time.Minute)
			assert.Equal(t, time.Duration(moment*float64(time.Minute)), next.Sub(next.Truncate(time.Minute)))
		}
	}

	p, q := NewPool(), silent(t, new(atomic.Int64))
	routine := Wanted{Timeout: 20 * time.Millisecond, Ask: hello}
	answer := make(chan Answer, 1)
	require.True(t, p.Ask(1, q, routine, func(a Answer) { answer <- a }), "there is no answer yet")
	first := <-answer
	for { // until this is a host whose moment is near
		p.seed = maphash.MakeSeed()
		if left := time.Until(nextMoment(time.Now(), p.interval, p.moment(q.Address.Addr()))); left > 200*time.Millisecond && left < time.Second {
			break
		}
	}
	for round := range uint64(10) {
		require.False(t, p.Ask(round+2, q, routine, func(Answer) { t.Error("nobody waits for it") }))
	}
	assert.Equal(t, first, p.Last(q))
	require.Eventually(t, func() bool { return p.Last(q).At.After(first.At) }, 10*time.Second, time.Millisecond)
	second := p.Last(q)
	assert.GreaterOrEqual(t, second.At.Sub(first.At), 150*time.Millisecond)
	assert.Equal(t, first.Since, second.Since)
}

// 3,000 hosts ask a server once a minute, or 300 in a tenth of that. An nfsd with 8 threads
// takes 220 connections, and 150 clients have one each.
func TestPool_AFleetLeavesRoomForMounts(t *testing.T) {
	var connections, questions, most atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if now := connections.Add(1); now > most.Load() {
				most.Store(now)
			}
			questions.Add(1)
			go func() {
				var call [4096]byte
				if n, err := conn.Read(call[:]); err == nil {
					_, _ = conn.Write(call[:n])
				}
				_, _ = conn.Read(call[:]) // until it is closed
				_ = conn.Close()
				connections.Add(-1)
			}()
		}
	}()
	const hosts, interval = 300, 6 * time.Second
	q := Question{Network: "tcp", Address: netip.MustParseAddrPort(listener.Addr().String()), Service: NFS}
	gather := time.NewTicker(time.Second) // of all hosts at once
	defer gather.Stop()
	pools := make([]*Pool, hosts)
	for i := range pools {
		pools[i] = NewPool()
		pools[i].interval = interval
		pools[i].known[q] = &asked{answer: Answer{Known: true, At: time.Now()}}
	}
	for round := range uint64(8) {
		for _, p := range pools {
			p.Ask(round+1, q, Wanted{Ask: hello, Timeout: 5 * time.Second}, nil)
		}
		<-gather.C
	}
	t.Logf("%d questions of %d hosts; %d connections at a time at most", questions.Load(), hosts, most.Load())
	assert.GreaterOrEqual(t, questions.Load(), int64(hosts))
	assert.Less(t, most.Load(), int64(220-150))
	for _, p := range pools {
		assert.True(t, p.Last(q).Answered())
	}
}
