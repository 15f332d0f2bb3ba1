package mountstat

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

const (
	// maxEvidenceAge is how old a message about a device may be when a fault begins, if it is
	// to be evidence of the cause.
	maxEvidenceAge = 10 * time.Minute
	// burstWindow is for how long errors of a file system count as one error, the first.
	burstWindow = time.Minute
	// maxQuote bounds the quote of a message, in bytes.
	maxQuote = 200
	// maxLogDevices bounds the devices whose messages are kept.
	maxLogDevices = 4096
	// maxLogServers bounds the servers whose messages are kept.
	maxLogServers = 256
	// maxLogDrift is by how much the log's clock may differ from others, one part in so many: it is a
	// CPU's, and nobody corrects it.
	maxLogDrift = 10_000
	// serverMessageAge is how old a client's message about its server may be when a fault is
	// found, if it is to be about that fault, which is a gather older than its finding.
	serverMessageAge = time.Minute
)

// kernelLog is what the kernel has logged about devices, file systems and helpers,
// as far back as its log goes.
type kernelLog struct {
	*kit
	name        string
	readable    bool
	lost        uint64                // records, so far
	hungHelpers int64                 // reports of hung tasks that are helpers
	devices     map[string]*deviceLog // by the name in the messages
	leases      map[string]leaseLog   // by the name of the NFSv4 server
	servers     map[string]message    // what clients say of those that are at fault; see [kmsg.ServerMessage]
}

// deviceLog are the messages about one device, and the file system on it.
type deviceLog struct {
	errors int64 // messages
	last   map[kmsg.DiskKind]message
}

// message is a message of the kernel.
type message struct {
	text string
	at   time.Time
	// off is by how much at may be wrong, as the log's clock drifts. It is 0 unless the message was
	// logged before the log was first read.
	off      time.Duration
	doubtful bool // the kernel has suppressed messages that might have told that it is past
}

// read reads what is new in the kernel's log. Only a message about a journal makes
// a fault. All others are evidence for the cause of one, and are counted.
// It returns whether a file system of a target seems to have turned read-only.
func (l *kernelLog) read(targets []*target) (turnsReadOnly bool) {
	first := !l.readable
	var news kmsg.News
	news, l.readable = l.host.KernelLog(l.name, l)
	if news.Lost > l.lost {
		l.lost = news.Lost
		for _, d := range l.devices {
			delete(d.last, kmsg.JournalAborted) // it may have been mounted anew
		}
	}
	for _, r := range news.Records {
		if comm, found := kmsg.ParseHungTask(r.Text); found && strings.HasPrefix(comm, prober.HelperPrefix) {
			l.hungHelpers++
		} else if said, found := kmsg.Parse(r.Text); found {
			l.noteLease(said, message{text: r.Text, at: r.At})
		} else if about, found := kmsg.ParseDisk(r); found {
			said := message{text: r.Text, at: r.At}
			if first {
				said.off = time.Second + r.Uptime/maxLogDrift
			}
			l.noteDisk(about, said)
			if !first && about.Kind == kmsg.TurnedReadOnly && l.isAbout(targets, about.Device) {
				turnsReadOnly = true
			}
		} else if about, found := kmsg.ParseServer(r.Text); found {
			l.noteServer(about, message{text: r.Text, at: r.At})
		} else if begins := kmsg.ParseSuppressed(r.Text); begins != nil {
			l.doubt(begins)
		}
	}
	return turnsReadOnly
}

// noteServer notes a client's message about its server.
func (l *kernelLog) noteServer(about kmsg.ServerMessage, said message) {
	if about.Well {
		delete(l.servers, about.Server)
	} else if _, known := l.servers[about.Server]; known || len(l.servers) < maxLogServers {
		l.servers[strings.Clone(about.Server)] = said
	}
}

// cephDaemons are those whose messages are about a cause; of any other cause all may be.
var cephDaemons = map[cause][]string{
	result.CephMonitorsDead: {"mon"},
	result.CephMDSDead:      {"mds", "osd"},
	result.CephOSDsDead:     {"osd"},
	result.ClientEvicted:    {"mds"},
	staleExport:             nil,
}

