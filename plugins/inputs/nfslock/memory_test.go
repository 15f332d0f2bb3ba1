package nfslock

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/leaks"
)

// One of two servers refuses all connections.
func TestNFSLock_AGatherKeepsNothing(t *testing.T) {
	const quarter = 25
	serveNFS(t)
	n, _ := newInput(t)
	pretend(t, n, map[string]string{tmpfs(t, ""): nfs4, tmpfs(t, ""): "vers=4.2,proto=tcp,addr=127.0.0.2"})
	var held leaks.Held
	for i := range 4 {
		for range quarter {
			collect.Gather(t, n)
		}
		if i == 0 {
			held = leaks.Now(t)
		}
		held.Check(t)
	}
}
