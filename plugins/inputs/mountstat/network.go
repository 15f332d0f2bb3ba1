package mountstat

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// serviceDead is the cause of a server whose host answers, while its file service does not.
func serviceDead(service serverpool.Service) cause {
	switch service {
	case serverpool.NFS:
		return serverRPCDead
	case serverpool.CephMon:
		return result.CephMonitorsDead
	}
	return result.ServerServiceDead
}

// causeOfServer is what is wrong with a server that did not answer when asked.
func causeOfServer(service serverpool.Service, a serverpool.Answer) cause {
	if a.Reached {
		return serviceDead(service)
	}
	return serverUnreachable
}

// smbClient is what the kernel's SMB client knew when it was last read.
type smbClient struct {
	*kit
	shares  []smbclient.Share
	readIn  uint64 // the last round in which it was
	reading bool
}

// loginInterval is how often a mount whose login is refused is checked.
const loginInterval = time.Minute

// awaitsLogin reports whether a target is left alone in this gather, because its server refuses
// the login. Each check can be one more try to log in, and directories lock accounts after some.
// Meanwhile what the client knows is read; it tells when the client has logged in.
func (c *smbClient) awaitsLogin(t *target) bool {
	t.leftAlone = t.found.cause == result.LoginRefused && !t.underWay && t.report == nil &&
		(t.share == smbclient.NoSession || t.share == smbclient.LoggingIn) && time.Since(t.submitted) < loginInterval
	if t.leftAlone {
		c.read()
	}
	return t.leftAlone
}

// read has a helper read what the SMB client knows, at most once in each round.
func (c *smbClient) read() {
	if c.reading || c.readIn == c.round {
		return
	}
	c.reading, c.readIn = true, c.round
	p := &prober.Plan{Timeout: c.policy.timeout / 4}
	p.SearchBelow(c.debugData)
	content := p.ReadFile(c.debugData, smbclient.MaxDebugData)
	c.host.Prober.Submit(prober.Check{Key: "mountstat smb client", Group: "smb client", Trusted: true, Independent: true, Plan: p}, func(r prober.Report) {
		c.mail.Post(func() {
			c.reading, c.shares = false, nil
			if r.Outcome == prober.Done && r.Failed() == nil {
				c.shares = smbclient.Parse(r.Step(content).Output)
			}
			c.reconsider()
		})
	})
}

// explainNetwork adds what part the network has in a fault.
func (c *causes) explainNetwork(t *target, f *finding) {
	switch f.cause {
	case result.LoginRefused, result.ClientEvicted:
		f.reason = "" // of the root's mode, which is not why
		if t.awaitsTicket(f) {
			f.reason = t.connections() + "; it waits for rpc.gssd of this host"
		}
	case serverUnreachable, serverRPCDead, result.ServerServiceDead, result.CephMonitorsDead, exportHangs, result.MountNeedsRemount:
		if t.report == nil || !f.code.Fault() {
			return
		}
		f.addReason(t.connections())
	}
	if daemons := slices.Concat(t.ceph.MDS, t.ceph.OSDs); f.hangs() && len(daemons) > 0 {
		f.addReason("the client waits for " + strings.Join(daemons, ", "))
	}
	if f.code.Fault() {
		f.addReason(c.kernelLog.clientSays(t, f.cause, c.targets))
	}
}

// connections tells the state of the connections to the target's server, or to the server whose
// answer tells.
func (t *target) connections() string {
	switch {
	case len(t.answers) == 0:
		return ""
	case len(t.answers) > 1 && t.Probed.SMB():
		return joinReasons(t.connectionsTo(t.telling), "SMB servers are at several ports of its address, and which one is the mount's can't be told")
	}
	return t.connectionsTo(t.telling)
}

// connectionsTo tells the state of the connections to one of the target's servers.
func (t *target) connectionsTo(server int) string {
	where, a := t.servers[server].Address.String(), t.answers[server]
	if t.nothingSent(server) {
		return fmt.Sprintf("nothing was sent to %s since its last answer", where)
	}
	return describeConnections(where, a)
}

// nothingSent reports whether this host has a connection to one of the target's servers, and has
// sent nothing there that is not answered.
func (t *target) nothingSent(server int) bool {
	a := &t.answers[server]
	c := &a.Connections
	return c.Known && a.Errno != serverpool.Foreign && c.Unacknowledged+c.Unconfirmed+c.Connecting+c.CloseWait+c.Unanswered == 0 && c.Established > 0 &&
		t.traffic.stats != nil && t.traffic.unanswered() == 0
}

// awaitsTicket reports whether an NFS mount hangs since this host's rpc.gssd gives no ticket: its
// call was not sent, while the server answers and there is a connection to it.
func (t *target) awaitsTicket(f *finding) bool {
	return f.hangs() && t.outstanding.known && t.outstanding.n <= 0 && t.answer.Answered() && t.nothingSent(t.telling)
}

