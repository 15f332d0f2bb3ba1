package mountstat

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// The steps before the checks. They reach the root, for which the file system itself need not
// answer (FUSE and NFS: measured), and find out to whom it belongs.
const (
	stepOpen  = "open"
	stepStatx = "statx"
	// stepLeftBehind removes what a killed helper has left.
	stepLeftBehind = "unlinkat before"
)

const (
	directoryBlock = 4096 // bytes of entries to read
	canaryBlock    = 4096
)

// plan is what a helper does to check a target, and what each step is for.
type plan struct {
	prober.Plan
	steps []step // by index
}

// step is the purpose of a step of a plan: it belongs to a check, or precedes all checks.
type step struct {
	check check // empty: it prepares them
	call  string
}

// The steps that are judged in a special way.
var (
	openRoot      = step{"", stepOpen}
	examineRoot   = step{"", stepStatx}
	askStatfs     = step{checkStatfs, "fstatfs"}
	openDirectory = step{checkReaddir, "openat"}
	openNode      = step{checkDevice, "openat"}
	readNode      = step{checkDevice, "pread64"}
	askAlive      = step{checkReaddir, "fgetxattr"}
	makeFile      = step{checkWrite, "openat"}
	removeFile    = step{checkWrite, "unlinkat"}
	openCanary    = step{checkRead, "openat"}
	readCanary    = step{checkRead, "pread64"}
)

// mark records the purpose of the steps that were added since it was last called. Those of
// a check are named "CHECK CALL", so that other plans can tell what hangs.
func (p *plan) mark(c check) {
	for i := len(p.steps); i < len(p.Steps); i++ {
		s := &p.Steps[i]
		p.steps = append(p.steps, step{c, s.Name})
		if c != "" {
			s.Name = string(c) + " " + s.Name
		}
	}
}

// hangs is the step that did not end, according to a report. A step of another table's plan is
// known only by its name.
func (p *plan) hangs(r *prober.Report) step {
	if r.HangsAt >= 0 && r.HangsAt < len(p.steps) {
		return p.steps[r.HangsAt]
	}
	for _, c := range allChecks() {
		if call, found := strings.CutPrefix(r.HangsIn, string(c)+" "); found {
			return step{c, call}
		}
	}
	return step{"", r.HangsIn}
}

// newPlan is what a helper does to check the target. The root is opened as the
// plugin's own user, since its owner may not be allowed to search the
// directories above. Everything else goes through that descriptor. outlivesServer is the plan's.
func (s *settings) newPlan(t *target, outlivesServer bool) *plan {
	mount := t.Probed
	p := &plan{Plan: prober.Plan{
		Timeout: t.policy.timeout,
		// rpc_wait_bit_killable, net/sunrpc/sched.c. Not with files open or
		// dirty: giving them back takes the server.
		Killable:       mount.NFS() && !t.makes(checkRead) && !t.makes(checkWrite),
		OutlivesServer: outlivesServer,
	}}
	path := s.prefix + mount.Mountpoint
	if namespace := s.namespaceOf(t); namespace != "" {
		p.EnterMountNS(namespace)
		path = mount.Mountpoint
	} else {
		p.SearchBelow(s.prefix)
	}
	var device prober.Argument
	if t.makes(checkDevice) {
		device = openDevice(p, t, strings.TrimSuffix(path, mount.Mountpoint))
	}
	open := prober.OpenPath(prober.CWD(), path, unix.O_CLOEXEC).Named(stepOpen)
	if !asksForAttributes(mount) {
		open = open.Silent()
	}
	root := prober.ResultOf(p.Add(open))
	s.identify(p, t, root)
	p.mark("")
	for _, c := range t.policy.checks {
		if c == checkDevice {
			readDevice(p, t, device)
		} else {
			s.addCheck(p, c, root, t)
		}
		p.mark(c)
	}
	p.Steps = slices.Clone(p.Steps) // there are as many plans as mounts
	return p
}

func (t *target) makes(wanted check) bool { return slices.Contains(t.policy.checks, wanted) }

