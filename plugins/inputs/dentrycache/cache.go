package dentrycache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

const (
	// dentrySize is the size of struct dentry on 64-bit kernels. It is used where the
	// allocator's figure can't be read.
	dentrySize = 192
	// slabinfoInterval is how often /proc/slabinfo is read at most.
	slabinfoInterval = time.Minute
	// sysctlInterval is how often the kernel's settings are read at most.
	sysctlInterval = time.Minute
)

// cache is what is known about the host's dentry cache.
type cache struct {
	kernel  dcache.Version
	buckets int64  // of the hash table; 0: unknown
	how     string // log or estimate

	logged    bool // whether the kernel's log can be read
	finder    kmsg.Stalls
	stalls    int64 // that the kernel has reported, as far as its log goes
	lastStall kmsg.Stall

	before struct { // the last sample
		at       time.Time
		dentries dcache.DentryState
	}
	// Per second, since the last sample. known is false at first.
	rates struct {
		known              bool
		elapsed            float64 // seconds
		dentries, negative float64
	}

	sysctls     dcache.Sysctls
	sysctlsRead time.Time

	slab      dcache.Slab
	slabKnown bool
	slabinfo  time.Time // when it was read
	noSlab    bool      // and never will be
}

// grows reports whether the negative dentries grow by at least so many per second, over
// at least a second. Where the kernel does not count them, all dentries are taken instead.
func (c *cache) grows(least float64) bool {
	rate := c.rates.dentries
	if c.before.dentries.HasNegative {
		rate = c.rates.negative
	}
	return c.rates.known && rate*min(c.rates.elapsed, 1) > least
}

// readKernelLog reads what is new in the kernel's log: the size of the hash table, which the kernel
// logs when it starts, and stalls that have happened.
func (d *DentryCache) readKernelLog() {
	c := &d.cache
	var news kmsg.News
	news, c.logged = d.host.KernelLog(d.KernelLog, d)
	reported := int64(0)
	for _, record := range news.Records {
		if n, found := dcache.HashMessage(record.Text); found {
			c.buckets, c.how = n, "log"
		}
		if stall, found := c.finder.Next(record); found {
			reported++
			c.lastStall = stall
		}
	}
	if c.stalls += reported; reported > 0 {
		s := &c.lastStall
		d.Log.Warnf("the kernel has reported that it was held up in %s%s: the stall has happened%s", mounts.Printable(s.Function), ofProcess(s.Comm), moreStalls(reported-1))
	}
	if c.buckets != 0 {
		return
	}
	if memory, err := dcache.ReadMemory(d.host.Proc); err == nil {
		c.buckets, c.how = dcache.EstimateHash(d.host.Proc, memory.Total, pageSize()), "estimate"
	}
}

func ofProcess(comm string) string {
	if comm == "" {
		return ""
	}
	return " (process " + mounts.Printable(comm) + ")"
}

// moreStalls says that there were other stalls since the last look, as at the start.
func moreStalls(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; it is the last one, %d more were reported before", n)
}

// addStalls adds the stalls that the kernel has reported.
func (c *cache) addStalls(fields map[string]any, now time.Time) {
	if !c.logged {
		return
	}
	fields["stall_reports"] = c.stalls
	if c.stalls == 0 {
		return
	}
	fields["last_stall_seconds_ago"] = max(now.Sub(c.lastStall.At).Seconds(), 0)
	fields["last_stall_function"] = mounts.Printable(c.lastStall.Function)
	if c.lastStall.Comm != "" {
		fields["last_stall_comm"] = mounts.Printable(c.lastStall.Comm)
	}
}

// gatherHost reports the whole host. What the kernel lacks is left out.
func (d *DentryCache) gatherHost(acc telegraf.Accumulator, now time.Time) error {
	c := &d.cache
	dentries, err := dcache.ReadDentryState(d.host.Proc, c.kernel)
	if err != nil {
		return fmt.Errorf("reading the dentry cache's state: %w", err)
	}
	fields := map[string]any{"dentries": dentries.Dentries, "unused": dentries.Unused}
	if dentries.HasNegative {
		fields["negative"] = dentries.Negative
		if dentries.Dentries > 0 {
			fields["negative_ratio"] = float64(dentries.Negative) / float64(dentries.Dentries)
		}
	}
	c.sample(dentries, now)
	if c.rates.known {
		fields["dentries_per_s"] = c.rates.dentries
		if dentries.HasNegative {
			fields["negative_per_s"] = c.rates.negative
		}
	}
	if inodes, err := dcache.ReadInodeState(d.host.Proc); err != nil {
		acc.AddError(fmt.Errorf("reading the inode cache's state: %w", err))
	} else {
		fields["inodes"], fields["inodes_unused"] = inodes.Inodes, inodes.Unused
	}
	d.readKernelLog()
	c.addStalls(fields, now)
	if c.buckets > 0 {
		fields["hash_buckets"], fields["hash_buckets_source"] = c.buckets, c.how
		fields["hash_load"] = float64(dentries.Dentries) / float64(c.buckets)
	}
	d.addSettings(fields, now)
	d.readSlab(now)
	d.addMemory(fields, dentries.Dentries)
	acc.AddGauge("dentrycache", fields, nil)
	return nil
}

