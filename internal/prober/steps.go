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
func CWD() Argument { return Value(unix.AT_FDCWD) }

// Open is openat(2), with O_CLOEXEC. It returns a descriptor.
func Open(at Argument, path string, flags int, mode uint32) Step {
	return Step{Name: "openat", Number: unix.SYS_OPENAT, Arguments: []Argument{at, Path(path), Value(flags | unix.O_CLOEXEC), Value(mode)}}
}

// OpenPath is [Open] with O_PATH: it finds the file without opening it.
func OpenPath(at Argument, path string, flags int) Step { return Open(at, path, flags|unix.O_PATH, 0) }

// OpenAt2 is openat2(2), Linux 5.6.
func OpenAt2(at Argument, path string, how *unix.OpenHow) Step {
	return Step{Name: "openat2", Number: unix.SYS_OPENAT2, Arguments: []Argument{at, Path(path), Input(bytesOf(how)), Value(unsafe.Sizeof(*how))}}
}

// Close is close(2).
func Close(fd Argument) Step {
	return Step{Name: "close", Number: unix.SYS_CLOSE, Arguments: []Argument{fd}}
}

// Statx is statx(2); see [StepResult.Statx]. Of an empty path it is about fd itself,
// with AT_EMPTY_PATH.
func Statx(fd Argument, path string, flags, mask int) Step {
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return Step{Name: "statx", Number: unix.SYS_STATX, Arguments: []Argument{
		fd, Path(path), Value(flags), Value(mask), Output(unsafe.Sizeof(unix.Statx_t{}))}}
}

// Statfs is statfs(2); see [StepResult.Statfs].
func Statfs(path string) Step {
	return Step{Name: "statfs", Number: unix.SYS_STATFS, Arguments: []Argument{Path(path), Output(unsafe.Sizeof(unix.Statfs_t{}))}}
}

// Fstatfs is fstatfs(2); see [StepResult.Statfs].
func Fstatfs(fd Argument) Step {
	return Step{Name: "fstatfs", Number: unix.SYS_FSTATFS, Arguments: []Argument{fd, Output(unsafe.Sizeof(unix.Statfs_t{}))}}
}

// Getdents is getdents64(2) of at most size bytes.
func Getdents(fd Argument, size int) Step {
	return Step{Name: "getdents64", Number: unix.SYS_GETDENTS64, Arguments: []Argument{fd, Output(uintptr(size)), Value(size)}}
}

// Read is read(2) of at most size bytes.
func Read(fd Argument, size int) Step {
	return Step{Name: "read", Number: unix.SYS_READ, Arguments: []Argument{fd, Output(uintptr(size)), Value(size)}}
}

// Pread is pread(2) of at most size bytes.
func Pread(fd Argument, size int, offset int64) Step {
	return Step{Name: "pread64", Number: unix.SYS_PREAD64, Arguments: []Argument{fd, Output(uintptr(size)), Value(size), Value(offset)}}
}

// Pwrite is pwrite(2).
func Pwrite(fd Argument, data []byte, offset int64) Step {
	return Step{Name: "pwrite64", Number: unix.SYS_PWRITE64, Arguments: []Argument{fd, Input(data), Value(len(data)), Value(offset)}}
}

// Fsync is fsync(2).
func Fsync(fd Argument) Step {
	return Step{Name: "fsync", Number: unix.SYS_FSYNC, Arguments: []Argument{fd}}
}

// Unlink is unlinkat(2) of what is not a directory.
func Unlink(at Argument, path string) Step {
	return Step{Name: "unlinkat", Number: unix.SYS_UNLINKAT, Arguments: []Argument{at, Path(path), Value(0)}}
}

// Chmod is fchmod(2).
func Chmod(fd Argument, mode uint32) Step {
	return Step{Name: "fchmod", Number: unix.SYS_FCHMOD, Arguments: []Argument{fd, Value(mode)}}
}

// ReadAhead is readahead(2).
func ReadAhead(fd Argument, offset int64, count int) Step {
	return Step{Name: "readahead", Number: unix.SYS_READAHEAD, Arguments: []Argument{fd, Value(offset), Value(count)}}
}

// Fadvise is posix_fadvise(2).
func Fadvise(fd Argument, offset, length int64, advice int) Step {
	return Step{Name: "fadvise64", Number: unix.SYS_FADVISE64, Arguments: []Argument{fd, Value(offset), Value(length), Value(advice)}}
}

// Access is faccessat(2) with F_OK: it says whether the path exists.
func Access(at Argument, path string) Step {
	return Step{Name: "faccessat", Number: unix.SYS_FACCESSAT, Arguments: []Argument{at, Path(path), Value(unix.F_OK)}}
}

