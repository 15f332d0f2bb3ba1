package blocked

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// name is the name of a process's file, relative to the scanner's directory. It is in a
// buffer that the next name overwrites.
func (s *Scanner) name(pid int, file string) []byte {
	s.path = strconv.AppendInt(s.path[:0], int64(pid), 10)
	s.path = append(append(s.path, '/'), file...)
	return s.path
}

func (s *Scanner) taskFile(pid, tid int, file string) []byte {
	s.path = strconv.AppendInt(s.name(pid, "task/"), int64(tid), 10)
	s.path = append(append(s.path, '/'), file...)
	return s.path
}

// open is openat(2). The one of package unix would allocate the name.
func (s *Scanner) open(name []byte, flags int) (fd int, err error) {
	name = append(name, 0)
	r, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(s.proc), uintptr(unsafe.Pointer(unsafe.SliceData(name))),
		uintptr(flags|unix.O_RDONLY|unix.O_CLOEXEC), 0, 0, 0)
	if errno != 0 {
		return -1, &os.PathError{Op: "open", Path: string(name[:len(name)-1]), Err: errno}
	}
	return int(r), nil
}

// maxContent bounds what is read of a file: a status file with thousands of groups has the context
// switches at its end. Scanners keep a smaller buffer, which nearly all files fit in.
const maxContent = 64 << 10

// read reads the beginning of a file. The result is in a buffer that the next read
// overwrites.
func (s *Scanner) read(name []byte) ([]byte, error) {
	fd, err := s.open(name, 0)
	if err != nil {
		return nil, err
	}
	content := s.content[:]
	n, err := unix.Read(fd, content)
	if n == len(content) {
		content = make([]byte, maxContent)
		n, err = unix.Pread(fd, content, 0)
	}
	unix.Close(fd)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: string(name), Err: err}
	}
	return content[:n], nil
}

// eachNumber calls do for the entries of a directory whose names are numbers,
// until do returns false.
func eachNumber(dir int, buffer []byte, do func(number int) bool) error {
	for {
		n, err := unix.Getdents(dir, buffer)
		if err != nil {
			return fmt.Errorf("getdents: %w", err)
		}
		if n == 0 {
			return nil
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var name []byte
			if name, rest, err = nextEntry(rest); err != nil {
				return fmt.Errorf("getdents: %w", err)
			}
			if number, ok := parseNumber(name); ok && !do(number) {
				return nil
			}
		}
	}
}

// nextEntry reads a struct linux_dirent64, getdents(2): inode, offset, length, type,
// name. What follows the name's zero byte is padding.
func nextEntry(entries []byte) (name, rest []byte, err error) {
	const lengthOffset, nameOffset = 16, 19
	length := 0
	if len(entries) > nameOffset {
		length = int(binary.NativeEndian.Uint16(entries[lengthOffset:]))
	}
	if length <= nameOffset || length > len(entries) {
		return nil, nil, fmt.Errorf("an entry of %d bytes in %d", length, len(entries))
	}
	return entries[nameOffset:length], entries[length:], nil
}

// parseNumber reads decimal digits up to a zero byte.
func parseNumber(name []byte) (number int, ok bool) {
	for i, c := range name {
		if c == 0 {
			return number, i > 0
		}
		if c < '0' || c > '9' || number > 1<<31 {
			return 0, false
		}
		number = number*10 + int(c-'0')
	}
	return 0, false
}

// stat is the part of proc_pid_stat(5) that matters here.
type stat struct {
	state   byte
	parent  int
	session int
	kernel  bool
	threads int
	start   uint64 // ticks after boot
}

const pfKthread = 0x00200000 // linux/sched.h

// parseStat reads a stat file. The name in it may hold anything; the text after it
// holds no parenthesis.
func parseStat(content []byte) (stat, error) {
	rest := content[bytes.LastIndexByte(content, ')')+1:]
	if len(rest) == len(content) || len(rest) < 3 || rest[0] != ' ' || rest[2] != ' ' {
		return stat{}, fmt.Errorf("a stat file without a state: %q", content)
	}
	st := stat{state: rest[1]}
	field := 4
	for value := range bytes.FieldsSeq(rest[3:]) {
		if field == 4 || field == 6 || field == 9 || field == 20 || field == 22 { // ppid, session, flags, num_threads, starttime
			number, err := strconv.ParseUint(string(value), 10, 64)
			if err != nil {
				return stat{}, fmt.Errorf("field %d of a stat file: %w: %q", field, err, content)
			}
			switch field {
			case 4:
				st.parent = int(min(number, 1<<31))
			case 6:
				st.session = int(min(number, 1<<31))
			case 9:
				st.kernel = number&pfKthread != 0
			case 20:
				st.threads = int(min(number, 1<<31))
			case 22:
				st.start = number
				return st, nil
			}
		}
		field++
	}
	return stat{}, fmt.Errorf("a stat file of %d fields: %q", field-1, content)
}

// contextSwitches is how often a task has left the CPU, by its status file.
func contextSwitches(status []byte) (switches uint64, found bool) {
	for _, key := range []string{"\nvoluntary_ctxt_switches:\t", "\nnonvoluntary_ctxt_switches:\t"} {
		_, rest, ok := bytes.Cut(status, []byte(key))
		line, _, whole := bytes.Cut(rest, []byte("\n"))
		number, err := strconv.ParseUint(string(line), 10, 64)
		if !ok || !whole || err != nil {
			return 0, false
		}
		switches += number
	}
	return switches, true
}
