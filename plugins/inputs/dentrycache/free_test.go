package dentrycache

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/dcache/attribution"
	"github.com/vfsprobe/vfsprobe/internal/testing/loopfs"
)

// TestFreeing_Run frees what a process in a cgroup of its own has left, and only after yes.
func TestFreeing_Run(t *testing.T) {
	const names = 300_000
	d, _ := newInput(t, nil)
	h := cgroups.FindHierarchies(d.host.Sys)
	walker, err := attribution.OpenWalker(d.host.Prober)
	if err != nil || h.Memory == "" {
		t.Skip("no BPF, or no memory controller: ", err)
	}
	require.NoError(t, walker.Close())
	if !h.V1() { // which systemd has done, where it is
		_ = os.WriteFile(filepath.Join(h.Memory, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	group := filepath.Join(h.Memory, "vfsprobe-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.Remove(group) }) // after the process has ended
	top := os.Getenv(ext4Variable)
	if top == "" {
		top = loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir
	}
	dir := directoryOf(t, top, "freed")
	kept := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(kept, []byte("it"), 0o600))
	flooder := startFlooder(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.FormatInt(flooder.pid(), 10)), 0))
	flooder.start(names)
	flooder.wait()
	if err := h.CanReclaim("/" + filepath.Base(group)); err != nil {
		t.Skip(err)
	}

	run := func(answer, cgroup string) (string, error) {
		var out bytes.Buffer
		f := Freeing{Directory: dir, Cgroup: cgroup, Host: d.host, In: strings.NewReader(answer), Out: &out}
		err := f.Run(t.Context())
		return out.String(), err
	}
	for _, answer := range []string{"", "n\n", "\n"} {
		_, err = run(answer, filepath.Base(group))
		require.ErrorContains(t, err, "nothing was done")
	}
	_, err = run("y\n", "none/such")
	require.ErrorContains(t, err, "there is no cgroup /none/such")
	_, err = run("y\n", "/")
	require.ErrorContains(t, err, "without everybody's")
	worst := slowestLookUp(dir)
	out, err := run("y\n", filepath.Base(group))
	t.Logf("%s\nThe slowest look-up of a name in the directory took %v meanwhile.", out, worst())
	require.NoError(t, err)
	assert.Contains(t, out, "of them do not exist")
	assert.Regexp(t, `\n29\d{4} of them are gone|\n300000 of them are gone`, out)
	content, err := os.ReadFile(kept)
	require.NoError(t, err)
	assert.Equal(t, "it", string(content))
}

// slowestLookUp looks for a file of the directory again and again, until the function that it
// returns is called, which tells how long that took at most.
func slowestLookUp(dir string) func() time.Duration {
	stop, worst := make(chan struct{}), make(chan time.Duration)
	go func() {
		var most time.Duration
		for {
			select {
			case <-stop:
				worst <- most
				return
			default:
			}
			began := time.Now()
			_, _ = os.Lstat(filepath.Join(dir, "file"))
			most = max(most, time.Since(began))
			time.Sleep(100 * time.Microsecond)
		}
	}()
	return func() time.Duration { close(stop); return <-worst }
}

// TestFreeing_IsInterruptedWhileTheKernelHangs has a FIFO for memory.reclaim, whose opening waits.
func TestFreeing_IsInterruptedWhileTheKernelHangs(t *testing.T) {
	d, _ := newInput(t, nil)
	dir := directoryOf(t, loopfs.New(t, "ext4", loopfs.DefaultSize, "").Dir, "freed")
	for i := range 100 {
		_, _ = os.Lstat(filepath.Join(dir, strconv.Itoa(i)))
	}
	sys := t.TempDir()
	group := directoryOf(t, sys, "fs/cgroup/web")
	for name, content := range map[string]string{"../cgroup.controllers": "memory\n", "memory.stat": "slab_reclaimable 123456\n", "memory.current": "234567\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(group, name), []byte(content), 0o600))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(group, "memory.reclaim"), 0o600))
	d.host.Sys = sys
	ctx, interrupt := context.WithCancel(t.Context())
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer out.Close()
	at := make(chan time.Time, 1)
	go func() {
		for hangs := 0; hangs < 30 && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			said, _ := os.ReadFile(out.Name())
			if hangs++; !strings.Contains(string(said), "Go on?") || d.host.Prober.Stats().Running == 0 {
				hangs = 0
			}
		}
		at <- time.Now()
		interrupt()
	}()
	err = (&Freeing{Directory: dir, Host: d.host, In: strings.NewReader("y\n"), Out: out}).Run(ctx)
	returned := time.Now()
	interrupt()
	said, readError := os.ReadFile(out.Name())
	require.NoError(t, readError)
	if len(said) == 0 {
		t.Skip(err) // no BPF
	}
	require.ErrorIs(t, err, errInterrupted)
	assert.Contains(t, string(said), "the cgroup /web (memory.reclaim")
	assert.Less(t, returned.Sub(<-at), unhurried)
	assert.EqualValues(t, 1, d.host.Prober.Stats().Running, "the helper that hangs")
}

// Who interrupts the question has not agreed, and need not answer it.
func TestFreeing_IsInterruptedWhileItAsks(t *testing.T) {
	silent, end := io.Pipe()
	defer end.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	d, _ := newInput(t, nil)
	require.ErrorIs(t, (&Freeing{Directory: "/", Host: d.host, In: silent, Out: io.Discard}).Run(ctx), errInterrupted)
}
