package result

import (
	"fmt"
	"strings"
	"unicode"
)

// Cause is why something is at fault: the field cause of mountstat, and the
// field diagnosis of nfslock. Values never change their meaning.
type Cause string

// The causes. What there is to say of them stands in causes.go.
const (
	Healthy                  Cause = "ok"
	ServerUnreachable        Cause = "server_unreachable"
	ServerRPCDead            Cause = "server_rpc_dead"
	ServerServiceDead        Cause = "server_service_dead"
	ExportHangs              Cause = "export_hangs"
	LoginRefused             Cause = "login_refused"
	ShareGone                Cause = "share_gone"
	MountNeedsRemount        Cause = "mount_needs_remount"
	AutomounterStopped       Cause = "automounter_stopped"
	CephMonitorsDead         Cause = "ceph_monitors_dead"
	CephMDSDead              Cause = "ceph_mds_dead"
	CephOSDsDead             Cause = "ceph_osds_dead"
	ClientEvicted            Cause = "client_evicted"
	StaleExport              Cause = "stale_export"
	FUSEDaemonSilent         Cause = "fuse_daemon_silent"
	FUSEDaemonDead           Cause = "fuse_daemon_dead"
	FUSEServerUnreachable    Cause = "fuse_server_unreachable"
	FUSEServerSilent         Cause = "fuse_server_silent"
	Frozen                   Cause = "frozen"
	DeviceHangs              Cause = "device_hangs"
	DeviceErrors             Cause = "device_errors"
	DeviceGone               Cause = "device_gone"
	FSShutdown               Cause = "fs_shutdown"
	SourceDeleted            Cause = "source_deleted"
	FanotifySilent           Cause = "fanotify_silent"
	NoSpace                  Cause = "no_space"
	ReadOnly                 Cause = "read_only"
	Permission               Cause = "permission"
	IOError                  Cause = "io_error"
	NotMounted               Cause = "not_mounted"
	StatdDown                Cause = "statd_down"
	StatdDeadRegistered      Cause = "statd_dead_registered"
	StatdHung                Cause = "statd_hung"
	StatdDownLatent          Cause = "statd_down_latent"
	StatdMissing             Cause = "statd_missing"
	StatdMasked              Cause = "statd_masked"
	LeaseRefused             Cause = "lease_refused"
	LeaseExpired             Cause = "lease_expired"
	ClientIDInUse            Cause = "client_id_in_use"
	ClientNameShared         Cause = "client_name_shared"
	DelegationRecall         Cause = "delegation_recall"
	StateManagerStuck        Cause = "state_manager_stuck"
	LockLimit                Cause = "lock_limit"
	ServerRPCBindUnreachable Cause = "server_rpcbind_unreachable"
	NLMUnregistered          Cause = "nlm_unregistered"
	NLMUnreachable           Cause = "nlm_unreachable"
	NSMUnreachable           Cause = "nsm_unreachable"
	GracePeriod              Cause = "grace_period"
	HeldElsewhere            Cause = "held_elsewhere"
	CanaryDenied             Cause = "denied"
	LocalOnly                Cause = "local_only"
	NoCanary                 Cause = "no_canary"
	Unknown                  Cause = "unknown"
)

// Causes returns those that an input names.
func Causes(input string) []Cause {
	var named []Cause
	for _, e := range causes {
		if strings.Contains(e.inputs, input) {
			named = append(named, e.cause)
		}
	}
	return named
}

// explanation returns the row of the table, which is empty for other values.
func (c Cause) explanation() explanation {
	for _, e := range causes {
		if e.cause == c {
			return e
		}
	}
	return explanation{}
}

// Fault reports whether the cause can be that of a fault. Whether it is one, the
// result says.
func (c Cause) Fault() bool { return c.explanation().fault }

// Meaning is what the cause says, as a clause for logs; empty for values that
// are no cause.
func (c Cause) Meaning() string { return c.explanation().meaning }

// Evidence is what vfsprobe has seen when it names the cause.
func (c Cause) Evidence() string { return c.explanation().evidence }

// Proof is how to see the cause by hand. Commands stand in backquotes.
func (c Cause) Proof(v Values) string { return v.fill(c.explanation().proof) }

// Cure is what ends the fault. Commands stand in backquotes.
func (c Cause) Cure(v Values) string { return v.fill(c.explanation().cure) }

// Placeholder is a word of proofs and cures that stands for a value.
type Placeholder string

// The placeholders.
const (
	Mount      Placeholder = "MOUNT"      // mount point
	Server     Placeholder = "SERVER"     // address of the file server
	Device     Placeholder = "DEVICE"     // name below /dev
	Connection Placeholder = "CONNECTION" // number in /sys/fs/fuse/connections
	Daemon     Placeholder = "DAEMON"     // process that serves a FUSE file system
	Canary     Placeholder = "CANARY"     // path of the file that is locked
	PID        Placeholder = "PID"        // process that waits
	// Restart stands for a whole command, and so does its value.
	Restart Placeholder = "systemctl restart UNIT"
)

// Values are what placeholders stand for. Where one has no value, or one that a
// shell command can't show as it is, the placeholder stays.
type Values map[Placeholder]string

// fill puts in the values, quoted for a shell: mount points are chosen by whoever
// may mount.
func (v Values) fill(text string) string {
	var pairs []string
	for placeholder, value := range v {
		if placeholder == Restart && value != "" {
			pairs = append(pairs, string(placeholder), value)
		} else if word, ok := shellWord(value); ok {
			pairs = append(pairs, string(placeholder), word)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// shellWord quotes a value for a shell. It refuses options, and what is escaped
// or would have to be.
func shellWord(value string) (string, bool) {
	unfit := func(r rune) bool { return r == '\\' || r == unicode.ReplacementChar || !unicode.IsPrint(r) }
	plain := func(r rune) bool {
		return r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("/._-:@%+,", r)
	}
	switch {
	case value == "", value[0] == '-', strings.ContainsFunc(value, unfit):
		return "", false
	case !strings.ContainsFunc(value, func(r rune) bool { return !plain(r) }):
		return value, true
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'", true
}

// Table is a Markdown table of the causes. The first column has the title.
func Table(title string, causes []Cause) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | meaning | evidence | by hand | what to do |\n|---|---|---|---|---|\n", title)
	for _, c := range causes {
		for _, cell := range []string{string(c), c.Meaning(), c.Evidence(), c.Proof(nil), c.Cure(nil)} {
			b.WriteString("| " + strings.ReplaceAll(cell, "|", `\|`) + " ")
		}
		b.WriteString("|\n")
	}
	return b.String()
}
