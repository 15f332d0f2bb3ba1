// Package service lets several Telegrafs share one vfsprobe, which runs as a service of its
// own: with its own rights and cgroup, and stopped by itself.
//
// A [Server] listens on a Unix socket. [Connect] is what Telegraf runs instead of vfsprobe
// itself: it passes newlines one way, and metrics and log lines the other.
//
// # The protocol
//
// Both sides begin with the line "vfsprobe 1", where the number is the protocol's. Then
// the client sends a newline for each gather that it wants. The server sends frames: a line
// "metrics LENGTH" or "log LENGTH", and then that many bytes, always whole lines.
//
// # Promises
//
//   - Each newline is answered by a gather that begins after it. Clients whose newlines are
//     less than half an interval apart share a gather: the first one waits for the other.
//   - A client that does not read costs the others nothing, and memory only up to a bound.
//   - The kernel tells who connects (SO_PEERCRED). Those allowed are root, the service's own
//     user, and the members of one group.
package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

const (
	// protocol is the number of what is spoken.
	protocol = 1
	hello    = "vfsprobe "
	// maxFrame bounds what is read at once, in bytes.
	maxFrame = 16 << 20
	// maxLine bounds a line of the protocol's own, in bytes.
	maxLine = 64
)

// kind says what a frame holds.
type kind string

const (
	metricsFrame kind = "metrics"
	logFrame     kind = "log"
)

// frames writes frames of any kind to a connection, whole.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) write(k kind, content []byte) error {
	frame := fmt.Appendf(make([]byte, 0, len(content)+maxLine), "%s %d\n", k, len(content))
	frame = append(frame, content...)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(frame)
	return err
}

// of is a writer of frames of one kind.
func (f *frames) of(k kind) io.Writer { return frameWriter{f, k} }

type frameWriter struct {
	frames *frames
	kind   kind
}

func (w frameWriter) Write(content []byte) (int, error) {
	if err := w.frames.write(w.kind, content); err != nil {
		return 0, err
	}
	return len(content), nil
}

// readFrame reads the next frame.
func readFrame(r *bufio.Reader) (kind, []byte, error) {
	line, err := readLine(r)
	if err != nil {
		return "", nil, err
	}
	name, number, _ := strings.Cut(line, " ")
	length, err := strconv.Atoi(number)
	if k := kind(name); k != metricsFrame && k != logFrame || err != nil || length < 0 || length > maxFrame {
		return "", nil, fmt.Errorf("%q is no frame of vfsprobe's", line)
	}
	content := make([]byte, length)
	if _, err := io.ReadFull(r, content); err != nil {
		return "", nil, fmt.Errorf("reading a frame: %w", err)
	}
	return kind(name), content, nil
}

// readLine reads a line of the protocol's own, without its end.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for len(line) < maxLine {
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if b == '\n' {
			return string(line), nil
		}
		line = append(line, b)
	}
	return "", fmt.Errorf("%q is no line of vfsprobe's", line)
}

// errVersion says that the other side speaks another protocol.
var errVersion = errors.New("the service and vfsprobe connect are of different versions")

// greet exchanges the protocol's number.
func greet(r *bufio.Reader, w io.Writer) error {
	_, unheard := fmt.Fprintf(w, "%s%d\n", hello, protocol)
	line, err := readLine(r) // it may have said why it does not listen
	if err != nil {
		return err
	}
	number, found := strings.CutPrefix(line, hello)
	theirs, err := strconv.Atoi(number)
	switch {
	case !found || err != nil:
		return fmt.Errorf("%q is no greeting of vfsprobe's", line)
	case theirs != protocol:
		return fmt.Errorf("%w: it speaks protocol %d, and this one %d; restart the older one", errVersion, theirs, protocol)
	}
	return unheard
}
