package mounts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// What statmount(2) is asked for; linux/mount.h.
const (
	statmountSBBasic   = 0x1
	statmountMntBasic  = 0x2
	statmountMntRoot   = 0x8
	statmountMntPoint  = 0x10
	statmountFSType    = 0x20
	statmountMntOpts   = 0x80  // Linux 6.11
	statmountFSSubtype = 0x100 // Linux 6.13
	statmountSBSource  = 0x200 // Linux 6.13

	// statmountPlain needs no file system's answer, see asksForOptions.
	statmountPlain = statmountSBBasic | statmountMntBasic | statmountMntRoot | statmountMntPoint | statmountFSType |
		statmountFSSubtype | statmountSBSource
	statmountAll = statmountPlain | statmountMntOpts
)

// Offsets into struct statmount, linux/mount.h. All strings are at offsets into what
// follows it.
const (
	offsetSize      = 0
	offsetOpts      = 4
	offsetMask      = 8
	offsetMajor     = 16
	offsetMinor     = 20
	offsetSBFlags   = 32
	offsetFSType    = 36
	offsetIDOld     = 56
	offsetParentOld = 60
	offsetAttr      = 64
	offsetRoot      = 104
	offsetPoint     = 108
	offsetSubtype   = 120
	offsetSource    = 124
	statmountSize   = forkserver.MountMembers
	offsetID        = 40
)

// errIncomplete says that statmount(2) has not reported all mounts, or not what is needed:
// a mount point's path may be too long, and kernels before 6.13 do not report the source.
var errIncomplete = errors.New("statmount(2) tells too little")

// parseRecords reads what statmount(2) says of each mount. Where it says too little of
// one, the error is errIncomplete.
func parseRecords(records iter.Seq[[]byte]) ([]*mountinfo.Info, error) {
	var all []*mountinfo.Info
	var problems []error
	for record := range records {
		info, err := parseRecord(record)
		if err != nil {
			problems = append(problems, fmt.Errorf("a mount of statmount(2): %w", err))
			continue
		}
		all = append(all, info)
	}
	return all, errors.Join(problems...)
}

// knownFrom is what the next look must know about the mounts of this one: whether their options
// were asked for.
func knownFrom(records iter.Seq[[]byte]) *prober.KnownMounts {
	known := &prober.KnownMounts{}
	copy(known.Magics[:], magicsThatAskForOptions())
	denied := 0
	for record := range records {
		if len(record) < statmountSize {
			return newKnown()
		}
		id := binary.NativeEndian.Uint64(record[offsetID:])
		known.Last = max(known.Last, id)
		// Others that have no options now may get some: ext4 when it turns read-only.
		if recordHas(record, statmountMntOpts) || recordHas(record, statmountFSType) && !asksForOptions(recordText(record, statmountFSType, offsetFSType)) {
			continue
		}
		if denied == len(known.Denied) {
			return newKnown()
		}
		known.Denied[denied] = id
		denied++
	}
	return known
}

// newKnown knows no mount.
func newKnown() *prober.KnownMounts { return knownFrom(func(func([]byte) bool) {}) }

// recordHas reports whether the kernel has filled in what a bit of the mask stands for.
func recordHas(record []byte, bit uint64) bool {
	return binary.NativeEndian.Uint64(record[offsetMask:])&bit != 0
}

// recordText is a string of a record, if the kernel has filled it in.
func recordText(record []byte, bit uint64, offset int) string {
	rest, start := record[statmountSize:], binary.NativeEndian.Uint32(record[offset:])
	if !recordHas(record, bit) || uint64(start) >= uint64(len(rest)) {
		return ""
	}
	value, _, _ := strings.Cut(string(rest[start:min(len(rest), int(start)+math.MaxUint16)]), "\x00")
	return value
}

