package dentrycache

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

const (
	// dentrySize is that of struct dentry with 64 bits, where the allocator's
	// figure can't be read.
	dentrySize = 192
	// slabinfoInterval is how often /proc/slabinfo is read at most.
	slabinfoInterval = time.Minute
	// sysctlInterval is how often the kernel's settings are read at most.
	sysctlInterval = time.Minute
)

// host is what is known of the host's cache.
type host struct {
	kernel  dcache.Version
	buckets int64  // of the hash table; 0: unknown
	how     string // log or estimate

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

	memoryErr, sysctlErr, dropsErr, slabErrors string
}

// grows reports whether there are so many negative dentries more per second, over
// a second at least; where the kernel does not count them, dentries.
func (h *host) grows(least float64) bool {
	rate := h.rates.dentries
	if h.before.dentries.HasNegative {
		rate = h.rates.negative
	}
	return h.rates.known && rate*min(h.rates.elapsed, 1) > least
}

// findHash finds out how large the kernel's hash table is. The kernel has said so
// when it started.
func (d *Dentrycache) findHash() {
	h := &d.host
	log, err := kmsg.Open(d.KernelLog)
	if err == nil {
		defer log.Close()
		_ = log.Read(func(r kmsg.Record) { // records of others that make no sense are no matter
			if n, found := dcache.HashMessage(r.Text); found && r.Facility == 0 {
				h.buckets, h.how = n, "log"
			}
		})
	}
	if h.buckets != 0 {
		return
	}
	if memory, err := dcache.ReadMemory(d.proc); err == nil {
		h.buckets, h.how = dcache.EstimateHash(d.proc, memory.Total, d.pageSize), "estimate"
	}
}

// gatherHost reports the whole host. What the kernel lacks is left out.
func (d *Dentrycache) gatherHost(acc telegraf.Accumulator, now time.Time) error {
	h := &d.host
	dentries, err := dcache.ReadDentryState(d.proc, h.kernel)
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
	h.sample(dentries, now)
	if h.rates.known {
		fields["dentries_per_s"] = h.rates.dentries
		if dentries.HasNegative {
			fields["negative_per_s"] = h.rates.negative
		}
	}
	if inodes, err := dcache.ReadInodeState(d.proc); err != nil {
		acc.AddError(fmt.Errorf("reading the inode cache's state: %w", err))
	} else {
		fields["inodes"], fields["inodes_unused"] = inodes.Inodes, inodes.Unused
	}
	if h.buckets > 0 {
		fields["hash_buckets"], fields["hash_buckets_source"] = h.buckets, h.how
		fields["hash_load"] = float64(dentries.Dentries) / float64(h.buckets)
	}
	d.addSettings(fields, now)
	d.readSlab(now)
	d.addMemory(fields, dentries.Dentries)
	acc.AddGauge("dentrycache", fields, nil)
	return nil
}

// sample takes the rates since the last sample. One that follows another within
// no time is not taken.
func (h *host) sample(dentries dcache.DentryState, now time.Time) {
	elapsed := now.Sub(h.before.at).Seconds()
	if !h.before.at.IsZero() && elapsed <= 0 {
		return
	}
	if h.before.at.IsZero() {
		h.rates.known = false
	} else {
		h.rates.known, h.rates.elapsed = true, elapsed
		h.rates.dentries = float64(dentries.Dentries-h.before.dentries.Dentries) / elapsed
		h.rates.negative = float64(dentries.Negative-h.before.dentries.Negative) / elapsed
	}
	h.before.at, h.before.dentries = now, dentries
}

// addSettings adds the kernel's settings, and how often caches were dropped.
func (d *Dentrycache) addSettings(fields map[string]any, now time.Time) {
	h := &d.host
	if now.Sub(h.sysctlsRead) >= sysctlInterval {
		var err error
		h.sysctls, err = dcache.ReadSysctls(d.proc)
		h.sysctlsRead = now
		d.sayOnce(&h.sysctlErr, err)
	}
	sysctls := &h.sysctls
	for name, value := range map[string]*int64{
		"vfs_cache_pressure":       sysctls.CachePressure,
		"vfs_cache_pressure_denom": sysctls.CachePressureDenom,
		"dentry_negative":          sysctls.DentryNegative,
		"negative_dentry_limit":    sysctls.NegativeLimit,
	} {
		if value != nil {
			fields[name] = *value
		}
	}
	drops, err := dcache.ReadSlabDrops(d.proc)
	switch {
	case err == nil:
		fields["drop_slab"] = drops
	case !errors.Is(err, fs.ErrNotExist):
		d.sayOnce(&h.dropsErr, err)
	}
}

// addMemory adds what the dentries take of the memory.
func (d *Dentrycache) addMemory(fields map[string]any, dentries int64) {
	h := &d.host
	size, bytes := int64(dentrySize), dentries*dentrySize
	if h.slabKnown {
		fields["dentry_slab_bytes"] = h.slab.Bytes
		size, bytes = max(h.slab.ObjectSize, 1), h.slab.Bytes
	}
	memory, err := dcache.ReadMemory(d.proc)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if d.sayOnce(&h.memoryErr, err); err != nil || memory.Total == 0 {
		return
	}
	fields["slab_reclaimable_bytes"] = memory.SlabReclaimable
	fields["memory_share"] = float64(bytes) / float64(memory.Total)
	left := d.MemoryShare*float64(memory.Total) - float64(bytes)
	switch perSecond := h.rates.dentries * float64(size); {
	case left <= 0:
		fields["seconds_to_memory_share"] = 0.0
	case h.rates.known && perSecond > 0:
		fields["seconds_to_memory_share"] = left / perSecond
	}
}

// readSlab asks the slab allocator: sysfs where that has it all, and otherwise,
// now and then, slabinfo.
func (d *Dentrycache) readSlab(now time.Time) {
	h := &d.host
	if h.noSlab {
		return
	}
	err := fs.ErrNotExist
	if h.slabKnown && h.slabinfo.IsZero() {
		var slabs int64
		slabs, err = dcache.ReadSlabs(d.sys)
		h.slab.Bytes = slabs * h.slab.SlabSize
	} else if !h.kernel.SlabsByCgroup() {
		h.slab, err = dcache.ReadSlab(d.sys, d.pageSize)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if now.Sub(h.slabinfo) < slabinfoInterval {
			return
		}
		h.slabinfo = now
		h.slab, err = dcache.ReadSlabinfo(d.proc, d.pageSize)
	}
	h.slabKnown = err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		h.noSlab = true
		d.Log.Infof("no dentry_slab_bytes, and memory_share from the number of dentries: %v", err)
	default:
		d.sayOnce(&h.slabErrors, err)
	}
}

// sayOnce reports a problem when it comes up, and not again while it lasts.
func (d *Dentrycache) sayOnce(said *string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != *said && text != "" {
		d.Log.Warn(text)
	}
	*said = text
}
