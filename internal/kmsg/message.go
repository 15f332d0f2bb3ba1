package kmsg

import (
	"strconv"
	"strings"
	"syscall"
)

// Kind says what a message is about.
type Kind string

// The kinds. Their values are parts of field names, and never change.
const (
	// NotResponding: a call had no answer within its timeouts, and goes on.
	NotResponding Kind = "not_responding"
	// TimedOut: a call had no answer, and failed: those of soft mounts do, and
	// those to the local rpc.statd.
	TimedOut Kind = "timed_out"
	// Recovered: a call that was NotResponding is answered.
	Recovered Kind = "recovered"
	// CannotMonitor: rpc.statd did not take the server down. The lock fails with
	// ENOLCK.
	CannotMonitor Kind = "cannot_monitor"
	// UnlockStatus: the server refused an unlock; Number is its status.
	UnlockStatus Kind = "unlock_status"
	// OutOfSync: the server granted a lock which the kernel could not note down.
	OutOfSync Kind = "out_of_sync"
	// LostLocks: locks of this host were not given back after the server's
	// restart or a lost lease; Number says how many.
	LostLocks Kind = "lost_locks"
	// StateManager: the recovery of NFSv4 state failed; Number is the errno.
	StateManager Kind = "state_manager"
	// ClientIDInUse: another host has this one's NFSv4 identity.
	ClientIDInUse Kind = "client_id_in_use"
	// LostOpens: what a program has open on NFSv4 could not be recovered, and all it does
	// with it fails with EIO; Number is the errno, or the error of the protocol.
	LostOpens Kind = "lost_opens"
	// BadSequence: the server and this host disagree on the order of NFSv4.0 opens and locks.
	BadSequence Kind = "bad_sequence"
	// CannotUnmonitor: rpc.statd did not strike the server off.
	CannotUnmonitor Kind = "cannot_unmonitor"
	// NotRegistered: the local rpcbind did not register one of the kernel's services; Number
	// is the errno.
	NotRegistered Kind = "not_registered"
	// ServiceFailed: lockd, or the service that NFSv4.0 servers call back, did not start.
	ServiceFailed Kind = "service_failed"
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{NotResponding, TimedOut, Recovered, CannotMonitor, UnlockStatus, OutOfSync, LostLocks, StateManager, ClientIDInUse,
		LostOpens, BadSequence, CannotUnmonitor, NotRegistered, ServiceFailed}
}

// Message is what the kernel says about NFS and its locks.
type Message struct {
	Kind    Kind
	Program string // nfs, nfsacl, lockd, statd or rpcbind
	// Server is its name or address as the mount has it, raw bytes; empty where
	// the message names none. That of statd is "rpc.statd": the local one.
	Server string
	Number int64 // see the kinds; 1 for those without
}

// RefusesLease reports whether an NFSv4 server gives this host no lease: the state manager has
// failed with EPERM or EACCES (nfs4_state_manager, fs/nfs/nfs4state.c).
func (m Message) RefusesLease() bool {
	return m.Kind == StateManager && (m.Number == int64(syscall.EPERM) || m.Number == int64(syscall.EACCES))
}

// Parse recognizes a message of lockd, sunrpc or nfs by the record's text. The
// formats are those of Linux 3.10 to 7.2; testdata names the sources.
func Parse(text string) (Message, bool) {
	if m, found := rpcMessage(text); found {
		return m, true
	}
	for i := range formats {
		if m, found := formats[i].parse(text); found {
			return m, true
		}
	}
	return Message{}, false
}

// rpcMessage reads "PROGRAM: server NAME STATE" (call_timeout, call_decode and
// rpc_check_timeout, net/sunrpc/clnt.c).
func rpcMessage(text string) (Message, bool) {
	program, rest, found := strings.Cut(text, ": server ")
	if !found {
		return Message{}, false
	}
	if program = programOf(program); program == "" {
		return Message{}, false
	}
	for _, state := range []struct {
		words string
		kind  Kind
	}{
		{" not responding, still trying", NotResponding},
		{" not responding, timed out", TimedOut},
		{" OK", Recovered},
	} {
		if name, found := strings.CutSuffix(rest, state.words); found && name != "" {
			return Message{Kind: state.kind, Program: program, Server: name, Number: 1}, true
		}
	}
	return Message{}, false
}

// programOf is the name of an RPC program (rpc_program.name) that has to do with
// locks, or nothing.
func programOf(name string) string {
	switch name {
	case "nfs", "nfsacl", "lockd", "statd", "rpcbind":
		return name
	case "nfs4":
		return "nfs"
	}
	return ""
}

// format is text around a server's name or a number, or both.
type format struct {
	kind    Kind
	program string
	// The server's name comes before the number.
	before, between, after string
	server, number         bool
	uncounted              bool // the number is an errno where others of the kind have a count
	// cut is what stands before the text that between, server and number are about; what is
	// in front of it is a file, or a part of the kernel's work.
	cut string
}

