package dentrycache

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/collect"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
	"github.com/vfsprobe/vfsprobe/internal/testing/kernellog"
	"github.com/vfsprobe/vfsprobe/internal/testing/namespace"
)

func TestMain(m *testing.M) {
	if directory := os.Getenv(floodVariable); directory != "" {
		flood(directory)
		return
	}
	namespace.MainOfHost(m)
}

const (
	// timeout is for looks that are to hang.
	timeout = 2 * time.Second
	// unhurried is for all others: it is more than they take on a machine whose CPUs others have.
	unhurried = 20 * time.Second
)

// newInput is an input on this host, without BPF programs and directories but for
// those that change asks for. Its first gather waits for all that it can find out, as all others do.
func newInput(t testing.TB, change func(*DentryCache)) (*DentryCache, *journal.Journal) {
	t.Helper()
	d := inputs.Inputs["dentrycache"]().(*DentryCache)
	log := journal.New(t)
	d.Log, d.Timeout = log, config.Duration(unhurried)
	d.Directories, d.Attribution, d.CountChildren = nil, "none", false
	p := prober.New(prober.Options{Warnf: log.Warnf})
	t.Cleanup(p.Close)
	d.UseHost(host.New(host.Options{Roots: host.FindRoots(os.Getenv), Prober: p, Log: log, MountsPatience: collect.MountsPatience}))
	if change != nil {
		change(d)
	}
	d.host.Servers.AtOnce = true
	require.NoError(t, d.Init())
	t.Cleanup(d.Close)
	return d, log
}

// rooted makes it look at the host at these places, as in a container.
func rooted(d *DentryCache, proc, sys string) {
	o := host.Options{Roots: host.Roots{Proc: proc, Sys: sys, PID: "1"}, Log: d.Log, MountsPatience: collect.MountsPatience}
	if d.host != nil {
		o.Prober = d.host.Prober
	}
	d.UseHost(host.New(o))
}

// on looks at these directories.
func on(paths ...string) func(*DentryCache) {
	return func(d *DentryCache) { d.Directories = paths }
}

// kernel reads the files of one that is kept for tests.
func kernel(name string) func(*DentryCache) {
	return func(d *DentryCache) {
		const dir = "../../../internal/dcache/testdata"
		rooted(d, filepath.Join(dir, name), filepath.Join(dir, "sysfs"))
		d.KernelLog = ""
	}
}

// gatherHost returns the metric of the host, and its fields.
func gatherHost(t testing.TB, d *DentryCache) map[string]any {
	t.Helper()
	acc := collect.Gather(t, d)
	require.Empty(t, acc.Errors())
	all := acc.Named("dentrycache")
	require.Len(t, all, 1)
	assert.Empty(t, all[0].Tags())
	assert.Equal(t, telegraf.Gauge, all[0].Type())
	return all[0].Fields()
}

func TestDentryCache_Kernels(t *testing.T) {
	const total18, total8, total6 = 8167848 << 10, 65806544 << 10, 24684084 << 10
	for name, want := range map[string]map[string]any{
		// 4.15, which does not count negative dentries. There is no slabinfo.
		"ubuntu1804": {
			"dentries": int64(98034), "unused": int64(77140), "inodes": int64(83204), "inodes_unused": int64(3410),
			"vfs_cache_pressure": int64(100), "drop_slab": int64(17),
			"hash_buckets": int64(1 << 20), "hash_buckets_source": "estimate", "hash_load": 98034.0 / (1 << 20),
			"slab_reclaimable_bytes": int64(298012 << 10), "memory_share": 98034 * 192.0 / total18,
		},
		// 4.18, which does. Only its slabinfo has the slabs of all cgroups.
		"rhel8": {
			"dentries": int64(1093712), "unused": int64(1063200), "negative": int64(871032), "negative_ratio": 871032.0 / 1093712,
			"inodes": int64(209418), "inodes_unused": int64(2217), "negative_dentry_limit": int64(20), "dentry_fs_klimit": int64(500), "vfs_cache_pressure": int64(100), "drop_slab": int64(0),
			"hash_buckets": int64(8 << 20), "hash_buckets_source": "estimate", "hash_load": 1093712.0 / (8 << 20),
			"slab_reclaimable_bytes": int64(4012432 << 10), "dentry_slab_bytes": int64(52175 << 12), "memory_share": (52175 << 12) / float64(total8),
		},
		"v6": {
			"dentries": int64(70054), "unused": int64(68782), "negative": int64(11953), "negative_ratio": 11953.0 / 70054,
			"inodes": int64(57943), "inodes_unused": int64(0),
			"vfs_cache_pressure": int64(100), "vfs_cache_pressure_denom": int64(100), "dentry_negative": int64(0), "drop_slab": int64(2),
			"hash_buckets": int64(4 << 20), "hash_buckets_source": "estimate", "hash_load": 70054.0 / (4 << 20),
			"slab_reclaimable_bytes": int64(190092 << 10), "dentry_slab_bytes": int64(5651 << 12), "memory_share": (5651 << 12) / float64(total6),
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, log := newInput(t, kernel(name))
			assert.Equal(t, want, gatherHost(t, d))
			fields := gatherHost(t, d)
			assert.Equal(t, 0.0, fields["dentries_per_s"])
			assert.NotContains(t, fields, "seconds_to_memory_share", "it does not grow")
			if name == "ubuntu1804" {
				assert.NotContains(t, fields, "negative_per_s")
				assert.Len(t, log.About("no dentry_slab_bytes"), 1)
			} else {
				assert.Equal(t, 0.0, fields["negative_per_s"])
				assert.Empty(t, log.About("no dentry_slab_bytes"))
			}
		})
	}
}

