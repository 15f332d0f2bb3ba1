package kmsg

import (
	"slices"
	"strconv"
	"strings"
)

// DiskKind says what a message about a block device or a file system on it is about.
type DiskKind string

// The kinds.
const (
	// DeviceError: the device has not done what it was asked for.
	DeviceError DiskKind = "device_error"
	// DeviceTimeout: the device has not answered in time. The kernel goes on trying.
	DeviceTimeout DiskKind = "device_timeout"
	// FSError: the file system has met an error, its device's or its own.
	FSError DiskKind = "fs_error"
	// JournalAborted: the journal of an ext3, ext4 or OCFS2 was given up: nothing is written
	// until it is mounted anew (jbd2_journal_abort, fs/jbd2/journal.c).
	JournalAborted DiskKind = "journal_aborted"
	// FSShutdown: the file system was shut down, and does nothing any more.
	FSShutdown DiskKind = "fs_shutdown"
	// TurnedReadOnly: the kernel has made the file system read-only.
	TurnedReadOnly DiskKind = "turned_read_only"
	// Mounted: the file system was mounted, or unmounted: what was said of it before is past.
	Mounted DiskKind = "mounted"
	// Remounted: the same, but for a journal that was aborted and a file system that was shut down: to
	// mount it with other options mends neither (__ext4_remount, fs/ext4/super.c).
	Remounted DiskKind = "remounted"
)

// DiskMessage is what the kernel says about a block device or a file system on it.
type DiskMessage struct {
	Kind DiskKind
	// Device is as the message has it, raw bytes: the kernel's name of a block device (sdb1,
	// dm-0), the address of a SCSI device without a name (2:0:0:0), an NVMe controller
	// (nvme0), or a file system's UUID (bcachefs).
	Device string
}

// diskFormat is how the messages of one origin begin, and name their device.
type diskFormat struct {
	before  string // the message begins so
	then    string // stands before the device; anything may be between
	after   string // follows the device; nothing: the message ends
	phrases []phrase
}

// phrase is the kind of the messages that go on so after the device.
type phrase struct {
	begins, contains string
	serious          bool // only those of level err and worse
	kind             DiskKind
}

