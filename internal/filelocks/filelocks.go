// Package filelocks reads /proc/locks, the kernel's list of file locks.
package filelocks

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Lock is one line of proc_locks(5). Only what is needed here is kept.
type Lock struct {
	Class   string // FLOCK, POSIX, OFDLCK, LEASE, DELEG
	Waiting bool   // someone waits for it
	PID     int    // of the holder or waiter; -1 for OFD locks, 0 for remote holders
	// Superblock is the file's device number as major:minor in decimal; empty
	// where the kernel names no file.
	Superblock string
}

// Read reads all locks below the directory where procfs is mounted. It shows
// those of processes in the reader's PID namespace. An error that comes with
// locks is about lines which could not be understood.
func Read(proc string) ([]Lock, error) {
	content, err := procfs.Read(filepath.Join(proc, "locks"))
	if err != nil {
		return nil, err
	}
	return Parse(content)
}

// Parse reads the content of /proc/locks (lock_get_status, fs/locks.c):
//
//	1: POSIX  ADVISORY  WRITE 1234 08:01:123456 0 EOF
//	1: -> POSIX  ADVISORY  WRITE 1235 08:01:123456 0 EOF
func Parse(content []byte) ([]Lock, error) {
	var locks []Lock
	var problems []error
	for line := range bytes.Lines(content) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		lock := Lock{}
		if len(fields) > 1 && fields[1] == "->" {
			lock.Waiting = true
			fields = append(fields[:1], fields[2:]...)
		}
		if len(fields) < 6 {
			problems = append(problems, fmt.Errorf("a line of /proc/locks has %d fields: %q", len(fields), line))
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		superblock, err2 := superblockOf(fields[5])
		if err = errors.Join(err, err2); err != nil {
			problems = append(problems, fmt.Errorf("a line of /proc/locks: %q: %w", line, err))
			continue
		}
		lock.Class, lock.PID, lock.Superblock = fields[1], pid, superblock
		locks = append(locks, lock)
	}
	return locks, errors.Join(problems...)
}

// superblockOf reads major:minor:inode, where the first two are hexadecimal.
func superblockOf(file string) (string, error) {
	if strings.HasPrefix(file, "<none>") {
		return "", nil
	}
	parts := strings.Split(file, ":")
	if len(parts) != 3 {
		return "", fmt.Errorf("%q is not major:minor:inode", file)
	}
	major, err := strconv.ParseUint(parts[0], 16, 32)
	minor, err2 := strconv.ParseUint(parts[1], 16, 32)
	if err = errors.Join(err, err2); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", major, minor), nil
}
