package nfslock

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// step is the purpose of a step of a plan.
type step int

const (
	preparing   step = iota // the helper
	findingRoot             // by O_PATH: it takes no answer from the server
	examiningRoot
	reachingServer // can always be killed on NFS
	findingCanary  // by O_PATH: opens nothing
	examiningCanary
	openingCanary
	changingMode
	checkingType // fails on everything but files and block devices
	namingCanary // as the server knows it
	askingForLock
	settingLock
	releasingLock
	closingCanary
	openingOwn
	sharing
	endingShared
	excluding
	endingExclusive
	closingOwn
)

// steps tells how each step shows in metrics: in the fields hangs_in and failed_call, and by
// the field of its time.
var steps = [...]struct {
	name  string
	stage stage
	field string
}{
	findingRoot:     {name: "open"},
	examiningRoot:   {name: "statx"},
	reachingServer:  {name: "fstatfs", field: "fstatfs_seconds"},
	findingCanary:   {name: "find", stage: opening},
	examiningCanary: {name: "examine", stage: opening},
	openingCanary:   {"openat", opening, "open_seconds"},
	changingMode:    {name: "fchmod", stage: opening},
	checkingType:    {name: "readahead", stage: opening},
	namingCanary:    {name: "name_to_handle_at", stage: opening},
	askingForLock:   {"getlk", asking, "getlk_seconds"},
	settingLock:     {"setlk", locking, "setlk_seconds"},
	releasingLock:   {"unlock", unlocking, "unlock_seconds"},
	closingCanary:   {"close", unlocking, "close_seconds"},
	openingOwn:      {name: "openat own", stage: flocking},
	sharing:         {"flock_sh", flocking, "flock_sh_seconds"},
	endingShared:    {name: "flock_un", stage: flocking},
	excluding:       {"flock_ex", flocking, "flock_ex_seconds"},
	endingExclusive: {name: "flock_un ex", stage: flocking},
	closingOwn:      {name: "close", stage: unlocking},
}

// plan is a prober's plan that knows the purpose of its steps.
type plan struct {
	prober.Plan
	steps []step // by their index
}

// add appends a step.
func (p *plan) add(what step, call prober.Step) int {
	i := p.Add(call.Named(steps[what].name))
	p.mark(what)
	return i
}

// mark records the purpose of the steps that were appended since the last call.
func (p *plan) mark(what step) {
	for len(p.steps) < len(p.Steps) {
		p.steps = append(p.steps, what)
	}
}

// of returns the purpose of a step that has ended.
func (p *plan) of(r *prober.StepResult) step { return p.steps[r.Index] }

// result returns how the step with a purpose has ended, or nil.
func (p *plan) result(r *prober.Report, what step) *prober.StepResult {
	return r.Step(slices.Index(p.steps, what))
}

// failed returns the step whose failure has ended the plan, or nil.
func (p *plan) failed(r *prober.Report) *prober.StepResult {
	for i := range r.Steps {
		if s := &r.Steps[i]; s.Errno != 0 && !p.Steps[s.Index].IsOptional() {
			return s
		}
	}
	return nil
}

// hangsAt returns the stage in which a helper hangs. If the helper runs another plan,
// such as that of another table, only the name of its step is known.
func (p *plan) hangsAt(r *prober.Report) stage {
	if r.HangsAt >= 0 && r.HangsAt < len(p.steps) {
		return steps[p.steps[r.HangsAt]].stage
	}
	for i := range steps {
		if r.HangsIn != "" && steps[i].name == r.HangsIn {
			return steps[i].stage
		}
	}
	return reaching
}

// access is a way to open the canary.
type access struct {
	asItsOwner bool // as the canary's owner, not the root's
	readOnly   bool // for a read lock, which takes the same way to the server
}

// accesses returns the ways in the order in which they are tried. As the root's owner, a canary
// of mode 0666 can be opened in spite of root_squash.
func accesses() []access {
	return []access{{}, {asItsOwner: true}, {readOnly: true}, {asItsOwner: true, readOnly: true}}
}

