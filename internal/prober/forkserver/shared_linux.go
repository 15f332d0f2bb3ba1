package forkserver

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	// SharedSlots is how many helpers can share the server's memory at one time. A slot
	// that no helper has had yet takes no memory.
	SharedSlots = 1024
	// sharedSize is the size of a slot with its request.
	sharedSize = 16 << 10
	// MaxShared is the size in bytes of the largest request, with the memory it
	// works on, of a helper that shares the server's memory.
	MaxShared = sharedSize - unsafe.Sizeof(Slot{})
	// stackSize is more than the 800 bytes to which the linker holds what does not
	// grow the stack: runSteps, which serve calls as well.
	stackSize = 2 << 10
)

// A Slot is what one helper works on. The request follows it, and the memory that the
// request names. The prober puts the request there, and reads what has become of it: it
// relies on nothing, since a helper that was taken over can write what it likes. The
// arrays are of words to be aligned for the structures laid over them.
type Slot struct {
	context
	answer Answer                // of a helper that sends messages
	output [MaxOutput / 8]uint64 // behind the answer

	stack            [stackSize / 8]uintptr // of a helper that shares the server's memory
	clock            [2]syscall.Timespec
	capabilityHeader [2]uint32
	capabilitySets   capabilitySets

	Answered uint32            // so many of the results below are there
	Announce uint32            // not 0: the helper sends Progressed after each step
	Results  [MaxSteps]Outcome // of the steps made, silent ones included
}

// context is what a helper has to know of its server.
type context struct {
	server       uintptr // its pid
	socket       uintptr
	capabilities uint64 // permitted
	effective    uint64
	mark         uint64
	suidDumpable uintptr // [Slots.SuidDumpable]; 0: helpers that become another user have no slots
}

// Fate is what the server says of the helper that has a slot.
type Fate struct {
	PID    int32  // once there is one
	Errno  uint32 // why there is none, once the slot has ended
	Status uint32 // as wait4(2) gives it, once the slot has ended
}

// Outcome is how one step ended.
type Outcome struct {
	ID          uint64 // the request's
	Result      int64
	Nanoseconds int64 // as in [Answer]
	Errno       uint32
	_           uint32
}

// A queue hands slots from the one end to the other. Each is in it once at most, so that
// it is never full.
type queue struct {
	written uint32 // how many ever were
	_       [60]byte
	slots   [SharedSlots]uint16
}

// shared begins the memory that prober and server share. The slots follow.
type shared struct {
	submitted queue  // by the prober
	ended     queue  // whose helpers have ended, or could not be forked
	sleeps    uint32 // not 0: the server has to be woken to see what was submitted
	_         [60]byte
	told      uint32 // not 0: the prober is going to look at what has ended
	_         [60]byte
	fates     [SharedSlots]Fate
}

const (
	slotsOffset  = (unsafe.Sizeof(shared{}) + 4095) &^ 4095
	sharedMemory = slotsOffset + SharedSlots*sharedSize
)

//go:nosplit
//go:norace
//go:nocheckptr
func (m *shared) slot(i uintptr) *Slot {
	return (*Slot)(unsafe.Add(unsafe.Pointer(m), slotsOffset+i*sharedSize))
}

// request is what follows the slot.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (s *Slot) request() unsafe.Pointer { return unsafe.Add(unsafe.Pointer(s), unsafe.Sizeof(*s)) }

// put adds a slot. The other end sees all that was written to it before.
//
//go:nosplit
//go:norace
func (q *queue) put(slot uintptr) {
	q.slots[q.written%SharedSlots] = uint16(slot)
	atomic.StoreUint32(&q.written, q.written+1)
}

// Slots are the prober's side of memory that it shares with one server. Its methods are
// for one goroutine at a time.
type Slots struct {
	// SuidDumpable is fs.suid_dumpable of sysctl.d(5), opened to be read, where helpers which
	// become another user have slots, too: unless it is 1 then. Nobody may trace the server, or
	// look at more of it and its helpers in /proc than everybody may, without CAP_SYS_PTRACE.
	// Only [Start] needs it.
	SuidDumpable *os.File

	memory *shared
	free   []uint16 // the one used last is at the end
	ended  uint32   // how many were seen
}

// NewSlots returns an error where the system grants no memory, or this build does not
// share any.
func NewSlots() (*Slots, error) {
	if !Sharing {
		return nil, fmt.Errorf("sharing memory with helpers: %w", syscall.ENOSYS)
	}
	starting.Lock() // a server that is being started must not have it
	defer starting.Unlock()
	address, _, errno := syscall.Syscall6(syscall.SYS_MMAP, 0, sharedMemory, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_SHARED|syscall.MAP_ANON|syscall.MAP_NORESERVE, ^uintptr(0), 0)
	if errno != 0 {
		return nil, fmt.Errorf("sharing memory with helpers: mmap: %w", errno)
	}
	// A huge page would be a hundred times what the first helper takes.
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, address, sharedMemory, madvNoHugePage)
	s := &Slots{memory: *(**shared)(unsafe.Pointer(&address)), free: make([]uint16, SharedSlots)}
	s.inherit(madvDontFork)
	for i := range s.free {
		s.free[i] = uint16(SharedSlots - 1 - i)
	}
	return s, nil
}

