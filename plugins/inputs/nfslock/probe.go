package nfslock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// The steps of the plans. Those in fields have their time reported.
const (
	stepRoot    = "open"    // the root, by O_PATH: it takes no answer from the server
	stepOwner   = "statx"   // of the root
	stepReach   = "fstatfs" // asks the server, and can always be killed on NFS
	stepFind    = "find"    // the canary, by O_PATH: opens nothing
	stepExamine = "examine" // its type and owner
	stepOpen    = "openat"
	stepMode    = "fchmod"
	stepRegular = "readahead" // fails on everything but files and block devices
	stepGetlk   = "getlk"
	stepSetlk   = "setlk"
	stepUnlock  = "unlock"
	stepClose   = "close"
	stepOwn     = "openat own"
	stepShared  = "flock_sh"
	stepShare   = "flock_un"
	stepExcl    = "flock_ex"
	stepExclEnd = "flock_un ex"
)

// timedSteps are those whose time is a field, by the field's name.
func timedSteps() map[string]string {
	return map[string]string{
		stepReach: "fstatfs_seconds", stepOpen: "open_seconds", stepGetlk: "getlk_seconds", stepSetlk: "setlk_seconds",
		stepUnlock: "unlock_seconds", stepClose: "close_seconds", stepShared: "flock_sh_seconds", stepExcl: "flock_ex_seconds",
	}
}

func stageOf(step string) stage {
	switch step {
	case stepGetlk:
		return asking
	case stepSetlk:
		return locking
	case stepUnlock, stepClose:
		return unlocking
	case stepOwn, stepShared, stepShare, stepExcl, stepExclEnd:
		return flocking
	case stepFind, stepExamine, stepOpen, stepMode, stepRegular:
		return opening
	}
	return reaching
}

// access is a way to open the canary.
type access struct {
	asItsOwner bool // as the canary's owner, not the root's
	readOnly   bool // for a read lock, which takes the same way to the server
}

// accesses are the ways in the order they are tried. As root's owner a canary of
// mode 0666 can be opened in spite of root_squash.
func accesses() []access {
	return []access{{}, {asItsOwner: true}, {readOnly: true}, {asItsOwner: true, readOnly: true}}
}

// begin appends the steps that lead to the root, make the helper its owner (or
// another), and ask the server for a sign of life.
func (n *Nfslock) begin(p *prober.Plan, sb *superblock, way access) (root int) {
	p.Below(n.prefix)
	root = p.Add(prober.Step{Name: stepRoot, Number: unix.SYS_OPENAT, Arguments: []prober.Argument{
		prober.Value(unix.AT_FDCWD), prober.Path(n.prefix + sb.probed.Mountpoint), prober.Value(unix.O_PATH | unix.O_CLOEXEC)}})
	owner := p.Add(prober.Step{Name: stepOwner, Number: unix.SYS_STATX, Arguments: []prober.Argument{
		prober.ResultOf(root), prober.Path(""), prober.Value(unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC),
		prober.Value(unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_UID | unix.STATX_GID | unix.STATX_MNT_ID), prober.Output(unsafe.Sizeof(unix.Statx_t{}))}})
	switch {
	case !n.becomes, sb.probed.Kerberos():
		// The server knows a user by a ticket, and only root has a machine's.
	case way.asItsOwner:
		p.Become(sb.canary.uid, sb.canary.gid)
	case !sb.canary.rootOwned || !n.superuser:
		p.BecomeOwner(owner)
	}
	p.Add(prober.Step{Name: stepReach, Number: unix.SYS_FSTATFS, Arguments: []prober.Argument{
		prober.ResultOf(root), prober.Scratch(int(unsafe.Sizeof(unix.Statfs_t{})))}})
	return root
}

