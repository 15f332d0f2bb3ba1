package forkserver

import (
	"syscall"
	"unsafe"
)

// EnvironmentVariable makes an executable which links this package a launcher
// of the fork server. Its value is [Trimmed] or [Untrimmed].
const EnvironmentVariable = "VFSPROBE_FORK_SERVER"

// Values of [EnvironmentVariable].
const (
	Trimmed   = "trimmed"
	Untrimmed = "untrimmed"
)

// SocketFD is the descriptor at which the launcher expects the server's end of
// a SOCK_SEQPACKET socketpair(2). Descriptors 0 to 2 should be /dev/null; all
// others are closed.
const SocketFD = 3

const (
	sysCloseRange = 436 // the same number on every architecture; Linux 5.9
	pageSize      = 4096
	madvDontFork  = 10
	madvDoFork    = 11
)

func init() {
	if mode, ok := syscall.Getenv(EnvironmentVariable); ok {
		launch(mode)
	}
}

// launch prepares the process, forks the server and exits. During init the
// main goroutine is locked to the main thread.
func launch(mode string) {
	syscall.RawSyscall(sysCloseRange, SocketFD+1, uintptr(^uint32(0)), 0)
	_ = syscall.Chdir("/") // whatever directory we were started in is nobody's business to pin
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0)
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	signalSet = ^uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, sigBlock, uintptr(unsafe.Pointer(&signalSet)), 0, signalSetSize, 0, 0)

	prober := uintptr(syscall.Getppid())
	trimmed := int64(0)
	if mode == Trimmed {
		growStack()
		var local byte
		rest := outsideImageAndStack(uintptr(unsafe.Pointer(&local)))
		advise(rest, madvDontFork)
		if helperWorks() {
			trimmed = 1
		} else {
			advise(rest, madvDoFork)
		}
	}
	serverSocket = SocketFD
	forkServer(prober, trimmed)
}

//go:nosplit
//go:norace
func forkServer(prober uintptr, trimmed int64) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, cloneParent|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		serve(prober, trimmed)
	}
	exit(uintptr(errno)) // the launcher's exit status tells why there is no server
}

// helperWorks forks a helper as the server would, and sees it run a plan.
func helperWorks() bool {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])

	header := (*RequestHeader)(unsafe.Pointer(&request))
	*header = RequestHeader{Kind: Fork, Steps: 1}
	step := (*Step)(unsafe.Add(unsafe.Pointer(&request), unsafe.Sizeof(*header)))
	*step = Step{Number: syscall.SYS_GETPPID}

	serverPID = uintptr(syscall.Getpid())
	serverSocket = uintptr(pair[1])
	childSignals = ^uintptr(0)
	pid := forkTestHelper()
	if pid <= 0 {
		return false
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		return false
	}
	var got Answer
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(pair[0]), uintptr(unsafe.Pointer(&got)),
		unsafe.Sizeof(got), syscall.MSG_DONTWAIT, 0, 0)
	return errno == 0 && n == unsafe.Sizeof(got) &&
		got.Kind == StepDone && got.Errno == 0 && got.Result == int64(serverPID)
}

//go:nosplit
//go:norace
func forkTestHelper() int {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return -1
	}
	if pid == 0 {
		runSteps((*RequestHeader)(unsafe.Pointer(&request)))
	}
	return int(pid)
}

type memoryRange struct{ start, end uintptr }

func advise(ranges []memoryRange, advice uintptr) {
	for _, r := range ranges {
		// Special mappings (vvar) refuse; they cost a fork next to nothing.
		syscall.RawSyscall(syscall.SYS_MADVISE, r.start, r.end-r.start, advice)
	}
}

// growStack makes the stack so large that nothing called from launch moves it
// once its address is taken. (GOGC=off in the environment keeps the garbage
// collector from shrinking it.)
//
//go:noinline
func growStack() {
	var room [16 << 10]byte
	for i := range room {
		room[i] = byte(i)
	}
	results[0] = uint64(room[len(room)-1])
}

// outsideImageAndStack lists this process's memory but for two pieces: the
// executable's image (the run of adjacent mappings around our package
// variables, with .bss), and the pages around the stack pointer. The linker
// allows nosplit functions less than a page of stack.
func outsideImageAndStack(stackPointer uintptr) []memoryRange {
	page := stackPointer &^ (pageSize - 1)
	keep := memoryRange{page - 2*pageSize, page + 2*pageSize}
	ours := uintptr(unsafe.Pointer(&request))

	mappings := parseMaps(readFile("/proc/self/maps"))
	image := memoryRange{ours, ours}
	for changed := true; changed; {
		changed = false
		for _, m := range mappings {
			if m.start <= image.end && m.end >= image.start && (m.start < image.start || m.end > image.end) {
				image = memoryRange{min(m.start, image.start), max(m.end, image.end)}
				changed = true
			}
		}
	}
	var outside []memoryRange
	for _, m := range mappings {
		if m.start < image.end && m.end > image.start {
			continue
		}
		if m.end <= keep.start || m.start >= keep.end {
			outside = append(outside, m)
			continue
		}
		if m.start < keep.start {
			outside = append(outside, memoryRange{m.start, keep.start})
		}
		if m.end > keep.end {
			outside = append(outside, memoryRange{keep.end, m.end})
		}
	}
	return outside
}

func readFile(name string) []byte {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	content := make([]byte, 0, 16<<10)
	for {
		if len(content) == cap(content) {
			content = append(content, 0)[:len(content)]
		}
		n, err := syscall.Read(fd, content[len(content):cap(content)])
		if n <= 0 || err != nil {
			return content
		}
		content = content[:len(content)+n]
	}
}

// parseMaps reads the address ranges of proc_pid_maps(5).
func parseMaps(maps []byte) []memoryRange {
	var ranges []memoryRange
	for len(maps) > 0 {
		start, rest := parseHex(maps)
		if len(rest) == 0 || rest[0] != '-' {
			break
		}
		end, rest := parseHex(rest[1:])
		ranges = append(ranges, memoryRange{start, end})
		for len(rest) > 0 && rest[0] != '\n' {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			break
		}
		maps = rest[1:]
	}
	return ranges
}

func parseHex(s []byte) (value uintptr, rest []byte) {
	for len(s) > 0 {
		c := s[0]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return value, s
		}
		value, s = value<<4|uintptr(c), s[1:]
	}
	return value, s
}
