package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/autofs"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// table is what is mounted now.
func table(t *testing.T) *mounts.Snapshot {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	return mounts.Parse(content)
}

// folders makes links in a directory, and directories of what has no target.
func folders(t *testing.T, root string, all map[string]string) {
	t.Helper()
	for name, target := range all {
		name = filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		if target == "" {
			require.NoError(t, os.MkdirAll(name, 0o755))
		} else {
			require.NoError(t, os.Symlink(target, name))
		}
	}
}

func TestFiles_ResolveFollowsLinksInEveryComponent(t *testing.T) {
	root := t.TempDir()
	folders(t, root, map[string]string{
		"srv/data/vol": "", "data": "/srv/data", "srv/up": "../srv/data/.", "srv/data/last": "../../data/vol", "loop/a": "b", "loop/b": "a",
		"chain/1": "2", "chain/2": "/chain/3", "chain/3": "../data", "dangling": "srv/nothing/here", "long": strings.Repeat("./", 1000) + "srv",
	})
	h, _ := newHost(t, map[string]string{"HOST_MOUNT_PREFIX": root})
	files := &host.Files{Host: h, Key: "test", Timeout: 10 * time.Second, Table: mounts.NewSnapshot(nil)}
	paths := map[string]string{
		"/": "/", "/srv/data/vol": "/srv/data/vol", "/data/vol": "/srv/data/vol", "/data": "/srv/data", "/srv/up/vol": "/srv/data/vol",
		"/srv/data/last": "/srv/data/vol", "/data/last/../x": "/srv/data/x", "/chain/1/vol": "/srv/data/vol", "/loop/a/x": "/loop/b/x",
		"/dangling/x": "/srv/nothing/here/x", "/nothing/at/all": "/nothing/at/all", "/long/up/": "/srv/data", "//srv//./up": "/srv/data",
	}
	var asked, want []string
	for from, to := range paths {
		asked, want = append(asked, from), append(want, to)
	}
	got := files.Resolve(asked)
	for i := range asked {
		if asked[i] == "/loop/a/x" {
			assert.Contains(t, []string{"/loop/a/x", "/loop/b/x"}, got[i])
			continue
		}
		assert.Equal(t, want[i], got[i], asked[i])
	}
	links, err := files.Links([]string{"/data", "/srv", "/none", "/chain/1"})
	require.NoError(t, err)
	assert.Equal(t, []host.Link{{Target: "/srv/data"}, {Errno: unix.EINVAL}, {Errno: unix.ENOENT}, {Target: "2"}}, links)
}

// A mount that hangs costs the paths on it, and no others; autofs is not asked.
func TestFiles_ResolveWaitsForNoMount(t *testing.T) {
	faultfs.Require(t)
	root := t.TempDir()
	hung := faultfs.New(t)
	folders(t, root, map[string]string{"to": hung.Dir, "fine": "other", "other": ""})
	automount := t.TempDir()
	if err := autofs.Mount(t, automount, 600); err != nil {
		t.Skip(err)
	}
	hung.Silence(faultfs.Lookup)
	h, _ := newHost(t, nil)
	const timeout = 2 * time.Second // for the paths that are answered, on a busy machine
	files := &host.Files{Host: h, Key: "test", Timeout: timeout, Table: table(t)}
	began := time.Now()
	assert.Equal(t, []string{"", "", filepath.Join(root, "other/x"), hung.Dir, filepath.Join(automount, "x/y")},
		files.Resolve([]string{filepath.Join(hung.Dir, "a/b"), filepath.Join(root, "to/c"), filepath.Join(root, "fine/x"), filepath.Join(root, "to"), filepath.Join(automount, "x/y")}))
	assert.Less(t, time.Since(began), 10*timeout)
}

func TestFiles_AHelperThatCanNotEnterTellsNothing(t *testing.T) {
	h, _ := newHost(t, nil)
	files := &host.Files{Host: h, Key: "test", Timeout: 10 * time.Second, Namespace: "/proc/1073741824/ns/mnt", Table: mounts.NewSnapshot(nil)}
	_, err := files.Read([]string{"/etc/passwd"}, 1<<20)
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = files.Links([]string{"/etc/passwd"})
	require.ErrorIs(t, err, unix.ENOENT)
	assert.Equal(t, []string{""}, files.Resolve([]string{"/etc/x"}))
}

func TestFiles_ReadAndList(t *testing.T) {
	h, _ := newHost(t, nil)
	files := &host.Files{Host: h, Key: "test", Timeout: 10 * time.Second, Table: mounts.NewSnapshot(nil)}
	dir := t.TempDir()
	var paths []string
	for i := range 30 {
		paths = append(paths, filepath.Join(dir, strings.Repeat("n", i+1)))
		require.NoError(t, os.WriteFile(paths[i], []byte(strings.Repeat("x", i)), 0o600))
	}
	read, err := files.Read(append(paths, dir, dir+"/none"), 20)
	require.NoError(t, err)
	for i := range paths {
		assert.Len(t, read[i].Output, min(i, 20))
		assert.Equal(t, i > 20, read[i].Errno == unix.EFBIG)
	}
	assert.Equal(t, unix.EISDIR, read[30].Errno)
	assert.Equal(t, unix.ENOENT, read[31].Errno)
	listed, err := files.List([]string{dir, paths[0], dir + "/none"}, 1<<20)
	require.NoError(t, err)
	assert.Len(t, listed[0].Names(), 30)
	assert.Equal(t, unix.ENOTDIR, listed[1].Errno)
	assert.Equal(t, unix.ENOENT, listed[2].Errno)
}

func TestRoots_Where(t *testing.T) {
	for _, c := range [][3]string{ // environment, path, where
		{"", "/etc/fstab", "/etc/fstab"},
		{"HOST_MOUNT_PREFIX=/host", "/etc/fstab", "/host/etc/fstab"},
		{"HOST_MOUNT_PREFIX=/host HOST_ETC=/other", "/etc/fstab", "/other/fstab"},
		{"HOST_MOUNT_PREFIX=/host HOST_ETC=/other", "/etcetera", "/host/etcetera"},
		{"HOST_ETC=/other", "/dev/sda", "/dev/sda"},
		{"HOST_DEV=/other", "/dev/sda", "/other/sda"},
		{"HOST_MOUNT_PREFIX=/host", "/dev/sda", "/host/dev/sda"},
	} {
		roots := host.FindRoots(func(name string) string {
			for _, setting := range strings.Fields(c[0]) {
				if value, found := strings.CutPrefix(setting, name+"="); found {
					return value
				}
			}
			return ""
		})
		assert.Equal(t, c[2], roots.Where(c[1]), c[0])
	}
}
