package schema_test

import (
	"strings"
	"testing"

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

func TestWriteList(t *testing.T) {
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
