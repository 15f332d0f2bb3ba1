package mounts

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	// readerTimeout is when a reader that may wait for a file system is given up. What it waits
	// for decides whether SIGKILL ends it. A reader that was not done by then, and did not
	// wait, has twice the time at its next try, up to maxReaderTimeout. A reader that asks no
	// file system has that time at once: for mounts that are stacked on one directory the
	// kernel's time is quadratic (prepend_path, fs/d_path.c), some 5 s for 32,767.
	readerTimeout    = 5 * time.Second
	maxReaderTimeout = time.Minute
	// maxStatsTime is the longest that reading a table may take if the counters of its mounts
	// are to be read: that takes as long, in each round.
	maxStatsTime = readerTimeout / 2
	// rereadShare is the part of the time, one in so many, that may be spent on reading a
	// table that has not changed, as far as the kernel has said.
	rereadShare = 100
	// awaitTimeout is how long a gather waits for a table that is being read. A table of
	// 5,000 mounts takes some 20 ms on an idle machine.
	awaitTimeout = 500 * time.Millisecond
	// maxTable bounds a table, in bytes: 30,000 mounts with the longest of paths.
	maxTable = 256 << 20
	// maxRereads is how often a table that changes while it is read is read again.
	maxRereads = 3
	// readerKey is the key of all readers of tables. There is never more than one reader, since
	// it holds the kernel's namespace_sem, and everybody who mounts waits for that.
	readerKey = "host mount tables"
)

// WatcherOptions of a Watcher.
type WatcherOptions struct {
	Prober  *prober.Prober
	Proc    string // where procfs is mounted
	PID     string // whose table; "self" is this process's own
	Devices Devices
	Utab    string // where [Utab] of the host shows; empty: nowhere
	// Patience is how long View waits for a table that is being read; 0: half a second.
	Patience time.Duration
}

// Watcher keeps the mount table of one mount namespace. The kernel tells when it has
// changed (poll(2), which asks no file system), and a helper process then reads it: the kernel
// asks some file systems for their options meanwhile, and these may not answer. Its methods may be
// called from several goroutines, and never wait for a file system.
type Watcher struct {
	o         WatcherOptions
	seed      maphash.Seed
	statmount bool // statmount(2) tells all that is needed
	anyAsks   func() bool

	updating sync.Mutex // guards what follows, during an update

	file      *os.File // polled only
	reading   *reading // under way
	plainText bool     // statmount(2) can't be used
	risk      error    // of the text, where that is why it is read
	asText    bool     // it is not, by the last reader
	known     *prober.KnownMounts
	cursor    bool   // the kernel skips no lines of a table that changes
	stale     bool   // the kernel has another table than current
	sum       uint64 // of what current was made from
	current   *Snapshot
	asOf      time.Time     // when current was the kernel's
	took      time.Duration // to read it
	timeout   time.Duration // of the next reader
	notes     *notesReading // under way
	noteLooks int           // for how many more looks they are read

	mu    sync.Mutex
	round uint64
	done  chan struct{} // closed when the round's view is there
	view  View
}

// View is the mount table as it is known in a round.
type View struct {
	*Snapshot               // nil: none could be read yet
	Age       time.Duration // since the kernel had this table last; 0: it has it now
	Hindrance error         // why there is no newer one
	Risk      error         // of the way in which it is read, where the kernel has a better one
}

// NewWatcher returns a Watcher that has read nothing yet.
func NewWatcher(o WatcherOptions) *Watcher {
	if o.Patience == 0 {
		o.Patience = awaitTimeout
	}
	statmount := kernelAtLeast(6, 13)
	return &Watcher{o: o, seed: maphash.MakeSeed(), timeout: readerTimeout, cursor: kernelAtLeast(5, 8), known: newKnown(),
		statmount: statmount,
		plainText: !statmount,
		anyAsks:   func() bool { return SomeAskForOptions(o.Proc, o.Devices.Sys) }}
}

