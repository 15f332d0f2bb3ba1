package forkserver

import (
	"syscall"
	"unsafe"
)

const (
	// linux/mount.h; the numbers are the same on every architecture, Linux 6.8.
	sysStatmount = 457
	sysListmount = 458
	// mountRequestSize is MNT_ID_REQ_SIZE_VER0.
	mountRequestSize = 24
	// listRoot is LSMT_ROOT: the mounts below the caller's root directory.
	listRoot = ^uint64(0)
	// superblockBasic is STATMOUNT_SB_BASIC.
	superblockBasic = 1
	// magicOffset is that of sb_magic in struct statmount, and statmountSize where its
	// strings begin.
	magicOffset   = 24
	statmountSize = 512
	// statmountRoom is less than which is not worth to ask for a mount with.
	statmountRoom = 1 << 10
	// mountPage is how many mounts are listed at a time.
	mountPage = 128

	// full says that the output must be sent before more goes into it. It is none of the
	// errors of the calls that are made.
	full = syscall.ENOBUFS

	// Offsets into struct linux_dirent64, getdents64(2).
	entryLength = 16
	entryName   = 19
)

// mountWork is what [StatMounts] works on.
type mountWork struct {
	request struct { // struct mnt_id_req, linux/mount.h
		size, spare uint32
		id, param   uint64
	}
	ids   [mountPage]uint64
	magic uint64 // of the mount of the request
}

// compound makes the system calls of a compound step. What it finds is sent in
// answers of the kind [StepPart], each of which OutputLength counts while it grows.
//
//go:nosplit
//go:norace
//go:nocheckptr
func compound(s *Slot, step *Step) (result uintptr, errno syscall.Errno) {
	answer := &s.answer
	answer.Errno, answer.Result, answer.Nanoseconds, answer.OutputLength = 0, 0, 0, 0
	switch step.Number {
	case ReadAll:
		result, errno = readAll(s, &step.Arguments, syscall.SYS_READ)
	case ReadDirectory:
		result, errno = readAll(s, &step.Arguments, syscall.SYS_GETDENTS64)
	case ReadLinks:
		result, errno = readLinks(s, &step.Arguments)
	case StatMounts:
		result, errno = statMounts(s, &step.Arguments)
	}
	flush(s)
	if errno != 0 {
		result = ^uintptr(0)
	}
	return result, errno
}

// flush sends what is in the output.
//
//go:nosplit
//go:norace
//go:nocheckptr
func flush(s *Slot) {
	if s.answer.OutputLength > 0 {
		s.answer.Kind = StepPart
		send(s)
		s.answer.OutputLength = 0
	}
}

// readAll reads the file a[0] to its end by the call, or a[1] bytes of it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func readAll(s *Slot, a *[6]uint64, call uintptr) (uintptr, syscall.Errno) {
	total, limit := uintptr(0), uintptr(a[1])
	for {
		n, _, errno := syscall.RawSyscall6(call, uintptr(a[0]), uintptr(unsafe.Pointer(&s.output)), MaxOutput, 0, 0, 0)
		switch {
		case errno == syscall.EINTR:
			continue
		case errno != 0 || n == 0:
			return total, errno
		case n > limit-total:
			s.answer.OutputLength = uint32(limit - total)
			return 0, syscall.EFBIG
		}
		total += n
		s.answer.OutputLength = uint32(n)
		flush(s)
	}
}

// readLinks reads the links in the directory a[0] whose names begin with a digit, and
// reports those whose targets begin with the a[2] bytes at a[1], at most a[3]. The
// directory is read into a[4].
//
//go:nosplit
//go:norace
//go:nocheckptr
func readLinks(s *Slot, a *[6]uint64) (uintptr, syscall.Errno) {
	reported := uint64(0)
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_GETDENTS64, uintptr(a[0]), uintptr(a[4]), DirectorySpace, 0, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			return uintptr(reported), errno
		}
		for at := uintptr(0); at < n; {
			if reported >= a[3] {
				return uintptr(reported), 0
			}
			entry := unsafe.Add(pointer(a[4]), at)
			errno := readLink(s, a, unsafe.Add(entry, entryName))
			if errno == 0 {
				errno = addLink(s, a, unsafe.Add(entry, entryName))
			}
			if errno == full {
				flush(s)
				continue // once more
			}
			if errno != 0 && errno != syscall.ENOENT {
				return 0, errno
			}
			if errno == 0 {
				reported++
			}
			at += max(1, uintptr(*(*uint16)(unsafe.Add(entry, entryLength))))
		}
	}
}

