package dcache_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

const page = 4096

func TestMemory_OfKernels(t *testing.T) {
	for name, want := range map[string]struct {
		memory  dcache.Memory
		drops   int64
		slab    dcache.Slab
		sysctls map[string]int64
	}{
		"ubuntu1804": {dcache.Memory{Total: 8167848 << 10, SlabReclaimable: 298012 << 10}, 17, dcache.Slab{}, map[string]int64{"pressure": 100}},
		"rhel8":      {dcache.Memory{Total: 65806544 << 10, SlabReclaimable: 4012432 << 10}, 0, dcache.Slab{Bytes: 52175 * page, SlabSize: page, Objects: 1095675, ObjectSize: 192}, map[string]int64{"pressure": 100, "limit": 20, "klimit": 500}},
		"v6":         {dcache.Memory{Total: 24684084 << 10, SlabReclaimable: 190092 << 10}, 2, dcache.Slab{Bytes: 5651 * page, SlabSize: page, Objects: 118671, ObjectSize: 192}, map[string]int64{"pressure": 100, "denom": 100, "negative": 0}},
	} {
		t.Run(name, func(t *testing.T) {
			proc := filepath.Join("testdata", name)
			memory, err := dcache.ReadMemory(proc)
			require.NoError(t, err)
			assert.Equal(t, want.memory, memory)
			drops, err := dcache.ReadSlabDrops(proc)
			require.NoError(t, err)
			assert.Equal(t, want.drops, drops)
			slab, err := dcache.ReadSlabinfo(proc, page)
			if want.slab == (dcache.Slab{}) {
				require.ErrorIs(t, err, os.ErrNotExist)
			} else {
				require.NoError(t, err)
				assert.Equal(t, want.slab, slab)
			}
			sysctls, err := dcache.ReadSysctls(proc)
			require.NoError(t, err)
			got := make(map[string]int64)
			for key, value := range map[string]*int64{"pressure": sysctls.CachePressure, "denom": sysctls.CachePressureDenom, "negative": sysctls.DentryNegative, "limit": sysctls.NegativeLimit, "klimit": sysctls.FSKLimit} {
				if value != nil {
					got[key] = *value
				}
			}
			assert.Equal(t, want.sysctls, got)
		})
	}
	slab, err := dcache.ReadSlab("testdata/sysfs", page)
	require.NoError(t, err)
	assert.Equal(t, dcache.Slab{Bytes: 5651 * page, SlabSize: page, Objects: 118671, ObjectSize: 192}, slab)
}

// Of kernels before 5.9 only slabinfo has the slabs of cgroups.
func TestMemory_SlabsByCgroup(t *testing.T) {
	assert.True(t, dcache.Version{Major: 4, Minor: 18}.SlabsByCgroup())
	assert.True(t, dcache.Version{Major: 5, Minor: 8}.SlabsByCgroup())
	assert.False(t, dcache.Version{Major: 5, Minor: 9}.SlabsByCgroup())
}

