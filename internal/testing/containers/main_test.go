//go:build !race

package containers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	roleEat      = "eat"  // takes memory, in a cgroup
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); {
	case filepath.Base(os.Args[0]) == "cp": // as the images of Telegraf have it
		os.Exit(codeOf(copyProgram(os.Args[1], os.Args[2])))
	case role == roleOpen:
		for _, name := range os.Args[1:] {
			file, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err == nil {
				file.Close()
				fmt.Println("writable:", name)
			}
		}
		if syscall.Setuid(0) == nil {
			fmt.Println("root")
		}
	case role == roleRead:
		List(os.Args[1])
	case role == roleEat:
		RunOutOfMemory(os.Args[1])
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

func copyProgram(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
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

// asInit sets the namespaces up, and runs the tests.
func asInit() int {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""))
	for _, dir := range []string{"/var/lib/containers", "/run/containers", "/run/libpod", "/var/lib/docker", "/run/docker", "/var/lib/containerd", "/run/containerd"} {
		err = errors.Join(err, os.MkdirAll(dir, 0o755), unix.Mount("containers", dir, "tmpfs", 0, "mode=755"))
	}
	if err != nil {
		return codeOf(fmt.Errorf("setting up the tests' namespaces: %w", err))
	}
	// Where tools/engines unpacks Docker and containerd.
	if cache, err := os.UserCacheDir(); err == nil {
		engines := filepath.Join(cache, "vfsprobe/engines")
		os.Setenv("PATH", engines+"/usr/sbin:"+engines+"/usr/bin:"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	}
	code := 0
	for _, setUp := range cgroupSetUps() {
		if err := setUp(); err != nil {
			return codeOf(fmt.Errorf("setting up the tests' cgroups: %w", err))
		}
		code = max(code, runTests())
		endOthers()
		for range 10 { // the kernel lets go of who has ended a moment later
			removeCgroups()
			time.Sleep(100 * time.Millisecond)
		}
	}
	return code
}

// everything has all engines with all runtimes tested, in both versions of cgroups;
// otherwise one of each kind.
var everything = os.Getenv("VFSPROBE_RUNTIMES") == "all"

// cgroupSetUps are what set up the versions in which the tests are run; VFSPROBE_CGROUPS is 1 or 2
// for one of them.
func cgroupSetUps() []func() error {
	switch version := os.Getenv("VFSPROBE_CGROUPS"); {
	case version == "2":
		return []func() error{version2}
	case version == "" && everything:
		return []func() error{hostsVersion, version2}
	default:
		return []func() error{hostsVersion}
	}
}

// hostsVersion leaves the host's, but for version 2 beside controllers in version 1, which crun
// takes for a host with both.
func hostsVersion() error {
	err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// version2 mounts that alone, without the controllers that the host has in version 1.
func version2() error {
	for {
		err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) { // no more
			break
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("cgroups of version 2:")
	return unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
}

// endOthers ends what the engines have left in this process's namespace.
func endOthers() {
	if os.Getpid() != 1 {
		return
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// runTests reaps until the tests have ended.
func runTests() int {
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
