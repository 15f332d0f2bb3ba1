package attribution

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// A Walker counts the children of directories in the dentry cache.
type Walker struct {
	prober *prober.Prober
	mu     sync.Mutex // held while the programs run: they share a map
	opened *ebpf.Program
	goOn   *ebpf.Program
	state  *ebpf.Map
	closed bool
}

// A Request is for one walk.
type Request struct {
	// Path of the directory, as seen by this process.
	Path string
	// Below is the administrator's part of the path: see [prober.Plan.SearchBelow].
	Below string
	// Check gives Key, Group and Trusted for the prober, whose helper opens the
	// directory. Its Plan is not used.
	Check prober.Check
	// Timeout of the whole. Default 5 s.
	Timeout time.Duration
	// MaxChildren ends the walk early. 0: no limit but Timeout.
	MaxChildren int64
	// Names is how many of the newest children are named, at most 16. Names can
	// be confidential.
	Names int
}

// A Child of a directory.
type Child struct {
	Name     string // any bytes but 0 and /
	Negative bool
}

// A Directory is the result of a walk.
type Directory struct {
	Device Device // of the superblock (s_dev)
	// StatDevice is what stat(2) calls the device: another one on btrfs.
	StatDevice Device
	Inode      uint64
	FSType     string
	// KeepsNegatives is false for file systems that have no negative dentries,
	// such as tmpfs.
	KeepsNegatives bool
	Children       int64 // negative ones included
	Negative       int64
	// Complete is false where Children is a lower bound, for the reason that
	// Capped, Disturbed or TimedOut gives.
	Complete  bool
	Capped    bool // MaxChildren reached
	Disturbed bool // the children changed too fast
	TimedOut  bool
	// Elapsed is the time that the walk's steps took, without the pauses between
	// chunks of them.
	Elapsed time.Duration
	Newest  []Child // newest first
}

// What a program returns: see the C source.
const (
	walkMore = iota
	walkEnd
	walkLost
	walkNone
)

const (
	// heldDescriptor is where the helper has the directory. Its own ones are
	// far below.
	heldDescriptor = 200
	// attempts is how often a walk begins that lost its way, since the child it
	// stood on was freed.
	attempts = 5
)

// OpenWalker loads the programs. The error says what the kernel or this
// process's privileges lack: bpf_loop came with 5.17.
func OpenWalker(p *prober.Prober) (*Walker, error) {
	spec, err := programs()
	if err != nil {
		return nil, err
	}
	if _, err := kernelTypes(); err != nil {
		return nil, err
	}
	defer btf.FlushKernelSpec()
	for name := range spec.Programs {
		if name != dentryProgWalkOpen && name != dentryProgWalkOn {
			delete(spec.Programs, name)
		}
	}
	for name := range spec.Maps {
		if name != dentryMapWalks {
			delete(spec.Maps, name)
		}
	}
	clear(spec.Variables)
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("%w (walks take Linux 5.17, for bpf_loop)", loadError(err))
	}
	return &Walker{
		prober: p,
		opened: collection.DetachProgram(dentryProgWalkOpen),
		goOn:   collection.DetachProgram(dentryProgWalkOn),
		state:  collection.DetachMap(dentryMapWalks),
	}, nil
}

// Close unloads the programs. A walk that is under way ends first.
func (w *Walker) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return errors.Join(w.opened.Close(), w.goOn.Close(), w.state.Close())
}

// An OpenError says that a directory could not be opened for a walk. Report
// tells in which step, and by which error or hang.
type OpenError struct {
	Path   string
	Report prober.Report
}

func (e *OpenError) Error() string {
	if failed := e.Report.Failed(); failed != nil {
		return fmt.Sprintf("%s %s: %v", failed.Name, e.Path, failed.Errno)
	}
	return fmt.Sprintf("open %s: %v", e.Path, &e.Report)
}

// Unwrap returns the errno of the step that failed, if one did.
func (e *OpenError) Unwrap() error {
	if failed := e.Report.Failed(); failed != nil {
		return failed.Errno
	}
	return e.Report.Err
}

// Walk counts the children of one directory. It blocks for at most the timeout
// and a twentieth of it (but at least 0.1 s); the file system is touched by a
// helper of the prober only, so call it in a goroutine of its own. Several walks may
// be asked for at a time: the directories are opened side by side, so that one which
// hangs keeps no other waiting, and walked one after the other.
//
// A directory that could not be opened is an error of type [*OpenError].
func (w *Walker) Walk(r Request) (Directory, error) {
	if r.Timeout == 0 {
		r.Timeout = 5 * time.Second
	}
	deadline := time.Now().Add(r.Timeout)

	// The helper opens the directory and then connects to this socket. While
	// the connection is open it holds the directory, which this process must
	// not: to give it back can take for ever if it is the last user of a file
	// system which hangs.
	name := "@vfsprobe-walk-" + rand.Text()
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return Directory{}, fmt.Errorf("socket for a walk: %w", err)
	}
	defer listener.Close()
	plan, examine := holdPlan(r.Path, name, r.Timeout)
	plan.SearchBelow(r.Below)
	check := r.Check
	check.Plan = plan
	reports := make(chan prober.Report, 1)
	ticket := w.prober.Submit(check, func(report prober.Report) {
		reports <- report
		listener.Close() // ends Accept if the helper has not connected
	})
	_ = listener.SetDeadline(deadline)
	conn, err := w.accept(listener, ticket)
	if err != nil {
		report := <-reports // which comes: the helper has ended, or will
		if failed := report.Failed(); report.HangsAt > examine || failed != nil && failed.Index > examine {
			return Directory{}, fmt.Errorf("walk %s: the helper came too late: %v", r.Path, &report)
		}
		return Directory{}, &OpenError{r.Path, report}
	}
	directory, walkErr := w.walk(conn, &r, deadline)
	conn.Close() // the helper ends
	report := <-reports
	if walkErr != nil {
		return Directory{}, fmt.Errorf("walk %s: %w", r.Path, walkErr)
	}
	if st := report.Step(examine).Statx(); st != nil {
		directory.StatDevice = Device{st.Dev_major, st.Dev_minor}
	}
	return directory, nil
}

