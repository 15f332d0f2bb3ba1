package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/influxdata/telegraf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/execd"
)

const (
	// greetTimeout is for a client's first line.
	greetTimeout = 5 * time.Second
	// closeTimeout is how long a client may read what waits for it when the service ends.
	closeTimeout = 40 * time.Millisecond
	// maxClients bounds connections.
	maxClients = 64
	// shareSlack is how much later than an interval ago a newline may come.
	shareSlack = 50 * time.Millisecond
	// keptRounds is more than the number of gathers that can be under way: the current one, the
	// one before that was interrupted, and those left out because an input was busy with both.
	keptRounds = 16
)

// ServerOptions of a Server.
type ServerOptions struct {
	// Group returns the number of the group that may connect, besides root and this process's
	// own user, or false while there is no group of that name. It is called for each
	// connection, since the group may be made later.
	Group  func() (gid uint32, found bool)
	Log    telegraf.Logger
	Fan    *LogFan // hands the log to clients; may be nil
	Inputs int     // how many there are
}

// A LogFan writes the lines of a log to all clients of a server. Before there is a server, it
// writes them to nobody.
type LogFan struct {
	mu     sync.Mutex
	server *Server
}

// Write queues a line for each client.
func (f *LogFan) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server != nil {
		f.server.log(line)
	}
	return len(line), nil
}

func (f *LogFan) attach(s *Server) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server = s
}

// A Server answers clients with the metrics of the gathers that they have asked for. Listen
// makes one.
type Server struct {
	options  ServerOptions
	listener *net.UnixListener
	triggers chan time.Time
	ended    chan struct{}

	mu      sync.Mutex
	clients map[*client]struct{}
	asked   []*client // wait for the next gather
	begins  bool      // a gather is about to begin
	timer   *time.Timer
	rounds  map[int64][]*client // who gets a gather's metrics, by its time in nanoseconds
	order   []int64             // of the keys, oldest first
	refused map[string]bool     // of whom the log has it already
}

// client is one connection.
type client struct {
	name     string
	conn     *net.UnixConn
	metrics  *execd.Output
	log      *execd.Log
	last     time.Time     // when it asked last
	interval time.Duration // between its last two newlines; 0: unknown
}

// Listen makes a socket of that name, replacing one that nobody listens on. Everybody
// may write to the socket: the server itself checks who connects.
func Listen(name string, o ServerOptions) (*Server, error) {
	if conn, err := net.Dial("unix", name); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listening on %s: another vfsprobe does", name)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	if err := os.Chmod(name, 0o666); err != nil {
		listener.Close()
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	s := newServer(o, listener)
	if o.Fan != nil {
		o.Fan.attach(s)
	}
	go s.accept()
	return s, nil
}

func newServer(o ServerOptions, listener *net.UnixListener) *Server {
	return &Server{options: o, listener: listener, triggers: make(chan time.Time), ended: make(chan struct{}),
		clients: make(map[*client]struct{}), rounds: make(map[int64][]*client), refused: make(map[string]bool)}
}

// Triggers returns the channel with the times of the gathers that are to begin.
func (s *Server) Triggers() <-chan time.Time { return s.triggers }

// log queues a line for all clients.
func (s *Server) log(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		_, _ = c.log.Write(line)
	}
}

// Write hands lines to the clients that have asked for the gather of that time.
func (s *Server) Write(at time.Time, lines []byte) {
	s.mu.Lock()
	to := s.rounds[at.UnixNano()]
	s.mu.Unlock()
	for _, c := range to {
		c.metrics.Write(lines)
	}
}

// Close ends all connections. What waits for them may be written for a moment.
func (s *Server) Close() {
	s.listener.Close()
	s.mu.Lock()
	select {
	case <-s.ended: // by an earlier call
	default:
		close(s.ended)
	}
	var all []*client
	for c := range s.clients {
		all = append(all, c)
	}
	s.mu.Unlock()
	var closing sync.WaitGroup
	for _, c := range all {
		closing.Go(func() {
			_ = c.metrics.Close(closeTimeout)
			c.log.Flush(closeTimeout)
			c.conn.Close()
		})
	}
	closing.Wait()
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // no descriptors, for instance
			s.say(fmt.Sprintf("accepting a connection: %v", err))
			time.Sleep(time.Second)
		default:
			go s.serve(conn)
		}
	}
}

