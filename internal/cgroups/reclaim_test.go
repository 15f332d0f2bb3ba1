package cgroups

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHierarchies_Reclaim(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		said  string // what is written, and where
		where string
	}{
		"version 2": {map[string]string{"cgroup.controllers": "memory", "a/memory.reclaim": ""}, "4096 swappiness=0", "a/memory.reclaim"},
		"version 1": {map[string]string{"memory/memory.kmem.usage_in_bytes": "1", "memory/a/memory.force_empty": ""}, "0", "memory/a/memory.force_empty"},
	} {
		sys := tree(t, c.files)
		h := FindHierarchies(sys)
		require.NoError(t, h.CanReclaim("/a"), name)
		require.NoError(t, h.Reclaim("/a", 4096), name)
		content, err := os.ReadFile(filepath.Join(sys, "fs/cgroup", c.where))
		require.NoError(t, err)
		assert.Equal(t, c.said, string(content), name)
		require.ErrorContains(t, h.CanReclaim("/"), "everybody's", name)
		require.ErrorIs(t, h.CanReclaim("/b"), os.ErrNotExist, name)
		require.ErrorIs(t, h.Reclaim("/b", 1), os.ErrNotExist, name)
	}
}
