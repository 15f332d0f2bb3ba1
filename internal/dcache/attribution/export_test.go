package attribution

import (
	"errors"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// WithoutCount makes the mode ENOENT go by failed calls, as where the kernel's count can't be
// read.
func (o *Options) WithoutCount() { o.skipExit = 1 }

// CountAll has the mode ENOENT count each event, however fast they come.
func (t *Tracer) CountAll() error {
	if second := t.collection.Variables[dentryVarSecond]; second != nil {
		return second.Set(uint64(0))
	}
	return nil // other modes always do
}

// Use has so many programs describe a directory on each CPU, and explain what has grown, as if
// they had been preempted there. What programs change at the same moment can get lost, so it is
// looked at again.
func (t *Tracer) Use(describing, explaining uint64) error {
	scratches := t.collection.Maps["scratches"]
	for range 100 {
		var cpus []dentryScratch
		if err := scratches.Lookup(uint32(0), &cpus); err != nil {
			return err
		}
		other := func(s dentryScratch) bool { return s.Describing != describing || s.Explaining != explaining }
		if !slices.ContainsFunc(cpus, other) {
			return nil
		}
		for i := range cpus {
			cpus[i].Describing, cpus[i].Explaining = describing, explaining
		}
		if err := scratches.Update(uint32(0), cpus, ebpf.UpdateExist); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("programs are always at it")
}

// WriteAstray writes a pid and a uid of another key's process to all rows of a command, as a program
// does that was preempted while the kernel gave its row to another key.
func (t *Tracer) WriteAstray(comm string, pid, uid uint32) error {
	rows := t.collection.Maps[dentryMapRows]
	astray := make(map[dentryRowKey]dentryRow)
	err := each(rows, func(key *dentryRowKey, row *dentryRow) {
		if string(cString(key.Comm[:])) == comm {
			other := *key
			other.Place.Inode++
			row.Pid, row.Uid = uint64(pid)<<32|uint64(markOf(&other)), uint64(uid)<<32|uint64(markOf(&other))
			astray[*key] = *row
		}
	})
	for key, row := range astray {
		err = errors.Join(err, rows.Update(&key, &row, ebpf.UpdateExist))
	}
	return err
}

// InUse reports whether a program uses a part of the scratch of a CPU.
func (t *Tracer) InUse() (bool, error) {
	var cpus []dentryScratch
	err := t.collection.Maps["scratches"].Lookup(uint32(0), &cpus)
	return slices.ContainsFunc(cpus, func(s dentryScratch) bool { return s.Describing != 0 || s.Explaining != 0 }), err
}