func TestMemory_NamesWhatMakesNoSense(t *testing.T) {
	for content, want := range map[string]string{
		"":                                    "no MemTotal:",
		"MemTotal:\nSReclaimable: 1 kB\n":     "MemTotal:",
		"MemTotal: x kB\nSReclaimable: 1\n":   `"x"`,
		"MemTotal: 1 kB\nXSReclaimable: 1 kB": "no SReclaimable:",
		"MemTotal: -1 kB\nSReclaimable: -1\n": "makes no sense",
		"MemTotal: 9223372036854775807 kB\nSReclaimable: 9223372036854775807": "makes no sense",
	} {
		_, err := dcache.ReadMemory(proc(t, "meminfo", content))
		require.ErrorContains(t, err, want, content)
		require.ErrorContains(t, err, "meminfo")
	}
	_, err := dcache.ReadSlabDrops(proc(t, "vmstat", "xdrop_slab 1\n"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = dcache.ReadSlabDrops(proc(t, "vmstat", "drop_slab -\n"))
	require.ErrorContains(t, err, "vmstat")
	for content, want := range map[string]string{
		"":             "no line of the dentry cache",
		"dentry2 1 2":  "no line of the dentry cache",
		"dentry 1 2 3": "4 words",
		"dentry 1 x 192 21 1 : tunables 0 0 0 : slabdata 5 5 0":                   `"x"`,
		"dentry 1 2 192 21 1 : tunables 0 0 0 : slabdata 5 -5 0":                  "make no sense",
		"dentry 1 9223372036854775807 192 21 1 : tunables 0 0 0 : slabdata 5 5 0": "make no sense",
		"dentry 1 2 192 21 -7 : tunables 0 0 0 : slabdata 5 5 0":                  "make no sense",
	} {
		_, err := dcache.ReadSlabinfo(proc(t, "slabinfo", content), page)
		require.ErrorContains(t, err, want, content)
		require.ErrorContains(t, err, "slabinfo")
	}
	sysctls, err := dcache.ReadSysctls(proc(t, "sys/vm/vfs_cache_pressure", "much\n"))
	require.ErrorContains(t, err, "vfs_cache_pressure")
	assert.Nil(t, sysctls.CachePressure)
	_, err = dcache.ReadSlab(proc(t, "kernel/slab/dentry/slabs", "4\n"), page)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestHash(t *testing.T) {
	n, found := dcache.HashMessage("Dentry cache hash table entries: 4194304 (order: 13, 33554432 bytes, linear)")
	assert.True(t, found)
	assert.EqualValues(t, 4194304, n)
	for _, text := range []string{"", "Inode-cache hash table entries: 2097152 (order: 12", "Dentry cache hash table entries: ", "Dentry cache hash table entries: -1 (", "Dentry cache hash table entries: 99999999999999999999 ("} {
		_, found := dcache.HashMessage(text)
		assert.False(t, found, text)
	}
	empty := t.TempDir()
	for memory, want := range map[int64]int64{
		0: 0, 4096: 0,
		512 << 20:        65536,
		24684084 << 10:   4194304, // as this kernel said
		60 << 30:         8388608,
		100 << 30:        8388608,
		200 << 30:        16777216,
		(2<<40 - 64<<30): 33554432,
	} {
		assert.Equal(t, want, dcache.EstimateHash(empty, memory, page), memory>>20)
	}
	assert.EqualValues(t, 1<<20, dcache.EstimateHash(proc(t, "cmdline", "quiet dhash_entries=1000000 ro\n"), 1<<30, page))
	assert.EqualValues(t, 131072, dcache.EstimateHash(proc(t, "cmdline", "dhash_entries=many dhash_entries=-1 xdhash_entries=7"), 1<<30, page))
	assert.EqualValues(t, 8192*16, dcache.EstimateHash(empty, 1<<30, 64<<10), "one per 8 KiB with pages of 64 KiB, too")
}

// The kernel's log says how good the estimate is.
func TestHash_OfThisKernel(t *testing.T) {
	log, err := kmsg.Open(kmsg.Device)
	if err != nil {
		t.Skip(err)
	}
	defer log.Close()
	var buckets int64
	require.NoError(t, log.Read(func(r kmsg.Record) {
		if n, found := dcache.HashMessage(r.Text); found {
			buckets = n
		}
	}))
	if buckets == 0 {
		t.Skip("its beginning was overwritten")
	}
	memory, err := dcache.ReadMemory("/proc")
	require.NoError(t, err)
	estimate := dcache.EstimateHash("/proc", memory.Total, int64(os.Getpagesize()))
	assert.InDelta(t, 1, float64(estimate)/float64(buckets), 1)
}

// Two files tell of the same slabs. They can't be read at one time, and dentries come
// and go meanwhile: they are compared as often as it takes.
func TestMemory_SlabsOfThisKernel(t *testing.T) {
	version, err := dcache.ReadVersion("/proc")
	require.NoError(t, err)
	if os.Geteuid() != 0 || version.SlabsByCgroup() {
		t.Skip("takes root, and a kernel from 5.9 on")
	}
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		sysfs, err := dcache.ReadSlab("/sys", int64(os.Getpagesize()))
		require.NoError(t, err)
		slabs, err := dcache.ReadSlabs("/sys")
		require.NoError(t, err)
		state, err := dcache.ReadDentryState("/proc", version)
		require.NoError(t, err)
		slabinfo, err := dcache.ReadSlabinfo("/proc", int64(os.Getpagesize()))
		require.NoError(t, err)
		assert.InEpsilon(t, slabinfo.Bytes, sysfs.Bytes, 0.1)
		assert.Equal(t, slabinfo.ObjectSize, sysfs.ObjectSize)
		assert.InEpsilon(t, sysfs.Bytes, slabs*sysfs.SlabSize, 0.1)
		assert.GreaterOrEqual(t, sysfs.Objects+1000, state.Dentries, "every dentry is in a slab")
		var st unix.Sysinfo_t
		require.NoError(t, unix.Sysinfo(&st))
		assert.Less(t, sysfs.Bytes, int64(st.Totalram)*int64(st.Unit))
	}, time.Minute, 100*time.Millisecond)
}
