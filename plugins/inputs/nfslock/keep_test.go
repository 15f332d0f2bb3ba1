package nfslock

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A host that was renamed leaves no file behind which bears its earlier name: whether it was
// started since or not.
func TestNFSLock_RemovesTheFileOfItsEarlierName(t *testing.T) {
	for name, hand := range map[string]func(*NFSLock, json.RawMessage) error{
		"while it ran": (*NFSLock).Restore, "before it was started": (*NFSLock).Inherit,
	} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t, "mode=0755,uid=4711,gid=4712")
			run := func(hostname string, kept any) any {
				n, _ := newInput(t, func(n *NFSLock) {
					on(dir)(n)
					n.CreateCanary = true
				})
				n.hostname = hostname
				if kept != nil {
					content, err := json.Marshal(kept)
					require.NoError(t, err)
					require.NoError(t, hand(n, content))
				}
				m := gather(t, n, dir)
				assert.Equal(t, "ok ok", verdict(t, m))
				assert.Equal(t, true, field(t, m, "flock"))
				return n.Keep()
			}
			kept := run("old", nil)
			kept = run("old", kept)
			assert.FileExists(t, filepath.Join(dir, ".nfslock-probe.old"))
			kept = run("new", kept)
			assert.FileExists(t, filepath.Join(dir, ".nfslock-probe.new"))
			assert.NoFileExists(t, filepath.Join(dir, ".nfslock-probe.old"))
			run("new", kept)
			assert.FileExists(t, filepath.Join(dir, ".nfslock-probe.new"))
		})
	}
}
