package attribution

import (
	"fmt"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// Mode is a way of seeing who creates negative dentries. A greater one sees more.
type Mode uint8

const (
	// None: nothing can be attributed. [Status.Refused] says why.
	None Mode = iota
	// ENOENT counts what a system call has made the kernel's count grow by, or calls that end
	// with ENOENT, by the path in their arguments, while [Tracer.Watch] is on. Above
	// [SampledAbove] it samples.
	ENOENT
	// Kprobe counts in the kernel's functions themselves, by kprobes.
	Kprobe
	// Fentry is Kprobe by BPF trampolines, at some 60 % of the cost.
	Fentry
)

var modeNames = [...]string{"none", "enoent", "kprobe", "fentry"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Options of a [Tracer].
type Options struct {
	// Prober runs the self-test's lookups: they are made in a helper process.
	Prober *prober.Prober
	// Modes that may be used, the preferred one first. Default: Fentry, Kprobe,
	// ENOENT.
	Modes []Mode
	// Directories for the self-test: the first one in which the known misses
	// are counted as they should is enough. Default /sys, then /.
	Directories []string
	// Timeout of each self-test. Default 2 s.
	Timeout time.Duration
	// Proc is where procfs is mounted. Default /proc.
	Proc string
	// MemoryV1: the memory controller is that of cgroups version 1, and [Source.CgroupID] is
	// to be the id of the cgroup there.
	MemoryV1 bool

	skipExit int // of the programs for the mode ENOENT, the first ones
}

// A Refusal says why a mode is not used.
type Refusal struct {
	Mode Mode
	Err  error
}

// A SelfTest is a number of lookups of missing names, and how many of them were
// counted.
type SelfTest struct {
	Directory string
	Lookups   int64
	Counted   int64
}

// Status of a [Tracer].
type Status struct {
	Mode Mode
	// Refused are the modes better than Mode, the best one first.
	Refused []Refusal
	// SelfTest is the one that Mode has passed.
	SelfTest SelfTest
	// Watching says whether misses are being counted now: always in the modes
	// Fentry and Kprobe, and as told by [Tracer.Watch] in the mode ENOENT.
	Watching bool
	// Counted: the mode ENOENT goes by the kernel's own count of negative dentries, and not
	// by failed calls.
	Counted bool
	// EventsLost are those which were not counted in any row since the start:
	// full maps, and programs that the kernel did not run.
	EventsLost int64
	// MapBytes is the size of all BPF maps.
	MapBytes int64
}

// Device is a superblock's device number (s_dev), as in the third field of
// proc_pid_mountinfo(5). stat(2) can give another one on btrfs.
type Device struct {
	Major, Minor uint32
}

func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// A Place is a directory.
type Place struct {
	Device Device
	Inode  uint64
	// Path from the root of its file system to the directory, at the time it
	// was first seen. Empty for the root.
	Path []string
	// Truncated: the path is too long or too deep. Path holds its end.
	Truncated bool
	// FSType is the file system's name, such as ext4.
	FSType string
	// Relative is used in the mode ENOENT only, where the directory itself is
	// not known but the path that was asked for is: the rest of that path,
	// without its last component, as seen from the directory which the fields
	// above give (the root or working directory of the process, or the
	// directory of an *at call). Links and .. are as the process wrote them,
	// and mount points may be crossed.
	Relative string
	// FromRoot: the path asked for was absolute, so that Relative starts at the
	// root directory of the process.
	FromRoot bool
}

// Nowhere reports whether it is not known in which directory something happened: no system call
// says so that takes a path.
func (p *Place) Nowhere() bool { return p.Device == (Device{}) && p.Inode == 0 }

// A Source is one row: a command in a cgroup with a directory. Counts are since
// the row was made. Rows that have not been used for long make room for new
// ones, so one that is missing in the next Read may come back with less.
type Source struct {
	// ID tells the row from the others of its Tracer.
	ID uint64
	// Comm is the command's name (comm), at most 15 bytes of any value but 0.
	Comm string
	// CgroupID is that of cgroup v2, or with [Options.MemoryV1] of the memory controller's: the
	// inode of the cgroup's directory.
	CgroupID uint64
	Place    Place
	// Created negative dentries. In the mode ENOENT above SampledAbove an estimate; without
	// [Status.Counted] lookups that ended with ENOENT, repeated ones left out as far as they are
	// remembered.
	Created int64
	// Converted are negative dentries which became files: each creation of a
	// file first makes a negative one.
	Converted int64
	// Unlinked are removed files whose dentry stays as a negative one.
	Unlinked int64
	// KilledInDir is how many negative dentries of the directory were freed, by
	// whomever: rows of one directory have it in common.
	KilledInDir int64
	// PID and UID of the last event, in the initial namespaces. 0 and 0: not known, as the last
	// event may have been another row's.
	PID int32
	UID uint32
}

// How the mode [ENOENT] samples failed look-ups, which keeps their cost low when
// they come fast.
const (
	// SampledAbove is how many are counted exactly in a second, on each CPU.
	SampledAbove = 2000
	// SampleWeight is how many of the others each one stands for which is counted.
	SampleWeight = 64
)

// Totals are counts of all events since the start, of which the rows may hold
// fewer. They are exact if Sampled is 0, but for the hundred or so that are left out
// before the first one is sampled.
type Totals struct {
	Created   int64
	Converted int64
	Unlinked  int64
	Killed    int64
	// Lost events are in no row, but are part of the other fields.
	Lost int64
	// Sampled events, in the mode ENOENT only, stand for [SampleWeight] each, and
	// are part of Created with that weight.
	Sampled int64
}
