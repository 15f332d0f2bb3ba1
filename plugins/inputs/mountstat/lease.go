package mountstat

import (
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// leaseLog is what the kernel last said about this host's NFSv4 lease at a server. It names no
// port: of several servers of one name it is about the one whose mounts are at fault.
type leaseLog struct {
	inUse   message // another host has this one's identity
	refused message // there is none, with EPERM or EACCES
}

// noteLease notes a message about the lease at a server.
func (l *kernelLog) noteLease(m kmsg.Message, said message) {
	log, found := l.leases[m.Server]
	switch {
	case m.Server == "" || !found && len(l.leases) == maxLogDevices:
		return
	case m.Kind == kmsg.ClientIDInUse:
		log.inUse = said
	case m.RefusesLease():
		log.refused = said
	default:
		return
	}
	if l.leases == nil {
		l.leases = make(map[string]leaseLog)
	}
	l.leases[strings.Clone(m.Server)] = log
}

// causeOfLease is why an NFSv4 mount without a lease hangs or is refused. Without one, every call
// to the server fails with the state manager's error (nfs4_handle_reclaim_lease_error,
// fs/nfs/nfs4state.c), whatever the modes of files are.
func (l *kernelLog) causeOfLease(t *target, f *finding) cause {
	if t.Probed.FSType != "nfs4" || t.namespace != nil {
		return ""
	}
	log := l.leases[t.Probed.Host()]
	switch {
	case t.holds(log.inUse) && (f.hangs() || f.errno == "EPERM"): // the state manager has failed with that, too
		f.reason = log.inUse.quote()
		return result.ClientIDInUse
	case t.holds(log.refused) && (f.hangs() || f.code == result.Denied):
		f.reason = log.refused.quote()
		return result.LeaseRefused
	}
	return ""
}

// holds reports whether what the kernel said of a lease is evidence: the mount has not been
// well since.
func (t *target) holds(said message) bool {
	return said.text != "" && time.Since(said.at) < maxEvidenceAge && said.at.After(t.LastOK)
}
