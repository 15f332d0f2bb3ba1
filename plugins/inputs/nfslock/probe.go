package nfslock

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// attempt is what a probe met, before its cause is known.
type attempt struct {
	end      ending
	stage    stage
	call     string // that hung or failed
	errno    syscall.Errno
	stuck    bool   // a helper survives SIGKILL
	refused  bool   // no helper could be had, or it was lost
	absent   bool   // there is no canary, or nothing that could be one
	reason   string // what else there is to say
	holder   *holder
	flocked  bool // the host's own file was locked with flock
	readOnly bool // by a read lock
	seconds  map[string]time.Duration
	report   *prober.Report // nil: no helper was to try

	awaitsHolder bool // the server is to say on which host the holder is
}

// finding is an attempt with its cause.
type finding struct {
	attempt
	diagnosis diagnosis
	code      result.Code
}

// holder is the process that has the lock, as F_GETLK names it.
type holder struct {
	pid   int64 // negative: on another host; -1: an open file's, of nobody; 0: unknown
	write bool
	host  string // what it calls itself, if the server says it
}

// attempt notes what a helper has done.
func (p *plan) attempt(r *prober.Report) *attempt {
	a := &attempt{report: r, seconds: make(map[string]time.Duration)}
	if r.HangsIn != "" && r.HangsAt < 0 {
		return a // the steps are of another plan
	}
	for i := range r.Steps {
		if field := steps[p.of(&r.Steps[i])].field; field != "" {
			a.seconds[field] = r.Steps[i].Elapsed
		}
	}
	return a
}

func (a *attempt) hang(p *plan, r *prober.Report) {
	a.end, a.call, a.stage = hung, r.HangsIn, p.hangsAt(r)
}

func (a *attempt) fail(p *plan, s *prober.StepResult) {
	a.end, a.call, a.stage, a.errno = failed, s.Name, steps[p.of(s)].stage, s.Errno
}

// nothing notes that there is no file to lock.
func (a *attempt) nothing(format string, arguments ...any) {
	a.end, a.absent, a.reason = notTried, true, fmt.Sprintf(format, arguments...)
}

// isLate reports whether too little time is left, as on a very busy host: a lock that
// is only slow must not be taken for one that hangs. The next gather tries again.
func (n *NFSLock) isLate(t *target) bool {
	if time.Until(t.deadline) >= t.policy.timeout/4 {
		return false
	}
	t.attempt = &attempt{reason: "no time was left for the locks: what comes before took too long"}
	return true
}

// start begins the probe. It takes locks at once where the last probe went well, and looks at the
// canary first elsewhere.
func (n *NFSLock) start(t *target) {
	t.canary.create, t.canary.retried = false, false
	switch {
	case n.isLate(t):
	case t.canary.regular:
		n.submit(t, n.newLockPlan(t), n.judgeLock)
	default:
		n.submit(t, n.newLookPlan(t), n.judgeLook)
	}
}

// goOn tries the locks after the look has shown how.
func (n *NFSLock) goOn(t *target) {
	if n.isLate(t) {
		t.canary.regular = true
		return
	}
	n.submit(t, n.newLockPlan(t), n.judgeLock)
}

// submit starts a plan for the target.
func (n *NFSLock) submit(t *target, p *plan, judge func(*target, *prober.Report)) {
	t.underWay, t.waits, t.plan = true, "", p
	check := prober.Check{Key: "nfslock " + t.ID, Group: t.Probed.FateGroup(), Trusted: t.Answered, Plan: &p.Plan}
	t.ticket = n.host.Prober.Submit(check, func(r prober.Report) {
		n.mail.Post(func() {
			late := t.patient && !time.Now().Before(t.deadline)
			t.underWay, t.patient, t.ticket = false, false, prober.Ticket{}
			if late {
				t.deadline = n.began.Add(t.policy.timeout)
				if t.waitedFor(&r) {
					return
				}
			}
			judge(t, &r)
			if late && t.attempt != nil && t.attempt.end == failed {
				t.late = t.attempt
			}
		})
	})
}

