package forkserver

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/vfsprobe/vfsprobe/internal/pages"
)

const (
	madvDontFork = 10
	madvDoFork   = 11
	// linux/mman.h
	madvRemove     = 9
	madvNoHugePage = 15
	sigSetMask     = 2
	// maxAddress is more than any address that can be unmapped: [vsyscall] is beyond it.
	maxAddress = 1 << 63
	// How many pages of the stack, and of a thread's own data, a server has.
	keptStack, keptThreadArea = 3, 2
)

// starting guards memory, which the next child inherits.
var starting sync.Mutex

// Start forks a fork server which listens on the socket, one end of a
// SOCK_SEQPACKET socketpair(2). Its first message is a Ready; requests may be
// sent before it. The server is a child of the calling process, which has to
// wait for its end.
//
// With trim, the server and its helpers inherit only the memory they need. In a
// build where they turn out to need more, they die of SIGSEGV or SIGBUS, the
// server before it is ready: start it again without.
//
// The slots, which may be nil, are used by one server alone.
//
// The filter is in force when the server is ready. Without one the server makes no system
// call that is newer than Linux 3.10, which a sandbox may kill it for.
func Start(socket int, slots *Slots, trim bool, filter Filter) (pid int, err error) {
	if len(filter.Program) > maxInstructions {
		return 0, fmt.Errorf("a filter of %d instructions: at most %d are possible", len(filter.Program), maxInstructions)
	}
	// The signal mask and PR_SET_PDEATHSIG belong to threads. This one does not
	// end: the Go runtime uses it on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if syscall.Gettid() == os.Getpid() {
		// In the main thread of a position independent program glibc's dynamic linker
		// has registered memory of its own for restartable sequences, rseq(2), which
		// the kernel writes to after a fork, too. While it is held here, others run
		// elsewhere.
		done := make(chan struct{})
		go func() {
			defer close(done)
			pid, err = Start(socket, slots, trim, filter)
		}()
		<-done
		return pid, err
	}
	starting.Lock()
	defer starting.Unlock()

	copy(memory.name[:], "vfsprobe-server")
	copy(memory.null[:], os.DevNull)
	copy(memory.root[:], "/")
	memory.prober = uintptr(os.Getpid())
	memory.pageSize = uintptr(os.Getpagesize())
	memory.threadArea = threadArea()
	memory.slot.socket = uintptr(socket)
	memory.seccomp = filter.Call
	memory.filter.length = uint16(copy(memory.instructions[:], filter.Program))
	memory.slot.capabilities = ownCapabilities()
	memory.slot.mark = memory.slot.capabilities & Mark
	memory.kept = keptMemory{}
	advise(unneeded(), trim)
	memory.shared, memory.slot.suidDumpable = nil, 0
	if slots != nil {
		memory.shared = slots.memory
		memory.kept.add(uintptr(unsafe.Pointer(slots.memory)), sharedMemory)
		if slots.SuidDumpable != nil {
			memory.slot.suidDumpable = slots.SuidDumpable.Fd()
		}
	}
	slots.inherit(madvDoFork)
	pid, errno := fork(trim)
	slots.inherit(madvDontFork) // they are nobody else's
	memory.shared = nil         // the address may become one of the heap's
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	return pid, nil
}

// fork forks this process with all signals blocked. A trimmed server gets two
// pages of the thread's own data, and the pages of the stack it stands on, which
// can't move: nosplit functions don't grow it. What they call needs less than a
// page, which the linker checks. The calls are made in functions of their own, which
// leaves that much more to what the server and its helpers call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fork(trim bool) (int, syscall.Errno) {
	all, before := ^uint64(0), uint64(0)
	memory.stack = 0
	if trim {
		keepStack(uintptr(unsafe.Pointer(&all)))
	}
	setSignalMask(&all, &before)
	pid, errno := cloneProcess()
	if errno == 0 && pid == 0 {
		serve()
		runSteps(&memory.slot)
	}
	setSignalMask(&before, nil)
	return pid, errno
}

