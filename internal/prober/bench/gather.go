package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	gathersPerRound = 10
	metricTarget    = 5 // µs per mount, beside 1.5 times the floor
	hungTimeout     = 2 * time.Second
)

// measureGather compares the CPU time of whole gathers of vfsprobe, per mount,
// with the floor's time per check; and the time of gathers in which mounts hang
// with the timeout.
func measureGather(dir string) error {
	floor, statfs, err := buildFloor(dir)
	if err != nil {
		return err
	}
	vfsprobe, err := build(dir, "cmd/vfsprobe")
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "tmpfs")
	mounted := 0
	defer func() {
		for i := range mounted {
			_ = unix.Unmount(filepath.Join(root, strconv.Itoa(i)), unix.MNT_DETACH)
		}
	}()

	fmt.Printf("CPU time of gathers, user and system, of all processes: N tmpfs mounts, each checked\n"+
		"by statfs and readdir, medians of %d gathers with an unchanged mount table\n\n", gathersPerRound)
	printRow("", "  µs per check or mount, by round", "ratio to the floor", "target")
	for _, n := range []int{20, 200, 1000, 5000} {
		for ; mounted < n; mounted++ {
			path := filepath.Join(root, strconv.Itoa(mounted))
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			if err := unix.Mount("bench", path, "tmpfs", 0, "size=4k"); err != nil {
				return fmt.Errorf("mount tmpfs on %s: %w", path, err)
			}
		}
		var floors, gathers series
		for range rounds {
			c := &contender{checks: checks, command: func() *exec.Cmd {
				return exec.Command(floor, strconv.Itoa(checks), strconv.Itoa(concurrency), statfs, checkedPath)
			}}
			if err := c.measure(); err != nil {
				return err
			}
			floors = append(floors, c.cpu...)
			perGather, err := gatherCPU(vfsprobe, dir, root)
			if err != nil {
				return err
			}
			gathers = append(gathers, perGather*1e6/float64(n))
		}
		printRow("floor: a check", floors.raw(), "", "")
		target := 1.5 + metricTarget/floors.median()
		printRow(fmt.Sprintf("vfsprobe: a mount of %d", n), gathers.raw(), gathers.over(floors).String(), fmt.Sprintf("%.2f", target))
	}
	fmt.Println()
	return measureHung(dir, vfsprobe)
}

// session is a running vfsprobe which gathers when it is told to.
type session struct {
	command *exec.Cmd
	trigger io.WriteCloser
	lines   *bufio.Scanner
	log     strings.Builder
}

func startSession(vfsprobe, dir, config string, arguments ...string) (*session, error) {
	return startSessionIn(nil, vfsprobe, dir, config, arguments...)
}

// startSessionIn starts it in a cgroup, if there is one.
func startSessionIn(group *cgroup, vfsprobe, dir, config string, arguments ...string) (*session, error) {
	file := filepath.Join(dir, "vfsprobe.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s := &session{command: exec.Command(vfsprobe, append([]string{"-config", file}, arguments...)...)}
	s.command.Stderr = &s.log
	if group != nil {
		s.command.SysProcAttr = new(syscall.SysProcAttr)
		group.start(s.command.SysProcAttr)
	}
	var err error
	if s.trigger, err = s.command.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.lines = bufio.NewScanner(stdout)
	return s, s.command.Start()
}

// gather returns the lines of the summary and of vfsprobe's own health.
func (s *session) gather() (summary, health string, err error) {
	if _, err := io.WriteString(s.trigger, "\n"); err != nil {
		return "", "", err
	}
	for s.lines.Scan() {
		switch line := s.lines.Text(); {
		case strings.HasPrefix(line, "mountstat_summary "):
			summary = line
		case strings.HasPrefix(line, "vfsprobe "):
			health = line
		}
		// Of a long gather the health comes first, with what there is after 0.1 s.
		if summary != "" && health != "" {
			return summary, health, nil
		}
	}
	return "", "", fmt.Errorf("vfsprobe has ended: %w\n%s", errors.Join(s.lines.Err()), &s.log)
}

func (s *session) stop() {
	s.trigger.Close()
	_ = s.command.Wait()
}

func number(line, field string) (float64, error) {
	found := regexp.MustCompile(`[ ,]` + field + `=([0-9.e+-]+)`).FindStringSubmatch(line)
	if found == nil {
		return 0, fmt.Errorf("no %s in %q", field, line)
	}
	return strconv.ParseFloat(found[1], 64)
}

// gatherCPU returns the CPU seconds of a gather: of the process, the fork server and
// the helpers. What vfsprobe tells of it is in hundredths of a second.
func gatherCPU(vfsprobe, dir, root string) (spent float64, err error) {
	group, err := newCgroup(dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, group.remove()) }()
	s, err := startSessionIn(group, vfsprobe, dir, fmt.Sprintf("[[inputs.mountstat]]\nmount_points = [%q]\nignore_fs = []\nfstab = \"\"\ntimeout = \"30s\"\n", root+"/*"))
	if err != nil {
		return 0, err
	}
	defer s.stop()
	var all series
	var before time.Duration
	for i := range gathersPerRound + 3 {
		if _, _, err := s.gather(); err != nil {
			return 0, err
		}
		now, err := group.cpu()
		if err != nil {
			return 0, err
		}
		if i >= 3 { // the first ones read the table, and fill caches
			all = append(all, (now - before).Seconds())
		}
		before = now
	}
	return all.median(), nil
}

// measureHung hangs some of 520 mounts.
func measureHung(dir, vfsprobe string) error {
	const most, healthy = 500, 20
	fmt.Printf("Time of gathers while mounts hang: %d FUSE mounts, timeout %v\n\n", most+healthy, hungTimeout)
	printRow("", "  s, by gather", "ratio to the timeout", "target")
	for _, n := range []int{0, 1, 20, 100, most} {
		err := func() error {
			d, err := startDaemon(dir, most+healthy)
			if err != nil {
				return err
			}
			defer d.stop()
			s, err := startSession(vfsprobe, dir, fmt.Sprintf("[[inputs.mountstat]]\nfs = [\"fuse.*\"]\nfstab = \"\"\ntimeout = %q\n", hungTimeout))
			if err != nil {
				return err
			}
			defer s.stop()
			if _, _, err := s.gather(); err != nil {
				return err
			}
			if err := d.order(fmt.Sprint("silence ", n)); err != nil {
				return err
			}
			var took series
			for range rounds {
				summary, _, err := s.gather()
				if err != nil {
					return err
				}
				seconds, err := number(summary, "gather_seconds")
				if err != nil {
					return err
				}
				took = append(took, seconds)
			}
			printRow(fmt.Sprintf("%d mounts hang", n), took.raw(), took.over(constant(hungTimeout.Seconds(), len(took))).String(), "1.10")
			return nil
		}()
		if err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

func constant(value float64, n int) series {
	s := make(series, n)
	for i := range s {
		s[i] = value
	}
	return s
}
