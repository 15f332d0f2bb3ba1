package mountstat

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

const (
	// maxDemands is how many entries of automounters that wait for their servers are kept.
	maxDemands = 256
	// maxDemandAge is for how long an entry is kept that nobody asks for any more.
	maxDemandAge = 5 * time.Minute
	// searchTimeout is how long the kernel may take to list connections.
	searchTimeout = time.Second
)

// demand is a mount for which an automounter has started a program that waits: somebody wants
// to use it.
type demand struct {
	mount     *mounts.Mount // that is to be made
	pid       int           // of the program
	program   string        // its name
	waits     bool          // the program did at the last look
	seen      time.Time     // when it last did
	found     []mounts.Server
	servers   []*server // of this gather
	searching bool
	// daemon is the process of the program that is connected to the server, for a mount whose
	// table will not tell its server; nil if none is known.
	daemon *fusedaemon.Daemon
	unmet  *shortfall // its server is dead; nil: not that is known
}

// findDemands looks for programs that automounters, if there are any, have started. It does so at
// the beginning of a gather, so that their servers answer within it.
func (a *automounts) findDemands(tasks *blockedTasks) {
	if !a.there {
		return
	}
	scan, _ := tasks.scan(a.targets, true) // summarize says what hinders it
	a.noteDemands(scan.Mounting, tasks.mountPrograms(slices.Concat(scan.Tasks, scan.Mounting)))
	a.findWaitingAutomounters()
}

// noteDemands notes what programs have been trying to mount on demand for some time, and asks
// their servers.
func (a *automounts) noteDemands(tasks []blocked.Task, programs map[int]*mounts.Mount) {
	for _, d := range a.demands {
		d.waits = false
	}
	for i := range tasks {
		mount := programs[tasks[i].PID]
		if mount == nil || !a.onDemand(mount.Mountpoint) || !a.selection.Fits(mount) {
			continue
		}
		d := a.demands[mount.Mountpoint]
		if d == nil || d.mount.Source != mount.Source {
			if len(a.demands) >= maxDemands {
				continue
			}
			d = &demand{mount: mount, found: mount.Servers()}
			a.demands[mount.Mountpoint] = d
		}
		d.waits, d.seen, d.pid = true, time.Now(), tasks[i].PID
		if d.program == "" || tasks[i].Comm != "mount" { // which waits for mount.nfs, say
			d.program = tasks[i].Comm
		}
	}
	a.askDemands()
}

// askDemands asks the servers of what is to be mounted on demand.
func (a *automounts) askDemands() {
	for _, d := range a.demands {
		switch d.servers = nil; {
		case len(d.found) > 0:
		case d.mount.Host() != "":
			a.findServer(d)
		case d.waits:
			a.findConnection(d)
		}
		for _, found := range d.found {
			s := a.servers.at(found, a.policy.timeout, nil)
			d.servers = append(d.servers, s)
			a.servers.ask(s, true)
		}
	}
}

// findServer finds the address of a server that has a name in the map; names are not resolved.
// Another mount of the server tells it. So does a connection that is being made, or was made and
// had no answer, unless it goes to a server of mounts that have another name for it.
func (a *automounts) findServer(d *demand) {
	ports := d.mount.PortsAskedFirst()
	if len(ports) == 0 || d.searching {
		return
	}
	if d.found = a.serversNamed(d.mount); len(d.found) > 0 {
		return
	}
	d.searching = true
	a.searching++
	go func() {
		lost := a.withoutAnswer(ports)
		a.mail.Post(func() {
			d.searching = false
			a.searching--
			lost = slices.DeleteFunc(lost, func(s sockdiag.TCP) bool { return a.hasMountsOf(s.Peer.Addr()) })
			if address, one := onlyPeer(lost); one {
				d.found = d.mount.ServersAt(address)
				a.askDemands()
			}
		})
	}()
}

// findConnection finds what a mount's program waits for if the program connects to its server
// itself, as those of FUSE do, before there is a mount.
func (a *automounts) findConnection(d *demand) {
	if d.searching {
		return
	}
	d.searching = true
	a.searching++
	done := sync.OnceFunc(func() { a.searching-- })
	timer := time.AfterFunc(min(daemonsTimeout, a.policy.timeout), func() { a.mail.Post(done) })
	pid := d.pid
	go func() {
		daemon, err := a.host.Daemons.OfProgram(pid)
		timer.Stop()
		a.mail.Post(func() {
			done()
			a.said.Error("connections of mount programs", err)
			if d.searching = false; daemon != nil {
				d.daemon = daemon
			}
		})
	}()
}

