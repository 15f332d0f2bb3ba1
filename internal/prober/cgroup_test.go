package prober_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

// inCgroup runs the test in a cgroup of its own of version 2, and returns its directory
// and the root's.
func inCgroup(t *testing.T) (own, root string) {
	root = cgroups.FindHierarchies("/sys").Unified
	if root == "" || unix.Access(root, unix.W_OK) != nil || len(cgroups.RootProcs("/proc", "/sys", false)) > 0 && cgroupOf(t, os.Getpid()) != "/" {
		t.Skip("no cgroup of version 2 can be made here")
	}
	own, err := os.MkdirTemp(root, "vfsprobe-test-") // in another PID namespace this pid is another's
	require.NoError(t, err)
	move := func(to string) {
		require.NoError(t, os.WriteFile(filepath.Join(to, "cgroup.procs"), fmt.Appendf(nil, "%d", os.Getpid()), 0))
	}
	t.Cleanup(func() {
		move(root)
		eventually(t, "the cgroup is empty", func() bool { return os.Remove(own) == nil })
	})
	move(own)
	return own, root
}

// cgroupOf is the path of a process's cgroup of version 2.
func cgroupOf(t *testing.T, pid int) string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	require.NoError(t, err)
	_, path, _ := strings.Cut("\n"+string(content), "\n0::")
	path, _, _ = strings.Cut(path, "\n")
	return path
}

// Whether asleep or killed, a helper that hangs is none of those for whose end somebody
// waits who stops this process.
func TestProber_HelpersThatHangLeaveTheCgroup(t *testing.T) {
	faultfs.Require(t)
	for name, options := range map[string]prober.Options{"asleep": {}, "killed": {KillAsleep: true}} {
		t.Run(name, func(t *testing.T) {
			own, root := inCgroup(t)
			options.RootCgroups = []string{filepath.Join(root, "cgroup.procs")}
			p := startGentle(t, options)
			var helpers []int
			for range 3 {
				fs := faultfs.New(t)
				fs.Silence()
				r := hangs(t, p, fs, check(fs.Dir))
				require.Equal(t, prober.Stuck, r.Outcome, "%v", &r)
				helpers = append(helpers, r.PID)
			}
			for _, helper := range helpers {
				eventually(t, "it is in the root cgroup", func() bool { return cgroupOf(t, helper) == "/" })
			}
			assert.Equal(t, "/"+filepath.Base(own), cgroupOf(t, serverOf(t, os.Getpid())))
		})
	}
}

// A host that mounts the controllers of version 1 one by one has more hierarchies than a plan has
// steps for.
func TestProber_HelpersThatHangLeaveManyHierarchies(t *testing.T) {
	faultfs.Require(t)
	var files []string
	for i := range 2 * forkserver.MaxSteps {
		files = append(files, filepath.Join(t.TempDir(), fmt.Sprint(i)))
		require.NoError(t, os.WriteFile(files[i], nil, 0o600))
	}
	p := startGentle(t, prober.Options{RootCgroups: files})
	for range 2 {
		fs := faultfs.New(t)
		fs.Silence()
		r := hangs(t, p, fs, check(fs.Dir))
		require.Equal(t, prober.Stuck, r.Outcome, "%v", &r)
		for _, file := range files {
			eventually(t, "it is moved by "+file, func() bool {
				content, err := os.ReadFile(file)
				return err == nil && string(content) == strconv.Itoa(r.PID)
			})
		}
	}
}

func TestProber_SaysThatHelpersCanNotLeaveTheCgroup(t *testing.T) {
	faultfs.Require(t)
	log := journal.New(t)
	p := prober.New(prober.Options{RootCgroups: []string{filepath.Join(t.TempDir(), "none")}, Warnf: log.Warnf})
	t.Cleanup(p.Close)
	for range 2 {
		fs := faultfs.New(t)
		fs.Silence()
		r := hangs(t, p, fs, check(fs.Dir))
		assert.Equal(t, prober.Stuck, r.Outcome, "%v", &r)
	}
	eventually(t, "a line", func() bool { return len(log.About("cgroups: openat: no such file or directory")) == 1 })
	assert.Len(t, log.About(""), 1)
}
