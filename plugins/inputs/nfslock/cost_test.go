package nfslock

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

// mountsOf returns an input that tries locks on n mounts of 5 servers.
func mountsOf(t testing.TB, n int) *NFSLock {
	t.Helper()
	serveNFS(t)
	rpchost.StartRPCBind(t)
	rpchost.StartStatd(t)
	input, _ := newInput(t)
	options := make(map[string]string)
	for i := range n {
		options[tmpfs(t, "")] = fmt.Sprintf("vers=3,proto=tcp,addr=127.0.0.%d", i%5+1)
	}
	pretend(t, input, options)
	for _, m := range collect.Gather(t, input).Named("nfslock") {
		require.Equal(t, "ok ok", verdict(t, m), "%v", m)
	}
	return input
}

// The bounds are some twice of what is needed, to be seen when it becomes more.
func TestNFSLock_AllocationsOfAGather(t *testing.T) {
	const mounts, gathers = 100, 20
	n := mountsOf(t, mounts)
	count, bytes := collect.LeastAllocations(t, n, gathers)
	count, bytes = count/mounts, bytes/mounts
	t.Logf("for each of %d mounts of 5 servers: %.1f allocations of %.0f bytes in all", mounts, count, bytes)
	assert.Less(t, count, 280.0)
	assert.Less(t, bytes, 37000.0)
}
