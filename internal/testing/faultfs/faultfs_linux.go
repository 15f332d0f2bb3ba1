// Package faultfs is a FUSE file system for tests whose faults are switched
// while it is mounted: it is healthy, silent, slow, failing, or gone.
//
// It speaks the kernel's protocol itself (linux/fuse.h) rather than through a
// library, because the faults are those of the protocol: a request that was
// never read can be killed, one that was read and not answered can't.
//
// The process which mounts is the FUSE daemon. When it ends, however it ends,
// the kernel closes /dev/fuse and aborts every connection, which frees all
// processes that hang. [Main] adds a mount namespace of the test's own, so
// that the mounts vanish as well.
package faultfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Op is a FUSE request's opcode.
type Op uint32

// The operations whose behavior can be switched; linux/fuse.h.
const (
	Lookup  Op = 1
	Getattr Op = 3
	Open    Op = 14
	Read    Op = 15
	Write   Op = 16
	Statfs  Op = 17
	Flush   Op = 25
	Opendir Op = 27
	Readdir Op = 28
	Getlk   Op = 31
	Setlk   Op = 32 // flock as well, with Options.Locks

	forget      Op = 2
	release     Op = 18
	initialize  Op = 26
	releasedir  Op = 29
	interrupt   Op = 36
	destroy     Op = 38
	batchForget Op = 42
)

// FileName is the one regular file in the root directory, of FileSize zeros
// unless Options say otherwise.
const (
	FileName = "canary"
	FileSize = 4096
)

const (
	rootNode = 1
	fileNode = 2
	// Sizes of the structures in linux/fuse.h.
	inHeaderSize  = 40
	outHeaderSize = 16
	writeInSize   = 40

	fopenDirectIO = 1
	posixLocks    = 1 << 1  // FUSE_POSIX_LOCKS
	flockLocks    = 1 << 10 // FUSE_FLOCK_LOCKS
	bufferSize    = 1 << 20
)

type behavior struct {
	silent bool
	delay  time.Duration
	errno  unix.Errno
}

// Options of a file system. The zero value is one that everybody may use.
type Options struct {
	Source  string // in the mount table; "faultfs" by default
	Type    string // fuse.faultfs by default
	UID     uint32 // who mounted it
	GID     uint32
	Private bool   // nobody but UID may use it
	Mode    uint32 // permissions of the root directory; 0755 by default
	// Locks are taken by the daemon, which grants each at once and remembers none.
	// Otherwise they never leave the kernel.
	Locks bool
	// Name of the file; FileName by default.
	Name string
	// Size of the file in bytes; FileSize by default. What is written to it is
	// kept, so that it can carry a file system itself.
	Size int
}

// FS is one mounted file system.
type FS struct {
	Dir     string
	device  *os.File
	options Options
	content []byte // of the file

	mu         sync.Mutex
	behaviors  map[Op]behavior
	unlinked   bool       // the root says that it has no name any more
	changed    *sync.Cond // of the next three
	paused     bool
	resting    bool // the reader has noticed
	closed     bool
	unanswered [][]byte           // requests that were read while silent
	delayed    map[[8]byte]func() // by the request's id: ends it when it is interrupted
}

// Mount mounts a healthy file system on the directory dir. It takes
// CAP_SYS_ADMIN.
func Mount(dir string, o Options) (*FS, error) {
	if o.Source == "" {
		o.Source = "faultfs"
	}
	if o.Type == "" {
		o.Type = "fuse.faultfs"
	}
	if o.Size == 0 {
		o.Size = FileSize
	}
	if o.Mode == 0 {
		o.Mode = 0o755
	}
	if o.Name == "" {
		o.Name = FileName
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, o.UID, o.GID)
	if !o.Private {
		options += ",allow_other"
	}
	if err := unix.Mount(o.Source, dir, o.Type, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount faultfs on %q: %w", dir, err)
	}
	f := &FS{Dir: dir, options: o, content: make([]byte, o.Size),
		device: os.NewFile(uintptr(fd), "/dev/fuse"), behaviors: make(map[Op]behavior),
		delayed: make(map[[8]byte]func())}
	f.changed = sync.NewCond(&f.mu)
	// The kernel's greeting comes first: until it is answered, every request
	// waits in a way that can be killed, whatever the fault.
	greeting := make([]byte, bufferSize)
	n, err := f.device.Read(greeting)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read /dev/fuse: %w", err)
	}
	f.handle(greeting[:n])
	go f.serve()
	return f, nil
}

// New mounts a file system for the time of the test, on a directory of its own.
func New(t testing.TB) *FS {
	t.Helper()
	return NewAt(t, t.TempDir(), "faultfs")
}

// NewAt is New with a directory and a source of the test's choice.
func NewAt(t testing.TB, dir, source string) *FS {
	t.Helper()
	return NewWith(t, dir, Options{Source: source})
}

