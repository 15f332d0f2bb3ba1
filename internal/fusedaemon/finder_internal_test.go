package fusedaemon

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestConnection_Fits(t *testing.T) {
	for _, comm := range []string{"sshfs", "mount.sshfs", "mount.fuse.sshf"} {
		assert.True(t, Connection{Kind: "sshfs"}.fits(comm), comm)
	}
	for _, comm := range []string{"", "ssh", "mount", "mount.fuse", "mount.fuse.sshfs", "bindfs"} {
		assert.False(t, Connection{Kind: "sshfs"}.fits(comm), comm)
	}
	assert.True(t, Connection{Kind: "a-very-long-name"}.fits("a-very-long-nam"))
}
