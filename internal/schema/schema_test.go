package schema_test

import (
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf/metric"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/schema"
)

func described() []schema.Measurement {
	return []schema.Measurement{{
		Name: "m", About: "of a kind",
		Tags: []schema.Tag{schema.T("path", "where it is")},
		Fields: []schema.Fields{
			schema.Integers("bytes", "total", "free"), schema.Floats("", "share"), schema.Strings("what it is", "result"),
			schema.Booleans("", "known"), schema.Counters("since the start", "recoveries"),
		},
	}}
}

func TestCheck(t *testing.T) {
	for want, c := range map[string]struct {
		name   string
		tags   map[string]string
		fields map[string]any
	}{
		"": {"m", map[string]string{"path": "/"}, map[string]any{
			"total": int64(1), "share": 0.5, "result": "ok", "known": true, "recoveries": int64(2)}},
		"measurement n is not described":                          {"n", nil, map[string]any{"total": int64(1)}},
		"m: tag host is not described":                            {"m", map[string]string{"host": "a"}, map[string]any{"total": int64(1)}},
		"m: field used is not described":                          {"m", nil, map[string]any{"used": int64(1)}},
		"m: field total is described as integer, and is float (1": {"m", nil, map[string]any{"total": 1.5}},
		"m: field free is described as integer, and is uint64 (1": {"m", nil, map[string]any{"free": uint64(1)}},
	} {
		err := schema.Check(described(), metric.New(c.name, c.tags, c.fields, time.Now()))
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	all := described()
	all[0].Fields[0].About = strings.Repeat("long ", 15) + "text"
	require.NoError(t, schema.WriteList(&b, all))
	assert.Equal(t, `- m (of a kind)
  - tags:
    - path (where it is)
  - fields:
    - total, free (integer, long long long long long long long long long long
      long long long long long text)
    - share (float)
    - result (string, what it is)
    - known (boolean)
    - recoveries (integer, counter, since the start)
`, b.String())
}

func TestPrometheusTypes(t *testing.T) {
	var b strings.Builder
	require.NoError(t, schema.WritePrometheusTypes(&b, described()))
	assert.Equal(t, `  [outputs.prometheus_client.metric_types]
    counter = [
      "m_recoveries",
    ]
    gauge = [
      "m_total",
      "m_free",
      "m_share",
    ]
`, b.String())
}
