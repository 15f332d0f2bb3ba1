package sunrpc

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Who asks later has less time than who asked first.
func TestPool_KeepsTheLimitOfEachCaller(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	p := NewPool()
	q := Question{Network: "tcp", Address: netip.MustParseAddrPort(silent.Addr().String()), Program: ProgramNFS}
	patient, hasty := make(chan Answer, 1), make(chan Answer, 1)
	began := time.Now()
	p.Ask(1, q, time.Second, []uint32{3}, func(a Answer) { patient <- a })
	p.Ask(1, q, 20*time.Millisecond, []uint32{3}, func(a Answer) { hasty <- a })
	assert.Equal(t, "ETIMEDOUT", (<-hasty).Errno)
	assert.Less(t, time.Since(began), 500*time.Millisecond)
	assert.Empty(t, patient)
	assert.Zero(t, p.Last(q).At, "it is still under way")
	a := <-patient
	assert.Equal(t, "ETIMEDOUT", a.Errno)
	assert.True(t, a.Reached)
	assert.Empty(t, hasty, "it is told once")
}
