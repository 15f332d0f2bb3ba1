package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A group is a cgroup of version 2, or 1 where that has the controller.
type group struct {
	dir     string
	unified bool
}

// cgroup makes a cgroup for the time of the test.
func cgroup(t *testing.T, controller string) group {
	t.Helper()
	const root = "/sys/fs/cgroup"
	g := group{dir: filepath.Join(root, controller)}
	if controllers, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers")); slices.Contains(strings.Fields(string(controllers)), controller) {
		g = group{dir: root, unified: true}
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			t.Skipf("the controller %s is needed: %v", controller, err)
		}
	}
	var err error
	if g.dir, err = os.MkdirTemp(g.dir, "vfsprobe-test-"); err != nil {
		t.Skipf("cgroups are needed, to be made: %v", err)
	}
	t.Cleanup(func() {
		assert.Eventually(t, func() bool { return os.Remove(g.dir) == nil }, patience, 10*time.Millisecond, "removing "+g.dir)
	})
	return g
}

// take moves a process into the cgroup.
func (g group) take(t *testing.T, pid int) {
	t.Helper()
	write(t, g.dir, "cgroup.procs", strconv.Itoa(pid))
}

// freeze stops the processes of a cgroup of version 1, or lets them go on.
func (g group) freeze(t *testing.T, state string) {
	t.Helper()
	write(t, g.dir, "freezer.state", state)
}

func (g group) read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(g.dir, file))
	require.NoError(t, err)
	return string(content)
}

// outOfMemory has the kernel's OOM killer choose the process: others in its
// cgroup, each of them smaller than the cgroup, take all memory.
func (g group) outOfMemory(t *testing.T, victim int) {
	t.Helper()
	write(t, fmt.Sprintf("/proc/%d", victim), "oom_score_adj", "1000")
	limit, events := "memory.limit_in_bytes", "memory.oom_control"
	if g.unified {
		limit, events = "memory.max", "memory.events"
	}
	write(t, g.dir, limit, strconv.Itoa(16<<20))
	eater := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs"; for i in 1 2 3 4; do head -c 16M /dev/zero | tail >/dev/null & done; wait`, g.dir)
	_ = eater.Run() // it may be killed as well
	require.Eventually(t, func() bool { return !running(victim) }, patience, 5*time.Millisecond, "the victim's end")
	require.NotContains(t, g.read(t, events), "oom_kill 0\n")
}

// A cgroup is named whose programs look for what is not there.
func TestVfsprobe_NamesTheCgroupThatMakesNegativeDentries(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		const names, size = 20_000, 192 // bytes of a dentry
		const limit = 64 << 20
		g := cgroup(t, "memory")
		dir := t.TempDir()
		var fs unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &fs))
		if fs.Type == unix.TMPFS_MAGIC {
			t.Skipf("%s is on a tmpfs, which keeps no negative dentries", dir)
		}
		config := filepath.Join(t.TempDir(), "vfsprobe.toml")
		require.NoError(t, os.WriteFile(config, []byte("[[inputs.dentrycache]]\n  attribution = \"none\"\n  top_cgroups = 1000\n"), 0o600))
		p := w.start(t, "-config", config)
		p.trigger()
		p.until("^vfsprobe ")
		out, err := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs"; i=0; while [ $i -lt "$2" ]; do [ -e "$1/missing-$i" ]; i=$((i+1)); done`,
			g.dir, dir, strconv.Itoa(names)).CombinedOutput()
		require.NoError(t, err, "%s", out)
		figure, file, path := "kernel_memory", "memory.limit_in_bytes", "/"+filepath.Base(g.dir)
		if g.unified {
			figure, file = "slab_reclaimable", "memory.max"
		}
		write(t, g.dir, file, strconv.Itoa(limit))
		var line string
		require.Eventually(t, func() bool { // cgroups are walked at most for a hundredth of the time
			p.trigger()
			line = p.until("^(vfsprobe |dentrycache_cgroup,.*cgroup=" + path + " )")
			return matches(line, "^dentrycache_cgroup,", figure+"_bytes_per_s=") // not the first gather's, which may come late
		}, 4*patience, 100*time.Millisecond, "a point of "+path)
		t.Log(line)
		assert.GreaterOrEqual(t, field(t, line, figure+"_own_bytes"), float64(names*size)*0.9)
		assert.Positive(t, field(t, line, figure+"_bytes_per_s"))
		assert.EqualValues(t, limit, field(t, line, "memory_limit_bytes"))
		assert.InDelta(t, field(t, line, figure+"_bytes")/limit, field(t, line, "limit_share"), 1e-6)
		assert.GreaterOrEqual(t, field(t, line, "memory_limit_used_bytes"), field(t, line, figure+"_bytes"))
		assert.Positive(t, field(t, line, "seconds_to_limit"))
	})
}
