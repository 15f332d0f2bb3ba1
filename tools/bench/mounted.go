package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

// perHangable is how many mounts there are to each that can hang.
const perHangable = 10

// A mountSet is n mounts below a directory: tmpfs, and each tenth of FUSE. These are
// of two servers by their sources: the first has a hundredth of all mounts, which
// hang first.
type mountSet struct {
	dir    string
	paths  []string // in the order of the mount table
	others []string // where else something is mounted
	fuse   []string // those that can hang, in the order in which they do
	daemon *daemon
}

// newMountSet mounts n file systems, at least 20, below dir.
func newMountSet(dir string, n int) (s *mountSet, err error) {
	s = &mountSet{dir: dir}
	if s.others, err = mountPoints(); err != nil {
		return nil, err
	}
	few := max(n/100, 1)
	originals := make([]string, n/perHangable)
	for i := range originals {
		server := "first"
		if i >= few {
			server = "second"
		}
		originals[i] = filepath.Join(dir, "fuse", server, strconv.Itoa(i))
	}
	if s.daemon, err = startDaemonOn(originals); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	order := spread(len(originals), few)
	s.fuse = make([]string, len(order))
	for i := range n {
		path := filepath.Join(dir, "mounts", strconv.Itoa(i))
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, fmt.Errorf("making a mount point: %w", err)
		}
		if i%perHangable == perHangable/2 {
			// So they have their places in the table among the others.
			turn := order[i/perHangable]
			s.fuse[turn] = path
			err = unix.Mount(s.daemon.mounts[turn], path, "", unix.MS_BIND, "")
		} else {
			err = unix.Mount("bench", path, "tmpfs", 0, "size=4k")
		}
		if err != nil {
			return nil, fmt.Errorf("mounting on %s: %w", path, err)
		}
		s.paths = append(s.paths, path)
	}
	for _, original := range s.daemon.mounts {
		if err := unix.Unmount(original, unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmounting %s: %w", original, err)
		}
	}
	return s, nil
}

// spread gives n places turns, so that the first few are spread over all places.
func spread(n, few int) []int {
	turns := make([]int, n)
	first, later := 0, few
	for place := range turns {
		if first < few && place == (2*first+1)*n/(2*few) {
			turns[place] = first
			first++
		} else {
			turns[place] = later
			later++
		}
	}
	return turns
}

// glob is a pattern of the paths.
func (s *mountSet) glob() string { return filepath.Join(s.dir, "mounts", "*") }

// hang makes the first n of those that can do so hang; heal undoes it.
func (s *mountSet) hang(n int) error { return s.daemon.order(fmt.Sprint("silence ", n)) }

func (s *mountSet) heal() error { return s.daemon.order("heal") }

// healthy are the paths of those which work while the first n hang.
func (s *mountSet) healthy(n int) map[string]bool {
	working := make(map[string]bool, len(s.paths))
	for _, path := range s.paths {
		working[path] = true
	}
	for _, path := range s.fuse[:n] {
		delete(working, path)
	}
	return working
}

// close unmounts all, and ends what hangs.
func (s *mountSet) close() {
	s.daemon.stop()
	for _, path := range s.paths {
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
}

// mountPoints lists where something is mounted now.
func mountPoints() ([]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	table := mounts.Parse(content)
	points := make([]string, len(table.Mounts))
	for i := range table.Mounts {
		points[i] = table.Mounts[i].Mountpoint
	}
	return points, table.Err
}
