// Package blockdev tells what the kernel knows of block devices. It reads sysfs, and asks
// no device: what is read here waits for nothing, also while a device hangs.
package blockdev

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Tree is where sysfs is mounted, /sys.
type Tree string

// Device is a block device, with what it lies on.
type Device struct {
	Name  string    // the kernel's: sda1, dm-0
	Below []*Device // a partition's disk; what the device mapper or md has made it of
	dir   string    // in sysfs
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

func (t Tree) find(link string, depth int) *Device {
	target, err := os.Readlink(link)
	if err != nil || depth > maxDepth {
		return nil
	}
	d := &Device{Name: filepath.Base(target), dir: filepath.Join(filepath.Dir(link), target)}
	if _, err := procfs.ReadText(filepath.Join(d.dir, "partition")); err == nil {
		disk := filepath.Dir(d.dir)
		d.Below = []*Device{{Name: filepath.Base(disk), dir: disk}}
		d.Below[0].Below = t.below(disk, depth)
	} else {
		d.Below = t.below(d.dir, depth)
	}
	return d
}

// below are the devices that one is made of.
func (t Tree) below(dir string, depth int) (all []*Device) {
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	for _, slave := range slaves {
		if d := t.find(filepath.Join(dir, "slaves", slave.Name()), depth+1); d != nil {
			all = append(all, d)
		}
	}
	return all
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

// Suspended reports whether the kernel has stopped a disk that the device lies on: who reads
// from it wakes it (Documentation/power/runtime_pm.rst).
func (d *Device) Suspended() bool {
	for disk := range d.All() {
		if status, _ := disk.attribute("device/power/runtime_status"); status == "suspended" {
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

// Requests are those that a device was ever given.
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