// write writes a file below a procfs.
func write(t testing.TB, proc, name, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600))
}

// files reads this procfs.
func files(proc string) func(*DentryCache) {
	return func(d *DentryCache) {
		rooted(d, proc, filepath.Join(proc, "none"))
		d.KernelLog = ""
	}
}

func TestDentryCache_Rates(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	write(t, proc, "sys/fs/dentry-state", "1000\t900\t45\t0\t500\t0\n")
	write(t, proc, "sys/fs/inode-nr", "1 1\n")
	write(t, proc, "meminfo", "MemTotal: 1920 kB\nSReclaimable: 1000 kB\n")
	d, _ := newInput(t, files(proc))
	began := time.Now()
	assert.NotContains(t, gatherHost(t, d), "negative_per_s", "of the first gather")
	first := d.cache.before.at
	d.cache.before.at = began.Add(-1000 * time.Second)
	write(t, proc, "sys/fs/dentry-state", "2000\t1900\t45\t0\t1400\t0\n")
	fields := gatherHost(t, d)
	assert.InDelta(t, 1, fields["dentries_per_s"], 0.05)
	assert.InDelta(t, 0.9, fields["negative_per_s"], 0.05)
	assert.InDelta(t, 2000*192.0/(1920<<10), fields["memory_share"], 1e-9)
	// A quarter of 1920 KiB are 2560 dentries.
	assert.InDelta(t, 560, fields["seconds_to_memory_share"], 40)
	d.cache.before.at = first
	write(t, proc, "sys/fs/dentry-state", "500\t400\t45\t0\t10\t0\n")
	fields = gatherHost(t, d)
	assert.Negative(t, fields["negative_per_s"])
	assert.NotContains(t, fields, "seconds_to_memory_share")
	write(t, proc, "sys/fs/dentry-state", "5000\t400\t45\t0\t10\t0\n")
	assert.Equal(t, 0.0, gatherHost(t, d)["seconds_to_memory_share"])
}

func TestDentryCache_InitNeedsTheKernelsVersion(t *testing.T) {
	proc := t.TempDir()
	d := inputs.Inputs["dentrycache"]().(*DentryCache)
	files(proc)(d)
	require.ErrorIs(t, d.Init(), os.ErrNotExist)
	write(t, proc, "sys/kernel/osrelease", "linux\n")
	require.ErrorContains(t, d.Init(), `"linux\n"`)
}

func TestDentryCache_WhatCantBeReadCostsNothingElse(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	write(t, proc, "sys/fs/dentry-state", "5\t4\t45\t0\t0\t0\n")
	write(t, proc, "sys/vm/vfs_cache_pressure", "much\n")
	write(t, proc, "meminfo", "MemTotal: lots\n")
	write(t, proc, "vmstat", "drop_slab often\n")
	write(t, proc, "none/kernel/slab/dentry/slabs", "some\n")
	d, log := newInput(t, files(proc))
	for range 3 {
		acc := collect.Gather(t, d)
		require.Len(t, acc.Errors(), 1)
		require.ErrorIs(t, acc.Errors()[0], os.ErrNotExist)
		fields := acc.Named("dentrycache")[0].Fields()
		delete(fields, "dentries_per_s")
		delete(fields, "negative_per_s")
		assert.Equal(t, map[string]any{"dentries": int64(5), "unused": int64(4), "negative": int64(0), "negative_ratio": 0.0}, fields)
	}
	for _, what := range []string{`"much"`, `"lots"`, `"often"`, `"some"`} {
		assert.Len(t, log.About(what), 1, "said once")
	}
}

