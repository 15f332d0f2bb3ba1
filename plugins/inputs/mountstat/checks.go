package mountstat

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// The steps before the checks: they reach the root, which takes no answer from
// the file system itself (FUSE and NFS: measured), and find out whose it is.
const (
	stepOpen  = "open"
	stepStatx = "statx"
	// stepLeftBehind removes what a killed helper has left. That there is nothing
	// is no failure, and of all else the next step tells.
	stepLeftBehind = "unlinkat"
)

const (
	directoryBlock = 4096 // bytes of entries to read
	canaryBlock    = 4096
)

// planOf returns the superblock's plan, which is made anew only when it changes.
func (m *Mountstat) planOf(sb *superblock) *prober.Plan {
	if sb.plan == nil {
		sb.plan = m.plan(sb)
	}
	return sb.plan
}

// plan is what a helper does to check the superblock. The root is opened as the
// plugin's own user, since its owner may not be allowed to search the
// directories above, and all else goes through that descriptor.
func (m *Mountstat) plan(sb *superblock) *prober.Plan {
	mount := sb.checked
	p := &prober.Plan{
		Timeout: sb.policy.timeout,
		// rpc_wait_bit_killable, net/sunrpc/sched.c. Not with files open or
		// dirty: giving them back takes the server.
		Killable: mount.NFS() && !sb.makes(checkRead) && !sb.makes(checkWrite),
	}
	path := m.prefix + mount.Mountpoint
	if namespace := m.namespaceOf(sb); namespace != "" {
		p.EnterMountNS(namespace)
		path = mount.Mountpoint
	} else {
		p.Below(m.prefix)
	}
	root := p.Add(prober.Step{Name: stepOpen, Number: unix.SYS_OPENAT, Quiet: true, Arguments: []prober.Argument{
		prober.Value(unix.AT_FDCWD), prober.Path(path), prober.Value(unix.O_PATH | unix.O_CLOEXEC)}})
	m.identify(p, sb, root)
	for _, c := range sb.policy.checks {
		m.addCheck(p, c, root, mount)
	}
	return p
}

func (sb *superblock) makes(wanted check) bool {
	return slices.Contains(sb.policy.checks, wanted)
}

