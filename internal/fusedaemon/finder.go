package fusedaemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/openfiles"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

const (
	// searchInterval is the shortest time between two searches among all processes for the
	// daemon of a connection that was not found.
	searchInterval = time.Minute
	// searchTimeout bounds a search among all processes. processesPerBatch is how many are
	// looked at between two looks at the clock.
	searchTimeout     = 1500 * time.Millisecond
	processesPerBatch = 200
	maxThreads        = 256  // of a daemon
	maxLinks          = 1024 // of a process
	maxInfos          = 1024 // of all processes
	maxNamed          = 64   // processes whose arguments are read
	maxPeers          = 64   // UNIX sockets of a daemon
	maxKnown          = 1024 // connections that are remembered
	maxComm           = 15   // bytes of a process's name (TASK_COMM_LEN)

	device = "/dev/fuse"
)

// Connection is the connection between the kernel and the daemon of a FUSE file system.
type Connection struct {
	Number     int64  // as in /sys/fs/fuse/connections
	MountID    int    // numbers are given again
	Kind       string // fuse.KIND, or empty
	Mountpoint string
}

// Finder finds daemons, and remembers them: it searches among all processes only for daemons
// that are not known. Its methods may be called from several goroutines.
type Finder struct {
	proc  string
	files *openfiles.Reader
	tasks *blocked.Monitor

	mu       sync.Mutex
	scanner  *blocked.Scanner
	known    map[Connection]holder
	searched map[Connection]time.Time
	workers  map[identity]worker
}

// identity identifies a process.
type identity struct {
	pid   int
	start uint64
}

// holder is a process that holds a connection; descriptor is empty for a guessed one.
type holder struct {
	identity
	descriptor string
}

// worker is the process that has a daemon's connection to its server; pid 0 means that there is
// none.
type worker struct {
	identity
	searched time.Time
}

// NewFinder returns a Finder among the processes below the directory where procfs is mounted.
func NewFinder(proc string, files *openfiles.Reader, tasks *blocked.Monitor) *Finder {
	return &Finder{proc: proc, files: files, tasks: tasks,
		known: make(map[Connection]holder), searched: make(map[Connection]time.Time), workers: make(map[identity]worker)}
}

// Find returns the daemons of connections. It leaves out daemons that were not found, or may not
// be seen. Helpers look for them. This takes milliseconds, or a second on a host with thousands
// of processes. An error that comes with daemons says that not all could be seen.
func (f *Finder) Find(connections []Connection) (map[Connection]*Daemon, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.open(); err != nil {
		return nil, err
	}
	problem := f.confirm(connections)
	if unknown := f.unknown(connections, time.Now()); len(unknown) > 0 {
		problem = errors.Join(problem, f.search(unknown))
	}
	found := make(map[Connection]*Daemon, len(connections))
	daemons := make(map[identity]*Daemon)
	for _, c := range connections {
		h, known := f.known[c]
		if !known {
			continue
		}
		if daemons[h.identity] == nil {
			daemons[h.identity] = f.inspect(h)
		}
		if daemons[h.identity] != nil {
			found[c] = daemons[h.identity]
		}
	}
	return found, errors.Join(problem, f.findSockets(daemons))
}

// OfProgram returns the process that has a connection to a server, or tries to connect. The
// process is the given program, which mounts something, or one that it has started. Before there
// is a mount, that connection is what the program waits for. It is nil if there is no connection,
// or none may be seen.
func (f *Finder) OfProgram(pid int) (*Daemon, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.open(); err != nil {
		return nil, err
	}
	pids, err := f.processes()
	if err != nil {
		return nil, err
	}
	daemons := make(map[identity]*Daemon)
	for _, pid := range f.descendants(pid, pids) {
		h := holder{identity: f.identityOf(pid)}
		if d := f.inspect(h); d != nil {
			d.Guessed = false
			daemons[h.identity] = d
		}
	}
	err = f.findSockets(daemons)
	var found *Daemon
	for _, d := range daemons {
		if len(d.Sockets) > 0 && (found == nil || d.PID < found.PID) {
			found = d
		}
	}
	return found, err
}

// maxDescendants is how many processes of a mount program are looked at.
const maxDescendants = 64

// descendants returns a process and those, among all, that it or one of them has started.
func (f *Finder) descendants(pid int, all []int) []int {
	children := make(map[int][]int)
	for _, other := range all {
		if threads, err := f.scanner.Threads(other, 1); err == nil {
			children[threads[0].Parent] = append(children[threads[0].Parent], other)
		}
	}
	found := []int{pid}
	for i := 0; i < len(found) && len(found) < maxDescendants; i++ {
		found = append(found, children[found[i]]...)
	}
	return found[:min(len(found), maxDescendants)]
}

