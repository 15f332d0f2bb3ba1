package forkserver

import (
	"syscall"
	"unsafe"
)

// Numbers which package syscall does not have; linux/prctl.h, linux/signal.h.
const (
	prSetPdeathsig  = 1
	prSetName       = 15
	prSetNoNewPrivs = 38
	sigBlock        = 0
	clockMonotonic  = 1
	pollIn          = 1
	waitNoHang      = 1
	waitExited      = 4
	waitNoWait      = 0x01000000
	idTypePID       = 1
	signalSetSize   = 8
	cloneParent     = 0x00008000
)

// The memory of the server and of its helpers. A helper inherits the request
// as the server received it, so nothing needs to be copied. The arrays are of
// words to be aligned for the structures laid over them.
var (
	request [MaxRequest / 8]uint64
	results [MaxSteps]uint64
	answer  struct {
		Answer
		output [MaxOutput / 8]uint64
	}
	serverSocket uintptr
	childSignals uintptr // a signalfd for SIGCHLD
	serverPID    uintptr
	pollSet      [2]struct {
		fd      int32
		events  int16
		revents int16
	}
	clockStart, clockEnd syscall.Timespec
	signalSet            uint64
	signalInfo           [128]byte
	serverName           = [16]byte{'v', 'f', 's', 'p', 'r', 'o', 'b', 'e', '-', 's', 'e', 'r', 'v', 'e', 'r'}
)

// serve is the fork server. It returns never.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve(prober uintptr, trimmed int64) {
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	if parent, _, _ := syscall.RawSyscall6(syscall.SYS_GETPPID, 0, 0, 0, 0, 0, 0); parent != prober {
		exit(0)
	}
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(&serverName)), 0, 0, 0, 0)
	serverPID, _, _ = syscall.RawSyscall6(syscall.SYS_GETPID, 0, 0, 0, 0, 0, 0)

	signalSet = 1 << (syscall.SIGCHLD - 1)
	fd, _, errno := syscall.RawSyscall6(syscall.SYS_SIGNALFD4, ^uintptr(0), uintptr(unsafe.Pointer(&signalSet)),
		signalSetSize, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0, 0)
	childSignals = fd
	pollSet[0].fd, pollSet[0].events = int32(serverSocket), pollIn
	pollSet[1].fd, pollSet[1].events = int32(fd), pollIn

	answer.Kind, answer.PID, answer.Errno, answer.Result = Ready, int32(serverPID), uint32(errno), trimmed
	send()
	if errno != 0 {
		exit(1)
	}

	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, serverSocket, uintptr(unsafe.Pointer(&request)),
			MaxRequest, syscall.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == syscall.EAGAIN:
			// Sleep for ever: the socket and dead children are all there is.
			syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&pollSet)), uintptr(len(pollSet)), 0, 0, 0, 0)
			if pollSet[1].revents != 0 {
				syscall.RawSyscall6(syscall.SYS_READ, childSignals, uintptr(unsafe.Pointer(&signalInfo)),
					unsafe.Sizeof(signalInfo), 0, 0, 0)
				reap()
			}
		case errno == syscall.EINTR:
		case errno != 0 || n == 0:
			exit(0) // the prober is gone; the kernel kills the helpers now
		default:
			header := (*RequestHeader)(unsafe.Pointer(&request))
			switch header.Kind {
			case Fork:
				forkHelper(header)
			case Kill:
				killHelper(uintptr(header.PID))
			}
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func forkHelper(header *RequestHeader) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		runSteps(header)
	}
	answer.Kind, answer.ID, answer.PID, answer.Errno = Forked, header.ID, int32(pid), uint32(errno)
	send()
}

// killHelper asks first whether pid is a child that was not reaped, since a
// number which was given back may belong to a stranger by now.
//
//go:nosplit
//go:norace
//go:nocheckptr
func killHelper(pid uintptr) {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_WAITID, idTypePID, pid, uintptr(unsafe.Pointer(&signalInfo)),
		waitExited|waitNoHang|waitNoWait, 0, 0)
	if errno == 0 {
		syscall.RawSyscall6(syscall.SYS_KILL, pid, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func reap() {
	for {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&answer.Status)),
			waitNoHang, 0, 0, 0)
		if errno != 0 || pid == 0 {
			return
		}
		answer.Kind, answer.PID, answer.Errno = Exited, int32(pid), 0
		send()
	}
}

// runSteps is the helper. It returns never.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runSteps(header *RequestHeader) {
	armDeathSignal()
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetName, uintptr(unsafe.Pointer(&header.Name)), 0, 0, 0, 0)
	syscall.RawSyscall6(syscall.SYS_CLOSE, childSignals, 0, 0, 0, 0, 0)

	memory := unsafe.Pointer(&request)
	for i := uint32(0); i < header.Steps && i < MaxSteps; i++ {
		step := (*Step)(unsafe.Add(memory, unsafe.Sizeof(RequestHeader{})+uintptr(i)*unsafe.Sizeof(Step{})))
		for k := range step.Arguments {
			argument := &step.Arguments[k]
			switch step.Kinds[k] {
			case Address:
				*argument += uint64(uintptr(memory))
			case ResultOf:
				*argument = results[*argument%MaxSteps]
			case Uint32At:
				*argument = uint64(*(*uint32)(unsafe.Add(memory, *argument%MaxRequest)))
			}
		}

		a := &step.Arguments
		syscall.RawSyscall6(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&clockStart)), 0, 0, 0, 0)
		result, _, errno := syscall.RawSyscall6(uintptr(step.Number), uintptr(a[0]), uintptr(a[1]), uintptr(a[2]),
			uintptr(a[3]), uintptr(a[4]), uintptr(a[5]))
		syscall.RawSyscall6(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&clockEnd)), 0, 0, 0, 0)
		results[i] = uint64(result)
		if step.Flags&RearmDeathSignal != 0 {
			armDeathSignal()
		}

		answer.Kind, answer.ID, answer.Step = StepDone, header.ID, i
		answer.Errno, answer.Result = uint32(errno), int64(result)
		answer.Nanoseconds = (clockEnd.Sec-clockStart.Sec)*1e9 + clockEnd.Nsec - clockStart.Nsec
		answer.OutputLength = 0
		if errno == 0 {
			answer.OutputLength = step.OutputLength % (MaxOutput + 1)
			from := unsafe.Add(memory, step.OutputOffset%MaxRequest)
			to := unsafe.Pointer(&answer.output)
			for k := uintptr(0); k < uintptr(answer.OutputLength); k += 8 {
				*(*uint64)(unsafe.Add(to, k)) = *(*uint64)(unsafe.Add(from, k))
			}
		}
		send()
		if errno != 0 && step.Flags&ContinueOnError == 0 {
			break
		}
	}
	exit(0)
}

// armDeathSignal makes the kernel kill this helper when the server ends. If
// the server has ended before, the helper's parent is another process.
//
//go:nosplit
//go:norace
func armDeathSignal() {
	syscall.RawSyscall6(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGKILL), 0, 0, 0, 0)
	if parent, _, _ := syscall.RawSyscall6(syscall.SYS_GETPPID, 0, 0, 0, 0, 0, 0); parent != serverPID {
		exit(1)
	}
}

// send hands the answer to the prober, and waits while its queue is full.
//
//go:nosplit
//go:norace
//go:nocheckptr
func send() {
	length := unsafe.Sizeof(Answer{})
	if answer.Kind == StepDone {
		length += uintptr(answer.OutputLength)
	}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, serverSocket, uintptr(unsafe.Pointer(&answer)), length,
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
