package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupPrefix = "vfsprobe-bench-"

// A cgroup counts the CPU time of all processes that are started in it, those that
// have ended and those that hang included, whatever their parents know of it.
type cgroup struct {
	path string
	dir  *os.File
}

// newCgroup makes a cgroup below a mount of cgroup2 of this mount namespace.
func newCgroup(dir string) (*cgroup, error) {
	root := filepath.Join(dir, "cgroup")
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(root, 0o700); err != nil {
			return nil, fmt.Errorf("making a mount point: %w", err)
		}
		if err := unix.Mount("bench", root, "cgroup2", 0, ""); err != nil {
			return nil, fmt.Errorf("mounting cgroup2, to count CPU time: %w", err)
		}
		left, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
		for _, path := range left { // by a run that was killed
			_ = os.Remove(path)
		}
	}
	path, err := os.MkdirTemp(root, cgroupPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	d, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &cgroup{path, d}, nil
}

// start makes a command start in it.
func (g *cgroup) start(attr *syscall.SysProcAttr) {
	attr.UseCgroupFD, attr.CgroupFD = true, int(g.dir.Fd())
}

// cpu is the user and system time of all its processes so far.
func (g *cgroup) cpu() (time.Duration, error) {
	content, err := os.ReadFile(filepath.Join(g.path, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("reading CPU time: %w", err)
	}
	_, rest, _ := strings.Cut(string(content), "usage_usec ")
	number, _, _ := strings.Cut(rest, "\n")
	spent, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading CPU time: %s/cpu.stat: %w", g.path, err)
	}
	return time.Duration(spent) * time.Microsecond, nil
}

// remove removes it, once its processes have ended.
func (g *cgroup) remove() error {
	g.dir.Close()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = os.Remove(g.path); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("removing a cgroup: %w", err)
	}
	return nil
}