// diskFormats are those of Linux 3.10 to 7.0; testdata names the sources. The first whose
// beginning fits decides, and of it the first phrase.
var diskFormats = []diskFormat{
	{before: "Buffer I/O error on dev ", after: ",", phrases: all(DeviceError)},
	{before: "Buffer I/O error on device ", after: ",", phrases: all(DeviceError)},
	{before: "lost page write due to I/O error on ", phrases: all(DeviceError)},
	{before: "md/", then: ": Disk failure on ", after: ",", phrases: all(DeviceError)},
	{before: "sd ", after: ": ", phrases: scsi},
	{before: "scsi ", after: ": ", phrases: scsi},
	{before: "block ", after: ": ", phrases: []phrase{
		{begins: "Connection timed out", kind: DeviceTimeout},
		{begins: "Possible stuck request", kind: DeviceTimeout},
		{begins: "Receive control failed", kind: DeviceError},
		{begins: "Send control failed", kind: DeviceError},
		{begins: "Receive data failed", kind: DeviceError},
		{begins: "Send data failed", kind: DeviceError},
		{begins: "Dead connection, failed to find a fallback", kind: DeviceError},
		{begins: "Other side returned error", kind: DeviceError},
	}},
	{before: "nvme ", after: ": ", phrases: []phrase{
		{begins: "I/O ", contains: " timeout", kind: DeviceTimeout},
		{begins: "controller is down; will reset", kind: DeviceTimeout},
		{begins: "Removing after probe failure", kind: DeviceError},
		{begins: "Disabling device after reset failure", kind: DeviceError},
		{begins: "Device not ready; aborting", kind: DeviceError},
	}},
	{before: "EXT4-fs error (device ", after: ")", phrases: all(FSError)},
	{before: "EXT4-fs warning (device ", after: ")", phrases: []phrase{{contains: "I/O error", kind: FSError}}},
	{before: "EXT4-fs (", after: "): ", phrases: ext},
	{before: "EXT3-fs error (device ", after: ")", phrases: all(FSError)},
	{before: "EXT3-fs (", after: "): ", phrases: ext},
	{before: "EXT2-fs (", after: "): ", phrases: ext},
	{before: "Aborting journal on device ", after: ".", phrases: all(JournalAborted)},
	{before: "JBD2: I/O error when updating journal superblock for ", after: ".", phrases: all(FSError)},
	{before: "JBD2: Error -5 detected when updating journal superblock for ", after: ".", phrases: all(FSError)},
	{before: "XFS (", after: "): ", phrases: []phrase{
		{contains: "hutting down filesystem", kind: FSShutdown},
		{begins: "xfs_do_force_shutdown", kind: FSShutdown},
		{contains: "ilesystem has been shut down", kind: FSShutdown},
		{begins: "User initiated shutdown", kind: FSShutdown},
		{begins: "metadata I/O error", kind: FSError},
		{begins: "log I/O error", kind: FSError},
		{begins: "writeback error", kind: FSError},
		{begins: "page discard on ", kind: FSError},
		{begins: "Failing async write", kind: FSError},
		{begins: "Metadata corruption detected", kind: FSError},
		{begins: "Metadata CRC error detected", kind: FSError},
		{begins: "Corruption detected", kind: FSError},
		{begins: "Internal error ", kind: FSError},
		{begins: "Mounting ", kind: Mounted},
		{begins: "Unmounting ", kind: Mounted},
	}},
	{before: "BTRFS error (device ", after: ")", phrases: all(FSError)},
	{before: "BTRFS: error (device ", after: ")", phrases: all(FSError)},
	{before: "BTRFS critical (device ", after: ")", phrases: all(FSError)},
	{before: "BTRFS warning (device ", after: ")", phrases: []phrase{
		{contains: "checksum verify failed", kind: FSError},
		{contains: "csum failed", kind: FSError},
		{contains: "lost page write due to", kind: FSError},
	}},
	{before: "BTRFS info (device ", after: ")", phrases: []phrase{
		{contains: "forced readonly", kind: TurnedReadOnly},
		{contains: "first mount of filesystem", kind: Mounted},
		{contains: "last unmount of filesystem", kind: Mounted},
	}},
	{before: "btrfs: bdev /dev/", after: " errs: ", phrases: all(DeviceError)}, // to 3.13
	{before: "F2FS-fs (", after: "): ", phrases: []phrase{
		{begins: "Stopped filesystem due to reason", kind: FSShutdown},
		{begins: "Remounting filesystem read-only", kind: TurnedReadOnly},
		{begins: "Mounted with checkpoint version", kind: Mounted},
		{serious: true, kind: FSError},
	}},
	{before: "bcachefs (", after: ")", phrases: []phrase{
		{contains: "emergency read only", kind: TurnedReadOnly},
		{contains: "fatal error", kind: TurnedReadOnly},
		{contains: "shutdown complete", kind: Mounted},
		{contains: ": mounting version", kind: Mounted},
		{contains: ": starting version", kind: Mounted},
		{serious: true, kind: FSError},
	}},
	{before: "FAT-fs (", after: "): ", phrases: fat},
	{before: "exFAT-fs (", after: "): ", phrases: fat},
}

func all(kind DiskKind) []phrase { return []phrase{{kind: kind}} }

var (
	scsi = []phrase{
		{contains: "rejecting I/O to ", kind: DeviceError},
		{begins: "Device offlined", kind: DeviceError},
	}
	ext = []phrase{
		{begins: "shut down requested", kind: FSShutdown},
		{contains: "emounting filesystem read-only", kind: TurnedReadOnly},
		{begins: "error: ", kind: FSError}, // ext2 and ext3
		{begins: "Delayed block allocation failed", kind: FSError},
		{begins: "failed to convert unwritten extents", kind: FSError},
		{contains: "I/O error", kind: FSError},
		{begins: "recovery complete", kind: Mounted}, // of a mount, also if too many mounts keep "mounted" from the log
		{begins: "mounted ", kind: Mounted},
		{begins: "re-mounted", kind: Remounted},
		{begins: "unmounting ", kind: Mounted},
	}
	fat = []phrase{
		{begins: "error, ", kind: FSError},
		{begins: "Filesystem has been set read-only", kind: TurnedReadOnly},
	}
	// blockErrors are those of a request that did not succeed (blk_errors, block/blk-core.c).
	// The others are of requests that are tried again, or that the device does not know.
	blockErrors = []string{"I/O", "timeout", "critical space allocation", "recoverable transport", "critical target",
		"critical nexus", "reservation conflict", "critical medium", "protection", "device offline"}
)

