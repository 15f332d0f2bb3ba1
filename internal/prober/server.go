package prober

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

const (
	// restartDelay is the first pause after a server that ended soon after its
	// start; each further one doubles it up to restartDelayMax.
	restartDelay    = 100 * time.Millisecond
	restartDelayMax = 10 * time.Second
	// minUptime is how old a server must become to be restarted without a pause.
	minUptime = 10 * time.Second
)

// server is the parent's side of one fork server.
type server struct {
	pid     int
	conn    *os.File // SOCK_SEQPACKET
	raw     syscall.RawConn
	started time.Time
	heard   time.Time // when it last said something
	trimmed bool
	ready   bool  // it has said so
	ended   bool  // it was killed
	err     error // why it could not get ready, or is ended
	full    bool  // the socket took no request; one is sent again soon

	slots     *forkserver.Slots // of helpers that share its memory; nil: none do
	holders   []*helper         // of the slots
	unshared  bool              // a sandbox refuses to share memory
	others    bool              // helpers that become another user share it, too
	submitted bool              // there is more in the slots than it may know of
}

// restartState says how the next fork server comes about.
type restartState struct {
	under bool          // one is being started
	next  time.Time     // not before
	delay time.Duration // the pause that led to next
	err   error         // why there is none
}

// startServerInLocked starts a fork server after a pause.
func (p *Prober) startServerInLocked(pause time.Duration) {
	p.restart.under = true
	time.AfterFunc(pause, p.startServer)
}

// startServer starts a fork server. Where that fails, a later check tries again.
func (p *Prober) startServer() {
	var found orphans
	searched := make(chan struct{})
	go func() {
		found = findOrphans(p.options.Proc)
		close(searched)
	}()
	s, err := launch(p.options.Proc, !p.untrimmed.Load(), !p.unfiltered.Load())
	<-searched

	p.mu.Lock()
	defer p.unlock()
	p.restart.under = false
	if err != nil {
		p.unavailableLocked(err)
		return
	}
	if p.closed {
		s.conn.Close()
	}
	p.server = s
	p.orphans = found
	go p.readAnswers(s)
	go p.watchEnd(s)
	p.pumpLocked()
}

// unavailableLocked notes that no server could be started, and ends what waits for one.
func (p *Prober) unavailableLocked(err error) {
	if p.restart.err == nil {
		p.warnLocked("no file system can be checked: %v", err)
	}
	p.restart.err = err
	p.pauseLocked()
	for _, w := range slices.Concat(p.admission.drainLocked(), p.behindOrphans) {
		if !w.decided {
			p.decideLocked(w, Report{Outcome: Unavailable, Err: err})
		}
	}
	p.behindOrphans = nil
}

// greetedLocked handles a server's first word.
func (p *Prober) greetedLocked(s *server, errno syscall.Errno) {
	if errno != 0 {
		s.err = fmt.Errorf("starting the fork server: %w", errno)
		return // it is about to exit
	}
	s.ready = true
	if p.restart.err != nil {
		p.warnLocked("the fork server runs again (pid %d)", s.pid)
	}
	p.restart.err = nil
}

// pauseLocked puts the next start off, twice as long as the last time.
func (p *Prober) pauseLocked() {
	p.restart.delay = min(max(2*p.restart.delay, restartDelay), restartDelayMax)
	p.restart.next = time.Now().Add(p.restart.delay)
}

// launch forks a fork server. proc is where procfs is mounted.
func launch(proc string, trim, confine bool) (*server, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("starting the fork server: socketpair: %w", err)
	}
	defer unix.Close(pair[1])
	// Only our end must not block: the server's is for helpers to wait on.
	err = unix.SetNonblock(pair[0], true)
	s := &server{conn: os.NewFile(uintptr(pair[0]), "fork server"), started: time.Now(), trimmed: trim}
	if err == nil {
		s.raw, err = s.conn.SyscallConn()
	}
	if err == nil {
		var f forkserver.Filter
		if confine {
			f = filter()
		}
		if s.slots, _ = forkserver.NewSlots(); s.slots != nil { // else all helpers have memory of their own
			s.slots.SuidDumpable = openSuidDumpable(proc)
			s.others = s.slots.SuidDumpable != nil
			defer s.slots.SuidDumpable.Close() // of nil it is an error
			s.holders = make([]*helper, forkserver.SharedSlots)
		}
		s.pid, err = forkserver.Start(pair[1], s.slots, trim, f)
	}
	if err != nil {
		s.closeSlots()
		s.conn.Close()
		return nil, fmt.Errorf("starting the fork server: %w", err)
	}
	return s, nil
}

// The prober wakes up for each few helpers, and for a moment. A call that might block would wake
// the Go runtime's monitor each time, in a thread of its own; those on the socket never do.

// send hands over one message, or says EAGAIN where the socket is full.
func (s *server) send(message []byte) error {
	var errno syscall.Errno
	if err := s.raw.Control(func(fd uintptr) {
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(message))), uintptr(len(message)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	}); err != nil || errno == 0 {
		return err
	}
	return errno
}

// receive waits for one message. It returns its length, and false if there will be none.
func (s *server) receive(message []byte) (length int, ok bool) {
	err := s.raw.Read(func(fd uintptr) (received bool) {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(message))), uintptr(len(message)))
		length, ok = int(n), errno == 0 && n > 0
		return errno != unix.EAGAIN
	})
	return length, ok && err == nil
}

