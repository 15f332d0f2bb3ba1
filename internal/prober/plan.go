package prober

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// A Plan is the short list of system calls one helper process makes, in order.
// Put harmless steps first: each is reached only if the one before succeeded
// (unless that one is [Step.Optional]), so a later step that could leave a process
// stuck is risked only on a file system which has just answered. Once it was submitted, its
// steps are not to be changed any more, and it is for one Prober.
type Plan struct {
	Steps []Step
	// Timeout is how long the whole check may take, waiting for its turn
	// included. No helper is forked when more than half of it has gone by.
	Timeout time.Duration
	// Killable promises that SIGKILL ends a helper in any of the steps, as it
	// does in path-based calls on NFS. Such helpers don't need a place under
	// the cap on stuck helpers. A promise that turns out wrong is survived: the
	// helper counts from then on, and checks more than 10 s later are Busy.
	Killable bool
	// OutlivesServer is for plans on FUSE file systems, whose waits SIGKILL makes worse,
	// see [Asleep]: the helper is not killed with this process or the fork server. When its
	// time is up it makes no further step, and ends when its call returns.
	OutlivesServer bool

	otherProcesses bool // it needs CAP_SYS_PTRACE
	kernelStacks   bool // it needs CAP_SYS_ADMIN

	cached *compiled
}

// grace is how long a helper has to disappear after SIGKILL before it counts as
// stuck. On a host with nothing else to do it takes well under a millisecond.
func (p *Plan) grace() time.Duration { return min(max(minGrace, p.Timeout/20), maxGrace) }

// A Step is one system call, or one of the compound steps that make many: [ReadAll],
// [ReadDirectory], [ReadLinks] and [StatMounts]. Make it with the function named after the
// call.
type Step struct {
	Name string // for reports: the call, not its number

	number        uintptr // unix.SYS_…, or that of a compound step
	arguments     []Argument
	optional      bool // as the methods of these names say
	silent        bool
	mergeWithNext bool
	ifRegular     int // 1 more than the statx that must have found a file; 0: always
	limit         int // of a compound step: bytes of output
	statxByStat   bool
}

// compound reports whether the step is one of those that make many system calls:
// [ReadAll], [ReadDirectory], [ReadLinks] and [StatMounts].
func (s *Step) compound() bool { return forkserver.IsCompound(s.number) }

// isSilent reports whether the step is answered only if it fails.
func (s *Step) isSilent() bool { return s.silent || s.mergeWithNext }

// An Argument of a system call: [CWD], or what [ResultOf] an earlier step is.
type Argument struct {
	kind  argumentKind
	value uint64
	data  []byte
	size  int
}

type argumentKind uint8

const (
	valueKind argumentKind = iota
	inputKind
	outputKind
	scratchKind
	inOutKind
	resultKind
	uint32Kind
)

// value is a plain number.
func value[T ~int | ~uint | ~uintptr | ~int32 | ~uint32 | ~int64 | ~uint64](n T) Argument {
	return Argument{kind: valueKind, value: uint64(n)}
}

// pathname is a pointer to the NUL-terminated path.
func pathname(path string) Argument { return input(append([]byte(path), 0)) }

// input is a pointer to a copy of data.
func input(data []byte) Argument { return Argument{kind: inputKind, data: data} }

// output is a pointer to size bytes, which StepResult.Output brings back if
// the call succeeds.
func output(size uintptr) Argument { return Argument{kind: outputKind, size: int(size)} }

// scratch is a pointer to size bytes whose content is of no interest.
func scratch(size int) Argument { return Argument{kind: scratchKind, size: size} }

// inOut is a pointer to a copy of data which the call changes: StepResult.Output
// brings it back if the call succeeds.
func inOut(data []byte) Argument { return Argument{kind: inOutKind, data: data} }

// ResultOf is what the step with this index in Plan.Steps returned: a file
// descriptor, usually.
func ResultOf(step int) Argument { return Argument{kind: resultKind, value: uint64(step)} }

