package mountstat

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/cephclient"
	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// evidence is what is known about a target without touching it, beyond what its check met. The
// cause of a fault, its log line, the fields of metrics and reports are made from it.
type evidence struct {
	answers      []serverpool.Answer // of its servers, in their order
	answer       serverpool.Answer   // of them together
	telling      int                 // which of them it is
	share        smbclient.State     // what the SMB client last knew
	failing      smbclient.State     // the same, if the mount is one that the client fails
	ceph         cephclient.Client   // what the Ceph clients of its cluster last showed
	waits        string              // the kernel function in which a helper waits
	daemon       *fusedaemon.Daemon  // who serves it by FUSE, if that was found out in this round
	outstanding  count               // NFS calls that have no reply, of a mount with Kerberos that hangs
	requests     count               // which its FUSE daemon has not answered
	fsErrors     count               // that its file system has counted
	kernelErrors count               // messages about it and its devices
	messages     []*deviceLog        // about its devices
	stopped      string              // where sysfs says that f2fs has
}

// count is a number that can't be had everywhere.
type count struct {
	n     int64
	known bool
}

// addTo adds the count, if it is known, to a metric's fields.
func (c count) addTo(fields map[string]any, name string) {
	if c.known {
		fields[name] = c.n
	}
}

// collect gathers the evidence about a target.
func (c *causes) collect(t *target) {
	t.evidence = evidence{
		requests: c.fuseWaiting(t), fsErrors: count{n: t.disk.errors, known: t.disk.counts},
		messages: c.kernelLog.of(t), stopped: c.disks.stopped(t),
	}
	t.kernelErrors = c.kernelLog.count(t)
	for _, s := range t.servers {
		t.answers = append(t.answers, s.answer)
	}
	t.telling = tells(t.answers, t.Probed.SMB())
	if len(t.answers) > 0 {
		t.answer = t.answers[t.telling]
	}
	if t.Probed.FUSE() {
		t.daemon = c.daemons.found[connectionTo(t)]
	}
	if t.Probed.SMB() {
		t.share, t.failing = smbclient.Of(c.smb.shares, t.Probed.Source), smbclient.OfFailing(c.smb.shares, t.Probed.Source)
	}
	if t.Probed.Ceph() {
		var monitors []netip.AddrPort
		for _, s := range t.servers {
			monitors = append(monitors, s.Address)
		}
		t.ceph = cephclient.Of(c.ceph.all, monitors)
	}
	if r := t.report; r != nil && r.Outcome != prober.Done && t.Probed.NFS() && t.Probed.Kerberos() && t.namespace == nil {
		t.outstanding = t.traffic.outstanding(c.host.NFSStats(c.round, r.Since).All, t.Probed.Mountpoint)
	}
	if r := t.report; r != nil && r.PID != 0 && r.Outcome != prober.Done {
		t.waits = c.host.FunctionOf(r.PID)
	}
}

// tells says which of the answers of a target's servers stands for all. The monitors of a Ceph
// cluster stand in for each other, so it is the best of their answers, once all are known. Of the
// places where the server of an SMB mount can be it is the worst, since something is at fault.
func tells(answers []serverpool.Answer, worst bool) (which int) {
	for i, a := range answers {
		best := answers[which]
		switch {
		case a.Answered() && !worst, worst && a.Broken() && !best.Broken():
			return i
		case worst:
		case !a.Known || best.Known && a.Reached && !best.Reached:
			which = i
		}
	}
	return which
}

// reportOf is what is known about a target's fault when it begins.
func (m *Mountstat) reportOf(t *target) *fault.Report {
	f := &t.found
	fields := make(map[string]any)
	m.addFields(fields, t, f)
	r := &fault.Report{Input: "mountstat", Subject: t.Probed.Mountpoint, Began: t.FaultSince, Cause: string(f.cause), Fields: fields}
	for _, mount := range t.Mounts {
		r.Add("mount", mount.Line())
	}
	if ns := t.namespace; ns != nil {
		r.Add("container", ns.container)
	}
	for _, l := range layersOf(t) {
		r.Add("lies on", l.what+" "+l.path)
	}
	if t.disk.device != nil {
		r.Add("device", t.disk.describe())
	}
	for _, about := range t.messages {
		for _, kind := range slices.Sorted(maps.Keys(about.last)) {
			r.Add("the kernel, "+string(kind), about.last[kind].text)
		}
	}
	for i, a := range t.answers {
		s := t.servers[i]
		r.Add("server", fmt.Sprintf("%s %s: known %t, errno %q, reached %t, %v; %s", s.Service, s.Address, a.Known, a.Errno, a.Reached, a.Elapsed, t.connectionsTo(i)))
		r.Servers = append(r.Servers, s.Address.Addr())
	}
	if d := t.daemon; d != nil {
		r.Add("daemon", describeDaemon(d)+": "+strings.Join(d.Arguments, " "))
		r.Processes = append(r.Processes, d.PID)
		if address := d.ServerAddress(); address.IsValid() {
			r.Servers = append(r.Servers, address.Addr())
		}
	}
	if t.report != nil && f.hangs() {
		r.Helper = t.report.PID
	}
	return r
}