// openStep is a step that opens a file of the mount. Links are not followed:
// the last one by O_NOFOLLOW, those before it by openat2(2), which Linux has
// since 5.6 and only a canary in a subdirectory needs.
func openStep(name string, root int, file string, flags int) prober.Step {
	step := prober.Step{Name: name, Number: unix.SYS_OPENAT, Arguments: []prober.Argument{
		prober.ResultOf(root), prober.Path(file), prober.Value(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK), prober.Value(0o666)}}
	if strings.ContainsRune(file, '/') {
		how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
		if flags&unix.O_CREAT != 0 {
			how.Mode = 0o666
		}
		if flags&unix.O_PATH != 0 {
			how.Flags = unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW
		}
		step.Number = unix.SYS_OPENAT2
		step.Arguments = []prober.Argument{prober.ResultOf(root), prober.Path(file), prober.Input(bytesOf(&how)), prober.Value(unsafe.Sizeof(how))}
	}
	return step
}

// open appends the steps that open a file of the mount, or make it.
func open(p *prober.Plan, name string, root int, file string, flags int) int {
	step := openStep(name, root, file, flags)
	if flags&unix.O_EXCL != 0 {
		return p.Add(step)
	}
	return p.OpenRegular(openStep(name, root, file, unix.O_PATH), step)
}

// bytesOf is a copy of the structure's memory.
func bytesOf[T any](structure *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(structure)), unsafe.Sizeof(*structure))...)
}

// look is the plan that finds out what the canary is. It opens nothing, so that
// its helper can be killed on NFS whatever happens.
func (n *Nfslock) look(sb *superblock) *prober.Plan {
	p := &prober.Plan{Timeout: n.left(sb), Killable: sb.probed.NFS()}
	root := n.begin(p, sb, access{})
	file := p.Add(openStep(stepFind, root, sb.policy.canary, unix.O_PATH))
	p.Add(prober.Step{Name: stepExamine, Number: unix.SYS_STATX, Arguments: []prober.Argument{
		prober.ResultOf(file), prober.Path(""), prober.Value(unix.AT_EMPTY_PATH | unix.AT_STATX_FORCE_SYNC),
		prober.Value(unix.STATX_BASIC_STATS), prober.Output(unsafe.Sizeof(unix.Statx_t{}))}})
	return p
}

// lock is the plan that takes locks and gives them back at once: the window in
// which its helper could survive SIGKILL is that short. Everything before is
// killable on NFS, and so is a lock that is waited for.
func (n *Nfslock) lock(sb *superblock) *prober.Plan {
	p := &prober.Plan{Timeout: n.left(sb), Killable: sb.probed.NFS() && sb.killable}
	way := n.accessOf(sb)
	root := n.begin(p, sb, way)
	mode, kind := unix.O_RDWR, int16(unix.F_WRLCK)
	if way.readOnly {
		mode, kind = unix.O_RDONLY, unix.F_RDLCK
	}
	if sb.canary.create {
		// Not one that has appeared since: it may be somebody's link to a file
		// whose mode is not ours to change.
		mode |= unix.O_CREAT | unix.O_EXCL
	}
	file := open(p, stepOpen, root, sb.policy.canary, mode)
	if sb.canary.create {
		p.Add(prober.Step{Name: stepMode, Number: unix.SYS_FCHMOD, Optional: true, Quiet: true, Arguments: []prober.Argument{
			prober.ResultOf(file), prober.Value(0o666)}})
	}
	// It may have been replaced since that look. readahead(2) refuses what
	// can't be mapped, and behind the end of a file it does nothing.
	p.Add(prober.Step{Name: stepRegular, Number: unix.SYS_READAHEAD, Quiet: true, Arguments: []prober.Argument{
		prober.ResultOf(file), prober.Value(int64(1 << 60)), prober.Value(1)}})
	control := func(name string, command int, structure *unix.Flock_t) {
		argument := prober.Input(bytesOf(structure))
		if command == unix.F_GETLK {
			argument = prober.InOut(bytesOf(structure))
		}
		p.Add(prober.Step{Name: name, Number: unix.SYS_FCNTL, Arguments: []prober.Argument{prober.ResultOf(file), prober.Value(command), argument}})
	}
	start := n.rangeOf(sb)
	control(stepGetlk, unix.F_GETLK, &unix.Flock_t{Type: kind, Start: start, Len: 1})
	control(stepSetlk, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: 1})
	control(stepUnlock, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: start, Len: 1})
	closeOf := func(fd int, optional bool) {
		p.Add(prober.Step{Name: stepClose, Number: unix.SYS_CLOSE, Optional: optional, Arguments: []prober.Argument{prober.ResultOf(fd)}})
	}
	closeOf(file, false)
	if !way.readOnly {
		n.addFlock(p, root, sb)
	}
	return p
}

