package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// soak is how long faults come and go. VFSPROBE_SOAK sets another time.
const soak = 20 * time.Second

// Mounts hang, fail, slow down, die and are mounted anew at random, and the
// fork server is killed at random. What is healthy stays reported as healthy,
// in every round; in the end all is as in the beginning.
func TestFaultsComeAndGo(t *testing.T) {
	faultfs.Require(t)
	length := soak
	if text := os.Getenv("VFSPROBE_SOAK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	const n, interval = 40, 250 * time.Millisecond
	root := t.TempDir()
	mount := func(i int) *faultfs.FS {
		dir := filepath.Join(root, strconv.Itoa(i))
		_ = os.Mkdir(dir, 0o755)
		// Each has a daemon of its own.
		return faultfs.NewAt(t, dir, fmt.Sprintf("daemon%d", i))
	}
	var all []*faultfs.FS
	for i := range n {
		all = append(all, mount(i))
	}
	p := start(t, binary(t, vfsprobe), "-config", filepath.Join(repository(t), "testdata/vfsprobe.toml"), "-interval", interval.String())
	p.until("^vfsprobe ", "helpers_stuck=0i")
	before := descriptors(t, p.Process.Pid)

	// The first ten never have a fault.
	const healthy = 10
	rounds, kills := 0, 0
	random := rand.New(rand.NewPCG(1, 2))
	began := time.Now()
	for time.Since(began) < length {
		for range 2 {
			i := healthy + random.IntN(n-healthy)
			switch random.IntN(7) {
			case 0:
				all[i].Silence(faultfs.Statfs)
			case 1:
				all[i].Pause()
			case 2:
				all[i].Delay(100*time.Millisecond, faultfs.Statfs)
			case 3:
				all[i].Fail(unix.EIO, faultfs.Statfs)
			case 4:
				all[i].Close()
				all[i] = mount(i)
			default:
				all[i].Heal()
			}
		}
		if random.IntN(40) == 0 {
			_ = unix.Kill(child(t, p.Process.Pid, "vfsprobe-server"), unix.SIGKILL)
			kills++
		}
		seen, unchecked := 0, 0
		for {
			line := p.until("^mountstat|^vfsprobe ")
			if strings.HasPrefix(line, "vfsprobe ") {
				assert.LessOrEqual(t, field(t, line, "helpers_stuck"), 16.0)
			}
			if strings.HasPrefix(line, "mountstat_summary ") {
				break
			}
			for i := range healthy {
				if strings.HasPrefix(line, "mountstat,") && strings.Contains(line, "path="+all[i].Dir+" ") {
					seen++
					if strings.Contains(line, `result="unchecked"`) {
						unchecked++ // its check was under way when the fork server was killed
						continue
					}
					assert.Regexp(t, `result="(ok|slow)"`, line)
				}
			}
		}
		rounds++
		assert.Equal(t, healthy, seen, "every healthy mount in every round")
		if unchecked > 0 {
			assert.Positive(t, kills)
		}
	}
	for _, fs := range all {
		fs.Heal()
	}
	p.until("^mountstat_summary ", fmt.Sprintf("faults=0i.*ok=%di", n+1))
	last := p.until("^vfsprobe ", "helpers_stuck=0i")
	t.Logf("%d rounds, %d kills of the fork server, %.0f helpers", rounds, kills, field(t, last, "helpers_forked"))
	assert.Equal(t, float64(kills), field(t, last, "fork_server_restarts"))
	assert.LessOrEqual(t, descriptors(t, p.Process.Pid), before+1)
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Process.Pid))
	require.NoError(t, err)
	assert.Less(t, len(tasks), 16)
}

func descriptors(t testing.TB, pid int) int {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return len(fds)
}