// maxAutomounters is how many automounters are looked at.
const maxAutomounters = 64

// findWaitingAutomounters finds NFS servers that have not answered an automounter itself:
// automount(8) asks such a server before it calls a program that mounts, and calls none if it has no
// answer (get_nfs_info, modules/replicated.c). Which of its entries is wanted does not show.
func (a *automounts) findWaitingAutomounters() {
	served := a.served()
	if len(served) == 0 || a.lookedFor || !a.looks.left() {
		return
	}
	a.lookedFor = true
	a.searching++
	pids := slices.Sorted(maps.Keys(served))
	go func() {
		began := time.Now()
		lost := slices.DeleteFunc(a.withoutAnswer(mounts.NFSPortsAskedFirst()), func(s sockdiag.TCP) bool {
			return s.State != sockdiag.SynSent && s.Waited <= serverpool.EvidenceAfter(a.policy.timeout)
		})
		took := time.Since(began)
		waiting := make(map[int]netip.Addr) // of the automounters the first
		var err error
		if len(lost) > 0 {
			waiting, err = a.holdersOf(lost, pids)
		}
		a.mail.Post(func() {
			a.lookedFor = false
			a.searching--
			a.looks.spend(took)
			a.said.Error("connections of automounters", err)
			for pid, server := range waiting {
				a.noteAutomounter(pid, served[pid], server)
			}
			a.askDemands()
		})
	}()
}

// served are the mounts of automounters, by the process that leads the process group.
func (a *automounts) served() map[int][]*mounts.Mount {
	all := make(map[int][]*mounts.Mount)
	for i := range a.table.Mounts {
		mount := &a.table.Mounts[i]
		if mount.FSType != "autofs" || mount.Hidden || !a.selection.Fits(mount) {
			continue
		}
		group, _ := mount.Option("pgrp")
		pid, err := strconv.Atoi(group)
		if err == nil && pid > 1 && (all[pid] != nil || len(all) < maxAutomounters) {
			all[pid] = append(all[pid], mount)
		}
	}
	return all
}

// holdersOf returns to which servers connections of processes go: of each, the lowest address.
func (a *automounts) holdersOf(connections []sockdiag.TCP, pids []int) (map[int]netip.Addr, error) {
	var inodes []uint32
	for i := range connections {
		inodes = append(inodes, connections[i].Inode)
	}
	holders, err := a.host.Daemons.Holders(pids, inodes)
	servers := make(map[int]netip.Addr)
	for i := range connections {
		pid, held := holders[connections[i].Inode]
		server := connections[i].Peer.Addr()
		if before, known := servers[pid]; held && (!known || server.Less(before)) {
			servers[pid] = server
		}
	}
	return servers, err
}

// noteAutomounter notes that an automounter waits for an NFS server, for one of its mounts.
func (a *automounts) noteAutomounter(pid int, served []*mounts.Mount, server netip.Addr) {
	path := served[0].Mountpoint
	d := a.demands[path]
	if d == nil {
		if len(a.demands) >= maxDemands {
			return
		}
		stat, _ := procfs.ReadText(filepath.Join(a.host.Proc, strconv.Itoa(pid), "stat"))
		comm, _ := processState(stat)
		d = &demand{mount: served[0], program: cmp.Or(comm, "its automounter"), found: mounts.NFSServersAt(server)}
		if len(served) > 1 {
			d.program += fmt.Sprintf(", of %d mounts one of which is wanted,", len(served))
		}
		a.demands[path] = d
	}
	d.waits, d.seen, d.pid = true, time.Now(), pid
}

// serversNamed are the servers of a mount that is to be made, at the address of another mount
// whose host has the same name.
func (a *automounts) serversNamed(mount *mounts.Mount) []mounts.Server {
	for i := range a.table.Mounts {
		if other := &a.table.Mounts[i]; other.FSType == mount.FSType && other.Host() == mount.Host() {
			if all := other.Servers(); len(all) > 0 {
				return mount.ServersAt(all[0].Address.Addr())
			}
		}
	}
	for _, d := range a.demands {
		if len(d.found) > 0 && d.mount.FSType == mount.FSType && d.mount.Host() == mount.Host() {
			return mount.ServersAt(d.found[0].Address.Addr())
		}
	}
	return nil
}

