package sunrpc_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// namespaceVariable marks the copy of the test program that has a network of
// its own.
const namespaceVariable = "SUNRPC_NAMESPACE"

// TestMain runs the tests in network and mount namespaces of their own: they
// may bind port 111, and nothing they start sees the host's /run.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(namespaceVariable) != "" {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "setting up the tests' namespaces: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.Env = append(os.Environ(), namespaceVariable+"=1")
	self.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := self.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "running the tests in namespaces of their own: %v\n", err)
		os.Exit(1)
	}
}

// setUp brings the loopback interface up, with a link-local address, and hides
// the host's /run. Workers of a fuzz test do it again, to no harm.
func setUp() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	// struct in6_ifreq, linux/ipv6.h; the loopback interface has the index 1.
	address := struct {
		address [16]byte
		prefix  uint32
		index   int32
	}{[16]byte{0: 0xfe, 1: 0x80, 15: 1}, 64, 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&address))); errno != 0 && errno != unix.EEXIST {
		return fmt.Errorf("add fe80::1 to lo: %w", errno)
	}
	return nil
}