// addCheck appends a check's steps. A step that could fail for reasons of the check's own is
// optional, and judged later.
func (s *settings) addCheck(p *plan, c check, root prober.Argument, t *target) {
	open := func(name string, flags int) prober.Step {
		return prober.Open(root, name, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o600)
	}
	switch c {
	case checkStatfs:
		p.Add(prober.Fstatfs(root))
	case checkStat:
		p.Add(t.askAttributes(root))
	case checkReaddir:
		// The root may be a file: a bind mount of one.
		flags := unix.O_RDONLY | unix.O_DIRECTORY
		if s.leavesAtime(t) {
			flags |= unix.O_NOATIME
		}
		directory := prober.ResultOf(p.Add(open(".", flags).Optional().MergeWithNext()))
		p.Add(prober.Getdents(directory, directoryBlock).WithoutOutput().Optional())
		if strings.HasPrefix(t.Probed.FSType, "ext") {
			// There is no such attribute, and ext4 knows that from memory. But once the kernel has shut
			// it down, it answers EIO, while all else is still in caches (ext4_xattr_get, fs/ext4/xattr.c).
			p.Add(prober.Getxattr(directory, "user.vfsprobe").Optional())
		}
		if t.Probed.Ceph() {
			// An idle root is listed from memory until the MDS has been gone for a minute
			// (__dcache_readdir, fs/ceph/dir.c).
			p.Add(t.askAttributes(root).Optional())
		}
		p.Add(prober.Close(directory).Optional().Silent())
	case checkRead:
		file := prober.ResultOf(p.OpenRegular(open(s.canary, unix.O_PATH).Optional(), open(s.canary, unix.O_RDONLY|t.Probed.WithoutDelegation()).Optional()))
		p.Add(prober.Fadvise(file, 0, 0, unix.FADV_DONTNEED).Optional())
		p.Add(prober.Pread(file, canaryBlock, 0).WithoutOutput().Optional())
		p.Add(prober.Close(file).Optional().Silent())
	case checkWrite:
		// The check makes a new file each time, since rewriting one needs no space, and since what
		// has its name may be somebody's link to a file of another user. The file must be removed
		// even after an error. It is no failure if a killed helper has left nothing; all other
		// failures show in the next step. Nor is it one if another vfsprobe makes or removes the file at
		// the same moment, on this host, or on another one of its name: NFS calls it stale then.
		name := s.writtenFile(t)
		content := []byte("a write check by vfsprobe on " + s.hostname + "\n")
		leftBehind := prober.Unlink(root, name).Named(stepLeftBehind).Optional().MergeWithNext()
		p.Add(leftBehind)
		file := prober.ResultOf(p.Add(open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)))
		p.Add(prober.Pwrite(file, content, 0).Optional())
		p.Add(prober.Fsync(file).Optional())
		p.Add(prober.Close(file).Optional())
		p.Add(prober.Unlink(root, name).Optional())
	}
}

// askAttributes is the step that has the file system ask its server for the root's attributes.
func (t *target) askAttributes(root prober.Argument) prober.Step {
	ask := prober.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS)
	if t.Probed.Ceph() {
		return ask // see wasRemoved
	}
	return ask.WithoutOutput()
}

// wasRemoved reports whether the file system has said in a step that its root was removed: it has
// no name any more. CephFS answers all else as of an empty directory, in which nothing can be made.
func (t *target) wasRemoved(r *prober.StepResult) bool {
	purpose := t.reportOf.steps[r.Index]
	if !t.Probed.Ceph() || purpose.check == "" || purpose.call != stepStatx {
		return false
	}
	attributes := r.Statx()
	return attributes != nil && attributes.Nlink == 0
}

// leavesAtime reports whether the check "readdir" leaves the root's access time as it is,
// which only the owner may ask for, open(2). Otherwise it would write to a disk that sleeps. What is
// known by its path only, while there is no mount table, may be on a disk.
func (s *settings) leavesAtime(t *target) bool {
	return s.becomes && t.policy.runAs.owner && (t.Probed.BlockDevice() || t.Probed.FSType == "") && !t.writesAtime
}

// writtenFile is the name of the file that the check "write" makes. It is the same after a
// reboot, so that what a killed helper has left is removed then, too. Other hosts share the
// directory, and so may other mounts and containers of this host.
func (s *settings) writtenFile(t *target) string {
	where := fnv.New32a()
	where.Write([]byte(t.Probed.Mountpoint))
	if t.namespace != nil {
		where.Write([]byte("\x00" + t.namespace.container))
	}
	return fmt.Sprintf("%s.%s.%08x", s.canary, s.hostname, where.Sum32())
}