// formats are those of all messages but [rpcMessage]'s. The first that fits decides.
var formats = []format{
	{kind: CannotMonitor, program: "lockd", before: "lockd: cannot monitor ", server: true},
	{kind: CannotUnmonitor, program: "lockd", before: "lockd: cannot unmonitor ", server: true},
	{kind: UnlockStatus, program: "lockd", before: "lockd: unexpected unlock status: ", number: true},
	{kind: OutOfSync, program: "lockd", before: "nlmclnt_lock: VFS is out of sync with lock manager!"},
	{kind: LostLocks, program: "lockd", before: "lockd: failed to reclaim lock for pid "},
	{kind: LostLocks, program: "lockd", before: "lockd: unable to spawn reclaimer thread. Locks for ", between: " won't be reclaimed! (", after: ")", server: true, number: true, uncounted: true},
	{kind: LostLocks, program: "lockd", before: "lockd: reclaimer unable to alloc memory. Locks for ", after: " won't be reclaimed!", server: true},
	{kind: LostLocks, program: "nfs", before: "NFS: ", between: ": lost ", after: " locks", server: true, number: true},
	{kind: LostLocks, program: "nfs", before: "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!"},
	{kind: LostLocks, program: "nfs", before: "NFS: nfs4_reclaim_open_state: Lock reclaim failed!"},
	{kind: LostLocks, program: "nfs", before: "nfs4_reclaim_open_state: Lock reclaim failed!"},
	{kind: LostOpens, program: "nfs", before: "NFSv4: state recovery failed for open file ", cut: ", error = ", number: true},
	{kind: LostOpens, program: "nfs", before: "NFS: nfs4_handle_delegation_recall_error: unhandled error ", after: ".", number: true},
	{kind: StateManager, program: "nfs", before: "NFS: state manager", cut: " failed on NFSv4 server ", between: " with error ", server: true, number: true},
	{kind: StateManager, program: "nfs", before: "NFS: nfs4_reclaim_open_state: unhandled error ", number: true},
	{kind: StateManager, program: "nfs", before: "nfs4_reclaim_open_state: unhandled error ", number: true},
	{kind: StateManager, program: "nfs", before: "NFS: __nfs4_reclaim_open_state: unhandled error ", number: true},
	{kind: StateManager, program: "nfs", before: "NFS: nfs4_discover_server_trunking unhandled error ", after: ". Exiting with error EIO", number: true},
	{kind: StateManager, program: "nfs", before: "NFS: migration recovery failed (server ", after: ")", server: true},
	{kind: ClientIDInUse, program: "nfs", before: "NFS: Server ", after: " reports our clientid is in use", server: true},
	{kind: BadSequence, program: "nfs", before: "NFS: v4 server returned a bad sequence-id error on an unconfirmed sequence ", cut: "!"},
	{kind: BadSequence, program: "nfs", before: "NFS: v4 server ", after: "  returned a bad sequence-id error!", server: true},
	{kind: NotRegistered, program: "rpcbind", before: "svc: failed to register ", cut: " RPC service (errno ", after: ").", number: true},
	{kind: NotRegistered, program: "rpcbind", before: "RPC: failed to contact local rpcbind server (errno ", after: ").", number: true},
	{kind: ServiceFailed, program: "lockd", before: "lockd_up: makesock failed, error=", number: true},
	{kind: ServiceFailed, program: "lockd", before: "lockd_up: create service failed"},
	{kind: ServiceFailed, program: "nfs", before: "nfs_callback_create_svc: create service failed"},
	{kind: ServiceFailed, program: "nfs", before: "NFS: bind callback service failed"},
	{kind: ServiceFailed, program: "nfs", before: "NFS: callback service start failed"},
}

func (f *format) parse(text string) (Message, bool) {
	m := Message{Kind: f.kind, Program: f.program, Number: 1}
	rest, found := strings.CutPrefix(text, f.before)
	if !found {
		return Message{}, false
	}
	if f.cut != "" {
		i := strings.LastIndex(rest, f.cut)
		if i < 0 {
			return Message{}, false
		}
		rest = rest[i+len(f.cut):]
	}
	if rest, found = strings.CutSuffix(rest, f.after); !found {
		return Message{}, false
	}
	switch {
	case f.server && f.number:
		i := strings.LastIndex(rest, f.between)
		if i < 0 {
			return Message{}, false
		}
		m.Server, rest = rest[:i], rest[i+len(f.between):]
	case f.server:
		m.Server = rest
	}
	if f.server && m.Server == "" {
		return Message{}, false
	}
	if f.number {
		number, err := strconv.ParseInt(rest, 10, 32)
		if err != nil {
			return Message{}, false
		}
		if !f.uncounted {
			m.Number = number
		}
	}
	return m, true
}