// addCheck appends a check's steps, named "CHECK CALL". What could fail for
// reasons of the check's own is optional, and judged later.
func (m *Mountstat) addCheck(p *prober.Plan, c check, root int, mount *mounts.Mount) {
	step := func(call string, number uintptr, optional bool, arguments ...prober.Argument) prober.Step {
		return prober.Step{Name: string(c) + " " + call, Number: number, Arguments: arguments, Optional: optional}
	}
	add := func(call string, number uintptr, optional bool, arguments ...prober.Argument) int {
		return p.Add(step(call, number, optional, arguments...))
	}
	closeOf := func(fd int) {
		p.Add(prober.Step{Name: string(c) + " close", Number: unix.SYS_CLOSE, Arguments: []prober.Argument{prober.ResultOf(fd)}, Optional: true, Quiet: c != checkWrite})
	}
	open := func(name string, flags int) prober.Step {
		return step("openat", unix.SYS_OPENAT, true, prober.ResultOf(root), prober.Path(name),
			prober.Value(flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW), prober.Value(0o600))
	}
	switch c {
	case checkStatfs:
		add("fstatfs", unix.SYS_FSTATFS, false, prober.ResultOf(root), prober.Output(unsafe.Sizeof(unix.Statfs_t{})))
	case checkStat:
		add("statx", unix.SYS_STATX, false, prober.ResultOf(root), prober.Path(""), prober.Value(unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC),
			prober.Value(unix.STATX_BASIC_STATS), prober.Scratch(int(unsafe.Sizeof(unix.Statx_t{}))))
	case checkReaddir:
		// The root may be a file: a bind mount of one.
		opened := open(".", unix.O_RDONLY|unix.O_DIRECTORY)
		opened.Joined = true
		directory := p.Add(opened)
		add("getdents64", unix.SYS_GETDENTS64, true, prober.ResultOf(directory), prober.Scratch(directoryBlock), prober.Value(directoryBlock))
		closeOf(directory)
	case checkRead:
		file := p.OpenRegular(open(m.canary, unix.O_PATH), open(m.canary, unix.O_RDONLY))
		p.Add(prober.Step{Name: "read fadvise64", Number: unix.SYS_FADVISE64, Optional: true, Arguments: []prober.Argument{
			prober.ResultOf(file), prober.Value(0), prober.Value(0), prober.Value(unix.FADV_DONTNEED)}})
		add("pread64", unix.SYS_PREAD64, true, prober.ResultOf(file), prober.Scratch(canaryBlock), prober.Value(canaryBlock), prober.Value(0))
		closeOf(file)
	case checkWrite:
		// A new file each time, since rewriting one needs no space, and what is
		// there under its name may be a link of someone else's to what is not his.
		// After an error it must be removed nevertheless.
		name := m.writtenFile(mount)
		content := []byte("a write check by vfsprobe on " + m.host + "\n")
		p.Add(prober.Step{Name: stepLeftBehind, Number: unix.SYS_UNLINKAT, Joined: true, Optional: true, Arguments: []prober.Argument{
			prober.ResultOf(root), prober.Path(name), prober.Value(0)}})
		created := open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
		created.Optional = false
		file := p.Add(created)
		add("pwrite64", unix.SYS_PWRITE64, true, prober.ResultOf(file), prober.Input(content), prober.Value(len(content)), prober.Value(0))
		add("fsync", unix.SYS_FSYNC, true, prober.ResultOf(file))
		closeOf(file)
		add("unlinkat", unix.SYS_UNLINKAT, true, prober.ResultOf(root), prober.Path(name), prober.Value(0))
	}
}

// writtenFile is the name of the file that the check "write" makes. Other hosts
// share the directory, and so may another superblock: an export mounted twice.
func (m *Mountstat) writtenFile(mount *mounts.Mount) string {
	return fmt.Sprintf("%s.%s.%d-%d", m.canary, m.host, mount.Major, mount.Minor)
}

// identify appends the steps that make the helper the user who is to check, and
// fetch the root's attributes.
func (m *Mountstat) identify(p *prober.Plan, sb *superblock, root int) {
	as, becomesOwner := sb.policy.runAs, false
	switch {
	case !m.becomes:
	case as.user:
		p.Become(as.uid, as.gid, as.groups...)
	case !as.owner:
	case sb.checked.Kerberos():
		// The server knows a user by a ticket, and only root has a machine's.
	case isFUSE(sb.checked):
		// The root's attributes may not have been fetched yet, and without
		// allow_other nobody but this user may look.
		if uid, gid, found := fuseUser(sb.checked); found && !m.isUser(uid) {
			p.Become(uid, gid)
		}
	default:
		becomesOwner = !sb.rootOwned || !m.superuser
	}
	statx := p.Add(prober.Step{Name: stepStatx, Number: unix.SYS_STATX, Arguments: []prober.Argument{
		prober.ResultOf(root), prober.Path(""), prober.Value(unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC),
		prober.Value(unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_UID | unix.STATX_GID | unix.STATX_MNT_ID), prober.Output(unsafe.Sizeof(unix.Statx_t{}))}})
	if becomesOwner {
		p.BecomeOwner(statx)
	}
}

func (m *Mountstat) isUser(uid uint32) bool { return int64(uid) == int64(os.Geteuid()) }

// fuseUser is who mounted a FUSE file system (fuse_show_options, fs/fuse/inode.c).
func fuseUser(mount *mounts.Mount) (uid, gid uint32, found bool) {
	user, _ := mount.Option("user_id")
	group, _ := mount.Option("group_id")
	u, err := strconv.ParseUint(user, 10, 32)
	g, err2 := strconv.ParseUint(group, 10, 32)
	if err != nil || err2 != nil {
		return 0, 0, false
	}
	return uint32(u), uint32(g), true
}