// identify appends the steps that make the helper the user that checks, and
// fetch the root's attributes.
func (s *settings) identify(p *plan, t *target, root prober.Argument) {
	as, becomesOwner := t.policy.runAs, false
	switch {
	case !s.becomes:
	case as.user:
		p.Become(as.UID, as.GID, as.Groups...)
	case !as.owner:
	case t.Probed.Kerberos():
		// The server knows a user by a ticket, and only root has that of the machine.
	case t.Probed.FUSE():
		// The root's attributes may not have been fetched yet, and without
		// allow_other only this user may look.
		if uid, gid, found := fuseUser(t.Probed); found && !isUser(uid) {
			p.Become(uid, gid)
		}
	default:
		becomesOwner = !t.rootOwned || !s.superuser
	}
	statx := p.Add(prober.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID|unix.STATX_GID|unix.STATX_MNT_ID))
	if becomesOwner {
		p.BecomeOwner(statx)
	}
}

func isUser(uid uint32) bool { return int64(uid) == int64(os.Geteuid()) }

// fuseUser is the user who mounted a FUSE file system (fuse_show_options, fs/fuse/inode.c).
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

// privateFUSE reports whether only this user may look.
func privateFUSE(mount *mounts.Mount) (uid, gid uint32, private bool) {
	if !mount.FUSE() || mount.HasOption("allow_other") {
		return 0, 0, false
	}
	return fuseUser(mount)
}

// finding is what a report says about a file system.
type finding struct {
	code    result.Code
	errno   string // its name, if there was one
	check   check  // that failed or hangs
	call    string // of that check
	cause   cause
	reason  string // what else there is to say
	timings []timing
	statfs  *unix.Statfs_t // if it was answered
	culprit *target        // that it depends on, and whose fault it is; nil: its own
}

// timing is how long a check took that was made.
type timing struct {
	check check
	took  time.Duration
}

// took adds the time of a step of a check.
func (f *finding) took(c check, d time.Duration) {
	if last := len(f.timings) - 1; last >= 0 && f.timings[last].check == c {
		f.timings[last].took += d
		return
	}
	f.timings = append(f.timings, timing{c, d})
}

// hangs reports whether the file system gave no answer.
func (f *finding) hangs() bool { return f.code == result.Timeout || f.code == result.Stuck }

// addReason adds what else there is to say.
func (f *finding) addReason(why string) {
	f.reason = joinReasons(f.reason, why)
}

// hangsIn is the system call that was not answered.
func (f *finding) hangsIn() string {
	if f.hangs() {
		return f.call
	}
	return ""
}

// failWith records an errno of the file system.
func (f *finding) failWith(errno syscall.Errno) {
	f.errno, f.code = result.ErrnoName(errno), fault.CodeOf(errno)
}

// judge turns a report into a finding, without its cause.
func (m *Mountstat) judge(t *target) finding {
	f := finding{timings: m.timings[:0]}
	attributes := t.measure(&f)
	m.timings = f.timings
	verdict := fault.VerdictOf(t.report)
	switch {
	case verdict.Hangs():
		t.judgeHang(&f, verdict)
		return f
	case !verdict.Answered:
		if t.report.Outcome == prober.Capped && m.causes.barred(t) {
			return finding{code: result.Timeout, check: t.concluded.check, call: stepOpen}
		}
		return finding{code: verdict.Code, reason: verdict.Reason}
	}
	if reason := t.leadsElsewhere(attributes, f.statfs); reason != "" {
		return finding{code: result.Unchecked, reason: reason}
	}
	if rootOwned := attributes != nil && attributes.Uid == 0; rootOwned != t.rootOwned {
		t.rootOwned, t.plan = rootOwned, nil
	}
	if m.judgeSteps(t, &f, attributes); f.code == result.OK {
		m.judgeAnswered(t, &f)
	}
	return f
}

// judgeHang says what hangs.
func (t *target) judgeHang(f *finding, verdict fault.Verdict) {
	f.code = verdict.Code
	hangs := t.reportOf.hangs(t.report)
	if f.check, f.call = cmp.Or(hangs.check, t.policy.checks[0]), hangs.call; hangs == examineRoot && !asksForAttributes(t.Probed) {
		f.call = stepOpen // the silent step before, as statx does not hang here
	}
	if verdict.Call == "" { // it is of an earlier run
		f.check, f.call = t.found.check, t.found.call // of the same helper
	}
}

