package scenarios_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenarios"
)

func TestScenarios_CanBeRead(t *testing.T) {
	names, err := scenarios.Names()
	require.NoError(t, err)
	require.NotEmpty(t, names)
	names = append(names, "stories/statd")
	used := map[string]bool{}
	for _, name := range names {
		s, err := scenarios.Load(name)
		require.NoError(t, err)
		for _, step := range s.Steps {
			used[step.Verb] = true
		}
	}
	page, err := os.ReadFile("../../../../docs/NFS-SCENARIOS.md")
	require.NoError(t, err)
	for _, verb := range scenario.Verbs() {
		assert.Contains(t, string(page), "`"+verb.Name, "docs/NFS-SCENARIOS.md explains all words")
	}
}