// readLink reads the link behind the output, where a record of it has the target. Its
// length is the answer's Result. For an entry that is not to be read it returns ENOENT.
//
//go:nosplit
//go:norace
//go:nocheckptr
func readLink(s *Slot, a *[6]uint64, name unsafe.Pointer) syscall.Errno {
	if first := *(*byte)(name); first < '0' || first > '9' {
		return syscall.ENOENT
	}
	start := uintptr(s.answer.OutputLength) + linkHeader + nameLength(name)
	if start >= MaxOutput {
		return full
	}
	n, _, errno := syscall.RawSyscall6(syscall.SYS_READLINKAT, uintptr(a[0]), uintptr(name),
		uintptr(unsafe.Pointer(&s.output))+start, MaxOutput-start, 0, 0)
	s.answer.Result = int64(n)
	return errno
}

// nameLength is how long the name of an entry is.
//
//go:nosplit
//go:norace
//go:nocheckptr
func nameLength(name unsafe.Pointer) (length uintptr) {
	for *(*byte)(unsafe.Add(name, length)) != 0 && length < 255 { // NAME_MAX
		length++
	}
	return length
}

// addLink completes the record of a link that was read. It returns ENOENT where the
// target does not begin as it is to.
//
//go:nosplit
//go:norace
//go:nocheckptr
func addLink(s *Slot, a *[6]uint64, name unsafe.Pointer) syscall.Errno {
	length, n := nameLength(name), uintptr(s.answer.Result)
	record := unsafe.Add(unsafe.Pointer(&s.output), s.answer.OutputLength)
	size := linkHeader + length + n
	if uintptr(s.answer.OutputLength)+size >= MaxOutput && s.answer.OutputLength > 0 {
		return full // the target may be longer
	}
	if !begins(unsafe.Add(record, linkHeader+length), n, a) {
		return syscall.ENOENT
	}
	*(*[2]uint16)(record) = [2]uint16{uint16(length), uint16(n)}
	for k := uintptr(0); k < length; k++ {
		*(*byte)(unsafe.Add(record, linkHeader+k)) = *(*byte)(unsafe.Add(name, k))
	}
	s.answer.OutputLength += uint32(size+7) &^ 7
	return 0
}

// begins reports whether the target of n bytes begins with the a[2] bytes at a[1].
//
//go:nosplit
//go:norace
//go:nocheckptr
func begins(target unsafe.Pointer, n uintptr, a *[6]uint64) bool {
	if uint64(n) < a[2] {
		return false
	}
	for k := uintptr(0); k < uintptr(a[2]); k++ {
		if *(*byte)(unsafe.Add(target, k)) != *(*byte)(unsafe.Add(pointer(a[1]), k)) {
			return false
		}
	}
	return true
}

// statMounts describes the mounts below the root directory: by the mask a[0], or by
// a[1] those that the [KnownMounts] at a[2] say. It works on a[4], and reports a[5]
// bytes at most.
//
//go:nosplit
//go:norace
//go:nocheckptr
func statMounts(s *Slot, a *[6]uint64) (uintptr, syscall.Errno) {
	work := (*mountWork)(pointer(a[4]))
	work.request.size, work.request.spare, work.request.id = mountRequestSize, 0, 0
	reported, total := uintptr(0), uint64(0)
	for {
		n, errno := listMounts(work)
		if errno != 0 || n == 0 {
			return reported, errno
		}
		for i := uintptr(0); i < n && i < mountPage; i++ {
			work.request.id = work.ids[i]
			errno := describeMount(s, a, a[0])
			if errno == full {
				flush(s)
				errno = describeMount(s, a, a[0])
			}
			if errno == syscall.EOVERFLOW { // the options of an overlay of many layers, for instance
				errno = describeMount(s, a, a[1])
			}
			size, errno := mountRecord(s, work, errno)
			if errno != 0 {
				return 0, errno
			}
			if size == 0 {
				continue // unmounted meanwhile
			}
			if total += uint64(size); total > a[5] {
				return 0, syscall.EFBIG
			}
			s.answer.OutputLength += size
			reported++
		}
	}
}

