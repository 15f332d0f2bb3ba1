// Package watches knows which directories are watched through inotify(7) and
// fanotify(7), from /proc/PID/fdinfo. It makes no call on a file that is watched.
package watches

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/openfiles"
)

// Inode is a file as the kernel knows it: by its inode and the device number of
// its superblock, which on btrfs is another than st_dev.
type Inode struct {
	Major, Minor uint32
	Number       uint64
}

// Watches are the watched inodes, with how many watches there are of each. A watch
// counts if it wants events of the children, such as IN_MODIFY: for these the
// kernel goes through all children of a directory and marks them
// (fsnotify_set_children_dentry_flags, fs/notify/fsnotify.c). One for IN_CREATE and
// IN_DELETE alone does not need that.
type Watches struct {
	Counts map[Inode]int
	// Hidden is why the files of some processes may not be looked at, if that is so.
	Hidden error
}

// Scan looks at the open files of all processes that show below the directory
// where procfs is mounted. It costs some 2 µs per open file. Of fanotify only
// marks on inodes that want the events of children are counted: marks on mounts
// and file systems mark no dentries.
func Scan(files *openfiles.Reader) (*Watches, error) {
	w := &Watches{Counts: make(map[Inode]int)}
	problem, err := w.each(files, func(_ int, content []byte) error { return w.add(content) }, "anon_inode:inotify", fanotify)
	if err != nil {
		return nil, err
	}
	return w, problem
}

// fanotify is what a descriptor of fanotify(7) is a link to.
const fanotify = "anon_inode:[fanotify]"

// each takes the fdinfo file of each descriptor that is a link to one of some names, and
// notes why some processes may not be looked at. It returns what was wrong with files, and
// why nothing could be looked at.
func (w *Watches) each(files *openfiles.Reader, take func(pid int, content []byte) error, links ...string) (problem, err error) {
	processes, err := names(files.Proc)
	if err != nil {
		return nil, err
	}
	processes = slices.DeleteFunc(processes, func(name string) bool {
		_, err := strconv.Atoi(name)
		return err != nil
	})
	directories := make([]string, len(processes))
	for i, process := range processes {
		directories[i] = filepath.Join(process, "fd")
	}
	all, err := files.Links(directories, "anon_ino", math.MaxInt32)
	if err != nil {
		return nil, err
	}
	var watching []string
	var pids []int
	for i, found := range all {
		if found.MayNot() {
			w.Hidden = fmt.Errorf("the open files of some processes can't be seen: %s", openfiles.Hindrance())
		}
		for _, link := range found.Links {
			if slices.Contains(links, link.Target) {
				pid, _ := strconv.Atoi(processes[i])
				pids = append(pids, pid)
				watching = append(watching, filepath.Join(processes[i], "fdinfo", link.Name))
			}
		}
	}
	infos, problem := files.Infos(watching)
	for i, content := range infos {
		if err := take(pids[i], content); err != nil && problem == nil {
			problem = fmt.Errorf("%s: %w", filepath.Join(files.Proc, watching[i]), err)
		}
	}
	return problem, nil
}

// Guards returns the processes that the kernel asks for permission before a file is opened or
// read, such as virus scanners: they have a mark of fanotify(7) with such an event.
func Guards(files *openfiles.Reader) (pids []int, err error) {
	problem, err := new(Watches).each(files, func(pid int, content []byte) error {
		guards, err := asksForPermission(content)
		if guards && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
		return err
	}, fanotify)
	return pids, errors.Join(err, problem)
}

// asksForPermission reports whether one of the marks in an fdinfo file is for such an event.
func asksForPermission(content []byte) (asks bool, err error) {
	const permission = unix.FAN_OPEN_PERM | unix.FAN_ACCESS_PERM | unix.FAN_OPEN_EXEC_PERM
	for field := range bytes.FieldsSeq(content) {
		value, found := bytes.CutPrefix(field, []byte("mask:"))
		if !found {
			continue
		}
		mask, err := strconv.ParseUint(string(value), 16, 64)
		if err != nil {
			return asks, fmt.Errorf("mask of a mark is no number: %q", field)
		}
		asks = asks || mask&permission != 0
	}
	return asks, nil
}

func names(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// add reads the lines of the marks in an fdinfo file (fs/notify/fdinfo.c):
//
//	inotify wd:1 ino:2 sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 …
//	fanotify ino:2 sdev:800013 mflags:0 mask:8000002 ignored_mask:0 …
//
// All numbers but the wd are hexadecimal. A mark of fanotify is for the children
// with FAN_EVENT_ON_CHILD only; the other bits are the same for both.
func (w *Watches) add(content []byte) error {
	const ofChildren = unix.IN_ACCESS | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE | unix.IN_OPEN |
		unix.FAN_OPEN_EXEC | unix.FAN_OPEN_PERM | unix.FAN_ACCESS_PERM | unix.FAN_OPEN_EXEC_PERM // FS_EVENTS_POSS_ON_CHILD
	for line := range bytes.Lines(content) {
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		inotify := string(kind) == "inotify"
		if !inotify && string(kind) != "fanotify" {
			continue
		}
		number := make(map[string]uint64, 3)
		for field := range bytes.FieldsSeq(rest) {
			key, value, found := bytes.Cut(field, []byte(":"))
			switch string(key) {
			case "ino", "sdev", "mask":
				n, err := strconv.ParseUint(string(value), 16, 64)
				if err != nil || !found {
					return fmt.Errorf("%s of a mark is no number: %q", key, line)
				}
				number[string(key)] = n
			}
		}
		ino, hasIno := number["ino"]
		device, hasDevice := number["sdev"]
		if !hasIno || !hasDevice || number["mask"]&ofChildren == 0 || !inotify && number["mask"]&unix.FAN_EVENT_ON_CHILD == 0 {
			continue // also a mark on a mount or a superblock, or of flags
		}
		// The kernel's own dev_t: 12 bits and 20 (linux/kdev_t.h).
		w.Counts[Inode{uint32(device>>20) & 0xfff, uint32(device) & 0xfffff, ino}]++
	}
	return nil
}