// NewWith is NewAt with all options.
func NewWith(t testing.TB, dir string, o Options) *FS {
	t.Helper()
	f, err := Mount(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// Silence makes the daemon read these requests and never answer: whoever made
// one can't be killed. Without arguments it silences all.
func (f *FS) Silence(ops ...Op) { f.behave(behavior{silent: true}, ops) }

// Fail answers these requests with errno.
func (f *FS) Fail(errno unix.Errno, ops ...Op) { f.behave(behavior{errno: errno}, ops) }

// FailLate answers these requests with errno, but not soon. Whoever made one can
// be killed.
func (f *FS) FailLate(d time.Duration, errno unix.Errno, ops ...Op) {
	f.behave(behavior{delay: d, errno: errno}, ops)
}

// Delay answers these requests late. Whoever made one can be killed.
func (f *FS) Delay(d time.Duration, ops ...Op) { f.behave(behavior{delay: d}, ops) }

func (f *FS) behave(b behavior, ops []Op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ops) == 0 {
		ops = []Op{Lookup, Getattr, Open, Read, Write, Statfs, Flush, Opendir, Readdir, Getlk, Setlk}
	}
	for _, op := range ops {
		f.behaviors[op] = b
	}
}

// Unlink has the root say that it has no name any more, as a directory that was removed on a server.
func (f *FS) Unlink() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unlinked = true
}

// Pause stops reading requests: whoever makes one hangs, and can be killed.
func (f *FS) Pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = true
	// The reader sits in a read, and would take one more request.
	_ = f.device.SetReadDeadline(time.Now())
	for !f.resting && !f.closed {
		f.changed.Wait()
	}
}

// Unanswered returns how many requests the daemon has read and left silent.
func (f *FS) Unanswered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.unanswered)
}

// Heal makes all operations work, and answers the requests that wait.
func (f *FS) Heal() {
	f.mu.Lock()
	f.behaviors = make(map[Op]behavior)
	f.paused, f.unlinked = false, false
	waiting := f.unanswered
	f.unanswered = nil
	f.changed.Broadcast()
	f.mu.Unlock()
	for _, request := range waiting {
		f.handle(request)
	}
}

// Abort ends the connection as the death of a daemon does: whoever hangs gets
// ECONNABORTED, later calls get ENOTCONN.
func (f *FS) Abort() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.changed.Broadcast()
	_ = f.device.Close()
}

