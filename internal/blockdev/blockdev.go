// Package blockdev tells what the kernel knows of block devices. It reads sysfs, and asks
// no device: what is read here waits for nothing, also while a device hangs.
package blockdev

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Tree is where sysfs is mounted, /sys.
type Tree string

// Device is a block device, with what it lies on. It is for one goroutine.
type Device struct {
	Name  string    // the kernel's: sda1, dm-0
	Below []*Device // a partition's disk; what the device mapper or md has made it of
	dir   string    // in sysfs

	link, target string // which led there
	names        string // of those that it is made of, when they were looked for
	listed       bool   // they could be

	session, sessionName string          // where its iSCSI session is, if it has one
	lacks                map[string]bool // files that it has not, and devices of its kind have
}

// maxDepth bounds how high devices may be stacked.
const maxDepth = 8

// ByNumber returns the device of that number, or nil.
func (t Tree) ByNumber(major, minor int) *Device {
	return t.find(t.byNumber(major, minor), 0)
}

// NameByNumber returns the kernel's name of the device of that number, or nothing.
func (t Tree) NameByNumber(major, minor int) string {
	target, err := os.Readlink(t.byNumber(major, minor))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

func (t Tree) byNumber(major, minor int) string {
	return filepath.Join(string(t), "dev/block", strconv.Itoa(major)+":"+strconv.Itoa(minor))
}

// Known reports whether sysfs knows any block device: a container may hide them.
func (t Tree) Known() bool {
	dir, err := os.Open(filepath.Join(string(t), "dev/block"))
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(1)
	return len(names) > 0
}

// BySource returns the device that a mount's source names by its path in /dev, or nil.
func (t Tree) BySource(source string) *Device {
	first, _, _ := strings.Cut(source, ":/dev/") // bcachefs names all of its devices
	name, found := strings.CutPrefix(first, "/dev/")
	if mapped, isMapped := strings.CutPrefix(name, "mapper/"); isMapped {
		name = t.NameByMapping(mapped)
	}
	if !found || name == "" {
		return nil
	}
	// The kernel's names have ! for /, as in cciss!c0d0 (kobject_set_name_vargs, lib/kobject.c).
	return t.find(filepath.Join(string(t), "class/block", strings.ReplaceAll(name, "/", "!")), 0)
}

// NameByMapping returns the kernel's name of what the device mapper knows under a name, or
// nothing (Documentation/ABI/testing/sysfs-block-dm).
func (t Tree) NameByMapping(name string) string {
	all, _ := filepath.Glob(filepath.Join(string(t), "block/dm-*/dm/name"))
	for _, file := range all {
		if content, err := procfs.ReadText(file); err == nil && content == name {
			return filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
	}
	return ""
}

// MappingOf returns the name that a device mapper's device was given: "vg-data" of dm-3.
func (t Tree) MappingOf(name string) string {
	if !strings.HasPrefix(name, "dm-") || strings.Contains(name, "/") {
		return ""
	}
	mapping, _ := procfs.ReadText(filepath.Join(string(t), "block", name, "dm/name"))
	return mapping
}

func (t Tree) find(link string, depth int) *Device {
	target, err := os.Readlink(link)
	if err != nil || depth > maxDepth {
		return nil
	}
	d := &Device{Name: filepath.Base(target), dir: filepath.Join(filepath.Dir(link), target), link: link, target: target}
	d.findSession()
	if _, err := procfs.ReadText(filepath.Join(d.dir, "partition")); err == nil {
		dir := filepath.Dir(d.dir)
		disk := &Device{Name: filepath.Base(dir), dir: dir}
		disk.findSession()
		t.findBelow(disk, depth)
		d.Below = []*Device{disk}
	} else {
		t.findBelow(d, depth)
	}
	return d
}

// findBelow finds the devices that a device is made of.
func (t Tree) findBelow(d *Device, depth int) {
	d.names, d.listed = d.madeOf()
	for name := range strings.FieldsSeq(d.names) {
		if below := t.find(filepath.Join(d.dir, "slaves", name), depth+1); below != nil {
			d.Below = append(d.Below, below)
		}
	}
}

// madeOf returns the names of the devices that a device is made of. Only those of the device
// mapper, of md and other virtual ones are made of any. It reports whether sysfs tells.
func (d *Device) madeOf() (names string, listed bool) {
	if !strings.Contains(d.dir, "/devices/virtual/") || strings.HasPrefix(d.Name, "loop") || strings.HasPrefix(d.Name, "zram") {
		return "", false
	}
	dir, err := os.Open(filepath.Join(d.dir, "slaves"))
	if err != nil {
		return "", false
	}
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	slices.Sort(all)
	return strings.Join(all, " "), err == nil
}

// Unchanged reports whether sysfs has the device, and all that it lies on, as it was found.
func (d *Device) Unchanged() bool {
	for device := range d.All() {
		if names, listed := device.madeOf(); names != device.names || listed != device.listed {
			return false
		}
		if device.link == "" {
			continue // the disk of a partition
		}
		if target, err := os.Readlink(device.link); err != nil || target != device.target {
			return false
		}
	}
	return true
}

// All returns the device, and all that it lies on.
func (d *Device) All() iter.Seq[*Device] {
	return func(yield func(*Device) bool) { d.walk(yield) }
}

func (d *Device) walk(yield func(*Device) bool) bool {
	if !yield(d) {
		return false
	}
	for _, below := range d.Below {
		if !below.walk(yield) {
			return false
		}
	}
	return true
}

// Suspended reports whether the kernel has stopped a disk that the device lies on. Reading from it
// would wake it (Documentation/power/runtime_pm.rst).
func (d *Device) Suspended() bool {
	for disk := range d.All() {
		if status, _ := disk.kindsAttribute("device/power/runtime_status"); status == "suspended" {
			return true
		}
	}
	return false
}

// BackingFile returns the path of the file that a loop device is made of, or nothing
// (loop_attr_backing_file_show, drivers/block/loop.c).
func (d *Device) BackingFile() string {
	path, _ := d.attribute("loop/backing_file")
	return strings.TrimSuffix(path, " (deleted)")
}

// Requests counts the requests that a device was ever given.
type Requests struct {
	Completed int64 // reads, writes, discards and flushes
	InFlight  int64
}

// Requests returns the device's counters (Documentation/admin-guide/iostats.rst).
func (d *Device) Requests() (r Requests, err error) {
	content, err := d.attribute("stat")
	if err != nil {
		return r, err
	}
	fields := strings.Fields(content)
	number := func(i int) int64 {
		if i >= len(fields) {
			return 0 // discards are counted since Linux 4.18, and flushes since 5.5
		}
		n, parse := strconv.ParseInt(fields[i], 10, 64)
		err = errors.Join(err, parse)
		return n
	}
	const reads, writes, inFlight, discards, flushes = 0, 4, 8, 11, 15
	r.Completed = number(reads) + number(writes) + number(discards) + number(flushes)
	r.InFlight = number(inFlight)
	return r, err
}

// attribute reads one of the device's files.
func (d *Device) attribute(name string) (string, error) {
	return procfs.ReadText(filepath.Join(d.dir, name))
}

// kindsAttribute reads a file that either all devices of a kind have, or none of them. It remembers
// if the device has no such file.
func (d *Device) kindsAttribute(name string) (string, error) {
	if d.lacks[name] {
		return "", os.ErrNotExist
	}
	content, err := d.attribute(name)
	if errors.Is(err, os.ErrNotExist) {
		if d.lacks == nil {
			d.lacks = make(map[string]bool)
		}
		d.lacks[name] = true
	}
	return content, err
}

// Size returns the device's size, in bytes.
func (d *Device) Size() (int64, error) {
	const sector = 512 // whatever the device's own is (Documentation/ABI/stable/sysfs-block)
	content, err := d.attribute("size")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(content, 10, 64)
	return n * sector, err
}
