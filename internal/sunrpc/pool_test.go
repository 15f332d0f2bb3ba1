package sunrpc

import (
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
	return Question{Network: "tcp", Address: netip.MustParseAddrPort(listener.Addr().String()), Program: ProgramNFS}
}

// Who asks later has less time than who asked first.
func TestPool_KeepsTheLimitOfEachCaller(t *testing.T) {
	p, q := NewPool(), silent(t, new(atomic.Int64))
	patient, hasty := make(chan Answer, 1), make(chan Answer, 1)
	began := time.Now()
	p.Ask(1, q, Wanted{Evidence: true, Limit: time.Second, Versions: []uint32{3}}, func(a Answer) { patient <- a })
	p.Ask(1, q, Wanted{Evidence: true, Limit: 20 * time.Millisecond, Versions: []uint32{3}}, func(a Answer) { hasty <- a })
	assert.Equal(t, "ETIMEDOUT", (<-hasty).Errno)
	assert.Less(t, time.Since(began), 500*time.Millisecond)
	assert.Empty(t, patient)
	assert.Zero(t, p.Last(q).At, "it is still under way")
	a := <-patient
	assert.Equal(t, "ETIMEDOUT", a.Errno)
	assert.True(t, a.Reached)
	assert.Empty(t, hasty, "it is told once")
}

func TestPool_ConnectsToAServerTwiceAtATime(t *testing.T) {
	var connections atomic.Int64
	p, q := NewPool(), silent(t, &connections)
	var done sync.WaitGroup
	answers := make([]Answer, 5)
	for i := range answers {
		done.Add(1)
		program := q
		program.Program = uint32(i)
		// The last ones have no time left when it is their turn.
		limit := time.Duration(i/2+1) * 400 * time.Millisecond
		if i == 4 {
			limit = 400 * time.Millisecond
		}
		p.Ask(1, program, Wanted{Evidence: true, Limit: limit, Versions: []uint32{3}}, func(a Answer) { answers[i] = a; done.Done() })
	}
	stop := make(chan struct{})
	go func() { done.Wait(); close(stop) }()
	for most := int64(0); ; most = max(most, connections.Load()) {
		select {
		case <-stop:
			assert.LessOrEqual(t, most, int64(maxConnections))
			for i, a := range answers {
				assert.Equal(t, i < 4, a.Broken(), "%d: a question that was not put tells nothing of the server", i)
			}
			assert.Eventually(t, func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.lines) == 0 }, 10*time.Second, time.Millisecond)
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Hosts ask at different times, in a gather and in the minute.
func TestPool_HasATurnOfItsOwn(t *testing.T) {
	const hosts = 1000
	var early int
	for range hosts {
		if p := NewPool(); p.turn < 0.5 {
			early++
		}
	}
	assert.InDelta(t, hosts/2, early, hosts/10)

	const limit = 100 * time.Millisecond
	q := Question{Network: "tcp", Address: netip.MustParseAddrPort("192.0.2.1:2049"), Program: ProgramNFS}
	for _, turn := range []float64{0, 0.5, 0.999} {
		p := NewPool()
		p.turn = turn
		p.known[q] = &asked{answer: Answer{Known: true, At: time.Now()}}
		began := time.Now()
		answer := make(chan Answer, 1)
		p.Ask(1, q, Wanted{Evidence: true, Limit: limit, Versions: []uint32{3}}, func(a Answer) { answer <- a })
		want := limit + time.Duration(turn*float64(limit/4))
		assert.WithinDuration(t, began.Add(want), p.known[q].due, 10*time.Millisecond)
		<-answer
		assert.GreaterOrEqual(t, time.Since(began), want-limit)
	}
}

func TestPool_AsksByTurnsWhatIsNoEvidence(t *testing.T) {
	for _, at := range []time.Duration{0, time.Second, 30 * time.Second, time.Minute - 1} {
		now := time.Date(2026, 11, 27, 8, 15, 0, 0, time.UTC).Add(at)
		for _, turn := range []float64{0, 0.25, 0.999} {
			next := nextTurn(now, turn)
			assert.True(t, next.After(now))
			assert.LessOrEqual(t, next.Sub(now), refreshInterval)
			assert.Equal(t, time.Duration(turn*float64(refreshInterval)), next.Sub(next.Truncate(refreshInterval)))
		}
	}

	var connections atomic.Int64
	p, q := NewPool(), silent(t, &connections)
	routine := Wanted{Limit: 20 * time.Millisecond, Versions: []uint32{3}}
	answer := make(chan Answer, 1)
	require.True(t, p.Ask(1, q, routine, func(a Answer) { answer <- a }), "there is no answer yet")
	first := <-answer
	p.turn = float64(time.Now().Add(200*time.Millisecond).Sub(time.Now().Truncate(refreshInterval))) / float64(refreshInterval)
	for round := range uint64(10) {
		require.False(t, p.Ask(round+2, q, routine, func(Answer) { t.Error("nobody waits for it") }))
	}
	assert.Equal(t, first, p.Last(q))
	require.Eventually(t, func() bool { return p.Last(q).At.After(first.At) }, 10*time.Second, time.Millisecond)
	second := p.Last(q)
	assert.GreaterOrEqual(t, second.At.Sub(first.At), 100*time.Millisecond)
	assert.Equal(t, first.Since, second.Since)
}
