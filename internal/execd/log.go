package execd

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

const (
	// maxLogLine keeps log lines far below the 64 KiB at which Telegraf's reader
	// of stderr gives up for good.
	maxLogLine = 8 << 10
	// maxWaitingLog is how many bytes of lines may wait: enough for all lines that are
	// logged when thousands of mounts hang at once.
	maxWaitingLog = 1 << 20
)

// Log writes lines that Telegraf's execd input reads with their level: each
// begins with "E! ", "W! ", "I! ", "D! " or "T! ".
//
// Logging never blocks on the writer, which may be the pipe of a Telegraf that
// is stopped. Lines for which there is no room are dropped and counted.
type Log struct {
	writer io.Writer

	mu      sync.Mutex
	waiting []string
	size    int           // of what is waiting, in bytes
	dropped int           // lines, since there was room
	written chan struct{} // closed when nothing waits any more; nil when nothing does
}

// NewLog makes a Log that writes to w. Flush it at the end.
func NewLog(w io.Writer) *Log { return &Log{writer: w} }

// Named returns a logger whose lines carry the name in brackets.
func (l *Log) Named(name string) telegraf.Logger { return &logger{log: l, name: name} }

// Write logs a line that has its level, as Telegraf's packages give them to the
// standard logger.
func (l *Log) Write(text []byte) (int, error) {
	l.add(strings.TrimSuffix(string(text), "\n"))
	return len(text), nil
}

// Flush waits until all lines are written, but not longer than limit.
func (l *Log) Flush(limit time.Duration) {
	l.mu.Lock()
	written := l.written
	l.mu.Unlock()
	if written == nil {
		return
	}
	select {
	case <-written:
	case <-time.After(limit):
	}
}

func (l *Log) add(text string) {
	// Control characters could forge or hide lines.
	line := printable.Line(text)
	if len(line) > maxLogLine {
		line = strings.ToValidUTF8(line[:maxLogLine-3], "") + "..."
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 || l.size+len(line) > maxWaitingLog {
		l.dropped++
		return
	}
	l.queue(line)
	if l.written == nil {
		l.written = make(chan struct{})
		go l.run()
	}
}

// queue appends a line. It is called with mu held.
func (l *Log) queue(line string) {
	l.waiting = append(l.waiting, line)
	l.size += len(line)
}

// run writes until nothing waits any more.
func (l *Log) run() {
	for line, found := l.next(); found; line, found = l.next() {
		_, _ = io.WriteString(l.writer, line+"\n")
	}
}

func (l *Log) next() (line string, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		close(l.written)
		l.waiting, l.written = nil, nil
		return "", false
	}
	line = l.waiting[0]
	l.waiting = l.waiting[1:]
	l.size -= len(line)
	if l.dropped > 0 && l.size <= maxWaitingLog/2 { // it flows again
		l.queue(fmt.Sprintf("W! [vfsprobe] stderr was blocked: %d log lines are missing here", l.dropped))
		l.dropped = 0
	}
	return line, true
}

// logger implements telegraf.Logger.
type logger struct {
	log  *Log
	name string
}

var _ telegraf.Logger = (*logger)(nil)

// Level is Trace: Telegraf, which reads the lines, does the filtering.
func (*logger) Level() telegraf.LogLevel         { return telegraf.Trace }
func (*logger) AddAttribute(string, any)         {}
func (l *logger) Errorf(format string, a ...any) { l.printf(telegraf.Error, format, a) }
func (l *logger) Error(a ...any)                 { l.print(telegraf.Error, a) }
func (l *logger) Warnf(format string, a ...any)  { l.printf(telegraf.Warn, format, a) }
func (l *logger) Warn(a ...any)                  { l.print(telegraf.Warn, a) }
func (l *logger) Infof(format string, a ...any)  { l.printf(telegraf.Info, format, a) }
func (l *logger) Info(a ...any)                  { l.print(telegraf.Info, a) }
func (l *logger) Debugf(format string, a ...any) { l.printf(telegraf.Debug, format, a) }
func (l *logger) Debug(a ...any)                 { l.print(telegraf.Debug, a) }
func (l *logger) Tracef(format string, a ...any) { l.printf(telegraf.Trace, format, a) }
func (l *logger) Trace(a ...any)                 { l.print(telegraf.Trace, a) }

func (l *logger) printf(level telegraf.LogLevel, format string, a []any) {
	l.say(level, fmt.Sprintf(format, a...))
}

func (l *logger) print(level telegraf.LogLevel, a []any) { l.say(level, fmt.Sprint(a...)) }

func (l *logger) say(level telegraf.LogLevel, message string) {
	l.log.add(level.Indicator() + " [" + l.name + "] " + message)
}
