package attribution_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func newProber(t testing.TB) *prober.Prober {
	p := prober.New(prober.Options{Warnf: func(f string, a ...any) { t.Logf("W! "+f, a...) }})
	t.Cleanup(p.Close)
	return p
}

func miss(t testing.TB, dir string, from, to int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for i := from; i < to; i++ {
		if err := unix.Faccessat(fd, fmt.Sprintf("missing-%08d", i), 0, 0); err != unix.ENOENT {
			t.Fatal(err)
		}
	}
}

func TestStart(t *testing.T) {
	tracer, err := attribution.Start(attribution.Options{Prober: newProber(t)})
	require.NoError(t, err)
	defer tracer.Close()
	t.Logf("%+v", tracer.Status())
	require.NoError(t, tracer.Watch(true))
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	dir := filepath.Join(fs.Dir, "some", "dir")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	miss(t, dir, 0, 1000)
	sources, totals, err := tracer.Read()
	require.NoError(t, err)
	t.Logf("%+v", totals)
	for _, s := range sources {
		t.Logf("%+v", s)
	}
	t.Logf("%+v", tracer.Status())
}

func TestWalk(t *testing.T) {
	w, err := attribution.OpenWalker(newProber(t))
	require.NoError(t, err)
	defer w.Close()
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	dir := filepath.Join(fs.Dir, "some", "dir")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	miss(t, dir, 0, 1000)
	d, err := w.Walk(attribution.Request{Path: dir, Check: prober.Check{Key: dir}, Names: 4})
	require.NoError(t, err)
	t.Logf("%+v", d)
	assert.EqualValues(t, 1000, d.Children)
}
