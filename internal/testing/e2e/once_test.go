package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What helpers of several inputs may ask of the same mount: each has to find the root, and to
// see that it is the one that is meant. A lock is risked by a helper alone that has just had an
// answer of the server, which no other process can give it.
var asksTheSame = regexp.MustCompile(`^(openat|statx|fstatfs)\(ROOT\)$`)

// With three inputs on the same mount, no file is read, and no call is made of the mount, for
// two of them in one round.
func TestVfsprobe_AsksNothingTwiceInARound(t *testing.T) {
	strace, err := exec.LookPath("strace")
	require.NoError(t, err, "strace is needed")
	root := t.TempDir()
	if err := unix.Mount("once", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mounting takes root: ", err)
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	canary := filepath.Join(root, ".nfslock-probe")
	require.NoError(t, os.WriteFile(canary, nil, 0o666))
	require.NoError(t, os.Chmod(canary, 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(root, "newest"), nil, 0o600)) // the name that dentrycache looks up
	config, trace := filepath.Join(t.TempDir(), "vfsprobe.toml"), filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
[[inputs.mountstat]]
  mount_points = [%[1]q]
  ignore_fs = []
[[inputs.nfslock]]
  fs = ["tmpfs"]
  mount_points = [%[1]q]
[[inputs.dentrycache]]
  directories = [%[1]q]
`, root), 0o600))

	p := startCommand(t, exec.Command(strace, "-f", "-qq", "-y", "-ttt", "-o", trace, "-e",
		"trace=%file,%stat,%statfs,%fstatfs,getdents64,fcntl,flock,fgetxattr", binary(t, vfsprobe), "-config", config))
	plugin := child(t, p.Process.Pid, "vfsprobe")
	server := child(t, plugin, "vfsprobe-server")
	const rounds = 5 // the first two learn what there is
	var began [rounds + 1]time.Time
	for i := range rounds {
		began[i] = time.Now()
		p.trigger()
		for missing := map[string]bool{"mountstat_summary": true, "nfslock": true, "nfslock_host": true, "dentrycache": true, "dentrycache_dir": true}; len(missing) > 0; {
			name := regexp.MustCompile(`^\w+`).FindString(p.until("^(mountstat_summary|nfslock|dentrycache)"))
			delete(missing, name)
		}
	}
	began[rounds] = time.Now()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", plugin))
	require.NoError(t, err)
	ours := make(map[string]bool)
	for _, task := range tasks {
		ours[task.Name()] = true
	}
	require.NoError(t, p.stdin.Close())
	p.exit()

	content, err := os.ReadFile(trace)
	require.NoError(t, err)
	var byPlugin, byHelpers [rounds]map[string]int
	askers := make(map[string]bool) // helpers that have asked something
	call := regexp.MustCompile(`^(\d+) +([\d.]+) (\w+)\((?:AT_FDCWD(?:<[^>]*>)?|\d+<([^>]*)>)?(?:, )?(?:"([^"]*)")?(?:, (F_\w+))?`)
	for line := range strings.Lines(string(content)) {
		m := call.FindStringSubmatch(line)
		if m == nil || m[1] == fmt.Sprint(server) {
			continue
		}
		var at float64
		_, err := fmt.Sscan(m[2], &at)
		require.NoError(t, err, line)
		i := 0
		for i <= rounds && at >= float64(began[i].UnixMicro())/1e6 {
			i++
		}
		if i--; i < 0 || i >= rounds {
			continue
		}
		object := m[4]
		if m[5] != "" {
			object = filepath.Join(object, m[5])
		}
		switch {
		case !ours[m[1]]:
			if !strings.HasPrefix(object, root) {
				continue
			}
			asked := strings.Replace(fmt.Sprintf("%s(%s)%s", m[3], object, m[6]), root, "ROOT", 1)
			if !askers[m[1]+asked] { // dentrycache looks one name up twice on purpose
				askers[m[1]+asked] = true
				add(&byHelpers[i], asked)
			}
		case m[3] == "openat" && !regexp.MustCompile(`^/proc/(\d+|self)(/|$)`).MatchString(object): // of itself, and of tasks
			add(&byPlugin[i], object)
		}
	}
	t.Log("asked by helpers in the last round: ", byHelpers[rounds-1])
	t.Log("read by the plugin: ", byPlugin[rounds-1])
	most := 0 // a busy machine may leave one out in a round
	for _, counts := range byHelpers[2:] {
		most = max(most, counts["openat(ROOT)"])
	}
	assert.GreaterOrEqual(t, most, 3, "one helper of each input was traced")
	assert.NotEmpty(t, byPlugin[rounds-1], "the plugin was traced")
	for asked := range byHelpers[rounds-1] {
		if !asksTheSame.MatchString(asked) {
			assert.LessOrEqual(t, fewest(byHelpers[2:], asked), 1, "helpers make %s", asked)
		}
	}
	for file := range byPlugin[rounds-1] {
		assert.LessOrEqual(t, fewest(byPlugin[2:], file), 1, "the plugin reads %s", file)
	}
}

func add(counts *map[string]int, key string) {
	if *counts == nil {
		*counts = make(map[string]int)
	}
	(*counts)[key]++
}

// fewest is how often something was asked in the round that did so least: what two inputs ask
// in each round is in all of them, and what happens once in a while is not.
func fewest(rounds []map[string]int, key string) int {
	least := rounds[0][key]
	for _, counts := range rounds {
		least = min(least, counts[key])
	}
	return least
}