// newPlan makes a plan with the steps that lead to the root, make the helper its owner (or
// another user), and ask the server for a sign of life.
func (n *NFSLock) newPlan(t *target, way access) (p *plan, root int) {
	const most = 25
	p = &plan{Plan: prober.Plan{Timeout: time.Until(t.deadline), Killable: t.Probed.NFS(), Steps: make([]prober.Step, 0, most)}, steps: make([]step, 0, most)}
	p.SearchBelow(n.host.MountPrefix)
	root = p.add(findingRoot, prober.OpenPath(prober.CWD(), n.host.MountPrefix+t.Probed.Mountpoint, 0))
	owner := p.add(examiningRoot, prober.Statx(prober.ResultOf(root), "", unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID|unix.STATX_GID|unix.STATX_MNT_ID))
	switch {
	case !n.becomes, t.Probed.Kerberos():
		// The server knows a user by a ticket, and only root has that of the machine.
	case way.asItsOwner:
		p.Become(t.canary.uid, t.canary.gid)
	case !t.canary.rootOwned || !n.superuser:
		p.BecomeOwner(owner)
	}
	p.mark(preparing)
	p.add(reachingServer, prober.Fstatfs(prober.ResultOf(root)).WithoutOutput())
	return p, root
}

// openStep opens a file of the mount. Links are not followed: the last one because of
// O_NOFOLLOW, those before it because of openat2(2). Linux has openat2 since 5.6, and only a
// canary in a subdirectory needs it.
func openStep(root int, file string, flags int) prober.Step {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK
	}
	if !strings.ContainsRune(file, '/') {
		return prober.Open(prober.ResultOf(root), file, flags, 0o666)
	}
	how := unix.OpenHow{Flags: uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o666
	}
	return prober.OpenAt2(prober.ResultOf(root), file, &how)
}

// open appends the steps that open a file of the mount, or make it.
func (p *plan) open(what step, root int, file string, flags int) int {
	if flags&unix.O_EXCL != 0 {
		return p.add(what, openStep(root, file, flags))
	}
	name := steps[what].name
	i := p.OpenRegular(openStep(root, file, unix.O_PATH).Named(name), openStep(root, file, flags).Named(name))
	p.mark(what)
	return i
}

// newLookPlan is the plan that finds out what the canary is. It opens nothing, so
// its helper can be killed on NFS whatever happens.
func (n *NFSLock) newLookPlan(t *target) *plan {
	p, root := n.newPlan(t, access{})
	file := p.add(findingCanary, openStep(root, t.policy.canary, unix.O_PATH))
	p.add(examiningCanary, prober.Statx(prober.ResultOf(file), "", unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS))
	return p
}

// newLockPlan is the plan that takes locks and gives them back at once, to keep the window short
// in which its helper could survive SIGKILL. Everything before it is
// killable on NFS, and so is a lock that is waited for.
func (n *NFSLock) newLockPlan(t *target) *plan {
	way := n.accessOf(t)
	p, root := n.newPlan(t, way)
	p.Killable = p.Killable && t.killable
	mode, kind := unix.O_RDWR, int16(unix.F_WRLCK)
	if way.readOnly {
		mode, kind = unix.O_RDONLY, unix.F_RDLCK
	}
	mode |= t.Probed.WithoutDelegation()
	if t.canary.create {
		// Not a file that has appeared since: it may be somebody's link to a file
		// whose mode is not ours to change.
		mode |= unix.O_CREAT | unix.O_EXCL
	}
	file := prober.ResultOf(p.open(openingCanary, root, t.policy.canary, mode))
	if t.canary.create {
		p.add(changingMode, prober.Chmod(file, 0o666).Optional().Silent())
	}
	// The file may have been replaced since that look. readahead(2) refuses what
	// can't be mapped, and behind the end of a file it does nothing.
	p.add(checkingType, prober.ReadAhead(file, 1<<60, 1).Silent())
	if version, _ := t.Probed.Option("vers"); t.canary.retried && t.nlm && version == "3" {
		p.add(namingCanary, prober.FileHandle(file).Optional()) // the server may say who has it
	}
	start := n.rangeOf(t)
	p.add(askingForLock, prober.Lock(file, unix.F_GETLK, &unix.Flock_t{Type: kind, Start: start, Len: 1}))
	p.add(settingLock, prober.Lock(file, unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: 1}))
	p.add(releasingLock, prober.Lock(file, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: start, Len: 1}))
	p.add(closingCanary, prober.Close(file))
	if !way.readOnly {
		n.addFlock(p, root, t)
	}
	return p
}

