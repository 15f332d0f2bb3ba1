package mountstat

import (
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// evidence is what is known of a target beside what its check met, and without touching it. The
// cause of a fault, what the log says of it, the fields of metrics and reports are made from it.
type evidence struct {
	answer       serverpool.Answer  // of its servers
	share        smbclient.State    // what the SMB client last knew
	waits        string             // the kernel function in which a helper waits
	daemon       *fusedaemon.Daemon // who serves it by FUSE, if that was found out in this round
	requests     count              // which its FUSE daemon has not answered
	fsErrors     count              // that its file system has counted
	kernelErrors count              // messages about it and its devices
	messages     []*deviceLog       // about its devices
	stopped      string             // where sysfs says that f2fs has
}

// count is a number that can't be had everywhere.
type count struct {
	n     int64
	known bool
}

// addTo adds it to a metric's fields.
func (c count) addTo(fields map[string]any, name string) {
	if c.known {
		fields[name] = c.n
	}
}

// collect gathers the evidence about a target.
func (m *Mountstat) collect(t *target) {
	t.evidence = evidence{
		answer: m.answerOf(t), daemon: m.daemonOf(t), requests: m.fuseWaiting(t), fsErrors: count{n: t.disk.errors, known: t.disk.counts},
		messages: m.logOf(t), stopped: m.stopped(t),
	}
	t.kernelErrors = m.countMessages(t)
	if t.Probed.SMB() {
		t.share = smbclient.Of(m.smb.shares, t.Probed.Source)
	}
	if r := t.report; r != nil && r.PID != 0 && r.Outcome != prober.Done {
		t.waits = m.host.FunctionOf(r.PID)
	}
}
