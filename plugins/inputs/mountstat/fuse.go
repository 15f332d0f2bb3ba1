package mountstat

import (
	"cmp"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fusedaemon"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/result"
	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

const (
	// daemonsTimeout is for how long reports are held back until it is known which processes
	// serve the file systems, and what they wait for.
	daemonsTimeout = 2 * time.Second
	// examineInterval is how often the daemon of a mount that must not be checked is examined at
	// most, each time that somebody begins to wait for it: for a healthy one, somebody often does.
	examineInterval = time.Minute
	// maxDaemons is the number of connections for which this is found out in a round.
	maxDaemons = 64
)

// daemons are the daemons of the FUSE file systems at fault.
type daemons struct {
	*kit
	*inventory
	found    map[fusedaemon.Connection]*fusedaemon.Daemon // in this round; nil: it was not found
	asked    []fusedaemon.Connection                      // whose are to be found next
	underWay bool
	late     bool // it takes so long that reports are held back no longer
	again    int  // looks that are due in this gather
	uses     map[*target]daemonUse
}

// daemonUse lists the targets that a target's daemon is known to use.
type daemonUse struct {
	daemon *fusedaemon.Daemon
	used   []*target
}

// begin forgets what was found in earlier rounds.
func (d *daemons) begin() { d.found, d.asked, d.uses = nil, nil, nil }

// connectionTo is the connection to the daemon of a target's file system.
func connectionTo(t *target) fusedaemon.Connection {
	number, _ := fuseConnection(t.Probed)
	return fusedaemon.Connection{Number: number, MountID: t.Probed.ID, Kind: fuseKind(t.Probed), Mountpoint: t.Probed.Mountpoint}
}

// fuseKind is what the type says about the program; empty if it says nothing.
func fuseKind(mount *mounts.Mount) string {
	kind, found := strings.CutPrefix(mount.FSType, "fuse.")
	if !found {
		return ""
	}
	return kind
}

// daemonFields says, for a target at fault, which connection can be aborted and which daemon can
// be restarted.
func (t *target) daemonFields(fields map[string]any) {
	if connection, found := fuseConnection(t.Probed); found {
		fields["fuse_connection"] = connection
	}
	if d := t.daemon; d != nil {
		fields["fuse_daemon_pid"] = int64(d.PID)
		if d.Restart != "" {
			fields["restart_command"] = d.Restart
		}
	}
}

// commands are those that free the tasks waiting for a target that hangs, for the log.
func (t *target) commands() (text string) {
	connection, found := fuseConnection(t.Probed)
	if !found {
		return ""
	}
	if d := t.daemon; d != nil && d.Restart != "" {
		text = "; its daemon is restarted by: " + d.Restart
	}
	return text + fmt.Sprintf("; those who wait are freed, and what was not written is lost, by: echo 1 >/sys/fs/fuse/connections/%d/abort", connection)
}

// ask asks for a connection's daemon to be found. It reports whether it will be.
func (d *daemons) ask(c fusedaemon.Connection) bool {
	if !slices.Contains(d.asked, c) {
		if len(d.found)+len(d.asked) >= maxDaemons {
			return false
		}
		d.asked = append(d.asked, c)
	}
	return true
}

// dependsOnDaemon reports whether what the daemon does can tell the cause of a fault.
func dependsOnDaemon(f *finding) bool {
	switch {
	case f.hangs():
		return f.call != stepOpen
	case f.code != result.Error:
		return false
	}
	switch f.errno {
	case "", "EROFS", "ENOSPC", "EDQUOT", "ECONNABORTED":
		return false
	}
	return true
}

// find starts the search for the daemons that were asked for, unless one is under way.
func (d *daemons) find() {
	if d.underWay || len(d.asked) == 0 {
		return
	}
	asked := slices.Clone(d.asked)
	d.underWay = true
	timer := time.AfterFunc(daemonsTimeout, func() {
		d.mail.Post(func() {
			d.late = d.underWay
			d.reconsider()
		})
	})
	go func() {
		found, err := d.host.Daemons.Find(asked)
		timer.Stop()
		d.mail.Post(func() {
			d.underWay, d.late = false, false
			d.said.Error("FUSE daemons", err)
			if d.found == nil {
				d.found = make(map[fusedaemon.Connection]*fusedaemon.Daemon)
			}
			for _, c := range asked {
				d.found[c] = found[c]
			}
			d.noteServersBehind(found)
			d.lookAgain(found)
			d.asked = slices.DeleteFunc(d.asked, func(c fusedaemon.Connection) bool { return slices.Contains(asked, c) })
			d.reconsider()
			d.find()
		})
	}()
}

// lookAgain has daemons examined once more that are stopped, or whose server can't be reached, while
// somebody has begun to wait for them: when a check would be given up. The gather waits for that, as it
// would for the check. Otherwise such a fault would be found a gather later than others.
func (d *daemons) lookAgain(found map[fusedaemon.Connection]*fusedaemon.Daemon) {
	for _, t := range d.targets {
		c := connectionTo(t)
		daemon := found[c]
		if daemon == nil || t.skipReason == "" || t.waitedSince.IsZero() || t.hasWaited(time.Now()) {
			continue
		}
		if state, _ := daemon.Server(); state != fusedaemon.Unreachable && !daemon.Stopped() {
			continue
		}
		d.again++
		time.AfterFunc(time.Until(t.waitedSince.Add(t.policy.timeout+time.Millisecond)), func() {
			d.mail.Post(func() {
				d.again--
				d.ask(c)
				d.find()
			})
		})
	}
}

// noteServersBehind notes which servers the daemons are connected to. A daemon with several
// connections belongs to the first of them that told something, for as long as it has that one.
func (d *daemons) noteServersBehind(found map[fusedaemon.Connection]*fusedaemon.Daemon) {
	for _, t := range d.targets {
		if !t.Probed.FUSE() {
			continue
		}
		daemon := found[connectionTo(t)]
		if daemon == nil || daemon.ConnectedTo(t.behindDaemon.Address) {
			continue
		}
		if daemon.ServerAddress().IsValid() {
			t.behindDaemon = serverBehind(t.Probed, daemon)
		}
	}
}

// serverBehind is the server that a daemon of a mount is connected to.
func serverBehind(mount *mounts.Mount, d *fusedaemon.Daemon) mounts.Server {
	service := cmp.Or(fuseKind(mount), mounts.Printable(d.Comm))
	return mounts.Server{Question: serverpool.Question{Network: "tcp", Address: d.ServerAddress(), Service: serverpool.Service(service)}}
}

// usedBy are the targets that a target's daemon is known to use. Other targets that the
// daemon serves itself are left out.
func (d *daemons) usedBy(t *target) iter.Seq[*target] {
	return func(yield func(*target) bool) {
		if t.daemon == nil {
			return
		}
		use, known := d.uses[t]
		if !known || use.daemon != t.daemon {
			use = daemonUse{t.daemon, d.findUsed(t)}
			if d.uses == nil {
				d.uses = make(map[*target]daemonUse)
			}
			d.uses[t] = use
		}
		for _, other := range use.used {
			if (other.daemon == nil || other.daemon.PID != t.daemon.PID) && !yield(other) {
				return
			}
		}
	}
}

// findUsed finds the targets that a target's daemon uses: by its open files, its working
// directory, its arguments and the source of its mount. The latter two hold what bindfs and
// mergerfs show.
func (d *daemons) findUsed(t *target) []*target {
	daemon := t.daemon
	if t.namespace != nil || daemon.Files.MountNS != "" && daemon.Files.MountNS != d.host.MountNamespace() {
		return nil
	}
	used := make(map[*target]bool)
	for _, id := range daemon.Files.MountIDs {
		used[d.byMount[id]] = true
	}
	for _, path := range append(pathsIn(append(daemon.Arguments, t.Probed.Source)), daemon.Files.Cwd) {
		if mount := d.table.Holding(path); mount != nil && path != "" {
			used[d.byMount[mount.ID]] = true
		}
	}
	delete(used, nil)
	delete(used, t)
	var all []*target
	for _, other := range d.targets {
		if used[other] {
			all = append(all, other)
		}
	}
	return all
}

// pathsIn are the absolute paths that occur in arguments, such as lowerdir=/a:/b.
func pathsIn(arguments []string) []string {
	var paths []string
	for _, argument := range arguments {
		for _, word := range strings.FieldsFunc(argument, func(r rune) bool { return strings.ContainsRune("=:,", r) }) {
			if filepath.IsAbs(word) {
				paths = append(paths, filepath.Clean(word))
			}
		}
	}
	return paths
}

// awaitsDaemon reports whether the cause of a fault depends on what the target's daemon does, and
// this is being found out; or on a mount below the target that has not been judged.
func (c *causes) awaitsDaemon(t *target, f *finding) bool {
	if !t.Probed.FUSE() || !dependsOnDaemon(f) || c.daemons.late {
		return false
	}
	connection := connectionTo(t)
	if _, known := c.daemons.found[connection]; known {
		return c.awaitsBelow(t)
	}
	if !c.daemons.ask(connection) {
		return false
	}
	c.daemons.find()
	return true
}

// culpritBelow is a target at fault that the target's daemon uses, or nil. A target that hangs
// comes first.
func (c *causes) culpritBelow(t *target, hangs bool) *target {
	for below := range c.daemons.usedBy(t) {
		if below.found.hangs() {
			return below
		}
	}
	for below := range c.daemons.usedBy(t) {
		if !hangs && below.found.code.Fault() {
			return below
		}
	}
	return nil
}

// causeOfSilentFUSE is why a FUSE file system hangs. The finding's reason gives the evidence.
func (c *causes) causeOfSilentFUSE(t *target, f *finding) cause {
	d := t.daemon
	if d == nil {
		if before := t.found; before.hangs() && before.cause != "" {
			f.reason, f.culprit = before.reason, before.culprit
			return before.cause // the evidence has gone, or could not be had in this round
		}
		f.reason = "the process that serves it could not be seen"
		return cmp.Or(c.causeBelow(t, f), fuseDaemonSilent)
	}
	who := describeDaemon(d)
	forFUSE, uninterruptible := d.ForFUSE(), d.Uninterruptible()
	if d.Stopped() {
		f.reason = fmt.Sprintf("%s is stopped: kill -CONT %d", who, d.PID)
		return fuseDaemonSilent
	}
	if forFUSE != nil || uninterruptible != nil || !d.Seen() {
		if below := c.culpritBelow(t, true); below != nil {
			f.reason = fmt.Sprintf("%s uses %s, which hangs", who, mounts.Printable(below.Probed.Mountpoint))
			f.blame(below)
			return cmp.Or(below.found.cause, unknown)
		}
	}
	if why := causeAtFUSEServer(t.Probed, d, f); why != "" {
		return why
	}
	switch {
	case forFUSE != nil:
		f.reason = who + " waits for another FUSE file system"
	case uninterruptible != nil:
		f.reason = fmt.Sprintf("%s waits in %s, for a disk or another file system", who, cmp.Or(uninterruptible.Wchan, "the kernel"))
	case d.TakesRequests():
		f.reason = who + " takes requests; what it waits for could not be seen"
	case d.Seen():
		f.reason = who + " takes no requests"
	default:
		f.reason = "what " + who + " waits for could not be seen"
	}
	return fuseDaemonSilent
}

// causeAtFUSEServer is the fault of a server that a daemon waits for; empty if that can't be
// seen.
func causeAtFUSEServer(mount *mounts.Mount, d *fusedaemon.Daemon, f *finding) cause {
	state, socket := d.Server()
	says, c := "", cause("")
	switch {
	case state == fusedaemon.Unreachable:
		says, c = "nothing comes back for what is sent", result.FUSEServerUnreachable
	case state == fusedaemon.Unconnected && (d.TakesRequests() || f.errno != "") && ofServer(mount):
		says, c = "there is no connection", result.FUSEServerUnreachable
	case state == fusedaemon.Silent && (f.hangs() || lostServer(f.errno)):
		says, c = fmt.Sprintf("it has sent nothing for %v", socket.Received), result.FUSEServerSilent
	case state == fusedaemon.Answered && f.hangs() && d.TakesRequests():
		says, c = fmt.Sprintf("it is connected, and has sent something %v ago", socket.Received), result.FUSEServerSilent
	default:
		return ""
	}
	f.reason = describeDaemon(d) + " waits for " + describeServer(mount, d) + ": " + says
	return c
}

// ofServer reports whether a server is known to stand behind file systems of the kind.
func ofServer(mount *mounts.Mount) bool { return mount.Network() || mount.ListingCosts() }

// lostServer reports whether an errno says by itself that a server can't be reached.
func lostServer(errno string) bool {
	switch errno {
	case "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "EPIPE":
		return true
	}
	return false
}

// causeOfFailingFUSE is why a FUSE file system fails, if what its daemon does tells. The daemon is
// alive, so the error does not come from the kernel.
func (c *causes) causeOfFailingFUSE(t *target, f *finding) cause {
	d := t.daemon
	if d == nil || !d.Lives() || !dependsOnDaemon(f) {
		return ""
	}
	who := describeDaemon(d)
	if below := c.culpritBelow(t, false); below != nil {
		f.reason = fmt.Sprintf("%s uses %s, which is at fault", who, mounts.Printable(below.Probed.Mountpoint))
		f.blame(below)
		return cmp.Or(below.found.cause, unknown)
	}
	if why := causeAtFUSEServer(t.Probed, d, f); why != "" {
		return why
	}
	if lostServer(f.errno) && (ofServer(t.Probed) || f.errno != "ETIMEDOUT") { // which may be of a disk
		f.reason = fmt.Sprintf("%s lives, and says %s of %s", who, f.errno, describeServer(t.Probed, d))
		return result.FUSEServerUnreachable
	}
	return ""
}

// describeDaemon names a daemon in a reason.
func describeDaemon(d *fusedaemon.Daemon) string {
	by := ""
	if d.Guessed {
		by = ", by its arguments"
	}
	return fmt.Sprintf("its daemon %s (process %d%s)", mounts.Printable(d.Comm), d.PID, by)
}

// describeServer names the server of a daemon in a reason.
func describeServer(mount *mounts.Mount, d *fusedaemon.Daemon) string {
	text := "its server"
	if address := d.ServerAddress(); address.IsValid() {
		text += " " + address.String()
	}
	if ofServer(mount) {
		text += " of " + mounts.Printable(mount.Source)
	}
	if w := d.Worker; w != nil {
		text += fmt.Sprintf(", by %s (process %d)", mounts.Printable(w.Comm), w.PID)
	}
	return text
}
