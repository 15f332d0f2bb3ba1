package attribution

import "github.com/cilium/ebpf"

// WithoutCount makes the mode ENOENT go by failed calls, as where the kernel's count can't be
// read.
func (o *Options) WithoutCount() { o.skipExit = 1 }

// Describing has a program more, or less, describe a directory on each CPU, as if it had been
// preempted there.
func (t *Tracer) Describing(programs int) error {
	return t.changeScratch(func(s *dentryScratch) { s.Describing += uint64(programs) })
}

// Explaining has a program more, or less, explain what has grown.
func (t *Tracer) Explaining(programs int) error {
	return t.changeScratch(func(s *dentryScratch) { s.Explaining += uint64(programs) })
}

func (t *Tracer) changeScratch(change func(*dentryScratch)) error {
	scratches := t.collection.Maps["scratches"]
	var cpus []dentryScratch
	if err := scratches.Lookup(uint32(0), &cpus); err != nil {
		return err
	}
	for i := range cpus {
		change(&cpus[i])
	}
	return scratches.Update(uint32(0), cpus, ebpf.UpdateExist)
}