// kernelAtLeast reports whether the running kernel is of that version or a later one;
// false where its version can't be understood.
func kernelAtLeast(major, minor int) bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b)
	return err == nil && (a > major || a == major && b >= minor)
}

// View returns the table of a round. The first caller in a round has it updated.
// A snapshot that is the same as before is the same pointer. View waits for a reader
// no longer than WatcherOptions.Patience, and does not wait for a reader that has hung since an
// earlier round.
func (w *Watcher) View(round uint64) View {
	w.mu.Lock()
	if w.done != nil && w.round == round {
		done := w.done
		w.mu.Unlock()
		<-done
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.view
	}
	done := make(chan struct{})
	w.round, w.done = round, done
	w.mu.Unlock()

	view := w.update(w.o.Patience)
	w.mu.Lock()
	w.view = view
	w.mu.Unlock()
	close(done)
	return view
}

// Await updates the table before the first round, and waits for that. It is for callers that
// gather once, and have no later round in which more is known.
func (w *Watcher) Await(timeout time.Duration) { w.update(timeout) }

func (w *Watcher) seen(hindrance error) View {
	return View{Snapshot: w.current, Hindrance: hindrance, Risk: w.risk}
}

// update updates the table, if that takes no longer than patience.
func (w *Watcher) update(patience time.Duration) View {
	w.updating.Lock()
	defer w.updating.Unlock()
	if err := w.open(); err != nil {
		return w.seen(err)
	}
	if w.changed() {
		w.outdate()
	}
	if !w.stale && w.current != nil {
		w.asOf = time.Now()
		w.tellSubmounts(patience)
		return w.seen(nil)
	}
	w.stale = true
	hindrance := w.read(patience)
	w.tellSubmounts(patience)
	view := w.seen(hindrance)
	if w.stale && w.current != nil {
		view.Age = time.Since(w.asOf)
	}
	return view
}

// read reads the table. It reads it again if it changes meanwhile and the kernel may have skipped
// lines, or has changed since a reader hung. It returns why there is no newer table.
func (w *Watcher) read(patience time.Duration) error {
	before := w.current
	var deadline time.Time // none for a reader that hangs since an earlier round
	for range maxRereads {
		if w.reading == nil {
			if deadline.IsZero() {
				deadline = time.Now().Add(patience)
			}
			w.reading = w.startReading(w.plan())
		}
		r := w.reading
		if !r.wait(time.Until(deadline)) {
			progress, _ := w.o.Prober.Progress(r.ticket)
			if r.goesOn(&progress) {
				return r.slow()
			}
			return w.hang(&progress)
		}
		w.reading = nil
		if grew := r.grew; r.report.Outcome == prober.Expired && (r.goesOn(&r.report) || grew) {
			w.timeout = min(2*w.timeout, maxReaderTimeout)
			return r.slow()
		}
		switch err := w.adopt(&r.report); {
		case errors.Is(err, errRetry):
			continue
		case err != nil:
			return err
		}
		w.asOf, w.took = r.began, r.took
		if w.stale = w.changed() || r.outdated; !w.stale || w.cursor && !r.outdated {
			return nil
		}
	}
	if !w.cursor {
		w.current, w.sum = w.current.with(before), 0
	}
	return nil
}

// errRetry says that the table must be read in another way.
var errRetry = errors.New("statmount(2) can't be used")

// Invalidate has the table read again although the kernel has announced no change: it
// does not announce that it has turned a file system read-only after an error. If the table takes
// long to read, this is seldom done.
func (w *Watcher) Invalidate() {
	w.updating.Lock()
	defer w.updating.Unlock()
	if time.Since(w.asOf) >= rereadShare*w.took || w.took < awaitTimeout {
		w.outdate()
	}
}

// outdate notes that neither what is known, nor what a reader brings that was started
// before, is the current table.
func (w *Watcher) outdate() {
	w.stale = true
	if w.reading != nil {
		w.reading.outdated = true
	}
}