// ended judges what both plans have in common. final is false if the plan went on to steps that
// only its own judge function knows.
func (n *NFSLock) ended(t *target, r *prober.Report) (a *attempt, final bool) {
	a = t.plan.attempt(r)
	if root := t.plan.result(r, examiningRoot).Statx(); root != nil {
		t.canary.rootOwned = root.Uid == 0
		if !t.Probed.Shows(root) {
			a.reason = fmt.Sprintf("the path leads to another file system, %d:%d", root.Dev_major, root.Dev_minor)
			return a, true
		}
	}
	verdict := fault.VerdictOf(r)
	switch {
	case verdict.Hangs():
		a.hang(t.plan, r)
		if verdict.Call == "" { // it hangs since an earlier run
			a.call, a.stage = t.found.call, t.found.stage
		}
		a.stuck = verdict.Code == result.Stuck
		t.killable = t.killable && !a.stuck
		// A hang without a step is that of another input's helper.
		t.leftover = t.leftover || a.stage >= locking && len(r.Steps) > 0
		return a, true
	case !verdict.Answered:
		a.refused, a.reason = true, verdict.Reason
		return a, true
	}
	failure := t.plan.failed(r)
	if failure == nil {
		return a, false
	}
	switch what := t.plan.of(failure); {
	case what == preparing:
		a.reason = fmt.Sprintf("preparing the helper: %s: %v", failure.Name, failure.Errno)
	case what == findingRoot && failure.Errno == unix.ENOENT:
		a.reason = "there is no such path: it was unmounted, or does not show here"
	case what == findingRoot && (failure.Errno == unix.EACCES || failure.Errno == unix.EPERM):
		a.reason = "this user may not search a directory above"
	case what <= reachingServer:
		a.fail(t.plan, failure)
	default:
		return a, false
	}
	return a, true
}

// judgeLook goes on to the locks if the canary is a file.
func (n *NFSLock) judgeLook(t *target, r *prober.Report) {
	a, final := n.ended(t, r)
	t.attempt = a
	if final {
		return
	}
	failure := t.plan.failed(r)
	switch {
	case failure == nil:
		st := t.plan.result(r, examiningCanary).Statx()
		t.canary.uid, t.canary.gid = st.Uid, st.Gid
		if kind := typeName(st.Mode); kind != "" {
			a.nothing("%s is a %s", t.policy.canary, kind)
			return
		}
	case t.plan.of(failure) != findingCanary || !absent(failure.Errno):
		a.fail(t.plan, failure)
		return
	case failure.Errno != unix.ENOENT:
		a.nothing("%s: %v", t.policy.canary, failure.Errno)
		return
	case !n.CreateCanary:
		a.nothing("there is no %s", t.policy.canary)
		return
	default:
		t.canary.create = true
	}
	t.attempt = nil
	n.goOn(t)
}

// absent reports whether an error says that there is nothing to lock.
func absent(errno syscall.Errno) bool {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG, unix.ENOSYS, unix.EISDIR, unix.ENXIO, unix.ENODEV:
		return true
	}
	return false
}

// typeName names the type of a file, unless it is a regular one.
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

// judgeLock judges the report of the locks, and tries again where another way to the canary, or a
// later moment, may succeed.
func (n *NFSLock) judgeLock(t *target, r *prober.Report) {
	t.canary.regular = false
	a, final := n.ended(t, r)
	if final {
		t.attempt = a
		return
	}
	a.end, a.readOnly = passed, n.accessOf(t).readOnly
	a.holder = holderOf(t.plan.result(r, askingForLock).Lock())
	exclusive := t.plan.result(r, excluding)
	a.flocked = exclusive != nil && exclusive.Errno == 0
	tried := t.canary
	t.canary.create, t.canary.createOwn = false, false
	if failure := t.plan.failed(r); failure != nil && n.judgeFailure(t, &tried, a, failure) {
		return
	}
	if a.end == passed {
		t.canary.regular, t.leftover, a.holder = true, false, nil
	}
	t.attempt = a
	if a.end == failed && a.stage == locking && a.errno == unix.EAGAIN {
		n.askForHolder(t, a, serverHandle(t.plan.result(r, namingCanary).FileHandle()))
	}
}

