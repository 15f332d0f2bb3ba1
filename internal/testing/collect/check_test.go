package collect

import (
	"testing"
	"time"

	"github.com/influxdata/telegraf/metric"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/schema"
)

var described = []schema.Measurement{{
	Name: "m", About: "of a kind",
	Tags: []schema.Tag{schema.T("path", "where it is")},
	Fields: []schema.Fields{
		schema.Integers("bytes", "total", "free"), schema.Floats("", "share"), schema.Strings("what it is", "result"),
		schema.Booleans("", "known"), schema.Counters("since the start", "recoveries"),
	},
}}

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
		err := check(described, metric.New(c.name, c.tags, c.fields, time.Now()))
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want)
		}
	}
}