// open opens the file that is polled. Opening asks no file system.
func (w *Watcher) open() error {
	if w.file != nil {
		return nil
	}
	// Not os.Open: it would make Go's poller watch the file, to no use.
	fd, err := unix.Open(w.name("mountinfo"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the mount table: %w", &os.PathError{Op: "open", Path: w.name("mountinfo"), Err: err})
	}
	w.file = os.NewFile(uintptr(fd), w.name("mountinfo"))
	return nil
}

// Close closes the table's file.
func (w *Watcher) Close() error {
	w.updating.Lock()
	defer w.updating.Unlock()
	if w.file == nil {
		return nil
	}
	return w.file.Close()
}

func (w *Watcher) name(file string) string { return filepath.Join(w.o.Proc, w.o.PID, file) }

// changed asks the kernel whether a mount was added, removed or remounted since
// the last question (mounts_poll, fs/proc_namespace.c).
func (w *Watcher) changed() bool {
	set := []unix.PollFd{{Fd: int32(w.file.Fd()), Events: unix.POLLPRI}}
	for {
		if n, err := unix.Poll(set, 0); !errors.Is(err, unix.EINTR) { // the Go runtime's signals interrupt it
			return err != nil || n > 0
		}
	}
}

// plan is what a helper does to read the table. Where that is possible it asks no file
// system that may not answer. Where there is no such file system, it reads the text, which costs
// the kernel least: statmount(2) follows a mount's parents up to the root more than once.
func (w *Watcher) plan() *prober.Plan {
	asks := w.anyAsks()
	w.asText = w.plainText || !asks || !w.own() && !w.namespaced()
	p := &prober.Plan{Timeout: maxReaderTimeout}
	if w.asText && asks {
		p.Timeout = w.timeout
	}
	switch {
	case w.asText:
		p.SearchBelow(w.o.Proc)
		p.ReadFile(w.name("mountinfo"), maxTable)
	case w.own():
		p.Add(prober.StatMounts(statmountAll, statmountPlain, w.known, maxTable))
	default:
		return w.enter(w.o.PID, w.known)
	}
	return p
}

// readText has the table read as text from now on, since it can't be read by statmount(2).
func (w *Watcher) readText(why error) error {
	w.plainText, w.risk = true, fmt.Errorf("while a btrfs, bcachefs or ZFS does not answer, a reader of this text keeps everybody from mounting; it can't be read by statmount(2): %w", refused(why))
	return errRetry
}

// own reports whether the table is this process's own.
func (w *Watcher) own() bool { return w.o.Proc == "/proc" && w.o.PID == "self" }

// namespaced reports whether procfs shows the mount namespace of the table. Where it shows none,
// there is none to enter.
func (w *Watcher) namespaced() bool {
	_, err := os.Lstat(w.name("ns/mnt"))
	return !errors.Is(err, os.ErrNotExist)
}

// enter is what a helper does to read the table of another process by statmount(2): it has to
// enter the mount namespace, see [prober.Plan.EnterMountNS].
func (w *Watcher) enter(process string, known *prober.KnownMounts) *prober.Plan {
	p := &prober.Plan{Timeout: maxReaderTimeout}
	p.EnterMountNS(filepath.Join(w.o.Proc, process, "ns", "mnt"))
	p.Add(prober.StatMounts(statmountAll, statmountPlain, known, maxTable))
	return p
}

// adopt makes the current snapshot of what a helper has read.
func (w *Watcher) adopt(r *prober.Report) error {
	content, err := contentOf(r)
	if r.Outcome == prober.Stuck || r.Outcome == prober.Busy || r.Outcome == prober.Expired {
		return w.hang(r)
	}
	if !w.asText && (r.Failed() != nil || r.Signal == unix.SIGSYS) {
		return w.readText(err) // a sandbox that does not know of it, or a kernel that lacks a part of it
	}
	if err != nil {
		return fmt.Errorf("reading the mount table: %w", err)
	}
	sum := maphash.Bytes(w.seed, content)
	if w.current != nil && w.sum == sum {
		return nil
	}
	parse := func() ([]*mountinfo.Info, error) { return parseText(content) }
	if !w.asText {
		parse = func() ([]*mountinfo.Info, error) { return parseRecords(prober.Records(content)) }
	}
	infos, err := parse()
	if errors.Is(err, errIncomplete) {
		return w.readText(err)
	}
	if !w.asText {
		w.known = knownFrom(prober.Records(content))
	}
	w.current, w.sum = newSnapshot(infos, err, w.o.Devices), sum
	w.noteLooks = 0
	if w.o.Utab != "" && w.current.hasLikeSubmounts() {
		w.noteLooks = 2 // it is noted after the mount was made, and the table read
	}
	return nil
}

// A notesReading is a reading of what tells who has made mounts, by steps of its plan.
type notesReading struct {
	*reading
	utab, links int
}

// tellSubmounts tells mounts by hand from those that the kernel has made, by what libmount and the
// SMB client have noted about them. It does not wait for a reader that has hung since an earlier
// look.
func (w *Watcher) tellSubmounts(patience time.Duration) {
	if w.noteLooks == 0 && w.notes == nil {
		return
	}
	limit := time.Duration(0)
	if w.notes == nil {
		limit = patience
		p := &prober.Plan{Timeout: readerTimeout}
		p.SearchBelow(w.o.Utab)
		utab, links := p.ReadFileIfAny(w.o.Utab, maxUtab), p.ReadFileIfAny(filepath.Join(w.o.Proc, dfsCache), maxDFSCache)
		w.notes = &notesReading{w.start("host utab", p), utab, links}
	}
	if !w.notes.wait(limit) {
		return
	}
	read := w.notes
	w.notes = nil
	w.noteLooks = max(0, w.noteLooks-1)
	if r := &read.report; r.Outcome == prober.Done {
		w.current = w.current.told(&notes{utab: parseUtab(outputOf(r, read.utab)), links: parseDFSLinks(outputOf(r, read.links))})
	}
}

// outputOf is what a step has read, or nothing.
func outputOf(r *prober.Report, step int) []byte {
	if s := r.Step(step); s != nil && s.Errno == 0 {
		return s.Output
	}
	return nil
}

// contentOf is what was read by a plan that ends in ReadAll or StatMounts.
func contentOf(r *prober.Report) ([]byte, error) {
	if failed := r.Failed(); failed != nil {
		return nil, fmt.Errorf("%s: %w", failed.Name, failed.Errno)
	}
	if r.Outcome != prober.Done {
		return nil, errors.Join(fmt.Errorf("the helper process is %v", r.Outcome), r.Err)
	}
	for i := range r.Steps {
		if len(r.Steps[i].Output) > 0 {
			return r.Steps[i].Output, nil
		}
	}
	return nil, nil
}

// hang tells what is known about a reader that does not end: where it waits, and which file
// system it asks.
func (w *Watcher) hang(r *prober.Report) error {
	text := fmt.Sprintf("reading the mount table hangs since %v", time.Since(r.Since).Round(100*time.Millisecond))
	if r.PID == 0 {
		return errors.New("the helper process that is to read the mount table was not started in time")
	}
	text += fmt.Sprintf(" (helper process %d", r.PID)
	if function := prober.FunctionOf("/proc", r.PID); function != "" {
		text += " in " + function
	}
	text += ")"
	if m := w.asked(r.Partial); m != nil {
		text += fmt.Sprintf(": %s does not answer when the kernel asks for its options", m)
	}
	return errors.New(text)
}

// asked is the mount whose file system the kernel asks for its options while it makes
// the line after the last one of a text. The last lines that the kernel has made are not in the
// text yet, so it is a mount that follows and that can wait.
func (w *Watcher) asked(text []byte) *Mount {
	if w.current == nil || !w.asText {
		return nil
	}
	delivered := bytes.Count(text, []byte("\n"))
	for i := delivered; i < len(w.current.Mounts); i++ {
		if m := &w.current.Mounts[i]; asksForOptions(m.FSType) {
			return m
		}
	}
	return nil
}

// reading is a helper that reads.
type reading struct {
	began    time.Time
	ticket   prober.Ticket
	done     chan struct{}
	report   prober.Report // once done is closed
	took     time.Duration // until then
	seen     int           // how much had been read at the last look, in bytes
	grew     bool          // it was more than at the one before
	outdated bool          // the table has changed since
}

// goesOn reports whether more was read since the last look.
func (r *reading) goesOn(now *prober.Report) bool {
	before := r.seen
	r.seen = len(now.Partial)
	r.grew = before > 0 && r.seen > before
	return r.grew
}

func (r *reading) slow() error {
	return fmt.Errorf("the mount table is being read for %v: it is large, or many mounts are stacked on one directory", time.Since(r.began).Round(100*time.Millisecond))
}

func (w *Watcher) startReading(plan *prober.Plan) *reading { return w.start(readerKey, plan) }

func (w *Watcher) start(key string, plan *prober.Plan) *reading {
	r := &reading{began: time.Now(), done: make(chan struct{})}
	r.ticket = w.o.Prober.Submit(prober.Check{Key: key, Group: key, Trusted: true, Independent: true, Essential: true, Plan: plan},
		func(report prober.Report) {
			r.report, r.took = report, time.Since(r.began)
			close(r.done)
		})
	return r
}

// wait reports whether the reading has ended by the limit.
func (r *reading) wait(limit time.Duration) bool {
	select {
	case <-r.done:
		return true
	default:
	}
	if limit <= 0 {
		return false
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.done:
		return true
	case <-timer.C:
		return false
	}
}

// ReadOther reads the mount table of another process, which may be in another mount
// namespace. Where it may not be entered, and a file system there may not answer, it returns an
// error: no check depends on that table, and a reader of its text would keep everybody on the host
// from mounting.
func (w *Watcher) ReadOther(process string) (*Snapshot, error) {
	if !w.statmount || !w.anyAsks() {
		content, err := w.readFile(filepath.Join(w.o.Proc, process, "mountinfo"))
		if err != nil {
			return nil, err
		}
		infos, err := parseText(content)
		return newSnapshot(infos, err, w.o.Devices), nil
	}
	content, err := w.readBy(w.enter(process, newKnown()), "the mount table of process "+process)
	if err != nil {
		return nil, refused(err)
	}
	infos, err := parseRecords(prober.Records(content))
	return newSnapshot(infos, err, w.o.Devices), nil
}

// refused adds to a refusal what it takes to enter another mount namespace.
func refused(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: it takes CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE", err)
	}
	return err
}