// addFlock appends flock on a file that no other host locks: on NFS it takes the
// whole file, and would meet the other hosts' ranges of the canary. Where there
// is no such file it is left out, or made if that is wanted. Not by each probe:
// O_CREAT hangs on a frozen export although the file is there, and takes one of the
// server's threads.
func (n *Nfslock) addFlock(p *prober.Plan, root int, sb *superblock) {
	mode := unix.O_RDWR
	if sb.canary.createOwn {
		mode |= unix.O_CREAT | unix.O_EXCL
	}
	own := open(p, stepOwn, root, n.ownFile(sb), mode)
	for _, step := range []struct {
		name      string
		operation int
	}{
		{stepShared, unix.LOCK_SH | unix.LOCK_NB}, {stepShare, unix.LOCK_UN},
		{stepExcl, unix.LOCK_EX | unix.LOCK_NB}, {stepExclEnd, unix.LOCK_UN},
	} {
		p.Add(prober.Step{Name: step.name, Number: unix.SYS_FLOCK, Arguments: []prober.Argument{
			prober.ResultOf(own), prober.Value(step.operation)}})
	}
	p.Add(prober.Step{Name: stepClose, Number: unix.SYS_CLOSE, Quiet: true, Arguments: []prober.Argument{prober.ResultOf(own)}})
}

// ownFile is the file that only this host locks.
func (n *Nfslock) ownFile(sb *superblock) string { return sb.policy.canary + "." + n.host }

// left is the time that is left for a plan.
func (n *Nfslock) left(sb *superblock) time.Duration { return time.Until(sb.deadline) }

// late reports whether too little time is left, as on a very busy host: a lock that
// is only slow must not be taken for one that hangs. The next gather tries again.
func (n *Nfslock) late(sb *superblock) bool {
	if n.left(sb) >= sb.policy.timeout/4 {
		return false
	}
	sb.attempt = &attempt{reason: "no time was left for the locks: what comes before took too long"}
	return true
}

// goOn makes the locks once it is known how.
func (n *Nfslock) goOn(sb *superblock) {
	if n.late(sb) {
		sb.canary.regular = true
		return
	}
	n.submit(sb, n.lock(sb), n.judgeLock)
}

// accessOf is how to open the canary.
func (n *Nfslock) accessOf(sb *superblock) access {
	way := accesses()[sb.canary.access]
	way.readOnly = way.readOnly || sb.probed.ReadOnly()
	return way
}

// nextAccess chooses another way to open the canary, if there is one.
func (n *Nfslock) nextAccess(sb *superblock) bool {
	c, tried := &sb.canary, n.accessOf(sb)
	for c.access+1 < len(accesses()) {
		c.access++
		way := n.accessOf(sb)
		if way.asItsOwner && (!n.becomes || c.uid == 0 || sb.probed.Kerberos()) || way == tried {
			continue
		}
		return true
	}
	c.access = 0
	return false
}

// rangeOf is the first byte of the range that is this host's own, which is one
// byte long. Each superblock has its own, since a host may have mounted an export
// twice. Two are the same with a probability of 2^-61. NFS version 2 has offsets
// of 31 bits.
func (n *Nfslock) rangeOf(sb *superblock) int64 {
	hash := fnv.New64a()
	hash.Write(binary.BigEndian.AppendUint64(nil, n.hostHash))
	hash.Write([]byte(sb.id))
	if version, _ := sb.probed.Option("vers"); version == "2" {
		return int64(hash.Sum64()%(1<<30)) + 1
	}
	return int64(hash.Sum64()%(1<<61)) + 1<<61
}