// Close gives the memory back. Helpers that are there still keep theirs.
func (s *Slots) Close() {
	_, _, _ = syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(s.memory)), sharedMemory, 0)
	s.memory, s.free = nil, nil
}

// inherit says whether children of this process have the memory.
func (s *Slots) inherit(advice uintptr) {
	if s != nil {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(unsafe.Pointer(s.memory)), sharedMemory, advice)
	}
}

// Submit puts a request into a free slot. It reports false where there is none.
func (s *Slots) Submit(header *RequestHeader, body []byte) (slot *Slot, ok bool) {
	if len(s.free) == 0 {
		return nil, false
	}
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	slot = s.memory.slot(uintptr(i))
	s.memory.fates[i] = Fate{}
	slot.Answered, slot.Announce = 0, 0
	*(*RequestHeader)(slot.request()) = *header
	copy(unsafe.Slice((*byte)(slot.request()), MaxShared)[unsafe.Sizeof(*header):], body)
	s.memory.submitted.put(uintptr(i))
	return slot, true
}

// Free takes back a slot whose helper has ended.
func (s *Slots) Free(slot *Slot) { s.free = append(s.free, uint16(s.Index(slot))) }

// Empty gives the memory of a slot whose helper has ended back to the kernel. The next helper that
// gets the slot takes it anew.
func (s *Slots) Empty(slot *Slot) {
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(unsafe.Pointer(slot)), sharedSize, madvRemove)
}

// Index is the number of a slot, below [SharedSlots].
func (s *Slots) Index(slot *Slot) int {
	return int((uintptr(unsafe.Pointer(slot)) - uintptr(unsafe.Pointer(s.memory)) - slotsOffset) / sharedSize)
}

// Asleep reports whether the server has to be woken by a request of the kind [Look] for
// what was submitted, and takes it as told.
func (s *Slots) Asleep() bool {
	return atomic.LoadUint32(&s.memory.sleeps) != 0 && atomic.SwapUint32(&s.memory.sleeps, 0) != 0
}

// Listen says that the prober is going to look at what has ended: the next one to end has
// [Ended] sent again.
func (s *Slots) Listen() { atomic.StoreUint32(&s.memory.told, 0) }

// NextEnded returns the next slot that has ended, or nil. It reports false if the server
// says what it can't say.
func (s *Slots) NextEnded() (slot *Slot, ok bool) {
	written := atomic.LoadUint32(&s.memory.ended.written)
	if written == s.ended {
		return nil, true
	}
	i := s.memory.ended.slots[s.ended%SharedSlots]
	s.ended++
	if written-s.ended >= SharedSlots || i >= SharedSlots {
		return nil, false
	}
	return s.memory.slot(uintptr(i)), true
}

// End ends a slot as the server does. It is for tests, which have none.
func (s *Slots) End(slot *Slot) { s.memory.ended.put(uintptr(s.Index(slot))) }

// Forked returns the pid of the slot's helper, or 0 while there is none.
func (s *Slots) Forked(slot *Slot) int { return int(atomic.LoadInt32(&s.Fate(slot).PID)) }

// Fate is what the server has said of the slot's helper so far.
func (s *Slots) Fate(slot *Slot) *Fate { return &s.memory.fates[s.Index(slot)] }

// Done returns how many steps the helper has made.
func (s *Slot) Done() uint32 { return atomic.LoadUint32(&s.Answered) }

// Answer is what the step at the index has come to, as a helper without slot would send it, with
// the output that the body of the request asks for, which is the helper's memory still.
func (s *Slot) Answer(i int, body []byte) (Answer, []byte) {
	o := &s.Results[i]
	answer := Answer{Kind: StepDone, Step: uint32(i), ID: o.ID, Result: o.Result, Errno: o.Errno, Nanoseconds: o.Nanoseconds}
	if answer.Errno != 0 {
		return answer, nil
	}
	step := (*Step)(unsafe.Pointer(&body[uintptr(i)*unsafe.Sizeof(Step{})]))
	answer.OutputLength = step.OutputLength
	return answer, unsafe.Slice((*byte)(unsafe.Add(s.request(), step.OutputOffset)), step.OutputLength)
}

// Tell has the helper send [Progressed] from its next step on.
func (s *Slot) Tell() { atomic.StoreUint32(&s.Announce, 1) }
