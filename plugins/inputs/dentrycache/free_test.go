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

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
	group := filepath.Join(h.Memory, "vfsprobe-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.Remove(group) }) // after the process has ended
	fs := loopfs.New(t, "ext4", loopfs.DefaultSize, "")
	kept := filepath.Join(fs.Dir, "file")
	require.NoError(t, os.WriteFile(kept, []byte("it"), 0o600))
	flooder := startFlooder(t, fs.Dir)
	require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.FormatInt(flooder.pid(), 10)), 0))
	flooder.start(names)
	flooder.wait()
	if err := h.CanReclaim("/" + filepath.Base(group)); err != nil {
		t.Skip(err)
	}

	run := func(answer, cgroup string) (string, error) {
		var out bytes.Buffer
		f := Freeing{Directory: fs.Dir, Cgroup: cgroup, Host: d.host, In: strings.NewReader(answer), Out: &out}
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
	out, err := run("y\n", filepath.Base(group))
	t.Log(out)
	require.NoError(t, err)
	assert.Contains(t, out, "of them do not exist")
	assert.Regexp(t, `\n29\d{4} of them are gone|\n300000 of them are gone`, out)
	content, err := os.ReadFile(kept)
	require.NoError(t, err)
	assert.Equal(t, "it", string(content))
}

// Who interrupts the question has not agreed, and need not answer it.
func TestFreeing_IsInterruptedWhileItAsks(t *testing.T) {
	silent, end := io.Pipe()
	defer end.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	assert.False(t, (&Freeing{In: silent}).agreed(ctx))
	assert.True(t, (&Freeing{In: strings.NewReader("yes\n")}).agreed(t.Context()))
}
