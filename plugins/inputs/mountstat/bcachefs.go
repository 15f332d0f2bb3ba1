package mountstat

import (
	"time"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
)

// maxErrorFile bounds a file with the errors of a device of bcachefs, in bytes.
const maxErrorFile = 4096

// bcachefs is what file systems of that type have counted, when it was last read.
type bcachefs struct {
	errors  map[string]int64 // by unit, of those that could be read
	due     time.Time
	reading bool
}

// readBcachefs has helpers read the error counters of bcachefs once a minute: reading them
// can wait for the disk.
func (d *disks) readBcachefs(targets []*target, now time.Time) {
	b := &d.bcachefs
	if b.reading || now.Before(b.due) {
		return
	}
	files := make(map[string][]string)
	for _, t := range targets {
		if t.Probed.FSType == "bcachefs" && t.disk.device != nil {
			files[t.ID] = blockdev.BcachefsErrorFiles(blockdev.Tree(d.host.Sys).Bcachefs(t.disk.device.Name))
		}
	}
	if len(files) == 0 {
		return
	}
	b.reading, b.due = true, now.Add(sourcesInterval)
	go func() {
		errors := d.readErrors(files)
		d.mail.Post(func() { b.reading, b.errors = false, errors })
	}()
}

// readErrors reads files with errors of bcachefs, and sums them up for each unit. It stops at
// the first file that can't be read.
func (d *disks) readErrors(files map[string][]string) map[string]int64 {
	errors := make(map[string]int64)
	for unit, all := range files {
		for _, file := range all {
			content, err := d.host.ReadFile(file, maxErrorFile, d.policy.timeout)
			sum, found := blockdev.BcachefsErrors(content)
			if err != nil || !found {
				return nil
			}
			errors[unit] += sum
		}
	}
	return errors
}
