//go:build !race

package containers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test program is also process 1 of its namespaces, which reaps what is left by others,
// and the program in the image that is no vfsprobe.
const (
	roleVariable = "VFSPROBE_TEST_ROLE"
	roleInit     = "init"
	roleTests    = "tests"
	roleOpen     = "open" // opens files for writing
	roleRead     = "read" // lists a directory again and again
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); {
	case role == roleOpen:
		for _, name := range os.Args[1:] {
			file, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err == nil {
				file.Close()
				fmt.Println("writable:", name)
			}
		}
	case role == roleRead:
		for {
			_, _ = os.ReadDir(os.Args[1])
			time.Sleep(100 * time.Millisecond)
		}
	case role == roleInit:
		os.Exit(asInit())
	case role == roleTests, os.Geteuid() != 0:
		os.Exit(m.Run())
	default:
		command := self(roleInit)
		command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Cloneflags: unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		os.Exit(codeOf(command.Run()))
	}
}

func self(role string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.Env = append(os.Environ(), roleVariable+"="+role)
	return command
}

func codeOf(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// asInit sets the namespaces up, and reaps until the tests have ended.
func asInit() int {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""))
	for _, dir := range []string{"/var/lib/containers", "/run/containers", "/run/libpod"} {
		err = errors.Join(err, os.MkdirAll(dir, 0o755), unix.Mount("containers", dir, "tmpfs", 0, "mode=755"))
	}
	if err != nil {
		return codeOf(fmt.Errorf("setting up the tests' namespaces: %w", err))
	}
	// crun takes no host with controllers in both versions of cgroups.
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return codeOf(err)
	}
	command := self(roleTests)
	if err := command.Start(); err != nil {
		return codeOf(err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return codeOf(err)
		case pid == command.Process.Pid && status.Exited():
			return status.ExitStatus()
		case pid == command.Process.Pid && status.Signaled():
			return codeOf(fmt.Errorf("the tests ended by %v", status.Signal()))
		}
	}
}