// sample computes the rates since the last sample. A sample that follows another within
// no time is ignored.
func (c *cache) sample(dentries dcache.DentryState, now time.Time) {
	elapsed := now.Sub(c.before.at).Seconds()
	if !c.before.at.IsZero() && elapsed <= 0 {
		return
	}
	if c.before.at.IsZero() {
		c.rates.known = false
	} else {
		c.rates.known, c.rates.elapsed = true, elapsed
		c.rates.dentries = float64(dentries.Dentries-c.before.dentries.Dentries) / elapsed
		c.rates.negative = float64(dentries.Negative-c.before.dentries.Negative) / elapsed
	}
	c.before.at, c.before.dentries = now, dentries
}

// addSettings adds the kernel's settings, and how often caches were dropped.
func (d *DentryCache) addSettings(fields map[string]any, now time.Time) {
	c := &d.cache
	if now.Sub(c.sysctlsRead) >= sysctlInterval {
		var err error
		c.sysctls, err = dcache.ReadSysctls(d.host.Proc)
		c.sysctlsRead = now
		d.said.Error("sysctls", err)
	}
	sysctls := &c.sysctls
	for name, value := range map[string]*int64{
		"vfs_cache_pressure":       sysctls.CachePressure,
		"vfs_cache_pressure_denom": sysctls.CachePressureDenom,
		"dentry_negative":          sysctls.DentryNegative,
		"negative_dentry_limit":    sysctls.NegativeLimit,
		"dentry_fs_klimit":         sysctls.FSKLimit,
	} {
		if value != nil {
			fields[name] = *value
		}
	}
	drops, err := dcache.ReadSlabDrops(d.host.Proc)
	switch {
	case err == nil:
		fields["drop_slab"] = drops
	case !errors.Is(err, fs.ErrNotExist):
		d.said.Error("drop_slab", err)
	}
}

// addMemory adds how much of the memory the dentries take.
func (d *DentryCache) addMemory(fields map[string]any, dentries int64) {
	c := &d.cache
	size, bytes := int64(dentrySize), dentries*dentrySize
	if c.slabKnown {
		fields["dentry_slab_bytes"] = c.slab.Bytes
		size, bytes = max(c.slab.ObjectSize, 1), c.slab.Bytes
	}
	memory, err := dcache.ReadMemory(d.host.Proc)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if d.said.Error("memory", err); err != nil || memory.Total == 0 {
		return
	}
	fields["slab_reclaimable_bytes"] = memory.SlabReclaimable
	fields["memory_share"] = float64(bytes) / float64(memory.Total)
	left := d.MemoryShare*float64(memory.Total) - float64(bytes)
	switch perSecond := c.rates.dentries * float64(size); {
	case left <= 0:
		fields["seconds_to_memory_share"] = 0.0
	case c.rates.known && perSecond > 0:
		fields["seconds_to_memory_share"] = left / perSecond
	}
}

// readSlab asks the slab allocator: by sysfs, if that has everything, and otherwise,
// now and then, by slabinfo.
func (d *DentryCache) readSlab(now time.Time) {
	c := &d.cache
	if c.noSlab {
		return
	}
	err := fs.ErrNotExist
	if c.slabKnown && c.slabinfo.IsZero() {
		var slabs int64
		slabs, err = dcache.ReadSlabs(d.host.Sys)
		c.slab.Bytes = slabs * c.slab.SlabSize
	} else if !c.kernel.SlabsByCgroup() {
		c.slab, err = dcache.ReadSlab(d.host.Sys, pageSize())
	}
	if errors.Is(err, fs.ErrNotExist) {
		if now.Sub(c.slabinfo) < slabinfoInterval {
			return
		}
		c.slabinfo = now
		c.slab, err = dcache.ReadSlabinfo(d.host.Proc, pageSize())
	}
	c.slabKnown = err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		c.noSlab = true
		d.Log.Infof("no dentry_slab_bytes, and memory_share is reckoned from the number of dentries: %v", err)
	default:
		d.said.Error("slab", err)
	}
}

func pageSize() int64 { return int64(os.Getpagesize()) }
