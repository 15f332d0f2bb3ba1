package serverpool

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ofNobody is a question to this host, which is asked at once. The tests that put it are in virtual time:
// Askers are the server.
var ofNobody = Question{Network: "udp", Address: netip.MustParseAddrPort("127.0.0.1:2049"), Service: NFS}

// silence is the Asker of a server that takes connections and says nothing.
func silence(_ Question, due time.Time, each time.Duration) Answer {
	limit := min(each, time.Until(due))
	time.Sleep(limit)
	return Answer{Known: true, Errno: "ETIMEDOUT", Reached: true, Elapsed: limit}
}

// gauge is how many connections a server has, and had at most.
type gauge struct {
	mu             sync.Mutex
	now, most, all int
}

// open opens one, until close is called.
func (g *gauge) open() (close func()) {
	add := func(n int) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.now += n
		g.most = max(g.most, g.now)
		g.all += max(n, 0)
	}
	add(1)
	return func() { add(-1) }
}

// Who asks later has less time than who asked first.
func TestPool_KeepsTheLimitOfEachCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, q := NewPool(), ofNobody
		patient, hasty := make(chan Answer, 1), make(chan Answer, 1)
		began := time.Now()
		p.Ask(1, q, Wanted{Evidence: true, Timeout: time.Second, Ask: silence}, func(a Answer) { patient <- a })
		p.Ask(1, q, Wanted{Evidence: true, Timeout: 20 * time.Millisecond, Ask: silence}, func(a Answer) { hasty <- a })
		assert.Equal(t, "ETIMEDOUT", (<-hasty).Errno)
		assert.LessOrEqual(t, time.Since(began), 20*time.Millisecond)
		assert.Empty(t, patient)
		assert.Zero(t, p.Last(q).At, "it is still under way")
		a := <-patient
		assert.Equal(t, "ETIMEDOUT", a.Errno)
		assert.True(t, a.Reached)
		assert.Empty(t, hasty, "it is told once")

		p.Ask(2, q, Wanted{Evidence: true, Timeout: time.Second, Ask: silence}, func(a Answer) { patient <- a })
		p.Ask(2, q, Wanted{Evidence: true, Timeout: 20 * time.Millisecond, Ask: silence}, func(a Answer) { hasty <- a })
		assert.Equal(t, a.Since, (<-hasty).Since, "as before")
		assert.Equal(t, a.Since, (<-patient).Since)
	})
}

func TestPool_ConnectsToAServerTwiceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var connections gauge
		p, q := NewPool(), ofNobody
		const timeout = time.Second
		services := []Service{NFS, "nlockmgr", "status", "mountd", "other"} // a call may take 0.4 s, and all 0.9 s
		answers := make([]Answer, len(services))
		var done sync.WaitGroup
		for i, service := range services {
			done.Add(1)
			q.Service = service
			p.Ask(1, q, Wanted{Evidence: true, Timeout: timeout, Ask: func(q Question, due time.Time, each time.Duration) Answer {
				defer connections.open()()
				return silence(q, due, each)
			}}, func(a Answer) { answers[i] = a; done.Done() })
		}
		done.Wait()
		assert.Equal(t, 2, connections.most)
		for i, a := range answers {
			assert.Equal(t, i < 3, a.Broken(), "%d: a question that was not put tells nothing of the server", i)
		}
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		assert.Empty(t, p.lines)
	})
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

	synctest.Test(t, func(t *testing.T) {
		q := Question{Network: "udp", Address: netip.AddrPortFrom(server, 2049), Service: NFS}
		answer := make(chan Answer, 1)
		p := NewPool()
		began := time.Now()
		p.Ask(1, q, Wanted{Evidence: true, Timeout: timeout, Ask: silence}, func(a Answer) { answer <- a })
		delay := p.delay(&q, timeout, Answer{})
		elapsed := (<-answer).Elapsed
		assert.Equal(t, delay+elapsed, time.Since(began))
		p.AtOnce = true
		assert.Zero(t, p.delay(&q, timeout, Answer{}))
	})
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

	synctest.Test(t, func(t *testing.T) {
		p, q := NewPool(), ofNobody
		routine := Wanted{Timeout: 20 * time.Millisecond, Ask: silence}
		answer := make(chan Answer, 1)
		require.True(t, p.Ask(1, q, routine, func(a Answer) { answer <- a }), "there is no answer yet")
		first := <-answer
		var next time.Time
		for left := time.Duration(0); left < 200*time.Millisecond || left > time.Second; { // until this is a host whose moment is near
			p.seed = maphash.MakeSeed()
			next = nextMoment(time.Now(), p.interval, p.moment(q.Address.Addr()))
			left = time.Until(next)
		}
		for round := range uint64(10) {
			require.False(t, p.Ask(round+2, q, routine, func(Answer) { t.Error("nobody waits for it") }))
		}
		assert.Equal(t, first, p.Last(q))
		time.Sleep(time.Until(next.Add(routine.Timeout)))
		second := p.Last(q)
		assert.Equal(t, next.Add(second.Elapsed), second.At)
		assert.Equal(t, first.Since, second.Since)
	})
}

// 3,000 hosts ask a server once a minute, or 300 in a tenth of that. An nfsd with 8 threads
// takes 220 connections, and 150 clients have one each. It takes half a second for an answer.
func TestPool_AFleetLeavesRoomForMounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var connections gauge
		answers := func(Question, time.Time, time.Duration) Answer {
			defer connections.open()()
			time.Sleep(time.Second / 2)
			return Answer{Known: true, Reached: true}
		}
		const hosts, interval = 300, 6 * time.Second
		pools := make([]*Pool, hosts)
		for i := range pools {
			pools[i] = NewPool()
			pools[i].interval = interval
			pools[i].known[ofNobody] = &asked{answer: Answer{Known: true, At: time.Now()}}
		}
		for round := range uint64(8) {
			for _, p := range pools {
				p.Ask(round+1, ofNobody, Wanted{Ask: answers, Timeout: 5 * time.Second}, nil)
			}
			time.Sleep(time.Second) // all hosts gather at once
		}
		time.Sleep(interval + time.Second) // until nobody asks any more
		synctest.Wait()
		t.Logf("%d questions of %d hosts; %d connections at a time at most", connections.all, hosts, connections.most)
		assert.GreaterOrEqual(t, connections.all, hosts)
		assert.Less(t, connections.most, 220-150)
		for _, p := range pools {
			assert.True(t, p.Last(ofNobody).Answered())
		}
	})
}
