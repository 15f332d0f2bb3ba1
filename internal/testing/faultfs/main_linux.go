package faultfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// namespaceVariable marks the copy of the test program that runs in a mount
// namespace of its own.
const namespaceVariable = "FAULTFS_NAMESPACE"

// Main runs a package's tests in a mount namespace of their own: what they
// mount disappears with them, also where they are killed. Use it as TestMain.
func Main(m *testing.M) {
	if os.Getenv(namespaceVariable) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), namespaceVariable+"=1")
	self.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := self.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintf(os.Stderr, "running the tests in a mount namespace: %v\n", err)
		os.Exit(1)
	}
}

// Require skips the test where FUSE file systems can't be mounted.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse here")
	}
}
