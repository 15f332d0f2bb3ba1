// Package kmsg reads the kernel's log, and knows the messages in it about NFS and its
// locks, about block devices and the file systems on them, and about hung tasks. It asks
// /dev/kmsg, which never waits for a file system.
package kmsg

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Device is where the kernel's log shows.
const Device = "/dev/kmsg"

// maxRecord is PRINTK_MESSAGE_MAX, the size of the largest record
// (kernel/printk/internal.h).
const maxRecord = 2048

// Log is the kernel's log, read from its oldest record on. It is not safe for
// concurrent use.
type Log struct {
	fd     int
	name   string
	buffer [4 * maxRecord]byte // escapes make a record longer
}

// Open opens the log of the given name, usually [Device]. The error is
// [os.ErrPermission] without CAP_SYSLOG where kernel.dmesg_restrict is set, and
// [os.ErrNotExist] in most containers.
func Open(name string) (*Log, error) {
	// Without O_NONBLOCK the end of the log would be waited at.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return &Log{fd: fd, name: name}, nil
}

// Close closes the device. Reading fails from then on: the descriptor's number may be another's.
func (l *Log) Close() error {
	fd := l.fd
	l.fd = -1
	return unix.Close(fd)
}

// rewind has the next Read begin with the oldest record that the kernel has.
func (l *Log) rewind() error {
	if _, err := unix.Seek(l.fd, 0, io.SeekStart); err != nil {
		return &os.PathError{Op: "lseek", Path: l.name, Err: err}
	}
	return nil
}

// Read calls take for every record that was logged since the last call; the
// first time for all that the kernel still has. It does not wait. Records that
// make no sense are left out, and the first of them named in the error.
func (l *Log) Read(take func(Record)) error {
	var problem error
	for {
		n, err := unix.Read(l.fd, l.buffer[:])
		switch {
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return problem
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EPIPE):
			continue // EPIPE: records were overwritten; the next is the oldest there is
		case err != nil:
			return &os.PathError{Op: "read", Path: l.name, Err: err}
		}
		record, err := ParseRecord(l.buffer[:n])
		if err != nil {
			if problem == nil {
				problem = fmt.Errorf("%s: %w", l.name, err)
			}
			continue
		}
		take(record)
	}
}
