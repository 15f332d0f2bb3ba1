// Package lockready tells whether a host could take a lock on an NFS mount of version 2 or 3
// before it has one: whether something on it needs such locks, and whether rpc.statd and
// rpcbind are there, could be started, and run. It asks nobody over the network: who does
// adds the answers.
package lockready

import (
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/units"
)

// Service is what is known of one of the two daemons on this host.
type Service struct {
	Name      string
	Installed bool
	Unit      units.State // of the service
	Socket    units.State // that starts it when somebody connects; of rpcbind
	Running   bool        // a process of its name was seen
	Answer    serverpool.Answer
}

// startable reports whether somebody can have it started. Without systemd, or where it has no
// unit, mount.nfs starts the program itself (start-statd of nfs-utils).
func (s *Service) startable() bool {
	return s.Unit != units.Masked || s.Socket.Startable()
}

// Need is something on this host that takes locks on NFS mounts of version 2 or 3, or gives
// them.
type Need struct {
	By     string // fstab, unit, autofs, mount, exports, kubelet or expect_nfs
	What   string // a mount point, an export, a driver
	Server bool   // this host is the server
	// Running: rpc.statd has to run already, since nobody starts it for that. mount.nfs of
	// this host does before it mounts; who mounts in a container does not.
	Running bool
}

// Facts are what a judgment is made from.
type Facts struct {
	Needs          []Need
	Statd, RPCBind Service
	Hidden         bool // processes of others do not show
}

// Needed reports whether the host has to do with locks of NFS 2 and 3 at all.
func (f *Facts) Needed() bool { return len(f.Needs) > 0 }

// Asks reports whether rpcbind may be asked: where systemd listens in its place, a question
// would start it.
func (f *Facts) Asks() bool {
	return f.Needed() && (f.RPCBind.Running || f.Hidden || !f.RPCBind.Socket.Startable())
}

// By returns what needs the locks, in short.
func (f *Facts) By() string {
	var all []string
	for _, n := range f.Needs {
		all = append(all, n.By)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ",")
}

// Server reports whether the host serves such locks.
func (f *Facts) Server() bool {
	return slices.ContainsFunc(f.Needs, func(n Need) bool { return n.Server })
}

// Verdict is what the facts say.
type Verdict struct {
	Code   result.Code
	Cause  result.Cause
	Reason string
}

// Judge names what is in the way of a lock, the first thing first.
func (f *Facts) Judge() Verdict {
	statd, rpcbind := &f.Statd, &f.RPCBind
	fault := func(cause result.Cause, reason ...string) Verdict {
		return Verdict{result.Error, cause, strings.Join(slices.DeleteFunc(reason, func(s string) bool { return s == "" }), "; ")}
	}
	want := f.wants()
	switch {
	case statd.Answer.Answered():
		return Verdict{Code: result.OK, Cause: result.Healthy}
	case f.Asks() && !statd.Answer.Known && !rpcbind.Answer.Known:
		return Verdict{Code: result.Unchecked, Cause: result.Unknown, Reason: "rpcbind could not be asked"}
	case statd.Answer.TimedOut():
		return fault(result.StatdHung, want)
	case statd.Answer.Broken() && !statd.Answer.Unregistered():
		return fault(result.StatdDeadRegistered, want)
	case !statd.Installed && !statd.Running, !rpcbind.Installed && !rpcbind.Running && !rpcbind.Answer.Answered():
		return fault(result.StatdMissing, missing(statd, rpcbind), want)
	case rpcbind.Running && rpcbind.Answer.Broken():
		return fault(result.StatdDown, "rpcbind runs, and does not answer", want)
	case statd.Running:
		return fault(result.StatdDown, "rpc.statd runs, and rpcbind does not know it: it was restarted", want)
	case !statd.startable():
		return fault(result.StatdMasked, "rpc-statd.service is masked", want)
	case !rpcbind.startable() && !rpcbind.Running:
		return fault(result.StatdMasked, "rpcbind.service and rpcbind.socket are masked", want)
	case f.mustRun():
		return fault(result.StatdDown, "rpc.statd does not run", state(statd.Unit), want)
	}
	return Verdict{Code: result.OK, Cause: result.Healthy, Reason: "rpc.statd does not run yet; mount.nfs starts it with the first mount"}
}

func (f *Facts) mustRun() bool {
	return slices.ContainsFunc(f.Needs, func(n Need) bool { return n.Running })
}

// wants says who needs the locks: one of those that start nothing, if there is one.
func (f *Facts) wants() string {
	if !f.Needed() {
		return ""
	}
	need := f.Needs[0]
	if i := slices.IndexFunc(f.Needs, func(n Need) bool { return n.Running }); i >= 0 {
		need = f.Needs[i]
	}
	return strings.TrimSpace("needed by " + need.By + " " + need.What)
}

func missing(all ...*Service) string {
	var names []string
	for _, s := range all {
		if !s.Installed && !s.Running {
			names = append(names, s.Name)
		}
	}
	return "not installed: " + strings.Join(names, ", ")
}

// state says why a service does not run that is there.
func state(s units.State) string {
	switch s {
	case units.Enabled, units.Disabled, units.Absent:
		return "its unit is " + string(s)
	}
	return ""
}