// addFlock appends flock on a file that no other host locks: on NFS it takes the
// whole file, and would meet the other hosts' ranges of the canary. Where there
// is no such file, flock is left out, or the file is made if that is wanted. It is not made by
// each probe: O_CREAT hangs on a frozen export even if the file exists, and takes one of the
// server's threads. A file that the host has made under an earlier name is then removed.
func (n *NFSLock) addFlock(p *plan, root int, t *target) {
	mode := unix.O_RDWR | t.Probed.WithoutDelegation()
	if t.canary.createOwn {
		mode |= unix.O_CREAT | unix.O_EXCL
		if n.formerHostname != "" {
			p.Add(prober.Unlink(prober.ResultOf(root), ownFile(t, n.formerHostname)).Optional().Silent())
		}
	}
	own := prober.ResultOf(p.open(openingOwn, root, ownFile(t, n.hostname), mode))
	p.add(sharing, prober.Flock(own, unix.LOCK_SH|unix.LOCK_NB))
	p.add(endingShared, prober.Flock(own, unix.LOCK_UN))
	p.add(excluding, prober.Flock(own, unix.LOCK_EX|unix.LOCK_NB))
	p.add(endingExclusive, prober.Flock(own, unix.LOCK_UN))
	p.add(closingOwn, prober.Close(own).Silent())
}

// ownFile is the file that only the host with that name locks.
func ownFile(t *target, hostname string) string { return t.policy.canary + "." + hostname }

// accessOf is the way to open the canary.
func (n *NFSLock) accessOf(t *target) access {
	way := accesses()[t.canary.access]
	way.readOnly = way.readOnly || t.Probed.ReadOnly()
	return way
}

// nextAccess chooses another way to open the canary, if there is one.
func (n *NFSLock) nextAccess(t *target) bool {
	c, tried := &t.canary, n.accessOf(t)
	for c.access+1 < len(accesses()) {
		c.access++
		way := n.accessOf(t)
		if way.asItsOwner && (!n.becomes || c.uid == 0 || t.Probed.Kerberos()) || way == tried {
			continue
		}
		return true
	}
	c.access = 0
	return false
}

// rangeOf is the first byte of this host's own range, which is one
// byte long. Each target has its own, since a host may have mounted an export
// twice. Two ranges are the same with a probability of 2^-61. NFS version 2 has offsets
// of 31 bits.
func (n *NFSLock) rangeOf(t *target) int64 {
	hash := fnv.New64a()
	hash.Write(binary.BigEndian.AppendUint64(nil, n.hostHash))
	hash.Write([]byte(t.ID))
	if version, _ := t.Probed.Option("vers"); version == "2" {
		return int64(hash.Sum64()%(1<<30)) + 1
	}
	return int64(hash.Sum64()%(1<<61)) + 1<<61
}

// findHost tells this host from others. Its machine-id and name may be those of another host, if
// machines were cloned. What the kernel has chosen at random when it booted is its own, and on one
// kernel network namespaces differ.
func (n *NFSLock) findHost() {
	const length = 64
	id, err := n.host.ReadFile(filepath.Join(n.host.Etc, "machine-id"), length, min(n.timeout/2, time.Second)) // the fork server may not be there yet
	if err != nil {
		n.Log.Debugf("the host's name is what tells its locks from those of other hosts: %v", err)
	}
	boot, err := procfs.ReadText("/proc/sys/kernel/random/boot_id")
	n.said.Error("boot_id", err)
	network, _ := os.Readlink("/proc/self/ns/net")
	n.hostHash = hashOf(string(id), n.hostname, boot, network)
}

func hashOf(parts ...string) uint64 {
	hash := fnv.New64a()
	for _, part := range parts {
		hash.Write([]byte(part + "\x00"))
	}
	return hash.Sum64()
}
