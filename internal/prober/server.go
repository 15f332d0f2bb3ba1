package prober

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

const (
	// startTimeout is how long a server may take to say that it is ready, which
	// is well under 1 ms on an idle host.
	startTimeout = 10 * time.Second
	// restartDelay is the first pause after a server that ended soon after its
	// start; each further one doubles it up to restartDelayMax.
	restartDelay    = 100 * time.Millisecond
	restartDelayMax = 10 * time.Second
	// lived is how old a server must become to be restarted without a pause.
	lived = 10 * time.Second
)

// server is the parent's side of one fork server.
type server struct {
	pid     int
	conn    *os.File // SOCK_SEQPACKET
	raw     syscall.RawConn
	started time.Time
	full    bool // the socket took no request; one is sent again soon
}

// restartState says how the next fork server comes about.
type restartState struct {
	under bool          // one is being started
	next  time.Time     // not before
	delay time.Duration // the pause that led to next
	err   error         // why there is none
}

// startServer starts a fork server, and tries again later where that fails.
func (p *Prober) startServer() {
	var found orphans
	looked := make(chan struct{})
	go func() {
		found = findOrphans(p.options.Proc)
		close(looked)
	}()
	s, err := launch(p.options.Untrimmed)
	<-looked

	p.mu.Lock()
	defer p.unlock()
	p.restart.under = false
	if err != nil {
		if p.restart.err == nil {
			p.warn("no file system can be checked: %v", err)
		}
		p.restart.err = err
		p.pause()
		for _, w := range p.drain() {
			p.decide(w, Report{Outcome: Unavailable, Err: err})
		}
		return
	}
	if p.closed {
		s.conn.Close()
	}
	if p.restart.err != nil {
		p.warn("the fork server runs again (pid %d)", s.pid)
	}
	p.restart.err = nil
	p.server = s
	p.orphans = found
	go p.read(s)
	go p.await(s)
	p.pump()
}

func (p *Prober) pause() {
	p.restart.delay = min(max(2*p.restart.delay, restartDelay), restartDelayMax)
	p.restart.next = time.Now().Add(p.restart.delay)
}

// launch forks a fork server, and hears its first word.
func launch(untrimmed bool) (*server, error) {
	fail := func(operation string, err error) (*server, error) {
		return nil, fmt.Errorf("starting the fork server: %s: %w", operation, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail("socketpair", err)
	}
	// Only our end must not block: the server's is for helpers to wait on.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return fail("fcntl", err)
	}
	conn := os.NewFile(uintptr(pair[0]), "fork server")
	pid, _, err := forkserver.Start(pair[1], !untrimmed)
	unix.Close(pair[1])
	if err != nil {
		conn.Close()
		return fail("start", err)
	}
	s := &server{pid: pid, conn: conn, started: time.Now()}
	if s.raw, err = conn.SyscallConn(); err == nil {
		err = s.greeting()
	}
	if err != nil {
		conn.Close()
		s.kill()
		s.wait()
		return fail("greeting", err)
	}
	return s, nil
}

// greeting waits for the server's first word.
func (s *server) greeting() error {
	message := make([]byte, forkserver.MaxOutput)
	if err := s.conn.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	n, err := s.conn.Read(message)
	if err != nil {
		return err
	}
	answer, _, ok := forkserver.ParseAnswer(message[:n])
	switch {
	case !ok || answer.Kind != forkserver.Ready:
		return fmt.Errorf("unknown message of %d bytes", n)
	case answer.Errno != 0:
		return syscall.Errno(answer.Errno)
	}
	return s.conn.SetReadDeadline(time.Time{})
}

// send hands over one message, or says EAGAIN where the socket is full.
func (s *server) send(message []byte) error {
	var err error
	if controlErr := s.raw.Control(func(fd uintptr) {
		err = unix.Send(int(fd), message, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}); controlErr != nil {
		return controlErr
	}
	return err
}

// kill ends a server that does not answer. It is our child and was not waited
// for, so the number is still its own.
func (s *server) kill() { _ = unix.Kill(s.pid, unix.SIGKILL) }

// wait waits for the server's end.
func (s *server) wait() (status unix.WaitStatus, used unix.Rusage) {
	for {
		if _, err := unix.Wait4(s.pid, &status, 0, &used); !errors.Is(err, unix.EINTR) {
			return status, used
		}
	}
}

func (p *Prober) read(s *server) {
	message := make([]byte, forkserver.MaxOutput+1024)
	for {
		n, err := s.conn.Read(message)
		if err != nil {
			return // the server's end is noticed by await
		}
		p.receive(message[:n])
	}
}

// await notices the end of the server by waiting for the process. The socket
// does not tell: a stuck helper keeps the other end of it open.
func (p *Prober) await(s *server) {
	status, used := s.wait()
	s.conn.Close()

	p.mu.Lock()
	defer p.unlock()
	p.server = nil
	p.cpuBefore += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	if p.closed {
		for _, h := range p.helpers {
			p.remove(h)
		}
		return
	}
	p.stats.ServerRestarts++
	lost := 0
	for _, h := range p.helpers {
		if !h.reported {
			lost++
		}
		h.err = errors.New("the fork server ended while the check was under way")
		p.finish(h, Unavailable)
		p.remove(h)
	}
	reason := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		reason = status.Signal().String()
	}
	p.warn("the fork server (pid %d) ended (%s), %d checks were under way; starting it again", s.pid, reason, lost)

	p.restart.under = true
	if time.Since(s.started) > lived {
		p.restart.delay = 0
		go p.startServer()
		return
	}
	wait := p.restart.delay
	p.pause()
	time.AfterFunc(wait, p.startServer)
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
	return time.Duration(ticks) * userTick, pages * int64(os.Getpagesize())
}

// userTick is the unit of times in proc_pid_stat(5): USER_HZ is 100 on every
// architecture Go runs on.
const userTick = 10 * time.Millisecond

// Indexes into what statFields returns. The field after the command is the
// third of proc_pid_stat(5).
const (
	statState     = 0
	statPPID      = 1
	statUtime     = 11 // and stime, cutime,
	statCstime    = 14
	statStarttime = 19
	statRSS       = 21
)

// statFields reads the fields of /proc/PID/stat that follow the command.
func statFields(proc string, pid int) ([][]byte, error) {
	name := filepath.Join(proc, strconv.Itoa(pid), "stat")
	content, err := readSmall(name)
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
	if len(fields) <= statRSS {
		return nil, fmt.Errorf("%s: %d fields after the command", name, len(fields))
	}
	return fields, nil
}
