// Package dentrycache is a Telegraf input which watches the dentry cache.
package dentrycache

import (
	_ "embed"
	"fmt"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
)

//go:embed sample.conf
var sampleConfig string

// Dentrycache is the input.
type Dentrycache struct {
	proc   string
	kernel dcache.Version
}

func init() {
	inputs.Add("dentrycache", func() telegraf.Input { return &Dentrycache{proc: "/proc"} })
}

// SampleConfig returns the documented configuration.
func (*Dentrycache) SampleConfig() string { return sampleConfig }

// Init finds out which kernel this is.
func (d *Dentrycache) Init() error {
	kernel, err := dcache.ReadVersion(d.proc)
	if err != nil {
		return fmt.Errorf("finding the kernel's version: %w", err)
	}
	d.kernel = kernel
	return nil
}

// Gather reads the kernel's counters. What the kernel lacks is left out.
func (d *Dentrycache) Gather(acc telegraf.Accumulator) error {
	dentries, err := dcache.ReadDentryState(d.proc, d.kernel)
	if err != nil {
		return fmt.Errorf("reading the dentry cache's state: %w", err)
	}
	fields := map[string]any{"dentries": dentries.Dentries, "unused": dentries.Unused}
	if dentries.HasNegative {
		fields["negative"] = dentries.Negative
	}
	inodes, err := dcache.ReadInodeState(d.proc)
	if err != nil {
		acc.AddError(fmt.Errorf("reading the inode cache's state: %w", err))
	} else {
		fields["inodes"], fields["inodes_unused"] = inodes.Inodes, inodes.Unused
	}
	acc.AddGauge("dentrycache", fields, nil)
	return nil
}