func TestDentryCache_ReportsNothingWithoutTheDentryState(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	d, _ := newInput(t, files(proc))
	acc := &collect.Metrics{}
	require.ErrorIs(t, d.Gather(acc), os.ErrNotExist)
	write(t, proc, "sys/fs/dentry-state", "5\t4\n")
	require.ErrorContains(t, d.Gather(acc), "2 numbers, expected 5")
	assert.Empty(t, acc.Named("dentrycache"))
}

func TestDentryCache_TheRealHost(t *testing.T) {
	d, log := newInput(t, nil)
	fields := gatherHost(t, d)
	for _, name := range []string{"dentries", "inodes", "slab_reclaimable_bytes", "hash_buckets", "hash_load", "memory_share", "vfs_cache_pressure"} {
		assert.Positive(t, fields[name], name)
	}
	assert.Contains(t, fields, "drop_slab")
	fields = gatherHost(t, d)
	assert.Contains(t, fields, "negative_per_s")
	assert.Empty(t, log.About("W!"))
}

func TestDentryCache_Cgroups(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	sys := t.TempDir()
	write(t, sys, "fs/cgroup/cgroup.controllers", "cpu memory\n")
	for path, bytes := range map[string]string{
		"": "1000", "system.slice": "700", "system.slice/docker-" + id + ".scope": "600", "system.slice/ssh.service": "90", "idle": "0",
		"a b": "5",
	} {
		write(t, sys, filepath.Join("fs/cgroup", path, "memory.stat"), "slab_reclaimable "+bytes+"\n")
	}
	d, _ := newInput(t, func(d *DentryCache) {
		kernel("v6")(d)
		rooted(d, d.host.Proc, sys)
		d.TopCgroups = 4
	})
	acc := collect.Gather(t, d)
	all := acc.Named("dentrycache_cgroup")
	require.Len(t, all, 4, "the greatest")
	fields := func(m telegraf.Metric) []any {
		bytes, _ := m.GetField("slab_reclaimable_bytes")
		own, _ := m.GetField("slab_reclaimable_own_bytes")
		return []any{m.Tags()["cgroup"], m.Tags()["container"], bytes, own}
	}
	assert.Equal(t, []any{"/system.slice/docker-" + id + ".scope", id[:12], int64(600), int64(600)}, fields(all[0]))
	assert.Equal(t, []any{"/", "", int64(1000), int64(295)}, fields(all[1]))
	assert.Equal(t, []any{"/system.slice/ssh.service", "ssh", int64(90), int64(90)}, fields(all[2]))
	assert.Equal(t, []any{"/system.slice", "", int64(700), int64(10)}, fields(all[3]))

	write(t, sys, "fs/cgroup/system.slice/ssh.service/memory.stat", "slab_reclaimable 690\nkernel 800\ninactive_file 200\n")
	write(t, sys, "fs/cgroup/system.slice/ssh.service/memory.current", "1600\n")
	write(t, sys, "fs/cgroup/system.slice/ssh.service/memory.max", "2200\n")
	d.owners.due = time.Time{}
	first := d.owners.at
	d.owners.at = first.Add(-1000 * time.Second)
	ssh := collect.Gather(t, d).Tagged("dentrycache_cgroup", "container", "ssh")
	rate, _ := ssh.GetField("slab_reclaimable_bytes_per_s")
	assert.InDelta(t, 0.6, rate, 0.05)
	for name, want := range map[string]int64{"kernel_memory_bytes": 800, "working_set_bytes": 1400, "memory_limit_bytes": 2200, "memory_limit_used_bytes": 1600} {
		assert.Equal(t, want, number(ssh, name), name)
	}
	share, _ := ssh.GetField("limit_share")
	assert.InDelta(t, 690.0/2200, share, 1e-9)
	left, _ := ssh.GetField("seconds_to_limit")
	assert.InDelta(t, 1000, left, 100)

	d, _ = newInput(t, func(d *DentryCache) { d.TopCgroups = 0 })
	assert.Empty(t, collect.Gather(t, d).Named("dentrycache_cgroup"))
}

