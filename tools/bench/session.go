package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A census is what there is of a program: the processes of the sessions it was
// started in, and their threads.
type census struct {
	processes, threads int
	hanging            int // threads that wait for an answer of a FUSE daemon
}

// count takes a census of sessions, without processes that have ended.
func count(sessions map[int]bool) (c census, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return c, err
	}
	for _, dir := range all {
		content, err := os.ReadFile(filepath.Join(dir, "stat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return c, fmt.Errorf("counting processes: %w", err)
		}
		// After the name, which may contain anything: proc_pid_stat(5), field 3 on.
		text := string(content)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		const state, session, threads = 0, 3, 17
		id, err1 := strconv.Atoi(fields[session])
		n, err2 := strconv.Atoi(fields[threads])
		if err := errors.Join(err1, err2); err != nil {
			return c, fmt.Errorf("counting processes: %s/stat: %w", dir, err)
		}
		if !sessions[id] || fields[state] == "Z" && n <= 1 {
			continue
		}
		c.processes++
		c.threads += n
		tasks, _ := filepath.Glob(filepath.Join(dir, "task/*/wchan"))
		for _, task := range tasks {
			if at, _ := os.ReadFile(task); string(at) == "request_wait_answer" {
				c.hanging++
			}
		}
	}
	return c, nil
}

// cpuOf is the user and system time of a process that runs: of all its threads,
// and none of its children.
func cpuOf(pid int) (time.Duration, error) {
	const perProcess = 2 // clock_getcpuclockid(3)
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|perProcess), &at); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}
