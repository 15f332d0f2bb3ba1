package prober

import (
	"bytes"
	"encoding/binary"
	"iter"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// CWD stands for the directory that relative paths begin in: AT_FDCWD.
func CWD() Argument { return value(unix.AT_FDCWD) }

// Open is openat(2), with O_CLOEXEC. It returns a descriptor.
func Open(at Argument, path string, flags int, mode uint32) Step {
	return Step{Name: "openat", number: unix.SYS_OPENAT, arguments: []Argument{at, pathname(path), value(flags | unix.O_CLOEXEC), value(mode)}}
}

// OpenPath is [Open] with O_PATH: it finds the file without opening it.
func OpenPath(at Argument, path string, flags int) Step { return Open(at, path, flags|unix.O_PATH, 0) }

// OpenAt2 is openat2(2), Linux 5.6.
func OpenAt2(at Argument, path string, how *unix.OpenHow) Step {
	return Step{Name: "openat2", number: unix.SYS_OPENAT2, arguments: []Argument{at, pathname(path), input(bytesOf(how)), value(unsafe.Sizeof(*how))}}
}

// Close is close(2).
func Close(fd Argument) Step {
	return Step{Name: "close", number: unix.SYS_CLOSE, arguments: []Argument{fd}}
}

// Dup is dup3(2), with O_CLOEXEC: the descriptor to becomes a copy of fd.
func Dup(fd Argument, to int) Step {
	return Step{Name: "dup3", number: unix.SYS_DUP3, arguments: []Argument{fd, value(to), value(unix.O_CLOEXEC)}}
}

// Socket is socket(2) of AF_UNIX, with SOCK_CLOEXEC. It returns a descriptor.
func Socket(kind int) Step {
	return Step{Name: "socket", number: unix.SYS_SOCKET, arguments: []Argument{value(unix.AF_UNIX), value(kind | unix.SOCK_CLOEXEC), value(0)}}
}

// Connect is connect(2) to a struct sockaddr.
func Connect(socket Argument, address []byte) Step {
	return Step{Name: "connect", number: unix.SYS_CONNECT, arguments: []Argument{socket, input(address), value(len(address))}}
}

// Statx is statx(2); see [StepResult.Statx]. Of an empty path it is about fd itself,
// with AT_EMPTY_PATH.
func Statx(fd Argument, path string, flags, mask int) Step {
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return Step{Name: "statx", number: unix.SYS_STATX, arguments: []Argument{
		fd, pathname(path), value(flags), value(mask), output(unsafe.Sizeof(unix.Statx_t{}))}}
}

// Statfs is statfs(2); see [StepResult.Statfs].
func Statfs(path string) Step {
	return Step{Name: "statfs", number: unix.SYS_STATFS, arguments: []Argument{pathname(path), output(unsafe.Sizeof(unix.Statfs_t{}))}}
}

// Fstatfs is fstatfs(2); see [StepResult.Statfs].
func Fstatfs(fd Argument) Step {
	return Step{Name: "fstatfs", number: unix.SYS_FSTATFS, arguments: []Argument{fd, output(unsafe.Sizeof(unix.Statfs_t{}))}}
}

// FileHandle is name_to_handle_at(2) of fd itself; see [StepResult.FileHandle].
func FileHandle(fd Argument) Step {
	const header, largest, mountID = 8, 128, 4 // of struct file_handle; MAX_HANDLE_SZ of linux/exportfs.h; an int
	handle := binary.NativeEndian.AppendUint32(nil, largest)
	return Step{Name: "name_to_handle_at", number: unix.SYS_NAME_TO_HANDLE_AT, arguments: []Argument{
		fd, pathname(""), inOut(append(handle, make([]byte, header-4+largest)...)), scratch(mountID), value(unix.AT_EMPTY_PATH)}}
}

// Getdents is getdents64(2) of at most size bytes.
func Getdents(fd Argument, size int) Step {
	return Step{Name: "getdents64", number: unix.SYS_GETDENTS64, arguments: []Argument{fd, output(uintptr(size)), value(size)}}
}

// Getxattr is fgetxattr(2) of an attribute of which only the presence is of interest.
func Getxattr(fd Argument, name string) Step {
	return Step{Name: "fgetxattr", number: unix.SYS_FGETXATTR, arguments: []Argument{fd, pathname(name), value(0), value(0)}}
}

// Read is read(2) of at most size bytes.
func Read(fd Argument, size int) Step {
	return Step{Name: "read", number: unix.SYS_READ, arguments: []Argument{fd, output(uintptr(size)), value(size)}}
}

// Pread is pread(2) of at most size bytes.
func Pread(fd Argument, size int, offset int64) Step {
	return Step{Name: "pread64", number: unix.SYS_PREAD64, arguments: []Argument{fd, output(uintptr(size)), value(size), value(offset)}}
}

// Pwrite is pwrite(2).
func Pwrite(fd Argument, data []byte, offset int64) Step {
	return Step{Name: "pwrite64", number: unix.SYS_PWRITE64, arguments: []Argument{fd, input(data), value(len(data)), value(offset)}}
}

// Fsync is fsync(2).
func Fsync(fd Argument) Step {
	return Step{Name: "fsync", number: unix.SYS_FSYNC, arguments: []Argument{fd}}
}

// Unlink is unlinkat(2) of what is not a directory.
func Unlink(at Argument, path string) Step {
	return Step{Name: "unlinkat", number: unix.SYS_UNLINKAT, arguments: []Argument{at, pathname(path), value(0)}}
}

// Rename is renameat(2).
func Rename(from, to string) Step {
	return Step{Name: "renameat", number: unix.SYS_RENAMEAT, arguments: []Argument{CWD(), pathname(from), CWD(), pathname(to)}}
}

// Chmod is fchmod(2).
func Chmod(fd Argument, mode uint32) Step {
	return Step{Name: "fchmod", number: unix.SYS_FCHMOD, arguments: []Argument{fd, value(mode)}}
}

// ReadAhead is readahead(2).
func ReadAhead(fd Argument, offset int64, count int) Step {
	return Step{Name: "readahead", number: unix.SYS_READAHEAD, arguments: []Argument{fd, value(offset), value(count)}}
}

// Fadvise is posix_fadvise(2).
func Fadvise(fd Argument, offset, length int64, advice int) Step {
	return Step{Name: "fadvise64", number: unix.SYS_FADVISE64, arguments: []Argument{fd, value(offset), value(length), value(advice)}}
}

// Lock is fcntl(2) with a command of locks; see [StepResult.Lock] for those that ask.
func Lock(fd Argument, command int, lock *unix.Flock_t) Step {
	structure := input(bytesOf(lock))
	if command == unix.F_GETLK || command == unix.F_OFD_GETLK {
		structure = inOut(structure.data)
	}
	return Step{Name: "fcntl", number: unix.SYS_FCNTL, arguments: []Argument{fd, value(command), structure}}
}

// Flock is flock(2).
func Flock(fd Argument, operation int) Step {
	return Step{Name: "flock", number: unix.SYS_FLOCK, arguments: []Argument{fd, value(operation)}}
}

// InotifyInit is inotify_init1(2) with IN_CLOEXEC. It returns a descriptor.
func InotifyInit() Step {
	return Step{Name: "inotify_init1", number: unix.SYS_INOTIFY_INIT1, arguments: []Argument{value(unix.IN_CLOEXEC)}}
}

// InotifyAddWatch is inotify_add_watch(2).
func InotifyAddWatch(fd Argument, path string, mask uint32) Step {
	return Step{Name: "inotify_add_watch", number: unix.SYS_INOTIFY_ADD_WATCH, arguments: []Argument{fd, pathname(path), value(mask)}}
}

// Readlink is readlinkat(2); Output is the link's target.
func Readlink(at Argument, path string) Step {
	return Step{Name: "readlinkat", number: unix.SYS_READLINKAT, arguments: []Argument{
		at, pathname(path), output(forkserver.MaxOutput), value(forkserver.MaxOutput)}}
}

// ReadAll is read(2) until the end of the file. What was read is in Output, also where
// the step failed, and in Report.Partial where it hangs. It fails with EFBIG where
// there are more than limit bytes.
func ReadAll(fd Argument, limit int) Step {
	return Step{Name: "read", number: forkserver.ReadAll, arguments: []Argument{fd, value(limit)}, limit: limit}
}

// ReadDirectory is getdents64(2) until the end of the directory; see
// [StepResult.Names]. It fails with EFBIG where the entries take more than limit bytes.
func ReadDirectory(fd Argument, limit int) Step {
	return Step{Name: "getdents64", number: forkserver.ReadDirectory, arguments: []Argument{fd, value(limit)}, limit: limit}
}

// ReadLinks is readlinkat(2) of the links in a directory whose names begin with a
// digit, as all in proc_pid_fd(5) do; see [StepResult.Links]. It reports those whose
// targets begin with the prefix, and ends when it has reported limit of them. A link
// that is gone meanwhile is left out.
func ReadLinks(directory Argument, prefix string, limit int) Step {
	return Step{Name: "readlinkat", number: forkserver.ReadLinks, limit: limit * forkserver.MaxOutput, arguments: []Argument{
		directory, input([]byte(prefix)), value(len(prefix)), value(limit), scratch(forkserver.DirectorySpace)}}
}

// KnownMounts are what [StatMounts] needs to know beforehand.
type KnownMounts = forkserver.KnownMounts

// StatMounts is statmount(2) of all mounts that are below the root directory in the
// helper's mount namespace; see [StepResult.Records]. The masks say what is asked for:
// withoutOptions of those that may not be asked for their options, and of those of which
// withOptions is more than 4 KiB; withOptions of all others. It fails with EFBIG where
// that takes more than limit bytes, and with ENOSYS before Linux 6.8.
func StatMounts(withOptions, withoutOptions uint64, known *KnownMounts, limit int) Step {
	return Step{Name: "statmount", number: forkserver.StatMounts, limit: limit, arguments: []Argument{
		value(withOptions), value(withoutOptions), input(bytesOf(known)), value(0), scratch(int(forkserver.MountSpace)), value(limit)}}
}

// Named gives the step another name in reports.
func (s Step) Named(name string) Step {
	s.Name = name
	return s
}

// Optional lets the plan go on if the step fails.
func (s Step) Optional() Step {
	s.optional = true
	return s
}

// IsOptional reports whether the plan goes on if the step fails.
func (s *Step) IsOptional() bool { return s.optional }

// Silent leaves the step out of reports unless it fails. It is for calls which can't
// hang: a hang would be ascribed to the step after it.
func (s Step) Silent() Step {
	s.silent = true
	return s
}

// MergeWithNext makes one of the step and the next: it is silent, and its time is part of
// the next one's. A hang in it is ascribed to the next one.
func (s Step) MergeWithNext() Step {
	s.mergeWithNext = true
	return s
}

// WithoutOutput leaves in the helper what the call has written to memory.
func (s Step) WithoutOutput() Step {
	arguments := make([]Argument, len(s.arguments))
	for i, a := range s.arguments {
		switch a.kind {
		case outputKind:
			a.kind = scratchKind
		case inOutKind:
			a.kind = inputKind
		}
		arguments[i] = a
	}
	s.arguments = arguments
	return s
}

// ReadFile appends the steps that read a file to its end, and returns the index of the
// one whose Output is its content; see [ReadAll].
func (p *Plan) ReadFile(path string, limit int) (content int) {
	return p.readFile(path, limit, false)
}

// ReadFileIfAny is [Plan.ReadFile] of a file which may not be there, or not be read:
// the plan goes on.
func (p *Plan) ReadFileIfAny(path string, limit int) (content int) {
	return p.readFile(path, limit, true)
}

func (p *Plan) readFile(path string, limit int, optional bool) (content int) {
	add := func(step Step) int {
		step.optional = optional
		return p.Add(step)
	}
	file := ResultOf(add(Open(CWD(), path, unix.O_RDONLY|unix.O_NONBLOCK, 0)))
	content = add(ReadAll(file, limit))
	add(Close(file))
	return content
}

// Statx returns what statx(2) has found, or nil if it failed.
func (r *StepResult) Statx() *unix.Statx_t { return structure[unix.Statx_t](r) }

// Statfs returns what statfs(2) has found, or nil if it failed.
func (r *StepResult) Statfs() *unix.Statfs_t { return structure[unix.Statfs_t](r) }

// FileHandle returns the handle that name_to_handle_at(2) has found, and of which type it
// is, or nil if it failed.
func (r *StepResult) FileHandle() (kind int32, handle []byte) {
	header := structure[struct {
		size uint32
		kind int32
	}](r)
	if header == nil || uint64(header.size) > uint64(len(r.Output))-uint64(unsafe.Sizeof(*header)) {
		return 0, nil
	}
	return header.kind, r.Output[unsafe.Sizeof(*header):][:header.size]
}

// Lock returns the lock that F_GETLK has found, or nil if it failed.
func (r *StepResult) Lock() *unix.Flock_t { return structure[unix.Flock_t](r) }

// structure is the output as what it is, or nil if the step failed or has less. It is a copy
// only where the output is not aligned.
func structure[T any](r *StepResult) *T {
	var s *T
	if r == nil || r.Errno != 0 || len(r.Output) < int(unsafe.Sizeof(*s)) {
		return nil
	}
	first := unsafe.Pointer(unsafe.SliceData(r.Output))
	if uintptr(first)%unsafe.Alignof(*s) == 0 {
		return (*T)(first)
	}
	s = new(T)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s)), r.Output)
	return s
}