// flushed is an accumulator that notes what it was given before it was flushed.
type flushed struct {
	collect.Metrics
	before []int // how many of the cgroups, and of the host, by flush
}

func (f *flushed) Flush() {
	f.before = append(f.before, len(f.Named("dentrycache_cgroup")), len(f.Named("dentrycache")))
}

// The cgroups' metrics need not wait for the kernel's log, which is read for the first time. The
// host's have what the log tells.
func TestDentryCache_TheFirstMetricsDoNotWaitForTheKernelsLog(t *testing.T) {
	sys := t.TempDir()
	write(t, sys, "fs/cgroup/cgroup.controllers", "cpu memory\n")
	write(t, sys, "fs/cgroup/memory.stat", "slab_reclaimable 1000\n")
	d, _ := newInput(t, func(d *DentryCache) {
		kernel("v6")(d)
		rooted(d, d.host.Proc, sys)
		name, logs := kernellog.New(t)
		d.KernelLog = name
		logs("6,1,0,-;Dentry cache hash table entries: 8388608 (order: 14, 67108864 bytes, linear)\n")
	})
	first := &flushed{}
	require.NoError(t, d.Gather(first))
	require.Equal(t, []int{1, 0}, first.before)
	host := first.Named("dentrycache")
	require.Len(t, host, 1)
	assert.Equal(t, int64(8388608), number(host[0], "hash_buckets"))
	assert.Contains(t, host[0].Fields(), "stall_reports")

	later := &flushed{}
	require.NoError(t, d.Gather(later))
	assert.NotEmpty(t, later.Named("dentrycache_cgroup"))
	assert.Empty(t, later.before, "what is new in the log is read at once")
}

// TestDentryCache_StallsThatHaveHappened: what the kernel reports of a walk is counted, once.
func TestDentryCache_StallsThatHaveHappened(t *testing.T) {
	name, write := kernellog.New(t)
	say := func(sequence, text string) { write("4," + sequence + ",1,-;" + text) }
	d, log := newInput(t, func(d *DentryCache) { d.KernelLog = name })
	say("1", "Dentry cache hash table entries: 4096 (order: 3, 32768 bytes, linear)")
	fields := gatherHost(t, d)
	assert.EqualValues(t, 4096, fields["hash_buckets"])
	assert.Equal(t, "log", fields["hash_buckets_source"])
	assert.EqualValues(t, 0, fields["stall_reports"])
	assert.NotContains(t, fields, "last_stall_seconds_ago")
	say("2", "watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [kubelet:77]")
	gatherHost(t, d) // the report comes in pieces
	say("3", "RIP: 0010:d_walk+0x9a/0x110")
	for range 2 {
		fields = gatherHost(t, d)
		assert.EqualValues(t, 1, fields["stall_reports"])
		assert.Equal(t, []any{"d_walk", "kubelet"}, []any{fields["last_stall_function"], fields["last_stall_comm"]})
	}
	assert.Len(t, log.About("the stall has happened"), 1)
}

func TestDentryCache_TheSampleConfigurationIsValid(t *testing.T) {
	creators := map[string]inputs.Creator{"dentrycache": inputs.Inputs["dentrycache"]}
	sample := (&DentryCache{}).SampleConfig()
	uncommented := regexp.MustCompile(`(?m)^  # ([a-z_]+ = )`).ReplaceAllString(sample, "  $1")
	for _, text := range []string{sample, uncommented} { // all that is commented out is the default
		all, err := config.Parse("sample.conf", []byte(text), os.LookupEnv, creators)
		require.NoError(t, err)
		require.Len(t, all, 1)
		want, got := inputs.Inputs["dentrycache"]().(*DentryCache), all[0].Plugin.(*DentryCache)
		want.mail, got.mail = nil, nil
		assert.Equal(t, want, got)
	}
	options := 0
	for field := range reflect.TypeFor[DentryCache]().Fields() {
		if tag := field.Tag.Get("toml"); tag != "" && tag != "-" {
			options++
		}
	}
	assert.Equal(t, options, strings.Count(uncommented, " = "), "all are there")
}