// findHost reads the host's machine-id, which lies on a monitored file system: a
// helper does it. Without one the host's name has to do.
func (n *Nfslock) findHost() {
	const length = 64
	p := &prober.Plan{Timeout: min(n.timeout/2, time.Second)} // the fork server may not be there yet
	p.Below(n.machineID)
	file := p.Add(prober.Step{Name: "open", Number: unix.SYS_OPENAT, Arguments: []prober.Argument{
		prober.Value(unix.AT_FDCWD), prober.Path(n.machineID), prober.Value(unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK)}})
	p.Add(prober.Step{Name: "read", Number: unix.SYS_READ, Arguments: []prober.Argument{
		prober.ResultOf(file), prober.Output(length), prober.Value(length)}})
	r := n.prober.Run(prober.Check{Key: "nfslock machine-id", Group: "machine-id", Trusted: true, Independent: true, Plan: p})
	hash := fnv.New64a()
	if len(r.Steps) == 2 && r.Failed() == nil {
		hash.Write(r.Steps[1].Output)
	} else {
		n.Log.Debugf("without %s the host's name tells its locks from other hosts': %v", n.machineID, &r)
	}
	hash.Write([]byte(n.host))
	n.hostHash = hash.Sum64()
}

// submit starts a plan for the superblock.
func (n *Nfslock) submit(sb *superblock, plan *prober.Plan, judge func(*superblock, *prober.Report)) {
	sb.underWay, sb.waits = true, ""
	sb.ticket = n.prober.Submit(prober.Check{Key: sb.key(), Group: group(sb.probed), Trusted: sb.answered, Plan: plan}, func(r prober.Report) {
		n.mail.Post(func() {
			late := sb.patient && !time.Now().Before(sb.deadline)
			sb.underWay, sb.patient, sb.ticket = false, false, prober.Ticket{}
			if late {
				sb.deadline = n.began.Add(sb.policy.timeout)
				if sb.waitedFor(&r) {
					return
				}
			}
			judge(sb, &r)
			if late && sb.attempt != nil && sb.attempt.end == failed {
				sb.late = sb.attempt
			}
		})
	})
}

// start begins the probe: with the locks where the last one went well, and else
// with a look.
func (n *Nfslock) start(sb *superblock) {
	sb.canary.create, sb.canary.retried = false, false
	if n.late(sb) {
		return
	}
	if sb.canary.regular {
		n.submit(sb, n.lock(sb), n.judgeLock)
	} else {
		n.submit(sb, n.look(sb), n.judgeLook)
	}
}

// ended judges what both plans have in common. final is false if the plan went on
// to what only it knows.
func (n *Nfslock) ended(sb *superblock, r *prober.Report) (a *attempt, final bool) {
	a = newAttempt(r)
	for i := range r.Steps {
		step := &r.Steps[i]
		if step.Name == stepOwner && step.Errno == 0 {
			root := (*unix.Statx_t)(unsafe.Pointer(unsafe.SliceData(step.Output)))
			sb.canary.rootOwned = root.Uid == 0
			if !sb.probed.Shows(root) {
				a.reason = fmt.Sprintf("the path leads to another file system, %d:%d", root.Dev_major, root.Dev_minor)
				return a, true
			}
		}
	}
	switch r.Outcome {
	case prober.Expired, prober.Stuck:
		a.hang(r.HangsIn)
		sb.killable = sb.killable && r.Outcome == prober.Expired
		// Without a step it is the hang of another input's helper.
		sb.leftover = sb.leftover || a.stage >= locking && len(r.Steps) > 0
		return a, true
	case prober.Busy:
		sb.killable = false
		if a.hang(r.HangsIn); r.HangsIn == "" { // it is of an earlier run
			a.call, a.stage = sb.found.call, sb.found.stage
		}
		return a, true
	case prober.Capped, prober.Died, prober.Unavailable:
		if r.HangsIn != "" { // in a lock, say, of another input's, while this one was to look
			a.hang(r.HangsIn)
			r.Err = nil
			return a, true
		}
		a.reason = r.Err.Error()
		return a, true
	}
	if r.Err != nil || len(r.Steps) == 0 {
		a.reason = errors.Join(r.Err, errors.New("the helper gave no answer")).Error()
		return a, true
	}
	failure := r.Failed()
	if failure == nil {
		return a, false
	}
	switch failure.Name {
	case stepFind, stepExamine, stepOpen, stepRegular, stepGetlk, stepSetlk, stepUnlock, stepOwn, stepShared, stepShare, stepExcl, stepExclEnd, stepClose:
		return a, false
	case stepRoot:
		switch failure.Errno {
		case unix.ENOENT:
			a.reason = "there is no such path: it was unmounted, or does not show here"
			return a, true
		case unix.EACCES, unix.EPERM:
			a.reason = "this user may not search a directory above"
			return a, true
		}
	case stepOwner, stepReach:
	default:
		a.reason = fmt.Sprintf("preparing the helper: %s: %v", failure.Name, failure.Errno)
		return a, true
	}
	a.fail(failure)
	return a, true
}

