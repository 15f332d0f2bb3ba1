package checkup

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/metric"
)

func TestWriteDentries(t *testing.T) {
	made := func(name string, fields map[string]any, tags map[string]string) *metric.Metric {
		return metric.New(name, tags, fields, time.Time{})
	}
	var b strings.Builder
	require.NoError(t, WriteDentries(&b, []*metric.Metric{
		made("dentrycache_source", map[string]any{"negative_per_s": 10.0, "below_created_per_s": 5.0, "below_directories": int64(3)}, map[string]string{"comm": "c", "container": "abc"}),
		made("dentrycache_dir", map[string]any{"children": int64(5), "predicted_stall_seconds": 0.0125, "complete": false, "incomplete_reason": "max_children"}, map[string]string{"directory": "/a"}),
		made("dentrycache_dir", map[string]any{"children": int64(50), "predicted_stall_seconds": 0.5, "complete": true}, map[string]string{"directory": "/b"}),
		made("dentrycache_status", map[string]any{"mode": "enoent", "watching": false, "reason": "why"}, nil),
		made("dentrycache", map[string]any{"dentries": int64(9), "negative": int64(4), "negative_per_s": -2.0, "memory_share": 0.015, "hash_load": 1.5}, nil),
		made("vfsprobe", map[string]any{"helpers": int64(1)}, nil),
	}, []string{"an error"}))
	assert.Equal(t, `9 dentries, 4 of them negative (-2/s); 1.5 % of the memory; hash load 1.50
attribution: enoent, off while negative dentries do not grow; why

DIRECTORY  CHILDREN  STALL      NOTE
/b         50        500.0 ms
/a         5         > 12.5 ms  max_children

CREATED/S  COMM  CONTAINER  NOTE
15         c     abc        5/s of it in 3 directories below

an error
`, b.String())
}
