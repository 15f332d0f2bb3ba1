package dentrycache

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// show gathers, and returns what "vfsprobe dentries" would print.
func show(d *DentryCache) (string, error) {
	metrics, problems, err := execd.Collect(d)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = checkup.WriteDentries(&b, metrics, problems)
	return b.String(), err
}

func TestDentryCache_IsShown(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	missing := filepath.Join(t.TempDir(), "missing")
	d, _ := newInput(t, func(d *DentryCache) {
		d.Directories, d.Attribution, d.CountChildren = []string{"/", missing}, "auto", true
		d.Eager = true
	})
	_, err := show(d)
	require.NoError(t, err)
	mode := d.tracerMode()
	f := startFlooder(t, fs.Dir)
	var shown string
	for range 4 { // the mode enoent has to see the growth first
		f.start(20_000)
		f.wait()
		time.Sleep(100 * time.Millisecond)
		if dir := d.directoryAt(fs.Dir); dir != nil {
			dir.walkDue = time.Time{}
		}
		shown, err = show(d)
		require.NoError(t, err)
	}
	t.Log("\n" + shown)
	assert.Regexp(t, `(?m)^\d+ dentries, \d+ of them negative \([+-]\d+/s\); [\d.]+ % of the memory; hash load [\d.]+$`, shown)
	assert.Regexp(t, `(?m)^attribution: `+mode.String(), shown)
	assert.Regexp(t, `(?m)^DIRECTORY +.*RESULT`, shown)
	assert.Regexp(t, `(?m)^/ +`, shown)
	assert.Regexp(t, `(?m)^`+regexp.QuoteMeta(missing)+` +.*missing +ENOENT`, shown)
	for line := range strings.Lines(shown) {
		assert.False(t, strings.HasSuffix(line, " \n"), "%q", line)
	}
	if mode != attribution.None {
		assert.Regexp(t, `(?m)^\d+ +`+regexp.QuoteMeta(mounts.Printable(floodComm))+` +`, shown)
		assert.Regexp(t, `(?m)^`+regexp.QuoteMeta(fs.Dir)+` +8000\d +8000\d +7\.2 ms`, shown)
	}
}

func TestDentryCache_IsShownOnABrokenHost(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	d, _ := newInput(t, files(proc))
	_, err := show(d)
	require.ErrorIs(t, err, os.ErrNotExist)
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	shown, err := show(d)
	require.NoError(t, err)
	assert.Contains(t, shown, "5 dentries, 0 of them negative\n")
	assert.Contains(t, shown, "reading the inode cache's state: open", "errors are shown")
}