// outputSize is how many bytes come back if the call succeeds.
func (s *Step) outputSize() (size int) {
	for i := range s.arguments {
		switch a := &s.arguments[i]; a.kind {
		case outputKind:
			size = a.size
		case inOutKind:
			size = len(a.data)
		}
	}
	return size
}

// returnsLength reports whether the call returns how much of its output it has
// written.
func (s *Step) returnsLength() bool {
	switch s.number {
	case unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_GETDENTS64, unix.SYS_READLINKAT:
		return true
	}
	return false
}

// repeatable reports whether the step may be made again after one that failed with EINTR:
// it does the same the second time. What creates, removes or closes does not.
func (s *Step) repeatable() bool {
	switch s.number {
	case unix.SYS_OPENAT:
		return s.arguments[2].value&unix.O_CREAT == 0
	case unix.SYS_STATX, unix.SYS_NEWFSTATAT, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_GETDENTS64, unix.SYS_READLINKAT,
		unix.SYS_FGETXATTR, unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_FSYNC, unix.SYS_FCNTL, unix.SYS_FLOCK:
		return true
	}
	return false
}

// Add appends a step and returns its index, for [ResultOf].
func (p *Plan) Add(step Step) int {
	p.Steps = append(p.Steps, step)
	return len(p.Steps) - 1
}

// OpenRegular appends the steps that open a regular file, and returns the index of the
// one that does. What else find finds, which opens the same name with O_PATH, is not
// opened, since to open a device or a FIFO can do something by itself: the step fails
// with EBADF. All are one for reports: what find meets, open would have met.
func (p *Plan) OpenRegular(find, open Step) int {
	find.mergeWithNext = true
	examine := Step{Name: find.Name, number: unix.SYS_STATX, mergeWithNext: true, optional: find.optional, arguments: []Argument{
		ResultOf(p.Add(find)), pathname(""), value(unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC), // a type never changes
		value(unix.STATX_TYPE), output(unsafe.Sizeof(unix.Statx_t{}))}}
	open.ifRegular = p.Add(examine) + 1
	return p.Add(open)
}

// EnterMountNS appends the steps that take the helper into the mount namespace
// at path, such as /proc/1/ns/mnt. It takes CAP_SYS_ADMIN and CAP_SYS_CHROOT
// (setns(2)), and CAP_SYS_PTRACE for the path.
func (p *Plan) EnterMountNS(path string) {
	p.otherProcesses = true
	namespace := p.Add(Step{Name: "open " + path, number: unix.SYS_OPENAT,
		arguments: []Argument{value(unix.AT_FDCWD), pathname(path), value(unix.O_RDONLY | unix.O_CLOEXEC), value(0)}})
	p.Add(Step{Name: "setns", number: unix.SYS_SETNS, arguments: []Argument{ResultOf(namespace), value(unix.CLONE_NEWNS)}})
	p.Add(Step{Name: "close", number: unix.SYS_CLOSE, arguments: []Argument{ResultOf(namespace)}, silent: true})
}

// SearchBelow gives the helper what it takes to search below the prefix, where paths of
// the plan begin: CAP_SYS_PTRACE for one that leads into another process, such as
// /proc/1/root (proc_pid_root(5)), and nothing more for others. The prefix has to be the
// administrator's: mount points are anybody's.
func (p *Plan) SearchBelow(prefix string) {
	p.otherProcesses = p.otherProcesses || strings.Contains(prefix, "/proc/")
}

// SeeOtherProcesses says that the plan looks at what procfs shows of other users'
// processes only to whoever may trace them, such as /proc/PID/fd and cwd: it takes
// CAP_SYS_PTRACE.
func (p *Plan) SeeOtherProcesses() { p.otherProcesses = true }

// SeeKernelStacks says that the plan reads /proc/PID/stack: it takes CAP_SYS_ADMIN, and
// CAP_SYS_PTRACE as [Plan.SeeOtherProcesses] does (proc_pid_stack, fs/proc/base.c).
func (p *Plan) SeeKernelStacks() { p.otherProcesses, p.kernelStacks = true, true }

