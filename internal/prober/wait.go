package prober

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

// A Wait is how a process waits for a file system, and so what SIGKILL does to it.
type Wait uint8

const (
	// Unkillable waits end when the file system answers, whatever is sent. They add 1 to
	// the load average, and the kernel reports them as hung tasks. So do those of a state
	// that is not known here.
	Unkillable Wait = iota
	// Killable waits are ended by SIGKILL.
	Killable
	// Asleep is the interruptible wait for a FUSE daemon. It costs no load, and the kernel
	// does not mind how long it lasts. SIGKILL makes it Unkillable, once the daemon has
	// read the request (request_wait_answer, fs/fuse/dev.c).
	Asleep
)

var waitNames = [...]string{"unkillable", "killable", "asleep"}

func (w Wait) String() string { return waitNames[w] }

// A waitRule says how processes wait in a function of the kernel's.
type waitRule struct {
	fileSystem string
	states     string   // letters of proc_pid_stat(5); D is also that of killable waits
	functions  []string // beginnings of what proc_pid_wchan(5) tells
	wait       Wait
}

// waitRules are the waits that are known. The first that fits holds. The functions are
// those of Linux 3.10 to 6.18; a compiler may have put one into its caller.
func waitRules() []waitRule {
	fuse := []string{"request_wait_answer", "fuse_", "__fuse_"}
	return []waitRule{
		{fileSystem: "FUSE", states: "S", functions: fuse, wait: Asleep},
		// After a fatal signal, with a daemon that knows no interrupts, and for requests
		// that must be answered, such as FLUSH.
		{fileSystem: "FUSE", states: "D", functions: fuse, wait: Unkillable},
		{fileSystem: "NFS", states: "SD", functions: []string{"rpc_wait_bit_killable", "nfs_wait_bit_killable", "nfs4_delay", "nlm_wait_on_grace", "nlmclnt_block"}, wait: Killable},
		{fileSystem: "SMB", states: "SD", functions: []string{"wait_for_response", "cifs_wait_for_server_reconnect", "wait_for_free_credits", "wait_for_compound_request"}, wait: Killable},
		// Behind another's attempt to connect again, which holds the session's mutex.
		{fileSystem: "SMB", states: "D", functions: []string{"smb2_reconnect", "cifs_reconnect_tcon"}, wait: Unkillable},
		// A signal has Tflush sent, whose answer is waited for whatever comes (p9_client_rpc,
		// net/9p/client.c).
		{fileSystem: "9P", states: "D", functions: []string{"p9_client_rpc", "p9_client_flush", "p9_client_zc_rpc"}, wait: Unkillable},
		{fileSystem: "CephFS", states: "SD", functions: []string{"ceph_mdsc_wait_request", "wait_generic_request", "ceph_monc_", "ceph_osdc_"}, wait: Killable},
		{fileSystem: "autofs", states: "SD", functions: []string{"autofs_wait", "autofs4_wait"}, wait: Killable},
		{fileSystem: "frozen", states: "D", functions: []string{"percpu_rwsem_wait", "__sb_start_write", "sb_start_write"}, wait: Unkillable},
	}
}

// waitOf is how a helper waits, which has the state and waits in the function. One that
// sleeps interruptibly does so in FUSE, if its plan is for that; and may do so where the
// function is not known, unless its plan promises that it can be killed.
func waitOf(plan *Plan, state byte, function string) Wait {
	if state == 'S' && (plan.OutlivesServer || function == "" && !plan.Killable) {
		return Asleep
	}
	for _, rule := range waitRules() {
		if strings.IndexByte(rule.states, state) >= 0 &&
			slices.ContainsFunc(rule.functions, func(prefix string) bool { return strings.HasPrefix(function, prefix) }) {
			return rule.wait
		}
	}
	if state == 'D' {
		return Unkillable
	}
	return Killable
}

// findWait looks at a helper. None that has become another user tells its function to
// whoever may not trace it (proc_pid_wchan, fs/proc/base.c).
func findWait(proc string, plan *Plan, pid int) (wait Wait, function string) {
	fields, err := statFields(proc, pid)
	if err != nil {
		return Killable, "" // it ends
	}
	function = FunctionOf(proc, pid)
	return waitOf(plan, fields[statState][0], function), function
}

// survivesKill reports whether a process has got SIGKILL and waits uninterruptibly nevertheless.
func survivesKill(proc string, pid int) bool {
	fields, err := statFields(proc, pid)
	if err != nil || fields[statState][0] != 'D' {
		return false
	}
	const kill = 1 << (unix.SIGKILL - 1)
	pending, err := strconv.ParseUint(string(fields[statSignal]), 10, 64)
	return err == nil && pending&kill != 0
}

// FunctionOf is the kernel function in which a process waits; empty if unknown.
func FunctionOf(proc string, pid int) string {
	function, err := procfs.ReadText(filepath.Join(proc, strconv.Itoa(pid), "wchan"))
	if err != nil || function == "0" {
		return ""
	}
	return function
}
