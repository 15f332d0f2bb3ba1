package nfslock

import (
	"fmt"
	"testing"

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
	const mounts = 100
	collect.AssertAllocations(t, mountsOf(t, mounts), mounts, 280, 37000)
}