// Become appends the steps that give the helper the ids, and take all
// capabilities from it. It takes CAP_SETUID and CAP_SETGID, and CAP_KILL for the
// helper to be killed later.
func (p *Plan) Become(uid, gid uint32, groups ...uint32) { p.become(value(uid), value(gid), groups) }

// BecomeOwner is [Plan.Become] for the owner and group which an earlier step has
// looked up: statx(2), whose Output is a whole unix.Statx_t.
func (p *Plan) BecomeOwner(statx int) {
	var st unix.Statx_t
	p.become(
		Argument{kind: uint32Kind, value: uint64(statx), size: int(unsafe.Offsetof(st.Uid))},
		Argument{kind: uint32Kind, value: uint64(statx), size: int(unsafe.Offsetof(st.Gid))}, nil)
}

// CanBecome reports whether this process has the capabilities that [Plan.Become]
// takes.
func CanBecome() bool {
	const needed = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL
	effective, _ := OwnCapabilities()
	return effective&needed == needed
}

// OwnCapabilities are those of this process, as masks; linux/capability.h. There are none where
// capget(2) fails.
func OwnCapabilities() (effective, permitted uint64) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return 0, 0
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
}

func (p *Plan) become(uid, gid Argument, groups []uint32) {
	list := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(groups))), len(groups)*4)
	capabilities := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	none := [2]unix.CapUserData{{Inheritable: uint32(forkserver.Mark)}} // CanBecome has asked for it
	p.Steps = append(p.Steps,
		Step{Name: "setgroups", number: unix.SYS_SETGROUPS, arguments: []Argument{value(len(groups)), input(list)}, silent: true},
		Step{Name: "setresgid", number: unix.SYS_SETRESGID, arguments: []Argument{gid, gid, gid}, silent: true},
		Step{Name: "setresuid", number: unix.SYS_SETRESUID, arguments: []Argument{uid, uid, uid}, silent: true},
		Step{Name: "capset", number: unix.SYS_CAPSET, silent: true, arguments: []Argument{
			input((*[unsafe.Sizeof(capabilities)]byte)(unsafe.Pointer(&capabilities))[:]), input((*[unsafe.Sizeof(none)]byte)(unsafe.Pointer(&none))[:])}},
	)
}

// compiled is a Plan as the fork server takes it, which is the same for all its checks.
type compiled struct {
	header forkserver.RequestHeader // but for what tells one check from another
	body   []byte                   // behind the header; nil: it is forgotten
	memory int                      // how many bytes the helper works on, both included
	steps  []Step
	told   int  // how many of the steps are answered where all goes well
	room   int  // how many bytes of output these have, but for those whose length they return
	from   Plan // what it was made of
	statx  statxSupport

	key, group, comm string // of the check that was made last, and of its helper
}

// commOf is [commOf] of a check, which is mostly the one before.
func (c *compiled) commOf(check *Check) string {
	if c.comm == "" || c.key != check.Key || c.group != check.Group {
		c.key, c.group, c.comm = check.Key, check.Group, commOf(check.Key, check.Group)
	}
	return c.comm
}

// compile returns what was made of the plan when it was last submitted, as long as that is
// the same.
func (p *Plan) compile(statx statxSupport) (*compiled, error) {
	if c := p.cached; c != nil && c.from.asks(p) && (c.statx == statxLacking) == (statx == statxLacking) {
		return c, nil
	}
	c, err := p.compileAnew(statx)
	if err == nil {
		p.cached = c
	}
	return c, err
}

// asks reports whether two plans have the very same steps, and need the same.
func (p *Plan) asks(other *Plan) bool {
	return len(p.Steps) == len(other.Steps) && unsafe.SliceData(p.Steps) == unsafe.SliceData(other.Steps) &&
		p.otherProcesses == other.otherProcesses && p.kernelStacks == other.kernelStacks
}

