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

	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

const (
	// mountChecks is about how many checks of mounts by gathers there are in a round, of at most
	// mostGathers gathers and at least fewestGathers.
	mountChecks                = 10000
	fewestGathers, mostGathers = 3, 10

	// setUpTime is more than vfsprobe takes after its first gather to make itself ready for worse
	// times, as it does once.
	setUpTime = 300 * time.Millisecond

	gatherTarget = "1.6" // times the limit
	hungTimeout  = 2 * time.Second
)

// measureGather compares the time of whole gathers of vfsprobe, per mount, with the
// time per check of the floor, and of the limit and the prober on the same mounts; and
// the time of gathers in which mounts hang with the timeout.
func measureGather(dir string) error {
	c, err := buildBaselines(dir)
	if err != nil {
		return err
	}
	vfsprobe, err := programs.Vfsprobe()
	if err != nil {
		return err
	}
	err = onAllAndOneCPU(func(where string) error {
		for _, n := range []int{20, 200, 1000, 5000} {
			if err := measureMounts(c, vfsprobe, filepath.Join(dir, "tmpfs"), n, where); err != nil {
				return fmt.Errorf("%d mounts: %w", n, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return measureHung(dir, vfsprobe)
}

// measureMounts compares gathers of n mounts below root.
func measureMounts(c *baselines, vfsprobe, root string, n int, where string) error {
	paths, unmount, err := mountTmpfs(root, n)
	defer unmount()
	if err != nil {
		return err
	}
	gathers := min(max(mountChecks/n, fewestGathers), mostGathers)
	each := max(checks, 10*n)
	fmt.Printf("A gather of %d tmpfs mounts, %s: CPU time, user and system, of all processes,\n"+
		"medians of %d gathers with an unchanged mount table, and %d checks by limit and prober\n\n", n, where, gathers, each)
	return compare([]*contender{
		c.measuredFloor(),
		c.measuredLimit(each, callReaddir, paths...),
		c.measuredLimitAsked(each, callReaddir, paths...),
		{name: "prober", toLimit: proberTarget, measure: byCommand(each, func() *exec.Cmd {
			return self("prober", append([]string{strconv.Itoa(each), "trimmed", "shared", callReaddir}, paths...)...)
		})},
		{name: "vfsprobe, a mount of a gather", toLimit: gatherTarget, measure: func() (cpu, wall float64, err error) {
			cpu, wall, err = gatherTimes(vfsprobe, filepath.Dir(root), root, n, gathers)
			return cpu * 1e6 / float64(n), wall * 1e6 / float64(n), err
		}},
	})
}

// mountTmpfs makes n mounts below root. unmount undoes what there is of them.
func mountTmpfs(root string, n int) (paths []string, unmount func(), err error) {
	unmount = func() {
		for _, path := range paths {
			_ = unix.Unmount(path, unix.MNT_DETACH)
		}
	}
	for i := range n {
		path := filepath.Join(root, strconv.Itoa(i))
		if err := os.MkdirAll(path, 0o755); err != nil {
			return paths, unmount, err
		}
		if err := unix.Mount("bench", path, "tmpfs", 0, "size=4k"); err != nil {
			return paths, unmount, fmt.Errorf("mount tmpfs on %s: %w", path, err)
		}
		paths = append(paths, path)
	}
	return paths, unmount, nil
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

// gatherTimes returns the seconds of a gather of n mounts: of CPU, by the process, the
// fork server and the helpers, and from the trigger until its metrics have been read.
// What vfsprobe tells of its CPU time is in hundredths of a second.
func gatherTimes(vfsprobe, dir, root string, n, gathers int) (cpu, wall float64, err error) {
	group, err := newCgroup(dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, group.remove()) }()
	s, err := startSessionIn(group, vfsprobe, dir, fmt.Sprintf("[[inputs.mountstat]]\nmount_points = [%q]\nignore_fs = []\nfstab = \"\"\ntimeout = \"30s\"\n", root+"/*"))
	if err != nil {
		return 0, 0, err
	}
	defer s.stop()
	if _, _, err := s.gather(); err != nil {
		return 0, 0, err
	}
	time.Sleep(setUpTime)
	var spent, took series
	var before, after time.Duration
	deadline := time.Now().Add(patience)
	for ; len(took) < 3+gathers; before = after { // the first ones read the table, and fill caches
		began := time.Now()
		summary, _, err := s.gather()
		if err != nil {
			return 0, 0, err
		}
		ended := time.Now()
		if after, err = group.cpu(); err != nil {
			return 0, 0, err
		}
		if ok, err := number(summary, "ok"); err != nil || int(ok) != n {
			// On a busy host the table may come late.
			if ended.After(deadline) {
				return 0, 0, fmt.Errorf("not all of %d mounts were checked: %s", n, summary)
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		spent, took = append(spent, (after-before).Seconds()), append(took, ended.Sub(began).Seconds())
	}
	return spent[3:].median(), took[3:].median(), nil
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