// Close aborts the connection and unmounts.
func (f *FS) Close() {
	f.Abort()
	_ = unix.Unmount(f.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

func (f *FS) serve() {
	buffer := make([]byte, bufferSize)
	for {
		f.mu.Lock()
		for f.paused && !f.closed {
			f.resting = true
			f.changed.Broadcast()
			f.changed.Wait()
		}
		f.resting = false
		if f.closed {
			f.mu.Unlock()
			return
		}
		_ = f.device.SetReadDeadline(time.Time{})
		f.mu.Unlock()

		n, err := f.device.Read(buffer)
		switch {
		case err == nil && n >= inHeaderSize:
			f.handle(slices.Clone(buffer[:n]))
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
		default:
			return // unmounted, or aborted
		}
	}
}

func (f *FS) handle(request []byte) {
	op := Op(binary.NativeEndian.Uint32(request[4:]))
	f.mu.Lock()
	b := f.behaviors[op]
	if b.silent {
		f.unanswered = append(f.unanswered, request)
	}
	f.mu.Unlock()
	answer := func() { f.answer(request, op) }
	if b.errno != 0 {
		answer = func() { f.reply(request, b.errno, nil) }
	}
	switch {
	case b.silent:
	case b.delay > 0:
		f.delay(b.delay, request, answer)
	default:
		answer()
	}
}

// delay answers later, or when the requester is interrupted.
func (f *FS) delay(d time.Duration, request []byte, answer func()) {
	unique := *(*[8]byte)(request[8:])
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delayed[unique] = func() { f.reply(request, unix.EINTR, nil) }
	time.AfterFunc(d, func() {
		f.mu.Lock()
		_, waits := f.delayed[unique]
		delete(f.delayed, unique)
		f.mu.Unlock()
		if waits {
			answer()
		}
	})
}

// interrupted answers a delayed request whose requester has got a signal.
func (f *FS) interrupted(unique [8]byte) {
	f.mu.Lock()
	answer := f.delayed[unique]
	delete(f.delayed, unique)
	f.mu.Unlock()
	if answer != nil {
		answer()
	}
}

// answer does what a healthy file system does.
func (f *FS) answer(request []byte, op Op) {
	node := binary.NativeEndian.Uint64(request[16:])
	body := request[inHeaderSize:]
	switch op {
	case initialize:
		var flags uint32
		if f.options.Locks {
			flags = posixLocks | flockLocks
		}
		f.reply(request, 0, structure(initOut{Major: 7, Minor: 31, Flags: flags, MaxBackground: 16, MaxWrite: 128 << 10, TimeGran: 1}))
	case interrupt:
		f.interrupted([8]byte(body))
	case forget, batchForget:
		// These have no answer.
	case destroy, release, releasedir, Flush, Setlk:
		f.reply(request, 0, nil)
	case Getlk:
		f.reply(request, 0, structure(lockOut{Type: unix.F_UNLCK}))
	case Getattr:
		f.reply(request, 0, structure(attrOut{Attr: f.attributes(node)}))
	case Lookup:
		if string(body) != f.options.Name+"\x00" {
			f.reply(request, unix.ENOENT, nil)
			return
		}
		f.reply(request, 0, structure(entryOut{Node: fileNode, Attr: f.attributes(fileNode)}))
	case Open, Opendir:
		// Past the page cache: what carries a file system is to feel each fault.
		f.reply(request, 0, structure(openOut{Flags: fopenDirectIO}))
	case Read:
		in := *(*readIn)(unsafe.Pointer(unsafe.SliceData(body)))
		f.mu.Lock()
		rest := f.content[min(in.Offset, uint64(len(f.content))):]
		content := slices.Clone(rest[:min(uint64(in.Size), uint64(len(rest)))])
		f.mu.Unlock()
		f.reply(request, 0, content)
	case Readdir:
		in := *(*readIn)(unsafe.Pointer(unsafe.SliceData(body)))
		f.reply(request, 0, entries(in.Offset, f.options.Name))
	case Write:
		in := *(*readIn)(unsafe.Pointer(unsafe.SliceData(body)))
		f.mu.Lock()
		if in.Offset < uint64(len(f.content)) {
			copy(f.content[in.Offset:], body[writeInSize:])
		}
		f.mu.Unlock()
		f.reply(request, 0, structure(writeOut{Size: in.Size}))
	case Statfs:
		f.reply(request, 0, structure(statfsOut{
			Blocks: 1000, Bfree: 600, Bavail: 500, Files: 100, Ffree: 90, Bsize: 4096, Namelen: 255, Frsize: 4096}))
	default:
		f.reply(request, unix.ENOSYS, nil)
	}
}

func (f *FS) reply(request []byte, errno unix.Errno, payload []byte) {
	message := make([]byte, outHeaderSize, outHeaderSize+len(payload))
	binary.NativeEndian.PutUint32(message, uint32(outHeaderSize+len(payload)))
	binary.NativeEndian.PutUint32(message[4:], uint32(-int32(errno)))
	copy(message[8:16], request[8:16]) // the request's unique id
	// A requester that was killed meanwhile makes this fail with ENOENT.
	_, _ = f.device.Write(append(message, payload...))
}

// Structures of linux/fuse.h.
type (
	initOut struct {
		Major, Minor, MaxReadahead, Flags  uint32
		MaxBackground, CongestionThreshold uint16
		MaxWrite, TimeGran                 uint32
		MaxPages, MapAlignment             uint16
		Flags2                             uint32
		_                                  [7]uint32
	}
	attr struct {
		Ino, Size, Blocks, Atime, Mtime, Ctime uint64
		AtimeNsec, MtimeNsec, CtimeNsec        uint32
		Mode, Nlink, UID, GID, Rdev, Blksize   uint32
		Flags                                  uint32
	}
	attrOut struct {
		Valid     uint64
		ValidNsec uint32
		_         uint32
		Attr      attr
	}
	entryOut struct {
		Node, Generation, EntryValid, AttrValid uint64
		EntryValidNsec, AttrValidNsec           uint32
		Attr                                    attr
	}
	openOut struct {
		Handle       uint64
		Flags, Extra uint32
	}
	readIn struct {
		Handle, Offset uint64
		Size, Flags    uint32
	}
	lockOut struct {
		Start, End uint64
		Type, PID  uint32
	}
	writeOut  struct{ Size, _ uint32 }
	statfsOut struct {
		Blocks, Bfree, Bavail, Files, Ffree uint64
		Bsize, Namelen, Frsize, _           uint32
		_                                   [6]uint32
	}
)

func structure[T any](s T) []byte {
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&s)), unsafe.Sizeof(s)))
}

func (f *FS) attributes(node uint64) attr {
	if node == rootNode {
		f.mu.Lock()
		defer f.mu.Unlock()
		links := uint32(2)
		if f.unlinked {
			links = 0
		}
		return attr{Ino: rootNode, Mode: unix.S_IFDIR | f.options.Mode, Nlink: links, Blksize: 4096, UID: f.options.UID, GID: f.options.GID}
	}
	return attr{Ino: fileNode, Size: uint64(f.options.Size), Blocks: uint64(f.options.Size) / 512, Mode: unix.S_IFREG | 0o666, Nlink: 1, Blksize: 4096}
}

// entries is the root directory from the offset on, as struct fuse_dirent.
func entries(offset uint64, file string) []byte {
	var listing []byte
	for i, name := range []string{".", "..", file} {
		if uint64(i) < offset {
			continue
		}
		node, kind := uint64(rootNode), uint32(unix.DT_DIR)
		if name == file {
			node, kind = fileNode, unix.DT_REG
		}
		entry := binary.NativeEndian.AppendUint64(nil, node)
		entry = binary.NativeEndian.AppendUint64(entry, uint64(i+1))
		entry = binary.NativeEndian.AppendUint32(entry, uint32(len(name)))
		entry = binary.NativeEndian.AppendUint32(entry, kind)
		entry = append(entry, name...)
		listing = append(listing, append(entry, make([]byte, -len(name)&7)...)...)
	}
	return listing
}