// compileAnew turns the plan into a request. Errors are the caller's: too many
// steps or arguments, or more data than a request holds.
func (p *Plan) compileAnew(statx statxSupport) (*compiled, error) {
	steps := p.Steps
	if statx == statxLacking {
		steps = withoutStatx(steps)
	}
	if len(steps) > forkserver.MaxSteps {
		return nil, fmt.Errorf("plan of %d steps: at most %d are possible", len(steps), forkserver.MaxSteps)
	}
	if err := refuse(steps); err != nil {
		return nil, err
	}

	header := forkserver.RequestHeader{Kind: forkserver.Fork, Steps: uint32(len(steps)), Capabilities: p.capabilities()}
	l := newLayout(steps)
	for i := range steps {
		if steps[i].compound() {
			header.Messages = 1
		}
		if err := l.place(i); err != nil {
			return nil, fmt.Errorf("step %s: %w", steps[i].Name, err)
		}
	}
	if l.end > forkserver.MaxRequest {
		return nil, fmt.Errorf("plan of %d bytes: at most %d are possible", l.end, forkserver.MaxRequest)
	}
	c := &compiled{header: header, body: l.body(), memory: l.end, steps: steps, from: *p, statx: statx}
	for i := range steps {
		if !steps[i].isSilent() {
			c.told++
			if !steps[i].returnsLength() {
				c.room += steps[i].outputSize()
			}
		}
	}
	return c, nil
}

// layout is where everything of a plan lies in a request, and in the helper's memory: the header,
// the steps, the inputs, and then room for outputs, which is not sent.
type layout struct {
	steps []Step
	wire  []forkserver.Step
	sent  []byte // behind the steps: inputs
	base  int    // where they begin
	end   int    // of the memory that is used
}

func newLayout(steps []Step) *layout {
	l := &layout{steps: steps, wire: make([]forkserver.Step, len(steps))}
	l.base = int(unsafe.Sizeof(forkserver.RequestHeader{})) + len(steps)*int(unsafe.Sizeof(forkserver.Step{}))
	l.end = l.base
	for i := range steps {
		for _, a := range steps[i].arguments {
			l.end += aligned(len(a.data))
		}
	}
	l.sent = make([]byte, 0, l.end-l.base)
	return l
}

// place lays out a step. Those before it were.
func (l *layout) place(i int) error {
	step, w := &l.steps[i], &l.wire[i]
	w.Number, w.Flags = uint32(step.number), step.flags()
	w.IfRegular, w.ModeOffset = uint16(step.ifRegular), uint16(unsafe.Offsetof(unix.Statx_t{}.Mode))
	if step.statxByStat {
		w.ModeOffset = uint16(unsafe.Offsetof(unix.Stat_t{}.Mode))
	}
	if len(step.arguments) > len(w.Arguments) {
		return fmt.Errorf("%d arguments, a system call takes %d", len(step.arguments), len(w.Arguments))
	}
	for k, a := range step.arguments {
		w.Arguments[k] = a.value
		switch a.kind {
		case inputKind, inOutKind:
			at := l.base + len(l.sent)
			w.Kinds[k], w.Arguments[k] = forkserver.Address, uint64(at)
			if a.kind == inOutKind {
				w.OutputOffset, w.OutputLength = uint32(at), uint32(len(a.data))
			}
			l.sent = append(l.sent, a.data...)
			l.sent = append(l.sent, make([]byte, aligned(len(l.sent))-len(l.sent))...)
		case outputKind, scratchKind:
			w.Kinds[k], w.Arguments[k] = forkserver.Address, uint64(l.end)
			if a.kind == outputKind {
				w.OutputOffset, w.OutputLength = uint32(l.end), uint32(a.size)
			}
			l.end += aligned(a.size)
		case resultKind, uint32Kind:
			if a.value >= uint64(i) {
				return fmt.Errorf("refers to the result of step %d, which comes later", a.value)
			}
			w.Kinds[k] = forkserver.ResultOf
			if a.kind == uint32Kind {
				at, err := l.outputAt(int(a.value), a.size)
				if err != nil {
					return err
				}
				w.Kinds[k], w.Arguments[k] = forkserver.Uint32At, at
			}
		}
	}
	if w.OutputLength > forkserver.MaxOutput {
		return fmt.Errorf("output of %d bytes, at most %d are possible", w.OutputLength, forkserver.MaxOutput)
	}
	return nil
}