// judgeFailure judges the step of the locks that has failed. It reports whether the locks are
// tried again in another way.
func (n *NFSLock) judgeFailure(t *target, tried *canary, a *attempt, failure *prober.StepResult) (again bool) {
	switch what, errno := t.plan.of(failure), failure.Errno; {
	case what == openingCanary && tried.create && errno == unix.EEXIST && !tried.retried:
		t.canary.retried = true // another host was faster
		n.submit(t, n.newLookPlan(t), n.judgeLook)
		return true
	case what == openingCanary && tried.create:
		a.nothing("creating %s: %v", t.policy.canary, errno)
	case what == openingCanary && (errno == unix.EACCES || errno == unix.EPERM || errno == unix.EROFS) && n.nextAccess(t):
		n.goOn(t)
		return true
	case what == openingCanary && errno == unix.EBADF:
		a.nothing("%s is no file any more", t.policy.canary)
	case what == openingCanary && absent(errno), what == checkingType:
		a.nothing("%s: %v", t.policy.canary, errno)
	case what == openingOwn && n.CreateCanary && errno == unix.ENOENT && !tried.createOwn:
		t.canary.createOwn = true
		n.goOn(t)
		return true
	case what == openingOwn:
		// Everything that matters was done. That there is no such file is no fault.
	case (what == settingLock || what == sharing || what == excluding) && errno == unix.EAGAIN && !tried.retried:
		// Another vfsprobe of this host has the same range for a moment.
		t.canary.retried = true
		n.goOn(t)
		return true
	case (what == sharing || what == excluding) && errno == unix.EAGAIN:
		// This host has mounted the export twice, and probes both.
		a.reason = "flock was left out: the host's own file is in use"
	default:
		a.fail(t.plan, failure)
	}
	return false
}

// holderOf returns the holder of a lock that is in the way, or nil.
func holderOf(lock *unix.Flock_t) *holder {
	if lock == nil || lock.Type == unix.F_UNLCK {
		return nil
	}
	return &holder{pid: int64(lock.Pid), write: lock.Type == unix.F_WRLCK}
}

// evidenceOf puts together what is known about the target's locks, beyond what the
// attempt has met.
func (n *NFSLock) evidenceOf(t *target, a *attempt) evidence {
	e := evidence{end: a.end, stage: a.stage, errno: a.errno, absent: a.absent, nlm: t.nlm, local: n.local.services,
		waits: waitOf(t.waits)}
	if t.server != nil {
		e.server = t.server.services
		e.inGrace = a.end == hung && n.inGrace(t)
	}
	if t.v4() {
		if a.end == hung || a.end == failed {
			n.kernel.read(n) // what was said meanwhile
		}
		l := &t.server.lease
		e.restart, e.flaps = l.restarted(n.grace, t.hangsSince(a)), l.flaps()
		e.refused, e.inUse = l.holds(l.refused), l.holds(l.inUse)
		if a.end == hung {
			managed := n.lasts(l.managing, a.report.Since)
			if e.waits == waitOther && managed {
				e.waits = waitRecovery
			}
			e.recoveryLasts = managed || n.lasts(t.recovers, a.report.Since)
		}
		e.leaseExpired = t.lease.LeaseExpired > 0
	}
	switch t.scope {
	case scopeLocal:
		e.unproven = true
	case scopeLocalPosix:
		e.unproven = !a.flocked
	}
	return e
}

// lasts reports whether something has been so since before a lock was tried, or before this gather
// where the lock was left waiting.
func (n *NFSLock) lasts(since, tried time.Time) bool {
	if n.began.After(tried) {
		tried = n.began
	}
	return !since.IsZero() && since.Before(tried)
}

// hangsSince returns when the first of the unanswered probes began. The attempt is the last of
// them.
func (t *target) hangsSince(a *attempt) time.Time {
	if t.Hung() || a.report == nil {
		return t.HungSince
	}
	return a.report.Since
}

// noteState keeps what later findings are judged by, and adds what else is known.
func (n *NFSLock) noteState(t *target, f *finding) {
	l := &t.server.lease
	if f.end != hung {
		t.recovers = time.Time{}
	}
	switch {
	case f.end == passed:
		l.lastOK = time.Now()
	case f.diagnosis == serverUnreachable:
		l.noteSilence(t.server.nfs)
	case f.reason == "":
		f.reason = n.stateReason(t, f.diagnosis)
	}
}

// findingOf names the cause of what an attempt met.
func (n *NFSLock) findingOf(t *target) finding {
	t.refine()
	e := n.evidenceOf(t, t.attempt)
	f := finding{attempt: *t.attempt}
	f.diagnosis = e.diagnose()
	if t.v4() {
		n.noteState(t, &f)
	}
	var hungFor time.Duration
	if t.Hung() {
		hungFor = time.Since(t.HungSince)
	}
	f.code = e.code(f.diagnosis, f.stuck, hungFor, n.grace)
	if f.code == result.OK {
		for _, took := range f.seconds {
			if took > n.slow {
				f.code = result.Slow
			}
		}
	}
	return f
}
