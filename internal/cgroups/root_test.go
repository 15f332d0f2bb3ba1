package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRootProcs(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		return file
	}
	proc, sys := filepath.Join(root, "proc"), filepath.Join(root, "sys")
	assert.Empty(t, RootProcs(proc, sys, false))
	write("proc/self/cgroup", "9:name=systemd:/system.slice/telegraf.service\n4:memory:/docker/0123\n3:cpuset:/\n1:cpu,cpuacct:/a:b\n0::/system.slice/telegraf.service\n")
	assert.Empty(t, RootProcs(proc, sys, false), "none is mounted")
	want := []string{write("sys/fs/cgroup/systemd/cgroup.procs", ""), write("sys/fs/cgroup/cpu,cpuacct/cgroup.procs", "")}
	write("sys/fs/cgroup/cpuset/cgroup.procs", "")
	assert.Equal(t, want, RootProcs(proc, sys, false))
	write("sys/fs/cgroup/unified/cgroup.controllers", "")
	want = append(want, write("sys/fs/cgroup/unified/cgroup.procs", ""))
	assert.Equal(t, want, RootProcs(proc, sys, false))
}

func FuzzBelowRoot(f *testing.F) {
	f.Add([]byte("9:name=systemd:/system.slice\n0::/../x\n0::/\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, name := range belowRoot(content) {
			assert.False(t, strings.Contains(name, "/"), "%q", name)
		}
	})
}
