package mountstat

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blocked"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

const (
	// maxDemands is how many entries of automounters are kept that wait for their servers.
	maxDemands = 256
	// demandAge is for how long one is kept that nobody asks for any more.
	demandAge = 5 * time.Minute
	// searchLimit is how long the kernel may take to list connections.
	searchLimit = time.Second
)

// demand is a mount that an automounter has called a program for, which waits: somebody wants
// what is there.
type demand struct {
	mount     *mounts.Mount // that is to be made
	program   string        // its name
	waits     bool          // the program did at the last look
	seen      time.Time     // when it last did
	found     []mounts.Server
	servers   []*server // of this gather
	searching bool
	unmet     *shortfall // its server is dead; nil: not that is known
}

// noteDemands notes what programs have been about to mount on demand for some time, and asks
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
		d.waits, d.seen = true, time.Now()
		if d.program == "" || tasks[i].Comm != "mount" { // which waits for mount.nfs, say
			d.program = tasks[i].Comm
		}
	}
	m.askDemands()
}

// onDemand reports whether an automounter is to mount something at a path, and has not.
func (m *Mountstat) onDemand(path string) bool {
	holder := m.table.Holding(path)
	return holder != nil && holder.FSType == "autofs"
}

// askDemands asks the servers of what is to be mounted on demand.
func (m *Mountstat) askDemands() {
	for _, d := range m.demands {
		if d.servers = nil; len(d.found) == 0 {
			m.findServer(d)
		}
		for _, found := range d.found {
			s := m.serverOf(found, m.policy.timeout, nil)
			d.servers = append(d.servers, s)
			m.ask(s, true)
		}
	}
}

// findServer finds the address of a server that has a name in the map: names are not resolved.
// Another mount of the server tells it, or the connection that is being made.
func (m *Mountstat) findServer(d *demand) {
	host := d.mount.Host()
	meant := d.mount.ServersAt(netip.IPv4Unspecified())
	if host == "" || len(meant) == 0 || d.searching {
		return
	}
	for i := range m.table.Mounts {
		if mount := &m.table.Mounts[i]; mount.FSType == d.mount.FSType && mount.Host() == host {
			if all := mount.Servers(); len(all) > 0 {
				d.found = d.mount.ServersAt(all[0].Address.Addr())
				return
			}
		}
	}
	d.searching = true
	m.asking++
	go func() {
		lost, _ := m.sockets.Search(meant[0].Address.Port(), func(s *sockdiag.TCP) bool { return s.State == sockdiag.SynSent }, searchLimit)
		m.mail.Post(func() {
			d.searching = false
			m.asking--
			if address, one := onlyPeer(lost); one {
				d.found = d.mount.ServersAt(address)
				m.askDemands()
			}
		})
	}()
}

// onlyPeer is the address that all connections are made to.
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

// judgeDemands adds what can't be mounted since its server is dead.
func (m *Mountstat) judgeDemands(now map[string]*shortfall) {
	for path, d := range m.demands {
		before := d.unmet
		d.unmet = nil
		var answers []serverpool.Answer
		for _, s := range d.servers {
			answers = append(answers, s.answer)
		}
		a := together(answers)
		switch {
		case !m.onDemand(path), !d.waits && time.Since(d.seen) > demandAge, !d.waits && a.Answered():
			delete(m.demands, path)
			continue
		case a.Broken():
			where := d.servers[0]
			d.unmet = &shortfall{
				expectation: expectation{path: path, source: d.mount.Source, fstype: d.mount.FSType},
				cause:       causeOfServer(where.Service, a), answer: a, server: where.Address.Addr().String(),
				why: joinReasons(fmt.Sprintf("%s waits for its server %s", mounts.Printable(d.program), where.Address), describeConnections(where.Address.String(), a)),
			}
		case !a.Known:
			d.unmet = before // a busy host does not ask in time
		}
		if d.unmet != nil && now[path] == nil {
			now[path] = d.unmet
		}
	}
}

// sayUnmet logs that nothing can be mounted at a path.
func (m *Mountstat) sayUnmet(s *shortfall) {
	m.Log.Warnf("nothing can be mounted at %s: %s; %s", mounts.Printable(s.path), s.cause, s.why)
}

// sayMet logs that this is over.
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
