// Package namespace runs a package's tests in namespaces of their own: what they
// mount or bind disappears with them, also where they are killed.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// variable marks the copy of the test program that runs in the namespaces.
const variable = "VFSPROBE_TEST_NAMESPACE"

// Main runs the tests in new namespaces, CLONE_NEWNS and the like. There it calls
// setUp first, if it is not nil; workers of a fuzz test do that again. Without
// root the tests run where they are.
func Main(m *testing.M, flags uintptr, setUp func() error) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(variable) != "" {
		if setUp != nil {
			if err := setUp(); err != nil {
				fmt.Fprintf(os.Stderr, "setting up the tests' namespaces: %v\n", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), variable+"=1")
	// A PID namespace is one for children only, when it is unshared.
	self.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: flags &^ syscall.CLONE_NEWPID, Cloneflags: flags & syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err := self.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "running the tests in namespaces of their own: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}