// outputAt is where four bytes of an earlier step's output lie.
func (l *layout) outputAt(step, offset int) (uint64, error) {
	if l.steps[step].statxByStat {
		offset = int(statOffset(uintptr(offset)))
	}
	w := &l.wire[step]
	if offset+4 > int(w.OutputLength) {
		return 0, fmt.Errorf("refers to byte %d of the output of step %d, which has %d", offset, step, w.OutputLength)
	}
	return uint64(w.OutputOffset) + uint64(offset), nil
}

// body is what is sent behind the header.
func (l *layout) body() []byte {
	size := l.base - int(unsafe.Sizeof(forkserver.RequestHeader{})) + len(l.sent)
	body := make([]byte, 0, size)
	for i := range l.wire {
		body = append(body, forkserver.Bytes(&l.wire[i])...)
	}
	return append(body, l.sent...)
}

// flags are those of the step in a request.
func (s *Step) flags() (flags forkserver.StepFlags) {
	if s.optional {
		flags |= forkserver.ContinueOnError
	}
	if s.silent || s.mergeWithNext {
		flags |= forkserver.Silent
	}
	if s.mergeWithNext {
		flags |= forkserver.MergeWithNext
	}
	switch s.number {
	case unix.SYS_SETGROUPS: // the first of those of Plan.become
		flags |= forkserver.BeginsUserChange
	case unix.SYS_SETRESUID:
		flags |= forkserver.EndsUserChange
	}
	if s.repeatable() {
		flags |= forkserver.Repeatable
	}
	return flags
}

// request is the header of a check's request.
func (w *pending) request() forkserver.RequestHeader {
	header := w.compiled.header
	header.ID = w.id
	copy(header.Name[:len(header.Name)-1], w.comm)
	var now unix.Timespec
	if plan := w.check.Plan; plan.OutlivesServer && unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		header.Deadline = now.Nano() + max(0, int64(time.Until(w.deadline)))
	}
	return header
}

// message is the check's request as one message.
func (w *pending) message() []byte {
	header := w.request()
	return append(append(make([]byte, 0, int(unsafe.Sizeof(header))+len(w.compiled.body)), forkserver.Bytes(&header)...), w.compiled.body...)
}

// capabilities are those the helper needs, of those the plugin has.
func (p *Plan) capabilities() uint64 {
	needed := forkserver.Search
	for i := range p.Steps {
		switch p.Steps[i].number {
		case unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID:
			needed |= forkserver.ChangeUser
		case unix.SYS_SETNS:
			needed |= forkserver.EnterNamespace
		}
	}
	if p.otherProcesses {
		needed |= forkserver.OtherProcesses
	}
	if p.kernelStacks {
		needed |= forkserver.KernelStacks
	}
	return needed
}

// same reports whether two plans make the same calls.
func (c *compiled) same(other *compiled) bool {
	return c == other || bytes.Equal(c.body, other.body) &&
		slices.EqualFunc(c.steps, other.steps, func(a, b Step) bool { return a.Name == b.Name })
}

// asksTheSame reports whether two checks are of the same key, and make the same calls.
func (w *pending) asksTheSame(other *pending) bool {
	return w.comm == other.comm && w.compiled.same(other.compiled)
}

// has reports whether a step of that name is part of the plan.
func (c *compiled) has(name string) bool {
	return slices.ContainsFunc(c.steps, func(s Step) bool { return s.Name == name })
}

func aligned(size int) int { return (size + 7) &^ 7 }

// Outcome says how a helper ended.
type Outcome uint8