// open opens the directory of processes, unless it is open.
func (f *Finder) open() error {
	if f.scanner != nil {
		return nil
	}
	scanner, err := blocked.NewScanner(f.proc)
	f.scanner = scanner
	return err
}

// confirm forgets holders that have ended, or no longer hold the connection.
func (f *Finder) confirm(connections []Connection) error {
	if len(f.known) > maxKnown {
		clear(f.known)
	}
	if len(f.searched) > maxKnown {
		clear(f.searched)
	}
	if len(f.workers) > maxKnown {
		clear(f.workers)
	}
	var asked []Connection
	var infos []string
	for _, c := range connections {
		h, known := f.known[c]
		switch {
		case !known:
		case f.identityOf(h.pid) != h.identity:
			f.forget(c)
		case h.descriptor != "":
			asked, infos = append(asked, c), append(infos, filepath.Join(strconv.Itoa(h.pid), "fdinfo", h.descriptor))
		}
	}
	contents, err := f.files.Infos(infos)
	for i, content := range contents {
		if number, told := connectionOf(content); !told || number != asked[i].Number {
			f.forget(asked[i])
		}
	}
	return err
}

// forget has the holder of a connection searched for again.
func (f *Finder) forget(c Connection) {
	delete(f.known, c)
	delete(f.searched, c)
}

// unknown returns the connections whose holders must be searched for now.
func (f *Finder) unknown(connections []Connection, now time.Time) []Connection {
	var unknown []Connection
	for _, c := range connections {
		if _, known := f.known[c]; !known && now.Sub(f.searched[c]) >= searchInterval {
			f.searched[c] = now
			unknown = append(unknown, c)
		}
	}
	return unknown
}

// search looks at all processes for the holders of connections. Before Linux 6.16 the kernel does
// not say to which connection a descriptor belongs. Then search guesses among the processes that
// hold one, or among all processes where descriptors may not be seen.
func (f *Finder) search(connections []Connection) error {
	wanted := make(map[int64]Connection, len(connections))
	for _, c := range connections {
		wanted[c.Number] = c
	}
	pids, err := f.processes()
	if err != nil {
		return err
	}
	var holders []holder // of some connection
	var infos []string
	var suspects []int
	err = f.links(pids, device[:8], func(pid int, links openfiles.Links) {
		hidden := links.Errno == unix.EACCES || links.Errno == unix.EPERM
		if hidden {
			suspects = append(suspects, pid)
		}
		for _, link := range links.Links {
			if link.Target == device && len(infos) < maxInfos {
				holders = append(holders, holder{identity{pid: pid}, link.Name})
				infos = append(infos, filepath.Join(strconv.Itoa(pid), "fdinfo", link.Name))
			}
		}
	})
	contents, problem := f.files.Infos(infos)
	for i, content := range contents {
		number, told := connectionOf(content)
		if !told {
			suspects = append(suspects, holders[i].pid)
		}
		c, ask := wanted[number]
		if !told || !ask {
			continue
		}
		h := holders[i]
		h.identity = f.identityOf(h.pid)
		if before, other := f.known[c]; h.start != 0 && (!other || f.serves(h.pid) > f.serves(before.pid)) {
			f.known[c] = h
		}
	}
	return errors.Join(err, problem, f.guess(connections, suspects))
}

// serves is how likely it is that a process that holds a connection serves it. Others have
// inherited the connection, keep it for a restart, or wait for its end, as fusermount does.
func (f *Finder) serves(pid int) int {
	threads, err := f.scanner.Threads(pid, maxThreads)
	d := Daemon{Threads: threads}
	switch {
	case err != nil:
		return 0
	case pid == 1, strings.HasPrefix(threads[0].Comm, "fusermount"):
		return 1
	case d.TakesRequests():
		return 3
	}
	return 2
}

// guess takes a process for the daemon if it is the only one that is named after the file system
// and has the mount point among its arguments.
func (f *Finder) guess(connections []Connection, suspects []int) error {
	unknown := slices.DeleteFunc(slices.Clone(connections), func(c Connection) bool {
		_, known := f.known[c]
		return known || c.Kind == ""
	})
	named := slices.DeleteFunc(slices.Compact(suspects), func(pid int) bool {
		comm := f.commOf(pid)
		return !slices.ContainsFunc(unknown, func(c Connection) bool { return c.fits(comm) })
	})
	named = named[:min(len(named), maxNamed)]
	lines, err := f.files.CommandLines(named)
	for _, c := range unknown {
		var fit []int
		for i, line := range lines {
			if slices.Contains(line, c.Mountpoint) {
				fit = append(fit, named[i])
			}
		}
		if len(fit) == 1 {
			f.known[c] = holder{identity: f.identityOf(fit[0])}
		}
	}
	return err
}

