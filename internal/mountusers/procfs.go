package mountusers

import (
	"bytes"
	"iter"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// What procfs says of a process that has ended.
const (
	errSearch  = unix.ESRCH
	errInvalid = unix.EINVAL
)

// deleted is what the kernel adds to the path of a file that was removed (d_path, fs/d_path.c).
const deleted = " (deleted)"

// mapping is of a file.
type mapping struct {
	major, minor int
	path         string
}

// mappings are those of files, in a file as proc_pid_maps(5) has it:
//
//	address perms offset dev inode pathname
func mappings(content []byte) iter.Seq[mapping] {
	return func(yield func(mapping) bool) {
		for line := range bytes.Lines(content) {
			fields := strings.SplitN(string(bytes.TrimSuffix(line, []byte("\n"))), " ", 6)
			if len(fields) < 6 || fields[4] == "0" {
				continue
			}
			path := strings.TrimLeft(fields[5], " ")
			major, minor, _ := strings.Cut(fields[3], ":")
			m, err := strconv.ParseUint(major, 16, 31)
			n, err2 := strconv.ParseUint(minor, 16, 31)
			if err == nil && err2 == nil && strings.HasPrefix(path, "/") &&
				!yield(mapping{int(m), int(n), mounts.UnescapeOctal(strings.TrimSuffix(path, deleted))}) {
				return
			}
		}
	}
}

// uidOf is the effective user of a process, by its status file.
func uidOf(status []byte) uint32 {
	_, rest, _ := bytes.Cut(status, []byte("\nUid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 2 {
		return 0
	}
	uid, _ := strconv.ParseUint(fields[1], 10, 32)
	return uint32(uid)
}