// describeConnections describes this host's connections to a server.
func describeConnections(where string, a serverpool.Answer) string {
	c := a.Connections
	switch {
	case !c.Known:
		return ""
	case a.Errno == serverpool.Foreign:
		return fmt.Sprintf("something else listens at %s", where)
	case c.Unacknowledged > 0:
		return fmt.Sprintf("what was sent to %s is not acknowledged, after %d retransmissions", where, c.Retransmits)
	case c.Unconfirmed > 0:
		return fmt.Sprintf("what was sent to %s is not acknowledged so far", where)
	case c.Connecting > 0:
		return fmt.Sprintf("this host connects to %s, and has no answer", where)
	case c.CloseWait > 0:
		return fmt.Sprintf("%s has closed the connection", where)
	case c.Established == 0:
		return fmt.Sprintf("this host has no connection to %s", where)
	}
	return fmt.Sprintf("what was sent to %s is acknowledged, and not answered", where)
}

// causeAtClient is the cause that the client of a network file system knows, while its server
// answers.
func (c *causes) causeAtClient(t *target, f *finding) cause {
	if len(t.servers) == 0 {
		return ""
	}
	switch {
	case t.awaitsTicket(f):
		return result.LoginRefused
	case t.Probed.NFS():
		return c.kernelLog.causeOfLease(t, f)
	case t.Probed.SMB():
		return t.causeAtSMBClient(f)
	case t.Probed.NineP():
		return c.causeAtNinePClient(t, f)
	case t.Probed.Ceph():
		return t.causeInCeph(f)
	}
	return ""
}

// causeAtSMBClient is the cause that the client's state of the share tells. In all faults that were
// made (docs/FAULTS.md) that state was different for a refused login and for a removed share.
func (t *target) causeAtSMBClient(f *finding) cause {
	share := t.share
	if f.errno == "EAGAIN" { // of a client that has not connected again, or can't
		share = t.failing
	}
	switch {
	case share == smbclient.NoSession, share == smbclient.LoggingIn && (f.code == result.Denied || t.found.cause == result.LoginRefused):
		return result.LoginRefused // the client tries again, every 2 s
	case share == smbclient.NoTree, f.errno == "EREMCHG":
		return result.ShareGone
	}
	return ""
}

// causeAtNinePClient finds a mount that has lost its connection for good: the client never
// connects again (p9_conn_cancel, net/9p/trans_fd.c).
func (c *causes) causeAtNinePClient(t *target, f *finding) cause {
	known := &t.answer.Connections
	if f.errno == "ENOENT" {
		return staleExport // of the root, which is there while its directory is exported
	}
	if f.code != result.Error || !known.Known || !t.answer.Answered() {
		return ""
	}
	if known.CloseWait > 0 || known.Established < superblocksAt(t.servers[0], c.targets) {
		return result.MountNeedsRemount
	}
	return ""
}

// causeInCeph tells which of the cluster's daemons a helper waits for, while a monitor answers.
// statfs asks only the monitors (ceph_statfs, fs/ceph/super.c). All other calls ask the MDS, which
// itself waits for OSDs.
func (t *target) causeInCeph(f *finding) cause {
	waits := t.waits
	if waits == "" && t.report != nil {
		waits = t.report.Function
	}
	switch {
	case f.errno == "ESHUTDOWN", t.ceph.Evicted: // EBLOCKLISTED, include/linux/ceph/libceph.h
		return result.ClientEvicted
	case !f.hangs() || !t.answer.Answered():
		return ""
	case f.check == checkStatfs:
		return result.CephMonitorsDead
	case len(t.ceph.OSDs) > 0 && len(t.ceph.MDS) == 0, strings.HasPrefix(waits, "ceph_osdc_"), f.check == checkRead && f.call == readCanary.call:
		return result.CephOSDsDead
	}
	return result.CephMDSDead
}

// causeOfRefusal is why this host is not let in.
func (c *causes) causeOfRefusal(t *target, f *finding) cause {
	if t.Probed.NFS() && t.Probed.Kerberos() && t.worked[f.check] && (f.check == checkStatfs || f.check == checkStat) {
		return result.LoginRefused // no mode forbids these
	}
	if why := c.kernelLog.causeOfLease(t, f); why != "" {
		return why
	}
	switch {
	case t.Probed.SMB() && t.causeAtSMBClient(f) == result.LoginRefused:
		return result.LoginRefused
	case t.Probed.Ceph() && (t.ceph.Evicted || f.check != checkStatfs && t.worked[f.check]):
		return result.ClientEvicted // EACCES of a rejected session (__do_request, fs/ceph/mds_client.c)
	case t.Probed.FUSE() && t.Probed.ListingCosts() && t.worked[f.check]:
		// Object stores have no owners and modes: s3fs says EPERM for HTTP's 403
		// (S3fsCurl::RequestPerform, curl.cpp).
		return result.LoginRefused
	}
	return permission
}

// asksForAttributes reports whether the file system asks its server for the root's attributes,
// though AT_STATX_DONT_SYNC says not to: 9P without a cache does (v9fs_vfs_getattr_dotl,
// fs/9p/vfs_inode_dotl.c), and SMB after the attributes became invalid, as the check stat makes them
// (cifs_getattr, fs/smb/client/inode.c).
func asksForAttributes(mount *mounts.Mount) bool { return mount.NineP() || mount.SMB() }