// leadsElsewhere tells that the path leads to another file system than the mount's; otherwise it
// is empty.
func (t *target) leadsElsewhere(attributes *unix.Statx_t, st *unix.Statfs_t) string {
	switch {
	case attributes != nil && !t.Probed.Shows(attributes):
		return fmt.Sprintf("the path leads to another file system, %d:%d", attributes.Dev_major, attributes.Dev_minor)
	case st != nil && !t.Probed.ShowsType(st):
		return fmt.Sprintf("the path leads to another file system, of type %#x", st.Type)
	}
	return ""
}

// judgeSteps finds the first step that has failed.
func (s *settings) judgeSteps(t *target, f *finding, attributes *unix.Statx_t) {
	for i := range t.report.Steps {
		r := &t.report.Steps[i]
		purpose := t.reportOf.steps[r.Index]
		switch {
		case r.Errno != 0 || purpose == readCanary && r.Result == 0:
			s.judgeStep(t, f, r, attributes)
		case t.wasRemoved(r):
			f.code, f.check, f.call = result.Stale, purpose.check, purpose.call
			f.addReason("its directory was removed: it has no name any more")
		}
		if f.code != result.OK {
			if f.check == checkDevice {
				t.disk.rest(t.FaultSince, time.Now())
			}
			return
		}
	}
}

// judgeAnswered judges a file system that has answered by what the kernel says of it, and by
// the time that the answers took.
func (m *Mountstat) judgeAnswered(t *target, f *finding) {
	if !f.leftOut(checkDevice) {
		t.disk.answered = time.Now()
	}
	if before := &t.found; t.disk.rests {
		f.code, f.errno, f.check, f.call = before.code, before.errno, before.check, before.call
		return
	}
	for _, held := range t.policy.heldBack {
		for _, c := range held.checks {
			f.leaveOut(c, held.why)
		}
	}
	m.compareReadOnly(t, f.statfs)
	if t.disk.cause() != "" {
		f.code = result.Error
		f.addReason(t.disk.state.Says)
		return
	}
	if t.journalAborted() {
		f.failWith(unix.EROFS)
		return
	}
	for _, made := range f.timings {
		if !t.worked[made.check] {
			t.worked[made.check] = true
		}
		if made.took > t.policy.slow {
			f.code, f.check = result.Slow, made.check
		}
	}
}

// compareReadOnly notes whether the kernel has turned the file system read-only: statfs
// says so, and a table that was read since does not. Below a prefix, the mount that shows the
// host's files here may be the one that is read-only. So there the file system must have been
// writable before.
func (m *Mountstat) compareReadOnly(t *target, st *unix.Statfs_t) {
	if st == nil || t.namespace != nil || t.Probed.ID == 0 {
		return
	}
	readOnly := st.Flags&unix.ST_RDONLY != 0
	t.seenWritable = t.seenWritable || !readOnly
	says := readOnly && !t.Probed.ReadOnly() && (t.seenWritable || m.host.MountPrefix == "" || m.namespace != "")
	if turned := says && t.saysReadOnly && m.view.Hindrance == nil; turned != t.turnedReadOnly {
		t.turnedReadOnly = turned
		m.expectations.compare(&m.inventory)
	}
	t.saysReadOnly = says
}

// measure sums up the times of the checks, keeps what statfs returned, and
// returns the root's attributes if they were found.
func (t *target) measure(f *finding) (attributes *unix.Statx_t) {
	for i := range t.report.Steps {
		s := &t.report.Steps[i]
		purpose := t.reportOf.steps[s.Index]
		if purpose.check != "" {
			f.took(purpose.check, s.Elapsed)
		}
		switch purpose {
		case examineRoot:
			attributes = s.Statx()
		case askStatfs:
			f.statfs = s.Statfs()
		case readNode:
			t.disk.ours++
		}
	}
	return attributes
}

