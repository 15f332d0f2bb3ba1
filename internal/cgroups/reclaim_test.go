package cgroups

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestHierarchies_Reclaim(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Reclaim
	}{
		"version 2": {map[string]string{"cgroup.controllers": "memory", "a/memory.reclaim": ""},
			Reclaim{"a/memory.reclaim", []string{"4096 swappiness=0", "4096"}, unix.EAGAIN}},
		"version 1": {map[string]string{"memory/memory.kmem.usage_in_bytes": "1", "memory/a/memory.force_empty": ""},
			Reclaim{"memory/a/memory.force_empty", []string{"0"}, unix.EBUSY}},
	} {
		sys := tree(t, c.files)
		h := FindHierarchies(sys)
		require.NoError(t, h.CanReclaim("/a"), name)
		c.want.File = filepath.Join(sys, "fs/cgroup", c.want.File)
		assert.Equal(t, c.want, h.Reclaim("/a", 4096), name)
		require.ErrorContains(t, h.CanReclaim("/"), "everybody's", name)
		require.ErrorIs(t, h.CanReclaim("/b"), os.ErrNotExist, name)
	}
}
