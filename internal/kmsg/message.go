package kmsg

import (
	"strconv"
	"strings"
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
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{NotResponding, TimedOut, Recovered, CannotMonitor, UnlockStatus, OutOfSync, LostLocks, StateManager, ClientIDInUse}
}

// Message is what the kernel says about NFS and its locks.
type Message struct {
	Kind    Kind
	Program string // nfs, lockd or statd
	// Server is its name or address as the mount has it, raw bytes; empty where
	// the message names none. That of statd is "rpc.statd": the local one.
	Server string
	Number int64 // see the kinds; 1 for those without
}

// Parse recognises a message of lockd, statd or nfs by the record's text. The
// formats are those of Linux 4.18 to 7.0; testdata names the sources.
func Parse(text string) (Message, bool) {
	if m, found := rpcMessage(text); found {
		return m, true
	}
	for _, f := range formats() {
		if m, found := f.parse(text); found {
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
	case "nfs", "lockd", "statd":
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
}

func formats() []format {
	return []format{
		{kind: CannotMonitor, program: "lockd", before: "lockd: cannot monitor ", server: true},
		{kind: UnlockStatus, program: "lockd", before: "lockd: unexpected unlock status: ", number: true},
		{kind: OutOfSync, program: "lockd", before: "nlmclnt_lock: VFS is out of sync with lock manager!"},
		{kind: LostLocks, program: "lockd", before: "lockd: failed to reclaim lock for pid "},
		{kind: LostLocks, program: "nfs", before: "NFS: ", between: ": lost ", after: " locks", server: true, number: true},
		{kind: LostLocks, program: "nfs", before: "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!"},
		{kind: LostLocks, program: "nfs", before: "NFS: nfs4_reclaim_open_state: Lock reclaim failed!"},
		{kind: LostLocks, program: "nfs", before: "nfs4_reclaim_open_state: Lock reclaim failed!"},
		{kind: StateManager, program: "nfs", before: "NFS: state manager", server: true, number: true},
		{kind: ClientIDInUse, program: "nfs", before: "NFS: Server ", after: " reports our clientid is in use", server: true},
	}
}

func (f *format) parse(text string) (Message, bool) {
	m := Message{Kind: f.kind, Program: f.program, Number: 1}
	rest, found := strings.CutPrefix(text, f.before)
	if !found {
		return Message{}, false
	}
	if f.kind == StateManager {
		// The part of the work that failed may stand between.
		_, rest, found = strings.Cut(rest, " failed on NFSv4 server ")
		if !found {
			return Message{}, false
		}
		f = &format{between: " with error ", server: true, number: true}
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
		m.Server, rest = rest, ""
	}
	if f.server && m.Server == "" {
		return Message{}, false
	}
	if f.number {
		number, err := strconv.ParseInt(rest, 10, 32)
		if err != nil {
			return Message{}, false
		}
		m.Number = number
	}
	return m, true
}