// Lock is fcntl(2) with a command of locks; see [StepResult.Lock] for those that ask.
func Lock(fd Argument, command int, lock *unix.Flock_t) Step {
	structure := Input(bytesOf(lock))
	if command == unix.F_GETLK || command == unix.F_OFD_GETLK {
		structure = InOut(structure.data)
	}
	return Step{Name: "fcntl", Number: unix.SYS_FCNTL, Arguments: []Argument{fd, Value(command), structure}}
}

// Flock is flock(2).
func Flock(fd Argument, operation int) Step {
	return Step{Name: "flock", Number: unix.SYS_FLOCK, Arguments: []Argument{fd, Value(operation)}}
}

// InotifyInit is inotify_init1(2) with IN_CLOEXEC. It returns a descriptor.
func InotifyInit() Step {
	return Step{Name: "inotify_init1", Number: unix.SYS_INOTIFY_INIT1, Arguments: []Argument{Value(unix.IN_CLOEXEC)}}
}

// InotifyAddWatch is inotify_add_watch(2).
func InotifyAddWatch(fd Argument, path string, mask uint32) Step {
	return Step{Name: "inotify_add_watch", Number: unix.SYS_INOTIFY_ADD_WATCH, Arguments: []Argument{fd, Path(path), Value(mask)}}
}

// Readlink is readlinkat(2); Output is the link's target.
func Readlink(at Argument, path string) Step {
	return Step{Name: "readlinkat", Number: unix.SYS_READLINKAT, Arguments: []Argument{
		at, Path(path), Output(forkserver.MaxOutput), Value(forkserver.MaxOutput)}}
}

// ReadAll is read(2) until the end of the file. What was read is in Output, also where
// the step failed, and in Report.Partial where it hangs. It fails with EFBIG where
// there are more than limit bytes.
func ReadAll(fd Argument, limit int) Step {
	return Step{Name: "read", Number: forkserver.ReadAll, Arguments: []Argument{fd, Value(limit)}, limit: limit}
}

// ReadLinks is readlinkat(2) of the links in a directory whose names begin with a
// digit, as all in proc_pid_fd(5) do; see [StepResult.Links]. It reports those whose
// targets begin with the prefix, and ends when it has reported limit of them. A link
// that is gone meanwhile is left out.
func ReadLinks(directory Argument, prefix string, limit int) Step {
	return Step{Name: "readlinkat", Number: forkserver.ReadLinks, limit: limit * forkserver.MaxOutput, Arguments: []Argument{
		directory, Input([]byte(prefix)), Value(len(prefix)), Value(limit), Scratch(forkserver.DirectorySpace)}}
}

// KnownMounts are what [StatMounts] needs to know beforehand.
type KnownMounts = forkserver.KnownMounts

// StatMounts is statmount(2) of all mounts that are below the root directory in the
// helper's mount namespace; see [StepResult.Records]. The masks say what is asked for:
// withoutOptions of those that may not be asked for their options, and of those of which
// withOptions is more than 4 KiB; withOptions of all others. It fails with EFBIG where
// that takes more than limit bytes, and with ENOSYS before Linux 6.8.
func StatMounts(withOptions, withoutOptions uint64, known *KnownMounts, limit int) Step {
	return Step{Name: "statmount", Number: forkserver.StatMounts, limit: limit, Arguments: []Argument{
		Value(withOptions), Value(withoutOptions), Input(bytesOf(known)), Value(0), Scratch(int(forkserver.MountSpace)), Value(limit)}}
}

// Named gives the step another name in reports.
func (s Step) Named(name string) Step {
	s.Name = name
	return s
}

// Optionally lets the plan go on if the step fails: [Step.Optional].
func (s Step) Optionally() Step {
	s.Optional = true
	return s
}

// Silently leaves the step out of reports unless it fails: [Step.Silent].
func (s Step) Silently() Step {
	s.Silent = true
	return s
}

// Merged makes one of the step and the next: [Step.MergeWithNext].
func (s Step) Merged() Step {
	s.MergeWithNext = true
	return s
}

// WithoutOutput leaves in the helper what the call has written to memory.
func (s Step) WithoutOutput() Step {
	arguments := make([]Argument, len(s.Arguments))
	for i, a := range s.Arguments {
		switch a.kind {
		case output:
			a.kind = scratch
		case inOut:
			a.kind = input
		}
		arguments[i] = a
	}
	s.Arguments = arguments
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
		step.Optional = optional
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

// Lock returns the lock that F_GETLK has found, or nil if it failed.
func (r *StepResult) Lock() *unix.Flock_t { return structure[unix.Flock_t](r) }

// structure returns a copy of the output, or nil if the step failed or has less.
func structure[T any](r *StepResult) *T {
	s := new(T)
	if r == nil || r.Errno != 0 || len(r.Output) < int(unsafe.Sizeof(*s)) {
		return nil
	}
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

// Records returns what [StatMounts] has found, as [Records] does.
func (r *StepResult) Records() iter.Seq[[]byte] {
	if r == nil {
		return Records(nil)
	}
	return Records(r.Output)
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
