package forkserver

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// runSteps is the helper. It never returns.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runSteps(s *Slot) {
	base := s.request()
	header := (*RequestHeader)(base)
	keepCapabilities(s, header)
	armDeathSignal(s, header)
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(&header.Name)), 0, 0, 0, 0)

	answer, silently := &s.answer, header.Messages == 0 && s != &memory.slot
	merged, began := false, false // with the step before; when that has ended
	for i := uint32(0); i < header.Steps && i < MaxSteps; i++ {
		step := s.step(uintptr(i))
		for k := range step.Arguments {
			argument := &step.Arguments[k]
			switch step.Kinds[k] {
			case Address:
				*argument += uint64(uintptr(base))
			case ResultOf:
				*argument = uint64(s.Results[*argument%MaxSteps].Result)
			case Uint32At:
				*argument = uint64(*(*uint32)(unsafe.Add(base, *argument%MaxRequest)))
			}
		}

		a := &step.Arguments
		if step.Flags&BeginsUserChange != 0 && s != &memory.slot && traceableAfterwards(s) {
			exit(Traceable)
		}
		answer.ID, answer.Step = header.ID, i
		if !merged && !began {
			readClock(&s.clock[0])
		}
		merged = step.Flags&MergeWithNext != 0
		result, errno := ^uintptr(0), syscall.EBADF
		if step.IfRegular == 0 || foundRegular(s, uintptr(step.IfRegular-1)%MaxSteps) {
			for repeats := 0; ; repeats++ {
				if IsCompound(uintptr(step.Number)) {
					result, errno = compound(s, step)
				} else {
					result, _, errno = syscall.RawSyscall6(uintptr(step.Number), uintptr(a[0]), uintptr(a[1]), uintptr(a[2]),
						uintptr(a[3]), uintptr(a[4]), uintptr(a[5]))
				}
				if errno != syscall.EINTR || step.Flags&Repeatable == 0 || repeats == maxRepeats {
					break
				}
			}
		}
		told := errno != 0 || step.Flags&Silent == 0
		if told || header.Deadline != 0 { // of what is not told nobody asks how long it took
			readClock(&s.clock[1])
		}
		s.Results[i].Result = int64(result)
		if step.Flags&EndsUserChange != 0 {
			forbidTracing()
			armDeathSignal(s, header)
		}

		took := (s.clock[1].Sec-s.clock[0].Sec)*1e9 + s.clock[1].Nsec - s.clock[0].Nsec
		began = false
		if silently {
			if sent := leaveResult(s, header, i, uint32(errno), took); told && !merged && !sent {
				s.clock[0], began = s.clock[1], true
			}
		} else if told {
			sendResult(s, step, uint32(errno), took)
		}
		if errno != 0 && step.Flags&ContinueOnError == 0 {
			break
		}
		if header.Deadline != 0 && s.clock[1].Sec*1e9+s.clock[1].Nsec > header.Deadline {
			break
		}
	}
	exit(0)
}

// leaveResult leaves the result of a step in the slot. What the step has written to memory is
// there already. It reports whether a message was sent, which can take a while.
//
//go:nosplit
//go:norace
func leaveResult(s *Slot, header *RequestHeader, i, errno uint32, took int64) (sent bool) {
	o := &s.Results[i]
	o.ID, o.Errno, o.Nanoseconds = header.ID, errno, took
	atomic.StoreUint32(&s.Answered, i+1)
	if atomic.LoadUint32(&s.Announce) == 0 {
		return false
	}
	s.answer.Kind, s.answer.Errno = Progressed, 0
	send(s)
	return true
}

// sendResult sends the result of a step.
//
//go:nosplit
//go:norace
//go:nocheckptr
func sendResult(s *Slot, step *Step, errno uint32, took int64) {
	answer := &s.answer
	answer.Kind, answer.Errno, answer.Result, answer.Nanoseconds = StepDone, errno, s.Results[answer.Step].Result, took
	answer.OutputLength = 0
	if errno == 0 {
		answer.OutputLength = step.OutputLength % (MaxOutput + 1)
		from := unsafe.Add(s.request(), step.OutputOffset%MaxRequest)
		to := unsafe.Pointer(&s.output)
		for k := uintptr(0); k < uintptr(answer.OutputLength); k += 8 {
			*(*uint64)(unsafe.Add(to, k)) = *(*uint64)(unsafe.Add(from, k))
		}
	}
	send(s)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (s *Slot) step(i uintptr) *Step {
	return (*Step)(unsafe.Add(s.request(), unsafe.Sizeof(RequestHeader{})+i*unsafe.Sizeof(Step{})))
}

// foundRegular reports whether the step was a stat(2) of some kind that has found a regular
// file.
//
//go:nosplit
//go:norace
//go:nocheckptr
func foundRegular(s *Slot, i uintptr) bool {
	mode := *(*uint16)(unsafe.Add(s.request(), (s.step(i).OutputOffset+uint32(s.step(i).ModeOffset))%MaxRequest))
	return s.Results[i].Result == 0 && mode&syscall.S_IFMT == syscall.S_IFREG
}

// forbidTracing keeps from whoever shares this memory all that trace it as the user that they
// have become: ptrace(2), /proc/PID/mem and all else that asks the kernel for the same, if it
// is without CAP_SYS_PTRACE (__ptrace_may_access, kernel/ptrace.c). After a change of the user
// this is so by itself, unless fs.suid_dumpable is 1 (commit_creds, kernel/cred.c); with 2, and
// before Linux 5.16, one that dumped core would end all who share its memory.
//
//go:nosplit
//go:norace
func forbidTracing() syscall.Errno {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetDumpable, 0, 0, 0, 0, 0)
	return errno
}

// traceableAfterwards reports whether another user could trace this helper for a moment when
// it has become that user, and all others which already are: it is so where fs.suid_dumpable
// is 1, as it was not when the server was started.
//
//go:nosplit
//go:norace
//go:nocheckptr
func traceableAfterwards(s *Slot) bool {
	value := (*byte)(unsafe.Pointer(&s.output))
	n, _, errno := syscall.RawSyscall6(syscall.SYS_PREAD64, s.suidDumpable, uintptr(unsafe.Pointer(value)), 1, 0, 0, 0)
	return errno != 0 || n == 0 || *value != '0' && *value != '2'
}

// armDeathSignal makes the kernel kill this helper when the server ends, unless it is to
// outlive that. If the server has ended before, the helper's parent is another process.
//
//go:nosplit
//go:norace
func armDeathSignal(s *Slot, header *RequestHeader) {
	if header.Deadline == 0 {
		syscall.RawSyscall6(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	}
	if parent, _, _ := syscall.RawSyscall6(syscall.SYS_GETPPID, 0, 0, 0, 0, 0, 0); parent != s.server {
		exit(1)
	}
}