func (a *attempt) fail(step *prober.StepResult) {
	a.end, a.call, a.stage, a.errno = failed, step.Name, stageOf(step.Name), step.Errno
}

// judgeLook goes on to the locks if the canary is a file.
func (n *Nfslock) judgeLook(sb *superblock, r *prober.Report) {
	a, final := n.ended(sb, r)
	if final {
		sb.attempt = a
		return
	}
	a.end = notTried
	failure := r.Failed()
	switch {
	case failure == nil:
		st := (*unix.Statx_t)(unsafe.Pointer(unsafe.SliceData(r.Steps[len(r.Steps)-1].Output)))
		sb.canary.uid, sb.canary.gid = st.Uid, st.Gid
		if kind := typeName(st.Mode); kind != "" {
			a.absent, a.reason = true, fmt.Sprintf("%s is a %s", sb.policy.canary, kind)
			sb.attempt = a
			return
		}
	case failure.Name == stepFind && absent(failure.Errno) && n.CreateCanary && failure.Errno == unix.ENOENT:
		sb.canary.create = true
	case failure.Name == stepFind && absent(failure.Errno):
		a.absent, a.reason = true, fmt.Sprintf("%s: %v", sb.policy.canary, failure.Errno)
		if failure.Errno == unix.ENOENT {
			a.reason = "there is no " + sb.policy.canary
		}
		sb.attempt = a
		return
	default:
		a.fail(failure)
		sb.attempt = a
		return
	}
	n.goOn(sb)
}

// absent holds for errors which say that there is nothing to be locked.
func absent(errno syscall.Errno) bool {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG, unix.ENOSYS, unix.EISDIR, unix.ENXIO, unix.ENODEV:
		return true
	}
	return false
}

