package blockdev

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// Trouble is what is wrong with a device.
type Trouble int

const (
	None  Trouble = iota
	Hangs         // it keeps requests, and may answer them yet
	Fails         // it answers requests with errors
	Gone          // it was removed
)

// State is what sysfs says of a device and of what it lies on.
type State struct {
	Trouble Trouble
	Says    string // the file which says so, and its content: "sda: device/state is blocked"
}

// known are the contents of files that mean trouble. Those that are not there say nothing.
var known = []struct {
	prefix, file string // of the device's name; in its directory
	content      map[string]Trouble
}{
	// drivers/scsi/scsi_sysfs.c, sdev_states.
	{"", "device/state", map[string]Trouble{"blocked": Hangs, "quiesce": Hangs, "created-blocked": Hangs, "offline": Fails,
		"transport-offline": Fails, "cancel": Gone, "deleted": Gone,
		// drivers/nvme/host/sysfs.c, nvme_sysfs_show_state.
		"resetting": Hangs, "connecting": Hangs, "deleting": Gone, "deleting (no IO)": Gone, "dead": Fails}},
	// Documentation/ABI/testing/sysfs-block-dm.
	{"dm-", "dm/suspended", map[string]Trouble{"1": Hangs}},
	// Documentation/admin-guide/md.rst, array_state.
	{"md", "md/array_state", map[string]Trouble{"clear": Gone, "inactive": Fails, "broken": Fails, "suspended": Hangs}},
}

// State returns what sysfs says. A device that is made of several and can do without some of them,
// such as multipath, is in trouble when all of them are.
func (d *Device) State() State {
	if strings.HasPrefix(d.Name, "dm-") && d.listed && d.names == "" {
		// Of the device mapper's targets only error and zero are made of no device; the table
		// itself takes an ioctl(2), and CAP_SYS_ADMIN. Below another device it may be well: LVM
		// has sparse volumes on zero.
		return State{Fails, d.Name + ": slaves is empty: its table has no device"}
	}
	return d.state()
}

// state is State without a look at the device mapper's table.
func (d *Device) state() State {
	if own := d.own(); own.Trouble != None {
		return own
	}
	var all []State
	for _, below := range d.Below {
		if s := below.state(); s.Trouble != None {
			all = append(all, s)
		}
	}
	if len(all) == 0 || d.redundant() && len(all) < len(d.Below) {
		return State{}
	}
	return all[0]
}

// own is what sysfs says of the device itself.
func (d *Device) own() State {
	for _, k := range known {
		if !strings.HasPrefix(d.Name, k.prefix) {
			continue
		}
		content, err := d.kindsAttribute(k.file)
		if trouble := k.content[content]; err == nil && trouble != None {
			return State{trouble, fmt.Sprintf("%s: %s is %s%s", d.Name, k.file, content, d.iscsiTarget())}
		}
	}
	if s := d.iscsi(); s.Trouble != None {
		return s
	}
	if strings.HasPrefix(d.Name, "nbd") {
		// The process that serves it (drivers/block/nbd.c, pid_show). Linux 6.1 was seen to keep
		// it after the server's end, while the device is mounted.
		if _, err := d.attribute("pid"); err != nil {
			return State{Fails, d.Name + ": nothing serves it"}
		}
	}
	return State{}
}

// iscsi is what the device's iSCSI session says: it may not be blocked yet.
func (d *Device) iscsi() State {
	if d.session == "" {
		return State{}
	}
	state, err := procfs.ReadText(filepath.Join(d.session, "state"))
	if err != nil || state == "LOGGED_IN" || state == "" {
		return State{}
	}
	return State{Hangs, fmt.Sprintf("%s: iscsi_session %s is %s%s", d.Name, d.sessionName, state, d.iscsiTarget())}
}

// findSession finds the device's iSCSI session, which is a part of its path
// (drivers/scsi/scsi_transport_iscsi.c).
func (d *Device) findSession() {
	for at := d.dir; len(at) > 1; at = filepath.Dir(at) {
		name := filepath.Base(at)
		if rest, found := strings.CutPrefix(name, "session"); found && strings.Trim(rest, "0123456789") == "" {
			d.session, d.sessionName = filepath.Join(at, "iscsi_session", name), name
			return
		}
	}
}

// iscsiTarget names the target of the device's iSCSI session, if it has one.
func (d *Device) iscsiTarget() string {
	if d.session == "" {
		return ""
	}
	target, _ := procfs.ReadText(filepath.Join(d.session, "targetname"))
	connections, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(d.session)), "connection*/iscsi_connection/*/persistent_address"))
	for _, file := range connections {
		if address, err := procfs.ReadText(file); err == nil {
			return fmt.Sprintf(" (iSCSI target %s at %s)", target, address)
		}
	}
	return ""
}

// redundant reports whether the device can do without some of those that it lies on:
// multipath, and the mirrors and RAIDs of md and LVM.
func (d *Device) redundant() bool {
	if strings.HasPrefix(d.Name, "md") {
		return true // its array_state says when it can't
	}
	if uuid, _ := d.attribute("dm/uuid"); strings.HasPrefix(uuid, "mpath-") {
		return true
	}
	for _, below := range d.Below {
		if name, _ := below.attribute("dm/name"); strings.Contains(name, "_rimage_") || strings.Contains(name, "_mimage_") {
			return true
		}
	}
	return false
}
