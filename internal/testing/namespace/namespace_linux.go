// Package namespace runs a package's tests in namespaces of their own: what they
// mount, bind or start disappears with them, also where they are killed, and packages
// that are tested side by side don't see each other's processes.
package namespace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// variable marks the copies of the test program that run in the namespaces: the one
// that is process 1, and its child, which runs the tests.
const (
	variable = "VFSPROBE_TEST_NAMESPACE"
	isInit   = "init"
	isTests  = "tests"
)

const (
	// guardTimeout is what is left to those who undo faults once the tests have ended.
	guardTimeout = 2 * time.Second
	// endTimeout is for the namespace's end: the kernel waits for its processes.
	endTimeout = 10 * time.Second
	// codeFile is where process 1 writes the exit code of the tests.
	codeFile = 3
)

// Main runs the tests in PID and mount namespaces of their own, and further ones by the
// flags, CLONE_NEWNET and the like. There it calls setUp first, if it is not nil; workers of
// a fuzz test do that again. Without root the tests run where they are.
func Main(m *testing.M, flags uintptr, setUp func() error) {
	run(m, flags|syscall.CLONE_NEWNS|syscall.CLONE_NEWPID, setUp)
}

// Inside reports whether this copy of the test program is in the namespaces of Main.
func Inside() bool { return os.Getenv(variable) != "" }

// MainOfHost is Main for tests that are told processes by the host's PIDs, as by BPF, or
// that a PID namespace would make a container of: they have a mount namespace of their own only.
func MainOfHost(m *testing.M) { run(m, syscall.CLONE_NEWNS, nil) }

func run(m *testing.M, flags uintptr, setUp func() error) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	switch os.Getenv(variable) {
	case isTests:
		if setUp != nil {
			if err := setUp(); err != nil {
				fmt.Fprintf(os.Stderr, "setting up the tests' namespaces: %v\n", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	case isInit:
		code, err := beInit()
		exit(code, err)
	}
	role := isTests
	if flags&syscall.CLONE_NEWPID != 0 {
		role = isInit
	}
	code, err := outside(role, flags)
	exit(code, err)
}

// Mount mounts on a directory that it makes, until the test ends. See mount(2).
func Mount(t testing.TB, dir, source, fstype string, flags uintptr, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, dir, fstype, flags, options); err != nil {
		t.Fatalf("mounting %s on %s: %v", source, dir, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func exit(code int, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "running the tests in namespaces of their own: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// outside starts a copy in new namespaces, and returns the exit code of the tests. If
// something in a PID namespace can't be killed, the copy that is its init does not end, and
// is left behind.
func outside(role string, flags uintptr) (code int, err error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	inside := copyOf(role)
	// A PID namespace is one for children only, when it is unshared.
	inside.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags &^ syscall.CLONE_NEWPID, Cloneflags: flags & syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if role == isInit {
		inside.ExtraFiles = []*os.File{writer}
		inside.SysProcAttr.Pdeathsig = syscall.SIGTERM
	}
	if err := inside.Start(); err != nil {
		return 0, err
	}
	_ = writer.Close()
	ended := make(chan error, 1)
	go func() { ended <- inside.Wait() }()
	var b [1]byte
	if _, err := io.ReadFull(reader, b[:]); err != nil { // it says nothing, or has come to grief
		return exitCode(<-ended)
	}
	select {
	case <-ended:
	case <-time.After(endTimeout):
		fmt.Fprintln(os.Stderr, "the tests have left a process that can't be killed")
	}
	return int(b[0]), nil
}

func exitCode(err error) (int, error) {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Again returns a command that runs tests of this program, whose TestMain is Main, in
// further namespaces below these.
func Again(arguments ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", arguments...)
	command.Env = append(os.Environ(), variable+"=")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command
}

// copyOf is a command that runs this program with the same arguments.
func copyOf(role string) *exec.Cmd {
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), variable+"="+role)
	return self
}

// beInit is what process 1 does: it runs the tests where /proc shows the processes of the
// namespace, and waits for whoever loses its parent, as an init does. With it all others
// end.
func beInit() (code int, err error) {
	unix.CloseOnExec(codeFile)
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, fmt.Errorf("mounting /proc: %w", err)
	}
	// Those who undo faults come after the tests, also where all of them are interrupted.
	// What is caught, and not ignored, is not inherited.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	tests := copyOf(isTests)
	if err := tests.Start(); err != nil {
		return 0, err
	}
	go func() {
		for received := range signals {
			if received == unix.SIGTERM { // the parent is dead
				_ = unix.Kill(tests.Process.Pid, unix.SIGKILL)
			}
		}
	}()
	code, err = reapUntil(tests.Process.Pid)
	if err == nil {
		_, _ = os.NewFile(codeFile, "exit code").Write([]byte{byte(code)}) // who reads it may be dead
	}
	reapAll(guardTimeout)
	return code, err
}

// reapUntil waits for children until one has ended, and returns its exit code.
func reapUntil(wanted int) (code int, err error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && pid != wanted:
		case err != nil:
			return 0, fmt.Errorf("waiting for the tests: %w", err)
		case status.Signaled():
			return 0, fmt.Errorf("the tests have ended: %v", status.Signal())
		default:
			return status.ExitStatus(), nil
		}
	}
}

// reapAll waits until no child is left, or for a time.
func reapAll(timeout time.Duration) {
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		for pid > 0 {
			pid, err = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
		if errors.Is(err, unix.ECHILD) {
			return
		}
	}
}