// fits reports whether a process has the name of the connection's daemon, or of a link to it by
// which mount(8) calls it, as sshfs's package has.
func (c Connection) fits(comm string) bool {
	return slices.ContainsFunc([]string{"", "mount.fuse.", "mount."}, func(prefix string) bool {
		name := prefix + c.Kind
		return name[:min(len(name), maxComm)] == comm
	})
}

// inspect tells what a daemon does; nil if it has ended.
func (f *Finder) inspect(h holder) *Daemon {
	threads, err := f.scanner.Threads(h.pid, maxThreads)
	if err != nil || threads[0].Start != h.start {
		return nil
	}
	threads = slices.DeleteFunc(threads, func(t blocked.Task) bool { return t.State == 'Z' || t.State == 'X' })
	if len(threads) == 0 {
		return nil
	}
	d := &Daemon{Process: Process{h.pid, f.commOf(h.pid)}, Guessed: h.descriptor == "", Threads: threads}
	d.Restart = cgroups.Restart(filepath.Join(f.proc, strconv.Itoa(h.pid), "cgroup"))
	d.Files = f.tasks.Files(threads[0])
	if lines, err := f.files.CommandLines([]int{h.pid}); err == nil {
		d.Arguments = lines[0]
	}
	return d
}

// findSockets fills in the sockets of daemons, and their workers.
func (f *Finder) findSockets(daemons map[identity]*Daemon) error {
	var seen []identity
	for id, d := range daemons {
		if d != nil && f.sameNetwork(id.pid) {
			seen = append(seen, id)
		}
	}
	inodes, err := f.socketsOf(seen)
	if err != nil || len(inodes) == 0 {
		return err
	}
	if err := f.askForTCP(daemons, inodes); err != nil {
		return err
	}
	workers, processes := make(map[identity][]uint32), make(map[identity]identity)
	for id := range inodes {
		d := daemons[id]
		d.SocketsKnown = true
		if len(d.Sockets) > 0 {
			continue
		}
		w := f.workerOf(id, inodes[id])
		if w.pid == 0 || !f.sameNetwork(w.pid) {
			continue
		}
		sockets, err := f.socketsOf([]identity{w})
		if err != nil {
			return err
		}
		workers[id], processes[id] = sockets[w], w
	}
	if len(workers) == 0 {
		return nil
	}
	err = f.askForTCP(daemons, workers)
	for id, w := range processes {
		if d := daemons[id]; len(d.Sockets) > 0 {
			d.Worker = &Process{w.pid, f.commOf(w.pid)}
		}
	}
	return err
}

// askForTCP asks once for the TCP sockets among the inodes that belong to daemons.
func (f *Finder) askForTCP(daemons map[identity]*Daemon, inodes map[identity][]uint32) error {
	owners := make(map[uint32]identity)
	for id, all := range inodes {
		for _, inode := range all {
			owners[inode] = id
		}
	}
	sockets, err := sockdiag.Sockets(func(inode uint32) bool {
		_, owned := owners[inode]
		return owned
	})
	for _, socket := range sockets {
		d := daemons[owners[socket.Inode]]
		d.Sockets = append(d.Sockets, socket)
	}
	return err
}

// workerOf is the process to which a daemon is connected by socketpair(2), such as
// ssh; pid 0 means that there is none. It is searched for only from time to time.
func (f *Finder) workerOf(daemon identity, sockets []uint32) identity {
	w, known := f.workers[daemon]
	if known && w.pid != 0 && f.identityOf(w.pid) == w.identity {
		return w.identity
	}
	if known && w.pid == 0 && time.Since(w.searched) < searchInterval {
		return identity{}
	}
	peers := make(map[uint32]bool)
	for _, inode := range sockets[:min(len(sockets), maxPeers)] {
		socket, err := sockdiag.UnixSocket(inode)
		if err != nil || socket.Peer == 0 {
			continue
		}
		if peer, err := sockdiag.UnixSocket(socket.Peer); err == nil && !peer.Named { // a log, or a bus
			peers[socket.Peer] = true
		}
	}
	w = worker{searched: time.Now()}
	if pids, err := f.processes(); err == nil && len(peers) > 0 {
		_ = f.links(pids, socketPrefix, func(pid int, links openfiles.Links) {
			if w.pid == 0 && pid != daemon.pid && pid != 1 && slices.ContainsFunc(socketInodes(links), func(inode uint32) bool { return peers[inode] }) {
				w.identity = f.identityOf(pid)
			}
		})
	}
	f.workers[daemon] = w
	return w.identity
}

