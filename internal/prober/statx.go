package prober

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// statxSupport says whether helpers can make statx(2): Linux before 4.11 lacks it, and
// sandboxes of that time refuse it or kill who makes it.
type statxSupport uint8

const (
	statxUntried statxSupport = iota
	statxWorks
	statxLacking // fstatat(2) is made instead
)

// noteStatxLocked learns from a helper's answer. It reports whether the helper has failed only
// because there is no statx(2). EPERM can come from a file system, but not where statx(2) has
// never been permitted.
func (p *Prober) noteStatxLocked(number uintptr, errno syscall.Errno) (lacking bool) {
	switch {
	case number != unix.SYS_STATX || p.statx == statxWorks:
	case errno == 0:
		p.statx = statxWorks
	case errno == unix.ENOSYS || errno == unix.EPERM:
		lacking = true
	}
	return lacking
}

// retryWithoutStatxLocked starts a check again whose helper has failed because the kernel has no
// statx(2).
func (p *Prober) retryWithoutStatxLocked(h *helper) {
	if p.statx != statxLacking {
		p.statx = statxLacking
		p.warnLocked("this kernel, or a sandbox, refuses statx(2): fstatat(2) is called instead, which may answer from a cache")
	}
	p.retryLocked(h)
	p.pumpLocked()
}

// statOffset is where struct stat has what struct statx has at an offset: the owner's
// numbers, or else the mode.
func statOffset(statx uintptr) uintptr {
	var from unix.Statx_t
	var to unix.Stat_t
	switch statx {
	case unsafe.Offsetof(from.Uid):
		return unsafe.Offsetof(to.Uid)
	case unsafe.Offsetof(from.Gid):
		return unsafe.Offsetof(to.Gid)
	}
	return unsafe.Offsetof(to.Mode)
}

// withoutStatx returns the plan's steps with fstatat(2) instead of statx(2).
func withoutStatx(steps []Step) []Step {
	const flags = unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	all := make([]Step, len(steps))
	for i, s := range steps {
		if s.number == unix.SYS_STATX {
			result := s.arguments[4]
			result.size = int(unsafe.Sizeof(unix.Stat_t{}))
			s.number, s.statxByStat = unix.SYS_NEWFSTATAT, true
			s.arguments = []Argument{s.arguments[0], s.arguments[1], result, value(s.arguments[2].value & flags)}
		}
		all[i] = s
	}
	return all
}

// statxOf returns a struct statx with what a struct stat has, or nil if it was given none.
func statxOf(stat []byte) []byte {
	var from unix.Stat_t
	if len(stat) != int(unsafe.Sizeof(from)) {
		return nil
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&from)), len(stat)), stat)
	to := unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(from.Blksize), Nlink: uint32(from.Nlink), Uid: from.Uid, Gid: from.Gid,
		Mode: uint16(from.Mode), Ino: from.Ino, Size: uint64(from.Size), Blocks: uint64(from.Blocks),
		Dev_major: unix.Major(from.Dev), Dev_minor: unix.Minor(from.Dev), Rdev_major: unix.Major(from.Rdev), Rdev_minor: unix.Minor(from.Rdev),
		Atime: unix.StatxTimestamp{Sec: from.Atim.Sec, Nsec: uint32(from.Atim.Nsec)},
		Mtime: unix.StatxTimestamp{Sec: from.Mtim.Sec, Nsec: uint32(from.Mtim.Nsec)},
		Ctime: unix.StatxTimestamp{Sec: from.Ctim.Sec, Nsec: uint32(from.Ctim.Nsec)},
	}
	return bytesOf(&to)
}