// privateFUSE reports whether nobody but this user may look.
func privateFUSE(mount *mounts.Mount) (uid, gid uint32, private bool) {
	if !isFUSE(mount) || mount.HasOption("allow_other") {
		return 0, 0, false
	}
	return fuseUser(mount)
}

// finding is what a report says of a file system.
type finding struct {
	code    result.Code
	errno   string // its name, if there was one
	check   check  // that failed or hangs
	call    string // of that check
	cause   cause
	reason  string // what else there is to say
	seconds map[check]time.Duration
	statfs  *unix.Statfs_t // if it was answered
}

// hangs reports whether the file system gave no answer.
func (f *finding) hangs() bool { return f.code == result.Timeout || f.code == result.Stuck }

// hangsIn is the system call that gave no answer.
func (f *finding) hangsIn() string {
	if f.hangs() {
		return f.call
	}
	return ""
}

// failWith takes an errno of the file system.
func (f *finding) failWith(errno syscall.Errno) {
	f.errno = result.ErrnoName(errno)
	switch errno {
	case unix.EACCES, unix.EPERM:
		f.code = result.Denied
	case unix.ESTALE:
		f.code = result.Stale
	default:
		f.code = result.Error
	}
}

// judge turns a report into a finding, without its cause.
func (m *Mountstat) judge(sb *superblock) finding {
	r := sb.report
	f := finding{seconds: make(map[check]time.Duration, len(sb.policy.checks))}
	attributes := m.measure(sb, &f)
	switch r.Outcome {
	case prober.Expired, prober.Stuck, prober.Busy:
		f.code = result.Stuck
		if r.Outcome == prober.Expired {
			f.code = result.Timeout
		}
		var prepares bool
		if f.check, f.call, prepares = sb.split(r.HangsIn); prepares && f.call == stepStatx {
			f.call = stepOpen // the quiet step before, as statx does not hang here
		}
		if r.Outcome == prober.Busy && r.HangsIn == "" { // it is of an earlier run
			f.check, f.call = sb.found.check, sb.found.call // of the same helper
		}
		return f
	case prober.Capped, prober.Died, prober.Unavailable:
		return finding{code: result.Unchecked, reason: r.Err.Error()}
	}
	if r.Err != nil || len(r.Steps) == 0 {
		return finding{code: result.Unchecked, reason: errors.Join(r.Err, errors.New("the helper gave no answer")).Error()}
	}
	if attributes != nil && !sb.checked.Shows(attributes) {
		return finding{code: result.Unchecked, reason: fmt.Sprintf("the path leads to another file system, %d:%d", attributes.Dev_major, attributes.Dev_minor)}
	}
	if rootOwned := attributes != nil && attributes.Uid == 0; rootOwned != sb.rootOwned {
		sb.rootOwned, sb.plan = rootOwned, nil
	}
	for i := range r.Steps {
		if step := &r.Steps[i]; step.Name != stepLeftBehind && step.Errno != 0 || step.Name == "read pread64" && step.Result == 0 {
			m.judgeStep(sb, &f, step, attributes)
		}
		if f.code != result.OK {
			return f
		}
	}
	for c, took := range f.seconds {
		if took > sb.policy.slow {
			f.code, f.check = result.Slow, c
		}
	}
	return f
}

// measure sums up the times of the checks, takes what statfs brought, and
// returns the root's attributes if they were found.
func (m *Mountstat) measure(sb *superblock, f *finding) (attributes *unix.Statx_t) {
	for i := range sb.report.Steps {
		step := &sb.report.Steps[i]
		c, _, prepares := sb.split(step.Name)
		switch {
		case step.Name == stepStatx && len(step.Output) == int(unsafe.Sizeof(*attributes)):
			attributes = (*unix.Statx_t)(unsafe.Pointer(unsafe.SliceData(step.Output)))
		case prepares:
		default:
			f.seconds[c] += step.Elapsed
			if step.Name == "statfs fstatfs" && len(step.Output) == int(unsafe.Sizeof(*f.statfs)) {
				f.statfs = (*unix.Statfs_t)(unsafe.Pointer(unsafe.SliceData(step.Output)))
			}
		}
	}
	return attributes
}

