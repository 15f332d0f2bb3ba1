package mountstat

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
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
func (m *Mountstat) findDemands() {
	if !m.automounted {
		return
	}
	scan, _ := m.blocked.scan(m.round, m.targets, true) // summarize says what hinders it
	m.noteDemands(scan.Mounting, m.blocked.mountPrograms(slices.Concat(scan.Tasks, scan.Mounting)))
}

// noteDemands notes what programs have been trying to mount on demand for some time, and asks
// their servers.
func (m *Mountstat) noteDemands(tasks []blocked.Task, programs map[int]*mounts.Mount) {
	for _, d := range m.demands {
		d.waits = false
	}
	for i := range tasks {
		mount := programs[tasks[i].PID]
		if mount == nil || !m.onDemand(mount.Mountpoint) || !m.selection.Fits(mount) {
			continue
		}
		d := m.demands[mount.Mountpoint]
		if d == nil || d.mount.Source != mount.Source {
			if len(m.demands) >= maxDemands {
				continue
			}
			d = &demand{mount: mount, found: mount.Servers()}
			m.demands[mount.Mountpoint] = d
		}
		d.waits, d.seen, d.pid = true, time.Now(), tasks[i].PID
		if d.program == "" || tasks[i].Comm != "mount" { // which waits for mount.nfs, say
			d.program = tasks[i].Comm
		}
	}
	m.askDemands()
}

// askDemands asks the servers of what is to be mounted on demand.
func (m *Mountstat) askDemands() {
	for _, d := range m.demands {
		switch d.servers = nil; {
		case len(d.found) > 0:
		case d.mount.Host() != "":
			m.findServer(d)
		case d.waits:
			m.findConnection(d)
		}
		for _, found := range d.found {
			s := m.servers.at(found, m.policy.timeout, nil)
			d.servers = append(d.servers, s)
			m.servers.ask(s, true)
		}
	}
}

// findServer finds the address of a server that has a name in the map; names are not resolved.
// Another mount of the server tells it. So does a connection that is being made, or was made and
// had no answer, unless it goes to a server of mounts that have another name for it.
func (m *Mountstat) findServer(d *demand) {
	ports := d.mount.PortsAskedFirst()
	if len(ports) == 0 || d.searching {
		return
	}
	if d.found = m.serversNamed(d.mount); len(d.found) > 0 {
		return
	}
	d.searching = true
	m.searching++
	go func() {
		lost := m.withoutAnswer(ports)
		m.mail.Post(func() {
			d.searching = false
			m.searching--
			lost = slices.DeleteFunc(lost, func(s sockdiag.TCP) bool { return m.hasMountsOf(s.Peer.Addr()) })
			if address, one := onlyPeer(lost); one {
				d.found = d.mount.ServersAt(address)
				m.askDemands()
			}
		})
	}()
}

// findConnection finds what a mount's program waits for if the program connects to its server
// itself, as those of FUSE do, before there is a mount.
func (m *Mountstat) findConnection(d *demand) {
	if d.searching {
		return
	}
	d.searching = true
	m.searching++
	done := sync.OnceFunc(func() { m.searching-- })
	timer := time.AfterFunc(min(daemonsTimeout, m.policy.timeout), func() { m.mail.Post(done) })
	pid := d.pid
	go func() {
		daemon, err := m.host.Daemons.OfProgram(pid)
		timer.Stop()
		m.mail.Post(func() {
			done()
			m.said.Error("connections of mount programs", err)
			if d.searching = false; daemon != nil {
				d.daemon = daemon
			}
		})
	}()
}

// serversNamed are the servers of a mount that is to be made, at the address of another mount
// whose host has the same name.
func (m *Mountstat) serversNamed(mount *mounts.Mount) []mounts.Server {
	for i := range m.table.Mounts {
		if other := &m.table.Mounts[i]; other.FSType == mount.FSType && other.Host() == mount.Host() {
			if all := other.Servers(); len(all) > 0 {
				return mount.ServersAt(all[0].Address.Addr())
			}
		}
	}
	for _, d := range m.demands {
		if len(d.found) > 0 && d.mount.FSType == mount.FSType && d.mount.Host() == mount.Host() {
			return mount.ServersAt(d.found[0].Address.Addr())
		}
	}
	return nil
}

// hasMountsOf reports whether the server of some mount is at an address.
func (m *Mountstat) hasMountsOf(address netip.Addr) bool {
	return slices.ContainsFunc(m.targets, func(t *target) bool {
		return slices.ContainsFunc(t.servers, func(s *server) bool { return s.Address.Addr().Unmap() == address })
	})
}

// withoutAnswer returns this host's connections to ports on which nothing has ever come.
func (m *Mountstat) withoutAnswer(ports []uint16) (all []sockdiag.TCP) {
	for _, port := range ports {
		found, _ := m.host.Servers.Sockets.Search(port, func(s *sockdiag.TCP) bool { return s.State == sockdiag.SynSent || s.NeverAnswered }, searchTimeout)
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
func (m *Mountstat) judgeDemands(now map[string]*shortfall) {
	for path, d := range m.demands {
		before := d.unmet
		d.unmet = m.unmetByConnection(path, d)
		var answers []serverpool.Answer
		for _, s := range d.servers {
			answers = append(answers, s.answer)
		}
		var a serverpool.Answer
		if len(answers) > 0 {
			a = answers[tells(answers, false)]
		}
		switch {
		case !m.onDemand(path), !d.waits && (len(d.found) == 0 || time.Since(d.seen) > maxDemandAge || a.Answered()):
			delete(m.demands, path)
			continue
		case a.Broken():
			where := d.servers[0]
			d.unmet = &shortfall{
				expectation: expectation{path: path, source: d.mount.Source, fstype: d.mount.FSType},
				cause:       causeOfServer(where.Service, a), answer: a, server: where.Address.Addr().String(),
				why: joinReasons(fmt.Sprintf("%s waits for its server %s", mounts.Printable(d.program), where.Address), describeConnections(where.Address.String(), a)),
			}
		case !a.Known && len(d.found) > 0:
			d.unmet = before // a busy host does not ask in time
		}
		if d.unmet != nil && now[path] == nil {
			now[path] = d.unmet
		}
	}
}

// unmetByConnection tells that a server does not answer to which a program of a mount is itself
// connected; nil if that is not known.
func (m *Mountstat) unmetByConnection(path string, d *demand) *shortfall {
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
func (m *Mountstat) sayUnmet(s *shortfall) {
	m.Log.Warnf("nothing can be mounted at %s: %s; %s", mounts.Printable(s.path), s.cause, s.why)
}

// sayMet logs that a mount can be made again.
func (m *Mountstat) sayMet(s *shortfall) {
	lasted := time.Since(s.since).Round(time.Second)
	switch path := mounts.Printable(s.path); {
	case s.cause == result.AutomounterStopped:
		m.Log.Infof("the automounter of %s is there again, after %v", path, lasted)
	case m.demands[s.path] == nil && m.onDemand(s.path):
		m.Log.Infof("the server of %s answers, or nobody asks for it any more, after %v", path, lasted)
	default:
		m.Log.Infof("%s can be mounted again, after %v", path, lasted)
	}
}