// ReadNFSStats reads the counters of all NFS mounts of the namespace. An error that
// comes with counters is about lines that could not be understood.
func (w *Watcher) ReadNFSStats() ([]NFSStats, error) {
	if took := w.tableTook(); took > maxStatsTime {
		return nil, fmt.Errorf("the counters of NFS mounts are not read: the kernel takes as long for them as for the mount table, %v", took.Round(100*time.Millisecond))
	}
	content, err := w.readFile(w.name("mountstats"))
	if err != nil {
		return nil, err
	}
	return ParseMountStats(content)
}

// tableTook is how long the table took to read.
func (w *Watcher) tableTook() time.Duration {
	w.updating.Lock()
	defer w.updating.Unlock()
	return w.took
}

// readFile has a helper read a table, unless one hangs already.
func (w *Watcher) readFile(name string) ([]byte, error) {
	p := &prober.Plan{Timeout: readerTimeout}
	p.SearchBelow(w.o.Proc)
	p.ReadFile(name, maxTable)
	return w.readBy(p, name)
}

// readBy has a helper carry out a plan that reads a table.
func (w *Watcher) readBy(p *prober.Plan, what string) ([]byte, error) {
	r := w.startReading(p)
	if !r.wait(w.o.Patience) {
		return nil, fmt.Errorf("reading %s: not done within %v", what, w.o.Patience)
	}
	content, err := contentOf(&r.report)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	return content, nil
}