// judgeStep judges a step that failed.
func (s *settings) judgeStep(t *target, f *finding, r *prober.StepResult, attributes *unix.Statx_t) {
	purpose := t.reportOf.steps[r.Index]
	c := purpose.check
	refused := r.Errno == unix.EACCES || r.Errno == unix.EPERM
	if purpose.call == stepLeftBehind || purpose == askAlive && r.Errno != unix.EIO || purpose == removeFile && r.Errno == unix.ENOENT {
		return
	}
	f.check, f.call = cmp.Or(c, t.policy.checks[0]), purpose.call
	switch {
	case purpose == openRoot && r.Errno == unix.ENOENT:
		f.code, f.reason = result.Unchecked, "there is no such path: it was unmounted, or does not show here"
	case purpose == openRoot && refused:
		f.code, f.reason = result.Unchecked, "this user may not search a directory above"
	case c == "" && purpose != openRoot && purpose != examineRoot:
		f.code, f.reason = result.Unchecked, fmt.Sprintf("preparing the helper: %s: %v", r.Name, r.Errno)
	case purpose == openDirectory && r.Errno == unix.ENOTDIR && attributes != nil && attributes.Mode&unix.S_IFMT != unix.S_IFDIR:
		f.leaveOut(c, "the mount is of a file")
	case purpose == openDirectory && r.Errno == unix.EPERM && s.leavesAtime(t):
		f.leaveOut(c, "its access time would have to be written")
		t.writesAtime, t.plan = true, nil // from the next check on
	case purpose == openNode && (refused || r.Errno == unix.ENOENT):
		f.leaveOut(c, fmt.Sprintf("its device can't be opened: %v", r.Errno))
	case purpose == readNode && r.Errno == unix.ENODATA:
		f.leaveOut(c, "the disk can't read a sector, which need not be in use")
	case purpose == openCanary && r.Errno == unix.ENOENT:
		f.leaveOut(c, "there is no canary "+s.canary)
	case purpose == openCanary && r.Errno == unix.EBADF && !f.leftOut(c):
		f.leaveOut(c, "the canary "+s.canary+" is no file")
	case purpose == readCanary && r.Errno == 0:
		f.leaveOut(c, "the canary "+s.canary+" is empty")
	case t.meetsAnotherWriter(r):
		if !f.leftOut(c) {
			f.leaveOut(c, "another vfsprobe on a host of this name writes its file at this moment")
		}
	case r.Errno == unix.EBADF && f.leftOut(c): // of what could not be opened
	case refused && c != checkStatfs && attributes != nil && !s.entitled(t, attributes):
		f.leaveOut(c, fmt.Sprintf("%s: %s", result.ErrnoName(r.Errno), describe(attributes)))
	case (r.Errno == unix.ENOSYS || r.Errno == unix.EOPNOTSUPP) && !t.worked[c]:
		f.leaveOut(c, fmt.Sprintf("the file system does not have it: %s: %v", r.Name, r.Errno))
	case refused && t.Probed.Kerberos() && !t.worked[c]:
		f.code, f.reason = result.Unchecked, "this host has no Kerberos ticket for the server: "+result.ErrnoName(r.Errno)
	default:
		f.failWith(r.Errno)
		// The mode that SMB mounts have is mostly this client's own.
		if refused && attributes != nil && !(t.Probed.SMB() && c == checkStatfs) {
			f.reason = describe(attributes)
		}
	}
	if refused && s.confined != "" {
		f.addReason(s.confined)
	}
}

// meetsAnotherWriter reports whether a step has failed since another vfsprobe has made, or removed, the
// file that this one was to write. What was there before, and stays, is not its.
func (t *target) meetsAnotherWriter(r *prober.StepResult) bool {
	switch purpose := t.reportOf.steps[r.Index]; {
	case purpose == makeFile:
		return r.Errno == unix.EEXIST && !slices.ContainsFunc(t.report.Steps, func(before prober.StepResult) bool {
			return t.reportOf.steps[before.Index].call == stepLeftBehind && before.Errno != 0 && before.Errno != unix.ENOENT
		})
	case purpose.check == checkWrite:
		return r.Errno == unix.ESTALE
	}
	return false
}

// leaveOut notes that a check could not be made. That is no fault.
func (f *finding) leaveOut(c check, why string) {
	f.check, f.call = "", ""
	f.timings = slices.DeleteFunc(f.timings, func(t timing) bool { return t.check == c })
	f.addReason(string(c) + " was left out: " + why)
}

func (f *finding) leftOut(c check) bool {
	return !slices.ContainsFunc(f.timings, func(t timing) bool { return t.check == c })
}

// entitled reports whether the helper should have been let in: it kept its own user on purpose,
// or it is the owner and not subject to root_squash, or everybody may enter.
func (s *settings) entitled(t *target, st *unix.Statx_t) bool {
	const all = 0o005
	as := t.policy.runAs
	asked := s.becomes || !as.owner && !as.user
	squashed := as.owner && t.Probed.Network() && (st.Uid == 0 || t.Probed.Kerberos())
	return asked && !squashed || st.Mode&all == all
}

// describe says who may look at a root.
func describe(st *unix.Statx_t) string {
	return fmt.Sprintf("its root has mode %04o, uid %d, gid %d", st.Mode&0o7777, st.Uid, st.Gid)
}
