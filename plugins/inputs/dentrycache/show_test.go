package dentrycache

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

func TestShow(t *testing.T) {
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	missing := filepath.Join(t.TempDir(), "missing")
	d, _ := newInput(t, func(d *Dentrycache) {
		d.Directories, d.Attribution, d.CountChildren = []string{"/", missing}, "auto", true
		d.Timeout *= 10
	})
	require.NoError(t, d.Show(io.Discard))
	mode := d.tracerMode()
	f := startFlooder(t, fs.Dir)
	var b bytes.Buffer
	for range 4 { // the mode enoent has to see the growth first
		f.start(20_000)
		f.wait()
		time.Sleep(100 * time.Millisecond)
		b.Reset()
		if dir := d.directoryAt(fs.Dir); dir != nil {
			dir.walkDue = time.Time{}
		}
		require.NoError(t, d.Show(&b))
	}
	shown := b.String()
	t.Log("\n" + shown)
	assert.Regexp(t, `(?m)^\d+ dentries, \d+ of them negative \(\+\d+/s\); [\d.]+ % of the memory; hash load [\d.]+$`, shown)
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

func TestShowOfABrokenHost(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	d, _ := newInput(t, files(proc))
	require.ErrorIs(t, d.Show(io.Discard), os.ErrNotExist)
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	var b bytes.Buffer
	require.NoError(t, d.Show(&b))
	assert.Contains(t, b.String(), "5 dentries, 0 of them negative\n")
	assert.Contains(t, b.String(), "reading the inode cache's state: open", "errors are shown")
}

func TestColumns(t *testing.T) {
	var all gathered
	all.AddGauge("dentrycache_dir", map[string]any{"children": int64(5), "predicted_stall_seconds": 0.0125, "complete": false, "incomplete_reason": "max_children"}, map[string]string{"directory": "/a"})
	all.AddCounter("dentrycache_dir", map[string]any{"children": int64(50), "predicted_stall_seconds": 0.5, "complete": true}, map[string]string{"directory": "/b"})
	all.AddFields("dentrycache_source", map[string]any{"created_per_s": 10.0, "below_created_per_s": 5.0, "below_directories": int64(3)}, map[string]string{"comm": "c", "container": "abc"})
	columns := []column{{"DIRECTORY", tag("directory")}, {"NEVER", field("x")}, {"STALL", stall}, {"NOTE", dirNote}}
	var b bytes.Buffer
	all.table(&b, "dentrycache_dir", columns)
	assert.Equal(t, "\nDIRECTORY  STALL      NOTE\n/b         500.0 ms\n/a         > 12.5 ms  max_children\n", b.String())
	var source telegraf.Metric = all.named("dentrycache_source")[0]
	assert.Equal(t, "15", perSecond("created_per_s", "below_created_per_s")(source))
	assert.Equal(t, "abc", owner(source))
	assert.Equal(t, "5/s of it in 3 directories below", sourceNote(source))
	b.Reset()
	all.table(&b, "dentrycache_cgroup", columns)
	assert.Empty(t, b.String())
}
