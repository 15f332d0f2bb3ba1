package forkserver

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Numbers which package syscall does not have; linux/prctl.h, linux/signal.h.
const (
	prSetPdeathsig  = 1
	prSetDumpable   = 4
	prSetName       = 15
	prSetNoNewPrivs = 38
	pollIn          = 1
	waitNoHang      = 1
	waitExited      = 4
	waitNoWait      = 0x01000000
	idTypePID       = 1
	signalSetSize   = 8
	atFdCwd         = ^uintptr(100 - 1) // -100
	cloneVM         = 0x100
	cloneFS         = 0x200
	cloneSighand    = 0x800
	// linux/seccomp.h. Without the second, kernels before 5.16 make all of the
	// process slower.
	seccompSetModeFilter = 1
	seccompSpecAllow     = 1 << 2
	sysCloseRange        = 436 // the same number on every architecture; Linux 5.9
)

// memory holds everything that the server and its helpers use besides the stack and the shared
// slots.
var memory struct {
	prober     uintptr // its pid
	pageSize   uintptr
	threadArea uintptr
	stack      uintptr // the first page of it that the server has; 0: it is not trimmed
	kept       keptMemory
	poll       [2]struct {
		fd      int32
		events  int16
		revents int16
	}
	signals    uint64
	signalInfo [128]byte
	name       [16]byte
	null       [16]byte
	root       [8]byte
	noLimit    [2]uint64
	clock      uintptr // the vDSO's clock_gettime; 0: there is none

	others int // how many helpers there are that may be other users

	seccomp      uintptr // the number of the call
	filter       program
	instructions [maxInstructions]Instruction

	shared  *shared             // with the prober; nil: the host grants none
	taken   uint32              // how many of the submitted slots
	used    uintptr             // how many slots there are up to the last that was ever used
	holders [SharedSlots]holder // the helper that has a slot

	// Where the server receives requests. A helper whose request is a message inherits
	// this one, so that nothing needs to be copied.
	slot    Slot
	request [MaxRequest / 8]uint64
}

// holder is a helper that has a slot, and what its request was.
type holder struct {
	pid      int32
	other    bool // it may be another user
	messages bool
}

// serve is the fork server. It returns only in a helper whose request was a message,
// which is to run its steps: the less stack is in use then.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve() {
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	if parent, _, _ := syscall.RawSyscall6(syscall.SYS_GETPPID, 0, 0, 0, 0, 0, 0); parent != memory.prober {
		exit(0)
	}
	unmapUnknown()
	memory.slot.server, _, _ = syscall.RawSyscall6(syscall.SYS_GETPID, 0, 0, 0, 0, 0, 0)
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(&memory.name)), 0, 0, 0, 0)
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0)
	if memory.slot.suidDumpable != 0 && forbidTracing() != 0 {
		memory.slot.suidDumpable = 0
	}
	memory.slot.capabilities &= Needed
	memory.slot.effective = ^memory.slot.capabilities
	restrictServer()
	syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, syscall.RLIMIT_CORE, uintptr(unsafe.Pointer(&memory.noLimit)), 0, 0, 0)
	// A working directory would keep its file system from being unmounted.
	syscall.RawSyscall6(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(&memory.root)), 0, 0, 0, 0, 0)
	errno := keepDescriptors()
	if errno == 0 {
		errno = watchChildren()
	}
	readClock(&memory.slot.clock[0]) // a build in which that fails needs more memory
	if memory.shared != nil {
		// Helpers with memory of their own must not see it.
		advisePages(uintptr(unsafe.Pointer(memory.shared)), sharedMemory, madvDontFork)
		passOn(madvDontFork)
	}
	if memory.seccomp != 0 {
		// Where the kernel does not have it, the server runs without it.
		memory.filter.first = uintptr(unsafe.Pointer(&memory.instructions))
		syscall.RawSyscall6(memory.seccomp, seccompSetModeFilter, seccompSpecAllow, uintptr(unsafe.Pointer(&memory.filter)), 0, 0, 0)
	}
	answer := &memory.slot.answer
	answer.Kind, answer.PID, answer.Errno = Ready, int32(memory.slot.server), uint32(errno)
	send(&memory.slot)
	if errno != 0 {
		exit(1)
	}

	for {
		sleep()
		if memory.poll[1].revents != 0 {
			syscall.RawSyscall6(syscall.SYS_READ, uintptr(memory.poll[1].fd), uintptr(unsafe.Pointer(&memory.signalInfo)),
				unsafe.Sizeof(memory.signalInfo), 0, 0, 0)
			reap()
		}
		if memory.poll[0].revents != 0 && receive() {
			return
		}
		takeSubmitted()
	}
}

// sleep waits without a bound: only the prober and children that end have anything to say.
//
//go:nosplit
//go:norace
//go:nocheckptr
func sleep() {
	m := memory.shared
	memory.poll[0].revents, memory.poll[1].revents = 0, 0
	if m != nil {
		atomic.StoreUint32(&m.sleeps, 1)
		if atomic.LoadUint32(&m.submitted.written) != memory.taken {
			atomic.StoreUint32(&m.sleeps, 0)
			return
		}
	}
	syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&memory.poll)), uintptr(len(memory.poll)), 0, 0, 0, 0)
	if m != nil {
		atomic.StoreUint32(&m.sleeps, 0)
	}
}

