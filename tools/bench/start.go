package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	startsPerRound = 10
	startMounts    = 20
	moreCgroups    = 72
	startTarget    = "3"
	lastTarget     = "100"
	sizeTarget     = "6"
	silence        = 300 * time.Millisecond // is longer than what comes without an answer takes
)

// measureStart compares the time from the start of vfsprobe to its first
// metric with the time in which an empty Go program starts and ends.
func measureStart(dir string) error {
	empty, err := build(dir, "empty")
	if err != nil {
		return err
	}
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return err
	}
	binary, err := os.Stat(vfsprobe)
	if err != nil {
		return err
	}
	d, err := startDaemon(dir, startMounts)
	if err != nil {
		return err
	}
	defer d.stop()

	var floors, firsts, lasts, afters, amongMore series // medians of each round
	for range rounds {
		var floor, first, last, after series
		for range startsPerRound {
			began := time.Now()
			if err := run(exec.Command(empty)); err != nil {
				return err
			}
			floor = append(floor, milliseconds(time.Since(began)))
			toFirst, toLast, err := firstGather(vfsprobe)
			if err != nil {
				return err
			}
			first, last = append(first, milliseconds(toFirst)), append(last, milliseconds(toLast))
			sinceAnswer, err := afterLastAnswer(vfsprobe, dir, d)
			if err != nil {
				return err
			}
			after = append(after, milliseconds(sinceAnswer))
		}
		more, err := firstAmongMore(vfsprobe)
		if err != nil {
			return err
		}
		amongMore = append(amongMore, more...)
		floors, firsts, lasts, afters = append(floors, floor.median()), append(firsts, first.median()), append(lasts, last.median()), append(afters, after.median())
	}

	fmt.Printf("Start to first metric, wall time: %d checked mounts, medians of %d starts\n\n", startMounts, startsPerRound)
	printRow("", "  ms, by round", "ratio to the floor", "target")
	printRow("floor: empty Go program, to its exit", floors.raw(), floors.over(floors).String(), "1")
	printRow("vfsprobe, to its first line", firsts.raw(), firsts.over(floors).String(), startTarget)
	if len(amongMore) == rounds {
		printRow(fmt.Sprintf("  with %d more cgroups of memory", moreCgroups), amongMore.raw(), amongMore.over(floors).String(), startTarget)
	}
	printRow("  and to the last, all mounts checked", lasts.raw(), lasts.over(floors).String(), "")
	printRow("last line, after mounts were mended", afters.raw(), "", lastTarget)
	printRow("", "  MB", "", "")
	printRow("size of the binary", series{float64(binary.Size()) / 1e6}.raw(), "", sizeTarget)
	fmt.Println()
	return nil
}

// firstAmongMore returns the median of the times to the first line on a host with more cgroups, whose
// memory is read before it. There is none where they can't be made.
func firstAmongMore(vfsprobe string) (median series, err error) {
	hierarchies := cgroups.FindHierarchies("/sys")
	if hierarchies.Memory == "" || unix.Access(hierarchies.Memory, unix.W_OK) != nil {
		return nil, nil
	}
	left, _ := filepath.Glob(filepath.Join(hierarchies.Memory, cgroupPrefix+"*"))
	for _, path := range left { // by a run that was killed
		_ = removeCgroups(path)
	}
	root, err := os.MkdirTemp(hierarchies.Memory, cgroupPrefix)
	if err != nil {
		return nil, fmt.Errorf("making cgroups: %w", err)
	}
	defer func() { err = errors.Join(err, removeCgroups(root)) }()
	if !hierarchies.V1() {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			return nil, fmt.Errorf("making cgroups: %w", err)
		}
	}
	for i := range moreCgroups - 1 {
		if err := os.Mkdir(filepath.Join(root, strconv.Itoa(i)), 0o755); err != nil {
			return nil, fmt.Errorf("making cgroups: %w", err)
		}
	}
	var all series
	for range startsPerRound {
		first, _, err := firstGather(vfsprobe)
		if err != nil {
			return nil, err
		}
		all = append(all, milliseconds(first))
	}
	return series{all.median()}, nil
}

// removeCgroups removes a cgroup without processes, and those right below it.
func removeCgroups(path string) error {
	below, err := filepath.Glob(filepath.Join(path, "[0-9]*"))
	for _, path := range below {
		err = errors.Join(err, unix.Rmdir(path))
	}
	return errors.Join(err, unix.Rmdir(path))
}

// afterLastAnswer starts vfsprobe beside mounts that answer nothing, mends them while its first gather
// waits for them, and returns how long after that its last line comes.
func afterLastAnswer(vfsprobe, dir string, d *daemon) (time.Duration, error) {
	if err := d.order("silence"); err != nil {
		return 0, err
	}
	s, err := startSession(vfsprobe, dir, "[[inputs.mountstat]]\nfs = [\"fuse.*\"]\nfstab = \"\"\n", "-max-stuck", strconv.Itoa(4*startMounts)) // of which one server gets a third
	if err != nil {
		return 0, errors.Join(err, d.order("heal"))
	}
	defer s.stop()
	var began time.Time
	mended := make(chan error, 1)
	time.AfterFunc(silence, func() {
		began = time.Now()
		mended <- d.order("heal")
	})
	_, _, err = s.gather()
	ended := time.Now()
	err = errors.Join(err, <-mended)
	return ended.Sub(began), err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// firstGather starts vfsprobe with a newline waiting on its stdin, and returns
// how long the first line takes, and the last of the gather.
func firstGather(vfsprobe string) (toFirst, toLast time.Duration, err error) {
	stdin, orders, err := os.Pipe()
	if err != nil {
		return 0, 0, err
	}
	defer stdin.Close()
	defer orders.Close()
	if _, err := orders.WriteString("\n"); err != nil {
		return 0, 0, err
	}
	c := exec.Command(vfsprobe)
	var log strings.Builder
	c.Stdin, c.Stderr = stdin, &log
	stdout, err := c.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	lines := bufio.NewReader(stdout)

	began := time.Now()
	if err := c.Start(); err != nil {
		return 0, 0, err
	}
	line, readErr := lines.ReadString('\n')
	toFirst = time.Since(began)
	for readErr == nil && !strings.HasPrefix(line, "vfsprobe ") {
		line, readErr = lines.ReadString('\n')
	}
	toLast = time.Since(began)

	orders.Close() // which ends vfsprobe
	_, drainErr := io.Copy(io.Discard, lines)
	if err := errors.Join(readErr, drainErr, c.Wait()); err != nil {
		return 0, 0, fmt.Errorf("running vfsprobe: %w\n%s", err, &log)
	}
	return toFirst, toLast, nil
}
