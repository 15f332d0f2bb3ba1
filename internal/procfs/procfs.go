// Package procfs reads files of proc(5) and sysfs(5) as a whole. Package os would ask for
// their size and have them polled, which takes longer than to read most of them.
package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Read returns what a file holds.
func Read(name string) ([]byte, error) {
	content, err := AppendAt(nil, unix.AT_FDCWD, name)
	if err != nil {
		return nil, err
	}
	return content, nil
}

// AppendAt appends what a file holds, whose name is relative to an open directory, to content. With
// an error comes what content was, or more.
func AppendAt(content []byte, dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return content, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		if cap(content)-len(content) < 512 {
			content = slices.Grow(content, max(1024, 4*cap(content)))
		}
		n, err := read(fd, name, content[len(content):cap(content)])
		if n == 0 || err != nil {
			return content, err
		}
		content = content[:len(content)+n]
	}
}

// read is read(2), again where a signal came first.
func read(fd int, name string, buffer []byte) (int, error) {
	for {
		switch n, err := unix.Read(fd, buffer); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, &os.PathError{Op: "read", Path: name, Err: err}
		default:
			return n, nil
		}
	}
}

// ReadLine returns the first line of a file, for files of one short line, such as comm: it reads
// only once, and no more than 128 bytes.
func ReadLine(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var buffer [128]byte
	n, err := read(fd, name, buffer[:])
	line, _, _ := bytes.Cut(buffer[:n], []byte("\n"))
	return string(line), err
}

// ReadText returns what a file holds, without white space around it.
func ReadText(name string) (string, error) {
	content, err := Read(name)
	return string(bytes.TrimSpace(content)), err
}

// ReadNumber returns the integer that a file begins with, such as a sysctl's. The error is
// [os.ErrNotExist] where the kernel has no such file.
func ReadNumber(name string) (int64, error) {
	content, err := Read(name)
	if err != nil {
		return 0, err
	}
	n, err := ParseNumber(content)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// StatStarttime is the index of starttime in what [StatFields] returns.
const StatStarttime = 19

// StatFields are the fields of a /proc/PID/stat that follow the command, which may hold anything. The
// first is the third of proc_pid_stat(5).
func StatFields(content []byte) [][]byte {
	return bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
}

// UserTick is the unit of times in proc_pid_stat(5): USER_HZ is 100 on every architecture Go runs on.
const UserTick = 10 * time.Millisecond

// StartedAt is when a process was started whose starttime is this, proc_pid_stat(5).
func StartedAt(ticks string) (time.Time, error) {
	n, err := strconv.ParseInt(ticks, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("a process's start: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, fmt.Errorf("reading the time since the boot: %w", err)
	}
	return time.Now().Add(time.Duration(n)*UserTick - time.Duration(now.Nano())), nil
}

// ParseNumber returns the integer that the content begins with; what follows it after white
// space is left out, such as "N0=4845".
func ParseNumber(content []byte) (int64, error) {
	for field := range bytes.FieldsSeq(content) {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, err
		}
		return n, nil
	}
	return 0, errors.New("no number in it")
}
