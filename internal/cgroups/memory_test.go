package cgroups

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tree writes files, given by their names.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		name = filepath.Join(root, "fs/cgroup", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	}
	return root
}

func TestHierarchies_Unified(t *testing.T) {
	const container = "docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope"
	sys := tree(t, map[string]string{
		"cgroup.controllers":                         "cpuset cpu io memory pids\n",
		"memory.stat":                                "anon 5\nslab_reclaimable 1000\nslab_unreclaimable 7\n",
		"system.slice/memory.stat":                   "slab_reclaimable 700\n",
		"system.slice/" + container + "/memory.stat": "file 1\nslab_reclaimable 600\n",
		"system.slice/ssh.service/cgroup.procs":      "1\n", // without the controller
		"user.slice/session/memory.stat":             "slab_reclaimable 400\n",
	})
	h := FindHierarchies(sys)
	assert.False(t, h.V1())
	assert.Equal(t, filepath.Join(sys, "fs/cgroup"), h.Memory)
	all, err := h.ReadMemory()
	require.NoError(t, err)
	assert.ElementsMatch(t, []Memory{
		{"/", 1000, 0}, // they are not read at one time: more than all is possible
		{"/system.slice", 700, 100},
		{"/system.slice/" + container, 600, 600},
		{"/user.slice/session", 400, 400},
	}, all)
	names, err := h.Names()
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(h.Memory, "system.slice", container), &st))
	assert.Equal(t, "/system.slice/"+container, names[st.Ino])
	assert.Len(t, names, 6)
}

func TestHierarchies_Version1(t *testing.T) {
	sys := tree(t, map[string]string{
		"unified/cgroup.controllers":               "\n",
		"memory/memory.stat":                       "cache 1\n",
		"memory/memory.kmem.usage_in_bytes":        "900\n",
		"memory/docker/memory.kmem.usage_in_bytes": "300\n",
	})
	h := FindHierarchies(sys)
	assert.True(t, h.V1())
	assert.Equal(t, filepath.Join(sys, "fs/cgroup/unified"), h.Unified)
	all, err := h.ReadMemory()
	require.NoError(t, err)
	assert.ElementsMatch(t, []Memory{{"/", 900, 600}, {"/docker", 300, 300}}, all)
}

func TestUsageReader(t *testing.T) {
	v2 := FindHierarchies(tree(t, map[string]string{
		"cgroup.controllers":   "memory",
		"pod/memory.max":       "1000\n",
		"pod/memory.current":   "900\n",
		"pod/a/memory.max":     "max\n",
		"pod/a/memory.stat":    "anon 5\nkernel 300\ninactive_file 100\n",
		"pod/a/memory.current": "700\n",
		"pod/b/memory.max":     "max\n",
		"pod/b/memory.current": "150\n",
	}))
	of2 := v2.NewUsageReader()
	assert.Equal(t, Usage{Kernel: 300, WorkingSet: 600, Limit: 1000, Used: 900}, of2.Read("/pod/a"))
	assert.Equal(t, Usage{WorkingSet: 150, Limit: 1000, Used: 900}, of2.Read("/pod/b"))
	assert.Equal(t, Usage{}, of2.Read("/gone"))
	v1 := FindHierarchies(tree(t, map[string]string{
		"memory/memory.kmem.usage_in_bytes":   "9000\n",
		"memory/memory.limit_in_bytes":        "9223372036854771712\n",
		"memory/a/memory.limit_in_bytes":      "800\n",
		"memory/a/memory.usage_in_bytes":      "600\n",
		"memory/a/memory.kmem.usage_in_bytes": "500\n",
		"memory/a/memory.stat":                "inactive_file 7\ntotal_inactive_file 40\n",
		"memory/b/memory.limit_in_bytes":      "9223372036854771712\n",
	}))
	of1 := v1.NewUsageReader()
	assert.Equal(t, Usage{Kernel: 500, WorkingSet: 560, Limit: 800, Used: 600}, of1.Read("/a"))
	assert.Equal(t, Usage{}, of1.Read("/b"), "no limit")
}

