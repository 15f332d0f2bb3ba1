package dashboards

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFiles_AreWhatGrafanaTakes(t *testing.T) {
	files, err := Files()
	require.NoError(t, err)
	uids := make(map[string]bool)
	for name, content := range files {
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		var b board
		require.NoError(t, json.Unmarshal(content, &b), name)
		assert.False(t, uids[b.UID], "%s: uid %s", name, b.UID)
		uids[b.UID] = true
		assert.LessOrEqual(t, len(b.UID), 40, "Grafana's limit")
		ids := make(map[int]bool)
		var taken [24][200]bool
		for _, p := range b.Panels {
			assert.False(t, ids[p.ID])
			ids[p.ID] = true
			assert.NotNil(t, p.FieldConfig.Overrides, "%s: %s", name, p.Title)
			require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24)
			for x := range p.GridPos.W {
				for y := range p.GridPos.H {
					cell := &taken[p.GridPos.X+x][p.GridPos.Y+y]
					assert.False(t, *cell, "%s: %s lies on another", name, p.Title)
					*cell = true
				}
			}
			refs := make(map[string]bool)
			for _, target := range p.Targets {
				assert.False(t, refs[target.RefID])
				refs[target.RefID] = true
				assert.True(t, (target.Expr == "") != (target.Query == ""))
			}
		}
	}
	assert.Len(t, uids, 4*len(databases))
}