// clientSays is the client's newest message about what is the cause at the target's server, if it is
// from the time of the target's fault. Ceph's messages do not say which cluster they are about:
// targets tell whether there is only one.
func (l *kernelLog) clientSays(t *target, why cause, targets []*target) string {
	var names []string
	switch {
	case t.namespace != nil || len(l.servers) == 0:
	case t.Probed.SMB():
		names = []string{`\\` + strings.ToLower(t.Probed.Host())}
	case t.Probed.Ceph() && oneCephCluster(t, targets):
		names = []string{"mon", "mds", "osd"}
		if of, known := cephDaemons[why]; known {
			names = of
		}
	}
	var newest message
	for _, name := range names {
		if said := l.servers[name]; said.at.After(newest.at) {
			newest = said
		}
	}
	since := time.Now()
	if !t.FaultSince.IsZero() {
		since = t.FaultSince
	}
	if newest.at.Before(since.Add(-serverMessageAge)) {
		return ""
	}
	return newest.quote()
}

// oneCephCluster reports whether all mounts of CephFS have the monitors of this target.
func oneCephCluster(t *target, targets []*target) bool {
	return !slices.ContainsFunc(targets, func(other *target) bool { return other.Probed.Ceph() && !slices.Equal(other.servers, t.servers) })
}

// quote is the text of the message, for a reason.
func (said *message) quote() string {
	return "the kernel: " + printable.Text(said.text[:min(len(said.text), maxQuote)])
}

// isAbout reports whether a name in the log is that of one of the targets.
func (l *kernelLog) isAbout(targets []*target, name string) bool {
	return slices.ContainsFunc(targets, func(t *target) bool { return slices.Contains(l.names(t), name) })
}

// noteDisk notes a message about a device or its file system.
func (l *kernelLog) noteDisk(about kmsg.DiskMessage, said message) {
	d := l.devices[about.Device]
	if about.Kind == kmsg.Mounted || about.Kind == kmsg.Remounted {
		d.forget(about.Kind)
		return
	}
	if d == nil {
		if len(l.devices) == maxLogDevices {
			return
		}
		d = &deviceLog{last: make(map[kmsg.DiskKind]message)}
		l.devices[strings.Clone(about.Device)] = d
	}
	d.errors++
	if why := d.last[kmsg.FSError]; about.Kind == kmsg.TurnedReadOnly && said.at.Sub(why.at) < maxEvidenceAge {
		said.text = why.text // why it did
	}
	if first := d.last[kmsg.FSError]; about.Kind == kmsg.FSError && said.at.Sub(first.at) < burstWindow {
		return // the others follow from it
	}
	d.last[about.Kind] = said
}

// forget leaves out what is past since a file system of the device was mounted: it was said of another
// one, or the device was mended or replaced.
func (d *deviceLog) forget(since kmsg.DiskKind) {
	if d == nil {
		return
	}
	maps.DeleteFunc(d.last, func(kind kmsg.DiskKind, _ message) bool {
		return since == kmsg.Mounted || kind != kmsg.JournalAborted && kind != kmsg.FSShutdown
	})
}

// doubt notes that the kernel has suppressed messages of mounts: what it said of a file system before
// the log was first read may be about an earlier mount of it. Mounts since then show in the table.
func (l *kernelLog) doubt(begins []string) {
	for _, d := range l.devices {
		for kind, said := range d.last {
			if said.off > 0 && slices.ContainsFunc(begins, func(begin string) bool { return strings.HasPrefix(said.text, begin) }) {
				said.doubtful = true
				d.last[kind] = said
			}
		}
	}
}

// names are the names that the kernel's messages use for the target's devices, also for
// devices that are gone by now.
func (l *kernelLog) names(t *target) []string {
	if t.namespace != nil || t.disk.known == nil {
		return nil
	}
	names := t.disk.known.NamesInLog()
	if t.Probed.FSType == "bcachefs" {
		if directory := blockdev.Tree(l.host.Sys).Bcachefs(t.disk.known.Name); directory != "" {
			names = append(names, filepath.Base(directory))
		}
	}
	return names
}

// of are the messages about the target's devices.
func (l *kernelLog) of(t *target) (all []*deviceLog) {
	if len(l.devices) == 0 {
		return nil // as on all hosts that are well
	}
	for _, name := range l.names(t) {
		if d := l.devices[name]; d != nil {
			all = append(all, d)
		}
	}
	return all
}

