package nfslock

import (
	"slices"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// kernel counts the kernel's messages about NFS and its locks, since boot or as
// far back as its log goes.
type kernel struct {
	readable bool
	lost     uint64 // records
	total    map[kmsg.Kind]int64
	of       map[mounts.NFSServer]map[kmsg.Kind]int64 // by the server they are about
	// unclaimed are the counts of messages that name no server of this host's mounts, by the
	// name: a server of that name may be mounted again.
	unclaimed map[string]map[kmsg.Kind]int64
	doubtful  []doubtful
}

// doubtful is a message about one of several servers of a name, none of which, or more than one
// of which, is known to be at fault yet.
type doubtful struct {
	kmsg.Message
	at time.Time
}

// maxNames bounds the names that are remembered, and the messages in doubt. doubtTimeout is how
// long a message stays in doubt.
const (
	maxNames     = 1000
	doubtTimeout = time.Minute
)

// read reads what is new in the log.
func (k *kernel) read(n *NFSLock) {
	news, readable := n.host.KernelLog(n.KernelLog, n)
	if !readable {
		return
	}
	if !k.readable {
		k.readable, k.total = true, make(map[kmsg.Kind]int64)
		k.of, k.unclaimed = make(map[mounts.NFSServer]map[kmsg.Kind]int64), make(map[string]map[kmsg.Kind]int64)
		for _, kind := range kmsg.Kinds() {
			k.total[kind] = 0
		}
	}
	k.lost = news.Lost
	for name := range k.unclaimed {
		if s := n.named(name); len(s) == 1 {
			for kind, count := range k.unclaimed[name] {
				k.add(s[0], kind, count)
			}
			delete(k.unclaimed, name)
		}
	}
	before := k.doubtful
	k.doubtful = nil
	for _, d := range before {
		if time.Since(d.at) < doubtTimeout {
			k.claim(n, d.Message, d.at)
		}
	}
	for _, r := range news.Records {
		k.note(n, r)
	}
}

func (k *kernel) note(n *NFSLock, r kmsg.Record) {
	message, found := kmsg.Parse(r.Text)
	if !found {
		return
	}
	k.total[message.Kind] += countOf(message)
	if message.Server != "" && message.Program != "statd" {
		k.claim(n, message, r.At)
	}
}

// countOf is how much a message counts: for lost locks, the number of locks.
func countOf(m kmsg.Message) int64 {
	if m.Kind == kmsg.LostLocks {
		return m.Number
	}
	return 1
}

// claim counts a message for the server it is about. It has no port. Of several servers of one
// name it is about the one at fault, which may be seen only when their locks are tried next.
func (k *kernel) claim(n *NFSLock, message kmsg.Message, at time.Time) {
	count := countOf(message)
	servers := n.named(message.Server)
	several := len(servers) > 1
	if several {
		servers = slices.DeleteFunc(servers, func(s *lockServer) bool { return !n.atFault(s) })
	}
	switch {
	case len(servers) == 1:
		k.add(servers[0], message.Kind, count)
		servers[0].lease.said(message, at)
	case several:
		if len(k.doubtful) < maxNames {
			k.doubtful = append(k.doubtful, doubtful{message, at})
		}
	case k.unclaimed[message.Server] != nil:
		k.unclaimed[message.Server][message.Kind] += count
	case len(k.unclaimed) < maxNames:
		k.unclaimed[message.Server] = map[kmsg.Kind]int64{message.Kind: count}
	}
}

// add counts messages about a server.
func (k *kernel) add(s *lockServer, kind kmsg.Kind, count int64) {
	key := s.key()
	if k.of[key] == nil {
		if len(k.of) == maxNames {
			return
		}
		k.of[key] = make(map[kmsg.Kind]int64)
	}
	k.of[key][kind] += count
}

// named returns the servers that the kernel calls by a name. There are several where tunnels to
// servers begin at ports of this host.
func (n *NFSLock) named(name string) (all []*lockServer) {
	for _, s := range n.servers {
		if s.names[name] {
			all = append(all, s)
		}
	}
	return all
}

// atFault reports whether the server did not answer when it was last asked, or a lock on it
// is at fault.
func (n *NFSLock) atFault(s *lockServer) bool {
	return s.nfs.Broken() || slices.ContainsFunc(n.targets, func(t *target) bool { return t.server == s && t.found.code.Fault() })
}

// fields adds the host's counts.
func (k *kernel) fields(fields map[string]any) {
	if !k.readable {
		return
	}
	for kind, count := range k.total {
		fields[kernelField(kind)] = count
	}
	fields["kernel_log_lost"] = int64(k.lost)
}

// serverFields adds the counts of a server.
func (k *kernel) serverFields(s *lockServer, fields map[string]any) {
	if !k.readable {
		return
	}
	for _, kind := range kmsg.Kinds() {
		fields[kernelField(kind)] = k.of[s.key()][kind]
	}
}
