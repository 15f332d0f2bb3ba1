package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Line leads to the program outside, which has the other end as Machine.Send and
// Machine.Receive.
type Line struct {
	file    *os.File
	decoder *json.Decoder
	encoder *json.Encoder
}

// Open opens the serial line that the kernel's command line names, and says that the init
// has started.
func Open() (*Line, error) {
	device, err := Parameter("vm.line")
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", device, err)
	}
	file := os.NewFile(uintptr(fd), device)
	if err := makeRaw(fd); err != nil {
		return nil, fmt.Errorf("making %s raw: %w", device, err)
	}
	line := &Line{file: file, decoder: json.NewDecoder(file), encoder: json.NewEncoder(file)}
	return line, line.Send(Status{})
}

// makeRaw does what cfmakeraw(3) does.
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// Parameter returns the value of a parameter on the kernel's command line.
func Parameter(name string) (string, error) {
	arguments, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for argument := range strings.FieldsSeq(string(arguments)) {
		if value, ok := strings.CutPrefix(argument, name+"="); ok {
			return value, nil
		}
	}
	return "", fmt.Errorf("the kernel's command line has no %s", name)
}

// Ready says that the machine is ready, or why it is not.
func (l *Line) Ready(err error) error {
	if err != nil {
		return l.Send(Status{Failed: err.Error()})
	}
	return l.Send(Status{Ready: true})
}

// Send sends a value to the program outside.
func (l *Line) Send(v any) error { return l.encoder.Encode(v) }

// Receive waits for a value from the program outside.
func (l *Line) Receive(v any) error { return l.decoder.Decode(v) }

// Close closes the line.
func (l *Line) Close() error { return l.file.Close() }