// ParseDisk recognizes a message about a block device or a file system on it.
func ParseDisk(r Record) (DiskMessage, bool) {
	if m, found := blockError(r.Text); found {
		return m, true
	}
	for i := range diskFormats {
		f := &diskFormats[i]
		rest, found := strings.CutPrefix(r.Text, f.before)
		if !found {
			continue
		}
		if f.then != "" {
			if _, rest, found = strings.Cut(rest, f.then); !found {
				continue
			}
		}
		device, rest, found := strings.Cut(rest, f.after)
		if f.after == "" {
			device, rest, found = rest, "", true
		}
		if device = deviceName(device); !found || device == "" {
			return DiskMessage{}, false
		}
		if name, after, bracketed := strings.Cut(strings.TrimPrefix(rest, "["), "] "); bracketed && rest[0] == '[' {
			device, rest = name, after // scsi
		}
		for _, p := range f.phrases {
			if strings.HasPrefix(rest, p.begins) && strings.Contains(rest, p.contains) && (!p.serious || r.Level <= levelError) {
				return DiskMessage{p.kind, device}, true
			}
		}
		return DiskMessage{}, false
	}
	return DiskMessage{}, false
}

// ParseSuppressed recognizes that the kernel has left messages out, since there were too many, of a
// kind by which states of file systems end: Mounted, above all (ext4_mount_msg_ratelimit,
// fs/ext4/super.c; btrfs_printk, fs/btrfs/messages.c):
//
//	EXT4-fs mount: 12 callbacks suppressed
//
// It returns how the messages begin that may be past by now; nil if it is another message. The kernel
// says this when it is about to log the next one of the kind, which may be much later, or never.
func ParseSuppressed(text string) (begins []string) {
	what, found := strings.CutSuffix(text, " callbacks suppressed")
	what, number, separated := strings.Cut(what, ": ")
	if _, err := strconv.ParseUint(number, 10, 64); !found || !separated || err != nil {
		return nil
	}
	switch what {
	case "EXT4-fs mount", "EXT4-fs unmount":
		return []string{"EXT4-fs ", "Aborting journal on device "}
	case "btrfs_printk", "_btrfs_printk":
		return []string{"BTRFS"}
	}
	return nil
}

// levelError is KERN_ERR.
const levelError = 3

// blockError reads "FUNCTION: WHAT error, dev NAME, sector", of which newer kernels leave out
// the function.
func blockError(text string) (DiskMessage, bool) {
	what, rest, found := strings.Cut(text, " error, dev ")
	if !found {
		return DiskMessage{}, false
	}
	if i := strings.LastIndex(what, ": "); i >= 0 {
		what = what[i+2:]
	}
	device, _, found := strings.Cut(rest, ",")
	if !found || device == "" || !slices.Contains(blockErrors, what) {
		return DiskMessage{}, false
	}
	return DiskMessage{DeviceError, device}, true
}

// deviceName is the device's name alone: states of the file system or an inode may follow it,
// and that of a journal has the number of its inode (jbd2_journal_init_inode,
// fs/jbd2/journal.c).
func deviceName(text string) string {
	name, _, _ := strings.Cut(text, " ")
	name = strings.TrimSuffix(name, ":")
	dash := strings.LastIndexByte(name, '-')
	if dash > 0 && dash+1 < len(name) && strings.Trim(name[dash+1:], "0123456789") == "" && name[:dash] != "dm" {
		return name[:dash]
	}
	return name
}