// keepStack lets the next child have the pages around an address on the stack, and those
// of the thread's own data.
//
//go:nosplit
//go:norace
//go:noinline
func keepStack(address uintptr) {
	memory.stack = address&^(memory.pageSize-1) - memory.pageSize
	memory.threadArea = (memory.threadArea - unsafe.Sizeof(address)) &^ (memory.pageSize - 1) // Go's own word is before it
	advisePages(memory.stack, keptStack*memory.pageSize, madvDoFork)
	advisePages(memory.threadArea, keptThreadArea*memory.pageSize, madvDoFork)
	memory.kept.add(memory.stack, keptStack*memory.pageSize)
	memory.kept.add(memory.threadArea, keptThreadArea*memory.pageSize)
}

// keptMemory is what a trimmed server has, in order, and where the known addresses end.
type keptMemory struct {
	ranges [64]memoryRange
	count  int // more than there is room for: they are not known
	end    uintptr
}

// add adds a range.
//
//go:nosplit
//go:norace
func (k *keptMemory) add(start, length uintptr) {
	i := k.count
	k.count++
	if k.count > len(k.ranges) {
		return
	}
	for ; i > 0 && k.ranges[i-1].start > start; i-- {
		k.ranges[i] = k.ranges[i-1]
	}
	k.ranges[i] = memoryRange{start: start, end: start + length}
}

// unmapUnknown gives back what a trimmed server has inherited besides: what other threads
// mapped when all the rest was marked already, a new part of the heap for instance.
//
//go:nosplit
//go:norace
func unmapUnknown() {
	k := &memory.kept
	if memory.stack == 0 || k.end == 0 || k.count > len(k.ranges) {
		return
	}
	at := uintptr(0)
	for i := range k.ranges[:k.count] {
		unmap(at, k.ranges[i].start)
		at = max(at, k.ranges[i].end)
	}
	unmap(at, k.end)
}

//go:nosplit
//go:norace
func unmap(start, end uintptr) {
	if start < end {
		syscall.RawSyscall6(syscall.SYS_MUNMAP, start, end-start, 0, 0, 0, 0)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func setSignalMask(mask, before *uint64) {
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigSetMask, uintptr(unsafe.Pointer(mask)),
		uintptr(unsafe.Pointer(before)), signalSetSize, 0, 0)
}

//go:nosplit
//go:norace
//go:noinline
func cloneProcess() (int, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return int(pid), errno
}

type memoryRange struct {
	start, end uintptr
	shared     bool
}

// advise says what the next child inherits: not what it can do without, or all that is this
// process's alone. What is shared is with somebody else, another server for instance.
func advise(ranges []memoryRange, trim bool) {
	for _, r := range ranges {
		advice := uintptr(madvDoFork) // an earlier start may have left its marks
		if trim || r.shared {
			advice = madvDontFork
		}
		// Special mappings refuse. They cost a fork next to nothing.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, r.start, r.end-r.start, advice)
	}
}

// unneeded lists what server and helpers can do without: all memory but the
// executable's code and constants, and the pages that memory is on. These it adds to what is kept.
func unneeded() []memoryRange {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	start := uintptr(unsafe.Pointer(&memory))
	keep := memoryRange{
		start: start &^ (memory.pageSize - 1),
		end:   (start + unsafe.Sizeof(memory) + memory.pageSize - 1) &^ (memory.pageSize - 1),
	}
	memory.kept.add(keep.start, keep.end-keep.start)
	var rest []memoryRange
	all := pages.ParseMaps(maps)
	memory.clock = clockFunction(all)
	for i := range all {
		m := &all[i]
		if !isVariable(m) {
			memory.kept.add(m.Start, m.End-m.Start)
		}
		if m.End <= maxAddress {
			memory.kept.end = max(memory.kept.end, m.End)
		}
	}
	for _, m := range variables(all) {
		if m.end <= keep.start || m.start >= keep.end {
			rest = append(rest, m)
			continue
		}
		if m.start < keep.start {
			rest = append(rest, memoryRange{start: m.start, end: keep.start})
		}
		if m.end > keep.end {
			rest = append(rest, memoryRange{start: keep.end, end: m.end})
		}
	}
	return rest
}

// isVariable reports whether a mapping is neither code nor constants.
func isVariable(m *pages.Mapping) bool { return !m.Constant && !isOfVDSO(m) }

// variables are the ranges of those that are variable.
func variables(all []pages.Mapping) []memoryRange {
	var ranges []memoryRange
	for i := range all {
		if m := &all[i]; isVariable(m) {
			ranges = append(ranges, memoryRange{m.Start, m.End, m.Shared})
		}
	}
	return ranges
}
