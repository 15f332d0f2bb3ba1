package attribution_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

func newWalker(t testing.TB) *attribution.Walker {
	t.Helper()
	w, err := attribution.OpenWalker(newProber(t))
	if err != nil && os.Getenv(walkVariable) != "yes" {
		t.Skip(err)
	}
	require.NoError(t, err)
	require.NotEqual(t, "no", os.Getenv(walkVariable), "this kernel should not be able to")
	t.Cleanup(func() { assert.NoError(t, w.Close()) })
	return w
}

func request(path string) attribution.Request {
	return attribution.Request{Path: path, Check: prober.Check{Key: path}, Timeout: time.Minute}
}

func TestWalker_CountsChildren(t *testing.T) {
	w := newWalker(t)
	dir := ext4(t)
	d, err := w.Walk(request(dir))
	require.NoError(t, err)
	assert.Zero(t, d.Children)
	assert.True(t, d.Complete)

	for i := range 50 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), nil, 0o600))
	}
	const misses = 20_000
	miss(t, dir, 0, misses)
	r := request(dir)
	r.Names = 3
	d, err = w.Walk(r)
	require.NoError(t, err)
	inode, device := inodeOf(t, dir)
	assert.EqualValues(t, misses+50, d.Children)
	assert.EqualValues(t, misses, d.Negative)
	assert.True(t, d.Complete)
	assert.True(t, d.KeepsNegatives)
	assert.Equal(t, "ext4", d.FSType)
	assert.Equal(t, inode, d.Inode)
	assert.Equal(t, device, d.Device)
	assert.Equal(t, device, d.StatDevice)
	assert.Positive(t, d.Elapsed)
	assert.Equal(t, []attribution.Child{
		{Name: fmt.Sprintf("missing-%08d", misses-1), Negative: true},
		{Name: fmt.Sprintf("missing-%08d", misses-2), Negative: true},
		{Name: fmt.Sprintf("missing-%08d", misses-3), Negative: true},
	}, d.Newest)

	r = request(dir)
	r.MaxChildren = 10_000
	d, err = w.Walk(r)
	require.NoError(t, err)
	assert.True(t, d.Capped)
	assert.False(t, d.Complete)
	assert.GreaterOrEqual(t, d.Children, int64(10_000))
	assert.Less(t, d.Children, int64(10_000+4096))
	assert.Empty(t, d.Newest)

	// The newest is a file.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "last\xff"), nil, 0o600))
	r.Names = 100
	d, err = w.Walk(r)
	require.NoError(t, err)
	require.Len(t, d.Newest, 16)
	assert.Equal(t, attribution.Child{Name: "last\xff"}, d.Newest[0])
}

func TestWalker_OfAnotherMountNamespace(t *testing.T) {
	w := newWalker(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	miss(t, dir, 0, 100)
	d, err := w.Walk(request(dir))
	require.NoError(t, err)
	assert.False(t, d.KeepsNegatives)
	assert.EqualValues(t, 1, d.Children)
	assert.Zero(t, d.Negative)
	assert.Equal(t, "tmpfs", d.FSType)

	_, err = w.Walk(request(filepath.Join(dir, "file")))
	var refused *attribution.OpenError
	require.ErrorAs(t, err, &refused)
	assert.ErrorIs(t, err, unix.ENOTDIR)
	_, err = w.Walk(request(filepath.Join(dir, "missing")))
	assert.ErrorIs(t, err, unix.ENOENT)
	t.Log(err)

	d, err = w.Walk(request("/proc"))
	require.NoError(t, err)
	assert.False(t, d.KeepsNegatives)

	// The file system can go at once: nobody holds it.
	require.NoError(t, unix.Unmount(dir, 0))
}

// TestWalker_OfAFileSystemThatHangs: the directory lies below one whose server does not answer.
func TestWalker_OfAFileSystemThatHangs(t *testing.T) {
	w := newWalker(t)
	fs := faultfs.New(t)
	fs.Silence()
	r := request(filepath.Join(fs.Dir, "a", "b"))
	r.Timeout = 4 * time.Second
	// Another one is walked meanwhile.
	others := make(chan time.Duration, 1)
	start := time.Now()
	go func() {
		time.Sleep(50 * time.Millisecond)
		_, err := w.Walk(request("/"))
		assert.NoError(t, err)
		others <- time.Since(start)
	}()
	_, err := w.Walk(r)
	assert.Less(t, time.Since(start), 10*r.Timeout)
	assert.Less(t, <-others, r.Timeout)
	var refused *attribution.OpenError
	require.ErrorAs(t, err, &refused)
	t.Log(err)
	assert.Equal(t, "open", refused.Report.HangsIn)
	assert.True(t, errors.Is(err, refused))

	// As long as it hangs, it is not tried again.
	_, err = w.Walk(r)
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, prober.Busy, refused.Report.Outcome)
}

// TestWalker_Disturbed walks a directory while children come and are freed.
func TestWalker_Disturbed(t *testing.T) {
	w := newWalker(t)
	dir := ext4(t)
	root := filepath.Dir(filepath.Dir(dir))
	miss(t, dir, 0, 100_000)
	d, err := w.Walk(request(dir))
	require.NoError(t, err)
	if unix.Mount("", root, "", unix.MS_REMOUNT, "") == nil {
		freed, err := w.Walk(request(dir))
		require.NoError(t, err)
		require.Less(t, freed.Children, d.Children, "this disturbs nothing")
	}
	miss(t, dir, 0, 100_000)
	var stop atomic.Bool
	var wait sync.WaitGroup
	defer wait.Wait()
	defer stop.Store(true)
	var made atomic.Int64
	made.Store(100_000)
	for range 2 {
		wait.Go(func() {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return
			}
			defer unix.Close(fd)
			for !stop.Load() {
				_ = unix.Faccessat(fd, fmt.Sprintf("%x", rand.Uint64()), 0, 0)
				made.Add(1)
			}
		})
	}
	wait.Go(func() {
		for !stop.Load() {
			// This frees the dentries of the file system, and of no other
			// (reconfigure_super, fs/super.c). It is this test's disturbance.
			if unix.Mount("", root, "", unix.MS_REMOUNT, "") != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	complete := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		r := request(dir)
		r.MaxChildren = 2_000_000
		d, err := w.Walk(r)
		require.NoError(t, err)
		if d.Complete {
			complete++
			assert.LessOrEqual(t, d.Children, made.Load())
		} else {
			assert.True(t, d.Disturbed || d.Capped || d.TimedOut)
		}
		assert.LessOrEqual(t, d.Negative, d.Children)
	}
	t.Logf("%d complete walks", complete)
	assert.Positive(t, complete)
}

// Whoever sees the socket's name may connect to it before the helper does.
func TestWalker_TurnsStrangersAway(t *testing.T) {
	w := newWalker(t)
	dir := t.TempDir()
	done := make(chan struct{})
	var strangers sync.WaitGroup
	var connected atomic.Int64
	for range 2 {
		strangers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				content, _ := os.ReadFile("/proc/net/unix")
				for _, name := range regexp.MustCompile(`@vfsprobe-walk-\S+`).FindAllString(string(content), -1) {
					if conn, err := net.Dial("unixpacket", name); err == nil {
						connected.Add(1)
						defer conn.Close()
					}
				}
			}
		})
	}
	began := time.Now()
	for connected.Load() < 10 && time.Since(began) < time.Minute {
		_, err := w.Walk(request(dir))
		require.NoError(t, err)
	}
	close(done)
	strangers.Wait()
	assert.Positive(t, connected.Load())
}