func parseRecord(record []byte) (*mountinfo.Info, error) {
	if len(record) < statmountSize {
		return nil, fmt.Errorf("%w: %d bytes, expected %d", errIncomplete, len(record), statmountSize)
	}
	number := func(offset int) uint32 { return binary.NativeEndian.Uint32(record[offset:]) }
	mask := binary.NativeEndian.Uint64(record[offsetMask:])
	text := func(bit uint64, offset int) string { return recordText(record, bit, offset) }
	const needed = statmountSBBasic | statmountMntBasic | statmountMntRoot | statmountMntPoint | statmountFSType
	if mask&needed != needed {
		return nil, fmt.Errorf("%w: mask %#x, expected %#x", errIncomplete, mask, needed)
	}
	info := &mountinfo.Info{
		ID: int(number(offsetIDOld)), Parent: int(number(offsetParentOld)),
		Major: int(number(offsetMajor)), Minor: int(number(offsetMinor)),
		Root: text(statmountMntRoot, offsetRoot), Mountpoint: text(statmountMntPoint, offsetPoint),
		FSType: text(statmountFSType, offsetFSType), Source: text(statmountSBSource, offsetSource),
		Options: mountOptions(binary.NativeEndian.Uint64(record[offsetAttr:])),
	}
	if info.Mountpoint == "" {
		return nil, fmt.Errorf("%w: mount %d has no mount point", errIncomplete, info.ID)
	}
	if subtype := text(statmountFSSubtype, offsetSubtype); subtype != "" {
		info.FSType += "." + subtype
	}
	info.VFSOptions = superOptions(number(offsetSBFlags), text(statmountMntOpts, offsetOpts))
	return info, nil
}

// mountOptions are the words that mountinfo has for a mount's attributes,
// mount_setattr(2) and show_mnt_opts, fs/proc_namespace.c.
func mountOptions(attributes uint64) string {
	words := []string{"rw"}
	if attributes&unix.MOUNT_ATTR_RDONLY != 0 {
		words[0] = "ro"
	}
	for _, known := range []struct {
		bit  uint64
		word string
	}{
		{unix.MOUNT_ATTR_NOSUID, "nosuid"}, {unix.MOUNT_ATTR_NODEV, "nodev"}, {unix.MOUNT_ATTR_NOEXEC, "noexec"},
		{unix.MOUNT_ATTR_NODIRATIME, "nodiratime"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"}, {unix.MOUNT_ATTR_IDMAP, "idmapped"},
	} {
		if attributes&known.bit != 0 {
			words = append(words, known.word)
		}
	}
	switch attributes & unix.MOUNT_ATTR__ATIME {
	case unix.MOUNT_ATTR_RELATIME:
		words = append(words, "relatime")
	case unix.MOUNT_ATTR_NOATIME:
		words = append(words, "noatime")
	}
	return strings.Join(words, ",")
}

// superOptions are the words that mountinfo has for a superblock's flags, and its own
// options (show_sb_opts, fs/proc_namespace.c).
func superOptions(flags uint32, own string) string {
	words := []string{"rw"}
	if flags&unix.MS_RDONLY != 0 {
		words[0] = "ro"
	}
	for _, known := range []struct {
		bit  uint32
		word string
	}{{unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_LAZYTIME, "lazytime"}} {
		if flags&known.bit != 0 {
			words = append(words, known.word)
		}
	}
	if own != "" {
		words = append(words, own)
	}
	return strings.Join(words, ",")
}

// SomeAskForOptions reports whether a file system may be mounted for which asksForOptions is
// true: the kernel has its type, by proc_filesystems(5), and sysfs does not say that there
// is none. From Linux 6.13 on, the table of another mount namespace is then read by entering that.
func SomeAskForOptions(proc, sys string) bool {
	content, err := os.ReadFile(proc + "/filesystems")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) > 0 && asksForOptions(fields[len(fields)-1]) && mayBeMounted(sys, fields[len(fields)-1]) {
			return true
		}
	}
	return false
}

// mayBeMounted reports whether file systems of a type may be mounted. btrfs and bcachefs have a
// directory for each mounted one, beside that of the kernel's features (btrfs_sysfs_add_mounted,
// fs/btrfs/sysfs.c; bch2_fs_online, fs/bcachefs/super.c); ZFS has none.
func mayBeMounted(sys, fstype string) bool {
	entries, err := os.ReadDir(filepath.Join(sys, "fs", fstype))
	return sys == "" || err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != "features" })
}