// hasMountsOf reports whether the server of some mount is at an address.
func (a *automounts) hasMountsOf(address netip.Addr) bool {
	return slices.ContainsFunc(a.targets, func(t *target) bool {
		return slices.ContainsFunc(t.servers, func(s *server) bool { return s.Address.Addr().Unmap() == address })
	})
}

// withoutAnswer returns this host's connections to ports on which nothing has ever come.
func (a *automounts) withoutAnswer(ports []uint16) (all []sockdiag.TCP) {
	for _, port := range ports {
		found, _ := a.host.Servers.Sockets.Search(port, func(s *sockdiag.TCP) bool { return s.State == sockdiag.SynSent || s.NeverAnswered }, searchTimeout)
		all = append(all, found...)
	}
	return all
}

// onlyPeer is the address that all connections go to, if it is only one.
func onlyPeer(connections []sockdiag.TCP) (address netip.Addr, one bool) {
	for i := range connections {
		peer := connections[i].Peer.Addr()
		if address.IsValid() && peer != address {
			return netip.Addr{}, false
		}
		address = peer
	}
	return address, address.IsValid()
}

// judgeDemands adds what can't be mounted because its server is dead.
func (a *automounts) judgeDemands(now map[string]*shortfall) {
	for path, d := range a.demands {
		before := d.unmet
		d.unmet = d.unmetByConnection(path)
		var answers []serverpool.Answer
		for _, s := range d.servers {
			answers = append(answers, s.answer)
		}
		var answer serverpool.Answer
		if len(answers) > 0 {
			answer = answers[tells(answers, false)]
		}
		switch {
		case !a.onDemand(path), !d.waits && (len(d.found) == 0 || time.Since(d.seen) > maxDemandAge || answer.Answered()):
			delete(a.demands, path)
			continue
		case answer.Broken():
			where := d.servers[0]
			d.unmet = &shortfall{
				expectation: expectation{path: path, source: d.mount.Source, fstype: d.mount.FSType},
				cause:       causeOfServer(where.Service, answer), answer: answer, server: where.Address.Addr().String(),
				why: joinReasons(fmt.Sprintf("%s waits for its server %s", mounts.Printable(d.program), where.Address), describeConnections(where.Address.String(), answer)),
			}
		case !answer.Known && len(d.found) > 0:
			d.unmet = before // a busy host does not ask in time
		}
		if d.unmet != nil && now[path] == nil {
			now[path] = d.unmet
		}
	}
}

// unmetByConnection tells that a server does not answer to which a program of a mount is itself
// connected; nil if that is not known.
func (d *demand) unmetByConnection(path string) *shortfall {
	if d.daemon == nil || !d.waits {
		return nil
	}
	f := &finding{code: result.Timeout}
	c := causeAtFUSEServer(d.mount, d.daemon, f)
	if c == "" {
		return nil
	}
	return &shortfall{expectation: expectation{path: path, source: d.mount.Source, fstype: d.mount.FSType}, cause: c,
		server: d.daemon.ServerAddress().Addr().String(), why: f.reason}
}

// server is the server of what can't be mounted.
func (d *demand) server() mounts.Server {
	if len(d.servers) > 0 {
		return d.servers[0].Server
	}
	return serverBehind(d.mount, d.daemon)
}

// sayUnmet logs that nothing can be mounted at a path.
func (a *automounts) sayUnmet(s *shortfall) {
	what := "nothing"
	if s.fstype == "autofs" && s.server != "" {
		what = "not everything" // as other servers may answer
	}
	a.log.Warnf("%s can be mounted at %s: %s; %s", what, mounts.Printable(s.path), s.cause, s.why)
}

// sayMet logs that a mount can be made again.
func (a *automounts) sayMet(s *shortfall) {
	lasted := time.Since(s.since).Round(time.Second)
	switch path := mounts.Printable(s.path); {
	case s.cause == result.AutomounterStopped:
		a.log.Infof("the automounter of %s is there again, after %v", path, lasted)
	case a.demands[s.path] == nil && a.onDemand(s.path):
		a.log.Infof("the server of %s answers, or nobody asks for it any more, after %v", path, lasted)
	default:
		a.log.Infof("%s can be mounted again, after %v", path, lasted)
	}
}