// OfTheKernel returns the inodes among these whose sockets belong to no process: a client in the
// kernel has them. The error says that not all processes could be seen, so that it can't be told.
func (f *Finder) OfTheKernel(inodes []uint32) ([]uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pids, err := f.processes()
	if err != nil {
		return nil, err
	}
	left, unseen := slices.Clone(inodes), 0
	err = f.links(pids, socketPrefix, func(_ int, links openfiles.Links) {
		if links.Errno == unix.EACCES || links.Errno == unix.EPERM || len(links.Links) >= maxLinks {
			unseen++
		}
		held := socketInodes(links)
		left = slices.DeleteFunc(left, func(inode uint32) bool { return slices.Contains(held, inode) })
	})
	if unseen > 0 {
		err = errors.Join(err, fmt.Errorf("the sockets of %d processes could not be seen", unseen))
	}
	if err != nil {
		return nil, err
	}
	return left, nil
}

// Holders returns which of some processes hold sockets, by the sockets' inodes.
func (f *Finder) Holders(pids []int, inodes []uint32) (map[uint32]int, error) {
	processes := make([]identity, len(pids))
	for i, pid := range pids {
		processes[i].pid = pid
	}
	held, err := f.socketsOf(processes)
	holders := make(map[uint32]int)
	for process, all := range held {
		for _, inode := range all {
			if slices.Contains(inodes, inode) {
				holders[inode] = process.pid
			}
		}
	}
	return holders, err
}

const socketPrefix = "socket:["

// socketsOf returns the inodes of processes' sockets. Processes that may not be seen have no entry.
func (f *Finder) socketsOf(processes []identity) (map[identity][]uint32, error) {
	directories := make([]string, len(processes))
	for i, p := range processes {
		directories[i] = filepath.Join(strconv.Itoa(p.pid), "fd")
	}
	all, err := f.files.Links(directories, socketPrefix, maxLinks)
	inodes := make(map[identity][]uint32, len(all))
	for i, links := range all {
		if links.Errno == 0 {
			inodes[processes[i]] = socketInodes(links)
		}
	}
	return inodes, err
}

// socketInodes returns the inodes of links such as socket:[4711].
func socketInodes(links openfiles.Links) []uint32 {
	var inodes []uint32
	for _, link := range links.Links {
		digits, isSocket := strings.CutPrefix(link.Target, socketPrefix)
		inode, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 32)
		if isSocket && err == nil {
			inodes = append(inodes, uint32(inode))
		}
	}
	return inodes
}

// links hands the links of processes' descriptors that begin with the prefix to take, until
// the search takes too long.
func (f *Finder) links(pids []int, prefix string, take func(pid int, links openfiles.Links)) error {
	began := time.Now()
	for batch := range slices.Chunk(pids, processesPerBatch) {
		if time.Since(began) > searchTimeout {
			return fmt.Errorf("looking at the descriptors of %d processes took longer than %v: some were left out", len(pids), searchTimeout)
		}
		directories := make([]string, len(batch))
		for i, pid := range batch {
			directories[i] = filepath.Join(strconv.Itoa(pid), "fd")
		}
		all, err := f.files.Links(directories, prefix, maxLinks)
		for i, links := range all {
			take(batch[i], links)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *Finder) processes() ([]int, error) {
	dir, err := os.Open(f.proc)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, err
}

// identityOf is the identity of a process; the zero one if it has ended.
func (f *Finder) identityOf(pid int) identity {
	threads, err := f.scanner.Threads(pid, 1)
	if err != nil {
		return identity{}
	}
	return identity{pid, threads[0].Start}
}

// commOf is a process's name; empty if it has ended.
func (f *Finder) commOf(pid int) string {
	threads, err := f.scanner.Threads(pid, 1)
	if err != nil {
		return ""
	}
	return threads[0].Comm
}

// sameNetwork reports whether a process is in this process's network namespace, as far as that
// may be seen.
func (f *Finder) sameNetwork(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false
	}
	other, err := os.Readlink(filepath.Join(f.proc, strconv.Itoa(pid), "ns/net"))
	return err == nil && own == other
}

// connectionOf reads to which connection a descriptor of /dev/fuse belongs, from its fdinfo file
// (fuse_dev_show_fdinfo, fs/fuse/dev.c; Linux 6.16). told is false where the file does not say.
func connectionOf(info []byte) (number int64, told bool) {
	_, rest, found := bytes.Cut(info, []byte("fuse_connection:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	number, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64)
	return number, found && err == nil && number > 0
}
