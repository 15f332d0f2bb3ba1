package forkserver

import "unsafe"

// Limits of one request. A request which exceeds them is refused by the
// prober before it is sent.
const (
	// MaxRequest is the size in bytes of the memory a helper works on: header,
	// steps, data (paths, structures) and scratch space.
	MaxRequest = 64 << 10
	// MaxSteps is the number of system calls in one request.
	MaxSteps = 32
	// MaxOutput is the number of bytes one step can report beside its result.
	MaxOutput = 4 << 10
)

// RequestKind says what the prober wants of the fork server.
type RequestKind uint32

const (
	// Fork a helper for the steps which follow the header. Sent as a message it has
	// memory of its own.
	Fork RequestKind = 1
	// Kill the helper PID with SIGKILL, if it is still a child of the server.
	Kill RequestKind = 2
	// Look at what was submitted in [Slots]. It has no ID, and nothing follows.
	Look RequestKind = 3
)

// RequestHeader begins every request. Both ends are the same executable, so
// the structures cross the socket in the machine's own layout.
type RequestHeader struct {
	Kind  RequestKind
	Steps uint32 // how many Steps follow
	ID    uint64 // comes back in each Answer
	PID   int32  // the helper to kill
	// Messages (not 0) are what a helper sends that shares memory, instead of leaving
	// its answers there: one that has compound steps.
	Messages uint32
	// Deadline, if not 0, is when the helper stops making further steps, in nanoseconds
	// of CLOCK_MONOTONIC. Such a helper is not killed when the server ends: it ends when
	// its call returns.
	Deadline int64
	// Capabilities that are in effect in the helper while it runs, as a mask of
	// 1<<CAP_…, of those in [Needed] which the server has.
	Capabilities uint64
	Name         [16]byte // the helper's comm, NUL-terminated
}

// ArgumentKind says how a Step's argument is found when its turn comes.
type ArgumentKind uint8

const (
	// Constant is the value itself.
	Constant ArgumentKind = iota
	// Address is an offset into the request, handed over as a pointer.
	Address
	// ResultOf is the index of an earlier step, whose return value is used.
	ResultOf
	// Uint32At is an offset into the request, where an earlier step has left
	// 32 bits (an owner's uid, for instance).
	Uint32At
)

// StepFlags change what a helper does around a step.
type StepFlags uint16

const (
	// ContinueOnError lets the plan go on although the step failed.
	ContinueOnError StepFlags = 1 << iota
	// BeginsUserChange is the first of the steps by which a helper becomes another user. One
	// that shares memory ends instead with [Traceable] if fs.suid_dumpable is 1.
	BeginsUserChange
	// EndsUserChange is the last that changes numbers of a user or group: the kernel has
	// cleared PR_SET_PDEATHSIG, and set PR_SET_DUMPABLE (commit_creds, kernel/cred.c).
	EndsUserChange
	// Silent steps are answered only if they fail.
	Silent
	// MergeWithNext times the step together with the one after it.
	MergeWithNext
	// Repeatable steps are made again, up to 8 times, when they fail with EINTR: a
	// helper handles no signal, so that it was stopped (SIGSTOP, a cgroup's freezer, a
	// tracer: signal(7)), and the FUSE daemon has heard of it.
	Repeatable
)

// Traceable is the exit status of a helper that must not share memory: see BeginsUserChange.
const Traceable = 2

// maxRepeats is how often a Repeatable step is made again.
const maxRepeats = 8

// Compound steps make many system calls in the helper. Their numbers are those of no
// system call. What they find comes in any number of [StepPart] answers, before the
// [StepDone].
const (
	// ReadAll reads a file to its end by read(2); Result is how many bytes. Arguments:
	// the descriptor, and how many bytes may be read: EFBIG says that there are more.
	ReadAll = firstCompound + iota
	// ReadDirectory is the same of a directory by getdents64(2).
	ReadDirectory
	// ReadLinks lists a directory by getdents64(2), and reads the links in it whose
	// names begin with a digit by readlinkat(2); Result is how many were reported. A
	// record is the length of the name and that of the target, 16 bits each, both
	// strings, and up to 7 bytes to a multiple of 8. Arguments: the descriptor, an
	// address and a length of what targets begin with, how many links to report, and an
	// address of [DirectorySpace] bytes.
	ReadLinks
	// StatMounts describes the mounts of the helper's namespace that are below its root
	// directory, by listmount(2) and statmount(2); Result is how many. A record is the
	// first [MountMembers] bytes of a struct statmount with its strings, up to a multiple
	// of 8 bytes, or for a mount whose description does not fit an answer
	// [MissingMount]. Arguments: the mask of statmount(2), the one for mounts that may
	// not be asked for their options and for those whose description does not fit with
	// the first, an address of [KnownMounts], nothing, an address of [MountSpace] bytes,
	// and how many bytes may be reported: EFBIG says that there are more.
	StatMounts
	endOfCompound

	// firstCompound is the smallest of them.
	firstCompound = 1 << 16
)