// say logs a refusal, once.
func (s *Server) say(what string) {
	s.mu.Lock()
	said := s.refused[what]
	s.refused[what] = true
	s.mu.Unlock()
	if !said {
		s.options.Log.Warn(what)
	}
}

// serve runs a client's connection.
func (s *Server) serve(conn *net.UnixConn) {
	defer conn.Close()
	name, err := s.authorize(conn)
	if err != nil {
		s.say(err.Error())
		return
	}
	reader := bufio.NewReaderSize(conn, maxLine)
	_ = conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := greet(reader, conn); err != nil {
		if !errors.Is(err, io.EOF) { // who looks whether somebody listens
			s.say(fmt.Sprintf("%s: %v", name, err))
		}
		return
	}
	_ = conn.SetDeadline(time.Time{})
	w := &frames{w: conn}
	c := &client{name: name, conn: conn, log: execd.NewLog(w.of(logFrame)),
		metrics: execd.NewOutput(w.of(metricsFrame), "the connection of "+name, s.options.Log, s.options.Inputs)}
	if !s.add(c) {
		s.say(fmt.Sprintf("%s is refused: there are %d connections", name, maxClients))
		return
	}
	defer s.remove(c)
	for {
		b, err := reader.ReadByte()
		if err != nil {
			return
		}
		if b == '\n' {
			s.ask(c, time.Now())
		}
	}
}

// authorize returns the name of the user who has connected, if that user may.
func (s *Server) authorize(conn *net.UnixConn) (name string, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var peer *unix.Ucred
	var groups []uint32
	if controlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups = peerGroups(int(fd))
	}); controlErr != nil || err != nil {
		return "", fmt.Errorf("asking who has connected: %w", errors.Join(controlErr, err))
	}
	name = fmt.Sprintf("process %d of uid %d", peer.Pid, peer.Uid)
	if peer.Uid == 0 || int(peer.Uid) == os.Geteuid() {
		return name, nil
	}
	if gid, found := s.options.Group(); found && (peer.Gid == gid || slices.Contains(groups, gid)) {
		return name, nil
	}
	return "", fmt.Errorf("uid %d may not connect: it is not in the group that may", peer.Uid)
}

func (s *Server) add(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) == maxClients {
		return false
	}
	s.clients[c] = struct{}{}
	return true
}

func (s *Server) remove(c *client) {
	s.mu.Lock()
	delete(s.clients, c)
	s.asked = slices.DeleteFunc(s.asked, func(o *client) bool { return o == c })
	s.mu.Unlock()
	c.conn.Close() // whatever is being written
	_ = c.metrics.Close(0)
}

// ask notes that a client wants a gather. The gather begins at once, or when the other clients
// that are expected to ask within half an interval have asked.
func (s *Server) ask(c *client, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.last.IsZero() {
		c.interval = now.Sub(c.last)
	}
	c.last = now
	if slices.Contains(s.asked, c) {
		return // the gather that it waits for has not begun
	}
	c.metrics.Begin()
	s.asked = append(s.asked, c)
	wait := s.waitLocked(now)
	if s.timer != nil {
		s.timer.Stop()
	}
	if wait == 0 {
		s.beginLocked()
		return
	}
	s.timer = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.beginLocked()
	})
}

// waitLocked is how long the clients that have asked wait for others.
func (s *Server) waitLocked(now time.Time) (wait time.Duration) {
	for c := range s.clients {
		if c.interval == 0 || slices.Contains(s.asked, c) {
			continue
		}
		due := c.last.Add(c.interval).Sub(now)
		if due > -shareSlack && due < c.interval/2 {
			wait = max(wait, due+shareSlack)
		}
	}
	for _, c := range s.asked {
		if c.interval > 0 {
			wait = min(wait, c.last.Add(c.interval/2).Sub(now))
		}
	}
	return max(wait, 0)
}

// beginLocked begins a gather for all clients that have asked. Clients that ask before the last
// gather has begun belong to the next one.
func (s *Server) beginLocked() {
	if len(s.asked) == 0 || s.begins {
		return
	}
	s.begins = true
	now := time.Now()
	s.rounds[now.UnixNano()] = s.asked
	s.order = append(s.order, now.UnixNano())
	if len(s.order) > keptRounds {
		delete(s.rounds, s.order[0])
		s.order = s.order[1:]
	}
	s.asked = nil
	go func() {
		select {
		case s.triggers <- now:
		case <-s.ended:
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.begins = false
		if s.waitLocked(time.Now()) == 0 {
			s.beginLocked()
		}
	}()
}
