package mountstat

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/sockdiag"
)

// connections are what this host's connections to a server of targets that must not be checked were
// at the last look.
type connections struct {
	looked    time.Time // at them; zero: never
	connected int       // how many are established
	most      int       // how many were at some look
	closed    bool      // the server has closed one, and its client has not
	lost      bool      // a mount has lost its own
	missed    int       // looks in succession at which one of 9P was missing
	// owing are those on which something that was sent has no answer, by this host's end: since
	// when at least. waited is the longest of these times.
	owing  map[netip.AddrPort]time.Time
	waited time.Duration
}

// lookAtConnections has the kernel list this host's connections to the servers of targets that must
// not be checked. It sends no packet. done is called if they became known.
func (all *servers) lookAtConnections(targets []*target, done func()) {
	byPort := make(map[uint16][]*server)
	for _, t := range targets {
		if !t.connectionsLooked() {
			continue
		}
		for _, s := range t.servers {
			if port := s.Address.Port(); !slices.Contains(byPort[port], s) {
				byPort[port] = append(byPort[port], s)
				s.waited, s.lost = 0, false
			}
		}
	}
	if len(byPort) == 0 || all.looking || !all.looks.left() {
		return
	}
	all.looking = true
	go func() {
		began := time.Now()
		found, known := make(map[uint16][]sockdiag.TCP), true
		for port, servers := range byPort {
			some, told := all.host.Servers.Sockets.Search(port, func(c *sockdiag.TCP) bool {
				return slices.ContainsFunc(servers, func(s *server) bool { return s.hasPeer(c) })
			}, all.policy.timeout/4-time.Since(began))
			found[port], known = some, known && told
		}
		took := time.Since(began)
		all.mail.Post(func() {
			all.looking = false
			all.looks.spend(took)
			if !known {
				return
			}
			for port, servers := range byPort {
				for _, s := range servers {
					s.note(slices.DeleteFunc(slices.Clone(found[port]), func(c sockdiag.TCP) bool { return !s.hasPeer(&c) }), began)
					s.noteLost(targets)
				}
			}
			done()
		})
	}()
}

// superblocksAt is how many file systems the targets have of a server.
func superblocksAt(s *server, targets []*target) int {
	all := make(map[string]struct{})
	for _, t := range targets {
		if slices.Contains(t.servers, s) {
			all[t.Probed.Superblock()] = struct{}{}
		}
	}
	return len(all)
}

// note notes what the connections are at a look.
func (c *connections) note(found []sockdiag.TCP, at time.Time) {
	before, sinceLook := c.owing, at.Sub(c.looked)
	*c = connections{looked: at, most: c.most, missed: c.missed, owing: make(map[netip.AddrPort]time.Time)}
	for i := range found {
		s := &found[i]
		switch s.State {
		case sockdiag.Established:
			c.connected++
		case sockdiag.CloseWait:
			c.closed = true
		}
		if s.Waited == 0 {
			continue
		}
		since := at.Add(-s.Waited)
		if first, known := before[s.Local]; known && s.Received > sinceLook {
			since = first // something was sent since, and nothing has come
		}
		c.owing[s.Local] = since
		c.waited = max(c.waited, at.Sub(since))
	}
	c.most = max(c.most, c.connected)
}

// noteLost notes whether a target has lost the connection that it had. A client of 9P has one for
// each file system; those of others connect again, or go on with another monitor.
func (s *server) noteLost(targets []*target) {
	if s.Service != serverpool.NineP {
		s.lost = s.connected == 0 && s.most > 0
		return
	}
	needed := superblocksAt(s, targets)
	s.missed++
	if s.connected >= min(s.most, needed) {
		s.missed = 0
	}
	s.lost = s.connected < needed && s.lostForGood(s.closed)
}

// lostForGood reports whether a connection of 9P that is missing was lost: the server has closed it,
// or it is missing at a second look. At one look its mount may just be being unmounted.
func (c *connections) lostForGood(closed bool) bool { return closed || c.missed > 1 }

// budget keeps what takes the kernel long on a host with very many connections to a hundredth of the
// time.
type budget struct{ due time.Time }

func (b *budget) left() bool { return !time.Now().Before(b.due) }

func (b *budget) spend(took time.Duration) { b.due = time.Now().Add(100 * took) }