const (
	// DirectorySpace is the memory in bytes that ReadLinks works on.
	DirectorySpace = 2 << 10
	// MountSpace is that of StatMounts.
	MountSpace = unsafe.Sizeof(mountWork{})
)

// IsCompound reports whether the number is that of a compound step.
//
//go:nosplit
func IsCompound(number uintptr) bool { return number >= firstCompound && number < endOfCompound }

// LinkHeader begins a record of ReadLinks.
type LinkHeader struct{ NameLength, TargetLength uint16 }

// MountMembers is how much of struct statmount a record of StatMounts has: up to and with
// sb_source. Its strings follow.
const MountMembers = 128

// KnownMounts tell which mounts StatMounts may ask for their options: of those with
// numbers up to Last, which were looked at before, all but the denied ones, and of others
// all but those with one of the magics. Lists end with a zero.
type KnownMounts struct {
	Magics [128]uint64 // sb_magic
	Denied [128]uint64 // mnt_id; those are never given again
	Last   uint64
}

// MissingMount is the record of StatMounts for a mount that can't be described. Its
// first members are where struct statmount has a size, mnt_opts and a mask.
type MissingMount struct {
	Size  uint32 // of this
	Errno uint32
	Mask  uint64 // 0
	ID    uint64
}

const (
	linkHeader   = unsafe.Sizeof(LinkHeader{})
	missingMount = uint32(unsafe.Sizeof(MissingMount{}))
)

// Step is one system call, or a compound step.
type Step struct {
	Number       uint32
	Flags        StepFlags
	IfRegular    uint16 // if not 0: made only if the step before this index found a regular file
	Arguments    [6]uint64
	Kinds        [6]ArgumentKind
	ModeOffset   uint16 // where the output has the 16 bits of a file's mode, for IfRegular
	OutputOffset uint32 // what the answer carries back,
	OutputLength uint32 // read from the request's memory after the call
	_            uint32
}

// AnswerKind says what an Answer reports.
type AnswerKind uint32

const (
	// Ready is the server's first word: PID is its own, Result is 1 if trimmed.
	Ready AnswerKind = 1
	// Forked says that a helper runs (PID), or could not be forked (Errno). Of those that
	// leave their answers in a slot, neither this nor Exited is said.
	Forked AnswerKind = 2
	// StepDone says how one step ended.
	StepDone AnswerKind = 3
	// Exited says that a helper is gone; Status is as wait4(2) gives it.
	Exited AnswerKind = 4
	// StepPart carries some of what a compound step has found so far.
	StepPart AnswerKind = 5
	// Ended says that slots have ended since the prober has looked.
	Ended AnswerKind = 6
	// Progressed says that the helper of the ID has made a step. The answer is in its slot.
	Progressed AnswerKind = 7
)

// OfServer reports whether it is the server that says so, and not a helper.
func (k AnswerKind) OfServer() bool { return k != StepDone && k != StepPart && k != Progressed }

// Answer is one message to the prober, from the server or from a helper.
// OutputLength bytes of output follow it.
type Answer struct {
	Kind         AnswerKind
	Step         uint32
	ID           uint64
	PID          int32
	Errno        uint32
	Result       int64
	Nanoseconds  int64 // spent in the system call or the compound step, CLOCK_MONOTONIC
	Status       uint32
	OutputLength uint32
}

// ParseAnswer splits one message from the socket into the Answer and its
// output, which aliases message. It reports false for anything that the
// server or a helper can't have sent.
func ParseAnswer(message []byte) (answer Answer, output []byte, ok bool) {
	size := int(unsafe.Sizeof(answer))
	if len(message) < size {
		return answer, nil, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&answer)), size), message)
	output = message[size:]
	switch answer.Kind {
	case StepDone:
		ok = answer.Step < MaxSteps && int(answer.OutputLength) == len(output)
	case StepPart:
		ok = answer.Step < MaxSteps && int(answer.OutputLength) == len(output) && len(output) > 0 && len(output) <= MaxOutput
	case Ready, Forked, Exited, Ended, Progressed:
		ok = len(output) == 0
	}
	return answer, output, ok
}

// Bytes returns the structure as it crosses the socket.
func Bytes[T RequestHeader | Step](structure *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(structure)), unsafe.Sizeof(*structure))
}
