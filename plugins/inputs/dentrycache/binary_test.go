package dentrycache

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
)

// What a virtual machine tells its tests.
const (
	binaryVariable = "VFSPROBE_TEST_BINARY" // vfsprobe itself
	ext4Variable   = "VFSPROBE_TEST_EXT4"   // a directory of an ext4
	modesVariable  = "VFSPROBE_TEST_MODES"  // that must work here, the best one first
	walkVariable   = "VFSPROBE_TEST_WALK"   // yes or no
)

// TestBinary has vfsprobe itself, with a configuration file and triggers on stdin,
// say who floods which directory: in the best mode of this kernel, which it must find
// out by itself, and in the others that must work here.
func TestBinary(t *testing.T) {
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		t.Skip("this is for the machines of make test-kernels")
	}
	modes := strings.Split(os.Getenv(modesVariable), ",")
	for i, mode := range append([]string{"auto"}, modes[1:]...) {
		t.Run(mode, func(t *testing.T) {
			testBinary(t, binary, mode, modes[i], os.Getenv(walkVariable) == "yes")
		})
	}
}

func testBinary(t *testing.T, binary, attributionSetting, mode string, walks bool) {
	const names, few = 20_000, attribution.SampledAbove
	dir := directoryOf(t, os.Getenv(ext4Variable), "srv/"+attributionSetting+" spool")
	defer os.RemoveAll(dir)
	config := filepath.Join(t.TempDir(), "vfsprobe.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "[[inputs.dentrycache]]\n  attribution = %q\n  timeout = \"30s\"\n", attributionSetting), 0o600))
	p := startBinary(t, binary, config)

	status := p.loaded()
	require.Equal(t, mode, status.Fields["mode"], "%v", status.Fields)
	assert.Equal(t, attributionSetting == "auto" && mode != "fentry", status.Fields["reason"] != "", "%v", status.Fields)
	assert.Equal(t, strconv.FormatBool(walks), status.Fields["walker"], "%v", status.Fields)

	// In the mode enoent a flood has to begin before it is counted.
	f := startFlooder(t, dir)
	looked := 0
	flood := func(count int) {
		f.start(count)
		f.wait()
		looked += count
	}
	for range 10 {
		if status.Fields["watching"] == "true" {
			break
		}
		flood(few)
		status = p.gather().one(t, "dentrycache_status", "", "")
	}
	require.Equal(t, "true", status.Fields["watching"], "%v", status.Fields)
	uncounted := looked

	flood(names)
	found := p.gather()
	source := found.one(t, "dentrycache_source", "comm", mounts.Printable(floodComm))
	assert.Equal(t, mounts.Printable(dir), source.Tags["directory"])
	assert.Equal(t, "ext4", source.Tags["fstype"])
	assert.Equal(t, strconv.Itoa(os.Getuid()), source.Fields["uid"])
	assert.EqualValues(t, f.pid(), wholeOf(t, source, "pid"))
	assert.Positive(t, floatOf(t, source, "created_per_s"))
	created := wholeOf(t, source, "created")
	status = found.one(t, "dentrycache_status", "", "")
	t.Logf("mode %s: %d look-ups, created=%d, %v", mode, names, created, status.Fields)
	assert.Equal(t, mode, status.Fields["mode"])
	if mode == attribution.ENOENT.String() {
		// One in 64 is counted, once there were more than are counted exactly: five
		// standard deviations.
		assert.InDelta(t, names, created, 5*8*math.Sqrt(names))
	} else {
		assert.EqualValues(t, names, created)
		assert.Equal(t, "0", source.Fields["converted"])
		assert.Equal(t, "0", source.Fields["killed_in_dir"])
		assert.GreaterOrEqual(t, wholeOf(t, status, "created"), int64(names))
	}

	// The directory was in no configuration. What it predicts is for all that is in
	// the cache, with the missing name of the look-up probe.
	directory := found.one(t, "dentrycache_dir", "directory", mounts.Printable(dir))
	assert.Equal(t, "false", directory.Fields["configured"])
	assert.Equal(t, "ok", directory.Fields["result"], "%v", directory.Fields)
	if !walks {
		assert.NotContains(t, directory.Fields, "children")
		assert.NotEmpty(t, status.Fields["walker_reason"])
	} else {
		children := uncounted + names + 1
		assert.EqualValues(t, children, wholeOf(t, directory, "children"), "%v", directory.Fields)
		assert.EqualValues(t, children, wholeOf(t, directory, "negative_children"))
		assert.Equal(t, "true", directory.Fields["complete"])
		assert.InDelta(t, (time.Duration(children) * stallPerChild).Seconds(), floatOf(t, directory, "predicted_stall_seconds"), 1e-6)
	}

	// What has grown no more is no source any more.
	assert.Empty(t, p.gather().all("dentrycache_source", "comm", mounts.Printable(floodComm)))
	p.end()
}

// started is a vfsprobe that gathers when it is told to.
type started struct {
	t       *testing.T
	command *exec.Cmd
	stdin   io.WriteCloser
	lines   *bufio.Scanner
	log     strings.Builder
}

func startBinary(t *testing.T, binary, config string) *started {
	t.Helper()
	p := &started{t: t, command: exec.Command(binary, "-config", config)}
	p.command.Stderr = &p.log
	var err error
	p.stdin, err = p.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.command.StdoutPipe()
	require.NoError(t, err)
	p.lines = bufio.NewScanner(stdout)
	require.NoError(t, p.command.Start())
	t.Cleanup(func() {
		p.stdin.Close()
		_ = p.command.Wait()
		t.Logf("log of vfsprobe:\n%s", &p.log)
	})
	return p
}

// points are those of one gather.
type points []influx.Point

// gather gathers once. The status is the last that is reported.
func (p *started) gather() (found points) {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, "\n")
	require.NoError(p.t, err)
	for p.lines.Scan() {
		point, err := influx.Parse(p.lines.Text())
		require.NoError(p.t, err, p.lines.Text())
		found = append(found, point)
		if point.Name == "dentrycache_status" {
			return found
		}
	}
	require.FailNow(p.t, "vfsprobe has ended")
	return nil
}

// loaded gathers until the BPF programs are loaded, or are not to be had, which the first
// gather does not wait for.
func (p *started) loaded() (status influx.Point) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		status = p.gather().one(p.t, "dentrycache_status", "", "")
		return status.Fields["mode"] != "starting"
	}, time.Minute, 200*time.Millisecond)
	return status
}

// end lets it end, as Telegraf does.
func (p *started) end() {
	p.t.Helper()
	require.NoError(p.t, p.stdin.Close())
	for p.lines.Scan() { // what is left
	}
	assert.NoError(p.t, p.command.Wait())
	assert.NotContains(p.t, p.log.String(), "W! ")
	assert.NotContains(p.t, p.log.String(), "E! ")
}

func (all points) all(name, tag, value string) (chosen points) {
	for _, point := range all {
		if point.Name == name && (tag == "" || point.Tags[tag] == value) {
			chosen = append(chosen, point)
		}
	}
	return chosen
}

func (all points) one(t *testing.T, name, tag, value string) influx.Point {
	t.Helper()
	chosen := all.all(name, tag, value)
	require.Len(t, chosen, 1, "%s with %s=%q in %v", name, tag, value, all)
	return chosen[0]
}

func wholeOf(t *testing.T, point influx.Point, field string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(point.Fields[field], 10, 64)
	require.NoError(t, err, "%s of %v", field, point)
	return n
}

func floatOf(t *testing.T, point influx.Point, field string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(point.Fields[field], 64)
	require.NoError(t, err, "%s of %v", field, point)
	return f
}
