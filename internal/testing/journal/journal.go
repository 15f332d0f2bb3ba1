// Package journal keeps the log of an input under test.
package journal

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/influxdata/telegraf"
)

// Journal is a logger whose lines can be asked for. Those of the level debug and
// below are kept, too.
type Journal struct {
	telegraf.Logger // calls of other methods than those below fail

	t     testing.TB
	mu    sync.Mutex
	lines []string
	ended bool // the test
}

// New returns an empty journal, which writes to the test's log as well. What is logged after the
// end of the test is dropped.
func New(t testing.TB) *Journal {
	j := &Journal{t: t}
	t.Cleanup(func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.ended = true
	})
	return j
}

func (j *Journal) note(level, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, level+" "+text)
	if !j.ended {
		j.t.Log(level + " " + text)
	}
}

func (j *Journal) Errorf(format string, a ...any) { j.note("E!", fmt.Sprintf(format, a...)) }
func (j *Journal) Error(a ...any)                 { j.note("E!", fmt.Sprint(a...)) }
func (j *Journal) Warnf(format string, a ...any)  { j.note("W!", fmt.Sprintf(format, a...)) }
func (j *Journal) Warn(a ...any)                  { j.note("W!", fmt.Sprint(a...)) }
func (j *Journal) Infof(format string, a ...any)  { j.note("I!", fmt.Sprintf(format, a...)) }
func (j *Journal) Info(a ...any)                  { j.note("I!", fmt.Sprint(a...)) }
func (j *Journal) Debugf(format string, a ...any) { j.note("D!", fmt.Sprintf(format, a...)) }
func (j *Journal) Debug(a ...any)                 { j.note("D!", fmt.Sprint(a...)) }

// About returns the lines that contain the text.
func (j *Journal) About(text string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, line := range j.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}
