// Package nfslock is a Telegraf input which watches NFS file locking.
package nfslock

import (
	_ "embed"
	"fmt"
	"path/filepath"

	"github.com/influxdata/telegraf"
	"github.com/influxdata/telegraf/plugins/inputs"

	"github.com/vfsprobe/vfsprobe/internal/filelocks"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
)

//go:embed sample.conf
var sampleConfig string

// Nfslock is the input.
type Nfslock struct {
	proc  string
	table *mounts.Table
}

func init() {
	inputs.Add("nfslock", func() telegraf.Input { return &Nfslock{proc: "/proc"} })
}

// SampleConfig returns the documented configuration.
func (*Nfslock) SampleConfig() string { return sampleConfig }

// Gather counts the NFS mounts by where their locks are taken, and the locks
// which processes of this host hold or wait for.
func (n *Nfslock) Gather(acc telegraf.Accumulator) error {
	if n.table == nil {
		table, err := mounts.OpenTable(filepath.Join(n.proc, "self", "mountinfo"))
		if err != nil {
			return fmt.Errorf("opening the mount table: %w", err)
		}
		n.table = table
	}
	all, _, err := n.table.Mounts()
	if all == nil && err != nil {
		return err // counts of nothing would say that all is well
	}
	if err != nil {
		acc.AddError(err)
	}
	var remote, local int64
	nfs := make(map[string]bool)
	for i := range all {
		if !all[i].NFS() {
			continue
		}
		nfs[all[i].Superblock()] = true
		if all[i].RemoteLocking() {
			remote++
		} else {
			local++
		}
	}
	fields := map[string]any{
		"mounts":                remote + local,
		"mounts_remote_locking": remote,
		"mounts_local_locking":  local,
	}
	locks, err := filelocks.Read(n.proc)
	if err != nil {
		acc.AddError(fmt.Errorf("reading the locks: %w", err))
	}
	if locks != nil || err == nil {
		var held, waiting, hostHeld, hostWaiting int64
		for _, lock := range locks {
			switch {
			case lock.Waiting && nfs[lock.Superblock]:
				waiting++
			case nfs[lock.Superblock]:
				held++
			}
			if lock.Waiting {
				hostWaiting++
			} else {
				hostHeld++
			}
		}
		fields["locks_held"], fields["locks_waiting"] = held, waiting
		fields["host_locks_held"], fields["host_locks_waiting"] = hostHeld, hostWaiting
	}
	acc.AddGauge("nfslock_summary", fields, nil)
	return nil
}
