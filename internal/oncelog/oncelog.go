// Package oncelog logs what changes, once: an error when it comes up, and not again
// while it lasts.
package oncelog

import (
	"slices"
	"strings"
	"sync"

	"github.com/influxdata/telegraf"
)

// Log remembers what it said last about each subject. Its methods may be called from
// several goroutines. Make it with [New].
type Log struct {
	mu     sync.Mutex
	logger telegraf.Logger
	last   map[string]string // by subject
}

// New returns a Log that writes to the logger.
func New(logger telegraf.Logger) *Log { return &Log{logger: logger, last: make(map[string]string)} }

// Error logs err at level E unless the subject's last error had the same text. A nil
// err ends the subject's error, so that the next one is logged again.
func (l *Log) Error(subject string, err error) {
	if text := oneLine(err); l.Changed(subject, text) && err != nil {
		l.logger.Error(text)
	}
}

// Info is Error at level I: for what this host lacks, and is no fault.
func (l *Log) Info(subject string, err error) {
	if text := oneLine(err); l.Changed(subject, text) && err != nil {
		l.logger.Info(text)
	}
}

// oneLine is the text of an error in one line. Of joined errors it has each once.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	var parts []string
	for part := range strings.SplitSeq(err.Error(), "\n") {
		if !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "; ")
}

// Changed notes the subject's state, and reports whether it is another than before.
// The state of a subject that was never noted is empty.
func (l *Log) Changed(subject, state string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last[subject] == state {
		return false
	}
	if state == "" {
		delete(l.last, subject)
	} else {
		l.last[subject] = state
	}
	return true
}