// listMounts lists the mounts behind the one of the request.
//
//go:nosplit
//go:norace
//go:nocheckptr
func listMounts(work *mountWork) (uintptr, syscall.Errno) {
	work.request.id, work.request.param = listRoot, work.request.id
	n, _, errno := syscall.RawSyscall6(sysListmount, uintptr(unsafe.Pointer(&work.request)), uintptr(unsafe.Pointer(&work.ids)), mountPage, 0, 0, 0)
	return n, errno
}

// mountRecord returns the size of the record behind the output, which it makes where
// the mount could not be described.
//
//go:nosplit
//go:norace
//go:nocheckptr
func mountRecord(s *Slot, work *mountWork, errno syscall.Errno) (uint32, syscall.Errno) {
	record := unsafe.Add(unsafe.Pointer(&s.output), s.answer.OutputLength)
	switch errno {
	case 0:
		return min(trim(record), MaxOutput-s.answer.OutputLength), 0
	case syscall.ENOENT:
		return 0, 0
	case syscall.EOVERFLOW:
		*(*[2]uint32)(record) = [2]uint32{missingMount, uint32(errno)}
		*(*[2]uint64)(unsafe.Add(record, 8)) = [2]uint64{0, work.request.id}
		return missingMount, 0
	}
	return 0, errno
}

// describeMount puts behind the output what statmount(2) says of a mount: what the mask
// asks for, or what is asked of mounts that are denied. That of one which is not known
// is found out before, by its magic. It returns full where there may be room if nothing is before it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func describeMount(s *Slot, a *[6]uint64, mask uint64) syscall.Errno {
	work := (*mountWork)(pointer(a[4]))
	record := unsafe.Add(unsafe.Pointer(&s.output), s.answer.OutputLength)
	room := MaxOutput - uintptr(s.answer.OutputLength)
	if room < statmountRoom {
		return full
	}
	if !known(work, a) {
		work.request.param = superblockBasic
		_, _, errno := syscall.RawSyscall6(sysStatmount, uintptr(unsafe.Pointer(&work.request)), uintptr(record), room, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		work.magic = *(*uint64)(unsafe.Add(record, magicOffset))
	}
	work.request.param = mask
	if denied(work, a) {
		work.request.param = a[1]
	}
	_, _, errno := syscall.RawSyscall6(sysStatmount, uintptr(unsafe.Pointer(&work.request)), uintptr(record), room, 0, 0, 0)
	if errno == syscall.EOVERFLOW && room < MaxOutput {
		return full
	}
	return errno
}

// known reports whether the mount of the request was looked at before.
//
//go:nosplit
//go:norace
//go:nocheckptr
func known(work *mountWork, a *[6]uint64) bool {
	return work.request.id <= (*KnownMounts)(pointer(a[2])).Last
}

// denied reports whether the mount of the request may not be asked for its options: by
// its number, or by its magic where it is not known.
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func denied(work *mountWork, a *[6]uint64) bool {
	mounts := (*KnownMounts)(pointer(a[2]))
	list, wanted := &mounts.Denied, work.request.id
	if wanted > mounts.Last {
		list, wanted = &mounts.Magics, work.magic
	}
	for k := range list {
		if list[k] == 0 || list[k] == wanted {
			return list[k] != 0
		}
	}
	return false
}

// trim moves the strings of a struct statmount to where the members end that are of use,
// and returns the size of what is left: most of it is room for members to come.
//
//go:nosplit
//go:norace
//go:nocheckptr
func trim(record unsafe.Pointer) uint32 {
	size := *(*uint32)(record)
	for from, to := uintptr(statmountSize), uintptr(MountMembers); from < uintptr(size); from, to = from+8, to+8 {
		*(*uint64)(unsafe.Add(record, to)) = *(*uint64)(unsafe.Add(record, from))
	}
	size = max(size, statmountSize) - statmountSize + MountMembers
	*(*uint32)(record) = size
	return (size + 7) &^ 7
}

// pointer is one to the request's memory, which the collector does not know.
//
//go:nosplit
//go:norace
//go:nocheckptr
func pointer(address uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
