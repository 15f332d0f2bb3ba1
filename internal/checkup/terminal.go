package checkup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/printable"
)

// IsTerminal reports whether a person looks at the file.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// WantsColor reports whether what is written to the file may have colors:
// a terminal that knows some, and nobody who has set NO_COLOR
// (https://no-color.org).
func WantsColor(f *os.File, lookup func(string) (string, bool)) bool {
	no, _ := lookup("NO_COLOR")
	term, _ := lookup("TERM")
	return no == "" && term != "" && term != "dumb" && IsTerminal(f)
}

// errNobodyReads is that of [Deliver].
var errNobodyReads = errors.New("writing the report: nobody reads it")

// Deliver writes to a file that may be a pipe nobody reads. It gives up after
// limit; on a terminal it waits, which a person may have stopped. Before, it asks
// for a pipe to be as large as the content, so that a pager is not cut short.
// After an error the program has to end: the write may still be under way.
func Deliver(f *os.File, content []byte, limit time.Duration) error {
	if IsTerminal(f) {
		limit = 1<<63 - 1
	}
	// fcntl(2): up to /proc/sys/fs/pipe-max-size, 1 MiB; on anything else an error.
	_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, len(content))
	written := make(chan error, 1)
	go func() {
		_, err := f.Write(content)
		written <- err
	}()
	select {
	case err := <-written:
		return err
	case <-time.After(limit):
		return errNobodyReads
	}
}

// Paint shows a text instead of the one before. A terminal gets no more of it than it has
// lines; anything else gets all of it, and an empty line.
func Paint(f *os.File, text []byte) error {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || !IsTerminal(f) {
		_, err = fmt.Fprintf(f, "%s\n", text)
		return err
	}
	_, err = f.Write(screen(text, int(size.Row)))
	return err
}

// screen is a text as a terminal with so many lines shows it, from its first line on (ECMA-48:
// CUP, EL, ED). What does not fit is left out, and that is said; 0 lines: it is not known how
// many there are.
func screen(text []byte, rows int) []byte {
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if rows > 2 && len(lines) > rows-1 {
		left := len(lines) - (rows - 2)
		lines = append(lines[:rows-2:rows-2], fmt.Appendf(nil, "... %d more lines", left))
	}
	shown := []byte("\x1b[H")
	for _, line := range lines {
		shown = append(append(shown, line...), "\x1b[K\n"...)
	}
	return append(shown, "\x1b[J"...)
}

// Progress shows on a terminal that the program is at work.
type Progress struct {
	mu      sync.Mutex
	text    string
	stopped chan struct{}
	ended   chan struct{}
}

// Show shows a text with the seconds that have passed and that remain, once this
// takes long enough to be noticed. It does nothing unless f is a terminal.
func Show(f *os.File, text string, limit time.Duration) *Progress {
	p := &Progress{text: text, stopped: make(chan struct{}), ended: make(chan struct{})}
	if !IsTerminal(f) {
		close(p.ended)
		return p
	}
	go p.run(f, limit)
	return p
}

// Update changes the text.
func (p *Progress) Update(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
}

// Stop removes it.
func (p *Progress) Stop() {
	close(p.stopped)
	select {
	case <-p.ended:
	case <-time.After(time.Second): // the terminal is stopped
	}
}

func (p *Progress) run(f *os.File, limit time.Duration) {
	defer close(p.ended)
	const noticed, step = 300 * time.Millisecond, 200 * time.Millisecond
	began := time.Now()
	wait := noticed
	for turn := 0; ; turn++ {
		select {
		case <-p.stopped:
			if turn > 0 {
				fmt.Fprint(f, "\r\x1b[K")
			}
			return
		case <-time.After(wait):
		}
		wait = step
		p.mu.Lock()
		text := p.text
		p.mu.Unlock()
		passed := time.Since(began)
		fmt.Fprintf(f, "\r\x1b[K%c %s; %.0f s, at most %.0f more", `|/-\`[turn%4], printable.Terminal(text), passed.Seconds(), max(0, (limit-passed).Seconds()))
	}
}
