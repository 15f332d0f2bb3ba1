//go:build !race

package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/containers"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
)

// The test program is also what runs in the images beside Telegraf and vfsprobe.
const (
	roleVariable = "VFSPROBE_TEST_ROLE"
	rolePause    = "pause" // holds the namespaces of a pod
	roleOpen     = "open"  // opens files for writing
	roleRead     = "read"  // lists a directory again and again
	roleEat      = "eat"   // takes memory, in a cgroup
)

// These are no files: it is tried to become root, and to trace the node's first process.
const (
	becomeRoot = "root"
	traceInit  = "trace"
)

// wanted is set where a cluster is to be made.
const wanted = "VFSPROBE_KUBERNETES"

// address is that of the node, and of the API server.
const address = "10.99.0.1"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case rolePause:
		pause()
	case roleOpen:
		tryToWrite(os.Args[1:])
		pause()
	case roleEat:
		containers.RunOutOfMemory(os.Args[1])
	case roleRead:
		containers.List(os.Args[1])
	default:
		if os.Getenv(wanted) == "" {
			os.Exit(m.Run()) // which skips all
		}
		if !namespace.Inside() {
			if err := fetch(); err != nil {
				fmt.Println(err) // the tests that need it fail
			}
		}
		namespace.Main(m, unix.CLONE_NEWNET, setUp)
	}
}

// fetch builds and downloads what the tests run, since their network reaches nobody else.
func fetch() error {
	var all error
	for _, build := range []func() (string, error){programs.Kubernetes, programs.Containerd, programs.RuncOfPods, programs.Telegraf, programs.Vfsprobe, programs.Manifests, definitions} {
		_, err := build()
		all = errors.Join(all, err)
	}
	return all
}

func pause() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGTERM, unix.SIGINT)
	<-ended
}

// tryToWrite opens files for writing, and makes one in directories, and says where it could.
func tryToWrite(names []string) {
	for _, name := range names {
		info, err := os.Stat(name)
		if name == becomeRoot {
			err = syscall.Setuid(0)
		} else if name == traceInit {
			err = unix.PtraceSeize(1)
		} else if err == nil && info.IsDir() {
			made := filepath.Join(name, "vfsprobe-was-here")
			if err = os.WriteFile(made, nil, 0o600); err == nil {
				err = os.Remove(made)
			}
		} else if err == nil {
			var file *os.File
			if file, err = os.OpenFile(name, os.O_WRONLY, 0); err == nil {
				err = file.Close()
			}
		}
		if err == nil {
			fmt.Println("writable:", name)
		} else {
			fmt.Println("refused:", err)
		}
	}
	fmt.Println("all tried")
}

// setUp makes a node of the namespaces: shared mounts, as systemd makes them, directories of its
// own, an address and a default route, without which the API server and kubelet don't start.
func setUp() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing all mounts: %w", err)
	}
	for _, dir := range nodeDirs() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("node", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("a file system on %s: %w", dir, err)
		}
	}
	if err := shieldSysctls(); err != nil {
		return err
	}
	for _, arguments := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", address + "/32", "dev", "lo"}, {"route", "add", "default", "dev", "lo"}} {
		if out, err := exec.Command("ip", arguments...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", arguments, err, out)
		}
	}
	return nil
}

// nodeDirs are those that hold what a node keeps.
func nodeDirs() []string {
	return []string{"/run/containerd", "/run/vfsprobe", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods"}
}

// shieldSysctls has kubelet write its sysctls, which are the kernel's and not a namespace's, to
// files.
func shieldSysctls() error {
	dir, err := os.MkdirTemp("/dev/shm", "sysctls")
	if err != nil {
		return err
	}
	var all error
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		sysctl := filepath.Join("/proc/sys", name)
		content, err := os.ReadFile(sysctl)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		file := filepath.Join(dir, filepath.Base(name))
		all = errors.Join(all, err, os.WriteFile(file, content, 0o600), unix.Mount(file, sysctl, "", unix.MS_BIND, ""))
	}
	return all
}
