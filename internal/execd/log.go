package execd

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// maxLogLine keeps log lines far below the 64 KiB at which Telegraf's reader
// of stderr gives up for good.
const maxLogLine = 8 << 10

// Log writes lines which Telegraf's execd input reads with their level: each
// begins with "E! ", "W! ", "I! ", "D! " or "T! ".
type Log struct {
	mu     sync.Mutex
	writer io.Writer
}

// NewLog makes a Log that writes to w.
func NewLog(w io.Writer) *Log { return &Log{writer: w} }

// Named returns a logger whose lines carry the name in brackets.
func (l *Log) Named(name string) telegraf.Logger { return &logger{log: l, name: name} }

func (l *Log) write(level telegraf.LogLevel, name, message string) {
	// Control characters could forge or hide lines.
	line := level.Indicator() + " [" + name + "] " + printable.Line(message)
	if len(line) > maxLogLine {
		line = strings.ToValidUTF8(line[:maxLogLine-3], "") + "..."
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.writer, line+"\n")
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
	l.log.write(level, l.name, fmt.Sprintf(format, a...))
}

func (l *logger) print(level telegraf.LogLevel, a []any) {
	l.log.write(level, l.name, fmt.Sprint(a...))
}
