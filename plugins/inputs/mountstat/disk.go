package mountstat

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/blockdev"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

const (
	// useInterval is for how long after its last request a device counts as used. At other
	// times it is not read from, since a device that nobody uses may sleep.
	useInterval = time.Minute
	// troubleLooks is how many looks in a row a device must seem to hang: some are paused for a
	// moment, as by a snapshot.
	troubleLooks = 2
	devicePage   = 4096 // bytes to read
	// A device that has failed is left alone for a tenth of the time since it failed, and for
	// maxRestTime at most. Each opening of some devices, such as nbd, makes the kernel log a page.
	restShare   = 10
	maxRestTime = time.Minute
)

// disk is what is known about the block device of a target.
type disk struct {
	device   *blockdev.Device
	known    *blockdev.Device  // the last one there was
	requests blockdev.Requests // at the last look
	moved    time.Time         // when requests were last completed; zero: it was not looked at
	used     time.Time         // when others than ours were
	ours     int64             // requests of the checks since the last look
	btrfs    string            // where sysfs has its file system
	mounted  time.Time         // when its file system was, if that is known and asked for
	errors   int64             // that its file system has counted
	counts   bool              // it does
	hangs    int               // looks in a row at which it seemed to
	state    blockdev.State    // what sysfs says
	blamed   time.Time         // when the kernel last logged that it fails or does not answer
	answered time.Time         // when it last answered a read
	readDue  time.Time         // when one that has failed is read again
	rests    bool              // it has failed, and is left alone
	asleep   bool
	inUse    bool
}

// blockDeviceOf finds the block device of a mount, or nil.
func blockDeviceOf(tree blockdev.Tree, mount *mounts.Mount) *blockdev.Device {
	if mount.Major == 0 { // btrfs has a number of its own
		return tree.BySource(mount.Source)
	}
	return tree.ByNumber(mount.Major, mount.Minor)
}

// inspect updates what is known about the device. A device that failed the last time is read now
// and then until it answers, since there may be nobody left who uses it. So is a device about which
// the kernel has complained since it last answered. The kernel does not know that a disk sleeps
// which stops by itself after some time without requests (hdparm -S). Such a disk is taken to sleep
// if it was given no request since the last look.
func (d *disk) inspect(device *blockdev.Device, failed, stopsByItself bool, now time.Time) {
	d.device, d.state = device, blockdev.State{}
	if device == nil {
		d.asleep, d.inUse, d.rests = false, false, false
		return
	}
	requests, err := device.Requests()
	if err == nil {
		d.count(requests, now)
	}
	idle := err == nil && d.used != now && requests.InFlight == 0 && !failed
	d.asleep = device.Suspended() || stopsByItself && idle
	d.state = device.State()
	if d.state.Trouble == blockdev.None && requests.InFlight > 0 && now.Sub(d.moved) > useInterval/12 {
		d.state = blockdev.State{Trouble: blockdev.Hangs,
			Says: fmt.Sprintf("%s: %d requests are in flight, and none was completed for %v", device.Name, requests.InFlight, now.Sub(d.moved).Round(time.Second))}
	}
	if d.state.Trouble == blockdev.Hangs {
		d.hangs++
	} else {
		d.hangs = 0
	}
	recently := !d.used.IsZero() && now.Sub(d.used) < useInterval
	d.rests = failed && now.Before(d.readDue)
	d.inUse = !d.rests && (recently || requests.InFlight > 0 || failed || d.hangs > 0 || d.suspected(now))
}

// suspected reports whether the kernel's log says that the device is in trouble, and no read
// has since shown that it is well. When an nbd that nobody uses has lost its server, nothing else
// tells (recv_work, drivers/block/nbd.c).
func (d *disk) suspected(now time.Time) bool {
	return d.blamed.After(d.answered) && now.Sub(d.blamed) < maxEvidenceAge
}

// rest has the device, which has failed since then, left alone for a while.
func (d *disk) rest(since, now time.Time) {
	if !since.IsZero() {
		d.readDue = now.Add(min(now.Sub(since)/restShare, maxRestTime))
	}
}

// countErrors records how many errors the file system has counted. Whoever met a new one has used
// the device. The device itself may not count requests that fail, as the device mapper does not.
func (d *disk) countErrors(errors int64, now time.Time) {
	if errors > d.errors && !d.moved.IsZero() {
		d.used = now
	}
	d.errors, d.counts = errors, true
}

// count records the device's counters.
func (d *disk) count(requests blockdev.Requests, now time.Time) {
	completed := requests.Completed - d.requests.Completed
	first := d.moved.IsZero()
	if first || completed > 0 || requests.InFlight == 0 {
		d.moved = now
	}
	if !first && completed > d.ours {
		d.used = now
	}
	d.requests, d.ours = requests, 0
}

// cause is what is wrong with the device according to sysfs, if anything is.
func (d *disk) cause() cause {
	switch d.state.Trouble {
	case blockdev.Hangs:
		if d.hangs >= troubleLooks {
			return result.DeviceHangs
		}
	case blockdev.Fails:
		return result.DeviceErrors
	case blockdev.Gone:
		return result.DeviceGone
	}
	return ""
}

// ofDevice reports whether a cause says that a block device is at fault.
func ofDevice(c cause) bool {
	return c == result.DeviceHangs || c == result.DeviceErrors || c == result.DeviceGone
}

// describe says which device fails or hangs, and what is known about it.
func (d *disk) describe() string {
	if d.state.Says != "" || d.device == nil {
		return d.state.Says
	}
	var below []string
	for device := range d.device.All() {
		if device != d.device {
			below = append(below, device.Name)
		}
	}
	name := d.device.Name
	if len(below) > 0 {
		name += " on " + strings.Join(below, ", ")
	}
	return fmt.Sprintf("%s: sysfs shows no trouble, %d requests are in flight", name, d.requests.InFlight)
}

// openDevice appends the step that opens the target's device, as the plugin's own user.
func openDevice(p *plan, t *target, prefix string) prober.Argument {
	name := prefix + "/dev/" + strings.ReplaceAll(t.disk.device.Name, "!", "/")
	device := prober.ResultOf(p.Add(prober.Open(prober.CWD(), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0).Optional()))
	p.mark(checkDevice)
	return device
}

// readDevice appends the steps that read a page of the device, past the page cache. A process that
// waits for it can be killed, unlike one that reads with O_DIRECT. The page is one that a file
// system hardly keeps in use. It does keep the first pages, and those where its groups begin: at
// fractions of powers of two.
func readDevice(p *plan, t *target, device prober.Argument) {
	size, err := t.disk.device.Size()
	if err != nil {
		size = 0
	}
	offset := size / 10 * 7 / devicePage * devicePage
	p.Add(prober.Fadvise(device, 0, 0, unix.FADV_RANDOM).Optional().Silent())
	p.Add(prober.Fadvise(device, offset, devicePage, unix.FADV_DONTNEED).Optional().Silent())
	p.Add(prober.Pread(device, devicePage, offset).WithoutOutput().Optional())
	p.Add(prober.Fadvise(device, offset, devicePage, unix.FADV_DONTNEED).Optional().Silent())
	p.Add(prober.Close(device).Optional().Silent())
}