// accept waits for the helper to connect. The socket's name shows to everybody, who may
// connect as well, and is turned away.
func (w *Walker) accept(listener *net.UnixListener, ticket prober.Ticket) (*net.UnixConn, error) {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(conn)
		for err == nil {
			helper, found := w.prober.Progress(ticket)
			if found && helper.PID == peer {
				return conn, nil
			}
			if !found || helper.PID != 0 {
				break
			}
			time.Sleep(time.Millisecond) // the fork server is about to say who it is
		}
		conn.Close()
	}
}

// peerOf is the process at the other end, SO_PEERCRED of unix(7).
func peerOf(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); controlErr != nil || err != nil {
		return 0, errors.Join(controlErr, err)
	}
	return int(peer.Pid), nil
}

// holdPlan opens the directory, says so, and keeps it until the other end of the
// connection is closed. examine is the index of the last step that is about the
// directory.
func holdPlan(path, name string, timeout time.Duration) (plan *prober.Plan, examine int) {
	address := append([]byte{unix.AF_UNIX, 0, 0}, name[1:]...) // abstract: unix(7)
	plan = &prober.Plan{Timeout: timeout}
	opened := plan.Add(prober.OpenPath(prober.CWD(), path, unix.O_DIRECTORY).Named("open"))
	held := plan.Add(prober.Dup(prober.ResultOf(opened), heldDescriptor).Silent())
	examine = plan.Add(prober.Statx(prober.ResultOf(held), "", unix.AT_STATX_DONT_SYNC, unix.STATX_INO))
	socket := plan.Add(prober.Socket(unix.SOCK_SEQPACKET).Silent())
	plan.Add(prober.Connect(prober.ResultOf(socket), address).Silent())
	plan.Add(prober.Read(prober.ResultOf(socket), 8).WithoutOutput().Named("walk"))
	return plan, examine
}

// walk runs the programs.
func (w *Walker) walk(conn *net.UnixConn, r *Request, deadline time.Time) (d Directory, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return d, net.ErrClosed
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return d, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		for range attempts {
			if d, err = w.once(int(fd), r, deadline); err != nil || !d.Disturbed {
				return
			}
		}
	})
	return d, errors.Join(controlErr, err)
}

// once makes one attempt.
func (w *Walker) once(socket int, r *Request, deadline time.Time) (Directory, error) {
	state := dentryWalk{Socket: uint32(socket), Descriptor: heldDescriptor, Names: uint32(min(r.Names, len(dentryWalk{}.Newest)))}
	if err := w.state.Put(uint32(0), &state); err != nil {
		return Directory{}, err
	}
	result, err := w.opened.Run(nil)
	if err != nil {
		return Directory{}, err
	}
	var d Directory
	for chunk := int64(0); result == walkMore; chunk++ {
		switch {
		case r.MaxChildren > 0 && chunk*chunkSize >= r.MaxChildren:
			d.Capped = true
		case time.Now().After(deadline):
			d.TimedOut = true
		}
		if d.Capped || d.TimedOut {
			break
		}
		start := time.Now()
		if result, err = w.goOn.Run(nil); err != nil {
			return Directory{}, err
		}
		d.Elapsed += time.Since(start)
		if result == walkMore {
			time.Sleep(chunkPause)
		}
	}
	if result == walkNone {
		return Directory{}, errors.New("the helper's directory was not found")
	}
	if err := w.state.Lookup(uint32(0), &state); err != nil {
		return Directory{}, err
	}
	d.Device, d.Inode = deviceOf(state.Device), state.Inode
	d.FSType = string(cString(state.Fstype[:]))
	d.Children, d.Negative = int64(state.Children), int64(state.Negative)
	d.Complete, d.Disturbed = result == walkEnd, result == walkLost
	// The d_delete of btrfs is for the names of removed snapshots only.
	d.KeepsNegatives = (state.Transient == 0 || d.FSType == "btrfs") && !slices.Contains(withoutNegatives, d.FSType)
	for i := range min(int(state.Named), len(state.Newest)) {
		child := &state.Newest[i]
		d.Newest = append(d.Newest, Child{string(cString(child.Name[:])), child.Negative != 0})
	}
	return d, nil
}

const (
	// chunkSize is the number of children in one run of walk_on: half a
	// millisecond, in which no other task can have the CPU.
	chunkSize = 4096
	// chunkPause lies between chunks. Without, the scheduler may let a task that wakes
	// wait for this one's whole slice.
	chunkPause = 100 * time.Microsecond
)

// withoutNegatives are file systems that keep no negative dentries: those whose
// look-ups are simple_lookup() (fs/libfs.c), and procfs.
var withoutNegatives = []string{
	"tmpfs", "devtmpfs", "ramfs", "rootfs", "hugetlbfs", "proc", "bpf", "debugfs", "tracefs", "securityfs", "configfs",
	"mqueue", "devpts", "pstore", "efivarfs", "fusectl", "rpc_pipefs", "binfmt_misc", "selinuxfs", "autofs", "nfsd",
}
