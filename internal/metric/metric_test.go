package metric

import (
	"maps"
	"math"
	"testing"
	"time"

	telegraf "github.com/influxdata/telegraf/metric"
	"github.com/influxdata/telegraf/plugins/serializers/influx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMetric_SaysWhatTheProtocolCanNotCarry(t *testing.T) {
	at := time.Unix(0, 42)
	text, err := New("m", nil, map[string]any{"no": math.NaN(), "yes": true}, at).AppendLine([]byte("before\n"))
	assert.Equal(t, "before\nm yes=true 42\n", string(text))
	require.ErrorContains(t, err, `the field "no" can't be NaN`)
	text, err = New("m", nil, map[string]any{"no": math.Inf(1)}, at).AppendLine([]byte("before\n"))
	assert.Equal(t, "before\n", string(text))
	require.ErrorIs(t, err, errNoFields)
	text, err = New("", nil, map[string]any{"yes": true}, at).AppendLine(nil)
	assert.Empty(t, text)
	require.ErrorIs(t, err, errUnnamed)
}

// Whatever a metric has, its line is the one that Telegraf's own serializer makes.
func FuzzMetric_AppendLine(f *testing.F) {
	f.Add("mountstat", "path", "/srv/my media", "reason", `it said "no" in C:\`, int64(-1), uint64(math.MaxUint64), 99.5, int64(1700000000000000000))
	f.Add("a b,c=d", `k=\`, `v\\`, `f,= x`, "two\nlines\t\r\f", int64(math.MinInt64), uint64(0), math.Inf(-1), int64(0))
	f.Add("", "", "", "", "", int64(0), uint64(0), math.NaN(), int64(-5))
	f.Add("\xff\x00", "\u2028", "é, \xf0", "=", "\x7f", int64(0), uint64(1)<<63, 1e300, int64(7))
	f.Fuzz(func(t *testing.T, name, key, value, field, text string, i int64, u uint64, x float64, at int64) {
		tags := map[string]string{key: value, "z": value, "a": key}
		fields := map[string]any{field: text, "i": i, "u": u, "x": x, "yes": i > 0, "a": field,
			"int": int(i), "int32": int32(i), "uint8": uint8(u), "float32": float32(i), "bytes": []byte(text), "none": nil, "list": []int{1}, "at": &at, "nowhere": (*int64)(nil)}
		when := time.Unix(0, at)
		serializer := influx.Serializer{SortFields: true}
		expected, refused := serializer.Serialize(telegraf.New(name, tags, fields, when))
		m := New(name, tags, fields, when)
		got, err := m.AppendLine(nil)
		assert.Equal(t, string(expected), string(got))
		// Whatever it was before: the same, one with the same keys, one with others, one with a tag more.
		for _, before := range []func(){
			func() {},
			func() { m.Set("b", map[string]string{key: "b", "z": "b", "a": "b"}, maps.Clone(fields), when) },
			func() { m.Set("b", map[string]string{"b": "b", "z": "b", "a": "b"}, map[string]any{"b": 1}, when) },
			func() { m.AddTag("b", "b") },
		} {
			before()
			m.Set(name, tags, fields, when)
			again, _ := m.AppendLine(nil)
			assert.Equal(t, string(expected), string(again))
		}
		if refused != nil {
			assert.Error(t, err)
		}
	})
}
