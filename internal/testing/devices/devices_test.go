//go:build !race

package devices

import (
	_ "embed"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/document"
	"github.com/vfsprobe/vfsprobe/internal/testing/programs"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

const (
	// commandTimeout is for a script in a machine that is emulated.
	commandTimeout = 5 * time.Minute
	// setupTimeout is for the making of all disks, which took three and a half minutes beside a load.
	setupTimeout = 15 * time.Minute
	// patience is for what a machine that is emulated is going to report.
	patience = 5 * time.Minute
)

//go:embed setup.sh
var setup string

// host is a machine with the disks of setup.sh, whose service gathers every two seconds.
type host struct {
	*vm.Machine
	t *testing.T
}

func newHost(t *testing.T) *host {
	t.Helper()
	vfsprobe, err := programs.Vfsprobe()
	require.NoError(t, err)
	base := vm.SystemdBase("e2fsprogs", "xfsprogs", "dmsetup", "nbd-server", "nbd-client", "tgt", "open-iscsi", "iptables", "cryptsetup-bin", "lvm2", "ecryptfs-utils")
	base.Omit = []string{"usr/lib/*/libicu*", "usr/lib/gcc", "usr/bin/perl*", "usr/bin/python3*", "usr/lib/udev/hwdb*", "etc/udev/hwdb*"}
	m := vm.Start(t, vm.Config{Emulator: vm.UML(), Base: base, Init: vm.Systemd(),
		Modules: []string{"ext4", "xfs", "loop", "crc32c_generic", "dm_mod", "dm_multipath", "dm_round_robin", "nbd", "sd_mod", "iscsi_tcp",
			"ip_tables", "iptable_filter", "xt_tcpudp", "dm_crypt", "ecryptfs", "aes_generic", "xts", "ecb", "cbc", "algif_skcipher", "sha256_generic"},
		// setup.sh starts these servers itself, and makes nodes; udev would look at disks that hang.
		// The kernel's log holds all that the tests look for in it.
		Parameters: []string{"log_buf_len=1M", "systemd.mask=systemd-udevd.service", "systemd.mask=systemd-udev-trigger.service",
			"systemd.mask=systemd-udevd-control.socket", "systemd.mask=systemd-udevd-kernel.socket",
			"systemd.mask=tgt.service", "systemd.mask=nbd-server.service", "systemd.mask=open-iscsi.service", "systemd.mask=iscsid.socket"},
		Files: []vm.File{{From: vfsprobe, Name: "usr/bin/vfsprobe"},
			{From: "../../../packaging/systemd/vfsprobe.service", Name: "usr/lib/systemd/system/vfsprobe.service"}}})
	h := &host{m, t}
	vm.Output(t, h.Shell, setupTimeout, setup)
	return h
}

// shell returns what a script prints, which must succeed.
func (h *host) shell(script string) string {
	h.t.Helper()
	return vm.Output(h.t, h.Shell, commandTimeout, script)
}

// point is what a gather has reported of a mount.
type point struct {
	line string
	at   time.Time
}

func (p point) field(name string) string {
	found := regexp.MustCompile(`[ ,]` + name + `=(?:"([^"]*)"|([^, ]*))`).FindStringSubmatch(p.line)
	if found == nil {
		return ""
	}
	return found[1] + found[2]
}

// verdict is the fields that say how a mount is.
func (p point) verdict() string {
	return strings.TrimSpace(p.field("result") + " " + p.field("cause") + " " + p.field("reason"))
}

// now returns the machine's time.
func (h *host) now() time.Time {
	h.t.Helper()
	ns, err := strconv.ParseInt(h.shell("date +%s%N"), 10, 64)
	require.NoError(h.t, err)
	return time.Unix(0, ns)
}

// points returns what the gathers have reported of a disk that began after a time.
func (h *host) points(disk string, after time.Time) (all []point) {
	h.t.Helper()
	for line := range strings.Lines(h.shell(`grep '^mountstat,.*path=/mnt/` + disk + `[, ]' /run/metrics || true`)) {
		line = strings.TrimSpace(line)
		ns, err := strconv.ParseInt(line[strings.LastIndexByte(line, ' ')+1:], 10, 64)
		if at := time.Unix(0, ns); err == nil && at.After(after) {
			all = append(all, point{line, at})
		}
	}
	return all
}

// until waits for a point of a gather that began after a time, and returns it.
func (h *host) until(disk string, after time.Time, is func(point) bool, what string) point {
	h.t.Helper()
	var last string
	for began := time.Now(); time.Since(began) < patience; time.Sleep(500 * time.Millisecond) {
		for _, p := range h.points(disk, after) {
			if is(p) {
				return p
			}
			last = p.line
		}
	}
	require.Fail(h.t, what+" does not come", "%s: %s", disk, last)
	return point{}
}

// inflict makes a fault, and returns when it began to, and the first point at fault. Of the gathers that
// begin once it is made and come to the disk, the second one reports it: a busy machine may be late.
func (h *host) inflict(disk, script string) (began time.Time, first point) {
	h.t.Helper()
	began = h.now()
	h.shell(script)
	made := h.now()
	first = h.until(disk, began, atFault, "a fault")
	before := 0
	for _, p := range h.points(disk, made) {
		if checked(p) && p.at.Before(first.at) {
			before++
		}
	}
	assert.LessOrEqual(h.t, before, 1, "reported within two intervals")
	return began, first
}

func verdict(pattern string) func(point) bool {
	is := regexp.MustCompile("^" + pattern)
	return func(p point) bool { return is.MatchString(p.verdict()) }
}

func checked(p point) bool { return p.field("result") != "unchecked" }

func atFault(p point) bool {
	return checked(p) && p.field("result") != "ok" && p.field("result") != "slow"
}

// use has somebody use a disk, and waits until it is read.
func (h *host) use(disk string) {
	h.t.Helper()
	since := h.now()
	h.until(disk, since, func(point) bool { return true }, "a gather") // the first one knows of no use
	h.shell(fmt.Sprintf("echo x >/mnt/%[1]s/use; sync -f /mnt/%[1]s", disk))
	h.until(disk, since, func(p point) bool { return !atFault(p) && p.field("device_seconds") != "" }, "a read of the device")
}

// A fault is made and undone by scripts.
type fault struct {
	name, disk    string
	inflict, heal string
	want          string // the verdict of the first point at fault
	later         string // one that it comes to, if it does
	after         string // what is reported when it was healed and nobody can write; else it is ok
}

const (
	hangs = `(timeout|stuck) device_hangs `
	fails = `error device_errors `
	// replaceTable has a device of the device mapper be another one; write has somebody meet it.
	replaceTable = `size=$(blockdev --getsz /dev/mapper/%[1]s)
		dmsetup reload %[1]s --table "0 $size %[2]s"; dmsetup suspend --nolockfs %[1]s; dmsetup resume %[1]s`
	write      = `; (echo x >/mnt/%[1]s/new; sync -f /mnt/%[1]s) 2>/dev/null || true`
	cut        = "iptables-legacy -w "
	packets    = " INPUT -p tcp --dport 3260 -j DROP"
	nbdPackets = " INPUT -p tcp --dport 10809 -j DROP"
	works      = `(echo x >/mnt/%[1]s/works && sync -f /mnt/%[1]s) >/dev/null 2>&1 && echo yes || echo no`
	mend       = `disk=$(losetup --noheadings --output NAME -j /srv/%[1]s); ` + "%[2]s"
)

// linear has a device of the device mapper be what it was.
func linear(name string) string {
	return fmt.Sprintf(mend, name, fmt.Sprintf(replaceTable, name, "linear $disk 0"))
}

func faults() []fault {
	paths := func(message string) string {
		return `for path in $(dmsetup table multipath | grep -o '7:[0-9]*'); do dmsetup message multipath 0 ` + message + ` $path; done`
	}
	// What is written before it is suspended may take a busy machine long: that hangs as well.
	const suspended = hangs + ".*dm-[0-9]+: dm/suspended is 1"
	signal := func(unit, signal string) string { return "systemctl kill --signal=" + signal + " " + unit }
	return []fault{
		{"dm: suspended", "dm", "dmsetup suspend dm", "dmsetup resume dm", hangs, suspended, "ok$"},
		{"dm: suspended, without freezing the file system", "dm", "dmsetup suspend --nolockfs dm", "dmsetup resume dm", hangs, suspended, "ok$"},
		{"dm: its table is `error`", "failing", fmt.Sprintf(replaceTable, "failing", "error"), linear("failing"), fails + ".*dm-[0-9]+", "", "ok$"},
		{"dm: its table is `error`, and ext4 writes", "aborted", fmt.Sprintf(replaceTable+write, "aborted", "error"), linear("aborted"), "error (device_errors|read_only) ", "", "error fs_shutdown "},
		{"dm: its table is `error`, and xfs writes", "xfs", fmt.Sprintf(replaceTable+write, "xfs", "error"), linear("xfs"), "error (device_errors .*dm-[0-9]+|fs_shutdown)", "", "error fs_shutdown"},
		{"multipath: queue_if_no_path, all paths fail", "multipath", paths("fail_path"), paths("reinstate_path"), hangs + ".*dm-[0-9]+", "", "ok$"},
		{"nbd: its server is stopped", "nbd", signal("nbd", "STOP"), signal("nbd", "CONT"), hangs + ".*nbd0", "", "ok$"},
		{"nbd: packets are dropped", "nbd", cut + "-A" + nbdPackets, cut + "-D" + nbdPackets, hangs + ".*nbd0", "", "ok$"},
		{"nbd: its server is killed", "killed", signal("killed", "KILL"), "", fails + ".*nbd1", "", ""},
		{"iSCSI: its target is stopped", "iscsi", signal("target", "STOP"), signal("target", "CONT"), hangs + ".*sda", hangs + ".*sda: .*(FAILED|blocked).*127.0.0.1", "ok$"},
		{"iSCSI: packets are dropped until after replacement_timeout", "iscsi", cut + "-A" + packets, cut + "-D" + packets, hangs + ".*(sda|sd 0:)", "error device_errors .*sda: device/state is .*offline", "error read_only "},
	}
}

func TestDevices(t *testing.T) {
	began := time.Now()
	h := newHost(t)
	t.Logf("all disks are there after %.0f s", time.Since(began).Seconds())
	table := document.Table{Header: []string{"fault", "reported", "reason", "reported after", "recovered after"}}
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) { (&host{h.Machine, t}).endure(f, &table) })
	}
	t.Run("nobody uses it", func(t *testing.T) { (&host{h.Machine, t}).leaveAlone("quiet") })
	t.Run("nobody uses it, and it is an nbd whose server is killed", func(t *testing.T) { (&host{h.Machine, t}).leaveAloneNBD("unused", &table) })
	t.Run("it can be removed", func(t *testing.T) { (&host{h.Machine, t}).remove() })
	t.Run("its journal was aborted, and it is mounted anew among many", func(t *testing.T) { (&host{h.Machine, t}).mountAnew("aborted") })
	h.seeHealthy()
	if name := os.Getenv("FAULTS"); name != "" && !t.Failed() {
		require.NoError(t, table.Write(name, "devices"))
	}
}