// receive handles one message of the prober's. It reports true in a helper, as forkApart
// does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func receive() bool {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, memory.slot.socket, uintptr(unsafe.Pointer(&memory.request)),
		MaxRequest, syscall.MSG_DONTWAIT, 0, 0)
	switch {
	case errno == syscall.EAGAIN || errno == syscall.EINTR:
		return false
	case errno != 0 || n == 0:
		exit(0) // the prober is gone; the kernel kills the helpers now
	}
	header := (*RequestHeader)(unsafe.Pointer(&memory.request))
	switch header.Kind {
	case Fork:
		return forkApart(header)
	case Kill:
		killHelper(uintptr(header.PID))
	}
	return false
}

// keepDescriptors leaves the socket open as descriptor 3, fs.suid_dumpable as 4 if it is
// needed, and /dev/null as 0 to 2. The prober's other descriptors, its stdout above all,
// must not stay open in a helper that is stuck.
//
//go:nosplit
//go:norace
//go:nocheckptr
func keepDescriptors() syscall.Errno {
	rest := uintptr(4)
	if memory.slot.suidDumpable != 0 { // out of the way
		fd, _, errno := syscall.RawSyscall6(syscall.SYS_FCNTL, memory.slot.suidDumpable, syscall.F_DUPFD, 5, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		memory.slot.suidDumpable = fd
	}
	if memory.slot.socket != 3 {
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_DUP3, memory.slot.socket, 3, 0, 0, 0, 0); errno != 0 {
			return errno
		}
		memory.slot.socket = 3
	}
	if memory.slot.suidDumpable != 0 {
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_DUP3, memory.slot.suidDumpable, 4, 0, 0, 0, 0); errno != 0 {
			return errno
		}
		memory.slot.suidDumpable, rest = 4, 5
	}
	errno := syscall.ENOSYS
	if memory.seccomp != 0 {
		_, _, errno = syscall.RawSyscall6(sysCloseRange, rest, uintptr(^uint32(0)), 0, 0, 0, 0)
	}
	if errno != 0 {
		for fd := rest; fd < 4096; fd++ { // before Linux 5.9
			syscall.RawSyscall6(syscall.SYS_CLOSE, fd, 0, 0, 0, 0, 0)
		}
	}
	var null uintptr
	null, _, errno = syscall.RawSyscall6(syscall.SYS_OPENAT, atFdCwd, uintptr(unsafe.Pointer(&memory.null)), syscall.O_RDWR, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	for fd := uintptr(0); fd < 3; fd++ {
		syscall.RawSyscall6(syscall.SYS_DUP3, null, fd, 0, 0, 0, 0)
	}
	syscall.RawSyscall6(syscall.SYS_CLOSE, null, 0, 0, 0, 0, 0)
	return 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func watchChildren() syscall.Errno {
	memory.signals = 1 << (syscall.SIGCHLD - 1)
	fd, _, errno := syscall.RawSyscall6(syscall.SYS_SIGNALFD4, ^uintptr(0), uintptr(unsafe.Pointer(&memory.signals)),
		signalSetSize, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0, 0)
	memory.poll[0].fd, memory.poll[0].events = int32(memory.slot.socket), pollIn
	memory.poll[1].fd, memory.poll[1].events = int32(fd), pollIn
	return errno
}

// forkApart forks a helper whose request is a message, in which it reports true. It has
// memory of its own, a copy of the server's.
//
//go:nosplit
//go:norace
//go:nocheckptr
func forkApart(header *RequestHeader) bool {
	memory.others++
	restrictServer()
	passOn(madvDoFork)
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		return true
	}
	passOn(madvDontFork)
	if errno != 0 {
		memory.others--
	}
	sayForked(header, pid, uintptr(errno))
	return false
}

//go:nosplit
//go:norace
func sayForked(header *RequestHeader, pid, errno uintptr) {
	answer := &memory.slot.answer
	answer.Kind, answer.ID, answer.PID, answer.Errno = Forked, header.ID, int32(pid), uint32(errno)
	send(&memory.slot)
}

// passOn says whether helpers that are forked inherit the server's own memory, without which
// a fork is much cheaper. It does nothing where the server has all of the prober's: then
// something there is needed. In a cgo build that is the thread's own data, see fork.
//
//go:nosplit
//go:norace
//go:nocheckptr
func passOn(advice uintptr) {
	if memory.shared == nil || memory.stack == 0 {
		return
	}
	start := uintptr(unsafe.Pointer(&memory)) &^ (memory.pageSize - 1)
	advisePages(start, uintptr(unsafe.Pointer(&memory))+unsafe.Sizeof(memory)-start, advice)
	advisePages(memory.stack, keptStack*memory.pageSize, advice)
	if !cgo {
		advisePages(memory.threadArea, keptThreadArea*memory.pageSize, advice)
	}
}