// bytesOf returns a copy of the structure's bytes.
func bytesOf[T any](s *T) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s)))
}

// A Link is a symbolic link that [ReadLinks] has found.
type Link struct{ Name, Target string }

// Links returns what [ReadLinks] has found.
func (r *StepResult) Links() []Link {
	const header = int(unsafe.Sizeof(forkserver.LinkHeader{}))
	if r == nil {
		return nil
	}
	var links []Link
	for rest := r.Output; len(rest) >= header; {
		name := int(binary.NativeEndian.Uint16(rest))
		size := header + name + int(binary.NativeEndian.Uint16(rest[2:]))
		if size > len(rest) {
			break
		}
		links = append(links, Link{Name: string(rest[header : header+name]), Target: string(rest[header+name : size])})
		rest = rest[min(aligned(size), len(rest)):]
	}
	return links
}

// Names returns those of the entries that [Getdents] or [ReadDirectory] has found, without
// "." and "..".
func (r *StepResult) Names() []string {
	const lengthOffset, nameOffset = 16, 19 // of struct linux_dirent64, getdents64(2)
	if r == nil {
		return nil
	}
	var names []string
	for rest := r.Output; len(rest) > nameOffset; {
		length := int(binary.NativeEndian.Uint16(rest[lengthOffset:]))
		if length <= nameOffset || length > len(rest) {
			break
		}
		name, _, _ := bytes.Cut(rest[nameOffset:length], []byte{0})
		if string(name) != "." && string(name) != ".." {
			names = append(names, string(name))
		}
		rest = rest[length:]
	}
	return names
}

// Records splits the output of [StatMounts], or what there is of it in Report.Partial.
// Each record is the first [forkserver.MountMembers] bytes of a struct statmount, of
// linux/mount.h, and its strings; but one with no
// more than the 24 bytes of [forkserver.MissingMount] says that statmount(2) failed.
func Records(output []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		const smallest = int(unsafe.Sizeof(forkserver.MissingMount{}))
		for rest := output; len(rest) >= smallest; {
			size := binary.NativeEndian.Uint32(rest)
			if size < uint32(smallest) || uint64(size) > uint64(len(rest)) || !yield(rest[:size:size]) {
				return
			}
			rest = rest[min(aligned(int(size)), len(rest)):]
		}
	}
}
