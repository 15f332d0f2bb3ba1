package oncelog

import (
	"errors"
	"testing"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
)

type recorder struct {
	telegraf.Logger
	lines []string
}

func (r *recorder) Error(a ...any) { r.lines = append(r.lines, "E "+a[0].(string)) }
func (r *recorder) Info(a ...any)  { r.lines = append(r.lines, "I "+a[0].(string)) }

func TestLog_SaysAnErrorOnceWhileItLasts(t *testing.T) {
	var r recorder
	l := New(&r)
	full, gone := errors.New("full"), errors.New("gone")
	for _, err := range []error{nil, full, full, gone, full, nil, nil, full} {
		l.Error("table", err)
	}
	l.Error("other", full)
	l.Info("lacks", gone)
	l.Info("lacks", gone)
	l.Error("joined", errors.Join(full, gone, full))
	assert.Equal(t, []string{"E full", "E gone", "E full", "E full", "E full", "I gone", "E full; gone"}, r.lines)
}

func TestLog_ChangedTellsStatesApart(t *testing.T) {
	l := New(&recorder{})
	assert.False(t, l.Changed("refused", ""))
	assert.True(t, l.Changed("refused", "many"))
	assert.False(t, l.Changed("refused", "many"))
	assert.True(t, l.Changed("refused", ""))
}
