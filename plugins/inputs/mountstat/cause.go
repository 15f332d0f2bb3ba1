package mountstat

import (
	"cmp"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// cause is why a file system is at fault: package result has the evidence for
// each, its meaning and its cure.
type cause = result.Cause

const (
	serverUnreachable = result.ServerUnreachable
	serverRPCDead     = result.ServerRPCDead
	exportHangs       = result.ExportHangs
	staleExport       = result.StaleExport
	fuseDaemonSilent  = result.FUSEDaemonSilent
	fuseDaemonDead    = result.FUSEDaemonDead
	frozen            = result.Frozen
	deviceHangs       = result.DeviceHangs
	noSpace           = result.NoSpace
	readOnly          = result.ReadOnly
	permission        = result.Permission
	ioError           = result.IOError
	notMounted        = result.NotMounted
	unknown           = result.Unknown
)

// causes finds out why file systems are at fault. Without touching them it collects what the
// kernel, servers and daemons say; it changes nothing but what is known of a target.
type causes struct {
	*kit
	*inventory
	disks     *disks
	kernelLog *kernelLog
	smb       *smbClient
	ceph      *cephClients
	daemons   *daemons
	guards    *guards
}

// explain finds the cause of a fault, and what else can be said about it.
func (c *causes) explain(t *target, f *finding) {
	f.cause = c.causeOf(t, f)
	t.explainDisk(f)
	c.explainNetwork(t, f)
}

// causeOf derives the cause of a fault from its kind, and from what can be
// found out without touching the mount.
func (c *causes) causeOf(t *target, f *finding) cause {
	switch f.code {
	case result.Denied:
		return c.causeOfRefusal(t, f)
	case result.Stale:
		if t.Probed.Network() {
			return staleExport
		}
		return ioError
	case result.Error:
		return c.causeOfError(t, f)
	case result.Timeout, result.Stuck:
		if f.call == stepOpen {
			return c.causeAbove(t, f)
		}
		return c.causeOfHang(t, f)
	}
	return ""
}

func (c *causes) causeOfError(t *target, f *finding) cause {
	if !t.Probed.FUSE() {
		if why := c.causeBelow(t, f); why != "" {
			return why
		}
	}
	if f.errno == "" || f.check == checkDevice {
		if why := t.disk.cause(); why != "" {
			return why
		}
	}
	switch {
	case f.check == checkDevice:
		return result.DeviceErrors
	case f.check == askAlive.check && f.call == askAlive.call:
		return result.FSShutdown
	case t.Probed.FSType == "xfs" && f.call == stepStatx && f.errno == "EIO":
		return result.FSShutdown // it gives the attributes of no file then (xfs_vn_getattr, fs/xfs/xfs_iops.c)
	}
	switch f.errno {
	case "EROFS":
		return readOnly
	case "ENOSPC", "EDQUOT":
		return noSpace
	}
	if t.Probed.FUSE() {
		if why := c.causeOfFailingFUSE(t, f); why != "" {
			return why
		}
	}
	switch f.errno {
	case "ENOTCONN", "ECONNABORTED":
		if t.Probed.FUSE() {
			return fuseDaemonDead
		}
	}
	// A soft mount gives up with EIO or ETIMEDOUT, nfs(5).
	if why := c.causeInNetwork(t, f); why != "" {
		return why
	}
	switch f.errno {
	case "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT", "ENOTCONN", "ECONNREFUSED", "ECONNRESET":
		switch {
		case !t.Probed.Network() || t.answer.Answered():
		case t.Probed.SMB():
			return unknown // it gave up, for whatever reason
		default:
			return serverUnreachable
		}
	case "ENOKEY", "EKEYREJECTED", "EKEYEXPIRED", "EKEYREVOKED":
		if t.Probed.Network() {
			return result.LoginRefused
		}
	}
	return cmp.Or(t.causeInKernel(f), ioError)
}

func (c *causes) causeOfHang(t *target, f *finding) cause {
	if !t.Probed.FUSE() {
		if why := c.causeBelow(t, f); why != "" {
			return why
		}
	}
	switch {
	case waitsForGuard(t):
		f.reason = c.guards.describe()
		return result.FanotifySilent
	case t.Probed.FUSE():
		return c.causeOfSilentFUSE(t, f)
	case len(t.servers) > 0:
		if why := c.causeInNetwork(t, f); why != "" {
			return why
		}
		// A client that has not yet connected again, or logged in, waits for that.
		if (t.answer.Answered() || c.serverIsBusy(t)) && t.share != smbclient.Disconnected && t.share != smbclient.LoggingIn {
			return exportHangs
		}
	case t.Probed.BlockDevice():
		// A frozen file system answers everything but writes.
		if strings.Contains(t.waits, "percpu_rwsem_wait") || strings.Contains(t.waits, "sb_start_write") {
			return frozen
		}
		if f.check != checkWrite || t.waits != "" {
			return deviceHangs
		}
	}
	if t.found.hangs() && t.found.cause != "" {
		f.culprit = t.found.culprit
		return t.found.cause // the evidence has gone, as it does before the end
	}
	return unknown
}

// causeInNetwork is the fault of the server, or what the client of the file system knows. A server
// that is only too slow to answer in time is not dead: then what the client knows counts for more.
func (c *causes) causeInNetwork(t *target, f *finding) cause {
	why := t.causeAtServer()
	if c.serverIsBusy(t) {
		why = ""
	}
	if why == "" || t.answer.Late() {
		return cmp.Or(c.causeAtClient(t, f), why)
	}
	return why
}

// serverIsBusy reports whether a server that does not answer in time has answered another mount
// meanwhile, in this gather.
func (c *causes) serverIsBusy(t *target) bool {
	if !t.answer.Late() || t.Probed.Ceph() { // whose monitors don't serve what hangs
		return false
	}
	silent := t.answer.Since.Add(-t.answer.Elapsed) // since then
	server := t.servers[t.telling]
	return slices.ContainsFunc(c.targets, func(other *target) bool {
		served := other.found.code == result.OK || other.found.code == result.Slow
		judged := other != t && !other.underWay && other.report == nil && other.skipReason == ""
		return judged && served && other.LastOK.After(silent) && len(other.servers) == 1 && other.servers[0] == server
	})
}

// causeAtServer is the fault of the server, if one was seen. A mount takes a
// while to notice that its server is back, v3 half a minute. So the cause stays what
// it was until a reply has come on the mount's own connection. It also stays for checks that
// began before the server was back.
func (t *target) causeAtServer() cause {
	a := t.answer
	switch {
	case !a.Known, t.servers[t.telling].elsewhere:
		return ""
	case !a.Answered():
		return causeOfServer(t.servers[0].Service, a)
	}
	before := t.found.cause
	if before != serviceDead(t.servers[0].Service) && before != serverUnreachable {
		return ""
	}
	beganBefore := t.report != nil && t.report.Since.Before(a.Since)
	unheard := t.traffic.stats != nil && t.traffic.lastReply.Before(t.FaultSince)
	if beganBefore || unheard {
		return before
	}
	return ""
}

// causeAbove is why the way to a mount hangs: its path leads through a file system
// that hangs.
func (c *causes) causeAbove(t *target, f *finding) cause {
	if t.namespace != nil {
		return unknown
	}
	for above := range c.above(t) {
		if why := c.causeOfOther(above, true); why != "" {
			f.blame(above)
			return why
		}
	}
	if asksForAttributes(t.Probed) && len(t.servers) > 0 {
		return c.causeOfHang(t, &finding{code: t.found.code})
	}
	return unknown
}

// fuseWaiting is the number of requests the daemon has not answered; unknown
// where fusectl is not mounted.
func (c *causes) fuseWaiting(t *target) count {
	connection, found := fuseConnection(t.Probed)
	if !found || t.namespace != nil {
		return count{}
	}
	waiting, err := procfs.ReadNumber(filepath.Join(c.host.Sys, "fs/fuse/connections", strconv.FormatInt(connection, 10), "waiting"))
	return count{waiting, err == nil}
}

// fuseConnection is the number in fusectl of the connection to the daemon: the device number
// as the kernel keeps it, MINORBITS being 20.
func fuseConnection(mount *mounts.Mount) (int64, bool) {
	return int64(mount.Major)<<20 | int64(mount.Minor), mount.FUSE()
}