// typeName is what a file is, unless it is a regular one.
func typeName(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ""
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// judgeLock takes the report of the locks, and tries again where another way to
// the canary, or another moment, may do better.
func (n *Nfslock) judgeLock(sb *superblock, r *prober.Report) {
	sb.canary.regular = false
	a, final := n.ended(sb, r)
	if final {
		sb.attempt = a
		return
	}
	a.end, a.readOnly = passed, n.accessOf(sb).readOnly
	var failure *prober.StepResult
	for i := range r.Steps {
		step := &r.Steps[i]
		switch {
		case step.Errno != 0:
			failure = step
		case step.Name == stepGetlk:
			a.holder = holderOf(step.Output)
		case step.Name == stepExcl:
			a.flocked = true
		}
	}
	creating, creatingOwn := sb.canary.create, sb.canary.createOwn
	sb.canary.create, sb.canary.createOwn = false, false
	if failure != nil {
		switch {
		case failure.Name == stepOpen && creating && failure.Errno == unix.EEXIST && !sb.canary.retried:
			sb.canary.retried = true // another host was faster
			n.submit(sb, n.look(sb), n.judgeLook)
			return
		case failure.Name == stepOpen && creating:
			a.end, a.absent, a.reason = notTried, true, fmt.Sprintf("creating %s: %v", sb.policy.canary, failure.Errno)
		case failure.Name == stepOpen && (failure.Errno == unix.EACCES || failure.Errno == unix.EPERM || failure.Errno == unix.EROFS):
			if n.nextAccess(sb) {
				n.goOn(sb)
				return
			}
			a.fail(failure)
		case failure.Name == stepOpen && failure.Errno == unix.EBADF:
			a.end, a.absent, a.reason = notTried, true, sb.policy.canary+" is no file any more"
		case failure.Name == stepOpen && absent(failure.Errno), failure.Name == stepRegular:
			a.end, a.absent, a.reason = notTried, true, fmt.Sprintf("%s: %v", sb.policy.canary, failure.Errno)
		case failure.Name == stepOwn:
			// All that matters was done. Why there is no such file is nobody's fault.
			if n.CreateCanary && failure.Errno == unix.ENOENT && !creatingOwn {
				sb.canary.createOwn = true
				n.goOn(sb)
				return
			}
		case (failure.Name == stepSetlk || failure.Name == stepShared || failure.Name == stepExcl) && failure.Errno == unix.EAGAIN && !sb.canary.retried:
			// Another vfsprobe of this host has the same range for a moment.
			sb.canary.retried = true
			n.goOn(sb)
			return
		case (failure.Name == stepShared || failure.Name == stepExcl) && failure.Errno == unix.EAGAIN:
			// This host has mounted the export twice, and probes both.
			a.reason = "flock was left out: the host's own file is in use"
		default:
			a.fail(failure)
		}
	}
	if a.end == passed {
		sb.canary.regular, sb.leftover, a.holder = true, false, nil
	}
	sb.attempt = a
}

// holderOf reads the answer of F_GETLK; nil: nobody would be in the way.
func holderOf(answer []byte) *holder {
	lock := (*unix.Flock_t)(unsafe.Pointer(unsafe.SliceData(answer)))
	if len(answer) != int(unsafe.Sizeof(*lock)) || lock.Type == unix.F_UNLCK {
		return nil
	}
	return &holder{pid: int64(lock.Pid), write: lock.Type == unix.F_WRLCK}
}

// evidenceOf puts together what is known about the superblock's locks, beside
// what the attempt has met.
func (n *Nfslock) evidenceOf(sb *superblock, a *attempt) evidence {
	e := evidence{end: a.end, stage: a.stage, errno: a.errno, absent: a.absent, nlm: sb.nlm, local: n.local.links,
		grace: inGrace(sb.waits)}
	if sb.chain != nil {
		e.server = sb.chain.links
	}
	switch sb.scope {
	case scopeLocal:
		e.unproven = true
	case scopeLocalPosix:
		e.unproven = !a.flocked
	}
	return e
}

// inGrace reports whether a stack or wchan is that of a process which the server
// told to come again later: with NLM in a grace period only (fs/lockd/clntproc.c),
// with NFSv4 then and while the client recovers what it held (fs/nfs/nfs4proc.c).
func inGrace(waits string) bool {
	for _, function := range []string{"nlm_wait_on_grace", "nfs4_delay", "nfs4_handle_exception", "nfs4_wait_clnt_recover"} {
		if strings.Contains(waits, function) {
			return true
		}
	}
	return false
}

// findingOf draws the conclusion.
func (n *Nfslock) findingOf(sb *superblock, now time.Time) finding {
	sb.refine()
	e := n.evidenceOf(sb, sb.attempt)
	f := finding{attempt: *sb.attempt}
	f.diagnosis = e.diagnose()
	var hungFor time.Duration
	if sb.hung() {
		hungFor = now.Sub(sb.hungSince)
	}
	f.code = e.code(f.diagnosis, f.stuck(), hungFor, n.grace)
	if f.code == result.OK {
		for _, took := range f.seconds {
			if took > n.slow {
				f.code = result.Slow
			}
		}
	}
	return f
}