// TestHierarchies_V1Names: what a cgroup of version 1 is known by is the number of its
// directory in the memory controller's hierarchy.
func TestHierarchies_V1Names(t *testing.T) {
	h := FindHierarchies(tree(t, map[string]string{
		"unified/cgroup.controllers":               "\n",
		"unified/x/cgroup.procs":                   "\n",
		"memory/memory.kmem.usage_in_bytes":        "900\n",
		"memory/docker/memory.kmem.usage_in_bytes": "300\n",
	}))
	names, err := h.Names()
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(h.Memory, "docker"), &st))
	assert.Equal(t, "/docker", names[st.Ino])
	assert.Len(t, names, 2)
}

func TestHierarchies_WithoutCgroups(t *testing.T) {
	h := FindHierarchies(t.TempDir())
	assert.Equal(t, Hierarchies{}, h)
	all, err := h.ReadMemory()
	require.NoError(t, err)
	assert.Empty(t, all)
	names, err := h.Names()
	require.NoError(t, err)
	assert.Empty(t, names)
}

func TestHierarchies_AMalformedFileCostsNoOther(t *testing.T) {
	h := FindHierarchies(tree(t, map[string]string{
		"cgroup.controllers": "memory",
		"a/memory.stat":      "slab_reclaimable x\n",
		"b/memory.stat":      "slab_reclaimable 1\n",
	}))
	all, err := h.ReadMemory()
	require.ErrorContains(t, err, "a/memory.stat")
	assert.Equal(t, []Memory{{"/b", 1, 1}}, all)
}

func TestHierarchies_OfThisHost(t *testing.T) {
	h := FindHierarchies("/sys")
	if h.Memory == "" {
		t.Skip("no memory controller here")
	}
	all, err := h.ReadMemory()
	require.NoError(t, err)
	require.NotEmpty(t, all)
	var sum int64
	for _, m := range all {
		assert.GreaterOrEqual(t, m.Bytes, m.Own)
		sum += m.Own
	}
	assert.Positive(t, sum)
}

func FuzzSlab(f *testing.F) {
	f.Add([]byte("anon 1\nslab_reclaimable 5\n"))
	f.Add([]byte("slab_reclaimable \n"))
	f.Add([]byte("slab_reclaimable -7"))
	f.Fuzz(func(t *testing.T, content []byte) {
		n, err := parseSlab(content)
		require.GreaterOrEqual(t, n, int64(0))
		if err != nil {
			require.Zero(t, n)
		}
		// One number alone is memory.kmem.usage_in_bytes of version 1.
		n, err = parseBytes(content)
		require.GreaterOrEqual(t, n, int64(0))
		if err != nil {
			require.Zero(t, n)
			return
		}
		slab, err := parseSlab(fmt.Appendf(nil, "slab 1\nslab_reclaimable %d\nslab_unreclaimable 2\n", n))
		require.NoError(t, err)
		require.Equal(t, n, slab)
	})
}

func FuzzControllers(f *testing.F) {
	for _, content := range []string{"cpuset cpu io memory pids\n", "cpu pids\n", "memory", "memoryx", ""} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		require.True(t, !listsMemory([]byte(content)) || strings.Contains(content, "memory"))
		require.True(t, listsMemory([]byte(content+" memory\n")))
		require.False(t, listsMemory([]byte(strings.ReplaceAll(content, "memory", "hugetlb"))))
	})
}

func FuzzIdentity(f *testing.F) {
	id := strings.Repeat("0123456789abcdef", 4)
	f.Add([]byte("12:pids:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n0::/\n"))
	f.Add([]byte("0::/system.slice/a:b.service"))
	f.Add([]byte("::\n0:/lxc/a\n\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		name := parseIdentity(content).Name
		require.NotContains(t, name, "/")
		require.NotContains(t, name, "\n")
		require.Contains(t, string(content), name)
		// The first line that names one counts.
		require.Equal(t, cmp.Or(name, "last"), parseIdentity(slices.Concat(content, []byte("\n0::/lxc/last\n"))).Name)
	})
}