// split takes a step's name apart. Steps that prepare the checks are laid to
// the first of them.
func (sb *superblock) split(step string) (c check, call string, prepares bool) {
	name, call, _ := strings.Cut(step, " ")
	if !slices.Contains(allChecks(), check(name)) || call == "" {
		return sb.policy.checks[0], step, true
	}
	return check(name), call, false
}

// judgeStep judges a step that failed.
func (m *Mountstat) judgeStep(sb *superblock, f *finding, step *prober.StepResult, attributes *unix.Statx_t) {
	c, call, prepares := sb.split(step.Name)
	refused := step.Errno == unix.EACCES || step.Errno == unix.EPERM
	f.check, f.call = c, call
	switch {
	case step.Name == stepOpen && step.Errno == unix.ENOENT:
		f.code, f.reason = result.Unchecked, "there is no such path: it was unmounted, or does not show here"
	case step.Name == stepOpen && refused:
		f.code, f.reason = result.Unchecked, "this user may not search a directory above"
	case prepares && step.Name != stepOpen && step.Name != stepStatx:
		f.code, f.reason = result.Unchecked, fmt.Sprintf("preparing the helper: %s: %v", step.Name, step.Errno)
	case step.Name == "readdir openat" && step.Errno == unix.ENOTDIR && attributes != nil && attributes.Mode&unix.S_IFMT != unix.S_IFDIR:
		m.leaveOut(f, c, "the mount is of a file")
	case step.Name == "read openat" && step.Errno == unix.ENOENT:
		m.leaveOut(f, c, "there is no canary "+m.canary)
	case step.Name == "read openat" && step.Errno == unix.EBADF && !f.leftOut(c):
		m.leaveOut(f, c, "the canary "+m.canary+" is no file")
	case step.Name == "read pread64" && step.Errno == 0:
		m.leaveOut(f, c, "the canary "+m.canary+" is empty")
	case step.Errno == unix.EBADF && f.leftOut(c): // of what could not be opened
	case refused && c != checkStatfs && attributes != nil && !m.entitled(sb, attributes):
		m.leaveOut(f, c, fmt.Sprintf("%s: %s", result.ErrnoName(step.Errno), describe(attributes)))
	default:
		f.failWith(step.Errno)
		if refused && attributes != nil {
			f.reason = describe(attributes)
		}
	}
}

// leaveOut notes that a check could not be made, which is no fault.
func (m *Mountstat) leaveOut(f *finding, c check, why string) {
	f.check, f.call = "", ""
	delete(f.seconds, c)
	f.reason = strings.TrimPrefix(f.reason+"; "+string(c)+" was left out: "+why, "; ")
}

func (f *finding) leftOut(c check) bool {
	_, made := f.seconds[c]
	return !made
}

// entitled reports whether the helper should have been let in: it was meant to
// be itself, or it is the owner and not subject to root_squash, or everybody is.
func (m *Mountstat) entitled(sb *superblock, st *unix.Statx_t) bool {
	const all = 0o005
	as := sb.policy.runAs
	asked := m.becomes || !as.owner && !as.user
	squashed := as.owner && networked(sb.checked) && (st.Uid == 0 || sb.checked.Kerberos())
	return asked && !squashed || st.Mode&all == all
}

// describe says who may look at a root.
func describe(st *unix.Statx_t) string {
	return fmt.Sprintf("its root has mode %04o, uid %d, gid %d", st.Mode&0o7777, st.Uid, st.Gid)
}
