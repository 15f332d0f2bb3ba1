package mounts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/autofs"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// watcher makes a watcher of this process's table.
func watcher(t testing.TB) *Watcher {
	t.Helper()
	p := prober.New(prober.Options{})
	t.Cleanup(p.Close)
	w := NewWatcher(WatcherOptions{Prober: p, Proc: "/proc", PID: "self", Patience: 10 * time.Second})
	t.Cleanup(func() { assert.NoError(t, w.Close()) })
	return w
}

// mount mounts for the time of the test, and makes the directory.
func mount(t *testing.T, source, dir, fsType string, flags uintptr, options string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount(source, dir, fsType, flags, options), "mounting %s on %s", fsType, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// overlay mounts an overlay of many directories, which are longer together than what
// mount(2) takes.
func overlay(t *testing.T, dir string, layers int) {
	t.Helper()
	base := t.TempDir()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	defer unix.Close(fd)
	for i := range layers {
		layer := filepath.Join(base, fmt.Sprintf("a-layer-with-a-name-that-is-quite-long-%d", i))
		require.NoError(t, os.Mkdir(layer, 0o755))
		if err := unix.FsconfigSetString(fd, "lowerdir+", layer); err != nil {
			t.Skipf("a kernel before 6.8: %v", err)
		}
	}
	require.NoError(t, unix.FsconfigCreate(fd))
	mounted, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(mounted)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.MoveMount(mounted, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// automount mounts an autofs whose daemon is this process, for which it mounts nothing.
func automount(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	if err := autofs.Mount(t, dir, 600); err != nil {
		t.Log(err)
		return
	}
	mount(t, "on demand", filepath.Join(dir, "key"), "tmpfs", 0, "")
}

// mountAll mounts what the two ways to read the table might see in different ways.
func mountAll(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mount(t, "tmpfs", at("plain"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=700")
	for i, flags := range []uintptr{unix.MS_NOATIME, unix.MS_STRICTATIME, unix.MS_NODIRATIME, unix.MS_NOSYMFOLLOW,
		unix.MS_SYNCHRONOUS, unix.MS_DIRSYNC, unix.MS_LAZYTIME, unix.MS_RDONLY} {
		mount(t, "flags", at(fmt.Sprint("flags", i)), "tmpfs", flags, "")
	}
	for _, name := range []string{"a b", "new\nline", "tab\t", `back\slash`, `\040`, "#hash", "\xff\xfe", "ünï", "none", "-"} {
		mount(t, name, at(name), "tmpfs", 0, "")
	}
	mount(t, "", at("no source"), "tmpfs", 0, "")
	faultfs.NewWith(t, made(t, at("fuse")), faultfs.Options{Source: "nas:/x y", Type: "fuse.sshfs"})
	faultfs.NewWith(t, made(t, at("fuse without a kind")), faultfs.Options{Source: "daemon", Type: "fuse"})

	mount(t, at("plain"), at("bind"), "", unix.MS_BIND, "")
	require.NoError(t, unix.Mount("", at("bind"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	mount(t, made(t, at("plain/sub dir")), at("bind of a part"), "", unix.MS_BIND, "")
	mount(t, made(t, at("plain/gone")), at("bind of what is gone"), "", unix.MS_BIND, "")
	require.NoError(t, os.Remove(at("plain/gone")))
	mount(t, "below", at("plain"), "tmpfs", 0, "")
	mount(t, "lies on top", at("plain"), "tmpfs", 0, "")
	automount(t, at("auto"))

	lower, upper, work := made(t, at("a b/lower:1")), made(t, at("a b/upper")), made(t, at("a b/work"))
	mount(t, "overlay", at("overlay"), "overlay", 0,
		"lowerdir="+strings.ReplaceAll(lower, ":", `\:`)+",upperdir="+upper+",workdir="+work)
}

func made(t *testing.T, dir string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}

func words(options string) []string { return slices.Sorted(strings.SplitSeq(options, ",")) }

// sameMounts compares what statmount(2) says with the text of mountinfo.
func sameMounts(t *testing.T, text, records *Snapshot) {
	t.Helper()
	require.NoError(t, text.Err)
	require.NoError(t, records.Err)
	ids := func(s *Snapshot) (all []int) {
		for i := range s.Mounts {
			all = append(all, s.Mounts[i].ID)
		}
		return all
	}
	require.Equal(t, ids(text), ids(records), "the same mounts in the same order")
	for i := range text.Mounts {
		want, got := text.Mounts[i], records.Mounts[i]
		for _, m := range []*Mount{&want, &got} {
			info := *m.Info
			m.Info = &info
			m.Optional = "" // propagation, which nobody asks for
		}
		assert.Equal(t, words(want.Options), words(got.Options), "%q", want.Mountpoint)
		switch {
		case asksForOptions(want.FSType), want.FSType == "overlay" && len(want.VFSOptions) > 3000:
			assert.Subset(t, words(want.VFSOptions), words(got.VFSOptions), "%q", want.Mountpoint)
			assert.Equal(t, want.HasOption("ro"), got.HasOption("ro"))
		default:
			assert.Equal(t, words(want.VFSOptions), words(got.VFSOptions), "%q", want.Mountpoint)
		}
		got.Options, got.VFSOptions = want.Options, want.VFSOptions
		assert.Equal(t, want, got, "%q", want.Mountpoint)
	}
}

// always is for watchers of whose mounts some may be asked for their options.
func always() bool { return true }

// bothWays reads the table in both ways.
func bothWays(t *testing.T) (text, records *Snapshot) {
	t.Helper()
	read := func(plain bool) *Snapshot {
		w := watcher(t)
		w.plainText, w.anyAsks = plain, always
		view := w.View(1)
		require.NoError(t, view.Hindrance)
		require.Equal(t, plain, w.asText, "it was read in another way")
		return view.Snapshot
	}
	return read(true), read(false)
}

// The table of another mount namespace is read without its text, too, where a file system may be
// asked for its options.
func TestWatcher_ReadOtherInBothWays(t *testing.T) {
	requireStatmount(t)
	dir := t.TempDir()
	there := exec.Command("unshare", "--mount", "sh", "-ec", "mount -t tmpfs only-there "+dir+"; echo mounted; read -r end")
	there.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	stdin, err := there.StdinPipe()
	require.NoError(t, err)
	stdout, err := there.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, there.Start())
	t.Cleanup(func() { _ = stdin.Close(); _ = there.Wait() })
	_, err = io.ReadFull(stdout, make([]byte, len("mounted\n")))
	require.NoError(t, err)

	read := func(asks bool) []string {
		w := watcher(t)
		w.anyAsks = func() bool { return asks }
		other, err := w.ReadOther(strconv.Itoa(there.Process.Pid))
		require.NoError(t, err)
		var all []string
		for i := range other.Mounts {
			m := &other.Mounts[i]
			all = append(all, fmt.Sprintln(m.ID, m.Mountpoint, m.FSType, m.Source, m.Root))
		}
		slices.Sort(all)
		return all
	}
	text := read(false)
	assert.Contains(t, strings.Join(text, ""), dir+" tmpfs only-there")
	assert.Equal(t, text, read(true))
	w := watcher(t)
	w.anyAsks = always
	_, err = w.ReadOther("4194304")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func requireStatmount(t *testing.T) {
	t.Helper()
	faultfs.Require(t)
	if !kernelAtLeast(6, 13) {
		t.Skip("statmount(2) does not tell enough before Linux 6.13")
	}
}

func TestWatcher_StatmountSaysWhatTheTextDoes(t *testing.T) {
	requireStatmount(t)
	mountAll(t)
	text, records := bothWays(t)
	sameMounts(t, text, records)
	var hidden, onDemand, deleted int
	kinds := make(map[string]bool)
	for i := range records.Mounts {
		m := &records.Mounts[i]
		kinds[m.FSType] = true
		for count, holds := range map[*int]bool{&hidden: m.Hidden, &onDemand: m.OnDemand, &deleted: strings.HasSuffix(m.Root, "//deleted")} {
			if holds {
				*count++
			}
		}
	}
	assert.Positive(t, hidden)
	assert.Positive(t, deleted)
	if kinds["autofs"] {
		assert.Positive(t, onDemand)
	}
	assert.Subset(t, slices.Collect(maps.Keys(kinds)), []string{"fuse", "fuse.sshfs", "tmpfs", "overlay"})
}

// 128 directories of 60 bytes take 8 KiB: more than a helper's answer.
func TestWatcher_StatmountOfOptionsThatAreTooLong(t *testing.T) {
	requireStatmount(t)
	dir := t.TempDir()
	overlay(t, filepath.Join(dir, "overlay"), 128)
	mount(t, "behind", filepath.Join(dir, "behind"), "tmpfs", 0, "")
	text, records := bothWays(t)
	require.Greater(t, len(text.At(filepath.Join(dir, "overlay")).VFSOptions), 4096)
	sameMounts(t, text, records)
}

// A path of more than 3.5 KiB does not fit an answer either; without it the mount can't
// be shown.
func TestWatcher_TextWhereStatmountTellsTooLittle(t *testing.T) {
	requireStatmount(t)
	long := filepath.Join(append([]string{t.TempDir()}, slices.Repeat([]string{strings.Repeat("x", 240)}, 15)...)...)
	mount(t, "deep", long, "tmpfs", 0, "")
	w := watcher(t)
	w.plainText, w.anyAsks = false, always
	view := w.View(1)
	require.NoError(t, view.Hindrance)
	require.NoError(t, view.Err)
	assert.True(t, w.plainText)
	require.ErrorContains(t, w.risk, "tells too little")
	require.NotNil(t, view.At(long))
	assert.Equal(t, "deep", view.At(long).Source)
}

func TestWatcher_StatmountOfBtrfs(t *testing.T) {
	requireStatmount(t)
	fs := loopfs.New(t, "btrfs", 128<<20, "")
	bind := filepath.Join(t.TempDir(), "bind")
	mount(t, made(t, filepath.Join(fs.Dir, "sub")), bind, "", unix.MS_BIND, "")
	require.NoError(t, unix.Mount("", fs.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	text, records := bothWays(t)
	sameMounts(t, text, records)
	assert.Equal(t, "/sub", records.At(bind).Root)
	assert.Equal(t, fs.Device, records.At(bind).Source)
	assert.True(t, records.At(bind).ReadOnly(), "the superblock is")
	assert.Equal(t, "ro", records.At(bind).VFSOptions, "it is not asked")
	assert.Contains(t, text.At(bind).VFSOptions, "subvol=")
	assert.True(t, SomeAskForOptions("/proc", "/sys"))
}

// The text takes the kernel less, and hangs only where such a file system is mounted.
func TestWatcher_TextWhereNothingIsAsked(t *testing.T) {
	w := watcher(t)
	w.anyAsks = func() bool { return false }
	require.NoError(t, w.View(1).Hindrance)
	assert.True(t, w.asText)
	assert.Equal(t, maxReaderTimeout, w.plan().Timeout, "it can't hang")
	w.plainText, w.anyAsks = true, always
	assert.Equal(t, readerTimeout, w.plan().Timeout)
}

func TestSomeAskForOptions(t *testing.T) {
	root := t.TempDir()
	sys := made(t, filepath.Join(root, "sys"))
	ask := func(filesystems string) bool {
		require.NoError(t, os.WriteFile(filepath.Join(root, "filesystems"), []byte(filesystems), 0o600))
		return SomeAskForOptions(root, sys)
	}
	const btrfs, zfs = "nodev\tproc\n\text4\n\tbtrfs\n", "nodev\tproc\nnodev\tzfs\n"
	assert.False(t, ask("nodev\tproc\n\text4\n"))
	assert.True(t, ask(btrfs), "sysfs does not say")
	made(t, filepath.Join(sys, "fs/btrfs/features"))
	assert.False(t, ask(btrfs))
	assert.True(t, ask(btrfs+zfs), "ZFS has no directory")
	made(t, filepath.Join(sys, "fs/btrfs/0a4e1b2c-0000-4000-8000-000000000000"))
	assert.True(t, ask(btrfs))
	assert.True(t, SomeAskForOptions(root, ""), "sysfs is not known")
	assert.True(t, SomeAskForOptions(filepath.Join(root, "none"), sys))
}

func TestWatcher_TextWhereStatmountCannotBeUsed(t *testing.T) {
	w := watcher(t)
	w.plainText, w.anyAsks = false, always
	w.plan()
	failed := prober.Report{Outcome: prober.Done, Steps: []prober.StepResult{{Name: "statmount", Errno: unix.ENOSYS}}}
	require.ErrorIs(t, w.adopt(&failed), errRetry)
	assert.True(t, w.plainText)
	require.ErrorContains(t, w.risk, "statmount: function not implemented")
	view := w.View(1)
	require.NoError(t, view.Hindrance)
	assert.NotNil(t, view.At("/proc"))
}

func FuzzParseRecords(f *testing.F) {
	record := func(id uint32, mask uint64, point string) []byte {
		r := make([]byte, statmountSize)
		put := func(offset int, n uint32) { binary.NativeEndian.PutUint32(r[offset:], n) }
		put(offsetIDOld, id)
		put(offsetMask, uint32(mask))
		put(offsetPoint, 1)
		r = append(append(r, 0), point...)
		r = append(r, 0)
		r = append(r, make([]byte, -len(r)&7)...)
		put(offsetSize, uint32(len(r)))
		return r
	}
	f.Add(record(7, statmountAll, "/srv"))
	f.Add(slices.Concat(record(1, statmountPlain, "/"), record(2, statmountPlain, "/a"), record(3, 0, "/b")))
	f.Add(record(7, statmountAll, "/srv")[:100])
	f.Add([]byte{24, 0, 0, 0, 75, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, content []byte) {
		count := 0
		for range prober.Records(content) {
			count++
		}
		infos, err := parseRecords(prober.Records(content))
		require.LessOrEqual(t, len(infos), count)
		require.Equal(t, len(infos) < count, err != nil)
		if err != nil {
			require.True(t, errors.Is(err, errIncomplete))
		}
		for _, info := range infos {
			require.NotEmpty(t, info.Mountpoint)
			require.Contains(t, []string{"ro", "rw"}, info.Options[:2])
			require.Contains(t, []string{"ro", "rw"}, info.VFSOptions[:2])
		}
		newSnapshot(infos, err, Devices{})
	})
}