// endure makes a fault and undoes it, and sees what is reported.
func (h *host) endure(f fault, table *document.Table) {
	defer func() {
		if h.t.Failed() {
			h.t.Logf("the kernel's log:\n%s", h.shell("dmesg | tail -n 40"))
		}
	}()
	h.use(f.disk)
	healed := false
	heal := func() {
		if !healed {
			healed = true
			h.shell(f.heal)
		}
	}
	defer heal()
	made, first := h.inflict(f.disk, f.inflict)
	assert.True(h.t, verdict(f.want)(first), "%s is not %s", first.verdict(), f.want)
	if f.later != "" {
		h.until(f.disk, made, verdict(f.later), f.later)
	}
	if f.disk == "iscsi" {
		h.until("idle", made, verdict(`(error|timeout|stuck) device_(hangs|errors) .*sdb: .*127.0.0.1`), "what sysfs says of a disk that nobody uses")
	}
	recovered := ""
	if f.after != "" {
		since := h.now()
		heal()
		after := f.after
		if h.shell(fmt.Sprintf(works, f.disk)) == "yes" {
			after = "ok$"
		}
		p := h.until(f.disk, since, verdict(after), after)
		recovered = p.verdict()
		if recovered == "ok" {
			recovered = seconds(p.at.Sub(since))
		}
	}
	table.Add(f.name, first.field("result")+", "+first.field("cause"), first.field("reason"), seconds(first.at.Sub(made)), recovered)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// leaveAlone sees that a disk which nobody uses is not read, and what is told of it.
func (h *host) leaveAlone(disk string) {
	p := h.until(disk, h.now(), func(p point) bool { return p.field("device_seconds") == "" }, "a gather that does not read it")
	requests := fmt.Sprintf("cat /sys/block/%s/stat", p.field("device"))
	before := h.shell(requests)
	h.until(disk, h.now().Add(4*time.Second), verdict("ok"), "ok")
	assert.Equal(h.t, before, h.shell(requests), "it was not read")

	resume := sync.OnceFunc(func() { h.shell("dmsetup resume " + disk) })
	defer resume()
	made, _ := h.inflict(disk, "dmsetup suspend --nolockfs "+disk)
	h.until(disk, made, verdict(`.*device_hangs .*dm-[0-9]+: dm/suspended is 1`), "why")
	resume()
	h.until(disk, h.now(), verdict("ok"), "ok")

	made, _ = h.inflict(disk, fmt.Sprintf(replaceTable, disk, "error"))
	// A gather may meet it between its two tables. udev may read it before us; then the kernel's log has it.
	h.until(disk, made, verdict(`.*device_errors (dm-[0-9]+: slaves is empty|the kernel: .* dev dm-[0-9]+,)`), "why")
	h.shell(linear(disk))
	h.until(disk, h.now(), verdict("ok"), "ok")
}

// leaveAloneNBD sees what is told of an nbd that nobody uses and whose server is killed: sysfs
// is as before, and the kernel's log alone says it.
func (h *host) leaveAloneNBD(disk string, table *document.Table) {
	p := h.until(disk, h.now(), func(p point) bool { return p.field("device_seconds") == "" }, "a gather that does not read it")
	sysfs := fmt.Sprintf("cd /sys/block/%s && grep -s . size ro removable nbd*/* pid backend device/state inflight || true", p.field("device"))
	before := h.shell(sysfs)
	made, found := h.inflict(disk, "systemctl kill --signal=KILL "+disk)
	assert.Regexp(h.t, "^"+fails+"the kernel: block nbd[0-9]+: Receive control failed|^"+fails+".*nbd", found.verdict())
	assert.Equal(h.t, before, h.shell(sysfs), "sysfs does not say so")
	h.t.Logf("%s; sysfs: %s", found.verdict(), before)
	table.Add("nbd that nobody uses: its server is killed", found.field("result")+", "+found.field("cause"), found.field("reason"), seconds(found.at.Sub(made)), "")
}

// seeHealthy sees that the healthy mounts had no fault, and writes which they are.
func (h *host) seeHealthy() {
	table := document.Table{Header: []string{"mount", "how", "reported as"}}
	for _, kind := range []struct{ disk, name, label string }{
		{"healthy", "ext4 on a loop device", ""}, {"luks", "ext4 on LUKS", "luks-0815"}, {"lvm", "ext4 on LVM", "vg-data"},
		{"lvm-on-luks", "ext4 on LVM on LUKS", "crypted-data"}, {"ecryptfs", "eCryptfs", ""},
	} {
		all := h.points(kind.disk, time.Time{})
		require.GreaterOrEqual(h.t, len(all), 20, kind.name)
		for _, p := range all {
			assert.False(h.t, atFault(p), p.line)
			assert.Equal(h.t, kind.label, p.field("device_label"), p.line)
		}
		table.Add(kind.name, "mounted in a machine", "ok")
	}
	if name := os.Getenv("FAULTS"); name != "" && !h.t.Failed() {
		require.NoError(h.t, table.Write(name, "healthy-devices"))
	}
}

// mountAnew sees that an ext4 whose journal was aborted is well when it was mounted anew, also for a
// vfsprobe that has not seen the mount: the kernel logs 64 mounts and unmounts in 30 s.
func (h *host) mountAnew(disk string) {
	const mounts = `dmesg | grep -c "EXT4-fs (dm-$(dmsetup info -c --noheadings -o minor %s)): mounted" || true`
	logged := fmt.Sprintf(mounts, disk)
	for range 3 { // a machine may be too slow for that
		before := h.shell(logged)
		h.shell(`for i in $(seq 40); do mount /dev/mapper/removable /mnt/removable; until umount /mnt/removable; do sleep 0.1; done; done`) // a check may have it open
		h.shell(fmt.Sprintf("umount /mnt/%[1]s && mount /dev/mapper/%[1]s /mnt/%[1]s", disk))
		if h.shell(logged) == before {
			break
		}
		h.t.Log("the kernel has logged the mount")
	}
	assert.Equal(h.t, "yes", h.shell(fmt.Sprintf(works, disk)))
	assert.NotEmpty(h.t, h.shell("dmesg | grep 'Aborting journal on device dm-'"))
	h.shell("systemctl restart vfsprobe")
	p := h.until(disk, h.now(), func(p point) bool { return atFault(p) || p.verdict() == "ok" }, "a gather") // it may be slow at first
	assert.Equal(h.t, "ok", p.verdict())
}

// remove sees that what is checked is not kept busy.
func (h *host) remove() {
	for range 3 {
		h.shell("mount /dev/mapper/removable /mnt/removable")
		h.use("removable")
		h.shell("umount /mnt/removable && table=$(dmsetup table removable) && dmsetup remove removable && dmsetup create removable --table \"$table\"")
	}
	h.shell("umount /mnt/nbd && nbd-client -d /dev/nbd0 && until [ ! -e /sys/block/nbd0/pid ]; do sleep 0.1; done")
}