//go:nosplit
//go:norace
func advisePages(start, length, advice uintptr) {
	syscall.RawSyscall6(syscall.SYS_MADVISE, start, length, advice, 0, 0, 0)
}

// takeSubmitted forks the helpers that were submitted.
//
//go:nosplit
//go:norace
//go:nocheckptr
func takeSubmitted() {
	m := memory.shared
	if m == nil {
		return
	}
	for memory.taken != atomic.LoadUint32(&m.submitted.written) {
		i := uintptr(m.submitted.slots[memory.taken%SharedSlots]) % SharedSlots
		memory.taken++
		s := m.slot(i)
		header := (*RequestHeader)(s.request())
		messages := header.Messages != 0
		pid, errno := forkInto(s, header, i)
		if errno == 0 {
			atomic.StoreInt32(&m.fates[i].PID, int32(pid))
		}
		switch {
		case messages:
			sayForked(header, pid, errno)
		case errno != 0:
			m.fates[i].Errno = uint32(errno)
			m.ended.put(i)
			sayEnded()
		}
	}
}

// forkInto forks a helper that works in the slot. None becomes another user there who could
// trace it: it shares the server's memory.
//
//go:nosplit
//go:norace
//go:nocheckptr
func forkInto(s *Slot, header *RequestHeader, i uintptr) (pid, errno uintptr) {
	h := &memory.holders[i]
	h.other, h.messages = header.Capabilities&ChangeUser != 0, header.Messages != 0
	if h.other {
		if memory.slot.suidDumpable == 0 {
			return 0, uintptr(syscall.EPERM)
		}
		memory.others++
	}
	restrictServer()
	s.context = memory.slot.context
	pid, errno = spawn(sharing(header), s.handOver())
	if errno == 0 {
		h.pid = int32(pid)
		memory.used = max(memory.used, i+1)
	} else if h.other {
		memory.others--
	}
	return pid, errno
}

// sayEnded tells the prober to look at the slots that have ended, unless it is about to look
// anyway.
//
//go:nosplit
//go:norace
func sayEnded() {
	if atomic.LoadUint32(&memory.shared.told) == 0 {
		atomic.StoreUint32(&memory.shared.told, 1)
		answer := &memory.slot.answer
		answer.Kind, answer.Errno = Ended, 0
		send(&memory.slot)
	}
}

// sharing returns the flags of clone(2) for a helper that shares the server's memory. It shares
// the table of signal handlers as well, which is empty, and root and working directory: only
// setns(2) in a plan changes these, and setns refuses a process that shares them.
//
//go:nosplit
//go:norace
func sharing(header *RequestHeader) uintptr {
	flags := uintptr(cloneVM | cloneSighand | uintptr(syscall.SIGCHLD))
	if header.Capabilities&EnterNamespace == 0 {
		flags |= cloneFS
	}
	return flags
}

// killHelper first asks whether pid is a child that was not reaped: the number of one that was
// reaped may belong to a stranger by now.
//
//go:nosplit
//go:norace
//go:nocheckptr
func killHelper(pid uintptr) {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_WAITID, idTypePID, pid, uintptr(unsafe.Pointer(&memory.signalInfo)),
		waitExited|waitNoHang|waitNoWait, 0, 0)
	if errno == 0 {
		syscall.RawSyscall6(syscall.SYS_KILL, pid, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	}
}

// reap reports which helpers have ended.
//
//go:nosplit
//go:norace
//go:nocheckptr
func reap() {
	answer, news := &memory.slot.answer, false
	for {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&answer.Status)), waitNoHang, 0, 0, 0)
		if errno != 0 || pid == 0 {
			break
		}
		if endSlot(int32(pid), answer.Status) {
			news = true
			continue
		}
		answer.Kind, answer.PID, answer.Errno = Exited, int32(pid), 0
		send(&memory.slot)
	}
	if news {
		sayEnded()
	}
}

// endSlot ends the slot of a helper, if it has one. It reports whether that says its end,
// which is to be sent otherwise.
//
//go:nosplit
//go:norace
//go:nocheckptr
func endSlot(pid int32, status uint32) bool {
	for i := uintptr(0); i < memory.used; i++ {
		h := &memory.holders[i]
		if h.pid != pid {
			continue
		}
		h.pid = 0
		if h.other {
			memory.others--
		}
		if h.messages {
			return false
		}
		memory.shared.fates[i].Status = status
		memory.shared.ended.put(i)
		return true
	}
	memory.others--
	return false
}

// send hands the slot's answer to the prober, and waits while its queue is full.
//
//go:nosplit
//go:norace
//go:nocheckptr
func send(s *Slot) {
	answer := &s.answer
	length := unsafe.Sizeof(Answer{})
	if answer.Kind == StepDone || answer.Kind == StepPart {
		length += uintptr(answer.OutputLength)
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, s.socket, uintptr(unsafe.Pointer(answer)), length,
		syscall.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		exit(1) // EPIPE: nobody listens any more
	}
}

//go:nosplit
//go:norace
func exit(code uintptr) {
	for {
		syscall.RawSyscall6(syscall.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
