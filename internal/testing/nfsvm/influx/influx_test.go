package influx_test

import (
	"testing"
	"time"

	"github.com/influxdata/telegraf/metric"
	"github.com/influxdata/telegraf/plugins/serializers/influx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	read "github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
)

func TestParse(t *testing.T) {
	p, err := read.Parse(`mountstat,path=/mnt/a\ b\,c\=d,fstype=nfs4 result="ok, \"so\" to say \\",code=0i,s=1.5 1795258245526039942`)
	require.NoError(t, err)
	assert.Equal(t, read.Point{
		Name:   "mountstat",
		Tags:   map[string]string{"path": "/mnt/a b,c=d", "fstype": "nfs4"},
		Fields: map[string]string{"result": `ok, "so" to say \`, "code": "0", "s": "1.5"},
	}, p)
	for _, line := range []string{"", "a", "a,b=c", " ", "# a comment"} {
		_, err := read.Parse(line)
		assert.Error(t, err, line)
	}
}

// FuzzParse reads what Telegraf's serializer writes.
func FuzzParse(f *testing.F) {
	f.Add("/mnt/x", "ok", int64(1))
	f.Add(`a b,c=d`, `"quoted" \ back`, int64(-1))
	f.Add(`\ `, "0", int64(-64))
	serializer := &influx.Serializer{}
	if err := serializer.Init(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tag, text string, number int64) {
		m := metric.New("m", map[string]string{"t": tag}, map[string]any{"f": text, "n": number}, time.Unix(0, 1))
		line, err := serializer.Serialize(m)
		if err != nil {
			return
		}
		p, err := read.Parse(string(line[:len(line)-1]))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if got := p.Fields["f"]; got != text {
			t.Errorf("%q: field is %q, not %q", line, got, text)
		}
	})
}
