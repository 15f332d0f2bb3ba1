//go:build !race

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

// Both inputs look at the same 40 mounts, and every tag and field is compared.
func TestVfsprobe_DiskMetricsAreTelegrafs(t *testing.T) {
	inBothWays(t, func(t *testing.T, w way) {
		if os.Geteuid() != 0 {
			t.Skip("mounting takes root")
		}
		base := t.TempDir()
		mount := func(name, source, fstype string, flags uintptr, options string) string {
			dir := filepath.Join(base, name)
			namespace.Mount(t, dir, source, fstype, flags, options)
			return dir
		}
		var made []string
		add := func(dir string) { made = append(made, dir) }
		for i := range 28 { // of many sizes
			add(mount(fmt.Sprintf("tmpfs%d", i), fmt.Sprintf("source%d", i), "tmpfs", 0, fmt.Sprintf("size=%dk,nr_inodes=%d", 64<<(i%10), 100+i)))
		}
		for i, dir := range made[:10] {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 4096*(i+1)), 0o600))
		}
		add(mount("without limits", "none", "tmpfs", 0, "size=0,nr_inodes=0"))
		add(mount("with space", "a b,c=d", "tmpfs", 0, "size=1m"))
		add(mount("comma,equals=sign", "/dev/odd/dev/name", "tmpfs", 0, "size=1m"))
		add(mount("ümlaut\\040", `back\slash`, "tmpfs", 0, "size=1m"))
		add(mount("read-only", "ro", "tmpfs", unix.MS_RDONLY, "size=1m"))
		add(mount("ramfs", "ram", "ramfs", 0, ""))
		for i, fstype := range []string{"ext4", "ext4", "btrfs", "xfs"} {
			size := int64(loopfs.DefaultSize)
			if fstype == "xfs" || fstype == "btrfs" {
				size = 320 << 20
			}
			fs := loopfs.New(t, fstype, size, "")
			if i == 1 { // full but for what is root's
				_ = os.WriteFile(filepath.Join(fs.Dir, "full"), make([]byte, 20<<20), 0o600)
			}
			unix.Sync()
			add(fs.Dir)
		}
		for i := range 4 {
			require.NoError(t, os.MkdirAll(filepath.Join(made[i], "below"), 0o755))
			add(mount(fmt.Sprintf("bind%d", i), filepath.Join(made[i], "below"), "", unix.MS_BIND, ""))
		}
		readOnlyBind := mount("bind-ro", made[5], "", unix.MS_BIND, "")
		require.NoError(t, unix.Mount("", readOnlyBind, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		add(readOnlyBind)
		faultfs.Require(t)
		for range 2 {
			add(faultfs.New(t).Dir)
		}
		hidden := mount("hidden", "below", "tmpfs", 0, "size=1m")
		require.NoError(t, unix.Mount("above", hidden, "tmpfs", 0, "size=2m"))
		t.Cleanup(func() { _ = unix.Unmount(hidden, unix.MNT_DETACH) })
		add(hidden)
		add(mount("control\n", "none", "tmpfs", 0, "size=1m"))
		require.GreaterOrEqual(t, len(made), 40)

		dir := t.TempDir()
		config := filepath.Join(dir, "vfsprobe.toml")
		require.NoError(t, os.WriteFile(config, []byte("[[inputs.mountstat]]\n  ignore_fs = []\n  disk_metrics = true\n  fstab = \"\"\n"), 0o600))
		agent := w.telegraf(t, func(s *setup) { s.inputs = config })
		last := made[len(made)-3]
		tail(t, agent.metrics, "^disk,.*path="+regexp.QuoteMeta(last)+"[, ]")
		content, err := os.ReadFile(agent.metrics)
		require.NoError(t, err)
		ours := diskLines(t, string(content))

		metrics := filepath.Join(dir, "metrics")
		theirs := filepath.Join(dir, "telegraf.conf")
		require.NoError(t, os.WriteFile(theirs, []byte("[agent]\n  omit_hostname = true\n[[outputs.file]]\n  files = [\""+metrics+"\"]\n  data_format = \"influx\"\n[[inputs.disk]]\n"), 0o600))
		once := exec.Command(binary(t, telegraf), "--once", "--config", theirs)
		once.Env = append(os.Environ(), "HOST_PROC_MOUNTINFO=/proc/self/mountinfo")
		out, err := once.CombinedOutput()
		require.NoError(t, err, "%s", out)
		content, err = os.ReadFile(metrics)
		require.NoError(t, err)
		want := diskLines(t, string(content))

		compared, fields := 0, 0
		for series, values := range want {
			i := slices.IndexFunc(made, func(dir string) bool { return strings.Contains(series+",", ",path="+escapeTag(dir)+",") })
			if i < 0 || filepath.Base(made[i]) == "hidden" {
				continue // a mount of this machine's, whose sizes change
			}
			if strings.ContainsAny(made[i], "\n\\") {
				continue // escaped in one of them: the README tells
			}
			compared++
			if !assert.Contains(t, ours, series) {
				continue
			}
			assert.Equal(t, slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(ours[series])), series)
			for name, value := range values {
				fields++
				assert.Equal(t, value, ours[series][name], "%s %s", series, name)
			}
		}
		t.Logf("%d mounts, %d fields compared", compared, fields)
		assert.GreaterOrEqual(t, compared, 40)
		for series := range ours {
			if strings.Contains(series, base) && !strings.Contains(series, "/hidden") && !strings.ContainsAny(strings.ReplaceAll(series[strings.Index(series, ",path="):], `\ `, ""), `\`) {
				assert.Contains(t, want, series)
			}
		}
	})
}

func escapeTag(text string) string {
	return strings.NewReplacer(" ", `\ `, ",", `\,`, "=", `\=`).Replace(text)
}

// diskLines are the last values of each series of the measurement disk.
func diskLines(t *testing.T, content string) map[string]map[string]any {
	t.Helper()
	all := make(map[string]map[string]any)
	for line := range strings.Lines(content) {
		if !strings.HasPrefix(line, "disk,") {
			continue
		}
		end := regexp.MustCompile(`^(?:[^ \\]|\\.)*`).FindString(line)
		tags := regexp.MustCompile(`,host=[^, ]*`).ReplaceAllString(end, "")
		values := make(map[string]any)
		list, _, _ := strings.Cut(line[len(end)+1:], " ")
		for pair := range strings.SplitSeq(list, ",") {
			name, text, _ := strings.Cut(pair, "=")
			if whole, integer := strings.CutSuffix(text, "i"); integer {
				value, err := strconv.ParseInt(whole, 10, 64)
				require.NoError(t, err, line)
				values[name] = value
				continue
			}
			value, err := strconv.ParseFloat(text, 64)
			require.NoError(t, err, line)
			values[name] = value
		}
		all[tags] = values
	}
	return all
}