// killLocked ends a server. The number is still its own, since reapLocked gives it back
// under the same lock.
func (s *server) killLocked() {
	s.ended = true
	_ = unix.Kill(s.pid, unix.SIGKILL)
}

// waitForEnd waits for the server's end, and leaves it to be reaped.
func (s *server) waitForEnd() {
	for errors.Is(unix.Waitid(unix.P_PID, s.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}

// reapLocked gives back the number of a server that has ended.
func (s *server) reapLocked() (status unix.WaitStatus, used unix.Rusage) {
	for {
		if _, err := unix.Wait4(s.pid, &status, 0, &used); !errors.Is(err, unix.EINTR) {
			return status, used
		}
	}
}

// readAnswers handles what a server and its helpers send, until there is no more.
func (p *Prober) readAnswers(s *server) {
	message := make([]byte, forkserver.MaxOutput+1024)
	for {
		n, ok := s.receive(message)
		if !ok {
			p.endUnreadable(s)
			return
		}
		p.receive(s, message[:n])
	}
}

// endUnreadable ends a server that can't be read from any more. Usually it has ended already;
// an empty message looks the same.
func (p *Prober) endUnreadable(s *server) {
	p.mu.Lock()
	defer p.unlock()
	if p.server == s && !p.closed {
		s.killLocked()
	}
}

// watchEnd notices the end of the server by waiting for the process. The socket
// does not tell: a stuck helper keeps the other end of it open.
func (p *Prober) watchEnd(s *server) {
	s.waitForEnd()
	s.conn.Close()

	p.mu.Lock()
	defer p.unlock()
	p.server = nil
	for _, h := range p.helpers {
		p.readSlotLocked(s, h)
		h.slot = nil
	}
	s.closeSlots()
	status, used := s.reapLocked()
	p.cpuBefore += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	if p.closed {
		for _, h := range p.helpers {
			p.removeLocked(h)
		}
		return
	}
	lost := p.giveUpLocked(s)
	reason := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		reason = status.Signal().String()
	}
	switch {
	case !s.ready && s.trimmed && memoryFault(status):
		p.needAllMemoryLocked()
		p.startServerInLocked(0)
		return
	case !s.ready && status.Signaled() && status.Signal() == unix.SIGSYS && !p.unfiltered.Swap(true):
		p.warnLocked("a sandbox kills a process that calls seccomp(2) or close_range(2): helpers run without a seccomp filter of their own")
		p.startServerInLocked(0)
		return
	case !s.ready:
		if s.err == nil {
			s.err = fmt.Errorf("starting the fork server: it ended at once (%s)", reason)
		}
		p.unavailableLocked(s.err)
		return
	}
	p.stats.ServerRestarts++
	p.warnLocked("the fork server (pid %d) ended (%s), %d checks were under way; starting it again", s.pid, reason, lost)

	if time.Since(s.started) > minUptime {
		p.restart.delay = 0
		p.startServerInLocked(0)
		return
	}
	p.startServerInLocked(p.restart.delay)
	p.pauseLocked()
}

// giveUpLocked ends what was under way in a server that has ended. Helpers that were never forked
// are tried again. It returns how many checks were lost.
func (p *Prober) giveUpLocked(s *server) (lost int) {
	for _, h := range p.helpers {
		if !s.ready && !h.reported { // no helper was forked
			p.stats.Forked--
			p.retryLocked(h)
			continue
		}
		if !h.reported {
			lost++
		}
		h.err = errors.New("the fork server ended while the check was under way")
		if s.err != nil {
			h.err = s.err
		}
		p.finishLocked(h, Unavailable)
		p.removeLocked(h)
	}
	return lost
}

// memoryFault reports whether a process died of touching memory it has not.
func memoryFault(status unix.WaitStatus) bool {
	return status.Signaled() && (status.Signal() == unix.SIGSEGV || status.Signal() == unix.SIGBUS)
}

// needAllMemoryLocked has further servers inherit everything.
func (p *Prober) needAllMemoryLocked() {
	if p.untrimmed.Swap(true) {
		return // said already, for another helper
	}
	p.warnLocked("in this build helpers need all of the plugin's memory, and cost more")
}

// usage reads a process's CPU time, with that of the children it has waited
// for, and its resident bytes. See proc_pid_stat(5).
func usage(proc string, pid int) (cpu time.Duration, resident int64) {
	fields, err := statFields(proc, pid)
	if err != nil {
		return 0, 0
	}
	var ticks int64
	for _, f := range fields[statUtime : statCstime+1] {
		n, _ := strconv.ParseInt(string(f), 10, 64)
		ticks += n
	}
	pages, _ := strconv.ParseInt(string(fields[statRSS]), 10, 64)
	return time.Duration(ticks) * procfs.UserTick, pages * int64(os.Getpagesize())
}

// Indexes into what statFields returns, beside [procfs.StatStarttime].
const (
	statState  = 0
	statPPID   = 1
	statUtime  = 11 // and stime, cutime,
	statCstime = 14
	statRSS    = 21
	statSignal = 28 // those of the first 31 that are pending
)

// statFields reads the fields of /proc/PID/stat that follow the command.
func statFields(proc string, pid int) ([][]byte, error) {
	name := filepath.Join(proc, strconv.Itoa(pid), "stat")
	content, err := procfs.Read(name)
	if err != nil {
		return nil, err
	}
	fields := procfs.StatFields(content)
	if len(fields) <= statSignal {
		return nil, fmt.Errorf("%s: %d fields after the command", name, len(fields))
	}
	return fields, nil
}
