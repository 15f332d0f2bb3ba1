package mountstat

import "github.com/vfsprobe/vfsprobe/internal/blockdev"

// disk is what is known of the block device of a target.
type disk struct {
	completed int64 // requests, at the last look
	seen      bool
	asleep    bool
}

// lookAtDisks finds out which disks sleep: no check is to wake one.
func (m *Mountstat) lookAtDisks() {
	tree := blockdev.Tree(m.host.Sys)
	for _, t := range m.targets {
		if t.namespace != nil || !t.Probed.BlockDevice() {
			continue
		}
		device := tree.ByNumber(t.Probed.Major, t.Probed.Minor)
		if device == nil { // btrfs has a number of its own
			device = tree.BySource(t.Probed.Source)
		}
		before := t.disk.asleep
		t.disk.look(device, m.LetDisksSleep)
		if t.disk.asleep != before {
			t.policy, t.plan = m.policyFor(t.Probed, condition{panics: m.panics, asleep: t.disk.asleep}), nil
		}
	}
}

// look finds out whether the disk sleeps. The kernel does not know it of one that stops by
// itself, after some time without requests (hdparm -S): such a one is taken to sleep if it
// was given none since the last look.
func (d *disk) look(device *blockdev.Device, stopsByItself bool) {
	if d.asleep = device != nil && device.Suspended(); !stopsByItself {
		return
	}
	if device == nil {
		*d = disk{}
		return
	}
	requests, err := device.Requests()
	if err != nil {
		return // nothing is known of it
	}
	idle := !d.seen || requests.Completed == d.completed && requests.InFlight == 0
	d.completed, d.seen, d.asleep = requests.Completed, true, d.asleep || idle
}