const (
	// Done: the helper ended by itself. Its steps tell what it found.
	Done Outcome = iota
	// Expired: the helper was killed at its deadline, and is gone. Or that of
	// another check of the key was in the way until it was too late to fork one, and
	// hung in a step of this plan for a quarter of the timeout at least.
	Expired
	// Stuck: the helper is still there after its deadline. It was killed and survives
	// that, or it was left asleep; see Report.Wait.
	Stuck
	// Busy: an earlier helper for the same key is still stuck, in this run of
	// the plugin or from an earlier one. No new helper was forked.
	Busy
	// Capped: too many helpers are stuck, or may be about to be, on this host, or
	// that of another check of the key was in the way. No helper was forked.
	Capped
	// Died: the helper was killed by someone else (the OOM killer, say).
	Died
	// Unavailable: there is no fork server at the moment, or it can't fork.
	Unavailable
)

var outcomeNames = [...]string{"done", "expired", "stuck", "busy", "capped", "died", "unavailable"}

func (o Outcome) String() string { return outcomeNames[o] }

// A Report says how each step ended and how long it took; Outcome says whether
// the helper finished, was killed, or is stuck.
type Report struct {
	// Steps holds the results of the plan's steps that ended, in order; of
	// those that are [Step.Silent] or [Step.MergeWithNext] only the failed ones.
	Steps   []StepResult
	Outcome Outcome
	// Elapsed is the time from the request to fork the helper to its end, or
	// to this report. Zero if none was forked.
	Elapsed time.Duration
	PID     int // of the helper, or for Busy of the earlier one
	// Since is when the helper started, or for Busy the earlier one.
	Since time.Time
	// HangsIn names the step which did not end, where that is known. For Capped it
	// is one of another plan's, whose helper is in the way.
	HangsIn string
	// HangsAt is the index in Plan.Steps of the step which did not end, or the number
	// of steps where all did and the helper's exit hangs. It is -1 where no step is
	// known to hang, or it is one of another plan.
	HangsAt int
	// Partial is what the step at HangsAt had found before it hung or, in a report of
	// progress, has found so far. Only compound steps have any.
	Partial []byte
	// Wait is how the helper waits, where it is Stuck or Busy.
	Wait Wait
	// Function is the kernel function in which a helper waited when it was last looked at,
	// before it was killed; empty if unknown, and for most helpers that ended.
	Function string
	// Signal is what killed a helper that Died.
	Signal syscall.Signal
	// Err says why there is no result: the plan could not be compiled, no helper
	// be forked, or it was killed by someone else.
	Err error

	outputs []byte // in which those of Steps are, unless others have them, too
}

// A StepResult is the end of one system call.
type StepResult struct {
	Name    string
	Index   int           // in Plan.Steps
	Result  int64         // the return value, where Errno is 0
	Errno   syscall.Errno // 0: success
	Elapsed time.Duration // in the system call alone
	// Output is what the call has written to memory, whole; of read(2) and
	// its like, what was read. Of a compound step it is all that was found, also
	// before it failed.
	Output []byte
}

// Step returns the result of the step with this index in Plan.Steps, or nil.
func (r *Report) Step(index int) *StepResult {
	i, found := slices.BinarySearchFunc(r.Steps, index, func(s StepResult, index int) int { return cmp.Compare(s.Index, index) })
	if !found {
		return nil
	}
	return &r.Steps[i]
}

// Failed returns the first step that failed, or nil.
func (r *Report) Failed() *StepResult {
	for i := range r.Steps {
		if r.Steps[i].Errno != 0 {
			return &r.Steps[i]
		}
	}
	return nil
}

func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v after %v", r.Outcome, r.Elapsed.Round(time.Microsecond))
	for _, s := range r.Steps {
		fmt.Fprintf(&b, ", %s %v", s.Name, s.Elapsed.Round(time.Microsecond))
		if s.Errno != 0 {
			fmt.Fprintf(&b, " (%s)", unix.ErrnoName(s.Errno))
		}
	}
	if r.HangsIn != "" {
		fmt.Fprintf(&b, ", hangs in %s", r.HangsIn)
	}
	if r.Err != nil {
		fmt.Fprintf(&b, ": %v", r.Err)
	}
	return b.String()
}