// count is how many errors of the target and its devices the kernel has logged;
// unknown where its log can't be read.
func (l *kernelLog) count(t *target) count {
	c := count{known: l.readable && t.namespace == nil && t.disk.known != nil}
	for _, d := range t.messages {
		c.n += d.errors
	}
	return c
}

// newest returns the last message of these kinds about the target, or an empty one.
func (t *target) newest(kinds ...kmsg.DiskKind) (newest message) {
	for _, d := range t.messages {
		for _, kind := range kinds {
			if said := d.last[kind]; said.at.After(newest.at) {
				newest = said
			}
		}
	}
	return newest
}

// quote returns the newest message of a kind about the target, or nothing. A message that is not
// about a lasting state is evidence only if it is from the time of the target's fault.
func (t *target) quote(kinds ...kmsg.DiskKind) string {
	since := time.Now()
	if !t.FaultSince.IsZero() {
		since = t.FaultSince
	}
	for _, kind := range kinds {
		newest := t.newest(kind)
		lasting := kind == kmsg.FSShutdown || kind == kmsg.TurnedReadOnly || kind == kmsg.JournalAborted
		if newest.text != "" && (lasting && !t.isPast(newest) || newest.at.After(since.Add(-maxEvidenceAge))) {
			return newest.quote()
		}
	}
	return ""
}

// journalAborted reports whether the kernel has given up the journal of the target since it was
// mounted, as far as is known: the kernel does not log each mount. The kernel then refuses to
// write to the target. Before Linux 6.16 the mount table does not show that, and only the check
// "write" would.
func (t *target) journalAborted() bool {
	if t.Probed.FSType != "ext4" && t.Probed.FSType != "ext3" || t.Probed.ReadOnly() {
		return false
	}
	said := t.newest(kmsg.JournalAborted)
	return said.text != "" && said.at.After(t.appeared) && !t.isPast(said)
}

// isPast reports whether a message about a lasting state is about an earlier mount of the file
// system: it is older than the present one, where that tells its age, or else it is doubtful.
func (t *target) isPast(said message) bool {
	switch mounted := t.disk.mounted; {
	case mounted.IsZero():
		return said.doubtful
	case said.doubtful:
		return said.at.Before(mounted)
	default:
		return said.at.Add(said.off).Before(mounted)
	}
}

// causeInKernel is what the kernel says about why a file system on a block device fails.
func (t *target) causeInKernel(f *finding) cause {
	if f.errno == "EIO" && (t.quote(kmsg.FSShutdown) != "" || t.stopped != "") {
		return result.FSShutdown
	}
	switch f.errno {
	case "EIO", "ENXIO", "ETIMEDOUT", "ENOLINK", "EREMOTEIO", "EBADE", "ENODATA", "EILSEQ": // blk_errors, block/blk-core.c
		if t.quote(kmsg.DeviceError, kmsg.DeviceTimeout) != "" {
			return result.DeviceErrors
		}
	}
	return ""
}

// quoted are the kinds of messages that are evidence for a cause, the best ones first.
var quoted = map[cause][]kmsg.DiskKind{
	result.FSShutdown:   {kmsg.FSShutdown, kmsg.FSError},
	result.DeviceErrors: {kmsg.DeviceError, kmsg.DeviceTimeout},
	result.DeviceGone:   {kmsg.DeviceError, kmsg.DeviceTimeout},
	result.DeviceHangs:  {kmsg.DeviceTimeout, kmsg.DeviceError},
	result.ReadOnly:     {kmsg.TurnedReadOnly, kmsg.JournalAborted, kmsg.FSError},
	result.IOError:      {kmsg.FSError, kmsg.JournalAborted},
}

// explainDisk adds what the kernel says about a fault of a disk or of a file system on it.
func (t *target) explainDisk(f *finding) {
	says := t.quote(quoted[f.cause]...)
	if f.reason == "" && ofDevice(f.cause) && (says == "" || t.disk.state.Says != "") {
		f.addReason(t.disk.describe())
	}
	if f.cause == result.FSShutdown && says == "" {
		says = t.stopped
	}
	f.addReason(says)
}

// joinReasons joins the reasons that are not empty.
func joinReasons(reasons ...string) string {
	return strings.Join(slices.DeleteFunc(reasons, func(s string) bool { return s == "" }), "; ")
}
